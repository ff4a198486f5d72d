"""An evaluation for tests that show one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from moe_core.data.windows import WINDOW_RULE
from moe_core.runs.evaluation import Evaluation, GuessingFigures, ParameterCounts, RoutingVerdicts, SplitFigures


def evaluation_record(**changes: Any) -> Evaluation:
    """Figures of a dense model at step 40, with `changes` of whole fields."""
    split = SplitFigures(nats_per_token=3.0, perplexity=20.1, bits_per_byte=1.5, by_domain={})
    record = Evaluation(
        run="run",
        step=40,
        windows=WINDOW_RULE,
        validation=split,
        unseen=split,
        baselines=GuessingFigures(uniform_nats=6.0, unigram_nats=5.0),
        parameters=ParameterCounts(total=10, active=10),
        flops_per_token=20,
        routing=(),
        verdicts=RoutingVerdicts(routing="", domains=""),
    )
    return replace(record, **changes)
