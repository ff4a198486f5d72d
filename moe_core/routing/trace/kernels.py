"""How often each expert, or pair of experts, is chosen: numpy's bincount over a key made of whole numbers.

That is why a million tokens take milliseconds: measured by bench.aggregation. Unused slots (index -1) are not counted.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_core.routing.trace.types import Int64Array

CHUNK_TOKENS = 65_536
"""Tokens counted at a time, so that the keys made of them stay in the processor's cache."""
GROUPED_TOKENS = 32_768
"""The same for counts by group, where a key is made for each slot."""


def grouped_counts(
    indices_LTK: npt.NDArray[np.integer[Any]], groups_T: npt.NDArray[np.integer[Any]], shape: tuple[int, int]
) -> Int64Array:
    """[L,G,E] assignments of each group's tokens to each expert; `shape` is (G, E). Group -1 counts not."""
    counts_LGE = np.zeros((len(indices_LTK), *shape), dtype=np.int64)
    add_grouped_counts(counts_LGE, indices_LTK, groups_T)
    return counts_LGE


def add_grouped_counts(
    counts_LGE: Int64Array, indices_LTK: npt.NDArray[np.integer[Any]], groups_T: npt.NDArray[np.integer[Any]]
) -> None:
    """Add the tokens' grouped_counts to counts that are there.

    Some tokens at a time, all layers of them: the groups of neighbours are mostly few, and their keys and counts then
    stay in the cache. Where they are many, more tokens at a time: counts would cost more to add up than to count.
    """
    (_, T, K), E = indices_LTK.shape, counts_LGE.shape[2]
    size, start = GROUPED_TOKENS, 0
    while start < T:
        own = slice(start, start + size)
        first, last = int(groups_T[own].min()), int(groups_T[own].max())
        rows = last - first + 1
        if rows * (E + 1) > 2 * K * size and own.stop < T:
            size = max(2 * size, rows * (E + 1))
            continue
        # A spare column takes unused slots, so that -1 needs no mask. Slot by slot: adding a strided column to a flat
        # one is several times faster than numpy's broadcast over an axis of two.
        first_T = np.multiply(groups_T[own], E + 1, dtype=np.intp)
        first_T += 1 - first * (E + 1)
        keys_KT = np.empty((K, len(first_T)), dtype=np.intp)
        for counts_GE, indices_TK in zip(counts_LGE, indices_LTK, strict=True):
            for slot, key_T in enumerate(keys_KT):
                np.add(first_T, indices_TK[own, slot], out=key_T)
            found_GE = count_keys(keys_KT, (rows, E + 1))[:, 1:]
            counts_GE[max(first, 0) : last + 1] += found_GE[max(-first, 0) :]
        start = own.stop


def run_starts(keys_T: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.intp]:
    """Places of the tokens whose key is not that of the token before; the first, too."""
    starts_T = np.ones(len(keys_T), dtype=np.bool_)
    np.not_equal(keys_T[1:], keys_T[:-1], out=starts_T[1:])
    return np.flatnonzero(starts_T)


def slot_columns(indices_TK: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.intp]:
    """[K,T] each slot's experts in one piece, 1..E, 0 = unused; in the type that bincount takes as it is."""
    columns_KT = indices_TK.T.astype(np.intp, order="C")
    columns_KT += 1
    return columns_KT


