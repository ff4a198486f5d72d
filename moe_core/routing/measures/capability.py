"""What a source of routing can answer, and what would be needed for the rest: read from each measure's declaration."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from moe_core.routing.measures.decisions import says_how_decided
from moe_core.routing.measures.experts_per_token import varies
from moe_core.routing.measures.measure import Measure
from moe_core.routing.measures.registry import (
    BUSIEST,
    COACTIVATION,
    COACTIVATION_PAIRS,
    DROPPED_BY_POSITION,
    GPU_LOAD,
    LAYER_FLOW,
    LOAD_BALANCE,
    MEASURES,
    ROUTER_ENTROPY,
)
from moe_core.routing.trace.routing_counts import RoutingCounts
from moe_core.routing.trace.trace import AnyRouting

Answer = Literal["yes", "as counted", "no"]
"""As counted: the figure, without a word on whether it is more than chance."""

TOKENS = "the choices token by token, from a trace of the text"
PAIRS = 'pairs of experts, as a trace or counts with the extra "pairs" have them'
MODEL = "the model itself, opened or in a run"
SOURCES = "sources that are told apart, as in counts by source"
SPREAD = "sources or steps that are told apart"
DOMAINS = "text of two domains or more, each named"
LABELS = "a label for each token, as its node type in the syntax tree"
STEPS = "counts of several steps, as a training logs them"
SNAPSHOTS = "snapshots of a training on one text, of a run that was trained or watched here"
SECOND = "a second trace of the same text, under Compare"
SECOND_OF_ANY_TEXT = "a second trace, or counts by source, of the same model, under Compare"
WEIGHTS = "the weights of the choices, or the logits of the router, which were not recorded"
TWO_EXPERTS = "a router that gives a token two experts or more"
FIXED_EXPERTS = "a router that gives every token the same number of experts"
VARYING_EXPERTS = "a router whose number of experts varies from token to token, by its rule or by null experts"
TWO_LAYERS = "a model of two MoE layers or more"

COMMANDS: dict[str, str] = {
    TOKENS: "trace --model DIR --data texts.jsonl --out trace.parquet",
    MODEL: "dashboard -- --model DIR",
    DOMAINS: "trace --model DIR --data texts.jsonl --out trace.parquet",
    LABELS: "label --trace trace.parquet --syntax --out labelled.parquet",
    SNAPSHOTS: "--quick --run first",
    PAIRS: "counts traces/ --extras pairs --out all.counts.parquet",
    SOURCES: "counts traces/ --by source --out all.counts.parquet",
    SPREAD: "counts traces/ --by source --out all.counts.parquet",
}
"""How to get what is needed, as given to the program, where one command does it."""


@dataclass(frozen=True)
class Capability:
    """Whether a source can answer the question of one measure."""

    measure: Measure
    answer: Answer
    needs: str = ""
    """What would be needed for all of it; "" where nothing is missing."""


def capabilities(routing: AnyRouting) -> list[Capability]:
    """What a trace or counts can answer, a line a measure, in the order of the registry."""
    return [capability(measure, routing) for measure in MEASURES]


def capability(measure: Measure, routing: AnyRouting) -> Capability:
    """What a trace or counts can answer of one measure."""
    if missing := _missing(measure, routing):
        return Capability(measure, "no", missing)
    if not isinstance(routing, RoutingCounts):
        return Capability(measure, "yes")
    if measure.null_needs == "tokens":
        return Capability(measure, "as counted", TOKENS)
    if measure.null is not None and not routing.knows_sources:
        return Capability(measure, "as counted", SOURCES)
    if measure in (LOAD_BALANCE, BUSIEST, GPU_LOAD) and not routing.knows_sources and len(routing.steps) == 1:
        return Capability(measure, "as counted", SPREAD)
    return Capability(measure, "yes")


def _missing(measure: Measure, routing: AnyRouting) -> str:
    """Why the measure cannot be made of this source at all, or ""."""
    of_counts = isinstance(routing, RoutingCounts)
    if measure.needs == "model":
        return MODEL
    if measure.of == "snapshots":
        return SNAPSHOTS
    if measure.of == "steps":
        return "" if isinstance(routing, RoutingCounts) and len(routing.steps) > 1 else STEPS
    if measure.needs == "tokens" and of_counts:
        return TOKENS
    if measure.labels and not getattr(routing, "labelling", ""):
        return LABELS
    if measure.of == "two traces":
        return SECOND if measure.needs == "tokens" else SECOND_OF_ANY_TEXT
    if isinstance(routing, RoutingCounts) and measure.needs == "pairs" and "pairs" not in routing.extras:
        return PAIRS
    if measure in (COACTIVATION, COACTIVATION_PAIRS) and not of_counts and routing.top_k < 2:
        return TWO_EXPERTS
    if measure is ROUTER_ENTROPY and not isinstance(routing, RoutingCounts) and not says_how_decided(routing):
        return WEIGHTS
    if measure is DROPPED_BY_POSITION and routing.varying_experts:
        return FIXED_EXPERTS
    if measure.varying and not varies(routing):
        return VARYING_EXPERTS
    if measure is LAYER_FLOW and routing.num_layers < 2:
        return TWO_LAYERS
    if measure.domains and len(routing.domains) < 2:
        return DOMAINS
    return ""


def needs(measures: Iterable[Measure], routing: AnyRouting) -> dict[Measure, str]:
    """What would be needed for those of the measures that cannot be told at all."""
    found = {measure: capability(measure, routing) for measure in measures}
    return {measure: one.needs for measure, one in found.items() if one.answer == "no"}


def remedies(found: Iterable[Capability]) -> dict[str, str]:
    """What is needed, in words, by the command that gives it."""
    needed: dict[str, list[str]] = {}
    for one in found:
        if one.needs in COMMANDS and one.needs not in needed.setdefault(COMMANDS[one.needs], []):
            needed[COMMANDS[one.needs]].append(one.needs)
    return {command: f"for {'; for '.join(needs)}" for command, needs in needed.items()}
