"""What a mixture can save by arithmetic alone, and which published claims that leaves standing.

The dense model is the one of equal total
size: the k experts that a token passes are k / E of it, so neither the operations nor the parameters a token needs can
fall below k / E of the feed-forward blocks, and attention, embedding and head, which have no experts, save nothing.
"""

from __future__ import annotations

from moe_core.config import ModelConfig
from moe_core.experiments.comparison_result import Bound
from moe_core.experiments.published_claims import possible_claims
from moe_core.model import size

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
        dense = size.nearest_dense(mixture, size.total_parameters)
        part = size.flops_per_token(mixture, context) / size.flops_per_token(dense, context)
        saved, speedup = 1 - part, 1 / part
    return Bound(
        experts,
        top_k,
        1 - top_k / experts,
        experts / top_k,
        top_k / experts,
        saved,
        speedup,
        possible_claims(experts, top_k),
    )


def bounds(top_k: int, model: ModelConfig | None = None) -> list[Bound]:
    """For every number of experts in EXPERTS that is at least top_k."""
    return [bound(experts, top_k, model) for experts in EXPERTS if experts >= top_k]
