"""The result of a comparison, made of the outcomes of its trainings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe_core.config import Config, ModelConfig
from moe_core.data.splits import HeldOutSplit
from moe_core.experiments.arms import Arm, measured_flops_per_token
from moe_core.experiments.claims import bounds
from moe_core.experiments.comparison_result import (
    FORMAT,
    ArmResult,
    ComparisonResult,
    Difference,
    FlopsPerToken,
    LongerBudget,
    LossCurve,
    ParameterCounts,
    RoutingSummary,
    Score,
    Scores,
    TuningTrial,
    Violation,
    exposure,
    finite,
)
from moe_core.experiments.plan import PRIMARY, Budget, Plan, Trial
from moe_core.experiments.runner import Outcomes, tuning_loss
from moe_core.experiments.speed_result import Environment, SpeedResult
from moe_core.model import size
from moe_core.routing.statistics.intervals import PairedDifference, paired_difference
from moe_core.runs.files import write_atomic


def build_result(
    plan: Plan,
    chosen: Mapping[str, float],
    outcomes: Outcomes,
    speed: SpeedResult | None,
) -> ComparisonResult:
    """Everything that is shown of a comparison. `speed`: see measure_speed, None before it was measured."""
    reference = _scored_outcomes(plan, outcomes, plan.arms[0].name, chosen)
    config = _with_real_vocabulary(plan, reference[0])
    training = config.training
    return ComparisonResult(
        format=FORMAT,
        kind=plan.kind,
        name=plan.name,
        primary=PRIMARY,
        plan_hash=plan.hash,
        data="synthetic" if config.data.path is None else Path(config.data.path).name,
        environment=Environment(**reference[0]["environment"]),
        config=_without_folder(config),
        tokens=training.steps * training.batch_size * training.seq_len,
        unigram_nats=reference[0]["evaluation"]["baselines"]["unigram_nats"],
        seeds=plan.seeds,
        tuning_seeds=plan.tuning_seeds if len(plan.factors) > 1 else (),
        tuning=tuple(
            _tuning_trial(plan, trial, outcome)
            for trial, outcome in outcomes.items()
            if trial.seed in plan.tuning_seeds
        ),
        arms=tuple(
            _arm_result(plan, arm, _vocabulary_of(arm.config, config), chosen, outcomes, reference) for arm in plan.arms
        ),
        speed=speed,
        bounds=tuple(bounds(config.model.top_k, config.model)) if plan.kind == "dense" else None,
        text_tokens=_text_tokens(outcomes),
        longer=_longer_budgets(plan, chosen, outcomes) or None,
    )


def _tuning_trial(plan: Plan, trial: Trial, outcome: Mapping[str, Any]) -> TuningTrial:
    nats = finite(tuning_loss(outcome))
    if plan.tuning_split:
        return TuningTrial(trial.arm, trial.factor, tuning_nats=nats)
    return TuningTrial(trial.arm, trial.factor, unseen_nats=nats)


def write_result(path: Path, result: ComparisonResult) -> None:
    """Keep it, whole or not at all; figures rounded to six significant digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, result.to_bytes())


def _arm_result(
    plan: Plan,
    arm: Arm,
    config: Config,
    chosen: Mapping[str, float],
    outcomes: Outcomes,
    reference: Sequence[Mapping[str, Any]],
) -> ArmResult:
    """`config`: the arm's, with the real vocabulary; `reference`: the scored outcomes of the first arm."""
    scored = _scored_outcomes(plan, outcomes, arm.name, chosen)
    model, factor = config.model, chosen[arm.name]
    routing = _routing_summary(scored) if model.moe_layers else None
    experts = None if routing is None else routing.experts_per_token
    parameters, training = _parameter_counts(model, experts), config.training
    tokens = training.steps * training.batch_size * training.seq_len
    return ArmResult(
        name=arm.name,
        label=arm.label,
        factor=factor,
        edge=len(plan.factors) > 1 and factor in (min(plan.factors), max(plan.factors)),
        dense_hidden_dim=None if model.moe_layers else model.dense_hidden_dim,
        parameters=parameters,
        flops_per_token=_flops_per_token(model, config.training.seq_len, experts),
        scores=_scores(scored, reference),
        by_domain=_by_domain(scored, reference, "unseen"),
        curve=_mean_curve(scored),
        routing=routing,
        sees_future=not model.can_write,
        validation_by_domain=_by_domain(scored, reference, "validation"),
        exposure=exposure(tokens, parameters, _text_tokens(outcomes)),
    )


def _text_tokens(outcomes: Outcomes) -> int | None:
    """All trainings read the same text; those from before 2026-11-28 did not say how long it is."""
    return next((outcome["text_tokens"] for outcome in outcomes.values() if "text_tokens" in outcome), None)


def _longer_budgets(plan: Plan, chosen: Mapping[str, float], outcomes: Outcomes) -> tuple[LongerBudget, ...]:
    """Those of which every training is finished."""
    training, found = plan.config.training, []
    for budget in plan.longer:
        if not all(trial in outcomes for trial in plan.scored_trials(chosen, budget)):
            continue
        scored = {arm.name: _scored_outcomes(plan, outcomes, arm.name, chosen, budget) for arm in plan.arms}
        reference = scored[plan.arms[0].name]
        tokens = budget.times * training.steps * training.batch_size * training.seq_len
        scores = {name: _scores(of_arm, reference) for name, of_arm in scored.items()}
        found.append(LongerBudget(budget.times, tokens, budget.seeds, scores))
    return tuple(found)


