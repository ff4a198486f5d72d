"""Keep lists of a model: which experts stay by what it does on tuning text, and by which order the others go."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import special

from moe_core.ablation_modes import Criterion
from moe_core.data.tokens import TokenDataset
from moe_core.errors import UsageError
from moe_core.evaluation.ablation import ablation_map
from moe_core.evaluation.expert_ranking import ExpertRanking, LayerRanking, random_ranking
from moe_core.evaluation.pruning import TUNING_TEXT
from moe_core.inference.expert_outputs import saliency_by_source
from moe_core.inference.protocol import LanguageModel
from moe_core.progress import Progress
from moe_core.routing.measures.keep_list import KeepList, list_by_saliency, listed_experts
from moe_core.routing.statistics.intervals import TAILS
from moe_core.routing.trace.types import Float64Array
from moe_core.runs.folder import RunFolder


def keep_lists_of(
    model: LanguageModel,
    tuning: TokenDataset,
    by: Sequence[Criterion],
    keep: int,
    *,
    domain: str | None = None,
    run: RunFolder | None = None,
    progress: Progress | None = None,
) -> tuple[KeepList, ...]:
    """The keep list of each criterion; that of random is the first of random_orders.

    `domain`: that domain's text alone decides; `run` keeps the effects of single experts.
    Raises UsageError for a domain without text, or experts that cannot be seen alone.
    """
    text = tuning if domain is None else text_of_domain(tuning, domain)
    sources = len(np.unique(text.source_ids))
    shape = len(model.moe_layers), model.num_experts
    sums = saliency_by_source(model, text, progress) if {"reap", "load"} & set(by) else None
    found: list[KeepList] = []
    for one in by:
        if one in ("reap", "load"):
            assert sums is not None
            found.append(list_by_saliency(sums, keep, by=one, domain=domain))
            continue
        nothing_LE = np.full(shape, np.nan)
        score_LE, bounds = nothing_LE, (nothing_LE, nothing_LE)
        if one == "effect":
            score_LE, bounds = _effects(model, text, run if domain is None else None, progress)
        else:
            score_LE = np.array([np.argsort(own.experts) for own in random_orders(model, 1)[0].layers], np.float64)
        found.append(
            listed_experts(
                one, tuple(model.moe_layers), keep, score_LE, bounds, None, read=(len(text), sources), domain=domain
            )
        )
    return tuple(found)


def ranking_of(found: KeepList, top_k: int) -> ExpertRanking:
    """The list as an order that takes out what does not stay: those experts first."""
    layers = []
    for layer in sorted({one.layer for one in found.experts}):
        own = sorted(
            (one for one in found.experts if one.layer == layer),
            key=lambda one: (one.keep, -np.inf if one.score is None else one.score, one.expert),
        )
        layers.append(LayerRanking(layer, tuple(one.expert for one in own), tuple(one.score for one in own)))
    return ExpertRanking(found.by, tuple(layers), top_k)


def random_orders(model: LanguageModel, orders: int) -> list[ExpertRanking]:
    """Random orders, the chance level of any other."""
    return [random_ranking(model.moe_layers, model.num_experts, model.top_k, seed) for seed in range(orders)]


def text_of_domain(text: TokenDataset, domain: str) -> TokenDataset:
    """The documents of one domain. Raises UsageError where there is none."""
    if domain not in text.domains:
        raise UsageError(f"there is no text of domain {domain!r}; expected one of {', '.join(text.domains)}")
    own = text.domain_ids == text.domains.index(domain)
    if not own.any():
        raise UsageError(f"the text that puts experts in order has none of domain {domain!r}; bring some with --data")
    bytes_of = np.where(np.arange(len(text.domains)) == text.domains.index(domain), text.domain_bytes, 0)
    return TokenDataset(
        text.token_ids[own], text.document_ids[own], text.source_ids[own], text.domain_ids[own], text.positions[own],
        text.domains, bytes_of, None if text.token_bytes is None else text.token_bytes[own],
    )  # fmt: skip


def _effects(
    model: LanguageModel, text: TokenDataset, run: RunFolder | None, progress: Progress | None
) -> tuple[Float64Array, tuple[Float64Array, Float64Array]]:
    """[L,E] rise of loss without the expert, and its bounds for all at once: the interval of each, made wider as if it
    were normal."""
    effects = ablation_map(model, text, mode="reroute", run=run, text=TUNING_TEXT, progress=progress)
    own = effects[effects["domain"] == "all"].sort_values(["layer", "expert"])
    shape = len(model.moe_layers), model.num_experts
    value_LE, low_LE, high_LE = (
        own[name].to_numpy(np.float64).reshape(shape) for name in ("delta_nats", "low", "high")
    )
    wider = special.ndtri(1 - TAILS[0] / value_LE.size) / special.ndtri(TAILS[1])
    return value_LE, (value_LE - wider * (value_LE - low_LE), value_LE + wider * (high_LE - value_LE))
