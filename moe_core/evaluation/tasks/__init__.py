"""The evaluation suite: benchmarks of a run, each score beside its chance level. A custom one is a registered function.

docs/evaluation.md has an example.
"""

from moe_core.evaluation.tasks.catalogue import load_plugin, registered, select
from moe_core.evaluation.tasks.context import Context, Inputs, Outcome
from moe_core.evaluation.tasks.likelihood import Continuation, Likelihood, encode_pair, likelihoods
from moe_core.evaluation.tasks.registry import benchmark
from moe_core.evaluation.tasks.result import Sample
from moe_core.evaluation.tasks.run import run_suite
from moe_core.evaluation.tasks.scores import Score, of_paired_shares, of_pairs, of_questions, of_sources

__all__ = [
    "Context",
    "Continuation",
    "Inputs",
    "Likelihood",
    "Outcome",
    "Sample",
    "Score",
    "benchmark",
    "encode_pair",
    "likelihoods",
    "load_plugin",
    "of_paired_shares",
    "of_pairs",
    "of_questions",
    "of_sources",
    "registered",
    "run_suite",
    "select",
]
