"""REAP's observations_*.pt: counts of each layer with the sums from which it scores experts (arXiv 2510.13999).

A dict {layer: {total_tokens, expert_frequency [E], ean_sum [E], ...}}. ean is the norm of an expert's output for a
token that chose it, weighted_ean that times the router's weight, and reap the mean of the latter: here it becomes a sum
again, so that the observations of two texts add up. `pairwise_expert_frequency` is, in REAP itself, f_i + f_j, what a
mean over the tokens of either expert is divided by: no number of tokens that chose both. It is kept as "pairs" only
where it is that number.
"""

from __future__ import annotations

import functools
import operator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_core.errors import TraceError, shortened
from moe_core.progress import Progress
from moe_core.recording_formats import title_of
from moe_core.routing.recordings.counted import Counted, note
from moe_core.routing.recordings.pieces import Options
from moe_core.routing.recordings.rank_files import rank_files
from moe_core.routing.recordings.torch_file import Tensor, first_words, opened_torch_file
from moe_core.routing.trace.checks import check_sizes
from moe_core.routing.trace.groups import Group, check_number
from moe_core.routing.trace.routing_counts import RoutingCounts
from moe_core.routing.trace.types import Float64Array, Int64Array

PATTERN = "observations*.pt"
FREQUENCY, TOKENS, PAIRS = "expert_frequency", "total_tokens", "pairwise_expert_frequency"
MOST_FILES = 1000
MOST_COUNTED = 2**53
Layer = dict[str, Any]


def is_recording(path: Path) -> bool:
    """Are there counts of experts in it, under REAP's name?"""
    return FREQUENCY.encode() in first_words(path)


def open_counts(path: Path, options: Options, progress: Progress) -> RoutingCounts:
    """The observations of a file, or of several, a domain each. Raises TraceError naming file and layer."""
    files = rank_files(path, PATTERN)
    if len(files) > MOST_FILES:
        raise TraceError(f"{len(files):,} files at {str(path)!r}; expected one for each kind of text")
    found = []
    for number, (file, domain) in enumerate(zip(files, _domains(files), strict=True)):
        progress("reading", number, len(files))
        found.append(_counted(file, domain).routing_counts(options))
    return functools.reduce(operator.add, found)


def _domains(files: list[Path]) -> list[str]:
    """REAP writes a folder for each kind of text."""
    for names in ([file.resolve().parent.name for file in files], [file.stem for file in files]):
        if len(files) > 1 and len(set(names)) == len(files):
            return names
    return ["all"] if len(files) == 1 else [str(file) for file in files]


def _counted(path: Path, domain: str) -> Counted:
    with opened_torch_file(path) as content:
        layers = _layers_of(path, content)
        counts_LE = _counts(path, layers)
        L, E = counts_LE.shape
        check_number(1, L, 1, E)
        check_sizes(L, 1, E)
        notes: list[str] = []
        tokens_L, top_k = _tokens(path, layers, counts_LE, notes)
        extras = _extras(path, layers, counts_LE)
        pairs = _pairs(path, layers, counts_LE, top_k, notes)
    return Counted(
        path,
        title_of("reap"),
        counts_LE[None, :, None],
        layers=list(layers),
        groups=[Group(domain=domain)],
        tokens=tokens_L.max().reshape(1, 1),
        uneven=len(set(tokens_L.tolist())) > 1,
        top_k=top_k,
        extras=extras if pairs is None else {**extras, "pairs": pairs},
        notes=notes,
    )


def _layers_of(path: Path, content: object) -> dict[int, Layer]:
    """The layers by number, ascending."""
    if not isinstance(content, dict) or not content:
        raise TraceError(f"{str(path)!r} holds a {type(content).__name__}; expected a dict of layers")
    for number, layer in content.items():
        if not isinstance(number, int) or isinstance(number, bool) or number < 0 or not isinstance(layer, dict):
            raise TraceError(f"{str(path)!r}: layer {shortened(number)}; expected a number, and a dict of observations")
    return {number: content[number] for number in sorted(content)}


def _array(path: Path, number: int, layer: Layer, name: str, shape: tuple[int, ...] | None) -> npt.NDArray[Any]:
    """An observation of a layer, of this shape; of any number of experts where it is None."""
    where = f"{str(path)!r}, layer {number}: {name}"
    tensor = layer.get(name)
    if shape == () and type(tensor) is int:
        return np.array(tensor)
    if not isinstance(tensor, Tensor):
        raise TraceError(f"{where} is {type(tensor).__name__}; expected a tensor")
    fits = len(tensor.shape) == 1 and tensor.shape[0] > 0 if shape is None else tensor.shape == shape
    if not fits:
        expected = "[experts]" if shape is None else list(shape)
        raise TraceError(f"{where} is {list(tensor.shape)}; expected {expected}")
    array = tensor.array()
    if not np.isfinite(array).all():
        raise TraceError(f"{where} holds NaN or infinity; expected sums")
    return array


