"""How fast a trace is counted, against the same by pandas groupby: `python -m moe_core.benchmarks.aggregation`.

Five measures of one million tokens in four layers of 64 experts, two for each token: load, specialization on domains,
co-activation, vocabulary and flow. Ours is timed from the trace to the finished frames, intervals and lifts included.
Pandas is timed for the same counts alone, from long frames of whole numbers that were built beforehand and are not
counted against it. Both must agree in every number. Rounds alternate, so that a busy machine slows both alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import combinations, product

import numpy as np
import pandas as pd

from moe_core.routing.metrics import coactivation, domain_specialization, expert_load, layer_flow
from moe_core.routing.metrics import vocabulary_specialization as vocabulary
from moe_core.routing.trace import RoutingTrace

TOKENS, LAYERS, TOP_K, EXPERTS = 1_000_000, 4, 2, 64
DOMAINS, VOCABULARY, DOCUMENT_TOKENS = 4, 32_000, 500
ROUNDS = 7
MIN_COUNT = 10


@dataclass(frozen=True)
class Comparison:
    """Seconds of each round by measure, ours and pandas'; `ratios` of their sums, one per round."""

    ours: pd.DataFrame
    pandas: pd.DataFrame

    @property
    def ratios(self) -> pd.Series[float]:
        """How many times longer pandas takes, per round."""
        return self.pandas.sum(axis=1) / self.ours.sum(axis=1)


OURS: dict[str, Callable[[RoutingTrace], pd.DataFrame]] = {
    "load": expert_load,
    "domains": domain_specialization,
    "co-activation": coactivation,
    "vocabulary": lambda trace: vocabulary(trace, min_count=MIN_COUNT),
    "flow": layer_flow,
}


def synthetic_trace(tokens: int = TOKENS, seed: int = 0) -> RoutingTrace:
    """Skewed random routing of tokens by Zipf's law, in documents of DOCUMENT_TOKENS, without logits."""
    rng = np.random.default_rng(seed)
    count = np.arange(tokens)
    first_LT = np.minimum(rng.exponential(EXPERTS / 4, (LAYERS, tokens)), EXPERTS - 1).astype(np.int16)
    other_LT = (first_LT + rng.integers(1, EXPERTS, (LAYERS, tokens), dtype=np.int16)) % EXPERTS
    return RoutingTrace.from_arrays(
        router_indices=np.stack([first_LT, other_LT], axis=-1),
        router_scores=np.full((LAYERS, tokens, TOP_K), 0.5, dtype=np.float32),
        num_experts=EXPERTS,
        token_ids=rng.zipf(1.2, tokens) % VOCABULARY,
        document_ids=count // DOCUMENT_TOKENS,
        domain_ids=count // DOCUMENT_TOKENS % DOMAINS,
        domains=[f"domain {i}" for i in range(DOMAINS)],
    )


@dataclass(frozen=True)
class PandasFrames:
    """The trace as data frames, one row per assignment, per pair of slots, and per pair of slots of two layers."""

    assignments: pd.DataFrame
    pairs: pd.DataFrame
    flow: pd.DataFrame

    @classmethod
    def of(cls, trace: RoutingTrace) -> PandasFrames:
        """Build the frames; every slot of `trace` must be used."""
        L, T, K = trace.router_indices.shape
        layers = np.array(trace.layers, dtype=np.int16)
        columns = [trace.router_indices[:, :, slot] for slot in range(K)]
        pairs = list(combinations(range(K), 2))
        hops = list(product(range(K), repeat=2))

        def joined(parts: list[np.ndarray]) -> np.ndarray:
            return np.concatenate([part.ravel() for part in parts])

        return cls(
            pd.DataFrame(
                {
                    "layer": np.tile(np.repeat(layers, T), K),
                    "expert": joined(columns),
                    "domain": np.tile(trace.domain_ids, L * K),
                    "token_id": np.tile(trace.token_ids, L * K),
                }
            ),
            pd.DataFrame(
                {
                    "layer": np.tile(np.repeat(layers, T), len(pairs)),
                    "expert_i": joined([columns[a] for a, _ in pairs]),
                    "expert_j": joined([columns[b] for _, b in pairs]),
                }
            ),
            pd.DataFrame(
                {
                    "layer": np.tile(np.repeat(layers[:-1], T), len(hops)),
                    "expert": joined([columns[a][:-1] for a, _ in hops]),
                    "next_expert": joined([columns[b][1:] for _, b in hops]),
                }
            ),
        )

    def counted(self, measure: str) -> pd.Series[int]:
        """The counts of one measure, by groupby."""
        if measure == "co-activation":
            half = self.pairs.groupby(["layer", "expert_i", "expert_j"]).size()
            turned = half.swaplevel(1, 2)
            turned.index = turned.index.set_names(half.index.names)
            return half.add(turned, fill_value=0)
        if measure == "flow":
            return self.flow.groupby(["layer", "expert", "next_expert"]).size()
        keys = {"load": [], "domains": ["domain"], "vocabulary": ["token_id"]}[measure]
        return self.assignments.groupby(["layer", *keys, "expert"]).size()


def check_equal(measure: str, ours: pd.DataFrame, counts: pd.Series[int], trace: RoutingTrace) -> None:
    """Raises AssertionError unless the frame of ours has the very counts of pandas."""
    if measure == "vocabulary":
        best = counts.groupby(["layer", "token_id"]).max()
        found = ours.assign(count=(ours["share"] * ours["tokens"]).round().astype(int))
        kept = np.bincount(trace.token_ids)[best.index.get_level_values("token_id")] >= MIN_COUNT
        expected, keys, column = best[kept], ["layer", "token_id"], "count"
    else:
        found = ours.assign(domain=ours["domain"].map(trace.domains.index)) if "domain" in ours else ours
        expected, keys, column = counts, [str(name) for name in counts.index.names], "tokens"
        found = found[found["tokens"] > 0]
    mine = found.set_index(keys)[column].sort_index()
    pd.testing.assert_series_equal(
        mine, expected.sort_index(), check_names=False, check_dtype=False, check_index_type=False
    )


def compare(trace: RoutingTrace, rounds: int = ROUNDS) -> Comparison:
    """Time both ways `rounds` times, in turn, after checking that they agree."""
    frames = PandasFrames.of(trace)
    for measure, function in OURS.items():
        check_equal(measure, function(trace), frames.counted(measure), trace)
    ours: list[dict[str, float]] = []
    pandas: list[dict[str, float]] = []
    for _ in range(rounds):
        ours.append({measure: _seconds(partial(function, trace)) for measure, function in OURS.items()})
        pandas.append({measure: _seconds(partial(frames.counted, measure)) for measure in OURS})
    return Comparison(pd.DataFrame(ours), pd.DataFrame(pandas))


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Print the times of each measure and the ratio of the whole, median and range over the rounds."""
    result = compare(synthetic_trace())
    print(f"{TOKENS:,} tokens, {LAYERS} layers, top-{TOP_K} of {EXPERTS} experts; median of {ROUNDS} rounds, in ms")
    table = pd.DataFrame({"ours": result.ours.median() * 1000, "pandas groupby": result.pandas.median() * 1000})
    table["ratio"] = (result.pandas / result.ours).median()
    print(table.round(1).to_string())
    ratios = result.ratios
    print(f"all five: {ratios.median():.1f} times faster (rounds from {ratios.min():.1f} to {ratios.max():.1f})")


if __name__ == "__main__":
    main()
