"""Each kind of model of ours, exported: transformers computes the same, and importing it gives it back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generation_support import generate
from hugging_face_weights import as_transformers, exported, loaded, random_model, router_indices
from safetensors.torch import load_file
from training_support import write_corpus
from transformers import AutoModelForCausalLM, AutoTokenizer

from moe_core.config import ModelConfig
from moe_core.exchange.import_ import import_checkpoint
from moe_core.exchange.targets import target_family
from moe_core.inference.sampling import SamplingConfig
from moe_core.routing import capture
from moe_core.runs.checkpoint import load_run
from moe_core.runs.folder import RunFolder

BASE: dict[str, Any] = {
    "vocab_size": 290,
    "dim": 32,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "max_seq_len": 64,
    "num_experts": 6,
    "top_k": 2,
    "expert_hidden_dim": 24,
    "dense_hidden_dim": 40,
    "rope_theta": 5_000.0,
    "norm_eps": 1e-6,
}
PLAIN = {"qk_norm": False}
SIGMOID = {"router": {"kind": "sigmoid"}}
GATED = {"shared_expert_hidden_dim": 20, "shared_expert_gate": True}
# What is asked for -> the family that computes just that.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("mixtral", PLAIN),
    "training-only options": ("mixtral", PLAIN | {"capacity_factor": 1.0, "router": {"noise_std": 0.5}}),
    "qk-norm": ("qwen3_moe", {}),
    "gelu": ("qwen3_moe", {"expert_activation": "gelu", "first_dense_layers": 1}),
    "gelu, shared expert": ("qwen2_moe", PLAIN | GATED | {"expert_activation": "gelu"}),
    "qk-norm, top-1, dense layers": ("qwen3_moe", {"top_k": 1, "first_dense_layers": 1, "moe_every": 2}),
    "gated shared expert": ("qwen2_moe", PLAIN | GATED),
    "gated shared expert, dense layer, plain scores": (
        "qwen2_moe",
        PLAIN | GATED | {"first_dense_layers": 1, "router": {"normalize_scores": False}},
    ),
    "shared expert": ("granitemoeshared", PLAIN | {"shared_expert_hidden_dim": 20}),
    "shared expert, dense layer": ("qwen2_moe", PLAIN | {"shared_expert_hidden_dim": 20, "first_dense_layers": 1}),
    "linear": ("qwen3_moe", {"rope": {"scheme": "linear", "factor": 4}}),
    "yarn": ("mixtral", PLAIN | {"rope": {"scheme": "yarn", "factor": 4, "original_length": 16, "beta_fast": 2}}),
    "llama3": ("qwen3_moe", {"rope": {"scheme": "llama3", "factor": 8, "original_length": 16}}),
    "dynamic": ("glm4_moe", SIGMOID | {"rope": {"scheme": "dynamic", "factor": 2, "original_length": 32}}),
    "window": ("mixtral", PLAIN | {"attention": {"window": 9}}),
    "window, qk-norm": ("qwen3_moe", {"attention": {"window": 1}}),
    "windows by layer": ("qwen2_moe", PLAIN | {"attention": {"window": 9, "pattern": "global,local"}}),
    "windows, shared expert": (
        "qwen2_moe",
        PLAIN | {"attention": {"window": 20}, "shared_expert_hidden_dim": 20},
    ),
    "top-1": ("qwen2_moe", PLAIN | {"top_k": 1}),
    "dense layers": ("qwen2_moe", PLAIN | {"moe_every": 3}),
    "sigmoid": ("glm4_moe", SIGMOID),
    "sigmoid, dense layer": ("glm4_moe", PLAIN | SIGMOID | {"first_dense_layers": 1, "num_heads": 2}),
    "sigmoid, shared expert of an odd width": ("glm4_moe", SIGMOID | {"shared_expert_hidden_dim": 30}),
    "sigmoid, top-1, plain scores": (
        "glm4_moe",
        {"top_k": 1, "router": {"kind": "sigmoid", "normalize_scores": False}},
    ),
}


def test_every_family_is_among_the_cases() -> None:
    from moe_core.exchange.layouts import FAMILIES

    assert {family for family, _ in CASES.values()} == set(FAMILIES)


@pytest.mark.parametrize("case", CASES)
def test_logits_and_experts_equal_and_importing_gives_the_model_back(case: str, tmp_path: Path) -> None:
    family, options = CASES[case]
    config = ModelConfig.model_validate(BASE | options)
    assert target_family(config) == family
    model = random_model(config)
    theirs = as_transformers(model, tmp_path / "hf")
    assert theirs.config.model_type == family
    token_ids = torch.randint(0, 290, (2, 60))
    with torch.no_grad():
        ours = model(token_ids)
    logits, chosen = router_indices(theirs, token_ids)
    assert ours.logits.std() > 0.1
    torch.testing.assert_close(ours.logits, logits, atol=1e-4, rtol=0)
    for routed, indices in zip(ours.router_outputs, chosen, strict=True):
        assert torch.equal(routed.router_indices.sort(dim=1).values, indices.sort(dim=1).values)

    # The same weights and configuration, but for the zeros that a family asks for; the same function in every case.
    run = RunFolder("again", tmp_path / "checkpoints")
    import_checkpoint(tmp_path / "hf", run, data=str(write_corpus(tmp_path / "text.jsonl")))
    again = load_run("again", tmp_path / "checkpoints").model
    with torch.no_grad():
        torch.testing.assert_close(again(token_ids).logits, ours.logits, atol=1e-5, rtol=0)
    for name, tensor in model.state_dict().items():
        if again.state_dict()[name].shape == tensor.shape and "shared_expert" not in name:
            assert torch.equal(again.state_dict()[name], tensor), name
    assert target_family(again.config) == family


@pytest.mark.parametrize("case", CASES)
def test_what_engines_need_is_written(case: str, tmp_path: Path) -> None:
    """vLLM has biases in qwen2_moe whatever its config says; both engines want the head of two families written out;
    llama.cpp divides by what a gate of zeros before a shared expert of zeros leaves."""
    family, options = CASES[case]
    exported(random_model(ModelConfig.model_validate(BASE | options)), tmp_path / "hf")
    tree = json.loads((tmp_path / "hf" / "config.json").read_text())
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    written_out = family in ("qwen2_moe", "glm4_moe")
    assert tree["tie_word_embeddings"] is not written_out
    assert ("lm_head.weight" in tensors) is written_out
    if written_out:
        assert torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])
    biases = [name for name in tensors if name.endswith("proj.bias")]
    assert len(biases) == (3 * tree["num_hidden_layers"] if family == "qwen2_moe" else 0)
    assert not any(tensors[name].count_nonzero() for name in biases)
    assert tree.get("qkv_bias", False) is (family == "qwen2_moe")
    for name, gate in tensors.items():
        if name.endswith("shared_expert_gate.weight"):
            expert = tensors[name.replace("shared_expert_gate", "shared_expert.down_proj")]
            assert gate.count_nonzero() or expert.count_nonzero(), name


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "qwen2_moe", "granitemoeshared", "glm4_moe"])
def test_what_transformers_saves_is_imported_and_the_same(family: str, tmp_path: Path) -> None:
    """Not only our own exports: a checkpoint that went through save_pretrained, in several files, in bfloat16."""
    options = next(options for found, options in CASES.values() if found == family)
    config = ModelConfig.model_validate(BASE | options)
    theirs = as_transformers(random_model(config, seed=3), tmp_path / "hf", dtype=torch.bfloat16)
    theirs.save_pretrained(tmp_path / "saved", max_shard_size="20KB")
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 1
    (tmp_path / "saved" / "tokenizer.json").write_bytes((tmp_path / "hf" / "tokenizer.json").read_bytes())
    data = str(write_corpus(tmp_path / "text.jsonl"))
    import_checkpoint(tmp_path / "saved", RunFolder("imported", tmp_path), data=data)
    model = load_run("imported", tmp_path).model
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32).eval()
    token_ids = torch.randint(0, 290, (2, 60))
    with torch.no_grad():
        torch.testing.assert_close(model(token_ids).logits, theirs(token_ids).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", ["qk-norm", "sigmoid", "shared expert"])
def test_the_tokenizer_reads_alike_and_greedy_text_is_the_same(case: str, tmp_path: Path) -> None:
    model = random_model(ModelConfig.model_validate(BASE | CASES[case][1]), seed=1, scale=0.5)
    run = loaded(model, tmp_path)
    exported(model, tmp_path / "hf", run.tokenizer)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    for text in ("", "the tenant", " <|endoftext|> is text €\n", "\x00 é 日本"):
        assert tokenizer(text).input_ids == [run.tokenizer.end_of_text, *run.tokenizer.encode(text)]
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == theirs.config.eos_token_id == run.tokenizer.end_of_text
    assert tokenizer.model_max_length == theirs.config.max_position_embeddings == 64
    written = theirs.generate(**tokenizer("the", return_tensors="pt"), max_new_tokens=40, do_sample=False)[0].tolist()
    ours = [token.token_id for token in generate(run, "the", SamplingConfig(max_new_tokens=40, temperature=0))]
    assert written[len(tokenizer("the").input_ids) :][: len(ours)] == ours
    assert len(set(ours)) > 3


def test_both_routers_are_captured_alike_where_the_scores_are_sigmoids(tmp_path: Path) -> None:
    model = random_model(ModelConfig.model_validate(BASE | SIGMOID | {"top_k": 3}))
    token_ids = torch.randint(0, 290, (2, 30))
    traces = []
    for one in (model, as_transformers(model, tmp_path / "hf")):
        with capture(one) as recorder, torch.no_grad():
            one(token_ids)
        traces.append(recorder.trace(token_ids=token_ids.numpy()))
    ours, theirs = traces
    assert ours.score_function == theirs.score_function == "sigmoid"
    assert ours.layers == theirs.layers
    order = theirs.router_scores.argsort(axis=-1)[..., ::-1]
    assert (np.take_along_axis(theirs.router_indices, order, -1) == ours.router_indices).all()
    np.testing.assert_allclose(np.take_along_axis(theirs.router_scores, order, -1), ours.router_scores, atol=1e-5)