def _whole(path: Path, number: int, layer: Layer, name: str, shape: tuple[int, ...] | None) -> Int64Array:
    array = _array(path, number, layer, name, shape)
    if not np.issubdtype(array.dtype, np.integer) or array.min() < 0 or array.max() > MOST_COUNTED:
        raise TraceError(
            f"{str(path)!r}, layer {number}: {name} is {array.dtype} from {array.min()} on; expected counts"
        )
    return array.astype(np.int64)


def _counts(path: Path, layers: dict[int, Layer]) -> Int64Array:
    """[L,E]."""
    first, *others = layers.items()
    rows = [_whole(path, *first, FREQUENCY, None)]
    rows += [_whole(path, number, layer, FREQUENCY, rows[0].shape) for number, layer in others]
    return np.stack(rows)


def _tokens(path: Path, layers: dict[int, Layer], counts_LE: Int64Array, notes: list[str]) -> tuple[Int64Array, int]:
    """[L] the number of tokens, and K: their choices divided by it."""
    tokens_L = np.array([int(_whole(path, number, layer, TOKENS, ())) for number, layer in layers.items()])
    top_k = round(int(counts_LE[0].sum()) / max(int(tokens_L[0]), 1))
    wrong = np.flatnonzero(counts_LE.sum(axis=1) != top_k * tokens_L)
    if len(wrong) or top_k < 1:
        at = int(wrong[0]) if len(wrong) else 0
        raise TraceError(
            f"{str(path)!r}, layer {list(layers)[at]}: {int(counts_LE[at].sum()):,} choices of {int(tokens_L[at]):,} "
            f"tokens; expected the same number for every token, {max(top_k, 1)} as in the first layer"
        )
    if len(set(tokens_L.tolist())) > 1:
        note(notes, f"layers saw {tokens_L.min():,} to {tokens_L.max():,} tokens, as where REAP was stopped in a pass")
    return tokens_L, top_k


SUMS = {
    "ean_sum": ("ean_sum", "ean_mean"),
    "reap_sum": ("weighted_ean_sum", "reap"),
    "weighted_expert_frequency_sum": ("weighted_expert_frequency_sum", ""),
}
"""Extras, each by REAP's sum, or by the mean over the expert's tokens where the sum is not there."""


def _extras(path: Path, layers: dict[int, Layer], counts_LE: Int64Array) -> dict[str, Float64Array]:
    """The sums [L,E] that every layer has."""
    found: dict[str, Float64Array] = {}
    for extra, (total, mean) in SUMS.items():
        name = next((one for one in (total, mean) if one and all(one in layer for layer in layers.values())), None)
        if name is None:
            continue
        rows = [_array(path, number, layer, name, counts_LE[0].shape) for number, layer in layers.items()]
        values = np.stack(rows).astype(np.float64)
        found[extra] = values if name == total else values * counts_LE
    return found


def _pairs(
    path: Path, layers: dict[int, Layer], counts_LE: Int64Array, top_k: int, notes: list[str]
) -> Float64Array | None:
    """[L,E,E] tokens that chose both experts; None where the file has something else under the name."""
    if not all(PAIRS in layer for layer in layers.values()):
        return None
    L, E = counts_LE.shape
    pairs_LEE = np.zeros((L, E, E))
    for place, (number, layer) in enumerate(layers.items()):
        pairs_EE = _whole(path, number, layer, PAIRS, (E, E))
        if (pairs_EE == counts_LE[place][:, None] + counts_LE[place]).all():
            note(notes, f"{PAIRS} holds f_i + f_j, as REAP itself writes it: not which experts were chosen together")
            return None
        if not pairs_EE.diagonal().any():  # an expert with itself was not counted
            pairs_EE = pairs_EE + np.diag(counts_LE[place])
        # Whoever chose expert i chose K experts, i among them.
        fits = (pairs_EE.diagonal() == counts_LE[place]).all() and (pairs_EE == pairs_EE.T).all()
        if not fits or (pairs_EE.sum(axis=1) != top_k * counts_LE[place]).any():
            note(notes, f"{PAIRS} is left out: it is neither f_i + f_j nor how many tokens chose both experts")
            return None
        pairs_LEE[place] = pairs_EE
    return pairs_LEE
