"""The head of a GGUF file: its values and where its tensors lie. Numbers are read only when asked for.

A reader of our own, in place of the library `gguf`: that one keeps every piece of a model's vocabulary as an array of
its own, and a file of 100 bytes that announces an array of 2^40 numbers keeps it busy for ever (docs/decisions/0022).
Here arrays are passed over, lengths are held against the bytes that are there, and a file that is not wanted is left
at the first value that says so.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from moe_core.errors import TraceError, shortened
from moe_core.routing.recordings.pieces import reason

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_ENTRIES = 2**20
"""Values, tensors, or texts of an array: models have some 300,000 texts in their vocabularies."""
MOST_TEXT = 2**16
MOST_DIMENSIONS = 4
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""The types of values that are one number, as struct writes them."""
_TEXT, _ARRAY = 8, 9
FLOAT32 = 0

Value = int | float | bool | str


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies."""

    shape: tuple[int, ...]
    """The axis that varies slowest first, as numpy has it."""
    kind: int
    """ggml's number of the type; 0 = float32."""
    offset: int
    """From the beginning of the file."""


@dataclass
class GgufFile:
    """What the head of a file says."""

    path: Path
    values: dict[str, Value] = field(default_factory=dict)
    """Numbers and texts by key; arrays are left out."""
    tensors: dict[str, GgufTensor] = field(default_factory=dict)

    def array(self, name: str) -> npt.NDArray[np.float32]:
        """The numbers of a float32 tensor. Raises TraceError for another type, and where the file ends before them."""
        tensor = self.tensors[name]
        where = f"{str(self.path)!r}, tensor {name!r}"
        if tensor.kind != FLOAT32:
            raise TraceError(f"{where} is of ggml's type {tensor.kind}; expected {FLOAT32}, float32")
        size = 4 * math.prod(tensor.shape)
        try:
            if tensor.offset + size > self.path.stat().st_size:
                raise TraceError(f"{where} ends beyond the file; copy the file again")
            with self.path.open("rb") as file:
                file.seek(tensor.offset)
                content = file.read(size)
        except OSError as error:
            raise TraceError(f"cannot read {str(self.path)!r}: {reason(error)}; check the path") from None
        return np.frombuffer(content, "<f4").reshape(tensor.shape)


def read_gguf_head(path: Path, check: Callable[[str, Value], None]) -> GgufFile:
    """Read the head of a file. `check` sees each value as it is read; where it raises TraceError no more is read."""
    found = GgufFile(path)
    try:
        with path.open("rb") as file:
            head = _Head(file, path.stat().st_size, repr(str(path)))
            if head.take(4) != MAGIC:
                raise head.fault("it does not begin with GGUF; expected a GGUF file")
            version = head.number("I")
            if version not in VERSIONS:
                raise head.fault(f"version {version}; expected {VERSIONS[0]} or {VERSIONS[-1]}, little-endian")
            tensors, values = head.count(16, "tensors"), head.count(12, "values")
            for _ in range(values):
                key = head.text()
                value = head.value(head.number("I"))
                if value is not None:
                    found.values[key] = value
                    check(key, value)
            for _ in range(tensors):
                name = head.text()
                if name in found.tensors:
                    raise head.fault(f"the tensor {name[:60]!r} a second time; expected each name once")
                found.tensors[name] = head.tensor()
            _place_tensors(found, head)
    except OSError as error:
        raise TraceError(f"cannot read {str(path)!r}: {reason(error)}; check the path") from None
    return found


def _place_tensors(found: GgufFile, head: _Head) -> None:
    """Tensors are placed from the first multiple of the alignment on that lies behind the head."""
    alignment = found.values.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 2**20:
        raise head.fault(f"general.alignment is {shortened(alignment)}; expected a power of 2")
    start = -(-head.position // alignment) * alignment
    for name, tensor in found.tensors.items():
        found.tensors[name] = GgufTensor(tensor.shape, tensor.kind, start + tensor.offset)


class _Head:
    """A file that is read from its beginning, every length held against what is left of it."""

    def __init__(self, file: BinaryIO, size: int, where: str) -> None:
        self.file = file
        self.size = size
        self.where = where
        self.position = 0

    def fault(self, message: str) -> TraceError:
        return TraceError(f"{self.where}, byte {self.position}: {message}")

    def take(self, count: int) -> bytes:
        self.need(count)
        content = self.file.read(count)
        self.position += count
        return content

    def skip(self, count: int) -> None:
        self.need(count)
        self.file.seek(count, 1)
        self.position += count

    def need(self, count: int) -> None:
        if count > self.size - self.position:
            raise self.fault(
                f"{count:,} bytes announced, {self.size - self.position:,} left; the file is cut off or damaged: copy "
                "it again"
            )

    def number(self, code: str) -> int:
        size = struct.calcsize(f"<{code}")
        number: int = struct.unpack(f"<{code}", self.take(size))[0]
        return number

    def count(self, least_bytes: int, name: str) -> int:
        """A number of things of so many bytes at least, that must fit into the file."""
        number = self.number("Q")
        if number > MOST_ENTRIES:
            raise self.fault(f"{number:,} {name}; expected {MOST_ENTRIES:,} at most")
        self.need(number * least_bytes)
        return number

    def text(self) -> str:
        size = self.number("Q")
        if size > MOST_TEXT:
            raise self.fault(f"a text of {size:,} bytes; expected {MOST_TEXT:,} at most")
        return self.take(size).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Value | None:
        """A number or a text; None for an array, which is passed over, and for a text too long to be of use."""
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _ARRAY:
            self.skip_array()
            return None
        if kind != _TEXT:
            raise self.fault(f"a value of type {kind}; expected 0 to 12")
        size = self.number("Q")
        if size > MOST_TEXT:
            self.skip(size)
            return None
        return self.take(size).decode("utf-8", errors="replace")

    def skip_array(self) -> None:
        kind = self.number("I")
        if kind in _NUMBERS:
            self.skip(self.number("Q") * struct.calcsize(f"<{_NUMBERS[kind]}"))
            return
        if kind != _TEXT:
            raise self.fault(f"an array of type {kind}; expected numbers or texts")
        for _ in range(self.count(8, "texts")):
            self.skip(self.number("Q"))

    def tensor(self) -> GgufTensor:
        dimensions = self.number("I")
        if dimensions > MOST_DIMENSIONS:
            raise self.fault(f"a tensor of {dimensions} dimensions; expected {MOST_DIMENSIONS} at most")
        shape = tuple(self.number("Q") for _ in range(dimensions))[::-1]
        return GgufTensor(shape, self.number("I"), self.number("Q"))
