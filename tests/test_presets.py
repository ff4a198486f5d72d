"""The named configurations: their documents' numbers, real models of them on the meta device, the table, --preset."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from cli_support import Run

from moe_core.config import load_config
from moe_core.config.presets import PRESETS
from moe_core.model import KVCache, MoETransformer, size
from moe_core.model.feed_forward import MoE
from moe_core.runs.folder import RunFolder
from moe_core.runs.places import SHIPPED

ROOT = Path(__file__).resolve().parent.parent
TINY = (
    "--model.vocab_size=300", "--model.dim=16", "--model.num_layers=2", "--model.num_heads=2", "--model.num_kv_heads=1",
    "--model.head_dim=8", "--model.dense_hidden_dim=32", "--model.expert_hidden_dim=16", "--model.max_seq_len=64",
    "--data.documents=12", "--training.steps=4", "--training.batch_size=2", "--training.seq_len=32",
    "--training.threads=1", "--training.evaluation_tokens=64", "--training.probe_tokens=64",
)  # fmt: skip


@pytest.fixture
def cli(cli: Run, tmp_path: Path) -> Run:
    """A command line on an empty checkpoints folder."""
    return partial(cli, tmp_path)


# ---- what they are ----


@pytest.mark.parametrize("name", PRESETS)
def test_every_count_is_that_of_the_real_model(name: str) -> None:
    config = load_config(name, environment={}).model
    with torch.device("meta"):
        model = MoETransformer(config)
        cache = KVCache(config, 1, config.max_seq_len)
    total = sum(parameter.numel() for parameter in model.parameters())
    blocks = [block for block in model.modules() if isinstance(block, MoE)]
    idle = sum(
        (config.num_experts - config.top_k) * parameter[0].numel()
        for block in blocks
        for parameter in block.experts.parameters()
    )
    assert (size.total_parameters(config), size.active_parameters(config)) == (total, total - idle)
    assert size.embedding_parameters(config) == model.embedding.weight.numel()
    assert len(blocks) == len(config.moe_layers)
    for precision, width in (("float32", 4), ("bfloat16", 2)):
        assert size.serving_memory(config, precision).weights == width * total  # type: ignore[arg-type]
    assert size.serving_memory(config, "float32").kv_cache == cache.key_value_bytes


def test_the_documents_numbers_stand() -> None:
    def numbers(name: str) -> tuple[int, ...]:
        model = load_config(name, environment={}).model
        return (model.vocab_size, model.dim, model.num_layers, model.num_heads, model.num_experts, model.top_k)

    assert numbers("router")[:3] == (50257, 256, 2)
    assert numbers("router")[4:] == (4, 2)
    assert load_config("router", environment={}).model.expert_hidden_dim == 1024
    assert numbers("blues") == (200019, 192, 4, 4, 4, 1)
    blues = load_config("blues", environment={}).model
    assert (blues.head_dim, blues.num_kv_heads, blues.max_seq_len) == (48, 2, 256)
    assert numbers("blues-01") == (200019, 768, 12, 12, 8, 2)
    assert load_config("blues-01", environment={}).model.moe_layers == (1, 3, 5, 7, 9, 11)


@pytest.mark.parametrize(("name", "size_named"), [("7b", 7e9), ("40b", 40e9)])
def test_a_size_is_what_a_token_passes_with_and_without_experts(name: str, size_named: float) -> None:
    dense, moe = (load_config(preset, environment={}).model for preset in (name, f"{name}-moe"))
    assert dense.moe_layers == ()
    assert size.total_parameters(dense) == size.active_parameters(dense) == pytest.approx(size_named, rel=0.02)
    assert size.active_parameters(moe) == pytest.approx(size.total_parameters(dense), rel=0.001)
    assert size.flops_per_token(moe, 2048) == pytest.approx(size.flops_per_token(dense, 2048), rel=0.001)
    assert size.total_parameters(moe) > 3 * size.total_parameters(dense)


def test_demo_is_the_shipped_run() -> None:
    shipped = json.loads((SHIPPED / "demo" / "config.json").read_text(encoding="utf-8"))
    preset = load_config("demo", environment={}).model_dump()
    router = shipped["model"].pop("router")
    assert router.items() <= preset["model"].pop("router").items()
    assert shipped["model"].items() <= preset["model"].items()
    assert shipped["data"].items() <= preset["data"].items()
    for key in ("steps", "batch_size", "seq_len", "optimizer", "learning_rate", "muon_learning_rate", "seed"):
        assert shipped["training"][key] == preset["training"][key], key


# ---- the command ----


def test_the_table_says_size_memory_and_what_was_filled_in(cli: Run) -> None:
    code, out, _ = cli("presets")
    assert code == 0
    sizes, memory, _, notes = out.split("\n\n", 3)
    assert [line.split()[0] for line in sizes.splitlines()[1:]] == list(PRESETS)
    assert [line.split()[0] for line in memory.splitlines()[1:]] == list(PRESETS)
    assert "2 of 8 in 6 layers" in sizes
    assert "7,110.66" in sizes
    assert "blues, blues-01: different here: the vocabulary is learned instead of o200k_base" in notes
    assert [name for name in PRESETS if load_config(name, environment={}).model.expert_activation == "gelu"] == [
        "blues"
    ]


def test_the_figures_are_bytes_and_counts_and_a_star_marks_what_does_not_fit(
    cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(size, "memory_present", lambda: 16 * 2**30)
    figures = json.loads(cli("presets", "--json")[1])
    rows = {row["name"]: row for row in figures["presets"]}
    assert figures["memory_bytes"] == 16 * 2**30
    # Mistral's shape: a layer 41,943,040 attention + 176,160,768 feed-forward + 8,192 norms; 131,072,000 + 4,096 more.
    counts = rows["7b"]["parameters"]
    assert counts["total"] == 32 * (41_943_040 + 176_160_768 + 8192) + 131_072_000 + 4096
    assert counts["total_without_embedding"] == counts["total"] - 131_072_000
    assert rows["7b"]["serving_bytes"]["bfloat16"]["kv_cache"] == 2 * 32 * 8 * 128 * 2048 * 2
    lines = {line.split()[0]: line.split() for line in cli("presets")[1].split("\n\n")[1].splitlines()[1:]}
    assert [cell.endswith("*") for cell in lines["7b"][-6:]] == [True, True, True, False, False, False]
    assert [cell.endswith("*") for cell in lines["quick"][-6:]] == [False] * 6


def test_it_answers_without_torch() -> None:
    check = "import sys, main; main.main(['presets']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True, capture_output=True)


# ---- --preset ----


@pytest.mark.slow
def test_a_dense_preset_made_tiny_trains_under_its_own_name(cli: Run, tmp_path: Path) -> None:
    code, out, err = cli("--preset", "7b", *TINY)
    assert code == 0, err
    assert "Run 7b finished: 4 of 4 steps" in out
    config = RunFolder("7b", tmp_path).config()
    assert config.model.moe_layers == ()
    assert config.training.optimizer == "adamw"


@pytest.mark.parametrize("name", ["40b", "40b-moe"])
def test_what_does_not_fit_is_refused_in_one_line_before_anything_is_written(
    cli: Run, tmp_path: Path, name: str
) -> None:
    code, _, err = cli("--preset", name)
    assert code == 2
    assert err.count("\n") == 1
    for words in ("training a model of", "needs about", "this machine has", "choose a smaller preset"):
        assert words in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "huge"], "'huge' (choose from 'default', 'quick'"),
        (["--quick", "--preset", "blues"], "not allowed with argument --quick"),
        (["--evaluate", "--preset", "blues"], "no run 'blues'"),
        (["presets", "7b"], "unrecognized arguments: 7b"),
    ],
)
def test_wrong_presets_are_refused_in_one_line(cli: Run, arguments: list[str], words: str) -> None:
    code, _, err = cli(*arguments)
    assert code in (1, 2)
    assert err.count("\n") == 1
    assert words in err
