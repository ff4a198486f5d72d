"""Bits per byte of an exported run as lm-evaluation-harness counts them are those of `--evaluate`."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from moe_core.cli.export import write_unseen
from moe_core.evaluation.evaluate import evaluate_run
from moe_core.exchange.export import export_run
from moe_core.runs.checkpoint import load_run

TASKS = Path(__file__).resolve().parents[2] / "docs" / "lm_eval"


@pytest.fixture(scope="module")
def exported(trained_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A folder with the run "tiny" as hf/ and its unseen text as unseen.jsonl; its bits per byte by --evaluate."""
    folder = tmp_path_factory.mktemp("lm_eval")
    loaded = load_run("tiny", trained_root)
    export_run(loaded, folder / "hf")
    assert write_unseen(loaded, folder / "unseen.jsonl") == len(loaded.run.held_out("unseen"))
    return folder, evaluate_run(loaded).unseen.bits_per_byte


def rolling_windows(token_ids: list[int], prefix: int, size: int) -> list[tuple[list[int], list[int]]]:
    """(what is read, what is scored of its continuation): lm-eval's windows with one token of context at least.

    Written after its description: the first window reads the prefix and all but the last of its tokens; each further
    one predicts `size` tokens or what is left of the text, and always reads `size` tokens.
    """
    windows = [([prefix, *token_ids[: size - 1]][: len(token_ids)], token_ids[:size])]
    for start in range(size, len(token_ids), size):
        end = min(start + size, len(token_ids))
        windows.append((token_ids[end - size - 1 : end - 1], token_ids[start:end]))
    return windows


@torch.no_grad()
def test_rolling_bits_per_byte_equal_those_of_evaluate(exported: tuple[Path, float]) -> None:
    folder, expected = exported
    model = AutoModelForCausalLM.from_pretrained(folder / "hf").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "hf")
    texts = [json.loads(line)["text"] for line in (folder / "unseen.jsonl").read_text().splitlines()]
    size, nats, long = model.config.max_position_embeddings, 0.0, 0
    for text in texts:
        windows = rolling_windows(tokenizer(text, add_special_tokens=False).input_ids, tokenizer.bos_token_id, size)
        long += len(windows) > 1
        for read, scored in windows:
            log_p = model(torch.tensor([read])).logits[0, -len(scored) :].double().log_softmax(-1)
            nats -= float(log_p.gather(1, torch.tensor(scored)[:, None]).sum())
    assert long > 10, "documents longer than a window are the hard case"
    bits_per_byte = nats / math.log(2) / sum(len(text.encode()) for text in texts)
    assert bits_per_byte == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed (docs/lm_eval)")
def test_lm_eval_itself_says_the_same_with_the_task_we_ship(
    exported: tuple[Path, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    folder, expected = exported
    (folder / "out" / "lm_eval").mkdir(parents=True, exist_ok=True)
    (folder / "out" / "lm_eval" / "unseen.jsonl").write_bytes((folder / "unseen.jsonl").read_bytes())
    monkeypatch.chdir(folder)  # the task names its file from where lm-eval runs
    results: Any = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder / "hf"), "dtype": "float32", "add_bos_token": False},
        tasks=["moescope_unseen"],
        task_manager=TaskManager(include_path=str(TASKS)),
        device="cpu",
    )
    assert results["results"]["moescope_unseen"]["bits_per_byte,none"] == pytest.approx(expected, abs=1e-3)
