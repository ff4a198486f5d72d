"""Export and import refuse, by name, what they cannot do exactly, and read nothing that could run code."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from training_support import write_corpus

from moe_core.config import ModelConfig
from moe_core.errors import MoescopeError, RunError, UsageError
from moe_core.evaluation.evaluate import evaluate_run
from moe_core.exchange.configs import from_huggingface, to_huggingface
from moe_core.exchange.export import export_run
from moe_core.exchange.import_ import import_checkpoint
from moe_core.exchange.layouts import from_checkpoint, to_checkpoint
from moe_core.exchange.targets import fit_to_family, target_family
from moe_core.inference.scoring import as_dataset
from moe_core.model import MoETransformer
from moe_core.routing import RoutingTrace
from moe_core.runs.checkpoint import load_run
from moe_core.runs.folder import RunFolder
from moe_core.training.probe import probe_routing

SMALL: dict[str, Any] = {
    "vocab_size": 300,
    "dim": 16,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 8,
}
SMALL |= {"max_seq_len": 32, "num_experts": 4, "top_k": 2, "expert_hidden_dim": 8, "dense_hidden_dim": 12}


@pytest.fixture(scope="module")
def checkpoint(trained_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run "tiny", exported. Read only."""
    folder = tmp_path_factory.mktemp("export") / "tiny"
    export_run(load_run("tiny", trained_root), folder)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text to score imported runs on."""
    return write_corpus(tmp_path_factory.mktemp("text") / "corpus.jsonl")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shared_expert_hidden_dim": 8}, "a softmax router, QK-norm and a shared expert together.*qk_norm = false"),
        (
            {"router": {"kind": "sigmoid"}, "shared_expert_hidden_dim": 8, "shared_expert_gate": True},
            "a sigmoid router and a gated shared expert together",
        ),
        ({"router": {"kind": "sigmoid"}, "num_layers": 4, "moe_every": 2}, r"MoE layers \[1, 3\].*moe_every = 1"),
        ({"router": {"kind": "sigmoid"}, "num_experts": 1, "top_k": 1}, "a sigmoid router with one expert"),
    ],
)
def test_what_no_family_has_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        target_family(ModelConfig.model_validate(SMALL | options))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "options",
    [
        {"qk_norm": False, "top_k": 1},
        {"qk_norm": False, "shared_expert_hidden_dim": 6, "first_dense_layers": 1},
        {"router": {"kind": "sigmoid"}},
        {"router": {"kind": "sigmoid"}, "shared_expert_hidden_dim": 11},
        {"router": {"kind": "sigmoid"}, "shared_expert_hidden_dim": 16},
    ],
)
def test_a_rewriting_never_changes_the_function_and_leaves_the_model_alone(options: dict[str, Any]) -> None:
    config = ModelConfig.model_validate(SMALL | options)
    torch.manual_seed(0)
    model = MoETransformer(config).eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(0.2 * torch.randn_like(tensor))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fitted, state = fit_to_family(config, model.state_dict(), target_family(config))
    other = MoETransformer(fitted).eval()
    other.load_state_dict(state)
    token_ids = torch.randint(0, 300, (2, 30))
    with torch.no_grad():
        torch.testing.assert_close(other(token_ids).logits, model(token_ids).logits, atol=1e-5, rtol=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "granitemoeshared"])
def test_the_mapping_gives_every_tensor_back(family: Any) -> None:
    config = ModelConfig.model_validate(
        SMALL | {"qk_norm": family == "qwen3_moe", "shared_expert_hidden_dim": 8 * (family == "granitemoeshared")}
    )
    state = MoETransformer(config).state_dict()
    theirs = to_checkpoint(state, config, family)
    again = from_checkpoint(theirs, config, family)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)
    assert from_huggingface(to_huggingface(config, family, context=32, end_of_text=0))[0].num_experts == 4
    with pytest.raises(RunError, match=r"lacks the tensor 'model\.norm\.weight'"):
        from_checkpoint({name: value for name, value in theirs.items() if name != "model.norm.weight"}, config, family)
    with pytest.raises(RunError, match=r"1 tensor that our model has no place for, the first is 'extra'"):
        from_checkpoint(theirs | {"extra": torch.zeros(1)}, config, family)
    with pytest.raises(RunError, match=r"lm_head\.weight differs from its embedding"):
        from_checkpoint(theirs | {"lm_head.weight": torch.zeros(300, 16)}, config, family)
    from_checkpoint(theirs | {"lm_head.weight": state["embedding.weight"]}, config, family)


def test_an_export_is_whole_or_not_there(trained_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_run("tiny", trained_root)
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists already and is not an empty folder"):
        export_run(loaded, full)
    assert [path.name for path in full.iterdir()] == ["mine.txt"]

    def no_space(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(type(loaded.tokenizer), "save", no_space)
        with pytest.raises(RunError, match="no space left"):
            export_run(loaded, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]
    (tmp_path / "empty").mkdir()
    exported = export_run(loaded, tmp_path / "empty")
    assert exported.family == "qwen3_moe"
    assert exported.context == loaded.config.training.seq_len == 32
    assert exported.parameters == loaded.model.total_parameters
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "empty").iterdir()}
    assert len(modes) == 1, "all files may be read by the same people"


def test_a_round_trip_keeps_weights_and_tokenizer(
    checkpoint: Path, corpus: Path, trained_root: Path, tmp_path: Path
) -> None:
    config, family = import_checkpoint(checkpoint, RunFolder("again", tmp_path), data=str(corpus))
    ours, again = load_run("tiny", trained_root), load_run("again", tmp_path)
    assert (family, again.step, config.training.seq_len) == ("qwen3_moe", 0, 32)
    assert again.tokenizer.vocabulary() == ours.tokenizer.vocabulary()
    assert again.tokenizer.encode("a <|endoftext|> b") == ours.tokenizer.encode("a <|endoftext|> b")
    assert all(torch.equal(again.model.state_dict()[name], value) for name, value in ours.model.state_dict().items())
    status = RunFolder("again", tmp_path).status()
    assert status is not None
    assert status.state == "finished"
    assert "qwen3_moe" in status.message
    with pytest.raises(UsageError, match="'again' exists already"):
        import_checkpoint(checkpoint, RunFolder("again", tmp_path), data=str(corpus))
    with pytest.raises(UsageError, match=r"is the folder .* itself"):
        import_checkpoint(checkpoint, RunFolder(checkpoint.name, checkpoint.parent))


CONFIG_FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "llama"}, "model_type is 'llama'.*mixtral, qwen3_moe"),
    ({"model_type": None}, "model_type is 'None'"),
    ({"hidden_act": "relu"}, "hidden_act is 'relu'; our model has 'silu', 'swish', 'gelu' only"),
    ({"attention_bias": True}, "attention_bias is True"),
    ({"use_sliding_window": True, "sliding_window": 0}, "sliding_window is 0"),
    ({"layer_types": ["sliding_attention"] * 2}, "layer_types is .*says no window"),
    (
        {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}},
        "rope_type is 'longrope'; our model has .*yarn",
    ),
    ({"rope_parameters": {"rope_type": "linear"}}, "rope_type is 'linear'; it needs factor"),
    ({"rope_parameters": {"rope_type": "linear", "factor": "4"}}, "factor = '4'; expected a number"),
    ({"rope_parameters": {"rope_type": "dynamic", "factor": 0.5}}, "rope_type dynamic with factor is"),
    (
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "truncate": False}},
        "rope_type yarn with truncate is False",
    ),
    ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
    ({"rope_parameters": "yarn"}, "expected an object"),
    ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    ({"num_experts_per_tok": 1}, "num_experts_per_tok is 1.*probability"),
    ({"num_experts_per_tok": "two"}, "num_experts_per_tok = 'two'; expected a whole number"),
    ({"num_experts_per_tok": 99}, "config.json describes a model that ours cannot be: model.top_k = 99"),
    ({"hidden_size": None}, "hidden_size = None"),
    ({"mlp_only_layers": [0, 1]}, "has no router"),
    ({"num_hidden_layers": 4, "mlp_only_layers": [1, 2]}, r"its MoE layers are \[0, 3\]"),
    ({"num_hidden_layers": 900}, r"lacks the tensor 'model\.layers\.2\."),
    ({"vocab_size": 321}, "the tokenizer in .* has .* entries, the model has 321"),
    (
        {"moe_intermediate_size": 16},
        r"does not fit its config\.json: .*experts\.0\.down_proj\.weight' has shape \[32, 32\]",
    ),
    ({"hidden_size": 65536, "num_experts": 4096, "moe_intermediate_size": 262144}, "needs .* GiB"),
]


@pytest.mark.parametrize(("update", "message"), CONFIG_FAULTS)
def test_a_config_that_is_not_ours_is_refused_by_name(
    update: dict[str, Any], message: str, checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copytree(checkpoint, tmp_path / "bad")
    tree = json.loads((checkpoint / "config.json").read_text())
    (tmp_path / "bad" / "config.json").write_text(json.dumps(tree | update))
    with pytest.raises(MoescopeError, match=message) as raised:
        import_checkpoint(tmp_path / "bad", RunFolder("run", tmp_path))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_legacy_rope_and_defaults_are_read_as_transformers_reads_them() -> None:
    config = ModelConfig.model_validate(SMALL | {"qk_norm": False})
    tree = to_huggingface(config, "mixtral", context=32, end_of_text=0)
    old = {key: value for key, value in tree.items() if key not in ("rope_parameters", "rms_norm_eps")}
    assert from_huggingface(old | {"rope_theta": 7e5})[0].rope_theta == 7e5
    del old["rope_theta"]
    assert from_huggingface(old)[0].rope_theta == 1e6  # Mixtral's
    assert from_huggingface(old)[0].norm_eps == 1e-5
    assert from_huggingface(tree | {"sliding_window": 8})[0].attention.window == 8
    granite = to_huggingface(config, "granitemoeshared", context=32, end_of_text=0)
    with pytest.raises(UsageError, match=r"attention_multiplier is 1\.0"):
        from_huggingface({key: value for key, value in granite.items() if key != "attention_multiplier"})
    glm = to_huggingface(
        ModelConfig.model_validate(SMALL | {"shared_expert_hidden_dim": 8, "router": {"kind": "sigmoid"}}),
        "glm4_moe", context=32, end_of_text=0,
    )  # fmt: skip
    for key, value in (("n_group", 2), ("routed_scaling_factor", 2.5)):
        with pytest.raises(UsageError, match=f"{key} is {value}"):
            from_huggingface(glm | {key: value})


def _truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _sharded(folder: Path, names: dict[str, str]) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def _foreign_tokenizer(folder: Path) -> None:
    tree = json.loads((folder / "tokenizer.json").read_text())
    text = json.dumps(tree, ensure_ascii=False).replace("<|endoftext|>", "</s>")
    (folder / "tokenizer.json").write_text(text)


def _untied(folder: Path) -> None:
    tree = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(tree | {"tie_word_embeddings": False}))


def _reshaped(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(3)
    save_file(tensors, folder / "model.safetensors")


FOLDER_FAULTS: list[tuple[Callable[[Path], object], str]] = [
    (_truncated, "is not a whole safetensors file"),
    (_pickle, r"pickle \(pytorch_model\.bin\), which can run any code"),
    (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
    (lambda folder: _sharded(folder, {"a": "../secret"}), "names the file '../secret'"),
    (lambda folder: _sharded(folder, {"a": "model-2.safetensors"}), "lacks .*model-2.safetensors.*copy the missing"),
    (lambda folder: _sharded(folder, {"a": 3}), "has no weight_map"),  # type: ignore[dict-item]
    (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
    (lambda folder: (folder / "tokenizer.json").unlink(), "copy it there"),
    (lambda folder: (folder / "tokenizer.json").write_text("[]"), "tokenizer .* is damaged"),
    (_foreign_tokenizer, r"cannot be used: the tokenizer has no '<\|endoftext\|>' token"),
    (_untied, r"lacks lm_head\.weight"),
    (_reshaped, r"'model\.norm\.weight' has shape \[3\], expected \[32\]"),
]


@pytest.mark.parametrize(("damage", "message"), FOLDER_FAULTS)
def test_a_damaged_checkpoint_is_named(
    damage: Callable[[Path], object], message: str, checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copytree(checkpoint, tmp_path / "bad")
    damage(tmp_path / "bad")
    with pytest.raises(MoescopeError, match=message) as raised:
        import_checkpoint(tmp_path / "bad", RunFolder("run", tmp_path))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_neither_direction_imports_transformers(
    checkpoint: Path, corpus: Path, trained_root: Path, tmp_path: Path
) -> None:
    script = (
        "import sys, main\n"
        f"assert main.main(['export', '--run', 'tiny', '--to', {str(tmp_path / 'to')!r}]) == 0\n"
        f"arguments = ['--from', {str(tmp_path / 'to')!r}, '--run', 'back', '--data', {str(corpus)!r}]\n"
        "assert main.main(['import', *arguments]) == 0\n"
        "assert 'transformers' not in sys.modules\n"
    )
    shutil.copytree(trained_root, tmp_path / "checkpoints")
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=240,
        env={"PATH": "/usr/bin:/bin", "MOESCOPE_CHECKPOINTS": str(tmp_path / "checkpoints"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "qwen3_moe checkpoint" in done.stdout
    assert (tmp_path / "to" / "config.json").read_text() == (checkpoint / "config.json").read_text()


def test_an_imported_run_can_be_exported_again(checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    import_checkpoint(checkpoint, RunFolder("again", tmp_path), data=str(corpus))
    export_run(load_run("again", tmp_path), tmp_path / "second")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "second" / name).read_bytes() == (checkpoint / name).read_bytes(), name


def test_an_imported_run_is_scored_and_shown_like_any_other(
    checkpoint: Path, corpus: Path, trained_root: Path, tmp_path: Path
) -> None:
    run = RunFolder("again", tmp_path)
    config, _ = import_checkpoint(checkpoint, run, data=str(corpus))
    assert run.config() == config
    assert run.domains() == ("code", "law", "news")
    assert run.metric_records("event")[0]["message"] == "imported from tiny, a qwen3_moe checkpoint"
    kept = RoutingTrace.load(run.probe_path(0))
    loaded = load_run("tiny", trained_root)
    probe = as_dataset(loaded, run.held_out("validation")).select(config.training.probe_tokens, 0)
    vocabulary = loaded.tokenizer.vocabulary()
    again = probe_routing(loaded.model, probe, seq_len=32, vocabulary=vocabulary, source="")
    np.testing.assert_array_equal(kept.router_indices, again.router_indices)
    evaluation = evaluate_run(load_run("again", tmp_path))
    while_importing = [record for record in run.metric_records("evaluation") if record["split"] == "unseen"]
    # Three documents of 90 words a split and domain: all of them were scored at once.
    assert evaluation.unseen.nats_per_token == pytest.approx(while_importing[0]["nats_per_token"], rel=1e-6)


def test_text_that_cannot_be_used_leaves_no_run(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(MoescopeError, match="nothing"):
        import_checkpoint(checkpoint, RunFolder("run", tmp_path), data=str(tmp_path / "nothing.jsonl"))
    assert not (tmp_path / "run").exists()
