"""Two routings held against each other: what they are, whether their experts can be told by number, what differs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from moe_core.figures.expert_order import ALL, MapView, expert_places, load_of_cells
from moe_core.figures.flips import agreement_figure, margins_figure
from moe_core.figures.tokens import arrays_of_trace, snapshot_arrays
from moe_core.routing.measured import Measured
from moe_core.routing.measures.agreement import Agreement, routing_agreement
from moe_core.routing.measures.flip_accumulation import Accumulation, flip_accumulation
from moe_core.routing.measures.flip_margins import flip_margins
from moe_core.routing.token_arrays import TokenArrays, aligned
from moe_core.routing.trace.counts import domain_tokens
from moe_core.routing.trace.groups import Group
from moe_core.routing.trace.routing_counts import RoutingCounts
from moe_core.words import percent

if TYPE_CHECKING:
    import pandas as pd

    from moe_core.figures.figure import Figure
    from moe_core.routing import AnyRouting, RoutingTrace


TOKENS_OF_ONE_TEXT = 400
"""Of a text of one domain that a view shows."""


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two."""

    name: str
    """Such as "demo, step 350"."""
    measured: Measured

    @property
    def has_tokens(self) -> bool:
        """False where only counts were kept."""
        return not isinstance(self.measured.trace, RoutingCounts)

    @property
    def routing(self) -> RoutingTrace | RoutingCounts:
        """What is held against the other side: the tokens in memory, or the counts."""
        trace = self.measured.trace
        return trace if isinstance(trace, RoutingCounts) else self.measured.tokens


@dataclass(frozen=True, eq=False)
class Comparison:
    """Both sides, with experts of the second renumbered where that makes them comparable."""

    first: Side
    second: Side
    experts: Literal["same", "matched", "unrelated"]
    """What expert 3 of both has in common: it is one expert; it serves the same tokens; nothing but the number."""
    same_tokens: bool
    matches: pd.DataFrame | None = None
    """metrics.match_experts of the routings as they were, when experts are "matched"."""

    @property
    def sides(self) -> tuple[tuple[str, Side], tuple[str, Side]]:
        """Both with the letters that figures give them."""
        return ("A", self.first), ("B", self.second)

    def own_number(self, letter: str, layer: int, expert: int) -> int:
        """The number that an expert of side `letter`, numbered as figures number it here, has in its own model."""
        if self.matches is None or letter == "A":
            return expert
        own = self.matches[(self.matches["layer"] == layer) & (self.matches["expert_a"] == expert)]
        return int(own["expert_b"].iloc[0])

    @property
    def has_tokens(self) -> bool:
        """False where one of both keeps no single tokens."""
        return self.first.has_tokens and self.second.has_tokens

    @property
    def comparable(self) -> bool:
        """May a share of expert 3 in one be held against a share of expert 3 in the other?"""
        return self.experts != "unrelated"

    def diff(self) -> Figure:
        """Which layers choose otherwise; only of the same tokens."""
        return self.first.measured.look(_diff, self.second.measured.tokens)

    def agreement(self) -> Agreement:
        """The share of identical choices; only of the same tokens, where experts are comparable."""
        return self.first.measured.look(routing_agreement, self.second.measured.tokens)

    def agreement_by_layer(self) -> Figure:
        """The same layer by layer."""
        key = ("agreement figure", self.second.measured)
        return self.first.measured.keep(key, lambda: agreement_figure(self.agreement()))

    def margins(self) -> Figure:
        """How close the choices that differ were; only where `agreement` is told."""
        return self.first.measured.look(_margins, self.second.measured.tokens)

    def accumulation(self) -> Accumulation | None:
        """Whether flips carry on from layer to layer; likewise."""
        return self.first.measured.look(flip_accumulation, self.second.measured.tokens)

    def movers(self) -> Figure:
        """Which experts take more or fewer tokens; only where experts are comparable."""
        key = ("movers", self.second.measured)
        return self.first.measured.keep(key, lambda: _movers(self.first.routing, self.second.routing))


