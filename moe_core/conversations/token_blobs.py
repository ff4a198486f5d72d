"""Tokens of an answer as they lie in the database: what was written since the last time, in a row of its own."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moe_core.conversations.threads import WrittenTokens
from moe_core.errors import RunError

_LEVEL = 1
"""Numbers of experts are small and repeat: more work hardly makes them smaller."""


class TokenBlobs(NamedTuple):
    """Little-endian arrays, each compressed."""

    shape: str
    """ "S L K"."""
    token_ids: bytes
    lengths: bytes
    """Bytes of each token."""
    pieces: bytes
    """All tokens' bytes, one behind the other."""
    experts: bytes
    weights: bytes
    """float16"""
    losses: bytes


def packed(tokens: WrittenTokens) -> TokenBlobs:
    """As unpacked reads it."""
    return TokenBlobs(
        shape=" ".join(map(str, tokens.experts.shape)),
        token_ids=_squeeze(tokens.token_ids, "<i4"),
        lengths=_squeeze([len(piece) for piece in tokens.pieces], "<u4"),
        pieces=zlib.compress(b"".join(tokens.pieces), _LEVEL),
        experts=_squeeze(tokens.experts, "<i2"),
        weights=_squeeze(tokens.weights, "<f2"),
        losses=_squeeze(tokens.losses, "<f4"),
    )


def unpacked(blobs: TokenBlobs) -> WrittenTokens:
    """Raises RunError where they do not fit together."""
    try:
        S, L, K = (int(size) for size in blobs.shape.split())
        ends = np.cumsum(_spread(blobs.lengths, "<u4", (S,)), dtype=np.int64)
        text = zlib.decompress(blobs.pieces)
        if len(text) != (ends[-1] if S else 0):
            raise ValueError("tokens of another length")
        return WrittenTokens(
            token_ids=_spread(blobs.token_ids, "<i4", (S,)).astype(np.int32),
            pieces=tuple(text[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)) if S else (),
            experts=_spread(blobs.experts, "<i2", (S, L, K)).astype(np.int16),
            weights=_spread(blobs.weights, "<f2", (S, L, K)).astype(np.float32),
            losses=_spread(blobs.losses, "<f4", (S,)).astype(np.float32),
        )
    except (ValueError, TypeError, zlib.error) as error:
        raise RunError(f"the routing of this answer is damaged: {error}; its text is not concerned") from error


def joined(parts: Sequence[WrittenTokens]) -> WrittenTokens | None:
    """One behind the other; None of nothing."""
    if not parts:
        return None
    return WrittenTokens(
        token_ids=np.concatenate([part.token_ids for part in parts]),
        pieces=tuple(piece for part in parts for piece in part.pieces),
        experts=np.concatenate([part.experts for part in parts]),
        weights=np.concatenate([part.weights for part in parts]),
        losses=np.concatenate([part.losses for part in parts]),
    )


def _squeeze(values: npt.ArrayLike, kind: str) -> bytes:
    return zlib.compress(np.ascontiguousarray(values).astype(kind).tobytes(), _LEVEL)


def _spread(blob: bytes, kind: str, shape: tuple[int, ...]) -> npt.NDArray[np.generic]:
    return np.frombuffer(zlib.decompress(blob), kind).reshape(shape)
