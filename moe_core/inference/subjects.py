"""What the dashboard can be opened on besides a run: routing in a file, or a model of the transformers library.

Everything that was opened on this server is offered to every session under a short name. The name stands in the URL,
the path does not: a link can only choose what somebody opened here.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from moe_core.errors import UsageError
from moe_core.files import user_path
from moe_core.inference.kept_files import FileOfOurs, Holds, Said, file_of_ours
from moe_core.inference.recently_opened import Recent, remember
from moe_core.progress import Progress, silent
from moe_core.runs import RunFolder

LONGEST_NAME = 120
MAX_OPENED = 16
"""More are not kept: what was opened longest ago goes first."""


@dataclass(frozen=True)
class RoutingFile:
    """Routing in a file: a trace or counts of ours, or a recording, which was converted into one of these."""

    name: str
    """As in the side bar and the URL: "trace text.parquet", "counts imatrix.gguf". No run has such a name, as those
    have no spaces."""
    path: Path
    """The trace or the counts, a file of ours."""
    holds: Holds = "tokens"
    title: str = "trace"
    """What made it, for people: "SGLang routed_experts"; "trace" or "counts" of a file of ours."""
    recording: Path | None = None
    """What `path` was converted from; None where it is what was opened."""

    @property
    def kind(self) -> Literal["trace", "counts"]:
        """What its name begins with."""
        return "counts" if self.holds == "counts" else "trace"

    @property
    def opened(self) -> Path:
        """What was opened, as a user knows it."""
        return self.recording or self.path


@dataclass(frozen=True)
class ForeignModel:
    """A model that instruments.huggingface can load."""

    name: str
    """As in the side bar and the URL: "model mixtral"."""
    where: str
    """Its folder, or the name under which the library finds it."""
    device: str = "auto"
    dtype: str = "auto"
    trust_remote_code: bool = False
    """Only from the command line: a page that anybody on this computer may open never starts foreign code."""


Opened = RoutingFile | ForeignModel
Subject = RunFolder | Opened
"""Anything that a page can show."""
Live = RunFolder | ForeignModel
"""A subject that can read and write text."""


@dataclass
class Registry:
    """What was opened on this server, in the order of opening."""

    _items: dict[str, Opened] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def all(self) -> list[Opened]:
        """The last opened first."""
        with self._lock:
            return list(reversed(self._items.values()))

    def find(self, name: str) -> Opened | None:
        """What is open under this name."""
        with self._lock:
            return self._items.get(name)

    def open_file(
        self,
        path: str | Path,
        shown: str | None = None,
        *,
        said: Said = Said(),  # noqa: B008 - immutable
        is_upload: bool = False,
        progress: Progress = silent,
    ) -> RoutingFile:
        """Offer the routing at `path`, whatever routing.open_routing reads, under the file's own name or `shown`.

        A recording is converted first, and what it became is kept (see kept_files). An upload goes with the server:
        what was kept of it is offered. Raises TraceError or UsageError when it cannot be opened.
        """
        place = user_path(path).resolve()
        ours = file_of_ours(place, said, is_upload=is_upload, in_use=self.paths(), progress=progress)
        found = self._offer_file(ours, shown or place.name, ours.path if is_upload else place)
        remember(Recent(found.kind, shown or place.name, str(found.opened), time.time(), is_upload, said))
        return found

    def _offer_file(self, ours: FileOfOurs, shown: str, place: Path) -> RoutingFile:
        with self._lock:
            found = RoutingFile("", ours.path, ours.holds, ours.title, None if ours.path == place else place)
            known = next((one for one in self._items.values() if getattr(one, "opened", None) == place), None)
            if known is not None and known.name.startswith(f"{found.kind} "):
                found = replace(found, name=known.name)
            else:
                found = replace(found, name=self._free_name(f"{found.kind} {shown}"))
            self._keep_opened(found)
        return found

    def open_again(self, one: Recent, progress: Progress = silent) -> Opened:
        """Offer what was opened lately. Raises MoescopeError where it is gone or cannot be opened any more."""
        if one.kind == "model":
            return self.open_model(one.place, device=one.device, dtype=one.dtype)
        return self.open_file(one.place, one.shown, said=one.said, is_upload=one.is_upload, progress=progress)

    def paths(self) -> list[Path]:
        """The files that are offered."""
        return [one.path for one in self.all() if isinstance(one, RoutingFile)]

    def open_model(
        self, where: str, *, device: str = "auto", dtype: str = "auto", trust_remote_code: bool = False
    ) -> ForeignModel:
        """Offer the model in this folder or of this name; it is loaded when a page needs it. Raises UsageError."""
        folder = user_path(where)
        if folder.exists() and not (folder / "config.json").is_file():
            raise UsageError(f"{where!r} is no model: it has no config.json; expected a folder with one, or a trace")
        place = str(folder.resolve()) if folder.exists() else where
        with self._lock:
            known = next((one for one in self._items.values() if getattr(one, "where", None) == place), None)
            found = ForeignModel(
                known.name if known else self._free_name(f"model {Path(place).name}"),
                place,
                device,
                dtype,
                trust_remote_code,
            )
            self._keep_opened(found)
        return found

    def close(self, name: str) -> None:
        """Offer it no longer; the file stays."""
        with self._lock:
            self._items.pop(name, None)

    def _free_name(self, name: str) -> str:
        """The name, with a number where another file has it already; names of files are untrusted."""
        name = "".join(sign if sign.isprintable() else "�" for sign in name)[:LONGEST_NAME]
        number, free = 1, name
        while free in self._items:
            number += 1
            free = f"{name} ({number})"
        return free

    def _keep_opened(self, item: Opened) -> None:
        self._items.pop(item.name, None)
        self._items[item.name] = item
        while len(self._items) > MAX_OPENED:
            self._items.pop(next(iter(self._items)))


def remember_model(model: ForeignModel) -> None:
    """Offer it among what was opened lately, once it is known to open; foreign code is never remembered."""
    name = model.name.partition(" ")[2]
    remember(Recent("model", name, model.where, time.time(), device=model.device, dtype=model.dtype))


OPENED = Registry()
"""Everything that was opened on this server."""
