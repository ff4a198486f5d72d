"""Shares and entropies of counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from moe_core.routing.trace.types import Float64Array

_Numbers = npt.NDArray[np.number[Any]] | float


def entropy(counts: npt.NDArray[np.number[Any]], axis: int = -1) -> Float64Array:
    """Shannon entropy in nats of the distribution in proportion to `counts` along `axis`; NaN where they sum to 0."""
    total = counts.sum(axis=axis, keepdims=True, dtype=np.float64)
    share = np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)
    terms = share * np.log(np.where(share > 0, share, 1.0))
    result: Float64Array = -terms.sum(axis=axis)
    return np.maximum(result, 0.0)  # -0.0 reads badly; keeps NaN


def mutual_information(counts: npt.NDArray[np.number[Any]]) -> Float64Array:
    """I(row; column) in nats of joint counts [...,R,C]: H(row) + H(column) - H(row, column); NaN where empty."""
    joint = entropy(counts.reshape(*counts.shape[:-2], -1))
    information: Float64Array = entropy(counts.sum(axis=-1)) + entropy(counts.sum(axis=-2)) - joint
    return np.maximum(information, 0.0)  # rounding may reach -1e-16


def ratio(numerator: _Numbers, denominator: _Numbers) -> Float64Array:
    """numerator / denominator, NaN where the denominator is 0: a share of nothing is unknown, not an error."""
    top, bottom = np.broadcast_arrays(np.asarray(numerator, np.float64), np.asarray(denominator, np.float64))
    result: Float64Array = np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom != 0)
    return result


def normalised(weights: npt.NDArray[np.number[Any]], empty: float = np.nan) -> Float64Array:
    """Divide by the sum along the last axis; `empty` where that is 0."""
    total = np.broadcast_to(np.einsum("...e->...", weights, dtype=np.float64)[..., None], weights.shape)
    result: Float64Array = np.divide(weights, total, out=np.full(weights.shape, empty), where=total > 0)
    return result
