"""Sign flips by source: is what sources have too much of the same in all of them, or each source's own accident?

Choices of a document come in runs. A null that moves single tokens breaks the runs and takes them for a finding. Here a
source is one observation, whatever happens inside it: its residual is what was counted in it less what chance gives
it on average. If there is nothing to find, a residual is as likely as its opposite, so that random signs give the
distribution of the sum over sources (randomisation tests under approximate symmetry: Canay, Romano and Shaikh 2017,
10.3982/ECTA13081; wild cluster bootstrap: Cameron, Gelbach and Miller 2008, 10.1162/rest.90.3.414).
"""

from __future__ import annotations

from math import ceil, log2

import numpy as np

from moe_core.routing.statistics.multiple_comparisons import SIGNIFICANCE
from moe_core.routing.trace.types import BoolArray, Float64Array, Int64Array

MIN_SOURCES = 1 + ceil(log2(1 / SIGNIFICANCE))
"""Six. U sources have 2^(U-1) patterns of signs that differ by more than all signs at once, so that no p-value is below
2^-(U-1): five sources reach 1/16 only."""


def sign_patterns(units: int, draws: int, rng: np.random.Generator) -> Float64Array:
    """[P,U] signs +1 and -1 of U >= 1 sources, the pattern that was observed (all alike) not among them by design.

    All 2^(U-1) - 1 others once where these are no more than `draws`, which makes the test exact; else P = `draws`
    random ones. The first sign is always +1: to flip all signs at once changes no size. A single source has no other
    pattern and gets its own, of which p = 1 follows.
    """
    if units < 2:
        return np.ones((1, units))
    if units - 1 < 63 and 2 ** (units - 1) - 1 <= draws:
        number_P = np.arange(1, 2 ** (units - 1))
        flipped_PU: BoolArray = ((number_P[:, None] >> np.arange(units - 1)) & 1).astype(np.bool_)
    else:
        flipped_PU = np.asarray(rng.random((draws, units - 1)) < 0.5)
    signs_PU = np.ones((len(flipped_PU), units))
    signs_PU[:, 1:][flipped_PU] = -1.0
    return signs_PU


def flipped_sums(residual_UC: Float64Array, signs_PU: Float64Array) -> Float64Array:
    """[1+P,C] sums over U sources of the residuals of C cells: as observed, then with each pattern of signs."""
    observed_C = residual_UC.sum(axis=0)
    sums_PC: Float64Array = np.concatenate([observed_C[None], signs_PU @ residual_UC])
    return sums_PC


def informative(residual_UC: Float64Array) -> BoolArray:
    """[U] does the source differ from chance at all? One without two tokens that could change places never does."""
    away: BoolArray = np.abs(residual_UC).max(axis=1, initial=0.0) > 1e-9
    return away


def smallest_p(sources_C: Int64Array) -> Float64Array:
    """[C] the least p-value, 0..1, that flipping the signs of so many informative sources can reach; 1 for none."""
    least_C: Float64Array = 0.5 ** np.maximum(sources_C - 1.0, 0.0)
    return least_C
