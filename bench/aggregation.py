"""How fast a trace is counted, against the same by pandas' groupby and by pyarrow's group_by.

Five measures of one million tokens in four layers of 64 experts, two for each token: load, specialization on domains,
co-activation, vocabulary and flow. Ours is timed from the trace to the finished frames, intervals and lifts included.
The others are timed for the same counts alone, from long tables of whole numbers that were built beforehand and are not
counted against them. All must agree in every number before anything is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import combinations, product
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from bench.results import Goal, Result, compared
from bench.suite import Scale
from moe_core.experiments.timing import Timings, interleave
from moe_core.routing.measures.coactivation import coactivation
from moe_core.routing.measures.domains import domain_specialization
from moe_core.routing.measures.flow import layer_flow
from moe_core.routing.measures.load import expert_load
from moe_core.routing.measures.vocabulary import vocabulary_specialization as vocabulary
from moe_core.routing.trace.trace import RoutingTrace

TOKENS, LAYERS, TOP_K, EXPERTS = 1_000_000, 4, 2, 64
SMOKE_TOKENS = 20_000
DOMAINS, VOCABULARY, DOCUMENT_TOKENS = 4, 32_000, 500
MIN_COUNT = 10
OURS, PANDAS, ARROW = "ours", "pandas groupby", "pyarrow group_by"
GOALS = {PANDAS: Goal(10.0, 17.0), ARROW: Goal(3.0, 4.0)}

MEASURES: dict[str, Callable[[RoutingTrace], pd.DataFrame]] = {
    "load": expert_load,
    "domains": domain_specialization,
    "co-activation": coactivation,
    "vocabulary": lambda trace: vocabulary(trace, min_count=MIN_COUNT),
    "flow": layer_flow,
}
PAIR = ["expert_i", "expert_j"]
KEYS: dict[str, tuple[str, list[str]]] = {
    "load": ("assignments", ["layer", "expert"]),
    "domains": ("assignments", ["layer", "domain", "expert"]),
    "co-activation": ("pairs", ["layer", *PAIR]),
    "vocabulary": ("assignments", ["layer", "token_id", "expert"]),
    "flow": ("flow", ["layer", "expert", "next_expert"]),
}
"""For each measure: the long table it is counted from, and the columns that make a group."""


def run(scale: Scale) -> list[Result]:
    """One row for each measure and each other way, and one for all five measures together."""
    tokens = SMOKE_TOKENS if scale.smoke else TOKENS
    timings = compare(synthetic_trace(tokens), rounds=scale.rounds, on_round=_reporter(scale))
    size = f"{tokens:,} tokens x {LAYERS} layers x top-{TOP_K} of {EXPERTS}"
    rows = []
    for against, goal in GOALS.items():
        for measure in MEASURES:
            rows.append(compared(f"{measure}, {size}", _timings_of_measure(timings, measure), OURS, against))
        rows.append(compared(f"all five, {size}", together(timings), OURS, against, goal=goal))
    return rows


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
class LongTables:
    """A trace as both libraries like it: a row per assignment, per pair of slots, per pair of slots of two layers."""

    frames: Mapping[str, pd.DataFrame]
    tables: Mapping[str, pa.Table]

    @classmethod
    def of(cls, trace: RoutingTrace) -> LongTables:
        """Build the tables; every slot of `trace` must be used."""
        found = _long_columns(trace)
        return cls(
            {name: pd.DataFrame(columns) for name, columns in found.items()},
            {name: pa.table(columns) for name, columns in found.items()},
        )

    def by_pandas(self, measure: str) -> pd.Series[int]:
        """The counts of one measure, by groupby."""
        name, keys = KEYS[measure]
        counts = self.frames[name].groupby(keys).size()
        if measure != "co-activation":
            return counts
        turned = counts.swaplevel(1, 2)
        turned.index = turned.index.set_names(counts.index.names)
        return counts.add(turned, fill_value=0)

    def by_arrow(self, measure: str) -> pa.Table:
        """The counts of one measure, by group_by: its keys and the column `count_all`."""
        name, keys = KEYS[measure]
        counts = self.tables[name].group_by(keys).aggregate([([], "count_all")])
        if measure != "co-activation":
            return counts
        turned = counts.rename_columns(["layer", *PAIR[::-1], "count_all"]).select(counts.column_names)
        both = pa.concat_tables([counts, turned]).group_by(keys).aggregate([("count_all", "sum")])
        return both.rename_columns([*keys, "count_all"])


def _long_columns(trace: RoutingTrace) -> dict[str, dict[str, npt.NDArray[Any]]]:
    L, T, K = trace.router_indices.shape
    layers = np.array(trace.layers, dtype=np.int16)
    columns = [trace.router_indices[:, :, slot] for slot in range(K)]
    pairs = list(combinations(range(K), 2))
    hops = list(product(range(K), repeat=2))

    def joined(parts: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([part.ravel() for part in parts])

    return {
        "assignments": {
            "layer": np.tile(np.repeat(layers, T), K),
            "expert": joined(columns),
            "domain": np.tile(trace.domain_ids, L * K),
            "token_id": np.tile(trace.token_ids, L * K),
        },
        "pairs": {
            "layer": np.tile(np.repeat(layers, T), len(pairs)),
            "expert_i": joined([columns[a] for a, _ in pairs]),
            "expert_j": joined([columns[b] for _, b in pairs]),
        },
        "flow": {
            "layer": np.tile(np.repeat(layers[:-1], T), len(hops)),
            "expert": joined([columns[a][:-1] for a, _ in hops]),
            "next_expert": joined([columns[b][1:] for _, b in hops]),
        },
    }


def as_series(measure: str, counts: pa.Table) -> pd.Series[int]:
    """Results of LongTables.by_arrow in the shape of by_pandas."""
    found: pd.Series[int] = counts.to_pandas().set_index(KEYS[measure][1])["count_all"].sort_index()
    return found


def check_equal(measure: str, ours: pd.DataFrame, counts: pd.Series[int], trace: RoutingTrace) -> None:
    """Raises AssertionError unless the frame of ours has these very counts."""
    if measure == "vocabulary":
        best = counts.groupby(["layer", "token_id"]).max()
        found = ours.assign(count=(ours["share"] * ours["tokens"]).round().astype(int))
        kept = np.bincount(trace.token_ids)[best.index.get_level_values("token_id")] >= MIN_COUNT
        expected, keys, column = best[kept], ["layer", "token_id"], "count"
    else:
        found = ours.assign(domain=ours["domain"].map(trace.domains.index)) if "domain" in ours else ours
        expected, keys, column = counts, KEYS[measure][1], "tokens"
        found = found[found["tokens"] > 0]
    mine = found.set_index(keys)[column].sort_index()
    pd.testing.assert_series_equal(
        mine, expected.sort_index(), check_names=False, check_dtype=False, check_index_type=False
    )


def compare(trace: RoutingTrace, rounds: int, on_round: Callable[[int], None] | None = None) -> Timings:
    """Time all ways of all measures in turn, sides named "load, ours", after checking that they agree."""
    tables = LongTables.of(trace)
    sides: dict[str, Callable[[], object]] = {}
    for measure, function in MEASURES.items():
        frame = function(trace)
        check_equal(measure, frame, tables.by_pandas(measure), trace)
        check_equal(measure, frame, as_series(measure, tables.by_arrow(measure)), trace)
        sides[_side_name(measure, OURS)] = partial(function, trace)
        sides[_side_name(measure, PANDAS)] = partial(tables.by_pandas, measure)
        sides[_side_name(measure, ARROW)] = partial(tables.by_arrow, measure)
    return interleave(sides, rounds=rounds, on_round=on_round)


def together(timings: Timings) -> Timings:
    """Seconds of each way for all measures, round by round."""
    of = {way: [_side_name(measure, way) for measure in MEASURES] for way in (OURS, PANDAS, ARROW)}
    return Timings(pd.DataFrame({way: timings.seconds[sides].sum(axis=1) for way, sides in of.items()}))


def _timings_of_measure(timings: Timings, measure: str) -> Timings:
    return Timings(pd.DataFrame({way: timings.seconds[_side_name(measure, way)] for way in (OURS, PANDAS, ARROW)}))


def _side_name(measure: str, way: str) -> str:
    return f"{measure}, {way}"


def _reporter(scale: Scale) -> Callable[[int], None]:
    return lambda number: scale.progress("counting", number, scale.rounds)
