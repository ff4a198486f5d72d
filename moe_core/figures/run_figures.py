"""All figures of a run or of a trace, in the order of the questions they answer: for `plots` and `report`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from moe_core.errors import RunError
from moe_core.figures.associations import (
    coactivation_figure,
    flow_map_figure,
)
from moe_core.figures.beyond_length import QUANTITIES, loss_by_position_figure, routing_by_position_figure
from moe_core.figures.causes import (
    ablation_domains_figure,
    ablation_map_figure,
    correlations_figure,
    heads_map_figure,
    importance_figure,
    similarity_figure,
)
from moe_core.figures.changes import saturation_figure
from moe_core.figures.domains import (
    context_figure,
    domain_map_figure,
    label_map_figure,
    preferred_domains_figure,
)
from moe_core.figures.experts import dropped_figure
from moe_core.figures.experts_of_classes import experts_per_token_figure
from moe_core.figures.figure import Figure
from moe_core.figures.formation import formation_figure
from moe_core.figures.load import MAX_STEPS, entropy_figure, load_map_figure, load_over_time_figure, loads_over_time
from moe_core.figures.measures import chance_figure
from moe_core.figures.placement import cache_figure, coverage_figure, gpu_load_figure
from moe_core.figures.run_curves import loss_of_run_figure
from moe_core.figures.sankey import flow_sankey_figure
from moe_core.figures.tokens import token_map_figure
from moe_core.figures.vocabulary import vocabulary_figure
from moe_core.program import program
from moe_core.progress import Progress, silent
from moe_core.routing.measures.busiest import busiest_experts
from moe_core.routing.measures.caches import expert_cache
from moe_core.routing.measures.coactivation import (
    coactivation,
    coactivation_pairs,
    coactivation_test,
    pairs_as_counted,
)
from moe_core.routing.measures.context_independence import context_independence
from moe_core.routing.measures.decisions import router_entropy, says_how_decided
from moe_core.routing.measures.domains import domain_cells, domain_nmi_test
from moe_core.routing.measures.experts_per_token import experts_per_token_classes, experts_per_token_test, varies
from moe_core.routing.measures.flow import layer_flow, layer_flow_test
from moe_core.routing.measures.formation import formation
from moe_core.routing.measures.gpu_load import gpu_load
from moe_core.routing.measures.labelled_tokens import label_cells, label_nmi_test
from moe_core.routing.measures.load import dropped_by_position, expert_load, load_balance, load_by_step
from moe_core.routing.measures.persistence import persistence_test
from moe_core.routing.measures.registry import (
    COACTIVATION,
    DOMAIN_NMI,
    EXPERTS_PER_TOKEN,
    LABEL_NMI,
    LAYER_FLOW,
    PERSISTENCE,
    VOCABULARY,
)
from moe_core.routing.measures.saturation import saturation
from moe_core.routing.measures.token_kinds import kind_labelled
from moe_core.routing.measures.vocabulary import vocabulary_specialization, vocabulary_test
from moe_core.routing.trace.counts import domain_tokens
from moe_core.routing.trace.independence import independence_note
from moe_core.routing.trace.routing_counts import RoutingCounts

if TYPE_CHECKING:
    from moe_core.routing.trace.trace import AnyRouting, AnyTrace
    from moe_core.runs.record import RunFindings, RunRecord

MAX_LAYER_FIGURES = 8
"""Figures of single layers are drawn for at most this many layers, evenly spaced."""
MOST_TOKENS_OF_KINDS = 200_000
"""Of so many tokens, whole documents, the kinds are told by their texts."""
MOST_CACHED_TOKENS = 200_000
"""A cache is followed through so many tokens, whole documents: more would take minutes of a large model."""


@dataclass(frozen=True)
class Section:
    """Figures that answer one question, most telling first."""

    question: str
    figures: list[Figure]
    terms: tuple[str, ...]
    """Words of the glossary that explain them."""


def sections_of_run(run: RunRecord, trace: AnyTrace | None = None, progress: Progress = silent) -> list[Section]:
    """Everything the run has: training, routing, what was found out by switching experts off.

    `trace` is the routing to show; without one, that of the newest probe. Raises RunError when the run has measured
    nothing yet.
    """
    routing: AnyRouting | None = trace if trace is not None else run.newest_probe or run.counts
    sections = [
        _training(run),
        *(sections_of_trace(routing, progress, sources_known=True) if routing is not None else []),
        _history(run),
        _causes(run.findings),
        _beyond_length(run.findings),
    ]
    found = [section for section in sections if section.figures]
    if not found:
        raise RunError(
            f"run {run.name!r} has measured nothing yet; wait for its first evaluation, or resume it with "
            f"`{program()} --run {run.name} --resume`"
        )
    return found


def sections_of_trace(trace: AnyRouting, progress: Progress = silent, *, sources_known: bool = False) -> list[Section]:
    """Load, domains, tokens, teams and paths of a trace or of counts, each with its test against chance, as far as it
    has them.

    `sources_known`: its source_ids are what the texts were cut from, whatever they look like; a run's text is so.
    """
    makers: list[Callable[[AnyRouting], Section]] = [
        _load,
        _domains,
        _labels,
        _experts_per_token,
        _vocabulary,
        _teams_section,
        _paths,
        _placement,
    ]
    sections = []
    for number, make in enumerate(makers):
        progress("measuring", number, len(makers))
        sections.append(make(trace))
    progress("measuring", len(makers), len(makers))
    note = "" if sources_known else independence_note(trace)
    return [_with_note(section, note) for section in sections if section.figures]


def _with_note(section: Section, note: str) -> Section:
    """The section with what its verdicts lean on said once, after the first of them."""
    if not note:
        return section
    first, *others = section.figures
    return replace(section, figures=[replace(first, verdict=f"{first.verdict} {note}"), *others])


def spaced(layers: list[int]) -> list[int]:
    """At most MAX_LAYER_FIGURES of `layers`, evenly spaced, the first and the last among them."""
    if len(layers) <= MAX_LAYER_FIGURES:
        return list(layers)
    last = len(layers) - 1
    return [layers[round(i * last / (MAX_LAYER_FIGURES - 1))] for i in range(MAX_LAYER_FIGURES)]


def _load(trace: AnyRouting) -> Section:
    figures = [load_map_figure(expert_load(trace), load_balance(trace))]
    if isinstance(trace, RoutingCounts):
        loads = load_by_step(trace.joined(MAX_STEPS)) if len(trace.steps) > 1 else None
        figures += [load_over_time_figure(loads, layer) for layer in spaced(trace.layers) if loads is not None]
    else:
        if says_how_decided(trace):
            figures.append(entropy_figure(router_entropy(trace)))
        if not trace.varying_experts and (dropped := dropped_by_position(trace))["dropped"].any():
            figures.append(dropped_figure(dropped))
    terms = ("expert load", "load imbalance", "dead expert", "router entropy", "lift", "dropped tokens")
    return Section("Is the work shared evenly among the experts?", figures, terms)


def _domains(trace: AnyRouting) -> Section:
    figures: list[Figure] = []
    if (domain_tokens(trace) > 0).sum() > 1:
        nmi, cells = domain_nmi_test(trace), domain_cells(trace)
        figures.append(chance_figure(DOMAIN_NMI, nmi))
        if trace.num_layers > 1:
            figures.append(preferred_domains_figure(cells, nmi))
        figures += [domain_map_figure(cells, nmi, layer) for layer in spaced(trace.layers)]
    return Section(
        "Do experts know what kind of text a token is from?", figures, ("domain", "NMI", "lift", "null of domains")
    )


def _labels(trace: AnyRouting) -> Section:
    figures: list[Figure] = []
    if not isinstance(trace, RoutingCounts) and trace.labelling:
        test, cells = label_nmi_test(trace), label_cells(trace)
        figures.append(chance_figure(LABEL_NMI, test))
        figures += [label_map_figure(cells, test, layer) for layer in spaced(trace.layers)]
    terms = ("label of a token", "NMI", "lift", "null of labels")
    return Section("Do experts know what kind of token they take?", figures, terms)


def _experts_per_token(trace: AnyRouting) -> Section:
    """By the labels of the trace, or else by kinds of token where it has their texts, or by domain."""
    figures: list[Figure] = []
    if not isinstance(trace, RoutingCounts) and varies(trace):
        told = trace if trace.labelling or not trace.vocabulary else kind_labelled(trace.sample(MOST_TOKENS_OF_KINDS))
        test, classes = experts_per_token_test(told), experts_per_token_classes(told)
        figures = [chance_figure(EXPERTS_PER_TOKEN, test)]
        figures += [experts_per_token_figure(classes, test, layer) for layer in spaced(trace.layers)]
    terms = ("experts per token", "explained variance", "null of labels")
    return Section("Which kinds of token take more experts than others?", figures, terms)


def _vocabulary(trace: AnyRouting) -> Section:
    question, figures = "Does the choice of expert follow the token itself?", list[Figure]()
    terms = ("vocabulary specialization", "token share", "domain beyond token", "null of vocabulary and flow")
    if isinstance(trace, RoutingCounts):
        return Section(question, figures, terms)
    words = vocabulary_specialization(trace)
    if len(words):
        test, layers = vocabulary_test(trace), set(words["layer"])
        figures = [chance_figure(VOCABULARY, test), context_figure(context_independence(trace))]
        figures += [vocabulary_figure(words, test, layer) for layer in spaced(trace.layers) if layer in layers]
    if len(set(domain_tokens(trace).nonzero()[0])) < 2:
        figures.append(token_map_figure(next(trace.parts())))
    return Section(question, figures, terms)


def _teams_section(trace: AnyRouting) -> Section:
    figures: list[Figure] = []
    if isinstance(trace, RoutingCounts):
        if "pairs" in trace.extras:
            together, counted = coactivation(trace), pairs_as_counted(trace)
            figures = [coactivation_figure(together, None, layer, counted) for layer in spaced(trace.layers)]
    elif trace.top_k > 1:
        together, test = coactivation(trace), coactivation_test(trace)
        pairs = coactivation_pairs(trace)
        figures.append(chance_figure(COACTIVATION, test))
        figures += [coactivation_figure(together, test, layer, pairs) for layer in spaced(trace.layers)]
    return Section(
        "Which experts work together?",
        figures,
        ("co-activation strength", "lift over chance", "null of co-activation", "Benjamini-Hochberg"),
    )


def _paths(trace: AnyRouting) -> Section:
    figures: list[Figure] = []
    if not isinstance(trace, RoutingCounts):
        figures.append(chance_figure(PERSISTENCE, persistence_test(trace)))
    if not isinstance(trace, RoutingCounts) and trace.num_layers > 1:
        flow, test = layer_flow(trace), layer_flow_test(trace)
        figures += [chance_figure(LAYER_FLOW, test), flow_sankey_figure(flow, test)]
        figures += [flow_map_figure(flow, test, layer) for layer in spaced(trace.layers[:-1])]
    return Section(
        "How do tokens travel?",
        figures,
        ("persistence", "cross-layer flow", "null of persistence", "null of vocabulary and flow"),
    )


def _placement(trace: AnyRouting) -> Section:
    figures = [coverage_figure(busiest_experts(trace))]
    if not isinstance(trace, RoutingCounts):
        figures.append(cache_figure(expert_cache(trace.sample(MOST_CACHED_TOKENS))))
    figures.append(gpu_load_figure(gpu_load(trace)))
    terms = ("coverage", "hit rate of a cache", "load of the busiest GPU", "physical expert")
    return Section("Which experts are hot, and where should they go?", figures, terms)


def _training(run: RunRecord) -> Section:
    losses = loss_of_run_figure(run.curves, run.evaluation)
    return Section("Does the model learn?", [] if losses is None else [losses], ("loss", "perplexity"))


def _history(run: RunRecord) -> Section:
    figures: list[Figure] = []
    if len(run.probes) > 1:
        figures.append(saturation_figure(saturation(run.probes)))
        forming = formation(run.probes)
        figures += [formation_figure(forming, layer) for layer in spaced(sorted(set(forming["layer"])))]
    if run.counts is None or run.probes:  # else they are what the routing was shown of
        counts = run.counts
        loads = loads_over_time(run.load) if counts is None else load_by_step(counts.joined(MAX_STEPS))
        figures += [load_over_time_figure(loads, int(layer)) for layer in spaced(sorted(set(loads["layer"])))]
    return Section("When did the routing become what it is?", figures, ("saturation", "formation", "expert load"))


def _causes(found: RunFindings) -> Section:
    """The known effects of switching experts off, in any mode."""
    figures: list[Figure] = []
    for mode, effects in found.effects.items():
        figures.append(ablation_map_figure(effects))
        layers = sorted({int(layer) for layer in effects["layer"]})
        if mode == "zero":
            figures += [ablation_domains_figure(effects, layer) for layer in spaced(layers)]
    if found.heads is not None:
        figures.append(heads_map_figure(found.heads, found.effects.get("zero")))
    importance, correlations = found.importance, found.correlations
    if importance is not None and correlations is not None:
        figures.append(correlations_figure(correlations))
        known = correlations[correlations["rho"].notna()]
        figures += [importance_figure(importance, correlations, str(measure)) for measure in known["measure"]]
    if found.similarity is not None:
        layers = sorted({int(layer) for layer in found.similarity["layer"]})
        figures += [similarity_figure(found.similarity, layer) for layer in spaced(layers)]
    terms = ("ablation", "causal effect", "nats", "rank correlation", "REAP", "EAN", "CKA")
    return Section("Which experts matter, and can one tell without trying?", figures, terms)


def _beyond_length(found: RunFindings) -> Section:
    figures: list[Figure] = []
    if found.context is not None:
        read = found.context.found
        figures.append(loss_by_position_figure(read))
        figures += [
            routing_by_position_figure(read, layer, quantity)
            for layer in spaced(list(read.moe_layers))
            for quantity in QUANTITIES
        ]
    terms = ("trained length", "RoPE scheme", "flips by position", "NMI with position")
    return Section("Can it read beyond the length it was trained on?", figures, terms)
