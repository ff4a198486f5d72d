"""What a source can answer is read from the measures' declarations, and what it says holds."""

from __future__ import annotations

import numpy as np
import pytest

from moe_core.cli.parser import parse
from moe_core.errors import MoescopeError
from moe_core.figures.run_figures import sections_of_trace
from moe_core.routing import AnyRouting, RoutingCounts, RoutingTrace
from moe_core.routing.measures import capability as words
from moe_core.routing.measures.capability import capabilities
from moe_core.routing.measures.registry import MEASURES
from tests.routing_support import random_trace

TRACE = random_trace(0)
STEPS = RoutingCounts.from_arrays(np.full((3, 2, 4), 5), top_k=2, steps=[0, 10, 20])
SOURCES: dict[str, AnyRouting] = {
    "trace": TRACE,
    "one expert a token": random_trace(0, L=1, K=1),
    "by source": TRACE.counts(),
    "with pairs": TRACE.counts(extras=("pairs",)),
    "by domain": TRACE.counts("domain"),
    "all": TRACE.counts("all"),
    "steps": STEPS,
}


def answers(routing: AnyRouting) -> dict[str, str]:
    return {one.measure.name: one.answer for one in capabilities(routing)}


@pytest.mark.parametrize("name", SOURCES)
def test_what_can_be_told_can_be_computed_and_the_rest_cannot(name: str) -> None:
    routing = SOURCES[name]
    found = capabilities(routing)
    assert [one.measure for one in found] == list(MEASURES)
    for one in found:
        assert (one.answer == "yes") == (one.needs == "")
        function, null = one.measure.function, one.measure.null
        if function is None or one.measure.of not in ("trace", "steps"):
            assert one.answer == "no"
            continue
        if one.answer == "no":
            if one.needs in (words.TOKENS, words.PAIRS, words.FIXED_EXPERTS):
                with pytest.raises(MoescopeError):
                    function(routing)
            continue
        assert len(function(routing))
        if null is not None and one.answer == "yes":
            assert len(null(routing))


def test_the_table_of_each_kind() -> None:
    trace = answers(TRACE)
    assert [name for name, answer in trace.items() if answer == "no"] == [
        "load_by_step", "label_nmi", "label_cells", "experts_per_token", "formation", "saturation", "routing_diff",
        "match_experts", "routing_movers", "ablation", "importance",
    ]  # fmt: skip
    assert answers(SOURCES["one expert a token"])["coactivation"] == "no"
    assert answers(SOURCES["one expert a token"])["layer_flow"] == "no"
    counts = answers(SOURCES["by source"])
    assert {name for name, answer in counts.items() if answer == "yes"} == {
        "expert_load", "load_balance", "domain_nmi", "domain_cells", "domain_divergence", "busiest_experts", "gpu_load",
    }  # fmt: skip
    assert answers(SOURCES["with pairs"])["coactivation"] == "as counted"
    assert answers(SOURCES["by domain"])["domain_nmi"] == "as counted"
    assert answers(SOURCES["by domain"])["load_balance"] == "as counted"
    assert answers(SOURCES["all"])["domain_nmi"] == "no"
    assert answers(STEPS)["load_balance"] == "yes"
    assert answers(STEPS)["load_by_step"] == "yes"


@pytest.mark.parametrize("name", SOURCES)
def test_figures_are_drawn_of_what_can_be_told(name: str) -> None:
    sections = sections_of_trace(SOURCES[name])
    figures = {figure.name: figure for section in sections for figure in section.figures}
    assert "expert_load_map" in figures
    assert ("domain_nmi" in figures) == (len(SOURCES[name].domains) > 1)
    assert ("coactivation_layer_0" in figures) == (name in ("trace", "with pairs"))
    assert ("expert_load_over_time_layer_0" in figures) == (name == "steps")
    if name == "with pairs":
        assert figures["coactivation_layer_0"].verdict.startswith("As counted, experts ")
    if name in ("by domain", "all"):
        assert "cannot be told" in figures["expert_load_map"].verdict


@pytest.mark.parametrize(
    ("weights", "logits", "told"),
    [("equal", False, False), ("equal", True, True), ("unequal", False, True), ("single", False, False)],
)
def test_how_decided_a_router_is_takes_weights_or_logits(weights: str, logits: bool, told: bool) -> None:
    indices = np.array([[[0, 1], [2, 0], [1, -1]]])[..., : 1 if weights == "single" else 2]
    scores = np.where(indices < 0, 0.0, 0.5)
    if weights == "unequal":
        scores[0, 0] = 0.7, 0.3
    trace = RoutingTrace.from_arrays(
        router_indices=indices, router_scores=scores, num_experts=3, token_ids=[0, 1, 2],
        router_logits=np.ones((1, 3, 3)) if logits else None,
    )  # fmt: skip
    assert (answers(trace)["router_entropy"] == "yes") is told
    drawn = {figure.name for section in sections_of_trace(trace) for figure in section.figures}
    assert ("router_entropy" in drawn) is told


def test_as_counted_pairs_are_held_against_even_routing() -> None:
    """Even routing of two of three experts: every pair is as frequent as by even routing, and nothing is certain."""
    counts = RoutingCounts.from_arrays(
        [[6, 6, 6]], top_k=2, extras={"pairs": [[[6, 3, 3], [3, 6, 3], [3, 3, 6]]]}
    )  # fmt: skip
    (figure,) = [
        figure
        for section in sections_of_trace(counts)
        for figure in section.figures
        if figure.name == "coactivation_layer_0"
    ]
    assert "1.0 times as often as by even routing" in figure.verdict


def test_every_need_is_a_phrase_and_every_command_one_of_the_program() -> None:
    """ "It takes ..." is followed by each of them, and what is proposed to be typed is understood."""
    needs = {one.needs for source in SOURCES.values() for one in capabilities(source)} - {""}
    assert all(need[0].islower() and not need.endswith(".") for need in needs)
    for need, command in words.COMMANDS.items():
        assert need in vars(words).values()
        assert parse(command.split()).handler  # raises UsageError for what the program does not know
    found = words.remedies(capabilities(SOURCES["all"]))
    assert found["trace --model DIR --data texts.jsonl --out trace.parquet"] == (
        f"for {words.TOKENS}; for {words.DOMAINS}"
    )
