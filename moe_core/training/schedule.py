"""How the learning rate moves, and how many steps fit into a time budget. Pure functions of numbers."""

from __future__ import annotations

import bisect
import math


def learning_rate_multiplier(step: int, steps: int, *, warmup_fraction: float, final_lr_fraction: float) -> float:
    """Part of the peak learning rate for step `step` of `steps` (counted from 0).

    Rises linearly over the first round(warmup_fraction * steps) steps, reaching 1 at their last; then falls in a
    straight line that would meet `final_lr_fraction` one step after the last, so that no step is wasted at 0 (linear
    decay to zero: arXiv:2502.15938).
    """
    warmup = round(warmup_fraction * steps)
    if step < warmup:
        return (step + 1) / warmup
    left = max(0, steps - step) / (steps - warmup) if steps > warmup else 0.0
    return final_lr_fraction + (1.0 - final_lr_fraction) * left


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
