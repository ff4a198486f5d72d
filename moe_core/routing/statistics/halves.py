"""Halves of the sources: one chooses, the other is counted, so that nothing is counted where it was chosen."""

from __future__ import annotations

import numpy as np

from moe_core.routing.trace.types import BoolArray, Int64Array

SPLITS = 2
"""Ways to halve the sources; each half chooses and is counted in turn."""
LEAST_CLUSTERS = 4
"""Fewer cannot be halved and say how much they differ."""


def halves(stratum_C: Int64Array, seed: int = 0) -> list[BoolArray]:
    """SPLITS arrays [C]: is the cluster in the first half? Of each stratum half, at random."""
    found = []
    for split in range(SPLITS):
        rng, half, odd = np.random.default_rng([seed, split, 19]), np.zeros(len(stratum_C), dtype=bool), 0
        for stratum in np.unique(stratum_C):
            own = rng.permutation(np.flatnonzero(stratum_C == stratum))
            half[own[: (len(own) + odd) // 2]] = True
            odd = (odd + len(own)) % 2
        found.append(half)
    return found


def ways(stratum_C: Int64Array, seed: int = 0) -> list[tuple[BoolArray, BoolArray]]:
    """(which clusters choose, which are counted), each halving both ways."""
    return [pair for half in halves(stratum_C, seed) for pair in ((half, ~half), (~half, half))]
