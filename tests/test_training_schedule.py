"""Learning rate and time budget, by hand."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from moe_core.config import TrainingConfig
from moe_core.training.clock import Clock
from moe_core.training.schedule import evaluations_left, learning_rate_multiplier, steps_within_budget


def test_warm_up_then_a_straight_line_by_hand() -> None:
    # 10 steps, 2 of warm-up: 1/2, 1, then 8 steps from 1 towards 0.2, which the step after the last would reach.
    values = [learning_rate_multiplier(step, 10, warmup_fraction=0.2, final_lr_fraction=0.2) for step in range(10)]
    assert values == pytest.approx([0.5, 1.0, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
    to_zero = [learning_rate_multiplier(step, 4, warmup_fraction=0.0, final_lr_fraction=0.0) for step in range(4)]
    assert to_zero == [1.0, 0.75, 0.5, 0.25]


@given(st.integers(1, 500), st.floats(0, 1), st.floats(0, 1))
def test_the_schedule_stays_between_its_ends(steps: int, warmup: float, final: float) -> None:
    values = [
        learning_rate_multiplier(step, steps, warmup_fraction=warmup, final_lr_fraction=final) for step in range(steps)
    ]
    rising = round(warmup * steps)
    assert all(0 < value <= 1 for value in values[:rising])
    assert all(final - 1e-12 <= value <= 1 for value in values[rising:])
    assert values[:rising] == sorted(values[:rising])
    assert values[rising:] == sorted(values[rising:], reverse=True)
    if rising < steps:
        assert values[rising] == pytest.approx(1.0)
        assert values[-1] == pytest.approx(final + (1 - final) / (steps - rising))


def test_evaluations_left_by_hand() -> None:
    assert evaluations_left(0, 100, 10) == 10  # at 10, 20, ..., 100
    assert evaluations_left(10, 25, 10) == 2  # at 20 and 25
    assert evaluations_left(20, 25, 10) == 1
    assert evaluations_left(30, 30, 10) == 0


def test_steps_within_budget_by_hand() -> None:
    fixed = {"seconds_per_step": 1.0, "seconds_per_evaluation": 5.0, "interval": 10}
    # 90 steps + 9 evaluations of 5 s = 135 s.
    assert steps_within_budget(10, 100, seconds_left=135.0, **fixed) == 100  # type: ignore[arg-type]
    # Up to step 50: 40 steps + 4 evaluations = 60 s; one more would need its own evaluation at the end, 66 s.
    assert steps_within_budget(10, 100, seconds_left=61.0, **fixed) == 50  # type: ignore[arg-type]
    assert steps_within_budget(10, 100, seconds_left=-3.0, **fixed) == 11  # type: ignore[arg-type]


@given(
    st.integers(0, 1000),
    st.integers(1, 1000),
    st.floats(-10, 1e5),
    st.floats(1e-4, 10),
    st.floats(0, 60),
    st.integers(1, 300),
)
@example(step=3, more=2, left=10.0, per_step=1.0, per_evaluation=5.0, interval=4)  # a mean cost per step is not enough
def test_lowered_steps_fit_and_are_never_raised(
    step: int, more: int, left: float, per_step: float, per_evaluation: float, interval: int
) -> None:
    steps = step + more
    lowered = steps_within_budget(
        step,
        steps,
        seconds_left=left,
        seconds_per_step=per_step,
        seconds_per_evaluation=per_evaluation,
        interval=interval,
    )
    assert step < lowered <= steps
    needed = (lowered - step) * per_step + evaluations_left(step, lowered, interval) * per_evaluation
    assert lowered == step + 1 or needed <= left * (1 + 1e-9) + 1e-9


def test_the_clock_lowers_only_when_there_is_a_budget_that_does_not_reach() -> None:
    clock = Clock()
    training = TrainingConfig(steps=100, evaluation_interval=50, time_budget_seconds=60.0)
    assert clock.seconds_left(0, 100, 50) is None
    assert clock.fit(0, 100, training) == 100  # no step was timed yet
    for _ in range(10):
        clock.add_step(1.0)
    clock.add_evaluation(2.0)
    # 12 s are spent; 90 steps and 2 evaluations need 94 s; 48 s are left: (48 - 2) / (1 + 2 / 50) = 44 steps.
    assert clock.seconds_left(10, 100, 50) == pytest.approx(94.0)
    assert clock.fit(10, 100, training) == 54
    assert clock.fit(10, 100, TrainingConfig(evaluation_interval=50)) == 100
    # The early look lets 48 s * 1.25 = 60 s pass: 56 steps and 2 evaluations.
    assert clock.fit(10, 66, training, tolerance=1.25) == 66
    assert clock.fit(10, 66, training) == 54


def test_a_machine_that_becomes_slow_between_two_evaluations_still_ends_in_time() -> None:
    """A default run beside other work: its last 85 steps, after the last look, took 11 of its 35 minutes."""
    training = TrainingConfig(steps=600, evaluation_interval=100, time_budget_seconds=700.0)
    clock, steps = Clock(), 600
    step = 0
    while step < steps:
        clock.add_step(1.0 if step < 510 else 6.0)
        step += 1
        steps = clock.fit(step, steps, training, tolerance=clock.tolerance)
        if step % 100 == 0 or step == steps:
            clock.add_evaluation(2.0)
            steps = clock.fit(step, steps, training)
    assert step == steps < 600
    assert clock.elapsed <= 700.0 * 1.05 + 6.0 + 2.0


def test_a_hiccup_between_two_evaluations_leaves_the_schedule_alone() -> None:
    training = TrainingConfig(steps=600, evaluation_interval=100, time_budget_seconds=620.0)
    clock = Clock()
    for step in range(1, 300):
        clock.add_step(9.0 if step == 250 else 1.0)
        assert clock.fit(step, 600, training, tolerance=clock.tolerance) == 600
