"""Ways to break one connection between tokens and choices, and no other: all within documents.

Tokens of a document are alike, in what they say and in the experts they choose. A null that moved choices from one
document to another would take that for a connection, so choices change places within their document only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from moe_core.routing.stored import AnyTrace
from moe_core.routing.trace import RoutingTrace
from moe_core.routing.types import BoolArray, Int16Array, Int64Array

MAX_NULL_TOKENS = 16_384
"""Nulls that move single tokens look at a sample of whole documents of this many tokens, a second's work."""


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
    next: BoolArray
    """[T-1] is the following token the next one of the same text?"""

    @property
    def count(self) -> int:
        """D."""
        return int(self.of_token[-1]) + 1

    def partners(self, rng: np.random.Generator) -> Int64Array:
        """[T] a random other token of the document for each token, such that partners are each other's.

        A reflection about a random place: any two tokens of a document are partners with the same probability.
        """
        place: Int64Array = rng.integers(0, self.size[self.local == 0])[self.of_token] - self.local
        place += np.where(place < 0, self.size, 0)
        place += self.start
        return place

    def rotation(self, rng: np.random.Generator) -> Int64Array:
        """[T] where each token takes its choices from when every document is turned round by a random distance.

        Neighbouring choices stay neighbours: tokens that stand together are alike and so are their choices, which a
        free shuffle would take for a connection between the two (time-shifted surrogates; Lancaster et al. 2018,
        Physics Reports 748, section 4.6).
        """
        place: Int64Array = rng.integers(0, self.size[self.local == 0])[self.of_token] + self.local
        place -= np.where(place >= self.size, self.size, 0)
        place += self.start
        return place

    def shuffle(self, rng: np.random.Generator) -> Int64Array:
        """[T] where each token takes its choices from when every document is shuffled."""
        # One sort: the document in the high bits keeps documents apart, the low ones are random.
        keys = self.of_token << 32
        keys += rng.integers(0, 2**32, size=len(keys), dtype=np.int64)
        return np.argsort(keys)


def sampled(trace: AnyTrace, seed: int) -> RoutingTrace:
    """The trace, or whole documents of it with MAX_NULL_TOKENS tokens in all."""
    return trace.sample(MAX_NULL_TOKENS, seed)


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
        next=(np.diff(keys) == 0) & (np.diff(positions) == 1),
    )


class PairChain:
    """Random choices of one layer with the loads of every document kept and nothing else: a Markov chain of swaps.

    A step pairs up the tokens of every document at random; each two exchange a random one of their experts, unless one
    of them would have an expert twice. Every step is as likely as its reverse, so that all choices with these loads and
    as many experts a token are equally likely in the long run (see draws).
    """

    def __init__(self, indices_TK: Int16Array, texts: Documents, rng: np.random.Generator) -> None:
        self._texts, self._rng = texts, rng
        self._K = indices_TK.shape[1]
        self._start = np.ascontiguousarray(indices_TK[texts.order].T)
        self.slots = self._start.copy()
        """[K,T] the experts of each token, in the order of `texts`; -1 = unused."""

    def draws(self, count: int) -> Iterator[Int16Array]:
        """[K,T] of `count` choices, each a step from the one before.

        The observed choice has a random place among them: the chain starts from it twice, once for what comes after it
        and once for what came before. So observed and drawn choices are alike if there is nothing to find, however
        close to each other neighbours in the chain are (Besag and Clifford 1989, section 3).
        """
        before = int(self._rng.integers(0, count + 1))
        for number in range(count):
            if number == before:
                self.slots = self._start.copy()
            self._step()
            yield self.slots

    def _step(self) -> None:
        """Let K rounds of swaps pass, so that an expert is proposed to move about once."""
        T = self.slots.shape[1]
        flat = self.slots.reshape(-1)
        for _ in range(self._K):
            partner = self._texts.partners(self._rng)
            one = np.flatnonzero(partner > np.arange(T))
            other = partner[one]
            slot = self._rng.integers(0, self._K, size=(2, len(one)))
            here, there = slot[0] * T + one, slot[1] * T + other
            mine, yours = flat[here], flat[there]
            allowed = (mine >= 0) & (yours >= 0)
            for slots_T in self.slots:
                allowed &= (slots_T[one] != yours) & (slots_T[other] != mine)
            flat[here[allowed]] = yours[allowed]
            flat[there[allowed]] = mine[allowed]
