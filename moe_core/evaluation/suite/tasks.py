"""Every benchmark of ours; importing this registers them, in the order of the report."""

from moe_core.evaluation.suite import predicting, written, choices, known_benchmarks  # noqa: F401, I001 - the order counts
