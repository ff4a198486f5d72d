"""A folder of Hugging Face, malformed anywhere: one line, in little time and memory, in import and in opening."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from training_support import write_corpus

from moe_core.errors import MoescopeError
from moe_core.exchange.configs import from_huggingface
from moe_core.exchange.export import export_run
from moe_core.exchange.family_configs import FAMILY_CONFIGS
from moe_core.exchange.import_ import import_checkpoint
from moe_core.inference.open import open_huggingface
from moe_core.inference.tracing import trace_text
from moe_core.runs.checkpoint import load_run
from moe_core.runs.folder import RunFolder

pytest.importorskip("transformers")

HUGE = 10**6
SIZES = ("num_hidden_layers", "num_experts", "hidden_size")
# A value of a wrong type or size -> a sister of it was met in a real file.
WRONG: list[Any] = [
    None, True, "8", "", "silu", -1, 0, 1, 3, HUGE, 10**12, 2**63, 10**400, 1e6, 0.5, -0.0, 1e300, 1e-300,
    float("nan"), float("inf"), [], [1], ["full_attention"], {}, {"a": 1}, {"rope_type": 7}, {"rope_theta": "x"},
    [[[]]], "\0", "a\nb",
]  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(trained_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run "tiny", exported. Read only."""
    folder = tmp_path_factory.mktemp("malformed") / "tiny"
    export_run(load_run("tiny", trained_root), folder)
    return folder


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "bad"))


def refusal_of(call: Callable[[], object]) -> str:
    """One line of reasonable length; "" where it went through."""
    try:
        call()
    except MoescopeError as error:
        text = str(error)
        # A newline within a name or a value is shown as its code, or by the command line as a space.
        assert len(text) < 700, text
        assert "Traceback" not in text
        return text
    return ""


def opened(folder: Path) -> None:
    trace_text(open_huggingface(folder, device="cpu"), "the tenant shall")


def write_config(folder: Path, tree: object) -> None:
    (folder / "config.json").write_text(json.dumps(tree))


KEYS = sorted({key for kind in FAMILY_CONFIGS.values() for key in [*kind.model_fields, *kind.aliases, *kind.only]})

NESTED = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    family=st.sampled_from(sorted(FAMILY_CONFIGS)),
    changes=st.dictionaries(
        st.sampled_from([*KEYS, "rope_parameters", "rope_scaling", "partial_rotary_factor", "model_type"]),
        st.sampled_from(WRONG) | NESTED,
        max_size=4,
    ),
)  # fmt: skip
@example(family="mixtral", changes={"num_hidden_layers": HUGE})
def test_any_config_json_becomes_a_configuration_or_one_line(family: str, changes: dict[str, Any]) -> None:
    refusal_of(lambda: from_huggingface({"model_type": family, **changes}))


