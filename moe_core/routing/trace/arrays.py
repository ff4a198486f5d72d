"""Arrays from outside, checked and brought into the types of a RoutingTrace; errors name the value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_core.errors import TraceError

HALF_MAX = float(np.finfo(np.float16).max)
_SHOWN = 8


def integers(name: str, values: npt.ArrayLike, dtype: type[np.signedinteger[Any]]) -> npt.NDArray[Any]:
    """`values` in an integer type that holds each of them. Raises TraceError for others."""
    array = np.asarray(values)
    if not np.issubdtype(array.dtype, np.integer):
        raise TraceError(f"{name} is {describe(array)}; expected whole numbers")
    limits = np.iinfo(dtype)
    if array.size and (array.min() < limits.min or array.max() > limits.max):
        # A plain cast would wrap around and could land in the valid range.
        raise TraceError(f"{name} reaches from {array.min()} to {array.max()}; expected {limits.min} to {limits.max}")
    return array.astype(dtype, copy=False)


def floats(name: str, values: npt.ArrayLike, dtype: type[np.generic]) -> npt.NDArray[Any]:
    """`values` in a type of real numbers. Raises TraceError for others."""
    with np.errstate(over="ignore"):  # an overflow becomes infinity, which construction refuses by name
        return _real_numbers(name, values).astype(dtype, copy=False)


def half_precision_logits(name: str, values: npt.ArrayLike, score_function: str) -> npt.NDArray[np.float16]:
    """Logits [..., E] as float16, whose numbers end at 65,504; -inf, an expert that is masked, stays.

    A row with a larger one is shifted so that its largest is 0 if the score function is the softmax, which sees
    differences alone. What still lies beyond the range is set to its end: as far off, a probability is 0 or 1 anyway.
    NaN and +inf stay, for construction to refuse by name. Raises TraceError for what is no real number.
    """
    logits = _real_numbers(name, values)
    with np.errstate(over="ignore"):
        half: npt.NDArray[np.float16] = logits.astype(np.float16, copy=False)
    # Not by what became infinite: the first numbers behind the end are rounded to it.
    beyond = (
        np.isfinite(logits) & ((logits > HALF_MAX) | (logits < -HALF_MAX))
        if half is not logits
        else np.zeros(half.shape, bool)
    )
    if beyond.any():
        rows = beyond.any(axis=-1)
        wide = logits[rows].astype(np.float64)
        finite = np.isfinite(wide)
        if score_function == "softmax":
            largest = np.where(finite, wide, -np.inf).max(axis=-1, keepdims=True)
            wide = np.where(finite & (largest > HALF_MAX), wide - largest, wide)
        half[rows] = np.where(finite, wide.clip(-HALF_MAX, HALF_MAX), wide)
    return half


def _real_numbers(name: str, values: npt.ArrayLike) -> npt.NDArray[Any]:
    array = np.asarray(values)
    if not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array):
        raise TraceError(f"{name} is {describe(array)}; expected real numbers")
    return array


def layered(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """One layer [T,K] as layers [1,T,K]."""
    return array[None] if array.ndim == 2 else array


def describe(value: object) -> str:
    """An array by type and shape, for errors."""
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__


def some(values: Sequence[object]) -> str:
    """The first of them, for errors."""
    shown = ", ".join(repr(value) for value in values[:_SHOWN])
    return f"[{shown}{', ...' if len(values) > _SHOWN else ''}]"
