"""In which order experts would be taken out of a model, and what the order goes by. Only tables: no model, no torch.

A ranking is made on tuning text. What it costs is told on other text (moe_core.evaluation.pruning): an order that is
judged by the text it was made from looks better than it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from moe_core.ablation_modes import Criterion
from moe_core.errors import UsageError


@dataclass(frozen=True)
class LayerRanking:
    """The experts of one layer, the least needed first."""

    layer: int
    """Counted from 0 over all layers."""
    experts: tuple[int, ...]
    """[E] each expert once."""
    scores: tuple[float | None, ...]
    """[E] of these experts, ascending; None of one that has no score, because no token chose it or by chance alone."""


@dataclass(frozen=True)
class ExpertRanking:
    """The order in which a model's experts would go, a layer at a time as much as any other."""

    by: Criterion
    layers: tuple[LayerRanking, ...]
    top_k: int
    """Experts a token is sent to: so many stay in each layer."""
    seed: int | None = None
    """Of a random order."""

    @property
    def num_experts(self) -> int:
        """E, in each layer."""
        return len(self.layers[0].experts)

    def removed(self, count: int) -> tuple[tuple[int, int], ...]:
        """(layer, expert) of the `count` least needed experts of each layer, the layers ascending.

        Raises UsageError where fewer than top_k experts would be left.
        """
        check_removal(count, self.num_experts, self.top_k)
        return tuple((one.layer, expert) for one in self.layers for expert in one.experts[:count])


def check_removal(count: int, num_experts: int, top_k: int) -> None:
    """Raise UsageError unless `count` of a layer's experts can go and each token still finds top_k of them."""
    if not 0 <= count <= num_experts - top_k:
        raise UsageError(
            f"{count} of {num_experts} experts cannot be taken out of each layer: a token is sent to {top_k}; expected "
            f"0 to {num_experts - top_k}"
        )


def ranking_by_scores(by: Criterion, scores: pd.DataFrame, top_k: int) -> ExpertRanking:
    """Order the experts of each layer by `scores`: layer, expert, score, where a high one means "needed".

    An expert without a score (NaN: nobody chose it) goes first. Of equals the lower number goes first.
    Raises UsageError where layers have unequal numbers of experts.
    """
    layers = []
    for layer, own in scores.groupby("layer", sort=True):
        ordered = own.sort_values(["score", "expert"], na_position="first", kind="stable")
        known = [None if np.isnan(score) else float(score) for score in ordered["score"].astype(float)]
        layers.append(LayerRanking(int(str(layer)), tuple(int(expert) for expert in ordered["expert"]), tuple(known)))
    if len({len(one.experts) for one in layers}) != 1:
        raise UsageError("the layers' numbers of ranked experts differ; expected a score for each expert of each layer")
    return ExpertRanking(by, tuple(layers), top_k)


def random_ranking(layers: Sequence[int], num_experts: int, top_k: int, seed: int) -> ExpertRanking:
    """A shuffle of each layer's experts, the same for the same seed."""
    rng = np.random.default_rng(seed)
    shuffled = (tuple(int(expert) for expert in rng.permutation(num_experts)) for _ in layers)
    rankings = tuple(
        LayerRanking(layer, experts, (None,) * num_experts) for layer, experts in zip(layers, shuffled, strict=True)
    )
    return ExpertRanking("random", rankings, top_k, seed)
