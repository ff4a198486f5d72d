"""A fact hidden in a text: models that surely find it, that see so far and no further, and that do not look at it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_support import Run
from training_support import write_corpus

from moe_core.errors import UsageError
from moe_core.evaluation.needle import ALTERNATIVES, DEPTHS, Logits, Trial, find_needles, needle_verdict, trials_of
from moe_core.runs.checkpoint import load_run
from moe_core.runs.places import SHIPPED

VOCABULARY = 512


def facts(count: int, seed: int = 0) -> list[Trial]:
    """Facts of four tokens, of which the question is the first three, in texts of chance."""
    rng = np.random.default_rng(seed)
    trials = []
    for _ in range(count):
        key, *answers = (int(token) for token in 100 + rng.choice(50, 1 + ALTERNATIVES, replace=False))
        text = rng.integers(200, VOCABULARY, 400)
        trials.append(Trial(text, (1, key, 2, answers[0]), (1, key, 2), tuple(answers), (1, key, 2, answers[1])))
    return trials


def copying(reach: int) -> Logits:
    """A model that looks `reach` tokens back for its last two and gives what followed them."""

    def logits(ids_BS: torch.Tensor) -> torch.Tensor:
        found = torch.zeros(len(ids_BS), VOCABULARY)
        for row, ids in enumerate(ids_BS.tolist()):
            for at in range(max(0, len(ids) - reach), len(ids) - 2):
                if ids[at : at + 2] == ids[-2:]:
                    found[row, ids[at + 2]] = 5.0
        return found

    return logits


def guessing(seed: int) -> Logits:
    """A model that prefers some words, whatever the text."""
    liked_V = 3 * torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed))
    return lambda ids_BS: liked_V.expand(len(ids_BS), VOCABULARY)


def test_a_fact_stands_at_its_depth_and_the_question_last() -> None:
    trial = Trial(np.arange(10, 30), (1, 2, 3), (1, 2), (3, 4, 5, 6, 7, 8, 9, 0), (1, 2, 4))
    assert trial.ids(9, 0.0).tolist() == [1, 2, 3, 10, 11, 12, 13, 1, 2]
    assert trial.ids(9, 0.5).tolist() == [10, 11, 1, 2, 3, 12, 13, 1, 2]
    assert trial.ids(9, 0.5, other=True).tolist() == [10, 11, 1, 2, 4, 12, 13, 1, 2]
    assert trial.ids(9, 1.0).tolist() == [10, 11, 12, 13, 1, 2, 3, 1, 2]


def test_who_copies_finds_every_fact_and_who_sees_so_far_those_within() -> None:
    whole = find_needles(copying(10_000), facts(24), [40, 160])
    assert [cell.right for at in whole for cell in at.by_depth] == [1.0] * 10
    assert [at.together.verdict for at in whole] == ["found", "found"]
    assert "up to 160 tokens, beyond the trained 80: right in 100 % of trials" in needle_verdict(whole, 80)
    assert "at every depth" in needle_verdict(whole, 80)
    (short,) = find_needles(copying(60), facts(24), [160])
    assert [cell.right for cell in short.by_depth] == [0, 0, 0, 1, 1]
    assert "not surely at 0 % of the text, 25 % of the text, 50 % of the text" in needle_verdict([short], 200)


def test_who_does_not_look_is_right_by_chance_whatever_it_prefers() -> None:
    verdicts, held = [], []
    for seed in range(100):
        (at,) = find_needles(guessing(seed), facts(32, seed), [40])
        assert {cell.margin for cell in at.by_depth} == {0.0}  # what it prefers cancels
        verdicts.append(at.together.verdict)
        held.append(at.together.low <= 1 / ALTERNATIVES <= at.together.high)
    assert verdicts == ["not seen"] * 100
    assert sum(held) >= 90
    assert "Facts are not found" in needle_verdict([at], 40)


def test_facts_are_made_of_words_of_the_text_with_first_tokens_of_their_own() -> None:
    loaded = load_run("demo", SHIPPED)
    ids = np.asarray(loaded.tokenizer.encode(" ".join(d.text for d in loaded.run.held_out("unseen")[:40])))
    texts = ids[: len(ids) // 256 * 256].reshape(-1, 256)
    trials = trials_of(texts, loaded.tokenizer, 20)
    for trial in trials:
        assert trial.fact[: len(trial.question)] == trial.question
        assert trial.fact[len(trial.question)] == trial.answers[0]
        assert trial.other[len(trial.question)] == trial.answers[1]
        assert len(set(trial.answers)) == ALTERNATIVES
        assert len(trial.ids(128, 0.3)) == 128
    assert len({trial.answers[0] for trial in trials}) > 5
    with pytest.raises(UsageError, match="too short to hide a fact in"):
        find_needles(guessing(0), trials, [8])
    with pytest.raises(UsageError, match="words of the text begin with"):
        trials_of(texts[:1, :4], loaded.tokenizer, 3)


def test_a_trained_length_without_room_for_a_fact_is_said_so(
    cli: Run, trained_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moe_core.evaluation.needle.least_length", lambda _: 1000)
    text = write_corpus(tmp_path / "corpus.jsonl")
    code, _, err = cli(trained_root, "context", "--run", "tiny", "--texts", "3", "--data", str(text), "--needles", "8")
    assert code == 2
    assert "a text of 128 tokens is too short to hide a fact in; expected 1000 or more" in err


def test_the_command_asks_under_every_scheme(cli: Run, trained_root: Path, tmp_path: Path) -> None:
    text, figures = write_corpus(tmp_path / "corpus.jsonl"), tmp_path / "context.json"
    arguments = ["context", "--run", "tiny", "--texts", "3", "--data", str(text), "--needles", "8"]
    code, out, err = cli(trained_root, *arguments, "--json", str(figures))
    assert (code, err) == (0, ""), err
    tree = json.loads(figures.read_text())
    assert [found["scheme"] for found in tree["needles"]] == ["none", "linear", "ntk", "dynamic", "yarn", "llama3"]
    assert [at["length"] for at in tree["needles"][0]["lengths"]] == [128]  # shorter ones have no room for a fact
    assert len(tree["needles"][0]["lengths"][0]["by_depth"]) == len(DEPTHS)
    assert all(found["verdict"] in out for found in tree["needles"])
