"""The tokens of a text with all that is known of each: what a view of text paints, wherever it was read or written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class TokenArrays:
    """T tokens in L layers, K slots each."""

    tokens: Sequence[bytes | None]
    """[T] UTF-8 bytes of each token, perhaps part of a character; None = the end-of-text before a passage."""
    layers: Sequence[int]
    """[L] layer numbers."""
    num_experts: int
    indices: npt.NDArray[np.int16]
    """[L,T,K] chosen experts, -1 = unused."""
    scores: npt.NDArray[np.float32]
    """[L,T,K] weights >= 0."""
    entropies: npt.NDArray[np.float32] | None = None
    """[L,T] router entropy, 0..1."""
    losses: npt.NDArray[np.float32] | None = None
    """[T] nats, NaN = not predicted."""
    ranks: npt.NDArray[np.int32] | None = None
    """[T] place of the token among the model's guesses, 0 = not predicted."""
    changes: npt.NDArray[np.float32] | None = None
    """[T] nats: loss after a change of the model less the loss before it, NaN = not predicted."""
    marks: npt.NDArray[np.bool_] | None = None
    """[L,T] tokens to underline with dots where that layer is shown."""
    mark_label: str = ""
    """What the dots mean, for the legend; also under which words a marked token is described."""
    domain_ids: npt.NDArray[np.int16] | None = None
    """[T] index into `domains`."""
    domains: Sequence[str] = ()
    """Two or more: a view offers them as colours and puts the name above each passage."""
    starts: Sequence[int] = ()
    """First token of each passage."""


def aligned(first: Sequence[object], second: Sequence[object]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """([N], [N]) places of the tokens that both texts have, in order: what a comparison of two files would join."""
    if list(first) == list(second):
        same = np.arange(len(first))
        return same, same
    blocks = SequenceMatcher(None, first, second, autojunk=False).get_matching_blocks()
    own = [block.a + i for block in blocks for i in range(block.size)]
    other = [block.b + i for block in blocks for i in range(block.size)]
    return np.array(own, np.intp), np.array(other, np.intp)
