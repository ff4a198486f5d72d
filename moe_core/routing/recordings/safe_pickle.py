"""Plain values and numpy arrays out of a pickle, of which nothing is ever run.

A pickle is a program: `pickle.load` imports and calls whatever it names. Here the standard library only splits it into
operations (pickletools.genops), and the tables below say what each of them does. Names lead to functions of this file,
never to what they name elsewhere. So nothing comes out but numbers, text, bytes, lists, tuples, dicts (also for
Counter, defaultdict and OrderedDict) and numpy arrays of numbers.

Memory and time are bounded by the size of the file: no operation makes more than the file holds for it, lengths are
checked against the bytes that are there, and keys of dicts are such that their hashes take a moment.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moe_core.errors import TraceError, shortened
from moe_core.progress import Progress, silent

MOST_BYTES = 2**26
"""A larger .pkl file is refused: counts of 10,000 experts in 100 layers take 10 MB."""
MOST_OPERATIONS = 2_000_000
"""Each makes a value of 100 bytes or so, beside the bytes that the file itself holds."""
MOST_CONTAINERS = 2_000_000
"""Where a format allows more operations, for numbers: a list or dict is larger than they are."""
_MOST_PARTS = 32
"""Arguments of a call, parts of a state, dimensions of an array."""
_PROGRESS_EVERY = 65_536

Function = Callable[..., object]
Name = tuple[str, str]
"""Module and name of a class or function, as a pickle has them."""
PLAIN = "expected numbers, text, lists, dicts, Counters and numpy arrays alone (nothing was run)"


class Named(tuple[str, str]):
    """A class or function that a pickle names. It is never looked up."""


def _shown(value: object) -> str:
    """A value in a message; of containers their type alone, for written out they can be without end."""
    return shortened(value) if isinstance(value, Named | str | int | float) else f"a {type(value).__name__}"


class _FaultError(Exception):
    """What is wrong; the place is added where it is known."""


def read_pickle(path: Path, progress: Progress = silent) -> object:
    """The value of a .pkl file. Raises TraceError that names the byte, without having run anything."""
    where = repr(str(path))
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise TraceError(
                f"{where} has {size / 2**20:,.0f} MiB; expected a pickle of counts, of {MOST_BYTES >> 20} MiB at most"
            )
        content = path.read_bytes()
    except OSError as error:
        raise TraceError(f"cannot read {where}: {error.strerror or error}; check the path") from None
    return unpickle(content, where, progress=progress)


def unpickle(
    content: bytes,
    where: str,
    *,
    functions: Mapping[Name, Function] | None = None,
    names: frozenset[Name] = frozenset(),
    persistent: Function | None = None,
    most_operations: int = MOST_OPERATIONS,
    progress: Progress = silent,
) -> object:
    """The value that a pickle of any protocol describes; `where` names it in messages.

    `functions` stand in for further ones that the pickle may name. They get its arguments unchecked; a TypeError or
    ValueError of theirs is a fault of the file. `names` may be named besides, and become Named. `persistent` gives the
    object of a persistent id, as torch's storages have them. A list may hold itself. Raises TraceError naming the byte.
    """
    machine = _Machine(len(content), functions or {}, names, persistent)
    position = 0
    try:
        for number, (operation, argument, at) in enumerate(pickletools.genops(content)):
            position = at or 0
            if number >= most_operations:
                raise _FaultError(f"more than {most_operations:,} operations; expected counts, which need fewer")
            if number % _PROGRESS_EVERY == 0:
                progress("reading", position, len(content))
            machine.run(operation.name, argument)
        return machine.result()
    except _FaultError as fault:
        raise TraceError(f"{where}, byte {position}: {fault}") from None
    except (ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise TraceError(f"{where}, byte {position}: this is no whole pickle ({reason}); save it again") from None


class _Machine:
    """The stack of a pickle, and the values that it remembers."""

    def __init__(
        self, size: int, functions: Mapping[Name, Function], names: frozenset[Name], persistent: Function | None
    ) -> None:
        self.functions = {**FUNCTIONS, ("_codecs", "encode"): self.encode, **functions}
        self.names = NAMES | names
        self.persistent = persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        """The stacks under each mark."""
        self.memo: dict[int, Any] = {}
        self.left_to_encode = size
        self.containers = 0

    def run(self, operation: str, argument: Any) -> None:
        if operation in _VALUES:
            self.stack.append(argument)
            return
        if operation in _CONTAINERS:
            self.containers += 1
            if self.containers > MOST_CONTAINERS:
                raise _FaultError(f"more than {MOST_CONTAINERS:,} lists, dicts and tuples; expected fewer")
        if operation in _CONSTANTS:
            self.stack.append(_CONSTANTS[operation]())
        elif operation in _OPERATIONS:
            _OPERATIONS[operation](self, argument)
        elif operation not in ("PROTO", "FRAME", "STOP"):
            raise _FaultError(f"the operation {operation}; {PLAIN}")

    def result(self) -> object:
        """What is left at the end."""
        if len(self.stack) != 1 or self.below:
            raise _FaultError(f"{len(self.stack)} values are left at the end; expected one")
        return self.pop()

    def pop(self) -> Any:
        """A value that may be kept."""
        return _complete(self.stack.pop())

    def since_mark(self) -> list[Any]:
        """The values above the last mark, taken off with it."""
        above = self.stack
        self.stack = self.below.pop()
        return [_complete(value) for value in above]

    def push_since_mark(self, make: Callable[[list[Any]], object]) -> None:
        made = make(self.since_mark())
        self.stack.append(made)

    def mark(self, _: object) -> None:
        self.below.append(self.stack)
        self.stack = []

    def put(self, key: int) -> None:
        value = self.stack[-1]
        if isinstance(value, _Incomplete):
            value.keys.append(key)
        self.memo[key] = value

    def memoize(self, _: object) -> None:
        self.put(len(self.memo))

    def get(self, key: int) -> None:
        self.stack.append(self.memo[key])

    def push_tuple(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(items)))

    def append(self, _: object) -> None:
        self.extend([self.pop()])

    def append_all(self, _: object) -> None:
        self.extend(self.since_mark())

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise _FaultError(f"it appends to a {type(target).__name__}; expected a list")
        target.extend(items)

    def set_item(self, _: object) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def set_all(self, _: object) -> None:
        self.set_items(self.since_mark())

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict:
            raise _FaultError(f"it sets items of a {type(target).__name__}; expected a dict")
        target.update(_dict_of(items))

    def name(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise _FaultError(f"it names {_shown(name)} of {_shown(module)}; {PLAIN}")
        named = Named((module, name))
        if named not in self.functions and named not in self.names:
            raise _FaultError(f"it names {shortened(f'{module}.{name}')}; {PLAIN}")
        self.stack.append(named)

    def global_name(self, argument: str) -> None:
        self.name(*argument.split(" ", maxsplit=1))

    def name_of_stack(self, _: object) -> None:
        name, module = self.pop(), self.pop()
        self.name(module, name)

    def reduce(self, _: object) -> None:
        """Call a function with a tuple of arguments, both from the stack."""
        arguments, named = self.pop(), self.pop()
        function = self.functions.get(named) if isinstance(named, Named) else None
        if function is None or not isinstance(arguments, tuple) or len(arguments) > _MOST_PARTS:
            raise _FaultError(f"it calls {_shown(named)}; {PLAIN}")
        self.stack.append(function(*arguments))

    def build(self, _: object) -> None:
        """Give a numpy type or an array its state; where it is remembered the whole one takes its place."""
        state, value = self.pop(), self.stack.pop()
        if not isinstance(value, _Incomplete) or not isinstance(state, tuple) or len(state) > _MOST_PARTS:
            raise _FaultError(f"it changes a {type(value).__name__}; {PLAIN}")
        complete = value.build(*state)
        for key in value.keys:
            self.memo[key] = complete
        self.stack.append(complete)

    def load_persistent(self, _: object) -> None:
        identity = self.pop()
        if self.persistent is None:
            raise _FaultError(f"it names an object outside the file; {PLAIN}")
        self.stack.append(self.persistent(identity))

    def encode(self, text: object, encoding: object) -> bytes:
        """How protocols before 3 write bytes: each text once, so that all are no more than the file."""
        if not isinstance(text, str) or encoding != "latin1" or len(text) > self.left_to_encode:
            raise _FaultError(f"bytes made of a {type(text).__name__}; expected text of latin1, each once")
        self.left_to_encode -= len(text)
        return text.encode("latin1")


class _Incomplete:
    """A numpy type or an array between the call that makes it and the state that says what it is."""

    def __init__(self, build: Function) -> None:
        self.build = build
        self.keys: list[int] = []
        """Where the pickle remembers it."""


def _complete(value: Any) -> Any:
    if isinstance(value, _Incomplete):
        raise _FaultError("an array, or its type, without content; expected all of it")
    return value


def _dict_of(items: list[Any]) -> dict[Any, Any]:
    """Keys and values by turns. A key is a number or text: the hash of nested tuples can take for ever."""
    if len(items) % 2:
        raise _FaultError("a key without a value; expected both")
    for key in items[::2]:
        if not isinstance(key, int | float | str | None) or (isinstance(key, int) and key.bit_length() > 64):
            raise _FaultError(f"the key {_shown(key)}; expected a number or text")
    return dict(zip(items[::2], items[1::2], strict=True))


_NUMBERS = re.compile(r"b1|[iu][1248]|f[248]")


def _dtype(text: object, *_: object) -> _Incomplete:
    """`numpy.dtype(text, align, copy)`; its state holds the order of the bytes."""
    if not isinstance(text, str) or not _NUMBERS.fullmatch(text):
        raise _FaultError(f"an array of {_shown(text)}; expected whole numbers, floats or bools")

    def build(_version: object, order: object, *_: object) -> np.dtype[Any]:
        if order not in ("<", ">", "|"):
            raise _FaultError(f"bytes in the order {_shown(order)}; expected <, > or |")
        return np.dtype(text).newbyteorder(str(order).replace("|", "="))  # type: ignore[arg-type]

    return _Incomplete(build)


def _reconstruct(*_: object) -> _Incomplete:
    """An array of no content yet: the arguments are `numpy.ndarray`, a shape of 0 and a code."""
    return _Incomplete(lambda _version, shape, dtype, fortran, content: _array(content, dtype, shape, bool(fortran)))


def _from_buffer(content: object, dtype: object, shape: object, order: object = "C") -> Any:
    """An array of protocol 5."""
    return _array(content, dtype, shape, order == "F")


def _array(content: object, dtype: object, shape: object, fortran: bool) -> Any:
    """A view of the bytes: whatever shape a file claims, it takes no memory."""
    if not isinstance(content, bytes | bytearray) or not isinstance(dtype, np.dtype):
        raise _FaultError(f"an array of {type(content).__name__}; expected its bytes and its type")
    numbers = isinstance(shape, tuple) and len(shape) <= _MOST_PARTS
    if not numbers or not all(isinstance(size, int) and size >= 0 for size in shape):  # type: ignore[attr-defined]
        raise _FaultError(f"an array of {type(shape).__name__} dimensions; expected some whole numbers")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _scalar(dtype: object, content: object) -> object:
    """A number of numpy's, as Python's own."""
    if not isinstance(dtype, np.dtype) or not isinstance(content, bytes) or len(content) != dtype.itemsize:
        raise _FaultError("a number of numpy's that lacks its bytes; expected as many as its type has")
    return np.frombuffer(content, dtype)[0].item()


def _mapping(content: object = None) -> dict[Any, Any]:
    """Counter or OrderedDict of a dict: the dict itself, for a copy each time would be memory for nothing."""
    if content is not None and type(content) is not dict:
        raise _FaultError(f"a dict made of {type(content).__name__}; expected a dict")
    return {} if content is None else content


def _default_dict(factory: object = None) -> dict[Any, Any]:
    """Without its factory: what a missing key means is the reader's matter."""
    if factory is not None and not isinstance(factory, Named):
        raise _FaultError(f"a defaultdict of {_shown(factory)}; expected a class")
    return {}


