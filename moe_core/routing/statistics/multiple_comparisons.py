"""Many tests at once: adjusted p-values, and p-values of very many cells from few draws of the null."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moe_core.routing.trace.shares import ratio
from moe_core.routing.trace.types import BoolArray, Float64Array

SIGNIFICANCE = 0.05
"""p-value, adjusted for how many tests there are, up to which a value counts as found."""
MIN_EXPECTED = 5.0
"""Expected tokens below which a cell is not tested (Cochran 1954): a single one would be a finding."""

_STEPS = 200  # of a standard deviation
_LARGEST = 100  # standard deviations told apart


def adjust(p_values: Float64Array) -> Float64Array:
    """Benjamini-Hochberg adjusted p-values: at most this share of what one calls significant is luck.

    NaN stays NaN. As scipy.stats.false_discovery_control, whose import takes a second that the dashboard has not.
    """
    adjusted = np.full(p_values.shape, np.nan)
    order = np.argsort(p_values)[: int((~np.isnan(p_values)).sum())]  # NaN sorts last
    inflated = p_values[order] * len(order) / np.arange(1, len(order) + 1)
    adjusted[order] = np.minimum.accumulate(inflated[::-1])[::-1].clip(max=1.0)
    return adjusted


class Pool:
    """How far each cell is from its null, in standard deviations, held against how far all cells' draws are from it.

    200 draws of one cell give no p-value below 1/201, which no Benjamini-Hochberg over hundreds of cells survives; 200
    draws of hundreds of cells do. The shape of the distribution is taken to be the same for all cells, not its width
    (as in the significance analysis of microarrays; Tusher, Tibshirani and Chu 2001, 10.1073/pnas.091062498).
    """

    def __init__(self) -> None:
        self._histogram = np.zeros(_STEPS * _LARGEST + 2, dtype=np.int64)
        self._distances: list[Float64Array] = []

    def add(self, values_PC: npt.NDArray[np.number], tested_C: BoolArray) -> None:
        """C more cells: [1+P,C] the measure observed, then in P draws; cells not `tested_C` have p NaN."""
        values = values_PC.astype(np.float64)
        # The observed value is one of the draws if there is nothing to find: mean and deviation treat all alike.
        deviation_C = values.std(axis=0)
        self.add_distances(ratio(np.abs(values - values.mean(axis=0)), deviation_C), tested_C & (deviation_C > 1e-12))

    def add_distances(self, away_PC: Float64Array, tested_C: BoolArray) -> None:
        """C more cells: [1+P,C] how many standard deviations of its null the observed value and P draws are away."""
        observed_C = np.where(tested_C, away_PC[0], np.nan)
        self._distances.append(observed_C)
        # Rounded up here and down there: never a p-value that is too small.
        steps = np.minimum(np.ceil(away_PC[1:, tested_C] * _STEPS - 1e-6), len(self._histogram) - 1).astype(np.int64)
        self._histogram += np.bincount(steps.reshape(-1), minlength=len(self._histogram))

    def p_values(self) -> Float64Array:
        """[all C] two-sided p, (1 + #{draws of all cells as far away}) / (1 + draws), in the order they were added."""
        observed = np.concatenate(self._distances)
        farther = self._histogram[::-1].cumsum()[::-1]
        known = ~np.isnan(observed)
        steps = np.minimum(np.floor(observed[known] * _STEPS), len(farther) - 1).astype(np.int64)
        p_values = np.full(observed.shape, np.nan)
        p_values[known] = (1 + farther[steps]) / (1 + farther[0])
        return p_values
