"""The speedrun trains and scores for real, if small; and its goals are judged by the worst seed where that matters."""

from __future__ import annotations

from dataclasses import replace

from bench.speedrun import Sprint, over_three_minutes, results, run, trial
from bench.suite import Scale
from moe_core.config import load_config

GOOD = Sprint(
    seed=0, bits_per_byte=2.0, nats_under_unigram=2.4, seconds=150.0, loop_seconds=130.0, steps=350,
    seconds_per_step=0.35, load_imbalance=1.4, dead_experts=0, nmi_above_null=True,
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
    assert (loss.value, loss.status) == (2.1, "floor")
    assert loss.note == "seeds 0: 2.000, 1: 2.300, 2: 2.100"
    assert (under.value, under.status) == (2.4, "floor")
    assert (seconds.value, seconds.status) == (190.0, "short")
    assert seconds.note.startswith("300 and 350 steps")
    assert (imbalance.value, imbalance.status) == (2.5, "short")
    assert "within its null" in imbalance.note
    assert "no dead expert" in results([GOOD], "real text", goals=True)[3].note
    assert results([replace(GOOD, bits_per_byte=1.79)], "real text", goals=True)[0].status == "stretch"
    assert all(row.goal is None for row in results([GOOD], "synthetic text", goals=False))


def test_the_steps_are_laid_over_what_three_minutes_hold_at_the_speed_of_the_trial() -> None:
    quick = load_config("quick", environment={}, overrides={})
    short = trial(quick).training
    assert (short.steps, short.evaluation_interval) == (40, 40)
    # 14 s beside the loop leave 160 of 174 for it; 40 steps of .25 s and two evaluations of 1 s.
    fast = replace(GOOD, seconds=26.0, loop_seconds=12.0, steps=40, seconds_per_step=0.25)
    planned = over_three_minutes(quick, fast).training
    assert planned.time_budget_seconds == 160.0
    # An evaluation every 50 steps: 591 steps and 12 evaluations take 159.75 s, one step more 160.0.
    assert planned.steps == 592
    slow = over_three_minutes(quick, replace(fast, seconds=66.0, loop_seconds=52.0, seconds_per_step=1.25)).training
    assert planned.steps > quick.training.steps > slow.steps
    stuck = over_three_minutes(quick, replace(fast, seconds=400.0)).training
    assert stuck.steps == 1
    assert stuck.time_budget_seconds == 1.0
