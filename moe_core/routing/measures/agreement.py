"""How far do two routings of the same tokens agree, in one number: two precisions, two engines, two models?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from moe_core.routing.measures.comparison import check_same_experts, check_same_tokens
from moe_core.routing.measures.persistence import first_choice, shared_experts
from moe_core.routing.measures.term import Term
from moe_core.routing.statistics.bootstrap import source_blocks, totals_ratio_interval
from moe_core.routing.trace.counts import expert_counts
from moe_core.routing.trace.shares import ratio
from moe_core.routing.trace.trace import RoutingTrace
from moe_core.routing.trace.types import Float64Array, Int64Array
from moe_core.words import count_of, fixed, percent

CERTAINTY = 0.95
NARROW = 0.02
"""Of a narrower interval whole percents would hide the ends."""


@dataclass(frozen=True)
class SharedPart:
    """A part of all choices that is the same in both, with what to hold it against."""

    value: float
    """0 = no choice in common .. 1 = all; NaN where nothing was chosen."""
    low: float
    high: float
    """95 % bootstrap interval over sources, 0..1; NaN with fewer than two of them, and where all is the same."""
    chance: float
    """The same of two routers that have nothing in common but each its load, 0..1."""


@dataclass(frozen=True)
class LayerAgreement:
    """One layer's part of it."""

    layer: int
    all_choices: SharedPart
    first_choice: SharedPart
    """As in Agreement."""


@dataclass(frozen=True)
class Agreement:
    """How far two routings of the same T tokens agree. Of what it is made: see routing_agreement."""

    tokens: int
    sources: int
    """Of independent text, in which certainty is counted."""
    choices: int
    """Places that are held against each other: tokens x layers x used slots."""
    same_choices: int
    sources_that_differ: int
    """With one choice at least that is another."""
    all_choices: SharedPart
    """Any of a token's K choices, in whatever slot: the one number."""
    first_choice: SharedPart
    """The choice of the largest score alone."""
    layers: tuple[LayerAgreement, ...]

    @property
    def is_complete(self) -> bool:
        """Is every choice the same?"""
        return self.same_choices == self.choices

    @property
    def most_sources_that_differ(self) -> float:
        """Where none was seen to differ: at most this share of such sources does, 0..1, with 95 % certainty
        (Clopper and Pearson 1934, one-sided)."""
        return float(1 - (1 - CERTAINTY) ** (1 / self.sources)) if self.sources else float("nan")


def routing_agreement(a: RoutingTrace, b: RoutingTrace, seed: int = 0) -> Agreement:
    """How far two traces of the same tokens agree, over all layers.

    all_choices = sum over tokens and layers of |S_a & S_b| / sum of max(|S_a|, |S_b|); first_choice = the share of the
    tokens with a choice in either whose choices of the largest score are one expert.
    chance, of independent choices with the two loads of each layer: sum_e n_a(e) n_b(e) / T in place of the shared
    ones, n the tokens that chose the expert, or chose it first.
    Intervals draw whole sources anew, for both traces at once. An expert is told by its number: of separately trained
    models rename_experts first. Raises TraceError where tokens, layers or experts differ.
    """
    check_same_tokens(a, b)
    check_same_experts(a, b)
    rng = np.random.default_rng(seed)
    block_T, N = source_blocks(a.source_ids, rng)
    every, first = _of_all_choices(a, b, block_T, N), _of_first_choices(a, b, block_T, N)
    return Agreement(
        tokens=a.num_tokens,
        sources=len(np.unique(a.source_ids)),
        choices=int(every.compared.sum()),
        same_choices=int(every.same.sum()),
        sources_that_differ=int((every.same < every.compared).any(axis=0).sum()),
        all_choices=every.part(rng),
        first_choice=first.part(rng),
        layers=tuple(
            LayerAgreement(layer, whole, alone)
            for layer, whole, alone in zip(a.layers, every.by_layer(rng), first.by_layer(rng), strict=True)
        ),
    )


@dataclass(frozen=True, eq=False)
class _Counted:
    """Choices in L layers and N blocks of tokens."""

    same: Int64Array
    """[L,N] made in both."""
    compared: Int64Array
    """[L,N] all of them."""
    chance: Float64Array
    """[L] so many would be the same by chance."""

    def part(self, rng: np.random.Generator) -> SharedPart:
        same_N, of_N = self.same.sum(axis=0), self.compared.sum(axis=0)
        total = float(of_N.sum())
        if not total:
            return SharedPart(np.nan, np.nan, np.nan, np.nan)
        value = float(ratio(same_N.sum(), total))
        low, high = _interval(same_N[:, None], of_N[:, None], rng)
        return SharedPart(value, float(low[0]), float(high[0]), float(ratio(self.chance.sum(), total)))

    def by_layer(self, rng: np.random.Generator) -> list[SharedPart]:
        """[L] the same of each layer alone."""
        value_L, total_L = ratio(self.same.sum(axis=1), self.compared.sum(axis=1)), self.compared.sum(axis=1)
        low_L, high_L = _interval(self.same.T, self.compared.T, rng)
        found = zip(value_L, low_L, high_L, ratio(self.chance, total_L), strict=True)
        return [SharedPart(*(float(value) for value in part)) for part in found]


def _interval(same_NX: Int64Array, of_NX: Int64Array, rng: np.random.Generator) -> tuple[Float64Array, Float64Array]:
    """(low, high) [X]; NaN where nothing differs, which drawing anew can but repeat, and where nothing was chosen."""
    low_X, high_X = np.full((2, same_NX.shape[1]), np.nan)
    some_X = (same_NX < of_NX).any(axis=0)
    if some_X.any():
        low_X[some_X], high_X[some_X] = totals_ratio_interval(same_NX[:, some_X], of_NX[:, some_X], rng)
    return low_X, high_X