_NUMPY = ("numpy.core", "numpy._core")
FUNCTIONS: Mapping[Name, Function] = {
    ("collections", "Counter"): _mapping,
    ("collections", "OrderedDict"): _mapping,
    ("collections", "defaultdict"): _default_dict,
    ("numpy", "dtype"): _dtype,
    **{(f"{numpy}.multiarray", "_reconstruct"): _reconstruct for numpy in _NUMPY},
    **{(f"{numpy}.multiarray", "scalar"): _scalar for numpy in _NUMPY},
    **{(f"{numpy}.numeric", "_frombuffer"): _from_buffer for numpy in _NUMPY},
}
"""What stands in for the functions that a pickle may call."""
_CLASSES = ("int", "long", "float", "str", "bool", "list", "dict", "tuple")
NAMES: frozenset[Name] = frozenset(
    [("numpy", "ndarray"), *((module, name) for module in ("builtins", "__builtin__") for name in _CLASSES)]
)
"""Classes that may be named, as a defaultdict names its factory; none of them is called."""
_VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE", "SHORT_BINUNICODE",
    "BINUNICODE", "BINUNICODE8", "STRING", "SHORT_BINSTRING", "BINSTRING", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8",
    "BYTEARRAY8",
}  # fmt: skip
"""Operations whose argument is the value."""
_CONSTANTS: Mapping[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
}
_CONTAINERS = {"EMPTY_LIST", "EMPTY_DICT", "LIST", "DICT", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "MARK", "REDUCE"}
_OPERATIONS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "GET": _Machine.get,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "TUPLE": lambda machine, _: machine.push_since_mark(tuple),
    "TUPLE1": lambda machine, _: machine.push_tuple(1),
    "TUPLE2": lambda machine, _: machine.push_tuple(2),
    "TUPLE3": lambda machine, _: machine.push_tuple(3),
    "LIST": lambda machine, _: machine.push_since_mark(list),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.append_all,
    "DICT": lambda machine, _: machine.push_since_mark(_dict_of),
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_all,
    "GLOBAL": _Machine.global_name,
    "STACK_GLOBAL": _Machine.name_of_stack,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.load_persistent,
}
