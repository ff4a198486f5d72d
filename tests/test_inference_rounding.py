"""Weights rounded to few bits and back: by hand, against torchao on the whole tensor, and on models that route."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

pytest.importorskip("torchao", reason="needs the extra low-precision")

from huggingface_support import saved_model, tiny_model

from moe_core.errors import UsageError
from moe_core.evaluation.twice_read import loss_change, loss_verdict
from moe_core.inference.held_out import held_out_text
from moe_core.inference.open import open_run
from moe_core.inference.reread import reread
from moe_core.inference.rounding import Rounding, matrices, primitives, round_in_place, rounded
from moe_core.inference.subjects import ForeignModel
from moe_core.inference.two_readings import Reading, Variant, read_tokens, read_twice
from moe_core.routing import RoutingTrace
from moe_core.routing.measures.agreement import routing_agreement
from moe_core.runs import RunFolder


def test_a_group_by_hand() -> None:
    # From -1 to 2 in steps of 1: zero point 1; 0.4 goes to 0 and 1.6 to 2.
    weights = torch.tensor([[-1.0, 0.4, 1.6, 2.0, 0.0, 3.0]])
    assert rounded(weights, Rounding(2, 4)).tolist() == [[-1.0, 0.0, 2.0, 2.0, 0.0, 3.0]]  # the rest is a group too
    assert rounded(torch.zeros(2, 3), Rounding(4)).tolist() == [[0.0] * 3] * 2


def test_many_bits_are_as_before_and_more_bits_are_never_further_off() -> None:
    weights = torch.randn(4, 6, 96, generator=torch.Generator().manual_seed(0))
    error = [float((rounded(weights, Rounding(bits)) - weights).square().mean().sqrt()) for bits in range(2, 17)]
    assert error == sorted(error, reverse=True)
    assert error[-1] < 1e-4
    finer = [float((rounded(weights, Rounding(4, size)) - weights).square().mean()) for size in (16, 32, 96)]
    assert finer == sorted(finer)


def test_stacked_experts_are_rounded_as_torchao_rounds_the_whole_tensor() -> None:
    library, weights = primitives(), torch.randn(3, 8, 64, generator=torch.Generator().manual_seed(1))
    block = (1, 1, 32)
    scale, zero = library.choose_qparams_affine(
        weights, library.MappingType.ASYMMETRIC, block, torch.uint8, 0, 15, zero_point_dtype=torch.int32
    )
    whole = library.quantize_affine(weights, block, scale, zero, torch.uint8, 0, 15)
    expected = library.dequantize_affine(whole, block, scale, zero, torch.uint8, 0, 15)
    model = tiny_model("mixtral")
    experts = model.get_submodule("model.layers.1.mlp.experts")
    experts.gate_up_proj = torch.nn.Parameter(weights.clone(), requires_grad=False)
    round_in_place(model, Rounding(4, 32, "experts"))
    assert torch.equal(experts.gate_up_proj, expected)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "olmoe"])
def test_what_is_rounded_and_what_is_not(family: str) -> None:
    model = tiny_model(family)
    experts = {one.name for one in matrices(model, "experts")}
    everything = {one.name for one in matrices(model, "all")}
    layers = [1, 2] if family == "qwen3_moe" else [0, 1, 2]
    stacked = ("gate_up_proj", "down_proj")
    assert experts == {f"model.layers.{layer}.mlp.experts.{name}" for layer in layers for name in stacked}
    assert experts < everything
    assert "lm_head.weight" in everything
    assert "model.layers.0.self_attn.q_proj.weight" in everything
    assert not [name for name in everything if "norm" in name or name.endswith((".gate.weight", "embed_tokens.weight"))]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = round_in_place(model, Rounding(3))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == everything
    assert found.weights == sum(before[name].numel() for name in everything)
    assert 0.05 < found.error < 0.3


def small_model(family: str, **own: int) -> Any:
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16}
    config = transformers.AutoConfig.for_model(
        family, **sizes, num_key_value_heads=1, num_experts_per_tok=2, num_local_experts=4, **own
    )
    return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(("family", "block"), [("gpt_oss", "mlp"), ("llama4_text", "feed_forward")])
def test_transposed_experts_are_grouped_along_their_input(family: str, block: str) -> None:
    own = {"interleave_moe_layer_step": 1, "intermediate_size_mlp": 32} if family == "llama4_text" else {}
    model = small_model(family, intermediate_size=48, **own)
    experts = model.get_submodule(f"model.layers.0.{block}.experts")
    torch.nn.init.normal_(experts.down_proj)
    before = experts.down_proj.detach().clone()
    assert before.shape == (4, 48, 32)  # [experts, input, output]
    round_in_place(model, Rounding(4, 8, "experts"))
    assert torch.equal(experts.down_proj, rounded(before.transpose(1, 2), Rounding(4, 8)).transpose(1, 2))


def twice(run: RunFolder, variant: Variant) -> tuple[Reading, Reading]:
    return read_twice(run, lambda model: held_out_text(run, model.tokenizer, 300), Variant(), variant)


def test_a_run_in_fewer_bits_agrees_less_and_is_left_as_it_was(trained_root: Path) -> None:
    run = RunFolder("tiny", trained_root)
    kept = open_run("tiny", trained_root)
    state = {name: value.clone() for name, value in kept.model.state_dict().items()}
    files = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    agreement = []
    for bits in (16, 8, 4, 2):
        first, second = twice(run, Variant(rounding=Rounding(bits)))
        assert second.rounded is not None
        assert (first.name, second.name) == ("float32", f"float32, {bits} bits")
        agreement.append(routing_agreement(first.text.trace, second.text.trace).all_choices.value)
    assert agreement == sorted(agreement, reverse=True)
    assert agreement[0] > 0.999
    assert agreement[-1] < agreement[1]
    change = loss_change(first.text, second.text)
    rows = change.frame.set_index("group")
    assert rows.loc["flipped", "tokens"] + rows.loc["kept", "tokens"] == rows.loc["all", "tokens"]
    parts = rows.loc[["flipped", "kept"]]
    assert rows.loc["all", "change"] == pytest.approx(
        (parts["change"] * parts["tokens"]).sum() / rows.loc["all", "tokens"]
    )
    assert rows.loc["all", "change"] == pytest.approx(
        float(np.nanmean(second.text.losses - first.text.losses)), abs=1e-5
    )
    assert change.difference == pytest.approx(rows.loc["flipped", "change"] - rows.loc["kept", "change"], abs=1e-5)
    assert loss_verdict(change)
    assert all(torch.equal(value, state[name]) for name, value in kept.model.state_dict().items())
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == files


def test_the_tokens_of_a_routing_are_read_again(trained_root: Path) -> None:
    run = RunFolder("tiny", trained_root)
    first, half = twice(run, Variant("bfloat16"))
    assert half.name == "bfloat16"
    trace = first.text.trace
    again = read_tokens(run, reread(trace), Variant())
    assert routing_agreement(trace, again.text.trace).is_complete
    with pytest.raises(UsageError, match="no document is whole from its beginning"):
        reread(trace.select(trace.positions > 0))
    # The second answer to a prompt is counted without it, and read behind it; a third whose beginning is lost is not.
    length = int((trace.document_ids == trace.document_ids[0]).sum())
    text = trace.select(np.arange(trace.num_tokens) < length)
    chosen = text.router_indices, text.router_scores
    indices, scores = (np.concatenate([one, one[:, 4:], one[:, 6:]], axis=1) for one in chosen)
    places = np.concatenate([np.arange(length), np.arange(4, length), np.arange(6, length)])
    document_ids = np.repeat([0, 1, 2], [length, length - 4, length - 6])
    recorded = RoutingTrace.from_arrays(
        router_indices=indices, router_scores=scores, num_experts=text.num_experts,
        token_ids=text.token_ids[places], positions=places, document_ids=document_ids,
        source_ids=np.where(document_ids == 2, 2, 0),
    )  # fmt: skip
    found = reread(recorded)
    assert (found.left_out, len(found.dataset), int(found.is_own.sum())) == (1, 2 * length, 2 * length - 4)
    answers = read_tokens(run, found, Variant()).text.trace
    assert routing_agreement(found.routing, answers).is_complete


def test_a_model_of_the_library_is_read_twice(tmp_path: Path) -> None:
    from moe_core.data.document import Document
    from moe_core.inference.scoring import as_dataset

    folder = saved_model(tmp_path / "model", "qwen3_moe")
    model = ForeignModel("model tiny", str(folder), device="cpu")
    documents = [Document("The café opened at nine. Der Rest ist Schweigen.", "text", f"{n}", "") for n in range(8)]
    first, second = read_twice(
        model, lambda loaded: as_dataset(loaded, documents), Variant(), Variant("bfloat16", Rounding(2, 16, "experts"))
    )
    assert (first.name, second.name) == ("float32", "bfloat16, 2 bits in experts")
    assert routing_agreement(first.text.trace, second.text.trace).all_choices.value < 1


def test_wrong_numbers_and_models_are_refused() -> None:
    for bits, group in ((1, 32), (17, 32), (4, 0)):
        with pytest.raises(UsageError, match="expected"):
            Rounding(bits, group)
    model = tiny_model("mixtral")
    experts = model.get_submodule("model.layers.0.mlp.experts")
    coded = experts.down_proj.to(torch.int8)
    del experts.down_proj
    experts.down_proj = torch.nn.Parameter(coded, requires_grad=False)
    with pytest.raises(UsageError, match="quantised already"):
        matrices(model, "experts")
    del experts.down_proj, experts.gate_up_proj
    with pytest.raises(UsageError, match="experts of layer 0 cannot be rounded"):
        matrices(model, "experts")
    with pytest.raises(UsageError, match="JetMoeForCausalLM does not keep them"):
        matrices(small_model("jetmoe", intermediate_size=16), "all")


def test_the_library_is_imported_without_a_word_and_its_absence_named(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from moe_core.inference.rounding import primitives; primitives()"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120,
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    from moe_core.inference import rounding

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match="low-precision"):
        rounding.check_library()
