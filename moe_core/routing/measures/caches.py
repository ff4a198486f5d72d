"""How often an expert is at hand when a layer keeps N of its E experts in fast memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from moe_core.progress import Progress, silent
from moe_core.routing.measures.busiest import LEAST_SOURCES, busiest_experts
from moe_core.routing.measures.term import Term
from moe_core.routing.statistics.bootstrap import without_single
from moe_core.routing.statistics.intervals import ratio_errors, t_quantile
from moe_core.routing.trace.blocks import blocks
from moe_core.routing.trace.shares import ratio
from moe_core.routing.trace.trace import AnyTrace, RoutingTrace
from moe_core.routing.trace.types import Float64Array, Int16Array, Int64Array
from moe_core.words import count_of, percent, points

MOST_TIME = 32_000
"""Times of choices in a chunk fit 16 bits, which the processor compares fastest."""
SHUFFLED_TOKENS = 65_536
"""So many tokens are put in random order to see what order is worth; of a larger trace, whole documents of it."""


class RecentExperts:
    """Which experts each layer chose last; carried from one part of a trace to the next. Axes: L, E."""

    def __init__(self, layers: int, experts: int) -> None:
        self._last = np.full((layers, experts), -1, dtype=np.int16)
        """0 = the longest ago .. E-1 = the latest; -1 = never."""

    def ranks(self, layer: int, indices_TK: Int16Array) -> Int16Array:
        """[T,K] how many experts were chosen since the expert was chosen last, E where it never was; -1 = unused slot.

        All experts of a token are looked for before any of them counts as chosen, as a layer asks for them at once;
        afterwards those in later slots count as later. A cache of N experts that drops the one used longest ago has
        those of a rank below N (Mattson and others 1970).
        """
        E, (T, K) = self._last.shape[1], indices_TK.shape
        size = max(1, (MOST_TIME - E) // K)
        return np.concatenate([self._chunk(layer, indices_TK[at : at + size]) for at in range(0, T, size)])

    def _chunk(self, layer: int, indices_TK: Int16Array) -> Int16Array:
        E, (T, K) = self._last.shape[1], indices_TK.shape
        last_ET = np.full((E + 1, T + 1), -1, dtype=np.int16)  # row E takes the unused slots
        last_ET[:E, 0] = self._last[layer]
        used = np.where(indices_TK < 0, E, indices_TK)
        tokens = np.arange(T)
        for slot in range(K):
            last_ET[used[:, slot], tokens + 1] = E + tokens * K + slot
        np.maximum.accumulate(last_ET, axis=1, out=last_ET)
        chosen_KT = np.stack([last_ET[used[:, slot], tokens] for slot in range(K)])
        rank_KT = np.zeros((K, T), dtype=np.int16)
        for expert in range(E):
            rank_KT += last_ET[expert, :T] > chosen_KT
        rank_KT[chosen_KT < 0] = E
        rank_KT[used.T == E] = -1
        final = last_ET[:E, T]
        order = np.argsort(final, kind="stable")
        place = np.zeros(E, dtype=np.int16)
        place[order] = np.arange(E)
        self._last[layer] = np.where(final < 0, -1, place)
        return np.ascontiguousarray(rank_KT.T)


def expert_cache(trace: AnyTrace, progress: Progress = silent) -> pd.DataFrame:
    """Hit rates of a cache of N experts in each layer, for every N from 1 to E, over the tokens in their order.

    Columns: layer, experts (N); lru, 0..1 = the part of the choices that a cache of the N experts used last has, empty
    at first, going on from one document to the next as a server's does; lru_low, lru_high = its 95 % interval over
    sources, NaN with fewer than LEAST_SOURCES; static = that of a cache that always holds the N busiest experts, chosen
    on other text than it is counted on (busiest_experts); shuffled = lru with the tokens in random order: what order
    is worth is lru less it; even = N/E, what either has where every choice is even and for itself.
    """
    E, L = trace.num_experts, trace.num_layers
    hits, strata = _hits_by_source(trace, progress)
    lru_LE, error_LE, freedom = _rate(hits, strata)
    shuffled_LE = _shuffled(trace)
    half_LE = t_quantile(max(freedom, 1)) * error_LE
    told = freedom >= 1 and trace.count_sources() >= LEAST_SOURCES
    busiest = busiest_experts(trace)
    return pd.DataFrame(
        {
            "layer": np.repeat(trace.layers, E),
            "experts": np.tile(np.arange(1, E + 1), L),
            "lru": lru_LE.reshape(-1),
            "lru_low": np.clip(lru_LE - half_LE, 0, 1).reshape(-1) if told else np.nan,
            "lru_high": np.clip(lru_LE + half_LE, 0, 1).reshape(-1) if told else np.nan,
            "static": busiest["share"].to_numpy(),
            "shuffled": shuffled_LE.reshape(-1),
            "even": np.tile(np.arange(1, E + 1) / E, L),
            "tokens": trace.num_tokens,
            "sources": trace.count_sources(),
        }
    )


def cache_verdict(frame: pd.DataFrame, experts: int | None = None) -> str:
    """What a cache of so many experts, a half of them where nothing is said, finds at hand; layers averaged."""
    E = int(frame["experts"].max())
    N = max(1, E // 2) if experts is None else min(max(experts, 1), E)
    at = frame[frame["experts"] == N]
    lru, shuffled, static, even = (float(at[name].mean()) for name in ("lru", "shuffled", "static", "even"))
    row = frame.iloc[0]
    text = f"{count_of(int(row['tokens']), 'token')} of {count_of(int(row['sources']), 'source')}"
    if at["lru_low"].isna().any():
        sure = f" ({text}, too few to say so of other text)"
    else:
        interval = f"{percent(at['lru_low'].min())} to {percent(at['lru_high'].max())}"
        sure = f" (layers' 95 % intervals from {interval}; {text})"
    better = "" if np.isnan(static) else f"; one that always holds the busiest, chosen on other text, {percent(static)}"
    return (
        f"A cache of the {N} of {E} experts used last has {percent(lru)} of the choices at hand{sure}, {percent(even)} "
        f"if all choices were even; the order of the tokens is worth {points(lru - shuffled)}{better}."
    )


def _hits_by_source(trace: AnyTrace, progress: Progress) -> tuple[Int64Array, Int64Array]:
    """([L,N,E+1] choices of each block by their rank, [N] its domain)."""
    E, L = trace.num_experts, trace.num_layers
    recent = RecentExperts(L, E)
    place: dict[tuple[int, int], int] = {}
    found: list[Int64Array] = []
    done = 0
    for part in trace.parts():
        own = blocks(part)
        keys = list(zip(own.source_ids.tolist(), own.domain_ids.tolist(), strict=True))
        of_block = np.array([place.setdefault(key, len(place)) for key in keys])
        found += [np.zeros((L, E + 1), dtype=np.int64) for _ in range(len(place) - len(found))]
        for layer in range(L):
            progress("following the cache", done + part.num_tokens * layer // L, trace.num_tokens)
            counted = _by_block(recent.ranks(layer, part.router_indices[layer]), own.of_token, len(keys), E)
            for block, row in zip(of_block.tolist(), counted, strict=True):
                found[block][layer] += row
        done += part.num_tokens
    progress("following the cache", done, trace.num_tokens)
    return np.stack(found, axis=1), np.array([domain for _, domain in place])


def _by_block(rank_TK: Int16Array, block_T: Int64Array, N: int, E: int) -> Int64Array:
    keys = block_T[:, None] * (E + 2) + rank_TK + 1
    counted: Int64Array = np.bincount(keys.reshape(-1), minlength=N * (E + 2)).reshape(N, E + 2)[:, 1:]
    return counted


def _rate(hits_LNR: Int64Array, stratum_N: Int64Array) -> tuple[Float64Array, Float64Array, int]:
    """([L,E] hit rate, [L,E] its error over sources, degrees of freedom)."""
    part_LNE = np.cumsum(hits_LNR, axis=2)[:, :, :-1].astype(np.float64)
    return ratio_errors(part_LNE, hits_LNR.sum(axis=2).astype(np.float64), without_single(stratum_N))


def _shuffled(trace: AnyTrace) -> Float64Array:
    """[L,E] hit rate with the tokens in a random order."""
    sample: RoutingTrace = trace.sample(SHUFFLED_TOKENS)
    order = np.random.default_rng(0).permutation(sample.num_tokens)
    recent = RecentExperts(trace.num_layers, trace.num_experts)
    zeros = np.zeros(sample.num_tokens, dtype=np.int64)
    rows = [
        _by_block(recent.ranks(layer, sample.router_indices[layer][order]), zeros, 1, trace.num_experts)[0]
        for layer in range(trace.num_layers)
    ]
    hits_LR = np.stack(rows)
    return ratio(np.cumsum(hits_LR, axis=1)[:, :-1], hits_LR.sum(axis=1, keepdims=True))


def cache_sentence(row: Any) -> str:
    """A row of the frame in words."""
    return (
        f"Layer {row.layer}, cache of {row.experts}: {percent(row.lru)} are among the experts used last, "
        f"{percent(row.shuffled)} in random order, {percent(row.even)} if even."
    )


TERMS = (
    Term(
        "hit rate of a cache",
        "How often an expert that a token needs is among the N that a layer keeps at hand, those used last.",
        "choices with fewer than N other experts chosen since the expert's last turn / all choices",
        "N/E when every choice is even and for itself",
        "stack distances, Mattson, Gecsei, Slutz and Traiger 1970",
    ),
)
