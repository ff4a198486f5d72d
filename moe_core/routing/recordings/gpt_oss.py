"""Texts with their routing in JSON, as the dataset of gpt-oss expert fingerprints has them (docs/trace-format.md).

An object is a text: `full_text` its tokens as they read, `router_data` what the router chose for those that were
generated. Tokens have no ids; their texts are what the trace shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from moe_core.errors import TraceError
from moe_core.progress import Progress, silent
from moe_core.recording_formats import title_of
from moe_core.routing.recordings.json_records import Record, json_records
from moe_core.routing.recordings.pieces import PIECE_TOKENS, Options, Piece, Recording, TokenTexts
from moe_core.routing.recordings.rank_files import rank_files

PATTERN = "*.json"
ROUTING, TEXT = "router_data", "full_text"
EXPERTS, WEIGHTS = "selected_experts", "selected_probs"
MAX_BYTES = 2**27
"""JSON of 10,000 tokens takes 70 MB."""
_LOOK_AT = 2**24
_LARGEST = 2**31
_KEY = re.compile(rb'(?<!\\)"' + ROUTING.encode() + rb'"\s*:')
_TOKEN, _LAYER = re.compile(r"token_(\d{1,9})"), re.compile(r"layer_(\d{1,9})")


def is_recording(path: Path) -> bool:
    """Whether the key of the routing is there, which no text can hold: a quotation mark of its own has a backslash."""
    with path.open("rb") as file:
        return _KEY.search(file.read(_LOOK_AT)) is not None


def open_recording(path: Path, options: Options) -> Recording:
    """A file of one text or several, or a folder of such files."""
    if options.token_ids is not None:
        raise TraceError(f"{str(path)!r} has the texts of its tokens in place of ids; leave --token-ids out")
    files = rank_files(path, PATTERN)
    first = next(_records_of(files, silent), None)
    if first is None:
        raise TraceError(f"{str(path)!r} is empty; expected texts with {ROUTING}")
    layers = _layers_of(*first)
    recording = Recording(path, "gpt-oss", title_of("gpt-oss"), layers=layers)

    def pieces(progress: Progress) -> Iterator[Piece]:
        for document, (place, name, record) in enumerate(_records_of(files, progress)):
            domain = recording.domain_number(str(record.get("domain") or record.get("category") or "all"))
            yield from _pieces_of_text(record, place, name, layers, (document, domain), recording)

    recording.pieces = pieces
    return recording


def _records_of(files: list[Path], progress: Progress) -> Iterator[tuple[str, str, Record]]:
    """Every text with its whole place, and the short one that stands behind the recording's path."""
    for number, file in enumerate(files):
        if len(files) > 1:
            progress("reading", number, len(files))
        for name, record in json_records(file, progress if len(files) == 1 else silent, most_bytes=MAX_BYTES):
            parts = [file.name] * (len(files) > 1) + [name] * bool(name)
            yield ", ".join([repr(str(file)), *[name] * bool(name)]), ", ".join(parts), record


def _layers_of(place: str, _: str, record: Record) -> list[int]:
    """Layer numbers of the first token."""
    for _position, layers in _tokens_of(record, place):
        matches = [match for match in map(_LAYER.fullmatch, layers) if match]
        if not matches or len(matches) < len(layers):
            raise TraceError(f"{place}: layers are {', '.join(map(repr, layers))[:80]}; expected layer_0, layer_1, ...")
        return sorted(int(match[1]) for match in matches)
    raise TraceError(f"{place}: {ROUTING} is empty; expected the routing of at least one token")


