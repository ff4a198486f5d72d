"""Arrays from outside, checked and brought into the types of a RoutingTrace; errors name the value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_core.errors import TraceError

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
    array = np.asarray(values)
    if not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array):
        raise TraceError(f"{name} is {describe(array)}; expected real numbers")
    with np.errstate(over="ignore"):  # an overflow becomes infinity, which construction refuses by name
        return array.astype(dtype, copy=False)


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