@pytest.mark.parametrize(
    "change",
    [
        *({key: value} for key in SIZES for value in (-1, 0, "8", None, 1e6, 10**400, [2], {})),
        {"num_hidden_layers": HUGE},
        {"num_hidden_layers": HUGE, "use_sliding_window": True, "sliding_window": 4},
        {"num_experts": 10**9},
        {"max_position_embeddings": 10**12},
        {"num_attention_heads": 0},
        {"num_key_value_heads": 3},
        {"num_experts_per_tok": 99},
        {"num_experts_per_tok": -2},
        {"decoder_sparse_step": 0},
        {"mlp_only_layers": "all"},
        {"mlp_only_layers": 5},
        {"rope_parameters": "yarn"},
        {"rope_parameters": {"rope_type": "yarn"}},
        {"rope_parameters": {"rope_type": "no such", "rope_theta": 1.0}},
        {"rope_scaling": [1]},
        {"hidden_act": "no such"},
        {"hidden_act": 7},
        {"rms_norm_eps": "small"},
        {"vocab_size": 5},
        {"head_dim": -8},
        {"head_dim": 7},
        {"dtype": "float99"},
        {"dtype": 7},
        {"model_type": ["qwen3_moe"]},
        {"model_type": "no such"},
        {"architectures": 7},
        {"layer_types": ["full_attention"]},
        {"tie_word_embeddings": "yes"},
        {"norm_topk_prob": [1]},
        {"quantization_config": "gptq"},
        {"quantization_config": {"quant_method": "no such"}},
        {"pad_token_id": 10**9},
        {"id2label": 7},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_a_malformed_config_is_one_line(change: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    write_config(folder, json.loads((folder / "config.json").read_text()) | change)
    refusal_of(lambda: opened(folder))
    data = str(write_corpus(tmp_path / "text.jsonl"))
    refusal_of(lambda: import_checkpoint(folder, RunFolder("run", tmp_path), data=data))


def test_counts_that_the_weights_do_not_have_are_named_before_a_model_is_built(folder: Path) -> None:
    tree = json.loads((folder / "config.json").read_text())
    for key, value, words in (
        ("num_hidden_layers", HUGE, "num_hidden_layers = 1,000,000; its weights are"),
        ("num_experts", 10**9, "num_experts = 1,000,000,000; its longest tensor"),
        ("max_position_embeddings", 10**12, "max_position_embeddings = 1,000,000,000,000; expected at most"),
    ):
        write_config(folder, tree | {key: value})
        assert words in refusal_of(lambda: opened(folder))
        write_config(folder, {"model_type": "qwen3_moe", "text_config": {key: value}})
        assert words in refusal_of(lambda: opened(folder))


@pytest.mark.parametrize("value", [0, -1, "8", 1e6, True])
@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "num_attention_heads", "num_experts_per_tok"])
def test_sizes_that_are_none_are_named(key: str, value: object, folder: Path) -> None:
    write_config(folder, json.loads((folder / "config.json").read_text()) | {key: value})
    shown = repr(value)
    assert f"{key} = {shown}; expected a whole number of at least 1" in refusal_of(lambda: opened(folder))
    said = refusal_of(lambda: from_huggingface(json.loads((folder / "config.json").read_text())))
    assert key in said or "top_k" in said


def replace_bytes(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def without_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.0.self_attn.k_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def renamed_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.key.weight"] = tensors.pop("model.layers.0.self_attn.k_proj.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def misshapen_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.gate.weight"] = torch.ones(3, 5)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def whole_numbers(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(tensors["model.norm.weight"].shape, dtype=torch.int8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def cut_off(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def only_an_index(content: object) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))

    return damage


def a_pipe(name: str) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return damage


def endless(name: str) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to("/dev/zero")

    return damage


def large(name: str) -> Callable[[Path], object]:
    """A sparse file: 2 GB that take no place on the disk."""
    return lambda folder: os.truncate(folder / name, 2 * 10**9)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "config nested": replace_bytes("config.json", b'{"a":' * 100_000),
    "config list": replace_bytes("config.json", b"[1]"),
    "config empty": replace_bytes("config.json", b""),
    "config binary": replace_bytes("config.json", bytes(range(256))),
    "config digits": replace_bytes("config.json", b'{"model_type": "mixtral", "hidden_size": ' + b"9" * 10_000 + b"}"),
    "config pipe": a_pipe("config.json"),
    "config endless": endless("config.json"),
    "config large": large("config.json"),
    "tensor missing": without_tensor,
    "tensor renamed": renamed_tensor,
    "tensor misshapen": misshapen_tensor,
    "weights cut off": cut_off,
    "weights empty": replace_bytes("model.safetensors", b""),
    "weights header": replace_bytes("model.safetensors", b"\xff" * 64),
    "weights pipe": a_pipe("model.safetensors"),
    "index list": only_an_index([]),
    "index without map": only_an_index({"metadata": {}}),
    "index map of numbers": only_an_index({"weight_map": {"model.norm.weight": 7}}),
    "index elsewhere": only_an_index({"weight_map": {"model.norm.weight": "../../x.safetensors"}}),
    "index missing file": only_an_index({"weight_map": {"model.norm.weight": "model-2.safetensors"}}),
    "tokenizer empty": replace_bytes("tokenizer.json", b""),
    "tokenizer nested": replace_bytes("tokenizer.json", b"[" * 100_000),
    "tokenizer list": replace_bytes("tokenizer.json", b"[1]"),
    "tokenizer object": replace_bytes("tokenizer.json", b'{"model": {"type": "BPE", "vocab": 7, "merges": []}}'),
    "tokenizer pipe": a_pipe("tokenizer.json"),
    "tokenizer large": large("tokenizer.json"),
}


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_file_is_one_line(name: str, folder: Path, tmp_path: Path) -> None:
    DAMAGES[name](folder)
    assert refusal_of(lambda: import_checkpoint(folder, RunFolder("run", tmp_path)))
    assert refusal_of(lambda: opened(folder))


def test_whole_numbers_are_no_weights(folder: Path, tmp_path: Path) -> None:
    whole_numbers(folder)
    said = refusal_of(lambda: import_checkpoint(folder, RunFolder("run", tmp_path)))
    assert "'model.norm.weight' as I8; expected floating-point" in said
