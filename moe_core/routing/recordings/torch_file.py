"""A file of `torch.save` read without torch and without running anything of it: plain containers, and numpy arrays.

The file is a zip archive: one pickle of everything but the numbers (see safe_pickle.py), and the numbers of each
storage as bytes. torch compresses nothing, so that no entry is larger than the file: a compressed one is refused, and
with it every archive that unpacks to more than it is. Tensors are read one at a time, when asked for.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from moe_core.errors import TraceError
from moe_core.progress import Progress, silent
from moe_core.routing.recordings.pieces import reason
from moe_core.routing.recordings.safe_pickle import Function, Name, Named, unpickle

PICKLE = "/data.pkl"
MAX_DIRECTORY_BYTES = 2**26
"""Half a million entries. Python makes an object of each before anyone can ask how many there are."""
MAX_PICKLE_BYTES = 2**27
MAX_OPERATIONS = 50_000_000
"""Of the pickle: two for a token of a recording, whose id and place are numbers of a list."""
MAX_STORAGE_BYTES = 2**31
"""One forward pass of 60 layers, 65,536 tokens and 8 slots has 125 MB."""
MAX_DIMENSIONS = 8
DAMAGE = (
    *(OSError, zipfile.BadZipFile, EOFError, ValueError, LookupError, ArithmeticError, RuntimeError),
    *(NotImplementedError, struct.error),
)
"""What Python's zipfile raises at a damaged archive."""

STORAGES = {
    "Double": "<f8",
    "Float": "<f4",
    "Half": "<f2",
    "BFloat16": "<u2",
    "Long": "<i8",
    "Int": "<i4",
    "Short": "<i2",
    "Char": "i1",
    "Byte": "u1",
    "Bool": "?",
}
"""How the numbers of each type of storage lie in the file. bfloat16 is the upper half of a float32."""


ReadEntry = Callable[[str], bytes]


@dataclass(frozen=True)
class Storage:
    """The numbers of one tensor or several, in an entry of the archive."""

    kind: str
    """A name of STORAGES."""
    size: int
    entry: str
    read: ReadEntry = field(repr=False)
    """Reads an entry of the open file and checks it against its checksum; raises TraceError."""


@dataclass(frozen=True)
class Tensor:
    """A tensor that is still in the file."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In numbers."""

    def array(self, read: ReadEntry | None = None) -> npt.NDArray[Any]:
        """Its numbers, read now; those of bfloat16 as float32. Raises TraceError where they are damaged.

        `read` is that of opened_entries, where the block of opened_torch_file has ended.
        """
        content = (read or self.storage.read)(self.storage.entry)
        flat = np.frombuffer(content, dtype=STORAGES[self.storage.kind])
        width = flat.itemsize
        # Every place lies within the storage: checked when the tensor was made.
        view = np.lib.stride_tricks.as_strided(
            flat[self.offset :], self.shape, tuple(width * stride for stride in self.strides), writeable=False
        )
        if self.storage.kind == "BFloat16":
            return (view.astype(np.uint32) << 16).view(np.float32)
        return view


@contextmanager
def opened_torch_file(path: Path, progress: Progress = silent) -> Iterator[object]:
    """The content of a file of torch.save, tensors as Tensor: they can be read until the block ends.

    Raises TraceError naming the file and, where that tells anything, the place in it.
    """
    with _opened_archive(path) as archive:
        yield _content_of_archive(archive, repr(str(path)), progress)


@contextmanager
def opened_entries(path: Path) -> Iterator[ReadEntry]:
    """What reads the entries of a file whose tensors are known already; its pickle may be long. Raises TraceError."""
    with _opened_archive(path) as archive:
        yield _reader_of(archive, repr(str(path)))


def first_words(path: Path) -> bytes:
    """The first bytes of the file, where the pickle's first keys are: what tells formats of such files apart.

    Raises TraceError for a file of another kind.
    """
    try:
        with path.open("rb") as file:
            _check_archive(file, repr(str(path)))
            return file.read(4096)
    except OSError as error:
        raise TraceError(f"cannot read {str(path)!r}: {reason(error)}; check the path") from None


@contextmanager
def _opened_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    where = repr(str(path))
    with ExitStack() as opened:
        try:
            file = opened.enter_context(path.open("rb"))
            _check_archive(file, where)
            archive = opened.enter_context(zipfile.ZipFile(file))
        except DAMAGE as error:
            raise TraceError(f"{where} is no whole file of torch.save ({reason(error)}); copy it again") from None
        yield archive


def _reader_of(archive: zipfile.ZipFile, where: str) -> ReadEntry:
    def read(name: str) -> bytes:
        try:
            return archive.read(name)
        except DAMAGE as error:
            raise TraceError(f"{where}, entry {name[:80]!r} is damaged ({reason(error)}); copy it again") from None

    return read


