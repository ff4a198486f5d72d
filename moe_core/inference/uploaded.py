"""Files that a browser sent: they lie in a folder of the server until they are read, and go with it."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from moe_core.errors import MoescopeError
from moe_core.inference.kept_files import Said
from moe_core.inference.opening_job import OpeningJob, start_opening
from moe_core.inference.subjects import Registry, RoutingFile
from moe_core.progress import Progress
from moe_core.routing.opening import kind_of_file

LONGEST_NAME = 100
_UNSAFE = re.compile(r"[^\w.,=+@ ()-]")


@dataclass(frozen=True)
class Upload:
    """One file as the browser sent it."""

    name: str
    """As the browser says it: untrusted."""
    content: bytes


def open_uploads(registry: Registry, uploads: Sequence[Upload], said: Said) -> OpeningJob:
    """Start to open them: each by itself where all are traces or counts, else as the ranks of one recording.

    Their names stay as far as they are safe, since those of rank files say their order.
    """
    folder = Path(tempfile.mkdtemp(dir=_folder_of_uploads().name))
    paths: list[Path] = []
    for number, upload in enumerate(uploads):
        path = folder / safe_name(upload.name)
        paths.append(path if path not in paths else folder / f"{number} {path.name}")
        paths[-1].write_bytes(upload.content)
    shown = paths[0].name + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")

    def work(progress: Progress) -> RoutingFile:
        try:
            if len(paths) == 1 or all(kind_of_file(path) for path in paths):
                return [registry.open_file(path, said=said, is_upload=True, progress=progress) for path in paths][-1]
            return registry.open_file(folder, shown, said=said, is_upload=True, progress=progress)
        except MoescopeError as error:
            raise type(error)(_as_sent(str(error), folder, shown)) from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    return start_opening(str(folder), shown, work)


def _as_sent(message: str, folder: Path, shown: str) -> str:
    """A message about files in the folder with their names as their sender knows them: where they lay is nobody's
    business."""
    for place in {str(folder), str(folder.resolve())}:
        message = message.replace(f"{place}{os.sep}", "").replace(place, shown)
    return message


def safe_name(name: str) -> str:
    """A browser's name of a file as one that can be written here: no folder, no marks, not too long."""
    clean = _UNSAFE.sub("_", Path(name.replace("\\", "/")).name).strip(". ") or "upload"
    stem, dot, ending = clean.rpartition(".")
    return clean if len(clean) <= LONGEST_NAME else f"{(stem or ending)[:80]}{dot}{ending[-19:]}"


@cache
def _folder_of_uploads() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="moescope-uploads-")
