"""Halves that look for each other: by hand, on the command line, and what a contrastive loss does in a training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_support import begin_trainer, make_config, saved_and_restored, tensor_hashes, write_corpus

from moe_core.data.views import SHORTEST_VIEW
from moe_core.errors import DataError, UsageError
from moe_core.evaluation.half_states import HalfStates, Share, difference, hits, retrieval, retrieval_verdict, share_of
from moe_core.runs.checkpoint import load_run
from moe_core.runs.folder import RunFolder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "text.jsonl")


def rows(*angles: float) -> Any:
    return np.array([[np.cos(angle), np.sin(angle)] for angle in angles], dtype=np.float32)


def states_of(first: Any, second: Any, sources: list[int]) -> HalfStates:
    n = len(first)
    return HalfStates(
        first=first, second=second, experts=np.zeros((n, 1), dtype=np.int64),
        token_counts=np.eye(2 * n, dtype=np.int32), document_ids=np.arange(n), domain_ids=np.zeros(n, dtype=np.int64),
        source_ids=np.array(sources), domains=("only",), tokens=2 * n,
    )  # fmt: skip


def test_who_finds_whom_by_hand() -> None:
    # The first two find each other; of the last two the first halves look away, the second ones are both alike: a tie.
    first, second = rows(0.0, 1.0, 2.0, 2.1), rows(0.1, 1.1, 3.0, 3.0)
    assert hits(first @ second.T).tolist() == [1.0, 1.0, 0.0, 0.5]
    found = retrieval(states_of(first, second, [0, 1, 2, 2]))
    assert found.found.value == pytest.approx(2.5 / 4)
    assert 0 <= found.found.low < found.found.value < found.found.high <= 1
    assert found.chance == 0.25
    assert found.chance_in_group == pytest.approx((1 / 4 + 1 / 4 + 1 / 2 + 1 / 2) / 4)
    assert found.by_words.value == 0, "no two halves share a token"
    assert found.alignment == pytest.approx(np.mean(np.square(first - second).sum(axis=1)), rel=1e-5)
    assert (found.documents, found.sources) == (4, 3)


def test_intervals_cover_what_sources_differ_by() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        rates = rng.beta(2, 2, size=30)
        sources = np.repeat(np.arange(30), 4)
        share = share_of((rng.random(120) < rates[sources]).astype(float), sources, trial)
        covered += share.low <= 0.5 <= share.high
    assert covered >= 182, "91 % of 200 at least, nominal 95 %"
    assert np.isnan(share_of(np.ones(3), np.zeros(3, dtype=np.int64), 0).low), "one source tells nothing"


def test_verdicts_follow_the_figures() -> None:
    first = rows(*np.linspace(0, 3, 40))
    same = retrieval(states_of(first, first, list(range(40))))
    assert retrieval_verdict(same).startswith("States tell a document from others better than its words do: 100%")
    other = retrieval(states_of(first, first[::-1].copy(), list(range(40))))
    assert retrieval_verdict(other).startswith("States tell no more than a text's source or domain: 0%")
    alone = retrieval(states_of(first, first, [0] * 40))
    assert retrieval_verdict(alone).startswith("Cannot be told")
    words = same.__class__(**{**vars(same), "by_words": Share(0.9, 0.8, 1.0), "found": Share(0.5, 0.4, 0.6)})
    assert retrieval_verdict(words).startswith("Shared words tell a document better")
    moved = difference(states_of(first, first, list(range(40))), states_of(first, first[::-1].copy(), list(range(40))))
    assert (moved.value, moved.low) == (1.0, 1.0)
    with pytest.raises(DataError, match="did not read the same documents"):
        difference(states_of(first, first, list(range(40))), states_of(first[:9], first[:9], list(range(9))))


def test_the_command_on_two_runs(cli: Callable[..., tuple[int, str, str]], trained_root: Path, tmp_path: Path) -> None:
    run = next(iter(sorted(folder.name for folder in trained_root.iterdir() if (folder / "config.json").exists())))
    target = tmp_path / "states.json"
    code, out, err = cli(trained_root, "states", "--run", run, "--against", run, "--json", str(target))
    assert code == 0, err
    assert "No difference can be told: +0.0 percentage points" in out
    figures = json.loads(target.read_text())
    assert figures["found"]["low"] <= figures["found"]["value"] <= figures["found"]["high"]
    assert figures["against"]["found"] == figures["found"]
    assert figures["verdict"] in out
    code, _, err = cli(trained_root, "states", "--run", run, "--documents", "2", "--json", str(target))
    assert code == 0, err
    few = json.loads(target.read_text())
    assert few["documents"] == 2 * len(few["by_domain"]) < figures["documents"]
    code, _, err = cli(trained_root, "states", "--run", "none such")
    assert code != 0
    assert "none such" in err


@pytest.mark.parametrize("loss", ["info_nce", "sup_con"])
def test_a_training_with_the_loss_lowers_it_and_resumes_exactly(corpus: Path, tmp_path: Path, loss: str) -> None:
    keys = {
        "training__contrastive": {"coef": 0.5, "loss": loss, "texts": 6, "tokens": 16, "hard_negatives": 4},
        "training__gradient_accumulation": 2,
    }
    digests = []
    for stops in (False, True):
        trainer = begin_trainer(RunFolder(f"{loss}{stops}", tmp_path), make_config(corpus, **keys))
        losses = []
        for step in range(12):
            if stops and step == 5:
                trainer = saved_and_restored(trainer)
            losses.append(float(trainer.step().losses.contrastive))
        trainer.save()
        digests.append(tensor_hashes(trainer.run))
        assert np.mean(losses[-4:]) < np.mean(losses[:4])
    assert digests[0] == digests[1]
    assert all(line["contrastive_loss"] > 0 for line in trainer.run.metric_records() if line["kind"] == "train")
    assert load_run(trainer.run.name, tmp_path).config.training.contrastive.loss == loss


def test_the_loss_of_a_step_by_hand_from_its_views(corpus: Path, tmp_path: Path) -> None:
    keys = {"training__contrastive": {"coef": 0.5, "texts": 6, "tokens": 16}}
    trainer = begin_trainer(RunFolder("one", tmp_path), make_config(corpus, **keys))
    assert trainer._contrast is not None
    loss = trainer._contrast.add_gradient(trainer.model, 0, autocast=False, scaling=trainer._scaling)
    views, means = trainer._contrast._views.of(0), []
    with torch.no_grad():
        for row, length in zip(views.token_ids, views.lengths, strict=True):
            # Alone and without padding; what is read stands where the language model's windows have it.
            means.append(trainer.model.states(torch.from_numpy(row[None, :length])).states[0].mean(dim=0))
    similar_VV = torch.nn.functional.normalize(torch.stack(means), dim=1).double()
    similar_VV = (similar_VV @ similar_VV.T / 0.05).exp()
    terms = []
    for i in range(len(means)):
        others = similar_VV[i, torch.from_numpy(views.source_ids != views.source_ids[i])].sum()
        terms.append(-torch.log(similar_VV[i, i ^ 1] / (similar_VV[i, i ^ 1] + others)))
    assert float(loss) == pytest.approx(float(torch.stack(terms).mean()), rel=1e-4)


def test_off_is_what_it_was_and_what_does_not_fit_is_refused(corpus: Path, tmp_path: Path) -> None:
    config = make_config(corpus)
    assert "contrastive" not in config.model_dump_json()
    trainer = begin_trainer(RunFolder("off", tmp_path), config)
    assert float(trainer.step().losses.contrastive) == 0
    assert all("contrastive_loss" not in line for line in trainer.run.metric_records())
    with pytest.raises(UsageError, match=r"contrastive.tokens = 64 is not less than model.max_seq_len = 64"):
        make_config(corpus, training__contrastive={"coef": 1.0})
    short = write_corpus(tmp_path / "short.jsonl")
    lines = [json.loads(line) for line in short.read_text().splitlines()]
    for number, line in enumerate(lines):
        line["text"] = f"{number:0{SHORTEST_VIEW}}"
    short.write_text("\n".join(map(json.dumps, lines)) + "\n")
    with pytest.raises(DataError, match="needs two documents"):
        begin_trainer(
            RunFolder("short", tmp_path),
            make_config(short, training__contrastive={"coef": 1.0, "tokens": 16}, training__seq_len=8),
        )
