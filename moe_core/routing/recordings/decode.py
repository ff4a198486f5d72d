"""The ways in which an array of expert ids travels in JSON, decoded; whatever is wrong is named with its place."""

from __future__ import annotations

import base64
import binascii
import io
from typing import Any

import numpy as np

from moe_core.errors import TraceError
from moe_core.routing.recordings.pieces import NPY_FAULTS, Integers, describe, reason


def experts_array(value: Any, where: str) -> Integers | None:
    """[tokens, layers, k] from nested lists, from the base64 text of a .npy file, or from base64 with dtype and shape.

    None stays None. Raises TraceError with `where` and, for lists, the row, layer and slot.
    """
    if value is None or isinstance(value, np.ndarray):
        return value
    if isinstance(value, str):
        experts: Integers = _npy(value, where)
        return experts
    if isinstance(value, dict):
        try:
            return raw_integers(value["data"], str(value["dtype"]), where).reshape(value["shape"])
        except (KeyError, TypeError, ValueError) as error:
            raise TraceError(f"{where}: {reason(error)}; expected base64 data with dtype and shape") from None
    return _nested(value, where)


def numbers_array(value: Any, where: str) -> Any:
    """The array in the base64 text of a .npy file; anything else as it is."""
    return _npy(value, where) if isinstance(value, str) else value


def raw_integers(text: str, dtype: str, where: str) -> Integers:
    """[N] numbers from the base64 text of their bytes."""
    content = base64_bytes(text, where)
    kind = np.dtype(dtype)
    if not np.issubdtype(kind, np.integer) or len(content) % kind.itemsize:
        raise TraceError(f"{where}: {len(content):,} bytes of {dtype}; expected whole numbers of that type")
    flat: Integers = np.frombuffer(content, dtype=kind)
    return flat


def base64_bytes(text: str, where: str) -> bytes:
    """The bytes of a base64 text."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise TraceError(f"{where}: no base64 ({reason(error)}); expected it as the server sent it") from None


def id_list(value: Any, where: str) -> Integers | None:
    """[T] vocabulary ids from a list, None from None."""
    if value is None:
        return None
    ids = np.asarray(value)
    if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
        raise TraceError(f"{where} is {describe(ids)}; expected a list of whole numbers")
    return ids.astype(np.int64)


def _npy(text: str, where: str) -> Any:
    content = base64_bytes(text, where)
    if not content.startswith(b"\x93NUMPY"):
        raise TraceError(
            f"{where}: base64 without a .npy header, as SGLang sends it; expected it within meta_info or sglext"
        )
    try:
        return np.load(io.BytesIO(content), allow_pickle=False)
    except NPY_FAULTS as error:  # a shape that its bytes do not fill
        raise TraceError(f"{where}: the .npy file in it is damaged ({reason(error)}); save it again") from None


def _nested(value: Any, where: str) -> Integers:
    try:
        array = np.array(value)
    except ValueError:  # lists of different lengths
        array = np.array(None)
    if array.ndim == 3 and np.issubdtype(array.dtype, np.integer):
        return array
    _raise_first_fault(value, where)
    return np.zeros((0, 1, 1), dtype=np.int64)  # no rows at all


def _raise_first_fault(value: Any, where: str) -> None:
    """Name the first place where lists [tokens][layers][k] of whole numbers are something else."""
    if not isinstance(value, list):
        raise TraceError(f"{where} is {type(value).__name__}; expected lists [tokens][layers][k]")
    for row, layers in enumerate(value):
        if not isinstance(layers, list) or not all(isinstance(slots, list) for slots in layers):
            raise TraceError(f"{where}, row {row} is no list of lists; expected [layers][k]")
        if len(layers) != len(value[0]):
            raise TraceError(f"{where}, row {row} has {len(layers)} layers; expected {len(value[0])} as row 0")
        for layer, slots in enumerate(layers):
            place = f"{where}, row {row}, layer {layer}"
            if len(slots) != len(value[0][0]):
                raise TraceError(f"{place} has {len(slots)} slots; expected {len(value[0][0])} as row 0, layer 0")
            for slot, expert in enumerate(slots):
                if not isinstance(expert, int) or isinstance(expert, bool):
                    raise TraceError(f"{place}, slot {slot}: {repr(expert)[:40]}; expected a whole number")