def _check_archive(file: IO[bytes], where: str) -> None:
    """Refuse what is no archive, and a list of entries so long that it would fill the memory."""
    start = file.read(2)
    if start == b"\x80\x02":
        raise TraceError(
            f"{where} is in the format of torch before 1.6, a row of pickles; expected a zip archive: "
            "torch.save(torch.load(FILE), FILE) writes one"
        )
    if not start.startswith(b"PK"):
        raise TraceError(f"{where} is no zip archive; expected a file of torch.save")
    end = file.seek(0, 2)
    file.seek(max(0, end - 98))  # 56 bytes for large archives, 20 that point to them, 22 that stand in every one
    tail = file.read()
    if tail[-22:-18] != b"PK\x05\x06":
        raise TraceError(f"{where} ends before its list of entries; copy it again")
    size = int.from_bytes(tail[-10:-6], "little")
    if tail[-42:-38] == b"PK\x06\x07":
        size = int.from_bytes(tail[-58:-50], "little")
    if size > min(end, MAX_DIRECTORY_BYTES):
        raise TraceError(
            f"{where}: its list of entries has {size:,} bytes; expected {MAX_DIRECTORY_BYTES:,} at most in a file of "
            f"{end:,}"
        )
    file.seek(0)


def _content_of_archive(archive: zipfile.ZipFile, where: str, progress: Progress) -> object:
    entries = {entry.filename: entry for entry in archive.infolist()}
    pickles = [name for name in entries if name.endswith(PICKLE)]
    if len(pickles) != 1 or len(entries) != len(archive.infolist()):
        raise TraceError(f"{where} has {len(pickles)} entries {PICKLE[1:]!r}; expected one, as torch.save writes it")
    for name, entry in entries.items():
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise TraceError(
                f"{where}, entry {name[:80]!r} is compressed to {entry.compress_size:,} of {entry.file_size:,} bytes; "
                "expected none, for torch.save compresses nothing"
            )
    if entries[pickles[0]].file_size > MAX_PICKLE_BYTES:
        raise TraceError(
            f"{where}, entry {pickles[0][:80]!r} has {entries[pickles[0]].file_size:,} bytes; "
            f"expected {MAX_PICKLE_BYTES:,} at most"
        )
    folder = pickles[0].removesuffix(PICKLE)
    read = _reader_of(archive, where)
    if f"{folder}/byteorder" in entries and read(f"{folder}/byteorder") != b"little":
        raise TraceError(f"{where} was written on a machine of another byte order; expected little")

    def storage(persistent_id: Any) -> Storage:
        word, kind, key, _, size = persistent_id
        name = f"{folder}/data/{key}" if isinstance(key, str) else ""
        if word != "storage" or not isinstance(kind, Named) or not isinstance(size, int) or name not in entries:
            raise ValueError("it points to numbers that are not in the archive")
        kind_name = kind[1].removesuffix("Storage")
        expected = np.dtype(STORAGES[kind_name]).itemsize * size
        if entries[name].file_size != expected:
            raise ValueError(
                f"entry {name[:80]!r} has {entries[name].file_size:,} bytes for {size:,} numbers of type {kind_name}; "
                f"expected {expected:,}"
            )
        if expected > MAX_STORAGE_BYTES:
            raise ValueError(f"entry {name[:80]!r} has {expected:,} bytes; expected {MAX_STORAGE_BYTES:,} at most")
        return Storage(kind_name, size, name, read)

    return unpickle(
        read(pickles[0]),
        f"{where}, {pickles[0][:80]!r}",
        functions=FUNCTIONS,
        names=NAMES,
        persistent=storage,
        most_operations=MAX_OPERATIONS,
        progress=progress,
    )


def _tensor(storage: object, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object) -> Tensor:
    """As torch._utils._rebuild_tensor_v2, whose other arguments concern gradients."""
    numbers = (offset, *shape, *strides)
    fits = isinstance(storage, Storage) and all(isinstance(number, int) and number >= 0 for number in numbers)
    if not fits or len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
        raise ValueError("a tensor without storage, shape or strides; save it again")
    assert isinstance(storage, Storage)
    last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    size = math.prod(int(length) for length in shape)
    if size > storage.size or (size and last >= storage.size):  # a view that repeats its numbers may be of any size
        raise ValueError(
            f"a tensor {list(shape)} with strides {list(strides)} from number {offset:,} on needs more than the "
            f"{storage.size:,} numbers that its storage has"
        )
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _parameter(tensor: object, *_: object) -> object:
    """As torch._utils._rebuild_parameter: the tensor in it."""
    return tensor


FUNCTIONS: dict[Name, Function] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "Size"): lambda sizes=(): tuple(sizes),
}
NAMES: frozenset[Name] = frozenset(("torch", f"{kind}Storage") for kind in STORAGES)
