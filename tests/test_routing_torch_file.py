"""Files of torch.save are read without torch, and nothing that they name is run, whatever they hold."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_core.errors import TraceError
from moe_core.routing.recordings import torch_file
from moe_core.routing.recordings.torch_file import Tensor, opened_torch_file

TYPES = (
    *(torch.bfloat16, torch.float16, torch.float32, torch.float64),
    *(torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool),
)


def plain(value: Any) -> Any:
    """The same with arrays in place of tensors."""
    if isinstance(value, Tensor):
        return value.array()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def content_of(path: Path) -> Any:
    with opened_torch_file(path) as content:
        return plain(content)


def saved(path: Path, value: Any, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


def archive_of(path: Path, pickled: bytes, compression: int = zipfile.ZIP_STORED, **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x/data.pkl", pickled)
        for name, content in entries.items():
            archive.writestr(f"x/data/{name[1:]}", content)
    return path


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_tensors_of_every_type_come_out_as_torch_has_them(protocol: int, tmp_path: Path) -> None:
    tensors = [(torch.arange(-3, 21).reshape(4, 6) * 3).to(kind) for kind in TYPES]
    value = {"all": tensors, 3: ("text", None, True, 2.5, -(2**40)), "count": torch.tensor(7)}
    found = content_of(saved(tmp_path / "x.pt", value, pickle_protocol=protocol))
    assert found[3] == ["text", None, True, 2.5, -(2**40)]
    assert found["count"].shape == ()
    assert found["count"] == 7
    for tensor, array in zip(tensors, found["all"], strict=True):
        expected = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        assert array.dtype == expected.numpy().dtype
        assert np.array_equal(array, expected.numpy())


def test_views_share_a_storage_and_keep_their_shape(tmp_path: Path) -> None:
    whole = torch.arange(24, dtype=torch.int32).reshape(2, 3, 4)
    views = [whole, whole.permute(2, 0, 1), whole[1], whole[:, ::2, 1:3], whole[:0], torch.nn.Parameter(torch.ones(2))]
    found = content_of(saved(tmp_path / "x.pt", views))
    for view, array in zip(views, found, strict=True):
        assert np.array_equal(array, view.detach().numpy())


def test_a_tensor_is_read_when_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "x.pt", [torch.zeros(1000), torch.ones(3)])
    read: list[str] = []
    original = zipfile.ZipFile.read
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda self, name: read.append(str(name)) or original(self, name))
    with opened_torch_file(path) as content:
        assert isinstance(content, list)
        assert [name.rpartition("/")[2] for name in read] == ["data.pkl", "byteorder"] or len(read) <= 2
        before = len(read)
        content[1].array()
        assert len(read) == before + 1


class Runs:
    """Pickled, it asks for a program to be run."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("function", ["system", "eval", "exec", "mkdir", "import"])
def test_a_program_in_the_file_is_not_run(function: str, tmp_path: Path) -> None:
    import os

    mark = tmp_path / "was_run"
    calls = {
        "system": Runs(os.system, f"touch {mark}"),
        "eval": Runs(eval, f"open({str(mark)!r}, 'w')"),
        "exec": Runs(exec, f"open({str(mark)!r}, 'w')"),
        "mkdir": Runs(os.mkdir, str(mark)),
        "import": Runs(__import__, "antigravity"),
    }
    for path in (
        saved(tmp_path / "x.pt", {"tensor": torch.ones(2), "other": calls[function]}),
        archive_of(tmp_path / "y.pt", pickle.dumps(calls[function], protocol=0)),
    ):
        with pytest.raises(TraceError, match=r"data\.pkl', byte \d+: .*nothing was run"):
            content_of(path)
        assert not mark.exists()


def test_an_archive_that_unpacks_to_more_than_it_is_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive_of(tmp_path / "x.pt", pickle.dumps(1, 2), zipfile.ZIP_DEFLATED, _0=bytes(10_000_000))
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("an entry was read"))
    with pytest.raises(TraceError, match=r"is compressed to .* expected none, for torch.save compresses nothing"):
        content_of(path)


def test_a_list_of_entries_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", 1)
    content = bytearray(path.read_bytes())
    large = content.rfind(b"PK\x06\x06")  # torch adds the record of large archives to small ones too
    content[large + 40 : large + 48] = (2**40).to_bytes(8, "little")
    path.write_bytes(content)
    with pytest.raises(TraceError, match=r"its list of entries has 1,099,511,627,776 bytes; expected"):
        content_of(path)
    path = archive_of(tmp_path / "y.pt", pickle.dumps(1, 2))
    content = bytearray(path.read_bytes())
    content[-10:-6] = (2**31).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(TraceError, match=r"its list of entries has 2,147,483,648 bytes; expected"):
        content_of(path)


