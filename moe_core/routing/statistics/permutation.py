"""Permutation tests: ways to break one connection between tokens and choices and no other, and their p-values.

Tokens of a document are alike, in what they say and in the experts they choose. A null that moved choices from one
document to another would take that for a connection, so choices change places within their document only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from moe_core.errors import UsageError
from moe_core.routing.trace.trace import AnyTrace, RoutingTrace
from moe_core.routing.trace.types import BoolArray, Float64Array, Int16Array, Int64Array

MAX_NULL_TOKENS = 16_384
"""Nulls that move single tokens look at a sample of whole documents of at most this many tokens, a second's work."""
_FORGOTTEN = 8  # times every slot is proposed until next to none is where it was
MOST_ROTATIONS = 10
"""Rotations of all tokens, for the mean of a null: each of them is a mean over all tokens already."""
_ROTATION_WORK = 2**29  # keys counted for them, some ten seconds
_MAX_KEYS, _MIN_TOKENS = 2**19, 4096  # of many layers and slots fewer tokens, or it takes half a minute


@dataclass(frozen=True)
class Documents:
    """The tokens of a trace ordered by document and position. Axes: T tokens, D documents.

    Documents of a single token, which is how tokens without known documents are numbered, have nothing to shuffle: such
    tokens are taken to be independent, and those of one domain together count as one document.
    """

    order: Int64Array
    """[T] place in the trace of the i-th token in this order; what follows is in this order."""
    of_token: Int64Array
    """[T] document, 0..D-1."""
    local: Int64Array
    """[T] how many tokens of the document come before."""
    start: Int64Array
    """[T] where the token's document starts."""
    size: Int64Array
    """[T] tokens of the token's document."""
    sizes: Int64Array
    """[D] tokens of each document."""
    next: BoolArray
    """[T-1] is the following token the next one of the same text?"""

    def rotation(self, rng: np.random.Generator) -> Int64Array:
        """[T] where each token takes its choices from when every document is turned round by a random distance.

        Neighbouring choices stay neighbours: tokens that stand together are alike and so are their choices, which a
        free shuffle would take for a connection between the two (time-shifted surrogates; Lancaster et al. 2018,
        Physics Reports 748).
        """
        place: Int64Array = rng.integers(0, self.sizes)[self.of_token] + self.local
        place -= np.where(place >= self.size, self.size, 0)
        place += self.start
        return place

    def shuffle(self, rng: np.random.Generator) -> Int64Array:
        """[T] where each token takes its choices from when every document is shuffled."""
        # One sort: the document in the high bits keeps documents apart, the low ones are random.
        keys = self.of_token << 32
        keys += rng.integers(0, 2**32, size=len(keys), dtype=np.int64)
        return np.argsort(keys)


def check_permutations(permutations: int) -> None:
    """Raises UsageError for a number of permutations that tests nothing."""
    if permutations < 1:
        raise UsageError(f"permutations is {permutations}; expected 1 or more, e.g. 200")


def p_values(value_L: Float64Array, null_PL: Float64Array) -> Float64Array:
    """(1 + #{null >= value}) / (1 + P) for each layer, 0..1 (Phipson and Smyth 2010); NaN where the null is NaN."""
    # Rounding must not let a permutation that gives the very same value count as smaller.
    p_L: Float64Array = (1 + (null_PL >= value_L - 1e-12).sum(axis=0)) / (1 + len(null_PL))
    return np.where(np.isnan(null_PL).any(axis=0) | np.isnan(value_L), np.nan, p_L)


