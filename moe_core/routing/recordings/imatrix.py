"""The importance matrix of llama.cpp (`llama-imatrix`, a GGUF file): how many tokens each expert was chosen by.

For every matrix of the model the file holds sums over the tokens that went through it, and under NAME.counts their
number: one for each expert where the matrix is of experts, one for all tokens where it is not. So the counts of
attention or of the router tell the number of tokens, and both together K.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from moe_core.errors import TraceError
from moe_core.progress import Progress
from moe_core.recording_formats import title_of
from moe_core.routing.recordings.counted import Counted
from moe_core.routing.recordings.gguf_file import GgufFile, Value, read_gguf_head
from moe_core.routing.recordings.pieces import Options
from moe_core.routing.trace.routing_counts import RoutingCounts
from moe_core.routing.trace.types import Int64Array

COUNTS = re.compile(r"blk\.(\d{1,6})\.([a-z0-9_]+)\.weight\.counts")
START_BYTES = 2**12
SAYS_IMATRIX = b"general.type" + struct.pack("<IQ", 8, 7) + b"imatrix"
"""The key, the kind of a text, its length and the text."""
MOST_OF_TOKENS = 2**20
"""More experts than any model has: what is longer is no row of counts."""
EXACT = 2**24
"""The largest number up to which float32 has every whole number."""


@dataclass
class _Layer:
    """The counts of one layer by the name of the matrix."""

    experts: dict[str, Int64Array] = field(default_factory=dict)
    dense: dict[str, int] = field(default_factory=dict)


def open_counts(path: Path, options: Options, progress: Progress) -> RoutingCounts:
    """The counts of an importance matrix. Raises TraceError, at the first value of it, for a model's file."""
    with path.open("rb") as file_start:
        start = file_start.read(START_BYTES)
    if start[8:12] == b"blk.":
        raise TraceError(
            f"{str(path)!r} is an importance matrix of the older kind (.dat), which has no counts of experts; run "
            "llama-imatrix with --output-format gguf"
        )
    says_imatrix = SAYS_IMATRIX in start
    progress("reading", 0, 1)
    file = read_gguf_head(path, lambda key, value: _check_kind(path, key, value, says_imatrix))
    if file.values.get("general.type") != "imatrix":
        raise _other_file(path, "without general.type")
    layers = {number: layer for number, layer in sorted(_layers(file).items()) if layer.experts}
    if not layers:
        raise TraceError(
            f"{str(path)!r} has counts of no experts; expected tensors blk.N.ffn_down_exps.weight.counts, as "
            "llama-imatrix writes them for a model with experts (in a .gguf: a .dat has none, nor what is made of one)"
        )
    counts_LE = _same_length(path, {number: _of_layer(path, number, layer) for number, layer in layers.items()})
    counted = Counted(path, title_of("imatrix"), counts_LE[None, :, None], layers=list(layers))
    counted.top_k = _top_k(list(layers.values()), counts_LE, counted.notes)
    if counts_LE.max() > EXACT:
        counted.notes.append(f"the file holds counts as float32: those above {EXACT:,} are rounded")
    progress("reading", 1, 1)
    return counted.routing_counts(options)


def _check_kind(path: Path, key: str, value: Value, says_imatrix: bool) -> None:
    """A model's file is left at once: its values go on with the whole vocabulary.

    An importance matrix may name an architecture too, as the Python library of GGUF writes one in every file.
    """
    if key == "general.type" and value != "imatrix":
        raise _other_file(path, f"of the type {str(value)[:40]!r}")
    if key == "general.architecture" and not says_imatrix:
        raise _other_file(path, f"of a model ({str(value)[:40]!r})")


def _other_file(path: Path, what: str) -> TraceError:
    return TraceError(
        f"{str(path)!r} is a GGUF file {what}; expected an importance matrix, general.type 'imatrix': "
        "llama-imatrix -m MODEL -f TEXT -o imatrix.gguf writes one"
    )


def _layers(file: GgufFile) -> dict[int, _Layer]:
    layers: dict[int, _Layer] = {}
    for name, tensor in file.tensors.items():
        found = COUNTS.fullmatch(name)
        if not found:
            continue
        is_row = len(tensor.shape) == 1 or (len(tensor.shape) == 2 and 1 in tensor.shape)
        if not is_row or max(tensor.shape) > MOST_OF_TOKENS:
            raise TraceError(
                f"{str(file.path)!r}, tensor {name!r} is {list(tensor.shape)}; expected [experts, 1] or [1, 1]"
            )
        values = file.array(name).reshape(-1)
        whole = np.isfinite(values) & (values >= 0) & (values < 2**62)
        if not whole.all() or (values != np.floor(values)).any():
            raise TraceError(f"{str(file.path)!r}, tensor {name!r} holds numbers that are no counts; copy it again")
        layer = layers.setdefault(int(found[1]), _Layer())
        if found[2].endswith("_exps"):
            layer.experts[found[2]] = values.astype(np.int64)
        else:
            layer.dense[found[2]] = int(values.max(initial=0))
    return layers


def _of_layer(path: Path, number: int, layer: _Layer) -> Int64Array:
    """The counts of a layer's experts: its matrices have the same, for a token goes through all of an expert."""
    (first, counts_E), *others = sorted(layer.experts.items())
    for name, other in others:
        if not np.array_equal(other, counts_E):
            raise TraceError(
                f"{str(path)!r}, layer {number}: {first} and {name} count differently; expected the same tokens in all "
                "matrices of an expert"
            )
    return counts_E


def _same_length(path: Path, layers: dict[int, Int64Array]) -> Int64Array:
    sizes = {number: len(counts_E) for number, counts_E in layers.items()}
    first = next(iter(sizes))
    other = next((number for number, size in sizes.items() if size != sizes[first]), first)
    if other != first:
        raise TraceError(
            f"{str(path)!r}: {sizes[first]} experts in layer {first}, {sizes[other]} in layer {other}; expected the "
            "same number in every layer"
        )
    counts_LE = np.stack(list(layers.values()))
    if sizes[first] == 1 or (counts_LE == counts_LE[:, :1]).all():
        raise TraceError(
            f"{str(path)!r} counts the same for every expert, as an importance matrix made of an older .dat does, "
            "which holds the number of chunks alone; run llama-imatrix again"
        )
    return counts_LE


def _top_k(layers: list[_Layer], counts_LE: Int64Array, notes: list[str]) -> int | None:
    """K, by the number of tokens that every other matrix counts; None where the choices are no multiple of it."""
    tokens_L = np.array([layer.dense.get("ffn_gate_inp") or max(layer.dense.values(), default=0) for layer in layers])
    if not tokens_L.all():
        return None
    K_L = counts_LE.sum(axis=1) / tokens_L
    top_k = round(float(K_L[0]))
    if top_k < 1 or (np.abs(K_L - top_k) > 1e-6 * top_k).any():
        notes.append(
            f"{int(tokens_L.max()):,} tokens by the counts of the other matrices do not fit "
            f"{int(counts_LE.sum(axis=1).max()):,} choices: llama.cpp leaves batches of fewer than 16 tokens out there"
        )
        return None
    return top_k
