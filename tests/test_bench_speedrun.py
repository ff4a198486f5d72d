"""The speedrun trains and scores for real, if small; and its goals are judged by the worst seed where that matters."""

from __future__ import annotations

from dataclasses import replace

from bench.speedrun import Sprint, results, run
from bench.suite import Scale

GOOD = Sprint(
    seed=0, bits_per_byte=2.0, nats_under_unigram=2.4, seconds=150.0, steps=350, seconds_per_step=0.35,
    load_imbalance=1.4, dead_experts=0, nmi_above_null=True,
)  # fmt: skip


def test_a_smoke_run_gives_every_row_without_judging_tiny_models_by_real_goals() -> None:
    rows = run(Scale(smoke=True, rounds=1))
    assert [row.unit for row in rows] == ["bits/byte", "nats", "s", "x", "%"]
    loss, _, seconds, imbalance, waiting = (row.value for row in rows)
    assert 1.0 < loss < 10.0  # uniform guessing among 300 tokens of a byte or so: 8
    assert seconds > 0
    assert 1.0 <= imbalance <= 8.0
    assert 0.0 < waiting < 100.0
    assert [row.case for row in rows if row.goal is not None] == ["part of a training step that waits for data"]
    assert "seeds 0: " in rows[0].note


def test_medians_for_the_loss_and_the_worst_seed_for_time_and_health() -> None:
    other = replace(GOOD, seed=1, bits_per_byte=2.3, seconds=190.0, load_imbalance=2.5, nmi_above_null=False, steps=300)
    third = replace(GOOD, seed=2, bits_per_byte=2.1)
    loss, under, seconds, imbalance = results([GOOD, other, third], "real text", goals=True)
    assert (loss.value, loss.status) == (2.1, "stretch")
    assert loss.note == "seeds 0: 2.000, 1: 2.300, 2: 2.100"
    assert (under.value, under.status) == (2.4, "floor")
    assert (seconds.value, seconds.status) == (190.0, "short")
    assert seconds.note.startswith("300 and 350 steps")
    assert (imbalance.value, imbalance.status) == (2.5, "short")
    assert "within its null" in imbalance.note
    assert "no dead expert" in results([GOOD], "real text", goals=True)[3].note
    assert all(row.goal is None for row in results([GOOD], "synthetic text", goals=False))
