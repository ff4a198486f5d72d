"""What a mixture can save by arithmetic alone, and which published claims that leaves standing.

The claims are those of a small MoE project's documentation (4 experts, 2 layers, top-2): 2.3 times as fast as dense,
78 % fewer FLOPs, 12M of 100M parameters active, perplexity 12.3 against 13.1. The dense model is the one of equal total
size: the k experts that a token passes are k / E of it, so neither the operations nor the parameters a token needs can
fall below k / E of the feed-forward blocks, and attention, embedding and head, which have no experts, save nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from moe_core.config import ModelConfig
from moe_core.experiments.arms import nearest_dense
from moe_core.experiments.comparison_result import Bound
from moe_core.model import size

CLAIMED_SPEEDUP = 98 / 43
CLAIMED_FLOPS_SAVED = 0.78
CLAIMED_ACTIVE = 12 / 100
CLAIMED_PERPLEXITY, CLAIMED_DENSE_PERPLEXITY = 12.3, 13.1
EXPERTS = (2, 4, 5, 8, 10, 12, 16, 17, 32, 64)
"""Numbers of experts in the table; 5, 10 and 17 are where a claim first becomes possible for top-2."""


def bound(experts: int, top_k: int, model: ModelConfig | None = None) -> Bound:
    """The bound for so many experts; with `model`, also that of its shape with its experts as wide as they are.

    The dense counterpart of the whole model has as many parameters; both read model.max_seq_len or 128 tokens of
    context, whichever is fewer.
    """
    saved, speedup = None, None
    if model is not None:
        context = min(128, model.max_seq_len)
        mixture = model.model_copy(update={"num_experts": experts, "top_k": top_k})
        dense = nearest_dense(mixture, size.total_parameters)
        part = size.flops_per_token(mixture, context) / size.flops_per_token(dense, context)
        saved, speedup = 1 - part, 1 / part
    flops_saved, times_as_fast, active = 1 - top_k / experts, experts / top_k, top_k / experts
    return Bound(
        experts,
        top_k,
        flops_saved,
        times_as_fast,
        active,
        saved,
        speedup,
        _possible(flops_saved, times_as_fast, active),
    )


def bounds(top_k: int, model: ModelConfig | None = None) -> list[Bound]:
    """For every number of experts in EXPERTS that is at least top_k."""
    return [bound(experts, top_k, model) for experts in EXPERTS if experts >= top_k]


def fewest_experts(top_k: int) -> dict[str, int]:
    """For each claim, the fewest experts with which arithmetic does not rule it out."""
    names = bound(top_k, top_k).possible
    return {
        name: next(experts for experts in range(top_k, 1000 * top_k) if bound(experts, top_k).possible[name])
        for name in names
    }


def _possible(flops_saved: float, speedup: float, active: float) -> Mapping[str, bool]:
    return {
        "2.3 times as fast": speedup >= CLAIMED_SPEEDUP,
        "78 % fewer FLOPs": flops_saved >= CLAIMED_FLOPS_SAVED,
        "12 of 100 parameters active": active <= CLAIMED_ACTIVE,
    }
