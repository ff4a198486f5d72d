"""Do the baselines tell chance from findings? `python -m moe_core.routing.calibration [--json] [--seeds 100]`.

Random routing of several kinds, of which every baseline must say "not distinguishable from chance" in about 95 of 100
seeds, all layers together, with p-values spread evenly over 0..1; and routing with one planted connection, which its
baseline must find in every seed. Documents are small, so that all of it takes minutes.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import pandas as pd

from moe_core.routing.measures import registry
from moe_core.routing.measures.against_chance import CHANCE
from moe_core.routing.measures.experts_per_token import NULLS as NULLS_OF_ROUTING
from moe_core.routing.measures.labelled_tokens import LABELS
from moe_core.routing.measures.measure import RandomRouting
from moe_core.routing.statistics.multiple_comparisons import SIGNIFICANCE
from moe_core.routing.trace.trace import RoutingTrace
from moe_core.routing.trace.types import Float64Array, Int64Array

LAYERS, TOP_K, EXPERTS, DOMAINS, TYPES = 3, 2, 8, 2, 12
DOCUMENTS, DOCUMENT_TOKENS = 24, 25
SEEDS, PERMUTATIONS = 100, 199  # 200 values of p: a 5 % test is exact

_LONG: dict[str, Any] = {"documents": 40, "document_tokens": 100, "layers": 2}
RANDOM: dict[str, dict[str, Any]] = {
    "uniform": {},
    "load-skewed": {"skew": 1.0},
    "documents alike": {"skew": 0.5, "alike": 1.0},
    "autocorrelated 0": _LONG,
    "autocorrelated .4": {**_LONG, "phi": 0.4},
    "autocorrelated .8": {**_LONG, "phi": 0.8},
    "autocorrelated .8, load-skewed": {**_LONG, "phi": 0.8, "skew": 1.0},
    "autocorrelated .8, unequal documents": {**_LONG, "phi": 0.8, "unequal": 1.0},
    "autocorrelated .8, few documents": {**_LONG, "phi": 0.8, "documents": 8},
}
"""Kinds of random routing, as arguments of random_trace. Experts are independent of each other, of domains, tokens and
other layers in all of them; only persistence is there to find where logits are autocorrelated."""
RUNS = tuple(kind for kind, arguments in RANDOM.items() if arguments.get("phi"))
"""Those in which choices come in runs."""
LONG_DOCUMENTS = (40, 8)
"""So many documents of 100 tokens: what a test finds depends on how many sources there are."""
WEAK = (0.25, 0.5, 1.0)
"""Strengths of a planted connection that chance may hide; random logits have a standard deviation of 1.28."""

MEASURES = {measure.name: measure for measure in registry.MEASURES if measure.plant is not None}
"""Those whose chance is drawn."""
PLANTS = {name: measure.plant for name, measure in MEASURES.items() if measure.plant is not None}
NULLS = {name: measure.null for name, measure in MEASURES.items() if measure.null is not None}
BY_LAYER = [name for name, plant in PLANTS.items() if plant.found is None]
"""Those with a verdict and an interval a layer; the others are tables of cells."""


def random_trace(
    seed: int,
    *,
    skew: float = 0.0,
    alike: float = 0.0,
    phi: float = 0.0,
    documents: int = DOCUMENTS,
    document_tokens: int = DOCUMENT_TOKENS,
    unequal: float = 0.0,
    planted: str = "",
    strength: float = 3.0,
    layers: int = LAYERS,
) -> RoutingTrace:
    """Random routing: every token chooses the experts with the largest of random logits.

    `skew`: how much experts differ in load; `alike`: how much tokens of a document share tastes, beyond their domain;
    `phi`: 0 <= phi < 1, autocorrelation of an expert's logits from token to token of a document (AR(1), the variance is
    that of phi = 0), and the probability that a token repeats the one before;
    `documents` of `document_tokens` tokens on average, whose lengths differ by a factor exp(`unequal`) as a rule;
    `planted`: the name of a measure, for whose connection (see its Plant) `strength` is added to some logits.
    """
    rng = np.random.default_rng(seed)
    lengths = np.full(documents, document_tokens)
    if unequal:
        share = rng.lognormal(sigma=unequal, size=documents)
        lengths = np.maximum(2, np.rint(documents * document_tokens * share / share.sum()).astype(np.int64))
    of_token = np.repeat(np.arange(documents), lengths)
    T = len(of_token)
    tokens = rng.integers(0, TYPES, T)
    logits = rng.gumbel(size=(layers, T, EXPERTS))
    if phi:
        _repeat_tokens(tokens, of_token, phi, rng)
        _autocorrelate(logits, of_token, phi)
    logits += skew * rng.normal(size=(layers, 1, EXPERTS))
    logits += alike * rng.normal(size=(layers, documents, EXPERTS))[:, of_token]
    if planted:
        PLANTS[planted].add(RandomRouting(logits, of_token, of_token % DOMAINS, tokens, strength, rng))
    return _routed_trace(logits, of_token, tokens)


def _autocorrelate(logits_LTE: Float64Array, document_T: Int64Array, phi: float) -> None:
    """Turn independent logits into an AR(1) series inside every document, in place; mean and variance stay."""
    logits_LTE -= np.euler_gamma  # the mean of a Gumbel variable
    for t in np.flatnonzero(np.diff(document_T) == 0) + 1:
        logits_LTE[:, t] = phi * logits_LTE[:, t - 1] + np.sqrt(1 - phi**2) * logits_LTE[:, t]


def _repeat_tokens(tokens_T: Int64Array, document_T: Int64Array, phi: float, rng: np.random.Generator) -> None:
    """Let a token repeat the one before it in its document with probability phi, in place."""
    repeats_T = rng.random(len(tokens_T)) < phi
    repeats_T[np.diff(document_T, prepend=-1) != 0] = False
    tokens_T[:] = tokens_T[np.maximum.accumulate(np.where(repeats_T, 0, np.arange(len(tokens_T))))]


def chance_count(name: str, seeds: int, kind: str, permutations: int = PERMUTATIONS) -> tuple[int, Float64Array]:
    """(seeds in which nothing was found in any layer or cell, p-value of each seed's first layer or tested cell)."""
    nothing = 0
    p_values: list[float] = []
    for seed in range(seeds):
        frame = NULLS[name](random_trace(seed, **RANDOM[kind]), permutations=permutations)
        nothing += bool(frame["uncertain"].all() if name not in BY_LAYER else (frame["verdict"] == CHANCE).all())
        p_values += frame["p_value"].dropna().tolist()[:1]
    return nothing, np.array(p_values)


def kinds_of_chance(name: str) -> list[str]:
    """The kinds of random routing in which there is nothing to find. Where choices come in runs they persist."""
    return [kind for kind in RANDOM if name != "persistence" or kind not in RUNS]


def most_found(seeds: int, cells: int) -> int:
    """In how many of so many seeds a 5 % test may find something where there is nothing.

    The exact binomial limit, which at most one in twenty tables of so many cells breaks (Bonferroni).
    """
    from scipy import stats

    return int(stats.binom.isf(SIGNIFICANCE / cells, seeds, SIGNIFICANCE))


def evenness(name: str, p_values: Float64Array) -> float:
    """Kolmogorov-Smirnov p, 0..1, of p-values spread evenly over 0..1; of a tolerant null, of none too small."""
    from scipy import stats

    alternative = "greater" if PLANTS[name].tolerant else "two-sided"
    return float(stats.kstest(p_values, "uniform", alternative=alternative).pvalue)


def found_count(
    name: str,
    seeds: int,
    permutations: int = PERMUTATIONS,
    *,
    strength: float = 3.0,
    slightly: bool = False,
    **arguments: Any,
) -> int:
    """Seeds in which the planted connection was found in every layer; loads are skewed besides.

    A verdict must say "clearly", or with `slightly` at least that something was found; cells must be certain.
    `arguments`: of random_trace.
    """
    found_in_cells = PLANTS[name].found
    found = 0
    for seed in range(seeds):
        trace = random_trace(seed, skew=0.5, planted=name, strength=strength, **arguments)
        frame = NULLS[name](trace, permutations=permutations)
        if found_in_cells is not None:
            found += found_in_cells(frame)
        else:
            found += bool(frame["verdict"].str.contains("clearly|slightly" if slightly else "clearly").all())
    return found


def calibrate(seeds: int = SEEDS) -> list[dict[str, Any]]:
    """One row per baseline, see main."""
    rows: list[dict[str, Any]] = []
    cells = sum(len(kinds_of_chance(name)) for name in MEASURES)
    for name in MEASURES:
        row: dict[str, Any] = {"baseline": name, "seeds": seeds, "chance, at least": seeds - most_found(seeds, cells)}
        for kind in kinds_of_chance(name):
            nothing, p_values = chance_count(name, seeds, kind)
            row[f"chance, {kind}"] = nothing
            row[f"KS, {kind}"] = round(evenness(name, p_values), 3)
        for strength in WEAK:
            row[f"found, planted {strength}"] = found_count(name, seeds, strength=strength, slightly=True)
        row["found clearly, planted 3.0"] = found_count(name, seeds)
        for documents in LONG_DOCUMENTS:
            for strength in (1.0, 3.0):
                row[f"found, {documents} documents of 100 tokens, planted {strength}"] = found_count(
                    name, seeds, strength=strength, slightly=True, documents=documents, document_tokens=100
                )
        rows.append(row)
    return rows


def _routed_trace(logits: Float64Array, documents: Int64Array, tokens: Int64Array) -> RoutingTrace:
    indices = np.argsort(-logits, axis=-1)[..., :TOP_K]
    weights = np.exp(np.take_along_axis(logits, indices, axis=-1))
    return RoutingTrace.from_arrays(
        router_indices=indices,
        router_scores=weights / weights.sum(axis=-1, keepdims=True),
        num_experts=EXPERTS,
        null_experts=NULLS_OF_ROUTING,
        token_ids=tokens,
        document_ids=documents,
        domain_ids=documents % DOMAINS,
        domains=[f"domain {m}" for m in range(DOMAINS)],
        label_ids=tokens % LABELS,
        labels=[f"label {n}" for n in range(LABELS)],
        labelling="label",
    )


def main() -> None:
    """Print, for each baseline: how many seeds must be called chance, how many are, and the Kolmogorov-Smirnov p of
    their p-values, for each kind of random routing; seeds in which a planted connection is found. Intervals are checked
    by moe_core.routing.coverage."""
    parser = argparse.ArgumentParser(description="Do the baselines tell chance from findings?")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many random traces of each kind (default 100)")
    arguments = parser.parse_args()
    rows = calibrate(arguments.seeds)
    print(json.dumps(rows, indent=2) if arguments.json else pd.DataFrame(rows).set_index("baseline").T.to_string())


if __name__ == "__main__":
    main()
