"""How the learning rate moves, and how many steps fit into a time budget. Pure functions of numbers."""

from __future__ import annotations

import bisect
import math


def learning_rate_multiplier(step: int, steps: int, *, warmup_fraction: float, final_lr_fraction: float) -> float:
    """Part of the peak learning rate for step `step` of `steps` (counted from 0).

    Rises linearly over the first round(warmup_fraction * steps) steps, reaching 1 at their last; then falls by half a
    cosine (SGDR, arXiv:1608.03983, eq. 5) to `final_lr_fraction` at the last step.
    """
    warmup = round(warmup_fraction * steps)
    if step < warmup:
        return (step + 1) / warmup
    falling = steps - 1 - warmup
    done = min((step - warmup) / falling, 1.0) if falling > 0 else 1.0
    return final_lr_fraction + (1.0 - final_lr_fraction) * 0.5 * (1.0 + math.cos(math.pi * done))


def evaluations_left(step: int, steps: int, interval: int) -> int:
    """Evaluations after `step`: at each multiple of `interval`, and at the last step."""
    return max(0, math.ceil(steps / interval) - step // interval)


def steps_within_budget(
    step: int,
    steps: int,
    *,
    seconds_left: float,
    seconds_per_step: float,
    seconds_per_evaluation: float,
    interval: int,
) -> int:
    """`steps` if they fit into `seconds_left` from `step` on, else as many as do; at least one more, never above."""

    def seconds(until: int) -> float:
        return (until - step) * seconds_per_step + evaluations_left(step, until, interval) * seconds_per_evaluation

    # Each step more costs at least as much, so the largest number that fits is found by bisection.
    fitting = bisect.bisect_right(range(step + 1, steps + 1), seconds_left, key=seconds)
    return min(steps, step + max(1, fitting))
