"""Curves of trainings: one point a step, places by tokens and time, and which run is lower at the same tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from moe_core.experiments.equal_tokens import SeedLimits, lower_loss_words, seed_limits, shipped_seed_limits
from moe_core.experiments.library import SHIPPED, find_results
from moe_core.figures.run_curves import (
    ALONG,
    CURVE_POINTS,
    DRAWN,
    Along,
    curve_table,
    loss_of_runs_figure,
    quantity_figure,
)
from moe_core.runs import RunFolder
from moe_core.runs.curves import LEARNING_RATE, LOAD_IMBALANCE, LOSS, SPEED, RunCurves, run_curves
from moe_core.runs.metric_log import MetricLog, parse_log
from moe_core.runs.places import SHIPPED as SHIPPED_RUNS

OLD = Path(__file__).parent / "fixtures" / "old" / "runs"
LIMITS = SeedLimits(same_seed=0.04, other_seed=0.06)


def log_of(*records: Mapping[str, Any]) -> MetricLog:
    return parse_log(b"".join(json.dumps(record).encode() + b"\n" for record in records))


def train_line(step: int, **more: Any) -> dict[str, Any]:
    return {"kind": "train", "step": step, "loss": 5.0 - step / 100, "tokens": 100 * step,
            "elapsed_seconds": 2.0 * step, **more}  # fmt: skip


def scored(step: int, nats: float, split: str = "unseen") -> dict[str, Any]:
    return {"kind": "evaluation", "step": step, "split": split, "nats_per_token": nats}


def baseline(unigram: float = 6.0) -> dict[str, Any]:
    return {"kind": "baseline", "unigram_nats": {"unseen": unigram}, "uniform_nats": 7.0}


def trained(name: str, *losses: float, interval: int = 10, rate: float = 0.0, **more: Any) -> RunCurves:
    """Scored every `interval` steps; its learning rate falls in a line to the part `rate` of its peak."""
    last = interval * (len(losses) - 1)
    lines = [train_line(s, learning_rate=1 - (1 - rate) * s / last) for s in range(1, last + 1)]
    evaluations = [scored(interval * i, nats) for i, nats in enumerate(losses)]
    return run_curves(name, log_of(baseline(**more), *lines, *evaluations), seed=0)


def test_a_step_written_twice_counts_once_and_the_last_line_is_right() -> None:
    twice = [train_line(2, loss=9.0), train_line(2, loss=4.0), scored(2, 8.0), scored(2, 7.0)]
    log = log_of(train_line(1), *twice, train_line(3))
    curves = run_curves("resumed", log)
    assert list(curves.curve(LOSS, "train")["step"]) == [1, 2, 3]
    assert list(curves.curve(LOSS, "train")["value"]) == [4.99, 4.0, 4.97]
    assert list(curves.curve(LOSS, "unseen")["value"]) == [7.0]


def test_evaluations_stand_at_the_tokens_and_seconds_of_their_step() -> None:
    curves = run_curves("run", log_of(train_line(5), train_line(10), scored(0, 7.0), scored(7, 6.5), scored(12, 6.0)))
    unseen = curves.curve(LOSS, "unseen")
    assert list(unseen["tokens"]) == [0, 700, 1200]
    assert list(unseen["seconds"]) == [0, 14, 24]


def test_the_speed_is_that_between_two_lines_and_not_the_mean_since_the_start() -> None:
    """100 tokens in 1 s, then 100 in 4 s: the trainer writes means, 100 and 200 / 5 = 40."""
    log = log_of(train_line(1, tokens_per_second=100.0), train_line(2, tokens_per_second=40.0))
    assert list(run_curves("ours", log).curve(SPEED)["value"]) == pytest.approx([100.0, 25.0])
    assert list(run_curves("theirs", log, is_watched=True).curve(SPEED)["value"]) == [100.0, 40.0]


def test_what_a_run_has_not_recorded_is_missing_once_it_has_steps() -> None:
    lines = [train_line(step, gradient_norm=1.0) for step in (1, 2)]
    assert run_curves("run", log_of(*lines)).missing == (
        LEARNING_RATE, "load_balancing_loss", "router_z_loss", SPEED)  # fmt: skip
    assert run_curves("new", log_of(baseline())).missing == ()
    for run in (RunFolder("old", OLD), RunFolder("demo", SHIPPED_RUNS.parent)):
        assert run_curves(run.name, run.metric_log()).missing == ()  # what they hold is shown


@pytest.mark.parametrize("along", ALONG)
@pytest.mark.parametrize("quantity", [LOSS, LOAD_IMBALANCE, "dropped_fraction"])
def test_thousands_of_steps_of_many_runs_make_a_small_figure(quantity: str, along: Along) -> None:
    lines = [train_line(step, dropped_fraction=0.1) for step in range(1, 3001)]
    loads = [
        {"kind": "load", "step": step, "layer": layer, "expert_load": [0.5, 0.5], "load_imbalance": 1.0 + layer}
        for step in range(0, 3001, 500)
        for layer in range(2)
    ]
    long = run_curves("0", log_of(baseline(), *lines, *loads, scored(0, 7.0), scored(3000, 5.0)))
    runs = [replace(long, name=f"{name}" * 30) for name in range(8)]
    table = curve_table(runs, quantity, along)
    assert table.groupby(["run", "split"]).size().max() <= CURVE_POINTS
    for _, curve in table.groupby(["run", "split"]):
        assert all(a < b for a, b in pairwise(curve["x"]))
    figure = quantity_figure(runs, quantity, along)
    assert figure is not None
    assert len(json.dumps(figure.chart.to_dict())) < 1_000_000


def test_a_reading_more_changes_the_data_of_a_chart_and_nothing_else() -> None:
    """A page that is drawn again then keeps the chart, with its zoom: see tests/browser/test_training.py."""

    def specifications(steps: int) -> list[str]:
        """As Streamlit sends them: it replaces the names that Altair makes of the data, too."""
        lines = [train_line(s, gradient_norm=s / 7, learning_rate=0.01) for s in range(1, steps)]
        run = run_curves("live", log_of(baseline(), *lines, scored(0, 7.0), scored(steps - 1, 5.0)))
        figures = [quantity_figure([run, replace(run, name="b")], name, "step") for name in DRAWN]
        figures.append(loss_of_runs_figure([run], "step", ""))
        trees = [figure.chart.to_dict() for figure in figures if figure is not None]
        return [re.sub(r'"(view_[0-9a-f_]+|data-[0-9a-f]+)"', "", json.dumps(tree | {"datasets": 0})) for tree in trees]

    first, second = specifications(60), specifications(61)
    assert len(first) == 4
    assert first == second


def test_no_curve_is_no_figure() -> None:
    assert loss_of_runs_figure([run_curves("new", log_of(baseline()))], "tokens", "") is None


def test_seeds_alone_make_what_the_shipped_comparisons_show() -> None:
    results = [found.result for found in find_results([SHIPPED]).values()]
    limits = seed_limits(results)
    assert limits is not None
    assert 0.02 < limits.same_seed < limits.other_seed < 0.1
    assert limits.same_seed == max(one.same_seed for result in results if (one := seed_limits([result])))
    assert shipped_seed_limits() == limits
    assert seed_limits([]) is None


def test_a_difference_that_seeds_make_is_not_told_and_a_larger_one_is() -> None:
    near = lower_loss_words([trained("a", 7.0, 5.0, 4.0), trained("b", 7.0, 5.0, 4.03)], LIMITS)
    assert near.startswith("At 2k tokens, the most that all reached, loss on unseen text is a 4.00, b 4.03.")
    assert "b cannot be told from a with one seed: seeds alone make 0.04 nats" in near
    far = lower_loss_words([trained("a", 7.0, 5.0, 4.0), trained("b", 7.0, 5.0, 4.2)], LIMITS)
    assert "a is lower than b by 0.20, more than seeds alone make (0.04" in far
    assert "still one seed each" in far
    other = replace(trained("b", 7.0, 5.0, 4.05), seed=1)
    assert "cannot be told" in lower_loss_words([trained("a", 7.0, 5.0, 4.0), other], LIMITS)
    unknown = lower_loss_words([trained("a", 7.0, 4.0), trained("b", 7.0, 5.0)], None)
    assert "cannot be told from one seed each" in unknown


def test_runs_of_unequal_length_are_held_against_each_other_at_the_same_tokens() -> None:
    long, short = trained("long", 7.0, 5.0, 4.0, 3.0, 2.0), trained("short", 7.0, 4.5, 4.2)
    words = lower_loss_words([long, short], LIMITS)
    assert words.startswith("At 2k tokens, the most that all reached, loss on unseen text is long 4.00, short 4.20.")
    assert "the learning rate of long is still 51 % of its peak and that of short 0 %" in words
    assert "gain from the fall still to come" in words


def test_what_cannot_be_ranked_is_named_with_the_reason() -> None:
    theirs = run_curves("theirs", log_of(train_line(1), train_line(2)), is_watched=True)
    other_text = trained("elsewhere", 7.0, 3.0, unigram=5.5)
    young = run_curves("young", log_of(baseline(), train_line(1), scored(0, 7.0)))
    words = lower_loss_words([trained("a", 7.0, 4.0), theirs, other_text, young], LIMITS)
    assert words.startswith("Which is lower cannot be told.")
    assert "theirs has no loss on held-out text: its own loop trains it." in words
    assert "elsewhere was scored on another text, or with another vocabulary, than a" in words
    assert "young was not scored since its first step." in words