def _scores(scored: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]) -> Scores:
    return Scores(
        unseen_nats=_paired_score(scored, reference, "unseen", "nats_per_token"),
        unseen_bits_per_byte=_paired_score(scored, reference, "unseen", "bits_per_byte"),
        validation_nats=_paired_score(scored, reference, "validation", "nats_per_token"),
    )


def _by_domain(
    scored: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]], split: HeldOutSplit
) -> dict[str, Score]:
    return {
        domain: _paired_score(scored, reference, split, "by_domain", domain)
        for domain in scored[0]["evaluation"][split]["by_domain"]
    }


def _parameter_counts(model: ModelConfig, experts: float | None) -> ParameterCounts:
    """`experts` that a token passed per MoE layer, which is what it costs; None for a dense model."""
    total, embedding = size.total_parameters(model), size.embedding_parameters(model)
    active = size.active_parameters(model, experts)
    return ParameterCounts(total, active, total - embedding, active - embedding)


def _flops_per_token(model: ModelConfig, context: int, experts: float | None) -> FlopsPerToken:
    """`experts`: as for _parameter_counts."""
    computed = size.flops_per_token(model, context, experts)
    fixed = experts is None or round(experts, 6) == model.top_k
    # By a model that has learned nothing: where the router decides how many, that says nothing.
    measured = measured_flops_per_token(model, context) if fixed else None
    return FlopsPerToken(computed, measured, computed - 2 * size.embedding_parameters(model))


def _paired_score(scored: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]], *path: str) -> Score:
    values = [_loss_of(outcome, *path) for outcome in scored]
    known = [value for value in values if value is not None]
    against = [value for outcome in reference if (value := _loss_of(outcome, *path)) is not None]
    difference = None
    if scored != reference and len(known) == len(against) == len(values):
        difference = _difference(paired_difference(known, against))
    return Score(tuple(values), float(np.mean(known)) if len(known) == len(values) else None, difference)


def _difference(found: PairedDifference) -> Difference:
    low, high, p_value = finite(found.low), finite(found.high), finite(found.p_value)
    return Difference(found.mean, low, high, p_value, found.pairs, found.verdict)


def _routing_summary(scored: Sequence[Mapping[str, Any]]) -> RoutingSummary:
    """Of the held-out text, all layers and seeds: the worst and the mean."""
    rows = [row for outcome in scored for row in outcome["evaluation"]["routing"]]

    def values(key: str) -> list[float]:
        return [math.nan if row[key] is None else float(row[key]) for row in rows]

    def mean(key: str) -> float | None:
        return finite(float(np.mean(values(key))))

    nmi, null = np.array(values("domain_nmi")), np.array(values("domain_nmi_null_p99"))
    imbalance = values("load_imbalance")
    return RoutingSummary(
        max_violation=Violation(finite(float(np.mean(imbalance)) - 1), finite(max(imbalance) - 1)),
        dead_experts=finite(float(np.sum(values("dead_experts"))) / len(scored)),
        experts_per_token=mean("experts_per_token"),
        router_entropy=mean("router_entropy"),
        domain_nmi=mean("domain_nmi"),
        domain_nmi_null_p99=mean("domain_nmi_null_p99"),
        layers_above_null=float((nmi > null).mean()),
    )


def _mean_curve(scored: Sequence[Mapping[str, Any]]) -> LossCurve:
    curves = [outcome["curve"] for outcome in scored]

    def mean(key: str) -> list[float]:
        return [float(value) for value in np.mean([curve[key] for curve in curves], axis=0)]

    losses = (tuple(finite(value) for value in mean(split)) for split in ("unseen", "validation"))
    return LossCurve(tuple(mean("step")), *losses)


def _scored_outcomes(
    plan: Plan, outcomes: Outcomes, arm: str, chosen: Mapping[str, float], budget: Budget | None = None
) -> list[dict[str, Any]]:
    return [outcomes[trial] for trial in plan.scored_trials(chosen, budget) if trial.arm == arm]


def _loss_of(outcome: Mapping[str, Any], *path: str) -> float | None:
    found: Any = None if outcome["failed"] else outcome["evaluation"]
    for key in path if found is not None else ():
        found = found[key]
    return None if found is None else float(found)


def _with_real_vocabulary(plan: Plan, outcome: Mapping[str, Any]) -> Config:
    """The first arm's configuration with the number of entries that the tokenizer really has."""
    uniform = outcome["evaluation"]["baselines"]["uniform_nats"]
    model = plan.config.model.model_copy(update={"vocab_size": round(math.exp(uniform))})
    return plan.config.model_copy(update={"model": model})


def _vocabulary_of(config: Config, real: Config) -> Config:
    return config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": real.model.vocab_size})})


def _without_folder(config: Config) -> Config:
    """With the name of the user's text alone, not where it lies."""
    path = None if config.data.path is None else Path(config.data.path).name
    return config.model_copy(update={"data": config.data.model_copy(update={"path": path})})