def compare(first: Side, second: Side, *, one_model: bool) -> Comparison:
    """`one_model`: both are the same model, perhaps at different steps, so that an expert is told by its number."""
    from moe_core.routing.measures.comparison import match_experts, rename_experts, token_difference

    a, b = first.routing, second.routing
    if isinstance(a, RoutingCounts) or isinstance(b, RoutingCounts):
        return Comparison(first, second, "same" if one_model and have_same_shape(a, b) else "unrelated", False)
    same_tokens = not token_difference(a, b)
    if one_model:
        return Comparison(first, second, "same", same_tokens)
    if not same_tokens or not have_same_shape(a, b):
        return Comparison(first, second, "unrelated", same_tokens)
    matches = first.measured.look(match_experts, b)
    renamed = second.measured.keep(("matched", first.measured), lambda: Measured(rename_experts(b, matches)))
    return Comparison(first, replace(second, measured=renamed), "matched", True, matches)


def relation(comparison: Comparison) -> str:
    """What the numbers of the experts mean in this comparison, in one or two sentences; "" where it needs no word."""
    a, b = comparison.first.routing, comparison.second.routing
    if comparison.experts == "same":
        return _too_few_sources(comparison) if comparison.has_tokens else ""
    if comparison.matches is None:
        why = (
            f"A has {a.num_layers} layers of {a.num_experts} experts, B {b.num_layers} of {b.num_experts}"
            if not have_same_shape(a, b)
            else "nothing says that they are one model, and counts have no tokens by which experts could be matched"
            if not comparison.has_tokens
            else "their tokens differ, so that experts cannot be matched by the tokens they serve"
        )
        return (
            f"Experts of separately trained models have nothing in common but the number. Here {why}: compare the "
            "two maps as wholes, never expert 3 with expert 3."
        )
    even = a.top_k / a.num_experts
    return (
        "The two were trained separately, where the number of an expert means nothing: each expert of "
        f"{comparison.second.name} has been given the number of the one in {comparison.first.name} that serves most of "
        f"the same tokens. Matched experts share {percent(comparison.matches['overlap'].mean())} of their tokens "
        f"(about {percent(even / (2 - even))} if they had nothing to do with each other)."
    )


def _too_few_sources(comparison: Comparison) -> str:
    single = [side.name for _, side in comparison.sides if len(np.unique(side.measured.tokens.source_ids)) < 2]
    if not single:
        return ""
    return (
        f"{' and '.join(dict.fromkeys(single)).capitalize()}: all from one source, whose tokens are alike. How surely "
        "the shares differ cannot be told from that; hold two domains against each other, or several sources."
    )


def load_figure(trace: AnyRouting, view: MapView = ALL) -> Figure:
    """The load of all experts; for Measured.get, as drawing takes longer than measuring."""
    from moe_core.figures.load import load_map_figure
    from moe_core.routing.measures.domains import domain_cells
    from moe_core.routing.measures.load import expert_load, load_balance

    load, cells = expert_load(trace), domain_cells(trace) if view.order == "preferred domain" else None
    return load_map_figure(load, load_balance(trace), view, expert_places(load, view.order, cells))


def domains_figure(trace: AnyRouting, layer: int, view: MapView = ALL) -> Figure | None:
    """The domains of one layer's experts, of the nearest one where the model has no such layer; None where there is
    one domain only."""
    from moe_core.figures.domains import domain_map_figure
    from moe_core.routing.measures.domains import domain_cells, domain_nmi_test

    if (domain_tokens(trace) > 0).sum() < 2:
        return None
    shown = min(trace.layers, key=lambda own: abs(own - layer))
    cells = domain_cells(trace)
    places = expert_places(load_of_cells(cells), view.order, cells)
    return domain_map_figure(cells, domain_nmi_test(trace), shown, view, places)


def one_text(trace: RoutingTrace, name: str) -> RoutingTrace:
    """The trace with all its tokens in one domain `name`: two texts are compared as wholes."""
    return replace(trace, domain_ids=np.zeros_like(trace.domain_ids), domains=[name])


def one_counted_text(counts: RoutingCounts, domain: str, name: str) -> RoutingCounts:
    """The counts of one domain, called `name`: two texts are compared as wholes."""
    own = counts.of_domain(domain)
    return replace(own, groups=[Group(name, group.source) for group in own.groups], domains=[name])