def test_a_storage_larger_than_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_file, "MAX_STORAGE_BYTES", 100)
    with pytest.raises(TraceError, match=r"entry 'x/data/0' has 400 bytes; expected 100 at most"):
        content_of(saved(tmp_path / "x.pt", torch.zeros(100)))
    monkeypatch.setattr(torch_file, "MAX_PICKLE_BYTES", 100)
    with pytest.raises(TraceError, match=r"entry 'x/data\.pkl' has .* bytes; expected 100 at most"):
        content_of(saved(tmp_path / "x.pt", torch.zeros(100)))


class Storage:
    """A storage as torch.save pickles it, of any size."""

    def __init__(self, key: str, size: int) -> None:
        self.identity = ("storage", torch.FloatStorage, key, "cpu", size)


def tensor_pickle(key: str, size: int, offset: Any, shape: Any, strides: Any) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return obj.identity if isinstance(obj, Storage) else None

    arguments = (Storage(key, size), offset, shape, strides, False, {})
    buffer = io.BytesIO()
    Pickler(buffer, 2).dump(Runs(torch._utils._rebuild_tensor_v2, *arguments))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("key", "size", "offset", "shape", "strides", "message"),
    [
        ("0", 4, 0, (5,), (1,), r"a tensor \[5\] with strides \[1\] from number 0 on needs more than the 4 numbers"),
        ("0", 4, 1, (2, 2), (2, 1), "needs more than the 4 numbers"),
        ("0", 4, 0, (10**12,), (0,), "needs more than the 4 numbers"),
        ("0", 4, -1, (2,), (1,), "a tensor without storage, shape or strides"),
        ("0", 4, 3, (2,), (-1,), "a tensor without storage, shape or strides"),
        ("0", 4, 0, (2, 2), (2,), "a tensor without storage, shape or strides"),
        ("0", 4, 0, "ab", (1, 1), "a tensor without storage, shape or strides"),
        ("0", 10**12, 0, (2,), (1,), r"entry 'x/data/0' has 16 bytes for 1,000,000,000,000 numbers"),
        ("../../secret", 4, 0, (2,), (1,), "it points to numbers that are not in the archive"),
        ("1", 4, 0, (2,), (1,), "it points to numbers that are not in the archive"),
    ],
)
def test_a_tensor_that_reaches_beyond_its_numbers_is_refused(
    key: str, size: int, offset: Any, shape: Any, strides: Any, message: str, tmp_path: Path
) -> None:
    good = archive_of(tmp_path / "good.pt", tensor_pickle("0", 4, 0, (2, 2), (2, 1)), _0=bytes(16))
    assert content_of(good).tolist() == [[0, 0], [0, 0]]
    path = archive_of(tmp_path / "x.pt", tensor_pickle(key, size, offset, shape, strides), _0=bytes(16))
    with pytest.raises(TraceError, match=message):
        content_of(path)


def test_a_file_of_long_ago_is_refused_by_name(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", torch.ones(2), _use_new_zipfile_serialization=False)
    with pytest.raises(TraceError, match=r"in the format of torch before 1\.6.*torch\.save\(torch\.load"):
        content_of(path)


@pytest.mark.parametrize("content", [b"", b"P", b"PK\x03\x04", b"\x00" * 200, b"PK" + bytes(100)])
def test_what_is_no_archive_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(TraceError, match=r"x\.pt"):
        content_of(tmp_path / "x.pt")


def test_deep_nesting_takes_no_stack(tmp_path: Path) -> None:
    deep = b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b"."
    with opened_torch_file(archive_of(tmp_path / "x.pt", deep)) as content:
        assert isinstance(content, list)
    unhashable = b"\x80\x02}" + b")" + b"\x85" * 300_000 + b"K\x01s."
    with pytest.raises(TraceError, match="key"):
        content_of(archive_of(tmp_path / "y.pt", unhashable))


def test_a_byte_of_the_numbers_that_changed_is_found(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", torch.arange(1000))
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(1000).numpy().tobytes()) + 77] ^= 1
    path.write_bytes(content)
    with pytest.raises(TraceError, match=r"entry 'x/data/0' is damaged \(Bad CRC-32"):
        content_of(path)


def example() -> bytes:
    buffer = io.BytesIO()
    torch.save({"records": [{"ids": [1, 2, 300], "topk": torch.arange(12).reshape(3, 4)}], "map": None}, buffer)
    return buffer.getvalue()


EXAMPLE = example()


@settings(max_examples=100, deadline=None)
@given(place=st.integers(0, len(EXAMPLE) - 1), value=st.integers(0, 255), cut=st.booleans())
def test_damage_anywhere_is_one_line_or_leaves_a_value(
    place: int, value: int, cut: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = EXAMPLE[:place] if cut else EXAMPLE[:place] + bytes([value]) + EXAMPLE[place + 1 :]
    path = tmp_path_factory.getbasetemp() / "damaged.pt"
    path.write_bytes(content)
    try:
        content_of(path)
    except TraceError as error:  # a changed byte of a number or a name may well be read
        message = str(error)
    else:
        return
    assert "\n" not in message
    assert "damaged.pt" in message
