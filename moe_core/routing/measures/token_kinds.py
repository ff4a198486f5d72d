"""What kind of token each one is, by its text and by the token before it: a labelling that every text has."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from moe_core.errors import TraceError
from moe_core.routing.measures.tokens import consecutive
from moe_core.routing.trace.trace import RoutingTrace
from moe_core.routing.trace.types import Int16Array

KIND = "kind"
KINDS = ("begins a word", "inside a word", "number", "punctuation", "white space", "part of a character", "control")
"""Symbols count as punctuation. A token of several parts is of the first of these kinds that any part has."""
_CONTROL = re.compile(r"<\|[^<>\s]*\|>|<(s|/s|bos|eos|pad|unk|mask)>|\[(CLS|SEP|PAD|UNK|MASK)\]")
_BYTES = re.compile(r"(\\x[0-9A-F]{2})+")
_BEGINS, _INSIDE, _NUMBER, _PUNCTUATION, _SPACE, _PART, _CONTROL_TOKEN = range(len(KINDS))


def kind_labelled(trace: RoutingTrace) -> RoutingTrace:
    """The trace with its kinds of token for labels; older labels are gone.

    Letters begin a word behind anything that is no letter: white space or a sign in the same token, a token that ends
    in one, or the document's beginning. Raises TraceError without texts of the tokens.
    """
    if not trace.vocabulary:
        raise TraceError("the tokens have no text in the trace, so their kind is unknown; trace with a tokenizer")
    kind_T = _kinds(trace)
    present = np.unique(kind_T[kind_T >= 0])
    ids_T = np.where(kind_T >= 0, np.searchsorted(present, kind_T), -1).astype(np.int16)
    return replace(trace, label_ids=ids_T, labels=[KINDS[kind] for kind in present], labelling=KIND)


def _kinds(trace: RoutingTrace) -> Int16Array:
    """[T] index into KINDS; -1 for a token without a text."""
    ids_V, place_T = np.unique(trace.token_ids, return_inverse=True)
    texts = [trace.vocabulary.get(int(token_id)) for token_id in ids_V]
    kind_V = np.array([-1 if text is None else _kind(text) for text in texts], dtype=np.int16)
    starts_V = np.array([bool(text and text[0].isalpha()) for text in texts])
    ends_V = np.array([bool(text and text[-1].isalpha() and not _BYTES.fullmatch(text)) for text in texts])
    control_V = kind_V == _CONTROL_TOKEN
    kind_T = kind_V[place_T]
    earlier, later = consecutive(trace)
    goes_on_T = np.zeros(trace.num_tokens, dtype=bool)
    goes_on_T[later] = (ends_V & ~control_V)[place_T[earlier]]
    kind_T[(kind_T == _BEGINS) & starts_V[place_T] & goes_on_T] = _INSIDE
    return kind_T


def _kind(text: str) -> int:
    """As if it stood at the beginning of a document."""
    if _CONTROL.fullmatch(text):
        return _CONTROL_TOKEN
    if _BYTES.fullmatch(text):
        return _PART
    if any(character.isalpha() for character in text):
        return _BEGINS
    if any(character.isnumeric() for character in text):
        return _NUMBER
    return _PUNCTUATION if text.strip() else _SPACE
