"""The reader of pickles: what honest programs write comes out, what hostile ones write is one line and runs nothing."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tracemalloc
from collections import Counter, OrderedDict, defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_core.errors import TraceError
from moe_core.routing.recordings import safe_pickle
from moe_core.routing.recordings.safe_pickle import Named, read_pickle, unpickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
REPEATED = np.arange(3)


def honest() -> list[Any]:
    """What counting scripts keep: Counters with numpy's numbers as keys, and the types around them."""
    return [
        Counter(np.array([0, 7, 7, 63])),
        defaultdict(Counter, {0: Counter({5: 2})}),
        defaultdict(int, {1: 2}),
        OrderedDict(first=1, second=2),
        np.arange(6.0, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.arange(3, dtype=">i2"),
        [REPEATED, REPEATED],
        (np.float64(2.5), np.bool_(True), 2**70, -1, None, True, 0.5, "ü", b"\x00\xff"),
        {},
    ]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_counting_scripts_write_comes_out(protocol: int) -> None:
    found = unpickle(pickle.dumps(honest(), protocol=protocol), "x.pkl")
    assert isinstance(found, list)
    counter, nested, plain, ordered, floats, fortran, swapped, twice, values, empty = found
    assert counter == {0: 1, 7: 2, 63: 1}
    assert all(type(key) is int for key in counter)
    assert (nested, plain, ordered, empty) == ({0: {5: 2}}, {1: 2}, {"first": 1, "second": 2}, {})
    assert {type(each) for each in (counter, nested, plain, ordered, empty)} == {dict}
    np.testing.assert_array_equal(floats, np.array([[0, 1, 2], [3, 4, 5]], np.float32), strict=True)
    np.testing.assert_array_equal(fortran, [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(swapped, [0, 1, 2])
    assert twice[0] is twice[1]
    assert values == (2.5, True, 2**70, -1, None, True, 0.5, "ü", b"\x00\xff")


@pytest.mark.parametrize("old", [False, True], ids=["numpy 2", "numpy 1"])
def test_numpy_1_has_other_names_for_the_same(old: bool) -> None:
    """numpy 1.26 writes numpy.core where numpy 2 writes numpy._core; of protocol 0, which has no lengths of names."""
    content = pickle.dumps([np.arange(3), np.int64(7)], protocol=0)
    assert b"numpy._core" in content
    found = unpickle(content.replace(b"numpy._core", b"numpy.core") if old else content, "x.pkl")
    assert isinstance(found, list)
    assert (found[0].tolist(), found[1]) == ([0, 1, 2], 7)


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.reduced


def marker_path() -> Path:
    return Path("hostile-pickle-ran")


HOSTILE = {
    "os.system": Calls(os.system, f"touch {marker_path()}"),
    "eval": Calls(eval, f"open({str(marker_path())!r}, 'w')"),
    "exec": Calls(exec, f"open({str(marker_path())!r}, 'w')"),
    "getattr": Calls(getattr, Counter, "mro"),
    "an import": Calls(__import__, "antigravity"),
    "a call of a class": Calls(list, (1, 2)),
    "a call of bytes, a bomb": Calls(bytes, 10**12),
    "a call of ndarray, a bomb": Calls(np.ndarray, (10**12,)),
    "numpy's own loader": Calls(np.load, str(marker_path())),
    "an object of a class": marker_path(),
    "a class whose attributes change": Calls(Counter, {1: 2}, state={"items": 3}),
    "a Counter of text": Calls(Counter, "aab"),
    "a dict of pairs": Calls(OrderedDict, [("a", 1)]),
    "objects in an array": np.array([Counter(), marker_path()], dtype=object),
    "text in an array": np.array(["a"]),
    "fields in an array": np.zeros(2, dtype=[("a", np.int32)]),
    "a set": {1, 2},
    "a tuple as a key": {(1, 2): 3},
    "a number of 80 bits as a key": {2**80: 1},
    "a complex number": 1j,
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_not_plain_is_refused_and_nothing_runs(
    name: str, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "counts.pkl"
    path.write_bytes(pickle.dumps([{3: 4}, HOSTILE[name]], protocol=protocol))
    with pytest.raises(TraceError, match=r"^'.*counts\.pkl', byte \d+: .{5,}$") as refusal:
        read_pickle(path)
    assert "\n" not in str(refusal.value)
    assert not marker_path().exists()
    assert Counter({1: 2}).items() == {1: 2}.items()


def bomb(*parts: bytes) -> bytes:
    return b"\x80\x04" + b"".join(parts) + b"."


DOUBLED = b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86\x94" for i in range(60))
"""Sixty tuples, each of the one before twice: as a key its hash would take 2^60 steps, its text as many characters."""
BOMBS = {
    "a text of 2^40 bytes": bomb(b"\x8d" + struct.pack("<Q", 2**40) + b"ab"),
    "bytes of 2^62": bomb(b"\x8e" + struct.pack("<Q", 2**62) + b"ab"),
    "a byte array of 2^40": bomb(b"\x96" + struct.pack("<Q", 2**40) + b"ab"),
    "a number of 2^31 bytes": bomb(b"\x8b" + struct.pack("<i", 2**31 - 1) + b"ab"),
    "a number of many digits": b"I" + b"9" * 100_000 + b"\n.",
    "a key of nested tuples": bomb(b"}N\x94", DOUBLED, b"Ns"),
    "a call of nested tuples": bomb(b"N\x94", DOUBLED, b"\x85R"),
    "a name of nested tuples": bomb(b"N\x94", DOUBLED, b"h\x01\x93"),
    "an array said to be huge": pickle.dumps(np.arange(3)).replace(b"K\x03\x85", b"J\xff\xff\xff\x7f\x85"),
    "the same text as bytes again and again": bomb(
        b"X" + struct.pack("<I", 10**6) + b"a" * 10**6 + b"\x94c_codecs\nencode\n\x94\x8c\x06latin1\x94",
        b"h\x01h\x00h\x02\x86R0" * 1000,
    ),
    "a memory that is not there": bomb(b"h\x07"),
    "nothing": b"",
    "no end": b"\x80\x04]",
    "two values": bomb(b"NN"),
    "no value": bomb(),
    "a mark at the end": bomb(b"N("),
    "items without a mark": bomb(b"]e"),
    "an array without content": bomb(b"cnumpy._core.multiarray\n_reconstruct\n)R"),
    "an operation of no protocol": bomb(b"\xff"),
    "an extension": bomb(b"\x82\x01"),
    "an object elsewhere": bomb(b"NQ"),
    "a zip file": b"PK\x03\x04" + b"\x00" * 64,
    "text": b"layer_id,expert_id,count\n0,1,2\n",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_one_line_and_takes_little_memory(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(TraceError, match=r"^x\.pkl, byte \d+: "):
            unpickle(BOMBS[name], "x.pkl")
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "content", [bomb(b"Nr\xff\xff\xff\x7f"), bomb(b"\x95" + struct.pack("<Q", 2**60) + b"N")], ids=["memo", "frame"]
)
def test_a_memo_of_2_to_31_places_and_a_frame_of_2_to_60_bytes_cost_nothing(content: bytes) -> None:
    tracemalloc.start()
    try:
        assert unpickle(content, "x.pkl") is None
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_pickle_cut_off_anywhere_is_refused() -> None:
    content = pickle.dumps(honest())
    for size in range(len(content)):
        with pytest.raises(TraceError):
            unpickle(content[:size], "x.pkl")


def test_a_damaged_pickle_is_refused_or_read_but_never_fails_otherwise() -> None:
    content = pickle.dumps(honest())
    random = np.random.default_rng(0)
    for _ in range(3000):
        damaged = bytearray(content)
        for place in random.integers(0, len(content), random.integers(1, 4)):
            damaged[place] = random.integers(0, 256)
        with suppress(TraceError):
            unpickle(bytes(damaged), "x.pkl")


def test_a_long_pickle_is_refused_and_a_large_one_not_even_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = pickle.dumps(list(range(100)))
    with pytest.raises(TraceError, match="more than 50 operations"):
        unpickle(content, "x.pkl", most_operations=50)
    monkeypatch.setattr(safe_pickle, "MOST_CONTAINERS", 10)
    assert unpickle(content, "x.pkl", most_operations=1000) == list(range(100))
    with pytest.raises(TraceError, match="more than 10 lists, dicts and tuples"):
        unpickle(pickle.dumps([[] for _ in range(10)]), "x.pkl")
    path = tmp_path / "x.pkl"
    path.write_bytes(content)
    monkeypatch.setattr(safe_pickle, "MOST_BYTES", 100)
    with pytest.raises(TraceError, match=r"has 0 MiB; expected a pickle of counts"):
        read_pickle(path)
    with pytest.raises(TraceError, match="No such file"):
        read_pickle(tmp_path / "none.pkl")


def test_other_formats_add_names_and_objects_of_their_own() -> None:
    """As torch's files need them: a storage by a persistent id, and a call that makes an array of it."""

    class Writer(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("storage", int, "7") if value is REPEATED else None

    written = io.BytesIO()
    Writer(written).dump({"array": Calls(struct.calcsize, REPEATED)})
    found = unpickle(
        written.getvalue(),
        "x.pt",
        functions={("_struct", "calcsize"): lambda storage: ["made of", storage]},
        persistent=lambda identity: ("loaded", identity),
    )
    assert found == {"array": ["made of", ("loaded", ("storage", Named(("builtins", "int")), "7"))]}
