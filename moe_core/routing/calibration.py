"""Do the baselines tell chance from findings? `python -m moe_core.routing.calibration [--json] [--seeds 100]`.

Random routing of three kinds, of which every baseline must say "not distinguishable from chance" in about 95 of 100
seeds, all layers together, with p-values spread evenly over 0..1; and routing with one planted connection, which its
baseline must find in every seed. Documents are small, so that all of it takes a few minutes.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import pandas as pd

from moe_core.routing.measures import registry
from moe_core.routing.measures.against_chance import CHANCE
from moe_core.routing.measures.measure import RandomRouting
from moe_core.routing.trace.trace import RoutingTrace
from moe_core.routing.trace.types import Float64Array

LAYERS, TOP_K, EXPERTS, DOMAINS, TYPES = 3, 2, 8, 2, 12
DOCUMENTS, DOCUMENT_TOKENS = 24, 25
SEEDS, PERMUTATIONS = 100, 199  # 200 values of p: a 5 % test is exact

RANDOM: dict[str, dict[str, Any]] = {
    "uniform": {},
    "load-skewed": {"skew": 1.0},
    "documents alike": {"skew": 0.5, "alike": 1.0},
}
"""Kinds of random routing, as arguments of random_trace."""
WEAK = (0.25, 0.5, 1.0)
"""Strengths of a planted connection that chance may hide; random logits have a standard deviation of 1.28."""

MEASURES = {measure.name: measure for measure in registry.MEASURES if measure.plant is not None}
"""Those whose chance is drawn."""
PLANTS = {name: measure.plant for name, measure in MEASURES.items() if measure.plant is not None}
NULLS = {name: measure.null for name, measure in MEASURES.items() if measure.null is not None}
BY_LAYER = [name for name, plant in PLANTS.items() if plant.found is None]
"""Those with a verdict and an interval a layer; the others are tables of cells."""


def random_trace(
    seed: int, *, skew: float = 0.0, alike: float = 0.0, planted: str = "", strength: float = 3.0, layers: int = LAYERS
) -> RoutingTrace:
    """Random routing: every token chooses the experts with the largest of random logits.

    `skew`: how much experts differ in load; `alike`: how much tokens of a document share tastes, beyond their domain;
    `planted`: the name of a measure, for whose connection (see its Plant) `strength` is added to some logits.
    """
    rng = np.random.default_rng(seed)
    T = DOCUMENTS * DOCUMENT_TOKENS
    documents = np.repeat(np.arange(DOCUMENTS), DOCUMENT_TOKENS)
    tokens = rng.integers(0, TYPES, T)
    logits = rng.gumbel(size=(layers, T, EXPERTS)) + skew * rng.normal(size=(layers, 1, EXPERTS))
    logits += alike * rng.normal(size=(layers, DOCUMENTS, EXPERTS))[:, documents]
    if planted:
        PLANTS[planted].add(RandomRouting(logits, documents, documents % DOMAINS, tokens, strength, rng))
    return _routed_trace(logits, documents, tokens)


def chance_count(name: str, seeds: int, kind: str, permutations: int = PERMUTATIONS) -> tuple[int, Float64Array]:
    """(seeds in which nothing was found in any layer or cell, p-value of each seed's first layer or tested cell)."""
    nothing = 0
    p_values: list[float] = []
    for seed in range(seeds):
        frame = NULLS[name](random_trace(seed, **RANDOM[kind]), permutations=permutations)
        nothing += bool(frame["uncertain"].all() if name not in BY_LAYER else (frame["verdict"] == CHANCE).all())
        p_values += frame["p_value"].dropna().tolist()[:1]
    return nothing, np.array(p_values)


def found_count(
    name: str, seeds: int, permutations: int = PERMUTATIONS, *, strength: float = 3.0, slightly: bool = False
) -> int:
    """Seeds in which the planted connection was found in every layer; loads are skewed besides.

    A verdict must say "clearly", or with `slightly` at least that something was found; cells must be certain.
    """
    found_in_cells = PLANTS[name].found
    found = 0
    for seed in range(seeds):
        trace = random_trace(seed, skew=0.5, planted=name, strength=strength)
        frame = NULLS[name](trace, permutations=permutations)
        if found_in_cells is not None:
            found += found_in_cells(frame)
        else:
            found += bool(frame["verdict"].str.contains("clearly|slightly" if slightly else "clearly").all())
    return found


def calibrate(seeds: int = SEEDS) -> list[dict[str, Any]]:
    """One row per baseline, see main."""
    from scipy import stats

    rows: list[dict[str, Any]] = []
    for name in MEASURES:
        row: dict[str, Any] = {"baseline": name, "seeds": seeds}
        for kind in RANDOM:
            nothing, p_values = chance_count(name, seeds, kind)
            row[f"chance, {kind}"] = nothing
            row[f"KS, {kind}"] = round(float(stats.kstest(p_values, "uniform").pvalue), 3)
        for strength in WEAK:
            row[f"found, planted {strength}"] = found_count(name, seeds, strength=strength, slightly=True)
        row["found clearly, planted 3.0"] = found_count(name, seeds)
        rows.append(row)
    return rows


def _routed_trace(logits: Float64Array, documents: np.ndarray, tokens: np.ndarray) -> RoutingTrace:
    indices = np.argsort(-logits, axis=-1)[..., :TOP_K]
    weights = np.exp(np.take_along_axis(logits, indices, axis=-1))
    return RoutingTrace.from_arrays(
        router_indices=indices,
        router_scores=weights / weights.sum(axis=-1, keepdims=True),
        num_experts=EXPERTS,
        token_ids=tokens,
        document_ids=documents,
        domain_ids=documents % DOMAINS,
        domains=[f"domain {m}" for m in range(DOMAINS)],
    )


def main() -> None:
    """Print, for each baseline: seeds called chance and the Kolmogorov-Smirnov p of their p-values, for each kind of
    random routing; seeds in which a planted connection is found. Intervals are checked by moe_core.routing.coverage."""
    parser = argparse.ArgumentParser(description="Do the baselines tell chance from findings?")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many random traces of each kind (default 100)")
    arguments = parser.parse_args()
    rows = calibrate(arguments.seeds)
    print(json.dumps(rows, indent=2) if arguments.json else pd.DataFrame(rows).set_index("baseline").T.to_string())


if __name__ == "__main__":
    main()
