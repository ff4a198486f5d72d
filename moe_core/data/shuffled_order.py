"""In which order an epoch visits its windows: a seeded one, of which any part can be asked without the rest.

Up to MOST_PERMUTED windows it is a permutation that is drawn whole. Beyond, a keyed bijection takes its place, so that
neither memory nor the time to start grows with the text: a Feistel network on the next even number of bits, which is a
bijection whatever its rounds compute, followed until it lands among the windows ("cycle walking", Black and Rogaway
2002, "Ciphers with Arbitrary Finite Domains").
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

MOST_PERMUTED = 2**20
"""Windows that are permuted whole: 8 MiB an epoch, a hundredth of a second."""
_ROUNDS = 6


def window_starts(places: NDArray[np.int64], tokens: int, seq_len: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """[len(places)]: the first token of the windows at these places of one epoch's order; see `training_batch`."""
    windows = windows_per_epoch(tokens, seq_len)
    if windows <= MOST_PERMUTED:
        return _permuted_starts(tokens, seq_len, seed, epoch)[places]
    generator = np.random.default_rng([seed, epoch])
    shift = generator.integers(0, min(seq_len, tokens - windows * seq_len))
    keys = generator.integers(0, 2**64, _ROUNDS, dtype=np.uint64)
    return shift + seq_len * _bijection(places, windows, keys)


def windows_per_epoch(tokens: int, seq_len: int) -> int:
    """Windows an epoch has, the same whatever its shift (a shift costs at most seq_len - 1 tokens)."""
    return max(1, (tokens - seq_len) // seq_len)


@lru_cache(maxsize=8)
def _permuted_starts(tokens: int, seq_len: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """First token of every window of one epoch, in the order of the visit; cached, for a step needs only a few."""
    windows = windows_per_epoch(tokens, seq_len)
    generator = np.random.default_rng([seed, epoch])
    shift = generator.integers(0, min(seq_len, tokens - windows * seq_len))
    starts: NDArray[np.int64] = shift + seq_len * generator.permutation(windows)
    starts.flags.writeable = False
    return starts


def _bijection(places: NDArray[np.int64], windows: int, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The window at each place: every window below `windows` stands at exactly one place below it."""
    half = ((windows - 1).bit_length() + 1) // 2
    found = _encrypted(places.astype(np.uint64), keys, half)
    # At least a quarter of the codes are windows, so that this ends within some rounds.
    while (outside := found >= windows).any():
        found[outside] = _encrypted(found[outside], keys, half)
    return found.astype(np.int64)


def _encrypted(codes: NDArray[np.uint64], keys: NDArray[np.uint64], half: int) -> NDArray[np.uint64]:
    """A Feistel network on codes of 2 * `half` bits."""
    mask, shift = np.uint64(2**half - 1), np.uint64(half)
    left, right = codes >> shift, codes & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ key) & mask)
    return (left << shift) | right


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of MurmurHash3: every bit of the result depends on every bit of the value. Wraps at 64 bits."""
    for multiplier in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        values = (values ^ (values >> np.uint64(33))) * np.uint64(multiplier)
    return values ^ (values >> np.uint64(33))
