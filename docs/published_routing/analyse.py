"""What every measure finds in the routing of a published model: `python -m docs.published_routing.analyse FILE`.

FILE is a Parquet table, one row a token: text, source (the document), domain, position, and `experts` and `weights`,
[layers x top-k] of each token, layer by layer. MOESCOPE_PUBLISHED_ROUTING may name it instead. It prints what the
section "A published model's routing" of docs/results.md shows. `--trace X.parquet` writes the trace for the dashboard.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from moe_core.routing import RoutingTrace, baselines, metrics
from moe_core.routing.measures import registry
from moe_core.routing.measures.domains import preferred
from moe_core.routing.measures.health import routing_health
from moe_core.routing.measures.measure import Measure
from moe_core.words import count_of, fixed

VARIABLE = "MOESCOPE_PUBLISHED_ROUTING"
EXPERTS = 32
TOP_K = 4
NAME = "gpt-oss-20b"
AGAINST_CHANCE = (
    registry.DOMAIN_NMI,
    registry.PERSISTENCE,
    registry.LAYER_FLOW,
    registry.VOCABULARY,
    registry.COACTIVATION,
)


def read_trace(path: Path) -> RoutingTrace:
    """The table as a trace: every document is its own source, tokens are numbered by their text."""
    table = pq.read_table(path)
    columns = {name: table[name].to_pandas() for name in ("text", "source", "domain", "position")}
    texts = columns["text"].astype("category")
    documents = columns["source"].astype("category").cat.codes.to_numpy()
    domains = columns["domain"].astype("category")
    experts, weights = (
        np.stack(table[name].to_numpy()).reshape(len(table), -1, TOP_K).transpose(1, 0, 2)
        for name in ("experts", "weights")
    )
    return RoutingTrace.from_arrays(
        router_indices=experts.astype(np.int16),
        router_scores=weights.astype(np.float32),
        num_experts=EXPERTS,
        token_ids=texts.cat.codes.to_numpy(),
        document_ids=documents,
        positions=columns["position"].to_numpy(),
        domain_ids=domains.cat.codes.to_numpy(),
        domains=[str(name) for name in domains.cat.categories],
        source=f"{NAME}, {path.name}",
        vocabulary=dict(enumerate(texts.cat.categories)),
    )


def by_layer(trace: RoutingTrace, tests: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row a layer: load with its interval, and each measure beside what chance gives at most in 99 of 100."""
    balance = metrics.load_balance(trace)
    bounds = zip(balance["load_low"], balance["load_high"], strict=True)
    columns = {
        "busiest expert, times the mean": [
            f"{fixed(value, 2)} ({fixed(low, 2)} to {fixed(high, 2)})"
            for value, (low, high) in zip(balance["load_imbalance"], bounds, strict=True)
        ]
    }
    table = pd.DataFrame(columns, index=trace.layers)
    for measure in AGAINST_CHANCE:
        if measure.name not in tests:
            continue
        frame = tests[measure.name].set_index("layer")
        cells = [beside_chance(measure, row) for _, row in frame.iterrows()]
        table[measure.title] = pd.Series(cells, index=frame.index)
        if measure is registry.DOMAIN_NMI:
            intervals = [without_bias(row) for _, row in frame.iterrows()]
            table["without bias (95 % interval)"] = pd.Series(intervals, index=frame.index)
    return table.fillna("")


def beside_chance(measure: Measure, row: pd.Series) -> str:
    """ ".0627 (.0160)": the plug-in value, and in brackets what chance stays below in 99 of 100; ~ where not found."""
    mark = "" if "clearly" in row["verdict"] else "~ "
    return f"{mark}{fixed(row[measure.value], 4).removeprefix('0')} ({fixed(row['null_p99'], 4).removeprefix('0')})"


def without_bias(row: pd.Series) -> str:
    """ ".0592 (.0430 to .0754)": the measure as it would be of ever more text, with its interval."""
    value, low, high = (fixed(row[name], 4).removeprefix("0") for name in ("estimate", "low", "high"))
    return f"{value} ({low} to {high})"


def sentences(trace: RoutingTrace, tests: dict[str, pd.DataFrame]) -> Iterator[str]:
    """The verdicts in words, each with how much of the text it is of."""
    yield f"**Load.** {routing_health(metrics.load_balance(trace))}"
    for measure in AGAINST_CHANCE:
        frame = tests[measure.name]
        assert measure.verdict is not None
        yield f"**{measure.title[:1].upper() + measure.title[1:]}.** {measure.verdict(frame)}"
    context = metrics.context_independence(trace)
    assert registry.CONTEXT_INDEPENDENCE.verdict is not None
    yield f"**Token or context.** {registry.CONTEXT_INDEPENDENCE.verdict(context)}"


def not_to_be_read(trace: RoutingTrace) -> str:
    """How many experts and pairs of experts the text says nothing about."""
    cells, pairs = baselines.domain_cells(trace), baselines.coactivation_pairs(trace)
    experts = trace.num_layers * trace.num_experts
    with_domain = len(preferred(cells).drop_duplicates(["layer", "expert"]))
    sure, tested = ~cells["uncertain"], cells["p_value"].notna()
    unseen = int(metrics.load_balance(trace)["dead_experts"].sum())
    return (
        f"**What nobody should read into.** {experts - with_domain} of {experts} experts prefer no subject "
        f"distinguishably from chance: what they are for cannot be said from this text. Of {len(cells):,} cells "
        f"of expert and subject {int(sure.sum()):,} are sure, {int((tested & ~sure).sum()):,} are not and "
        f"{int((~tested).sum()):,} have too little text to test. Of {len(pairs):,} pairs of experts of a layer "
        f"{int((~pairs['uncertain']).sum()):,} are surely chosen together more or less often than chance. "
        f"{count_of(unseen, 'expert')} had no token."
    )


def markdown(table: pd.DataFrame) -> str:
    """The table with the layer first."""
    head = ["layer", *table.columns]
    rows = [f"| {layer} | {' | '.join(row)} |" for layer, row in zip(table.index, table.to_numpy(), strict=True)]
    return "\n".join([f"| {' | '.join(head)} |", f"| --- |{' ---: |' * len(table.columns)}", *rows])


def main() -> None:
    """Print the section."""
    parser = argparse.ArgumentParser(description="What every measure finds in the routing of a published model.")
    parser.add_argument("file", nargs="?", default=os.environ.get(VARIABLE), help=f"or the variable {VARIABLE}")
    parser.add_argument("--trace", metavar="X.parquet", help="write the trace too, to open it in the dashboard")
    arguments = parser.parse_args()
    if arguments.file is None or not Path(arguments.file).is_file():
        parser.error(f"there is no table at {arguments.file!r}; name one, or set {VARIABLE}")
    trace = read_trace(Path(arguments.file))
    if arguments.trace:
        trace.save(arguments.trace)
    tests = {measure.name: measure.null(trace) for measure in AGAINST_CHANCE if measure.null is not None}
    print(markdown(by_layer(trace, tests)))
    for sentence in sentences(trace, tests):
        print(f"\n- {sentence}")
    print(f"\n- {not_to_be_read(trace)}")


if __name__ == "__main__":
    main()