def sampled(trace: AnyTrace, seed: int, keys_per_token: int | None = None) -> RoutingTrace:
    """The trace, or of a large one as many whole documents as a null can be drawn of in seconds.

    `keys_per_token`: what a draw counts of each token; its slots in all layers if not given.
    """
    affordable = max(_MIN_TOKENS, _MAX_KEYS // (keys_per_token or trace.num_layers * trace.top_k))
    return trace.sample(min(MAX_NULL_TOKENS, affordable), seed)


def whole_and_sample(trace: AnyTrace, seed: int, keys_per_token: int | None = None) -> tuple[AnyTrace, RoutingTrace]:
    """The trace and what its null is drawn of, see `sampled`: the same object where that is all of it."""
    sample = sampled(trace, seed, keys_per_token)
    return (sample, sample) if sample.num_tokens == trace.num_tokens else (trace, sample)


def documents(trace: RoutingTrace) -> Documents:
    """Order a trace by document and position."""
    keys = trace.document_ids.astype(np.int64)
    _, own, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    alone = sizes[own] == 1
    own = np.where(alone, len(sizes) + trace.domain_ids, own)
    order = np.lexsort((trace.positions, own))
    own, keys, positions = own[order], keys[order], trace.positions[order]
    starts = np.flatnonzero(np.diff(own, prepend=-1))
    sizes = np.diff(starts, append=len(own))
    of_token = np.repeat(np.arange(len(starts)), sizes)
    start = starts[of_token]
    return Documents(
        order=order,
        of_token=of_token,
        local=np.arange(len(own)) - start,
        start=start,
        size=sizes[of_token],
        sizes=sizes,
        next=(np.diff(keys) == 0) & (np.diff(positions) == 1),
    )


def rotated_parts(
    trace: AnyTrace, rotations: int, seed: int
) -> Iterator[tuple[RoutingTrace, Documents, list[Int64Array]]]:
    """Each part of a trace with its order and `rotations` of it (see Documents.rotation), the same however it is cut.

    For what is counted over all tokens, which may be more than fit into memory.
    """
    generators = [np.random.default_rng([seed, 4, number]) for number in range(rotations)]
    for part in trace.parts():
        texts = documents(part)
        yield part, texts, [texts.rotation(rng) for rng in generators]


def affordable_rotations(trace: AnyTrace, keys_per_token: int, numbers: int, budget: int) -> int:
    """How many rotations of all tokens: at most MOST_ROTATIONS, fewer where so many keys are counted of a token or so
    many `numbers` kept of each that they would take long or more than `budget` numbers; at least two."""
    of_work = _ROTATION_WORK // (trace.num_tokens * keys_per_token)
    return max(2, min(MOST_ROTATIONS, of_work, budget // max(numbers, 1)))


class PairChain:
    """Random choices with the loads of every document and layer kept and nothing else: a Markov chain of swaps.

    A step pairs up the tokens of every document at random; each two exchange a random one of their experts, unless one
    of them would have an expert twice. Every step is as likely as its reverse, so that all choices with these loads and
    as many experts a token are equally likely in the long run (see draws). Axes: L layers, T tokens, K slots.
    """

    def __init__(self, indices_LTK: Int16Array, texts: Documents, rng: np.random.Generator) -> None:
        L, T, self._K = indices_LTK.shape
        self._rng = rng
        self.slots = indices_LTK[:, texts.order].transpose(2, 0, 1).reshape(self._K, L * T).copy()
        """[K, L T] the experts of each token in the order of `texts`, layer after layer; -1 = unused."""
        # To the chain a layer's documents are just more documents, each reflected about a place of its own.
        layer = np.repeat(np.arange(L), T)
        self._of_token = np.tile(texts.of_token, L) + layer * len(texts.sizes)
        self._local, self._size = np.tile(texts.local, L), np.tile(texts.size, L)
        self._first = np.tile(texts.start, L) + layer * T
        self._sizes = np.tile(texts.sizes, L)
        self._self = np.arange(L * T)

    def draws(self, count: int) -> Iterator[Int16Array]:
        """`count` times [K, L T], each some steps from the one before, the first far from the observed choice."""
        for number in range(count):
            for _ in range(self._K * (1 if number else _FORGOTTEN)):  # K propose every slot once, on average
                self._swap_experts()
            yield self.slots

    def _swap_experts(self) -> None:
        partner = self._random_partners()
        one = np.flatnonzero(partner > self._self)
        other = partner[one]
        slot = self._rng.integers(0, self._K, size=(2, len(one)))
        slot *= len(partner)
        here, there = slot[0] + one, slot[1] + other
        flat = self.slots.reshape(-1)
        mine, yours = flat[here], flat[there]
        allowed = (mine >= 0) & (yours >= 0)
        for slots_T in self.slots:
            allowed &= (slots_T[one] != yours) & (slots_T[other] != mine)
        flat[here[allowed]] = yours[allowed]
        flat[there[allowed]] = mine[allowed]

    def _random_partners(self) -> Int64Array:
        """[L T] a random token of its document for each token, each other's partner; some are their own.

        The reflection of each document about a random place: any two tokens are partners with the same probability.
        """
        place: Int64Array = self._rng.integers(0, self._sizes)[self._of_token] - self._local
        place += np.where(place < 0, self._size, 0)
        place += self._first
        return place
