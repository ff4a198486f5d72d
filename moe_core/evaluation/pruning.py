"""How many experts can go? Loss against experts taken out, in one order or another, and against experts a token.

Nothing is cut out of the weights: experts that are gone are masked and the router chooses again among the others, as it
would if they were not there (mode "reroute" of moe_core.routing.intervene). From each layer as many go as from any
other, as in REAP (arXiv:2510.13999), and never so many that fewer than top_k stay. Null experts stay: they have no
weights to save, and a token that loses one passes another expert instead.

The orders are made on tuning text, the loss is of other text; no source is in both. All curves are of the same tokens,
so that they are compared in pairs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from moe_core.ablation_modes import CRITERIA, Criterion
from moe_core.errors import RunError, UsageError
from moe_core.evaluation.ablation import ablation_map, analysis_of
from moe_core.evaluation.effects import SourceBootstrap
from moe_core.evaluation.expert_ranking import (
    ExpertRanking,
    check_removal,
    random_ranking,
    ranking_by_scores,
)
from moe_core.evaluation.pruning_text import PruningText, text_of_run
from moe_core.inference.expert_outputs import expert_saliency
from moe_core.inference.open import language_model
from moe_core.inference.protocol import LanguageModel, Loaded
from moe_core.inference.scoring import losses_of
from moe_core.progress import Progress, silent
from moe_core.routing import Intervention, intervene
from moe_core.routing.measures.pruning import PruningCurves, PruningPair, PruningPoint, TopKPoint
from moe_core.routing.statistics.intervals import student_p
from moe_core.routing.statistics.multiple_comparisons import adjust
from moe_core.routing.statistics.sign_flips import flipped_sums, sign_patterns
from moe_core.runs.pruning_file import KeptCurves, write_curves

if TYPE_CHECKING:
    from moe_core.data.tokens import TokenDataset
    from moe_core.routing.trace.types import Float32Array, Float64Array
    from moe_core.runs.folder import RunFolder

ORDERS = 5
"""Random orders: a criterion is held against how far they lie apart, which two or three would not tell."""
TUNING_TEXT = "tuning text"
"""Under this name the effects of single experts on the tuning text are kept with a run."""
STAGE = "reading with fewer experts"
MOST_POINTS = 12
"""A curve has no more points than this."""
MOST_EFFECTS = 512
"""More experts are not switched off one by one unless it is asked for: each takes a reading of the tuning text."""
SIGN_FLIPS = 9999


@dataclass(frozen=True)
class CurvePlan:
    """What is measured, decided beforehand so that its cost can be told."""

    by: tuple[Criterion, ...]
    removed: tuple[int, ...]
    """Experts taken out of each layer, ascending, at least 1."""
    top_ks: tuple[int, ...]
    """Experts for each token, ascending."""
    orders: int
    """Random orders."""

    @property
    def readings(self) -> int:
        """How often the scored text is read."""
        curves = len([by for by in self.by if by != "random"]) + (self.orders if "random" in self.by else 0)
        return 1 + curves * len(self.removed) + len(self.top_ks)


def plan_curves(
    model: LanguageModel,
    by: Sequence[Criterion] | None = None,
    removed: Sequence[int] | None = None,
    orders: int = ORDERS,
) -> CurvePlan:
    """What `pruning_curves` measures of this model; None = all criteria that are affordable, all numbers of experts, or
    MOST_POINTS of them where there are more. Raises UsageError for what the model cannot do."""
    if not model.moe_layers:
        raise UsageError(f"{model.name} is dense; expected a model with experts to take out")
    if orders < 2:
        raise UsageError(f"orders = {orders} random orders tell nothing of their spread; expected 2 or more")
    E, K = model.num_experts - model.null_experts, model.top_k
    affordable = len(model.moe_layers) * E <= MOST_EFFECTS
    chosen = tuple(one for one in CRITERIA if one in by) if by else tuple(
        one for one in CRITERIA if one != "effect" or affordable
    )  # fmt: skip
    if unknown := sorted(set(by or ()) - set(CRITERIA)):
        raise UsageError(f"criterion {unknown[0]!r} is unknown; expected some of {', '.join(CRITERIA)}")
    counts = _spread(1, E - K) if removed is None else sorted(set(removed) - {0})
    for count in counts:
        check_removal(count, E, K)
    return CurvePlan(chosen, tuple(counts), tuple(_top_ks(model.num_experts, K)), orders)


def _spread(first: int, last: int) -> list[int]:
    """All whole numbers from `first` to `last`, or MOST_POINTS of them, both ends among them."""
    return sorted({round(value) for value in np.linspace(first, last, min(last - first + 1, MOST_POINTS))})


def _top_ks(num_experts: int, top_k: int) -> list[int]:
    """Every number of experts a token can have, or where there are many, doublings and the model's own neighbours."""
    if num_experts <= MOST_POINTS:
        return list(range(1, num_experts + 1))
    doublings = {2**power for power in range(num_experts.bit_length())}
    near = {top_k + change for change in (-2, -1, 0, 1, 2)}
    return sorted(k for k in doublings | near | {num_experts} if 1 <= k <= num_experts)