def _tokens_of(record: Record, place: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The place of every token in the text, and its layers."""
    routing = record.get(ROUTING)
    if not isinstance(routing, list):
        raise TraceError(f"{place}: {ROUTING} is {type(routing).__name__}; expected a list, an entry a token")
    last = -1
    for number, entry in enumerate(routing):
        if not isinstance(entry, dict):
            raise TraceError(f"{place}, {ROUTING} {number} is {type(entry).__name__}; expected an object token_...")
        for name, layers in entry.items():
            match = _TOKEN.fullmatch(name)
            if match is None or int(match[1]) <= last:
                raise TraceError(
                    f"{place}, {ROUTING} {number}: {name[:40]!r}; expected token_{last + 1} or a later one"
                )
            if not isinstance(layers, dict):
                raise TraceError(f"{place}, {name} is {type(layers).__name__}; expected an object with its layers")
            last = int(match[1])
            yield last, layers


def _pieces_of_text(
    record: Record, place: str, name: str, layers: list[int], numbers: tuple[int, int], recording: Recording
) -> Iterator[Piece]:
    names = [f"layer_{layer}" for layer in layers]
    positions: list[int] = []
    experts: list[list[list[int]]] = []
    weights: list[list[list[float]]] = []
    for position, found in _tokens_of(record, place):
        if len(found) != len(names) or any(layer not in found for layer in names):
            raise TraceError(f"{place}, token_{position} has {len(found)} layers; expected {names[0]} to {names[-1]}")
        cells = [_cell(found[layer], f"{place}, token_{position}, {layer}") for layer in names]
        positions.append(position)
        experts.append([chosen for chosen, _ in cells])
        weights.append([shares for _, shares in cells])
    experts_TLK = _same_size(experts, positions, place)
    with np.errstate(over="ignore"):  # a number beyond float32 becomes infinity, which is refused by name
        weights_TLK = np.array(weights, dtype=np.float32)
    texts = _texts_of(record, positions, place)
    if positions and positions[0]:
        recording.note("the first tokens of a text, its prompt, have no routing")
    document, domain = numbers
    prefix = f"{name}, " if name else ""
    for begin in range(0, len(positions), PIECE_TOKENS):
        part = slice(begin, begin + PIECE_TOKENS)
        here = positions[part]
        yield Piece(
            experts=experts_TLK[part],
            weights=weights_TLK[part],
            texts=None if texts is None else texts[part],
            documents=np.full(len(here), document),
            domains=np.full(len(here), domain),
            positions=np.array(here),
            row=lambda t, here=here: f"{prefix}token_{here[t]}",  # type: ignore[misc]
            column=lambda layer, slot: f"layer_{layers[layer]}, slot {slot}",
        )


def _cell(value: Any, place: str) -> tuple[list[int], list[float]]:
    """Experts and weights of one token in one layer."""
    chosen, shares = (value.get(key) if isinstance(value, dict) else None for key in (EXPERTS, WEIGHTS))
    if not isinstance(chosen, list) or not all(type(expert) is int and -1 <= expert < _LARGEST for expert in chosen):
        raise TraceError(f"{place}: {EXPERTS} is no list of expert ids")
    if not isinstance(shares, list) or not all(_is_share(share) for share in shares):
        raise TraceError(f"{place}: {WEIGHTS} is no list of numbers")
    if len(chosen) != len(shares) or not chosen:
        raise TraceError(f"{place}: {len(chosen)} experts with {len(shares)} weights; expected as many, one or more")
    return chosen, shares


def _is_share(value: object) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < _LARGEST)


def _same_size(experts: list[list[list[int]]], positions: list[int], place: str) -> Any:
    """[T,L,K], every token with as many experts in every layer."""
    top_k = len(experts[0][0]) if experts else 1
    for position, of_token in zip(positions, experts, strict=True):
        sizes = {len(of_layer) for of_layer in of_token} - {top_k}
        if sizes:
            raise TraceError(f"{place}, token_{position} has {min(sizes)} experts in a layer; expected {top_k}")
    return np.array(experts, dtype=np.int64).reshape(len(experts), -1, top_k)


def _texts_of(record: Record, positions: list[int], place: str) -> TokenTexts | None:
    """What the tokens read; None where the text was left out."""
    whole = record.get(TEXT)
    if whole is None or not positions:
        return None
    if not isinstance(whole, list) or not all(isinstance(text, str) for text in whole):
        raise TraceError(f"{place}: {TEXT} is {type(whole).__name__}; expected the list of the tokens' texts")
    if positions[-1] >= len(whole):
        raise TraceError(f"{place}: token_{positions[-1]} of a text with {len(whole):,} tokens; expected fewer")
    return TokenTexts.of([whole[position] for position in positions])
