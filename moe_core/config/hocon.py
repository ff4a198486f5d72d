"""One HOCON file as a tree of values, read by a process of its own that has little memory and little time.

A few lines of HOCON can ask for any amount of either: substitutions that double each other, a file that includes
itself, an include of a device. Limits on a process hold against all of these, whatever they look like. So this file is
also that process's program: it imports pyhocon and the standard library only.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MAX_BYTES = 2**18
"""Of one file. The largest configuration that names every key has less than 2**12."""
MAX_DEPTH = 8
"""Files that include one another."""
MAX_MEMORY = 2**28
"""Bytes that the reading process may have."""
MAX_SECONDS, MAX_WAIT = 5, 120
"""Of its processor, and by the clock."""
_TOO_MUCH = (
    f"it asks for more than {MAX_MEMORY >> 20} MiB of memory or {MAX_SECONDS} s of a processor; look for includes or "
    "substitutions that multiply one another"
)


class HoconError(Exception):
    """What is wrong, in half a sentence."""


def read_hocon(path: Path) -> Any:
    """The file's values: mappings as dict, null as None, durations as text. Raises HoconError, OSError, ValueError."""
    text = read_limited(path)
    environment = {"PYTHONPATH": os.pathsep.join(part for part in sys.path if part), "PYTHONIOENCODING": "utf-8"}
    try:
        done = subprocess.run(
            [sys.executable, "-P", __file__, str(path.parent)],
            input=text.encode(),
            capture_output=True,
            timeout=MAX_WAIT,
            check=False,
            env={**os.environ, **environment},
        )
    except subprocess.TimeoutExpired:
        raise HoconError(_TOO_MUCH) from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:  # the process was ended by a limit before it could say so
        raise HoconError(_TOO_MUCH) from None
    if "error" in answer:
        raise HoconError(answer["error"])
    return answer["tree"]


def read_limited(path: Path) -> str:
    """The text of a regular file of at most MAX_BYTES. Raises OSError, ValueError."""
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError("it is a folder; expected a text file")
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no regular file; expected a text file")
    if found.st_size > MAX_BYTES:
        raise ValueError(f"it has {found.st_size:,} bytes; expected {MAX_BYTES:,} at most")
    with path.open("rb") as file:  # files of /proc say that they have 0 bytes
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
    return content.decode("utf-8-sig")


def _parse(text: str, folder: str) -> Any:
    """Runs in the process of its own, where replacing pyhocon's reader of includes touches nobody else."""
    from pyhocon import ConfigFactory, ConfigTree

    open_files: list[Path] = []

    def parse_file(filename: str, *, required: bool = False, **options: Any) -> Any:  # noqa: ARG001 - pyhocon's names
        path = Path(filename)
        name = path.name[:60]
        if len(open_files) == MAX_DEPTH:
            raise HoconError(f"included file {name!r} is {MAX_DEPTH + 1} includes deep, or includes itself")
        try:
            content = read_limited(path)
        except OSError:
            raise HoconError(f"included file {name!r} does not exist or cannot be read") from None
        except ValueError as error:
            raise HoconError(f"included file {name!r} cannot be read: {error}") from None
        open_files.append(path)
        try:
            return ConfigFactory.parse_string(content, str(path.parent), **options)
        finally:
            open_files.pop()

    def parse_url(*_arguments: Any, **_options: Any) -> Any:
        raise HoconError('it has an include url; expected a local file, include "base.conf"')

    ConfigFactory.parse_file, ConfigFactory.parse_URL = parse_file, parse_url
    parsed = ConfigFactory.parse_string(text, folder)
    return parsed.as_plain_ordered_dict() if isinstance(parsed, ConfigTree) else parsed


def _limit_this_process() -> None:
    try:
        import resource
    except ImportError:  # Windows: the clock alone limits
        return
    for what, most in ((resource.RLIMIT_AS, MAX_MEMORY), (resource.RLIMIT_CPU, MAX_SECONDS)):
        resource.setrlimit(what, (most, most))


def _answer(text: str, folder: str) -> Mapping[str, Any]:
    from pyhocon.exceptions import ConfigException
    from pyparsing import ParseBaseException

    try:
        return {"tree": _parse(text, folder)}
    except HoconError as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": _TOO_MUCH}
    except RecursionError:
        return {"error": "it is nested too deeply"}
    except (ConfigException, ParseBaseException, OSError, ValueError) as error:
        return {"error": " ".join(str(error).split())}


if __name__ == "__main__":
    _limit_this_process()
    sys.stdout.write(json.dumps(_answer(sys.stdin.buffer.read().decode(), sys.argv[1]), default=str))