def grouped_joint_counts(
    rows_KT: npt.NDArray[np.intp], columns_KT: npt.NDArray[np.intp], groups_T: Int64Array, shape: tuple[int, int]
) -> Int64Array:
    """[G,E,E] joint_counts of the tokens of each group; `shape` is (G, E)."""
    G, E = shape
    counts = np.zeros((G, E + 1, E + 1), dtype=np.int64)
    size = max(CHUNK_TOKENS, counts.size // len(rows_KT))
    for start in range(0, rows_KT.shape[1], size):
        own = slice(start, start + size)
        first_KT = (groups_T[own] * (E + 1) + rows_KT[:, own]) * (E + 1)
        counts += count_keys(first_KT[:, None] + columns_KT[None, :, own], counts.shape)
    return counts[:, 1:, 1:]


def joint_counts(rows_KT: npt.NDArray[np.intp], columns_KT: npt.NDArray[np.intp], E: int) -> Int64Array:
    """[E,E] how often a token has one expert in `rows_KT` and the other in `columns_KT`, over all pairs of slots."""
    counts = np.zeros((E + 1, E + 1), dtype=np.int64)
    for row_T in rows_KT:
        counts += _joint_with_unused(row_T, columns_KT, E)
    return counts[1:, 1:]


class MovedPairs:
    """joint_counts of two layers again and again, as the tokens of one are moved against those of the other.

    A layer is kept as the tokens of each expert, the other one as a row of zeros and ones for each token. An expert's
    counts are then the sum of the rows of its tokens, and to move tokens is to name other rows: this takes half the
    time of counting keys.
    """

    def __init__(self, rows_KT: npt.NDArray[np.intp], columns_KT: npt.NDArray[np.intp], E: int) -> None:
        """Slots as slot_columns gives them."""
        from scipy.sparse import csr_array

        K, T = rows_KT.shape
        chosen = rows_KT.reshape(-1)
        places = (chosen[chosen > 0] - 1, np.tile(np.arange(T), K)[chosen > 0])
        tokens_ET = csr_array((np.ones(len(places[0]), dtype=np.int32), places), shape=(E, T))
        ones_TE = np.zeros((T, E + 1), dtype=np.int32)
        for column_T in columns_KT:
            ones_TE[np.arange(T), column_T] += 1
        # Sums of short integers are several times as fast; no count is larger than this.
        most = T * int(tokens_ET.data.max(initial=0)) * int(ones_TE[:, 1:].max(initial=0))
        kind = np.int16 if most <= np.iinfo(np.int16).max else np.int64
        self._tokens_ET = tokens_ET.astype(kind)
        self._ones_TE = np.ascontiguousarray(ones_TE[:, 1:], dtype=kind)

    def counts(self, place_T: Int64Array) -> Int64Array:
        """[E,E] joint_counts(rows_KT, columns_KT[:, place_T], E)."""
        from scipy.sparse import csr_array

        own = self._tokens_ET
        moved_ET = csr_array((own.data, place_T[own.indices], own.indptr), shape=own.shape)
        counts_EE: Int64Array = (moved_ET @ self._ones_TE).astype(np.int64)
        return counts_EE


def pair_counts_of(indices_LTK: npt.NDArray[np.integer[Any]], E: int) -> Int64Array:
    """[L,E,E] tokens that chose both experts, over all pairs of slots: symmetric, on the diagonal each expert's own."""
    L, _, K = indices_LTK.shape
    counts_LEE = np.zeros((L, E, E), dtype=np.int64)
    counts_LE = np.zeros((L, E), dtype=np.int64)
    for row, indices_TK in enumerate(indices_LTK):
        columns_KT = slot_columns(indices_TK)
        if K == 1:
            counts_LE[row] = count_keys(columns_KT, (E + 1,))[1:]
            continue
        # A slot's own counts are the sums of its pairs, unused partners too: counting it once more would take as long.
        for slot in range(1, K):
            pairs = _joint_with_unused(columns_KT[slot - 1], columns_KT[slot:], E)
            counts_LEE[row] += pairs[1:, 1:]
            counts_LE[row] += pairs.sum(axis=1)[1:] // (K - slot)
        counts_LE[row] += pairs.sum(axis=0)[1:]  # the last pair's second is the last slot
    counts_LEE += counts_LEE.transpose(0, 2, 1).copy()
    counts_LEE[:, np.arange(E), np.arange(E)] = counts_LE
    return counts_LEE


def _joint_with_unused(row_T: npt.NDArray[np.intp], columns_KT: npt.NDArray[np.intp], E: int) -> Int64Array:
    """[E+1,E+1] joint_counts of one slot with others; row and column 0 are of unused slots."""
    return count_keys(row_T * (E + 1) + columns_KT, (E + 1, E + 1))


def count_keys(keys: npt.NDArray[np.intp], shape: tuple[int, ...]) -> Int64Array:
    """How often each place of an array of this shape, counted row by row, occurs among `keys`."""
    return np.bincount(keys.reshape(-1), minlength=math.prod(shape)).reshape(shape).astype(np.int64, copy=False)
