"""A run as a GGUF file: what the library's own reader finds in it, and what llama.cpp writes with it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moe_core.config import ModelConfig
from moe_core.config.router import RouterConfig
from moe_core.errors import UsageError
from moe_core.exchange import gguf_export
from moe_core.exchange.gguf_architectures import ARCHITECTURES, architecture_of, to_gguf_tensors
from moe_core.exchange.gguf_export import check_gguf, export_gguf
from moe_core.exchange.targets import fit_to_family, target_family
from moe_core.inference.engine import Engine
from moe_core.inference.requests import Request
from moe_core.inference.sampling import SamplingConfig
from moe_core.model.transformer import MoETransformer
from moe_core.runs.checkpoint import load_run
from moe_core.runs.places import SHIPPED

SMALL = {
    "vocab_size": 300, "dim": 64, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "head_dim": 32, "num_experts": 4,
    "expert_hidden_dim": 32, "max_seq_len": 32,
}  # fmt: skip
ROUTERS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {},
    "mixtral": {"qk_norm": False},
    "granitemoeshared": {"qk_norm": False, "shared_expert_hidden_dim": 32},
    "qwen2_moe": {
        "qk_norm": False, "shared_expert_hidden_dim": 32, "shared_expert_gate": True,
        "router": RouterConfig(normalize_scores=False),
    },
    "glm4_moe": {"router": RouterConfig(kind="sigmoid", balancing="bias"), "shared_expert_hidden_dim": 32},
}  # fmt: skip


def value(reader: Any, key: str) -> Any:
    return reader.fields[key].contents()


@pytest.fixture
def file_of(trained_root: Path, tmp_path: Path) -> Callable[..., Any]:
    def make(weights: Any = "f32") -> Any:
        from gguf import GGUFReader

        exported = export_gguf(load_run("tiny", trained_root), tmp_path / f"tiny-{weights}.gguf", weights)
        return exported, GGUFReader(exported.path)

    return make


def test_the_file_says_what_the_run_is(file_of: Callable[..., Any], trained_root: Path) -> None:
    exported, reader = file_of()
    loaded = load_run("tiny", trained_root)
    model, name = loaded.config.model, exported.architecture
    assert value(reader, "general.architecture") == name
    assert value(reader, f"{name}.expert_count") == model.num_experts
    assert value(reader, f"{name}.expert_used_count") == model.top_k
    assert value(reader, f"{name}.context_length") == exported.context == loaded.config.training.seq_len
    assert value(reader, f"{name}.rope.freq_base") == pytest.approx(model.rope_theta)
    assert value(reader, f"{name}.attention.layer_norm_rms_epsilon") == pytest.approx(model.norm_eps)
    assert value(reader, "tokenizer.ggml.pre") == "gpt-2"
    # Every text of ours begins with end-of-text: so was the model trained.
    assert value(reader, "tokenizer.ggml.add_bos_token")
    assert value(reader, "tokenizer.ggml.bos_token_id") == loaded.tokenizer.end_of_text
    tokens = value(reader, "tokenizer.ggml.tokens")
    assert tokens == [loaded.tokenizer._backend.id_to_token(i) for i in range(loaded.tokenizer.vocab_size)]
    assert exported.bytes == exported.path.stat().st_size
    assert exported.parameters == sum(int(np.prod(one.shape)) for one in reader.tensors)


def test_tensors_are_the_runs_and_eight_bits_are_near_them(file_of: Callable[..., Any], trained_root: Path) -> None:
    from gguf import GGMLQuantizationType, dequantize

    state = load_run("tiny", trained_root).model.state_dict()
    _, exact = file_of()
    by_name = {one.name: one for one in exact.tensors}
    np.testing.assert_array_equal(by_name["token_embd.weight"].data, state["embedding.weight"].numpy())
    np.testing.assert_array_equal(
        by_name["blk.1.ffn_up_exps.weight"].data, state["layers.1.moe.experts.up_proj"].numpy()
    )
    exported, rounded = file_of("q8_0")
    kinds = {one.name: one.tensor_type for one in rounded.tensors}
    assert kinds["blk.0.ffn_gate_inp.weight"] == GGMLQuantizationType.F32
    down = next(one for one in rounded.tensors if one.name == "blk.0.ffn_down_exps.weight")
    theirs = dequantize(down.data, down.tensor_type)
    ours = state["layers.0.moe.experts.down_proj"].numpy()
    assert np.abs(theirs - ours).max() <= np.abs(ours).max() / 127
    assert exported.bytes < by_name["token_embd.weight"].data.nbytes + sum(one.n_bytes for one in exact.tensors)


@pytest.mark.parametrize("family", ROUTERS)
def test_each_family_has_an_architecture_and_all_its_tensors(family: str) -> None:
    config = ModelConfig(**SMALL, **ROUTERS[family])
    assert target_family(config) == family
    architecture = architecture_of(config, target_family(config))
    torch.manual_seed(0)
    model = MoETransformer(config)
    fitted, state = fit_to_family(config, model.state_dict(), target_family(config))
    tensors = to_gguf_tensors(state, fitted, target_family(config), architecture)
    layers = [name for name in tensors if name.startswith("blk.0.")]
    assert len(layers) == len(set(layers)) >= 9
    rows = sum(tensor.numel() for tensor in tensors.values())
    head = state["embedding.weight"].numel() if "output.weight" in tensors else 0
    unused = sum(t.numel() for n, t in state.items() if n.endswith(("noise_weight",)))
    assert rows - head == sum(t.numel() for t in state.values()) - unused
    if architecture.interleaved:  # rows 0 and 1 of a head are those of the two halves
        q, ours = tensors["blk.0.attn_q.weight"], state["layers.0.attention.q_proj.weight"]
        assert torch.equal(q[0], ours[0])
        assert torch.equal(q[1], ours[16])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"first_dense_layers": 1}, "has no dense layers"),
        ({"router": RouterConfig(normalize_scores=False)}, "do not sum to 1"),
        ({**ROUTERS["qwen2_moe"], "head_dim": 16}, "not as wide as the model"),
        ({"expert_activation": "gelu"}, "blocks gated by gelu"),
    ],
)
def test_what_llama_cpp_lacks_is_refused_by_name(options: dict[str, Any], said: str) -> None:
    config = ModelConfig(**{**SMALL, **options})
    with pytest.raises(UsageError, match=f"{said}.*--format huggingface"):
        architecture_of(config, target_family(config))


def test_a_name_that_is_taken_and_a_library_that_is_missing(
    trained_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_run("tiny", trained_root)
    (tmp_path / "x.gguf").write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"x\.gguf' exists already"):
        export_gguf(loaded, tmp_path / "x.gguf")
    monkeypatch.setattr(gguf_export.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"moescope\[low-precision\]"):
        check_gguf()


def test_the_command_writes_the_file(
    trained_root: Path, tmp_path: Path, cli: Callable[..., tuple[int, str, str]]
) -> None:
    target = tmp_path / "out" / "tiny.gguf"
    code, out, err = cli(
        trained_root, "export", "--run", "tiny", "--to", str(target), "--format", "gguf", "--weights", "q8_0", "--json"
    )
    assert code == 0, err
    figures = json.loads(out)
    assert figures["bytes"] == target.stat().st_size
    assert figures["architecture"] in {one.name for one in ARCHITECTURES.values()}
    assert [path.name for path in target.parent.iterdir()] == ["tiny.gguf"]
    code, _, err = cli(trained_root, "export", "--run", "tiny", "--to", str(tmp_path / "x"), "--weights", "q8_0")
    assert code == 2
    assert "needs --format gguf" in err


@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp is not installed")
@pytest.mark.parametrize("weights", ["f32", "q8_0"])
def test_llama_cpp_writes_the_same_greedy_text(weights: Any, tmp_path: Path) -> None:
    import xllamacpp

    loaded = load_run("demo", SHIPPED)
    exported = export_gguf(loaded, tmp_path / "demo.gguf", weights)
    given = xllamacpp.CommonParams()
    given.model.path, given.n_ctx, given.n_gpu_layers, given.warmup = str(exported.path), 128, 0, False
    given.cpuparams.n_threads, given.n_parallel = 1, 1
    server = xllamacpp.Server(given)
    for prompt in ("The tenant shall", "def ", "The patient", "Revenue for the quarter"):
        answer = server.handle_completions(
            {"prompt": prompt, "n_predict": 32, "temperature": 0, "top_k": 1, "cache_prompt": False}
        )
        answer = answer if isinstance(answer, dict) else json.loads(answer)
        theirs = answer["choices"][0]["text"] if "choices" in answer else answer["content"]
        sampling = replace(SamplingConfig(), max_new_tokens=32, temperature=0.0)
        assert theirs == Engine(loaded).start(Request(prompt, sampling)).result().text
