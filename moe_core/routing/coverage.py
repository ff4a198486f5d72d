"""Do the 95 % intervals hold the truth? `python -m moe_core.routing.coverage [--json] [--seeds 200]`.

Routing with a planted connection is drawn again and again, and each seed's interval held against the true value: what
the measure, as it is counted, gives for so many documents of the same kind that neither bias nor chance is left.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from moe_core.routing.calibration import BY_LAYER, DOMAINS, EXPERTS, MEASURES, NULLS, PLANTS, TOP_K, TYPES
from moe_core.routing.measures.experts_per_token import NULLS as NULLS_OF_ROUTING
from moe_core.routing.measures.labelled_tokens import LABELS
from moe_core.routing.measures.measure import RandomRouting
from moe_core.routing.trace.trace import RoutingTrace
from moe_core.routing.trace.types import Float64Array, Int64Array

SEEDS = 200
STRENGTH = 1.0
"""Of the planted connection, in logits."""
NOISE = 1.28
"""Standard deviation of a logit from token to token, that of a Gumbel variable."""
TRUTH_DOCUMENTS = 4000
_LAYERS = 2


@dataclass(frozen=True)
class Kind:
    """A kind of documents."""

    documents: int
    tokens: int
    """Of a document, on average."""
    alike: float = 0.0
    """How much tokens of a document share tastes, beyond their domain: standard deviation in logits."""
    persistence: float = 0.0
    """Correlation of a logit with that of the token before, 0..1 (autoregressive, of first order)."""
    unequal: float = 0.0
    """Standard deviation of the logarithm of a document's length."""


KINDS = {
    "independent": Kind(24, 25),
    "documents alike": Kind(24, 25, alike=0.5),
    "unequal lengths": Kind(24, 25, alike=0.5, unequal=0.7),
    "autocorrelated .4": Kind(40, 100, alike=0.5, persistence=0.4),
    "autocorrelated .8": Kind(40, 100, alike=0.5, persistence=0.8),
    "six documents": Kind(6, 100, alike=0.5),
}
"""What intervals must stand: short and long documents, alike inside, in runs, of unequal lengths, and few of them."""


def routing_of(kind: Kind, planted: str, seed: int) -> RoutingTrace:
    """Routing of one kind with the connection of the measure `planted`."""
    rng = np.random.default_rng([seed, 11])
    sizes = np.full(kind.documents, kind.tokens)
    if kind.unequal:
        stretch = np.exp(kind.unequal * rng.normal(size=kind.documents) - kind.unequal**2 / 2)
        sizes = np.maximum(2, np.round(kind.tokens * stretch)).astype(np.int64)
    documents = np.repeat(np.arange(kind.documents), sizes)
    logits = NOISE * _in_runs(rng.normal(size=(_LAYERS, len(documents), EXPERTS)), documents, kind.persistence)
    logits += kind.alike * rng.normal(size=(_LAYERS, kind.documents, EXPERTS))[:, documents]
    tokens = rng.integers(0, TYPES, len(documents))
    PLANTS[planted].add(RandomRouting(logits, documents, documents % DOMAINS, tokens, STRENGTH, rng))
    return RoutingTrace.from_arrays(
        router_indices=np.argsort(-logits, axis=-1)[..., :TOP_K],
        router_scores=-np.sort(-logits, axis=-1)[..., :TOP_K] - logits.min() + 1,
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


@cache
def true_value(name: str, kind: Kind) -> float:
    """The measure, as it is counted, of TRUTH_DOCUMENTS documents of this kind."""
    many = routing_of(replace(kind, documents=TRUTH_DOCUMENTS), name, 2**31)
    return float(NULLS[name](many, permutations=1).iloc[0][MEASURES[name].value])


def coverage(name: str, kind: Kind, seeds: int) -> tuple[int, int]:
    """(seeds whose interval holds the true value, seeds that have an interval)."""
    truth, held, known = true_value(name, kind), 0, 0
    for seed in range(seeds):
        row = NULLS[name](routing_of(kind, name, seed), permutations=1).iloc[0]
        known += not np.isnan(row["low"])
        held += bool(row["low"] <= truth <= row["high"])
    return held, known


def study(seeds: int = SEEDS) -> list[dict[str, Any]]:
    """One row per measure and kind, see main."""
    rows: list[dict[str, Any]] = []
    for name in BY_LAYER:
        for title, kind in KINDS.items():
            held, known = coverage(name, kind, seeds)
            truth = round(true_value(name, kind), 4)
            rows.append({"baseline": name, "kind": title, "truth": truth, "held": held, "intervals": known})
    return rows


def _in_runs(noise_LTE: Float64Array, documents_T: Int64Array, persistence: float) -> Float64Array:
    """Noise of the same variance that is like that of the token before in its document."""
    if persistence:
        fresh = np.sqrt(1 - persistence**2)
        for t in np.flatnonzero(np.diff(documents_T) == 0) + 1:
            noise_LTE[:, t] = persistence * noise_LTE[:, t - 1] + fresh * noise_LTE[:, t]
    return noise_LTE


def main() -> None:
    """Print, for each baseline and kind of documents, its true value and in how many seeds its interval holds it."""
    parser = argparse.ArgumentParser(description="Do the 95 % intervals hold the truth?")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"random traces of each kind (default {SEEDS})")
    rows = study((arguments := parser.parse_args()).seeds)
    print(json.dumps(rows, indent=2) if arguments.json else pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
