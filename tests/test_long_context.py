"""Reading beyond the trained length: the schemes side by side, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cli_support import Run
from training_support import write_corpus

from moe_core.data.sources import read_documents
from moe_core.errors import UsageError
from moe_core.evaluation.long_context import long_texts, read_long
from moe_core.inference.scoring import as_dataset
from moe_core.routing.measures.beyond_length import position_test
from moe_core.runs.checkpoint import load_run


def test_within_the_trained_length_whole_and_windows_are_the_same_reading(trained_root: Path, tmp_path: Path) -> None:
    loaded = load_run("tiny", trained_root)
    trained = loaded.config.training.seq_len
    dataset = as_dataset(loaded, read_documents(str(write_corpus(tmp_path / "corpus.jsonl"))))
    texts = long_texts(dataset, 4 * trained).spaced(4)
    found = read_long(loaded, texts, 4)
    spans = {read.scheme: read.spans for read in found.schemes}
    assert [(span.start, span.end) for span in spans["none"]] == [
        (0, trained), (trained, 2 * trained), (2 * trained, 4 * trained),
    ]  # fmt: skip
    assert spans["none"][0].flips.value == 0
    assert spans["none"][0].above_windows.value == pytest.approx(0, abs=1e-5)
    assert spans["none"][2].flips.value > 0
    assert spans["linear"][0].above_windows.value != pytest.approx(0, abs=1e-4)
    assert all(0 <= read.position_nmi <= 1 and 0.01 <= read.position_p <= 1 for read in found.schemes)
    nats = spans["none"][1].nats
    assert nats.low < nats.value < nats.high
    assert np.isfinite(nats.value)
    layer = spans["none"][2].layers[0]
    assert sum(layer.load) == pytest.approx(1)
    assert 0 < layer.entropy.low < layer.entropy.value < layer.entropy.high < 1
    first = found.schemes[0].places
    assert [(place.start, place.end) for place in first[:2]] == [(0, trained // 4), (trained // 4, trained // 2)]
    assert len(first) == 16
    assert 0 <= found.flips_by_context.value < 1
    with pytest.raises(UsageError, match="expected 3 or more"):
        long_texts(dataset, 10**6)


def test_the_command_prints_a_table_and_writes_json(cli: Run, trained_root: Path, tmp_path: Path) -> None:
    text = write_corpus(tmp_path / "corpus.jsonl")
    figures = tmp_path / "context.json"
    arguments = ["context", "--run", "tiny", "--texts", "3", "--data", str(text), "--json", str(figures)]
    code, out, err = cli(trained_root, *arguments)
    assert (code, err) == (0, ""), err
    assert "yarn" in out
    tree = json.loads(figures.read_text())
    assert [read["scheme"] for read in tree["schemes"]] == ["none", "linear", "ntk", "dynamic", "yarn", "llama3"]
    assert tree["verdict"] in out


def test_experts_that_follow_position_are_found_and_others_are_not() -> None:
    rng = np.random.default_rng(1)
    by_place = [(np.arange(64) // 8)[:, None].astype(np.int64)] * 5
    nmi, chance, p = position_test(by_place, 8)
    assert nmi == pytest.approx(1)
    assert chance < 0.9
    assert p == 0.01
    assert position_test(list(rng.integers(0, 8, (5, 64, 2))), 8)[2] > 0.05


def test_runs_of_equal_choice_in_texts_of_unequal_length_are_not_taken_for_position() -> None:
    """Random routing whose choices last ten tokens on average: 5 % of tests may say p < .05."""
    said = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        texts = []
        for length in rng.integers(64, 257, 4):
            is_new = rng.random(length) >= 0.9
            is_new[0] = True
            begun = np.maximum.accumulate(np.where(is_new, np.arange(length), 0))
            texts.append(rng.integers(0, 4, length)[begun][:, None])
        said += position_test(texts, 4)[2] < 0.05
    assert said <= 8  # 9 or more of 60 at 5 %: p = .003
