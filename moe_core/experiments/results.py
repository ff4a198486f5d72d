"""The result of a comparison as JSON values: small, complete, without anything that names the machine or its owner."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from moe_core.config import Config, ModelConfig
from moe_core.experiments.arms import measured_flops_per_token
from moe_core.experiments.claims import bounds
from moe_core.experiments.library import FORMAT
from moe_core.experiments.plan import PRIMARY, Plan, public
from moe_core.experiments.runner import Outcomes
from moe_core.json_values import json_safe
from moe_core.model import size
from moe_core.routing.statistics.intervals import paired_difference
from moe_core.runs.files import write_atomic

METRICS = ("unseen_nats", "unseen_bits_per_byte", "validation_nats")


def build_result(
    plan: Plan,
    chosen: Mapping[str, float],
    outcomes: Outcomes,
    speed: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Everything that is shown of a comparison. `speed`: see measure_speed, None before it was measured.

    {format, kind, name, primary, plan_hash, data, environment, model, tokens, unigram_nats, seeds, tuning: [{arm,
    factor, unseen_nats}], arms: [one each, see _arm], speed, bounds (kind dense): see claims}.
    """
    config = _with_real_vocabulary(plan, outcomes)
    training = config.training
    reference = _scored(plan, outcomes, plan.arms[0].name, chosen)
    result: dict[str, Any] = {
        "format": FORMAT,
        "kind": plan.kind,
        "name": plan.name,
        "primary": PRIMARY,
        "plan_hash": plan.hash,
        "data": "synthetic" if config.data.path is None else Path(config.data.path).name,
        "environment": reference[0]["environment"],
        "config": public(config.model_dump(mode="json")),
        "tokens": training.steps * training.batch_size * training.seq_len,
        "unigram_nats": reference[0]["evaluation"]["baselines"]["unigram_nats"],
        "seeds": list(plan.seeds),
        "tuning_seeds": list(plan.tuning_seeds) if len(plan.factors) > 1 else [],
        "tuning": [
            {"arm": trial.arm, "factor": trial.factor, "unseen_nats": _value(outcome, "unseen", "nats_per_token")}
            for trial, outcome in outcomes.items()
            if trial.seed in plan.tuning_seeds
        ],
        "arms": [
            _arm(plan, arm.name, arm.label, _vocabulary_of(arm.config, config), chosen, outcomes, reference)
            for arm in plan.arms
        ],
        "speed": speed,
    }
    if plan.kind == "dense":
        result["bounds"] = [
            {**asdict(found), "possible": found.possible} for found in bounds(config.model.top_k, config.model)
        ]
    return json_safe(result)  # type: ignore[no-any-return]


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Keep it, whole or not at all; figures rounded to six significant digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(_rounded(result), separators=(",", ":"), allow_nan=False) + "\n").encode())