def _of_all_choices(a: RoutingTrace, b: RoutingTrace, block_T: Int64Array, N: int) -> _Counted:
    same, of = [], []
    for one_TK, other_TK in zip(a.router_indices, b.router_indices, strict=True):
        same.append(np.bincount(block_T, shared_experts(one_TK, other_TK), minlength=N))
        of.append(np.bincount(block_T, np.maximum((one_TK >= 0).sum(1), (other_TK >= 0).sum(1)), minlength=N))
    chance_L = (expert_counts(a) * expert_counts(b)).sum(axis=1) / max(a.num_tokens, 1)
    return _Counted(np.stack(same).astype(np.int64), np.stack(of).astype(np.int64), chance_L)


def _of_first_choices(a: RoutingTrace, b: RoutingTrace, block_T: Int64Array, N: int) -> _Counted:
    same, of, chance = [], [], []
    for row in range(a.num_layers):
        one_T, other_T = first_choice(a, row), first_choice(b, row)
        same.append(np.bincount(block_T[(one_T == other_T) & (one_T >= 0)], minlength=N))
        of.append(np.bincount(block_T[(one_T >= 0) | (other_T >= 0)], minlength=N))
        counts = [np.bincount(first_T + 1, minlength=a.num_experts + 1)[1:] for first_T in (one_T, other_T)]
        chance.append(float((counts[0].astype(np.float64) * counts[1]).sum()) / max(a.num_tokens, 1))
    return _Counted(np.stack(same), np.stack(of), np.array(chance))


def shared_percent(share: float) -> str:
    """As words.percent, with a decimal near 1: what is not all is never called 100 %."""
    if not 0.9905 <= share < 1:
        return percent(share)
    return "over 99.9 %" if share >= 0.9995 else f"{fixed(100 * share, 1)} %"


def shared_tenths(share: float) -> str:
    """As shared_percent, with a decimal everywhere; "" where it is unknown."""
    if np.isnan(share):
        return ""
    return "over 99.9 %" if 0.9995 <= share < 1 else f"{fixed(100 * share, 1)} %"


def part_percent(part: SharedPart) -> Callable[[float], str]:
    """How the shares of a part are written: in tenths of a percent where its interval is narrower than whole ones
    tell."""
    return shared_tenths if part.high - part.low < NARROW else shared_percent


def agreement_verdict(found: Agreement) -> str:
    """Do the two route alike? The number with its interval, its chance level and what can be concluded."""
    if not found.choices:
        return "Nothing was chosen in either: how far they agree cannot be told."
    tokens, sources = count_of(found.tokens, "token"), count_of(found.sources, "source")
    if found.is_complete:
        text = f"Identical: all {found.choices:,} choices of {tokens} are the same"
        if found.sources < 2:
            return f"{text}; from one source, how surely others are too cannot be told."
        return (
            f"{text}, in {sources}; at most {percent(found.most_sources_that_differ)} of such sources have a choice "
            "that differs (95 % certain)."
        )
    whole, first = found.all_choices, found.first_choice
    share = part_percent(whole)
    figures = f"{share(whole.value)} of {found.choices:,} choices are identical"
    chance = f"{percent(whole.chance)} by chance"
    of_first = f"{share(first.value)} of the first choices"
    if np.isnan(whole.low):
        return f"{figures} ({chance}), {of_first}; from one source, how surely cannot be told."
    interval = f"95 % interval {share(whole.low)} to {share(whole.high)} over {sources}"
    least = min(found.layers, key=lambda one: one.all_choices.value)
    where = f"; layer {least.layer} least, {share(least.all_choices.value)}" if len(found.layers) > 1 else ""
    if whole.low <= whole.chance:
        return (
            f"Not distinguishable from chance: {figures} ({interval}; {chance}), as two routers have in common that "
            "share nothing but their load."
        )
    return f"{figures} ({interval}; {chance}), {of_first}{where}."


def fine_tuning_verdict(found: Agreement, movers: pd.DataFrame) -> str:
    """What to conclude of a model and the one that was fine-tuned from it, of the same text.

    `movers`: the frame of metrics.routing_movers, whose null says which expert's share surely changed.
    """
    if found.is_complete:
        return "Fine-tuning left the routing of this text as it was: only what the experts do can have changed."
    whole, surely = found.all_choices, int((~movers["uncertain"].astype(bool)).sum())
    changed = f"{percent(1 - whole.value)} of the choices are other ones"
    if whole.low <= whole.chance:
        interval = f"95 % interval {percent(1 - whole.high)} to {percent(1 - whole.low)}"
        return (
            f"Not distinguishable from two models that have nothing in common but their load: {changed} ({interval}; "
            f"{percent(1 - whole.chance)} by chance). Either they are hardly a model and its fine-tuned copy, or "
            f"{count_of(found.sources, 'source')} are too few to tell."
        )
    if movers["p_adjusted"].isna().all():
        return f"After fine-tuning {changed}; whether the experts divide the work otherwise takes more sources to tell."
    if not surely:
        return (
            f"After fine-tuning {changed}, but no expert's share of any domain surely changed: single tokens go "
            "elsewhere, the division of work among the experts cannot be told from what it was."
        )
    return (
        f"After fine-tuning {changed}, and the experts divide the work otherwise: {surely:,} of {len(movers):,} shares "
        "of domains surely changed."
    )


AGREEMENT_TERMS = (
    Term(
        "agreement",
        "The part of all choices of experts that two routings of the same tokens have in common.",
        "Σ |S_t ∩ S'_t| / Σ max(|S_t|, |S'_t|)",
        "Σ n(e) n'(e) / T for two routers that share nothing but their load",
    ),
)