def pruning_curves(
    loaded: Loaded | LanguageModel,
    text: PruningText | None = None,
    *,
    plan: CurvePlan | None = None,
    rankings: Sequence[ExpertRanking] | None = None,
    run: RunFolder | None = None,
    progress: Progress | None = None,
) -> KeptCurves:
    """Measure what `plan` says (see plan_curves), and keep it with `run` where one is given.

    `text` None = the run's own, which only a run has. The orders by REAP and by load come from expert_saliency, that by
    effect from ablation_map with mode reroute, all on text.tuning; the losses are of text.scored. `progress` may raise
    to end it: effects of single experts that were kept with the run are not computed again. `rankings`: the orders of
    `plan`, where they are at hand.
    Raises UsageError when the model cannot do it, RunError when its loss is not finite or the disk refuses.
    """
    began, report, model = time.time(), progress or silent, language_model(loaded)
    asked = plan or plan_curves(model)
    read = text or text_of_run(loaded)
    report("tokenising", 0, 1)
    scoring = _Scoring(model, read.scored, asked.readings, report)
    if rankings is None:
        rankings = rankings_of(model, read.tuning, asked, run=run, progress=report)
    curves = _curves(scoring, rankings, asked)
    of = analysis_of(loaded, read.scored, read.name, "reroute")
    tuned = analysis_of(loaded, read.tuning, TUNING_TEXT)
    kept = KeptCurves(of, tuned.fingerprint, len(read.tuning), began, time.time() - began, curves)
    if run is not None:
        write_curves(run, kept)
    return kept


def rankings_of(
    model: LanguageModel,
    tuning: TokenDataset,
    plan: CurvePlan,
    *,
    run: RunFolder | None = None,
    progress: Progress | None = None,
) -> list[ExpertRanking]:
    """The orders of `plan.by`, of "random" as many as plan.orders, of experts that compute; `run` keeps the effects of
    single experts."""
    E = model.num_experts - model.null_experts
    found: list[ExpertRanking] = []
    observed = expert_saliency(model, tuning, progress) if {"reap", "load"} & set(plan.by) else pd.DataFrame()
    for by in plan.by:
        if by == "random":
            found += [random_ranking(model.moe_layers, E, model.top_k, seed) for seed in range(plan.orders)]
        elif by == "effect":
            effects = ablation_map(
                model, tuning, experts=range(E), mode="reroute", run=run, text=TUNING_TEXT, progress=progress
            )
            scores = effects[effects["domain"] == "all"].rename(columns={"delta_nats": "score"})
            found.append(ranking_by_scores(by, scores, model.top_k))
        else:
            scores = observed.rename(columns={"reap" if by == "reap" else "tokens": "score"})
            found.append(ranking_by_scores(by, scores[scores["expert"] < E], model.top_k))
    return found


class _Scoring:
    """The scored text and its loss as the model is; how the loss of each source changes under an intervention."""

    def __init__(self, model: LanguageModel, dataset: TokenDataset, readings: int, report: Progress) -> None:
        self._model, self._dataset, self._readings, self._report = model, dataset, readings, report
        self._done = 0
        self.bootstrap = SourceBootstrap(dataset.source_ids, dataset.domain_ids, dataset.domains, dataset.positions > 0)
        self.model, self.domains = model, dataset.domains
        self.before_T = self._losses(Intervention())
        scored_T = self.before_T[dataset.positions > 0]
        if not np.isfinite(scored_T).all():
            raise RunError(f"the loss of {model.name} is not finite: its weights are damaged; get them again")
        self.loss_nats = float(scored_T.mean(dtype=np.float64))

    def change(self, intervention: Intervention) -> Float64Array:
        """[N] sum of the change of loss over each source's tokens."""
        return self.bootstrap.sums(self._losses(intervention) - self.before_T)

    def _losses(self, intervention: Intervention) -> Float32Array:
        """[T] nats; 0 where nothing is scored."""
        tokens = len(self._dataset)

        def report(read: int) -> None:
            self._report(STAGE, self._done * tokens + min(read, tokens), self._readings * tokens)

        with intervene(self._model.model, intervention):
            losses_T = losses_of(self._model, self._dataset, self._model.context_window, report)
        self._done += 1
        return losses_T