def _arm(
    plan: Plan,
    name: str,
    label: str,
    config: Config,
    chosen: Mapping[str, float],
    outcomes: Outcomes,
    reference: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """{name, label, factor, edge: was it the lowest or highest tried, hidden width, parameters, flops, scores: {metric:
    {values by seed, mean, difference to the first arm}}, by_domain: the same for the unseen split, curve: {step,
    unseen, validation: means over seeds}, routing}."""
    scored = _scored(plan, outcomes, name, chosen)
    model, factor = config.model, chosen[name]
    routing = _routing(scored) if model.moe_layers else None
    context, passed = config.training.seq_len, None if routing is None else routing["experts_per_token"]
    return {
        "name": name,
        "label": label,
        "factor": factor,
        "edge": len(plan.factors) > 1 and factor in (min(plan.factors), max(plan.factors)),
        "dense_hidden_dim": None if model.moe_layers else model.dense_hidden_dim,
        **_cost(model, context, passed),
        "scores": {metric: _score(scored, reference, *_path(metric)) for metric in METRICS},
        "by_domain": {
            domain: _score(scored, reference, "unseen", "by_domain", domain)
            for domain in scored[0]["evaluation"]["unseen"]["by_domain"]
        },
        "curve": _mean_curve(scored),
        "routing": routing,
        "sees_future": not model.can_write,
    }


def _cost(model: ModelConfig, context: int, experts: float | None) -> dict[str, Any]:
    """`experts` that a token passed per MoE layer, which is what it costs; None for a dense model."""
    embedding = size.embedding_parameters(model)
    active, flops = size.active_parameters(model, experts), size.flops_per_token(model, context, experts)
    fixed = experts is None or round(experts, 6) == model.top_k
    return {
        "parameters": {
            "total": size.total_parameters(model),
            "active": active,
            "total_without_embedding": size.total_parameters(model) - embedding,
            "active_without_embedding": active - embedding,
        },
        "flops_per_token": {
            "computed": flops,
            # By a model that has learned nothing: where the router decides how many, that says nothing.
            "measured": measured_flops_per_token(model, context) if fixed else None,
            "without_head": flops - 2 * embedding,
        },
    }


def _score(scored: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]], *path: str) -> dict[str, Any]:
    values = [_value(outcome, *path) for outcome in scored]
    known = [math.nan if value is None else value for value in values]
    against = [_value(outcome, *path) for outcome in reference]
    difference = None
    if scored != reference and None not in (*values, *against):
        found = paired_difference(known, [value for value in against if value is not None])
        difference = {**asdict(found), "verdict": found.verdict}
    return {"values": values, "mean": float(np.mean(known)), "difference": difference}


def _routing(scored: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the held-out text, all layers and seeds: the worst and the mean."""
    rows = [row for outcome in scored for row in outcome["evaluation"]["routing"]]

    def values(key: str) -> list[float]:
        return [math.nan if row[key] is None else float(row[key]) for row in rows]

    nmi, null = np.array(values("domain_nmi")), np.array(values("domain_nmi_null_p99"))
    return {
        "max_violation": {
            "mean": float(np.mean(values("load_imbalance"))) - 1,
            "worst": max(values("load_imbalance")) - 1,
        },
        "dead_experts": float(np.sum(values("dead_experts"))) / len(scored),
        "experts_per_token": float(np.mean(values("experts_per_token"))),
        "router_entropy": float(np.mean(values("router_entropy"))),
        "domain_nmi": float(nmi.mean()),
        "domain_nmi_null_p99": float(null.mean()),
        "layers_above_null": float((nmi > null).mean()),
    }


def _mean_curve(scored: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    curves = [outcome["curve"] for outcome in scored]
    return {
        key: [float(value) for value in np.mean([curve[key] for curve in curves], axis=0)]
        for key in ("step", "unseen", "validation")
    }


def _scored(plan: Plan, outcomes: Outcomes, arm: str, chosen: Mapping[str, float]) -> list[dict[str, Any]]:
    return [outcomes[trial] for trial in plan.scored_trials(chosen) if trial.arm == arm]


def _path(metric: str) -> tuple[str, str]:
    split, _, measure = metric.partition("_")
    return split, {"nats": "nats_per_token"}.get(measure, measure)


def _value(outcome: Mapping[str, Any], *path: str) -> float | None:
    found: Any = None if outcome["failed"] else outcome["evaluation"]
    for key in path if found is not None else ():
        found = found[key]
    return None if found is None else float(found)


def _with_real_vocabulary(plan: Plan, outcomes: Outcomes) -> Config:
    """The first arm's configuration with the number of entries that the tokenizer really has."""
    uniform = next(one for one in outcomes.values() if not one["failed"])["evaluation"]["baselines"]["uniform_nats"]
    model = plan.config.model.model_copy(update={"vocab_size": round(math.exp(uniform))})
    return plan.config.model_copy(update={"model": model})


def _vocabulary_of(config: Config, real: Config) -> Config:
    return config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": real.model.vocab_size})})


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value
