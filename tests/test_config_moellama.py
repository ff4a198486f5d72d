"""moellama's config.hocon: every key of the document's file has our key or a note, and a run is trained from it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from moe_core.config import Config, load_config
from moe_core.config.moellama import MEANT, RENAMED, UNKNOWN_HERE
from moe_core.data.shuffled_order import windows_per_epoch
from moe_core.errors import UsageError
from moe_core.training.trainer_state import with_steps

ROOT = Path(__file__).resolve().parent.parent
# The keys and values of the file in moellama's document.
FILE = """
{
  model {
    dim = 256, num_layers = 4, num_heads = 8, num_experts = 8, top_k = 2, max_seq_len = 256
    dropout = 0.1, shared_expert = true, load_balancing_loss_coef = 0.02
  }
  device { type = "auto", num_cpu_threads = -1, gpu_ids = [0], use_mps = false }
  training {
    batch_size = 16, learning_rate = 3e-4, epochs = 3, eval_steps = 50, dataset = "tiny_shakespeare", seq_len = 256
    num_workers = 4
  }
  inference { max_new_tokens = 200, temperature = 0.8, top_k = 50, top_p = 0.95 }
  paths { model_path = "./trained_models", output_dir = "./model" }
  evaluation {
    enabled = true, enabled_benchmarks = ["perplexity"], test_prompts = ["Once upon a time"], report_path = "report.md"
  }
}
"""


def load(folder: Path, text: str, **overrides: object) -> tuple[Config, list[str]]:
    file = folder / "config.hocon"
    file.write_text(text, encoding="utf-8")
    notes: list[str] = []
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return load_config("quick", file=file, environment={}, overrides=dotted, say=notes.append), notes


def message(folder: Path, text: str) -> str:
    with pytest.raises(UsageError) as caught:
        load(folder, text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_documents_file(tmp_path: Path) -> None:
    config, notes = load(tmp_path, FILE)
    model, training = config.model, config.training
    assert (model.dim, model.num_layers, model.num_heads, model.num_kv_heads, model.head_dim) == (256, 4, 8, 8, 32)
    assert (model.num_experts, model.top_k, model.max_seq_len) == (8, 2, 256)
    assert model.shared_expert_hidden_dim == model.expert_hidden_dim == load_config("quick").model.expert_hidden_dim
    assert model.router.load_balancing_loss_coef == 0.02
    assert training.threads == max(1, (os.cpu_count() or 1) - 2)
    assert (training.batch_size, training.seq_len, training.evaluation_interval) == (16, 256, 50)
    assert (training.optimizer, training.learning_rate, training.epochs) == ("adamw", 3e-4, 3)
    assert training.time_budget_seconds is None, "the preset's would cut the epochs"
    assert config.data.path == "dataset/tiny_shakespeare"
    assert (config.serve.max_tokens, config.serve.temperature) == (200, 0.8)
    told = {note.split(" = ")[0].removeprefix("config.hocon: ") for note in notes}
    assert told == {*UNKNOWN_HERE, "model.shared_expert", "training.dataset"} - {"training.data_dir"}


def test_other_values_of_the_device_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    config, _ = load(tmp_path, "device { num_cpu_threads = -1, use_mps = true }")
    assert config.training.threads == 1, "all but two of two is none, and one is needed"
    assert config.training.device == "mps"
    config, notes = load(tmp_path, "device { type = cpu, gpu_ids = [1, 3], use_data_parallel = true }")
    assert config.training.device == config.serve.device == "cpu"
    assert "CUDA_VISIBLE_DEVICES=1,3 torchrun --nproc-per-node 2" in notes[0]
    assert "torchrun" in notes[1]


def test_what_is_said_later_wins_and_our_own_keys_may_stand_beside(tmp_path: Path) -> None:
    text = "device { type = cpu }\nmodel { dim = 64, num_heads = 4, num_kv_heads = 2, router { kind = sigmoid } }"
    config, _ = load(tmp_path, text, training__device="cuda", training__epochs="0.5")
    assert (config.model.head_dim, config.model.num_kv_heads, config.model.router.kind) == (16, 2, "sigmoid")
    assert (config.training.device, config.training.epochs) == ("cuda", 0.5)
    config, notes = load(tmp_path, "model { num_experts = 12, top_k = 3 }")
    assert config.model.num_experts == 12, "a file with our keys alone is not translated"
    assert not notes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("device { kind = cpu }", "unknown config key 'device.kind' (value cpu); expected one of device.gpu_ids"),
        ("device { num_cpu_threads = some }", "'device.num_cpu_threads' has value some; expected a whole number"),
        ("device { num_cpu_threads = -3 }", "has value -3; expected -1"),
        ("device { gpu_ids = [-1] }", "expected numbers of GPUs"),
        ("device { use_mps = perhaps }", "expected true or false"),
        ("device = cpu", "'device' has value cpu; expected a section"),
        ("paths { model_path = a }\nmodle { dim = 3 }", "unknown config key 'modle.dim'"),
        ("model { dropout = 0, dim = 100, num_heads = 8 }", "expected a multiple of model.num_heads = 8"),
        ("model { dropout = 0, num_expert = 8 }", "did you mean 'model.num_experts'?"),
        ("training { dataset = [a] }", "expected a name"),
        ("training { eval_steps = often }", "'training.evaluation_interval' has value 'often'"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    assert words in message(tmp_path, text)


def test_the_page_lists_every_key() -> None:
    page = (ROOT / "docs" / "from-the-sources.md").read_text(encoding="utf-8")
    for key in (*RENAMED, *UNKNOWN_HERE, *MEANT):
        assert f"| `{key}` |" in page, key
    for theirs, ours in RENAMED.items():
        assert f"| `{theirs}` | `{ours}` |" in page


def test_epochs_decide_the_steps() -> None:
    tokens = 10_000
    config = load_config("tiny", environment={}, overrides={"training.batch_size": 4, "training.seq_len": 16})
    assert with_steps(config, tokens) is config
    assert "epochs" not in config.model_dump()["training"], "what was saved before stays as it is"
    training = config.training.model_copy(update={"epochs": 2.5})
    config = with_steps(config.model_copy(update={"training": training}), tokens)
    assert windows_per_epoch(tokens, 16) == 624
    assert config.training.steps == 390  # 2.5 x 624 / 4