def _curves(scoring: _Scoring, rankings: Sequence[ExpertRanking], plan: CurvePlan) -> PruningCurves:
    model = scoring.model
    points: list[PruningPoint] = []
    pairs: list[PruningPair] = []
    for removed in plan.removed:
        sums: dict[str, list[Float64Array]] = {}
        for ranking in rankings:
            gone = Intervention(ablate=ranking.removed(removed), mode="reroute")
            sums.setdefault(ranking.by, []).append(scoring.change(gone))
        for by, sums_of_orders in sums.items():
            points += _points(scoring.bootstrap, by, removed, sums_of_orders)
        names = list(sums)
        pairs += [
            _pair(scoring.bootstrap, (one, other), removed, sums[one], sums[other])
            for place, one in enumerate(names)
            for other in names[place + 1 :]
        ]
    top_ks = [
        TopKPoint(top_k, **_figures(row))
        for top_k in plan.top_ks
        for row in scoring.bootstrap.means_of_sums(scoring.change(Intervention(top_k=top_k)))
    ]
    orders = plan.orders if "random" in plan.by else 0
    return PruningCurves(
        tuple(model.moe_layers), model.num_experts - model.null_experts, model.top_k, orders, scoring.loss_nats,
        tuple(points), tuple(_adjusted(pairs)), tuple(top_ks), model.null_experts,
    )  # fmt: skip


def _figures(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("domain", "tokens", "delta_nats", "low", "high")}


def _points(
    bootstrap: SourceBootstrap, by: str, removed: int, sums_of_orders: Sequence[Float64Array]
) -> Iterator[PruningPoint]:
    """A point for all text and one for each domain; of several random orders their mean, and how far they reach."""
    mean_rows = bootstrap.means_of_sums(np.mean(sums_of_orders, axis=0))
    rows_of_orders = [bootstrap.means_of_sums(sums_N) for sums_N in sums_of_orders]
    for place, row in enumerate(mean_rows):
        each = [rows[place]["delta_nats"] for rows in rows_of_orders]
        yield PruningPoint(by, removed, **_figures(row), lowest=min(each), highest=max(each))


def _pair(
    bootstrap: SourceBootstrap,
    names: tuple[str, str],
    removed: int,
    one: Sequence[Float64Array],
    other: Sequence[Float64Array],
) -> PruningPair:
    """`one` and `other` [orders][N] sums of each source."""
    difference_N = np.mean(one, axis=0) - np.mean(other, axis=0)
    total = bootstrap.means_of_sums(difference_N)[0]
    p = max(_sign_flip_p(difference_N), _spread_p(one, other))
    return PruningPair(*names, removed, total["delta_nats"], total["low"], total["high"], p, p)


def _sign_flip_p(difference_N: Float64Array) -> float:
    """Two-sided p of the sum over sources: is the difference one of this text, or of its sources by accident?"""
    signs = sign_patterns(len(difference_N), SIGN_FLIPS, np.random.default_rng(0))
    sums_P = np.abs(flipped_sums(difference_N[:, None], signs)[:, 0])
    return float((sums_P >= sums_P[0] * (1 - 1e-12)).mean())


def _spread_p(one: Sequence[Float64Array], other: Sequence[Float64Array]) -> float:
    """Two-sided p that a criterion is one more random order, by Student's t for a new observation; 0 between two
    criteria, which are no draws."""
    if len(one) == len(other):
        return 0.0
    orders, single = (one, other) if len(one) > len(other) else (other, one)
    totals = np.array([sums_N.sum() for sums_N in orders])
    error = float(totals.std(ddof=1)) * math.sqrt(1 + 1 / len(totals))
    return student_p(float(single[0].sum() - totals.mean()), error, len(totals) - 1, len(totals))


def _adjusted(pairs: Sequence[PruningPair]) -> Iterator[PruningPair]:
    if not pairs:
        return
    for pair, p in zip(pairs, adjust(np.array([pair.p_value for pair in pairs])), strict=True):
        yield replace(pair, p_adjusted=float(p))
