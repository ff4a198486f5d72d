"""Published claims about a small mixture, and what arithmetic alone says of them; no model is needed.

The claims are those of a small MoE project's documentation (4 experts, 2 layers, top-2): 2.3 times as fast as dense,
78 % fewer FLOPs, 12M of 100M parameters active, perplexity 12.3 against 13.1.
"""

from __future__ import annotations

from collections.abc import Mapping

CLAIMED_SPEEDUP = 98 / 43
CLAIMED_FLOPS_SAVED = 0.78
CLAIMED_ACTIVE = 12 / 100
CLAIMED_PERPLEXITY, CLAIMED_DENSE_PERPLEXITY = 12.3, 13.1


def possible_claims(experts: int, top_k: int) -> Mapping[str, bool]:
    """Which claims arithmetic leaves possible where each token passes top_k of so many experts."""
    return {
        "2.3 times as fast": experts / top_k >= CLAIMED_SPEEDUP,
        "78 % fewer FLOPs": 1 - top_k / experts >= CLAIMED_FLOPS_SAVED,
        "12 of 100 parameters active": top_k / experts <= CLAIMED_ACTIVE,
    }


def fewest_experts(top_k: int) -> dict[str, int]:
    """For each claim, the fewest experts with which arithmetic does not rule it out."""
    return {
        name: next(experts for experts in range(top_k, 1000 * top_k) if possible_claims(experts, top_k)[name])
        for name in possible_claims(top_k, top_k)
    }
