"""Experts to look at: who is named, with which figure, and what is said where the data is too little."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from moe_core.evaluation.effects import SourceBootstrap
from moe_core.routing.measures.domains import CLEARLY, ONE_DOMAIN, domain_cells, domain_nmi_test
from moe_core.routing.measures.load import load_balance, load_bounds
from moe_core.routing.measures.standouts import (
    AS_COUNTED,
    CANNOT_BE_TOLD,
    idle,
    most_costly,
    most_specialised,
    overloaded,
    standouts,
)
from tests.routing_support import random_trace, renamed, trace_of

NO_TEST = pd.DataFrame({"layer": [0], "verdict": [ONE_DOMAIN]})
NO_CELLS = pd.DataFrame(
    columns=["layer", "expert", "domain", "lift", "lift_low", "lift_high", "share", "expected", "uncertain"]
)


def bounds(*rows: tuple[int, int, float, float, float], varies_by: str = "source") -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["layer", "expert", "lift_low", "lift", "lift_high_of_all"])
    return frame.assign(lift_high=frame["lift_high_of_all"], varies_by=varies_by)


def named(found: object) -> list[tuple[int, int]]:
    return [(one.layer, one.expert) for one in found.experts]  # type: ignore[attr-defined]


def test_load_in_times_its_even_share_by_hand() -> None:
    # Four tokens of two of four experts: 8 choices, 2 is even. Expert 0 has 4, experts 1 and 2 have 2, expert 3 none.
    trace = trace_of([[0, 1], [0, 2], [0, 1], [0, 2]], num_experts=4, document_ids=[0, 1, 2, 3])
    frame = load_bounds(trace)
    assert frame["lift"].tolist() == [2.0, 1.0, 1.0, 0.0]
    assert frame["tokens"].tolist() == [4, 2, 2, 0]
    assert (frame["lift_low"] <= frame["lift"]).all()
    assert (frame["lift_high"] >= frame["lift"]).all()
    assert (frame["lift_high_of_all"] >= frame["lift_high"]).all()
    assert set(frame["varies_by"]) == {"source"}


def test_the_bounds_are_those_by_which_the_headline_judges() -> None:
    for seed in range(3):
        trace = random_trace(seed, T=200)
        by_layer = load_bounds(trace).groupby("layer")
        balance = load_balance(trace).set_index("layer")
        assert np.allclose(by_layer["lift_high"].max(), balance["load_high"])
        assert np.allclose(by_layer["lift_low"].max().clip(lower=1.0), balance["load_low"])


def test_other_numbers_of_experts_permute_the_bounds() -> None:
    trace = random_trace(1, T=200)
    new_name = np.array([3, 0, 4, 1, 2])
    before, after = load_bounds(trace), load_bounds(renamed(trace, new_name))
    moved = before.assign(expert=new_name[before["expert"]]).sort_values(["layer", "expert"], ignore_index=True)
    pd.testing.assert_frame_equal(moved, after)


def test_surely_overloaded_experts_are_named_and_the_others_counted() -> None:
    sure = [(0, expert, 2.1 + expert / 10, 3.0 + expert, 9.0) for expert in range(5)]
    found = overloaded(bounds(*sure, (1, 0, 1.9, 9.0, 20.0), (1, 1, 0.9, 1.0, 1.1)))
    assert named(found) == [(0, 4), (0, 3), (0, 2)]
    assert found.experts[0].figure == "7.0 times its even share (95 % interval 2.5 to 9.0)"
    assert found.experts[0].verdict == "surely above 2 times its even share"
    assert (found.more, found.note) == (2, "")


def test_too_little_text_names_who_may_be_overloaded_and_says_that_it_cannot_be_told() -> None:
    found = overloaded(bounds((0, 0, 0.9, 1.5, 2.5), (0, 1, 0.2, 0.9, 2.5), (0, 2, 0.5, 0.6, 1.0)))
    assert named(found) == [(0, 0)]
    assert found.experts[0].verdict == f"{CANNOT_BE_TOLD} whether it is above 2 times its even share"
    assert found.more == 0
    even = overloaded(bounds((0, 0, 0.9, 1.0, 1.1)))
    assert (even.experts, even.note) == ((), "No expert is above 2 times its even share.")
    silent = overloaded(bounds((0, 0, 0.0, float("nan"), 0.1)))
    assert (silent.experts, silent.note) == ((), "Nothing was routed.")


def test_idle_experts_are_those_surely_below_a_quarter_of_their_share() -> None:
    silent = (1, 0, 0.0, float("nan"), 0.05)  # of a layer that routes nothing
    found = idle(bounds((0, 0, 0.0, 0.2, 0.24), (0, 1, 0.0, 0.1, 0.3), silent))
    assert named(found) == [(1, 0), (0, 0)]
    assert found.experts[1].figure == "0.2 times its even share (95 % interval 0 to 0.24)"
    unsure = idle(bounds((0, 0, 0.0, 0.0, 0.3), (0, 1, 0.0, 0.26, 0.4)))
    assert named(unsure) == [(0, 0)]
    assert unsure.experts[0].verdict == f"{CANNOT_BE_TOLD} whether it is below a quarter of its even share"
    assert idle(bounds((0, 0, 0.3, 0.5, 0.7))).note == "No expert is below a quarter of its even share."


def test_counts_without_sources_give_figures_without_intervals_and_say_why() -> None:
    counts = trace_of([[[0, 1]] * 9 + [[0, 2]]], num_experts=8).counts(by="domain")
    found = overloaded(load_bounds(counts))
    assert found.experts[0].figure == "4.0 times its even share"  # 10 of 20 choices, an eighth of them is even
    assert found.experts[0].verdict.startswith(CANNOT_BE_TOLD)
    assert found.note == AS_COUNTED


def test_the_most_specialised_are_the_surest_and_each_is_named_once() -> None:
    rows = [
        (0, 5, "code", 4.0, 3.5, 4.5, False),
        (0, 5, "law", 3.8, 3.6, 4.4, False),  # the same expert, surer still
        (0, 6, "law", 9.0, 1.2, 20.0, False),
        (0, 7, "law", 9.0, 0.5, 20.0, True),  # uncertain
        (1, 0, "law", 9.0, 8.0, 10.0, False),  # of a layer that knows no domains
    ]
    cells = pd.DataFrame(rows, columns=["layer", "expert", "domain", "lift", "lift_low", "lift_high", "uncertain"])
    cells = cells.assign(share=0.5, expected=0.1, p_adjusted=0.004)
    nmi = pd.DataFrame({"layer": [0, 1], "verdict": [CLEARLY, "not distinguishable from chance"]})
    found = most_specialised(cells, nmi)
    assert named(found) == [(0, 5), (0, 6)]
    assert found.experts[0].figure == "3.8 times its even share of law tokens (95 % interval 3.6 to 4.4)"
    assert found.experts[0].verdict == "surely prefers law text (p < 0.005, over all experts and domains)"
    assert most_specialised(NO_CELLS, NO_TEST).note.startswith("All text is of one domain")


def test_the_most_costly_are_those_whose_cost_is_sure() -> None:
    rows = [
        (0, 0, "all", 0.30, 0.20, 0.40, False),
        (0, 1, "all", 0.005, 0.004, 0.006, False),
        (0, 2, "all", 0.90, -0.10, 1.90, True),
        (0, 3, "all", -0.20, -0.30, -0.10, False),  # the loss falls without it
        (0, 3, "code", 5.0, 4.0, 6.0, False),  # of one domain only
    ]
    columns = ["layer", "expert", "domain", "delta_nats", "low", "high", "uncertain"]
    found = most_costly(pd.DataFrame(rows, columns=columns))
    assert named(found) == [(0, 0), (0, 1)]
    assert found.experts[0].figure == "+0.3 nats per token without it (95 % interval +0.2 to +0.4)"
    assert [one.verdict for one in found.experts] == ["surely of use", "surely of use, too little to matter"]
    unsure = most_costly(pd.DataFrame(rows[2:4], columns=columns))
    assert unsure.note == "Without any one of 2 experts the loss does not surely rise."
    untold = most_costly(pd.DataFrame(rows[:1], columns=columns).assign(low=float("nan")))
    assert CANNOT_BE_TOLD in untold.note


def test_of_many_experts_that_cost_nothing_none_is_named_by_accident() -> None:
    """Each interval leaves 0 out in 5 of 100 cases, so that of 64 experts without effect hardly one text has none."""
    sources, experts = 40, 64
    source_T = np.repeat(np.arange(sources, dtype=np.int32), 10)
    by_itself = by_accident = 0
    for seed in range(40):
        bootstrap = SourceBootstrap(source_T, np.zeros(400, np.int16), ["all text"], np.ones(400, np.bool_), seed)
        rng = np.random.default_rng(seed)
        rows = [bootstrap.means_of_sums(rng.normal(0.0, 0.1, sources))[0] for _ in range(experts)]
        frame = pd.DataFrame(rows).assign(layer=0, expert=range(experts))
        frame["uncertain"] = ~((frame["low"] > 0) | (frame["high"] < 0))
        by_itself += bool((frame["low"] > 0).any())
        by_accident += bool(most_costly(frame).experts)
    assert by_itself >= 20
    assert by_accident <= 5  # 2 of 40 are expected; 6 or more has probability 0.01


@pytest.mark.parametrize("is_counts", [False, True])
def test_all_four_kinds_come_of_a_trace_and_of_counts(is_counts: bool) -> None:
    trace = random_trace(0)
    routing = trace.counts(by="source") if is_counts else trace
    cells, nmi = domain_cells(routing, permutations=20), domain_nmi_test(routing, permutations=20)
    found = standouts(load_bounds(routing), cells, nmi, None, "Measure it.")
    assert [one.kind for one in found] == ["overloaded", "idle", "most specialised", "most costly"]
    assert found[3].note == "Measure it."
