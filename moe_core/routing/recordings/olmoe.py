"""OLMoE's expert_counts/{domain}.pkl: a list of Counters, one for a layer, of how often each expert was chosen.

The file is named after the kind of text, so that a folder of them gives a domain each. The script keeps layers 0, 7 and
15 and does not name them, nor K.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from moe_core.errors import TraceError, shortened
from moe_core.progress import Progress
from moe_core.recording_formats import title_of
from moe_core.routing.recordings.counted import Counted
from moe_core.routing.recordings.pieces import Options
from moe_core.routing.recordings.rank_files import rank_files
from moe_core.routing.recordings.safe_pickle import read_pickle
from moe_core.routing.trace.checks import MAX_EXPERTS
from moe_core.routing.trace.groups import Group, check_number
from moe_core.routing.trace.routing_counts import RoutingCounts

PATTERN = "*.pkl"
MOST_COUNTED = 2**53
Counters = Sequence[dict[int, int]]
"""The counts of each layer by expert."""


def open_counts(path: Path, options: Options, progress: Progress) -> RoutingCounts:
    """The counts of one file, or of a folder with one for each domain. Raises TraceError naming file and layer."""
    files = rank_files(path, PATTERN)
    found = [_counters(file, progress) for file in files]
    for file, counters in zip(files, found, strict=True):
        if len(counters) != len(found[0]):
            raise TraceError(
                f"{str(file)!r} has {len(counters)} layers, {str(files[0])!r} {len(found[0])}; expected files of one "
                "model"
            )
    L, E = len(found[0]), 1 + max(expert for counters in found for counter in counters for expert in counter)
    check_number(1, L, len(files), E)
    counts = np.zeros((1, L, len(files), E), dtype=np.int64)
    for group, counters in enumerate(found):
        for layer, counter in enumerate(counters):
            for expert, count in counter.items():
                counts[0, layer, group, expert] = count
    counted = Counted(
        path, title_of("olmoe"), counts, groups=[Group(domain=file.stem) for file in files], knows_experts=False
    )
    if options.layers is None:
        counted.notes.append(
            f"the file does not name its {L} layers: they are counted from 0"
            + (" (OLMoE's script keeps 0, 7 and 15: --layers 0,7,15)" if L == 3 else "")
        )
    return counted.routing_counts(options)


def _counters(path: Path, progress: Progress) -> Counters:
    """What is in a file, checked."""
    content = read_pickle(path, progress)
    kind = type(content).__name__
    if isinstance(content, dict) and set(content) == set(range(len(content))):
        content = [content[layer] for layer in range(len(content))]
    if not isinstance(content, list | tuple) or not content:
        raise TraceError(f"{str(path)!r} holds a {kind}; expected a list of Counters, one a layer")
    for layer, counter in enumerate(content):
        if not isinstance(counter, dict) or not counter:
            raise TraceError(
                f"{str(path)!r}, layer {layer} is a {type(counter).__name__}"
                f"{' of nothing' if isinstance(counter, dict) else ''}; expected a Counter of experts"
            )
        for expert, count in counter.items():
            if not _whole(expert, MAX_EXPERTS) or not _whole(count, MOST_COUNTED):
                shown = shortened(count) if isinstance(count, int | float | str) else f"a {type(count).__name__}"
                raise TraceError(
                    f"{str(path)!r}, layer {layer}: {shortened(expert)} was chosen {shown} times; expected the number "
                    "of an expert, and how often it was chosen"
                )
    return content


def _whole(value: object, limit: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < limit