@dataclass(frozen=True, eq=False)
class TextPairView:
    """Two texts, or one text twice, as two token views show them."""

    first: TokenArrays
    second: TokenArrays
    shared: int
    """Tokens that are the same in both, in order."""
    differ: npt.NDArray[np.bool_]
    """[L,N] of these, which go to another set of experts; empty where experts are not comparable."""

    def words(self, layer: int) -> str:
        """What is the same in both at this layer, in one sentence."""
        tokens = max(len(self.first.tokens), len(self.second.tokens))
        if not self.shared:
            return "The two texts have no token in common, in order."
        both = f"{self.shared:,} of {tokens:,} tokens are the same in both, in order"
        if not len(self.differ):
            return f"{both}. Their experts cannot be told from each other by number: compare the colours within a text."
        row = list(self.first.layers).index(layer)
        return f"{both}; {int(self.differ[row].sum()):,} of these go to other experts in layer {layer} (dotted)."


def texts_of_both(comparison: Comparison) -> TextPairView:
    """The beginning of one document of each domain as the token view takes it, from both sides; more of it where all
    text is of one domain."""
    first, second = (_beginning(side.measured.tokens) for side in (comparison.first, comparison.second))
    return side_by_side(first, second, comparable=comparison.comparable)


def _beginning(trace: RoutingTrace) -> TokenArrays:
    if (domain_tokens(trace) > 0).sum() > 1:
        return snapshot_arrays(trace)
    own = np.flatnonzero(trace.document_ids == trace.document_ids[0])[:TOKENS_OF_ONE_TEXT]
    mask = np.zeros(trace.num_tokens, np.bool_)
    mask[own] = True
    return arrays_of_trace(trace.select(mask))


def side_by_side(first: TokenArrays, second: TokenArrays, *, comparable: bool) -> TextPairView:
    """Both with their tokens aligned where they are the same; those that go to another set of experts are marked."""
    own_N, other_N = aligned(first.tokens, second.tokens)
    if not comparable:
        return TextPairView(first, second, len(own_N), np.zeros((0, len(own_N)), np.bool_))
    differ_LN = _other_sets(first.indices[:, own_N], second.indices[:, other_N])
    marked = []
    for arrays, places in ((first, own_N), (second, other_N)):
        marks_LT = np.zeros((len(arrays.layers), len(arrays.tokens)), np.bool_)
        marks_LT[:, places] = differ_LN
        marked.append(replace(arrays, marks=marks_LT, mark_label="other experts than beside"))
    return TextPairView(marked[0], marked[1], len(own_N), differ_LN)


def _other_sets(one_LNK: npt.NDArray[np.int16], other_LNK: npt.NDArray[np.int16]) -> npt.NDArray[np.bool_]:
    """[L,N] has the token another set of experts?"""
    width = max(one_LNK.shape[2], other_LNK.shape[2])
    one, other = (
        np.sort(np.pad(part, ((0, 0), (0, 0), (0, width - part.shape[2])), constant_values=-1), axis=2)
        for part in (one_LNK, other_LNK)
    )
    different: npt.NDArray[np.bool_] = (one != other).any(axis=2)
    return different


def have_same_shape(a: AnyRouting, b: AnyRouting) -> bool:
    """Have both the same layers, and as many experts?"""
    return a.layers == b.layers and a.num_experts == b.num_experts


def _diff(a: RoutingTrace, b: RoutingTrace) -> Figure:
    from moe_core.figures.changes import diff_figure
    from moe_core.routing.measures.comparison import routing_diff

    return diff_figure(routing_diff(a, b))


def _margins(a: RoutingTrace, b: RoutingTrace) -> Figure:
    return margins_figure(flip_margins(a, b))


def _movers(a: AnyRouting, b: AnyRouting) -> Figure:
    from moe_core.figures.changes import movers_figure
    from moe_core.routing.measures.movers import routing_movers

    movers = routing_movers(a, b)
    if movers["domain"].nunique() == 2:  # "all", and the only one there is
        movers = movers[movers["domain"] == "all"].reset_index(drop=True)
    return movers_figure(movers)
