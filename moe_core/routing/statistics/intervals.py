"""Student's t: what a mean of few values is known to."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import special

CONFIDENCE = 0.95


def mean_error(values: npt.NDArray[np.float64]) -> float:
    """Standard error of the mean of [n] values; NaN of fewer than two."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def interval(mean: float, error: float, freedom: int) -> tuple[float, float]:
    """95 % interval of a mean with so many degrees of freedom; NaN without any."""
    if freedom < 1:
        return math.nan, math.nan
    half = float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
    return mean - half, mean + half


def two_sided_p(difference: float, error: float, freedom: int, n: int) -> float:
    """How often a difference of nothing would look this large; NaN without degrees of freedom.

    Without any spread, what flipping the sign of all n differences alike gives.
    """
    if freedom < 1:
        return math.nan
    if error <= 1e-12 * max(1.0, abs(difference)):
        return 1.0 if abs(difference) < 1e-12 else 2.0 ** (1 - n)
    return float(2 * special.stdtr(freedom, -abs(difference / error)))
