"""compare-dense and compare-routers: arms that match, differences by hand, what arithmetic allows, kill and resume."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest
from training_support import make_config, write_corpus

from main import main
from moe_core.config import load_config
from moe_core.config.router import BALANCINGS, ROUTER_KINDS
from moe_core.data.prepare import prepare_data
from moe_core.errors import DataError, RunError, UsageError
from moe_core.experiments import library
from moe_core.experiments.arms import MAX_MISMATCH, dense_arms, measured_flops_per_token
from moe_core.experiments.claims import bound
from moe_core.experiments.comparison_result import ComparisonResult, Difference, read_result, result_from_json
from moe_core.experiments.plan import Budget, Plan, make_plan, public
from moe_core.experiments.published_claims import fewest_experts
from moe_core.experiments.results import build_result, write_result
from moe_core.experiments.router_arms import ROUTERS, router_arms
from moe_core.experiments.runner import choose_factors, run_trials, stored_plan
from moe_core.experiments.speed import measure_speed, passages
from moe_core.experiments.speed_result import ArmTimes, TaskTimes
from moe_core.experiments.trend import seed_differences, shared_seeds
from moe_core.experiments.trial import TrialStopped, run_trial
from moe_core.experiments.verdicts import (
    FEWEST_SEEDS,
    headline,
    interval_words,
    losses_verdict,
    shortcomings,
    trend_verdict,
    where_measured,
)
from moe_core.figures.figure import figure_bytes
from moe_core.figures.quality import figure_pairs
from moe_core.model import size
from moe_core.reports.comparison_report import result_table, summary_table
from moe_core.routing.statistics.intervals import paired_difference

# One worker carries the plans out, once.
pytestmark = pytest.mark.xdist_group("experiments")
ENTRY = Path(__file__).resolve().parent.parent / "app" / "streamlit_app.py"


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Two arms, two scored seeds, two learning rates tried on a third: 8 trainings of three steps, two of twelve."""
    corpus = write_corpus(tmp_path_factory.mktemp("text") / "texts.jsonl")
    config = make_config(corpus, training__steps=3, training__evaluation_interval=3)
    arms, longer = tuple(dense_arms(config)[:2]), (Budget(4, (0,)),)
    return Plan("dense", "dense-tiny", arms, (0, 1), (1000,), (1.0, 4.0), tuning_split=True, longer=longer)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, plan: Plan) -> Path:
    """Where the plan is carried out."""
    return tmp_path_factory.mktemp("work") / plan.name


@pytest.fixture(scope="module")
def result(work: Path, plan: Plan) -> ComparisonResult:
    """The plan carried out."""
    chosen, outcomes = run_trials(work, plan)
    speed = measure_speed(work, plan, chosen, threads=1, smoke=True)
    return build_result(plan, chosen, outcomes, speed)


@pytest.fixture(scope="module")
def routers_result(tmp_path_factory: pytest.TempPathFactory) -> ComparisonResult:
    """Three routers in trainings of three steps: the usual one, one of varying k, one that sees the future."""
    folder = tmp_path_factory.mktemp("routers")
    config = make_config(write_corpus(folder / "texts.jsonl"), training__steps=3, training__evaluation_interval=3)
    arms = tuple(arm for arm in router_arms(config) if arm.name in ("softmax-layer", "top-p", "expert-choice"))
    plan = Plan("routers", "routers-tiny", arms, (0, 1), (), (1.0,))
    chosen, outcomes = run_trials(folder / plan.name, plan)
    speed = measure_speed(folder / plan.name, plan, chosen, threads=1, smoke=True)
    return build_result(plan, chosen, outcomes, speed)


def retyped(tree: dict[str, Any]) -> ComparisonResult:
    """A result from plain values."""
    return result_from_json(json.dumps(tree).encode(), "changed.json")


# ---- arms ----


@pytest.mark.parametrize("model", ["quick", "shared", "alternating"])
def test_dense_arms_match_in_flops_and_in_parameters(model: str) -> None:
    keys: dict[str, dict[str, Any]] = {
        "quick": {},
        "shared": {"model.shared_expert_hidden_dim": 96, "model.shared_expert_gate": True},
        "alternating": {"model.moe_every": 2},
    }
    config = load_config("quick", environment={}, overrides=keys[model])
    moe, active, total = (arm.config.model for arm in dense_arms(config))
    context = config.training.seq_len
    assert moe == config.model
    assert active.moe_layers == total.moe_layers == ()
    assert math.isclose(size.flops_per_token(active, context), size.flops_per_token(moe, context), rel_tol=MAX_MISMATCH)
    assert math.isclose(size.total_parameters(total), size.total_parameters(moe), rel_tol=MAX_MISMATCH)
    measured = [measured_flops_per_token(one, context) for one in (moe, active)]
    assert measured == [size.flops_per_token(one, context) for one in (moe, active)]
    assert math.isclose(*measured, rel_tol=MAX_MISMATCH)


def test_the_active_match_counts_the_router_by_hand() -> None:
    """D 128, E 8, K 2, F 256: 2 experts of 3 x 128 x 256 and a router of 128 x 8 = 3 x 128 x 514 2/3."""
    config = load_config("quick", environment={})
    _, active, total = dense_arms(config)
    assert active.config.model.dense_hidden_dim == 515
    assert total.config.model.dense_hidden_dim == 2051  # 8 x 256 + 2 2/3


def test_nothing_but_the_feed_forward_differs_between_arms() -> None:
    config = load_config("quick", environment={})
    differing = {"first_dense_layers", "dense_hidden_dim"}
    for arm in dense_arms(config):
        assert (arm.config.data, arm.config.training) == (config.data, config.training)
        changed = {key for key, value in arm.config.model if value != getattr(config.model, key)}
        assert changed <= differing


def test_models_that_cannot_be_compared_are_refused() -> None:
    dense = load_config("quick", environment={}, overrides={"model.first_dense_layers": 4})
    with pytest.raises(UsageError, match="no MoE layer"):
        dense_arms(dense)
    few = load_config("quick", environment={}, overrides={"model.num_experts": 3})
    with pytest.raises(UsageError, match="at least twice as many experts"):
        router_arms(few)
    varying = load_config("quick", environment={}, overrides={"model.router.kind": "top_p"})
    with pytest.raises(UsageError, match=r"model\.router\.kind = top_p gives tokens different numbers"):
        dense_arms(varying)
    narrow = {
        "model.dim": 8, "model.num_heads": 1, "model.num_kv_heads": 1, "model.head_dim": 2, "model.vocab_size": 257,
        "model.num_layers": 40, "model.expert_hidden_dim": 1, "model.top_k": 1, "training.seq_len": 8,
    }  # fmt: skip
    with pytest.raises(UsageError, match="no dense model has as many"):
        dense_arms(load_config("quick", environment={}, overrides=narrow))


def test_every_router_and_way_of_balancing_takes_part() -> None:
    arms = router_arms(load_config("quick", environment={}))
    assert [arm.name for arm in arms] == list(ROUTERS)
    assert {arm.config.model.router.kind for arm in arms} == set(ROUTER_KINDS)
    assert {arm.config.model.router.balances_by for arm in arms} == set(BALANCINGS)
    models = {arm.name: arm.config.model for arm in arms}
    # Those that give some tokens more experts than others are asked for a mean of 2 and may give 4.
    varying = ("top-p", "expert-threshold", "expert-choice")
    assert {name: model.top_k for name, model in models.items()} == {
        name: 4 if name in varying else 2 for name in ROUTERS
    }
    for name in varying[1:]:
        assert models[name].experts_per_token == 2.0


@pytest.mark.parametrize(("kind", "experts"), [("softmax", 4), ("expert_threshold", 1.5), ("expert_choice", 1.5)])
def test_a_token_costs_the_experts_it_is_meant_to_have_by_hand(kind: str, experts: float) -> None:
    """4 layers, D 128, F 256: an expert is 3 x 128 x 256 = 98,304 weights, two operations each."""
    keys = {"model.top_k": 4, "model.router.kind": kind, "model.router.mean_experts": 1.5}
    config = load_config("quick", environment={}, overrides=keys).model
    assert size.total_parameters(config) - size.active_parameters(config) == 4 * (8 - experts) * 98_304
    more = size.flops_per_token(config, 64, 3.0) - size.flops_per_token(config, 64)
    assert more == 2 * 4 * (3 - experts) * 98_304
    assert size.active_parameters(config, 2.25) - size.active_parameters(config, 2.0) == 98_304


# ---- statistics ----


def test_the_paired_interval_is_students_by_hand() -> None:
    """Differences 1, 2, 3, 4, 5: mean 3, s = 1.5811, half-width 2.776 x 1.5811 / sqrt 5 = 1.963."""
    found = paired_difference([11, 12, 13, 14, 15], [10, 10, 10, 10, 10])
    assert found.mean == 3
    assert (found.low, found.high) == pytest.approx((1.0368, 4.9632), abs=1e-4)
    assert found.p_value == pytest.approx(0.01324, abs=1e-4)
    assert found.verdict == "higher"
    assert paired_difference([10] * 5, [11, 12, 13, 14, 15]).verdict == "lower"


def test_pairs_matter_and_few_of_them_say_little() -> None:
    five = [1.0, 5.0, 2.0, 4.0, 3.0]
    assert paired_difference(five, [0.9, 4.9, 1.91, 3.9, 2.89]).verdict == "higher"
    twice = paired_difference([2.0, 3.0], [1.0, 2.0])  # two signs alike are no rarity, however equal the differences
    assert (twice.p_value, twice.verdict) == (0.5, "not distinguishable")
    assert paired_difference([1.0, 5.0], [4.9, 0.9]).verdict == "not distinguishable"
    single = paired_difference([2.0], [1.0])
    assert (single.mean, single.verdict) == (1.0, "not distinguishable")
    assert math.isnan(single.low)
    same = paired_difference([1.0, 2.0], [1.0, 2.0])
    assert (same.p_value, same.verdict) == (1.0, "not distinguishable")


# ---- what arithmetic allows ----


def test_none_of_the_claims_can_hold_for_4_experts_top_2() -> None:
    found = bound(4, 2)
    assert (found.flops_saved, found.speedup, found.active) == (0.5, 2.0, 0.5)
    assert not any(found.possible.values())


def test_each_claim_becomes_possible_with_enough_experts() -> None:
    assert fewest_experts(2) == {"2.3 times as fast": 5, "78 % fewer FLOPs": 10, "12 of 100 parameters active": 17}
    for name, experts in fewest_experts(2).items():
        assert bound(experts, 2).possible[name]
        assert not bound(experts - 1, 2).possible[name]


@pytest.mark.parametrize(("experts", "saved"), [(4, 0.44), (8, 0.70), (16, 0.85), (32, 0.92)])
def test_a_whole_model_saves_less_than_its_experts_alone(experts: int, saved: float) -> None:
    """4 layers, width 256, expert width 1024, vocabulary 4096; the head and attention are not saved."""
    shape = {"model.expert_hidden_dim": 1024, "model.num_experts": experts}
    found = bound(experts, 2, load_config("default", environment={}, overrides=shape).model)
    assert found.model_flops_saved is not None
    assert found.model_flops_saved < found.flops_saved
    assert found.model_flops_saved == pytest.approx(saved, abs=0.015)


def test_a_whole_model_is_held_against_the_dense_one_of_equal_size() -> None:
    """Also where every other layer is dense already, and wider than its experts."""
    keys = {"model.moe_every": 2, "model.dense_hidden_dim": 700}
    config = load_config("quick", environment={}, overrides=keys)
    moe, _, total = (arm.config.model for arm in dense_arms(config))
    times = size.flops_per_token(total, 128) / size.flops_per_token(moe, 128)
    assert bound(8, 2, moe).model_speedup == pytest.approx(times)


# ---- plan and runner ----


def test_the_plan_is_paired_and_tunes_on_other_seeds() -> None:
    plan = make_plan("dense")
    assert len(plan.seeds) >= 5
    assert not set(plan.seeds) & set(plan.tuning_seeds)
    tried = {arm.name: {trial.factor for trial in plan.tuning_trials() if trial.arm == arm.name} for arm in plan.arms}
    assert set(map(frozenset, tried.values())) == {frozenset(plan.factors)}
    scored = plan.scored_trials({arm.name: 2.0 for arm in plan.arms})
    by_seed = [[plan.trial_config(trial) for trial in scored if trial.seed == seed] for seed in plan.seeds]
    for configs in by_seed:
        assert len({config.training.model_dump_json() for config in configs}) == 1  # order, tokens and schedule
        assert configs[0].training.learning_rate == 2 * plan.config.training.learning_rate
        assert configs[0].training.muon_learning_rate == 2 * plan.config.training.muon_learning_rate
    assert Plan.from_json(json.loads(json.dumps(plan.as_json()))) == plan


@pytest.mark.parametrize("key", ["seed = 7", "threads = 2", "evaluation_interval = 3"])
def test_what_the_plan_decides_is_not_silently_ignored(tmp_path: Path, key: str) -> None:
    file = tmp_path / "own.conf"
    file.write_text(f"training {{ {key} }}")
    with pytest.raises(UsageError, match=rf"training\.{key.split()[0]} is not yours to choose"):
        make_plan("dense", file=str(file))


def test_a_budget_of_time_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.conf").write_text("training { time_budget_seconds = 10 }")
    with pytest.raises(UsageError, match="equally many tokens"):
        make_plan("dense", file=str(tmp_path / "x.conf"))


@pytest.mark.parametrize("tuning_split", [True, False])
def test_the_learning_rate_is_each_arms_own_best(plan: Plan, tuning_split: bool) -> None:
    """On the tuning split, or in folders from before there was one on the unseen documents."""
    losses = {"moe": (3.0, 2.0), "dense-active": (1.0, None)}

    def outcome(nats: float | None) -> dict[str, Any]:
        failed = {"failed": "not finite" if nats is None else None}
        return failed | (
            {"tuning_nats": nats} if tuning_split else {"evaluation": {"unseen": {"nats_per_token": nats}}}
        )

    places = {factor: place for place, factor in enumerate(plan.factors)}
    outcomes = {trial: outcome(losses[trial.arm][places[trial.factor]]) for trial in plan.tuning_trials()}
    assert choose_factors(plan, outcomes) == {"moe": 4.0, "dense-active": 1.0}
    with pytest.raises(RunError, match="no learning rate"):
        choose_factors(plan, {trial: outcome(None) for trial in outcomes})


def test_nothing_that_is_scored_takes_part_in_choosing(plan: Plan, work: Path, result: ComparisonResult) -> None:
    """A training that chooses a rate is scored on the tuning split, and the others are not scored there."""
    chosen, outcomes = run_trials(work, plan, resume=True)
    tuning = {trial: outcome for trial, outcome in outcomes.items() if plan.is_tuning(trial)}
    assert set(tuning) == set(plan.tuning_trials())
    for outcome in tuning.values():
        assert "evaluation" not in outcome
        assert "curve" not in outcome
    assert not any("tuning_nats" in outcome for trial, outcome in outcomes.items() if trial not in tuning)
    best = {(t.arm, t.factor): outcome["tuning_nats"] for t, outcome in tuning.items()}
    assert chosen == {arm.name: min(plan.factors, key=lambda factor: best[arm.name, factor]) for arm in plan.arms}
    assert [one.tuning_nats for one in result.tuning] == [outcome["tuning_nats"] for outcome in tuning.values()]
    assert all(one.unseen_nats is None for one in result.tuning)


def test_the_second_budget_is_the_first_one_stretched_and_comes_last() -> None:
    plan = make_plan("dense", longer_seeds=2)
    chosen = {arm.name: 1.0 for arm in plan.arms}
    first, second = plan.budgets
    assert (first.times, first.seeds, second.times, second.seeds) == (1, plan.seeds, 4, (0, 1))
    trials = plan.scored_trials(chosen, second)
    assert [trial.arm for trial in trials] == 2 * [arm.name for arm in plan.arms]  # in turns, arm by arm
    assert not {trial.name for trial in trials} & {trial.name for trial in plan.scored_trials(chosen)}
    short, long = (plan.trial_config(plan.scored_trials(chosen, budget)[0]) for budget in plan.budgets)
    assert long.training.steps == 4 * short.training.steps
    assert long.training.evaluation_interval == 4 * short.training.evaluation_interval
    same = {"steps", "evaluation_interval"}
    assert long.training.model_dump(exclude=same) == short.training.model_dump(exclude=same)
    assert (long.model, long.data) == (short.model, short.data)
    assert make_plan("dense", longer_seeds=0).budgets == (first,)
    assert make_plan("routers").budgets == (Budget(1, plan.seeds),)


def test_a_folder_from_before_the_tuning_split_goes_on_as_it_was_begun(tmp_path: Path) -> None:
    """Its plan has neither key; it keeps its hash, and chooses on the unseen documents as it did."""
    plan = make_plan("dense")
    tree = {key: value for key, value in plan.as_json().items() if key not in ("tuning_split", "longer")}
    old = Plan.from_json(tree)
    assert (old.tuning_split, old.longer, old.as_json()) == (False, (), tree)
    assert not any(old.is_tuning(trial) for trial in old.tuning_trials())
    assert plan.as_begun(old) == old
    assert plan.as_begun(None) == plan.as_begun(plan) == plan
    other = replace(old, seeds=(0, 1))
    assert plan.as_begun(other) == plan  # other seeds: refused as ever
    tiny = tmp_path / "text.jsonl"
    config = make_config(write_corpus(tiny), training__steps=2, training__evaluation_interval=2)
    begun = Plan("dense", "dense-old", tuple(dense_arms(config)[:2]), (0, 1), (1000,), (1.0, 4.0))
    chosen, outcomes = run_trials(tmp_path / "old", begun)
    assert all("evaluation" in outcome for outcome in outcomes.values())
    found = build_result(begun, chosen, outcomes, None)
    assert [one.tuning_nats for one in found.tuning] == 4 * [None]
    assert None not in [one.unseen_nats for one in found.tuning]


@pytest.mark.slow
def test_a_comparison_stopped_anywhere_ends_as_if_it_had_not_been(
    tmp_path: Path, plan: Plan, work: Path, result: ComparisonResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One training was stopped after its second step, another never begun; two processes do what is missing."""
    # A test of a page leaves the dashboard as main module, which every spawned process would run.
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    run_trials_of = tmp_path / plan.name
    shutil.copytree(work, run_trials_of)
    halfway, missing = plan.scored_trials({arm.name: arm.factor for arm in result.arms})[-2:]
    for trial in (halfway, missing):
        (run_trials_of / "trials" / f"{trial.name}.json").unlink()
    seen: list[int] = []
    with pytest.raises(TrialStopped):
        run_trial(
            run_trials_of,
            plan,
            halfway,
            prepare_data(plan.config, tuning=True),
            lambda _, done, __: seen.append(done),
            lambda: 2 in seen,
        )
    chosen, outcomes = run_trials(run_trials_of, plan, resume=True, workers=2)
    again = build_result(plan, chosen, outcomes, None)
    assert [arm.scores for arm in again.arms] == [arm.scores for arm in result.arms]
    assert [arm.curve for arm in again.arms] == [arm.curve for arm in result.arms]
    assert again.tuning == result.tuning
    kept = {path.name for path in (run_trials_of / "runs").iterdir()}
    assert kept == {f"{arm.name}-s0-x{chosen[arm.name]:g}" for arm in plan.arms}  # to be timed
    assert stored_plan(run_trials_of) == plan
    with pytest.raises(UsageError, match="continue it with --resume"):
        run_trials(run_trials_of, plan)
    kept_outcome = run_trials_of / "trials" / f"{missing.name}.json"
    kept_outcome.write_text(json.dumps(json.loads(kept_outcome.read_text()) | {"fingerprint": "another"}))
    with pytest.raises(RunError, match="the text was changed"):
        run_trials(run_trials_of, plan, resume=True)
    with pytest.raises(RunError, match="begun with other seeds"):
        run_trials(run_trials_of, replace(plan, seeds=(0, 1, 2)), resume=True)


# ---- result ----


def test_the_result_holds_what_was_asked(result: ComparisonResult, plan: Plan) -> None:
    moe, active = result.arms
    assert result.primary == "nats per token on the unseen split"
    assert result.tokens == 3 * 4 * 16
    assert moe.scores.unseen_nats.difference is None
    score, of_moe = active.scores.unseen_nats, moe.scores.unseen_nats
    pairs = zip(score.values, of_moe.values, strict=True)
    expected = [a - b for a, b in pairs if a is not None and b is not None]
    assert score.difference is not None
    assert score.difference.mean == pytest.approx(sum(expected) / 2)
    assert score.difference.pairs == 2
    assert [arm.routing is None for arm in result.arms] == [False, True]
    assert set(active.by_domain) == {"code", "law", "news"}
    assert moe.curve.step == (0, 3)
    violation = moe.mixture_routing().max_violation
    assert violation.worst is not None
    assert violation.mean is not None
    assert violation.worst >= violation.mean >= 0
    model = plan.config.model
    assert moe.parameters.total - moe.parameters.total_without_embedding == model.vocab_size * model.dim
    assert result.speed is not None
    assert set(result.speed.tasks) == {"prefill 8 x 64", "decode, batch 1", "decode, batch 32", "training step"}
    assert str(ENTRY.parent) not in json.dumps(result.to_json())
    assert result.environment.threads == plan.config.training.threads
    assert result.data == result.config.data.path == "texts.jsonl"
    assert public({"path": "/a/b.jsonl", "x": [1]}) == {"path": "b.jsonl", "x": [1]}


SHIPPED = sorted(library.SHIPPED.glob("*.json"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_result_is_written_as_it_was_read(path: Path) -> None:
    assert read_result(path).to_bytes() == path.read_bytes()


def test_a_result_survives_its_file(result: ComparisonResult, routers_result: ComparisonResult, tmp_path: Path) -> None:
    for one in (result, routers_result):
        write_result(tmp_path / "one.json", one)
        again = read_result(tmp_path / "one.json")
        assert again.to_bytes() == one.to_bytes()
        assert [arm.name for arm in again.arms] == [arm.name for arm in one.arms]
        assert retyped(one.to_json()) == one


@pytest.mark.parametrize(
    ("place", "value", "field"),
    [
        (("tokens",), "many", "tokens"),
        (("tokens",), None, "tokens"),
        (("surprise",), 1, "surprise"),
        (("format",), 2, "format"),
        (("arms", 1, "scores", "unseen_nats", "mean"), "4.2", "arms.1.scores.unseen_nats.mean"),
        (("arms", 0, "routing", "surprise"), 1, "arms.0.routing.surprise"),
        (("environment", "threads"), 1.5, "environment.threads"),
        (("config", "model", "surprise"), 1, "config.model.surprise"),
        (("speed", "tasks", "training step", "arms", "moe", "low"), None, "speed.tasks.training step.arms.moe.low"),
    ],
)
def test_a_wrong_field_of_a_result_is_named(place: tuple[str | int, ...], value: object, field: str) -> None:
    tree = json.loads(SHIPPED[0].read_text())
    inner = tree
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(DataError, match=rf"'changed\.json' is no result of this version .*\({re.escape(field)}: "):
        retyped(tree)


def test_a_missing_field_of_a_result_is_named_and_so_is_a_file_that_is_no_json() -> None:
    tree = json.loads(SHIPPED[0].read_text())
    del tree["arms"][2]["curve"]["unseen"]
    with pytest.raises(DataError, match=r"'changed\.json' .*\(arms\.2\.curve\.unseen: field required\)"):
        retyped(tree)
    with pytest.raises(DataError, match=r"'half\.json' .*\(the file: invalid JSON"):
        result_from_json(b'{"format": 1', "half.json")


def test_text_of_one_domain_leaves_cells_empty(result: ComparisonResult) -> None:
    routing = replace(result.arms[0].mixture_routing(), domain_nmi=None, domain_nmi_null_p99=None)
    arms = tuple(replace(arm, routing=routing) for arm in result.arms)
    assert "None" not in result_table(replace(result, kind="routers", arms=arms))


def test_a_router_costs_what_its_tokens_used(result: ComparisonResult, plan: Plan, work: Path) -> None:
    """1.5 experts a token instead of 2, of 3 x 16 x 24 weights each."""
    chosen, outcomes = run_trials(work, plan, resume=True)
    changed = json.loads(json.dumps(list(outcomes.values())))
    for outcome in changed:
        for row in outcome["evaluation"]["routing"] if "evaluation" in outcome else []:
            row["experts_per_token"] = 1.5
    fewer = build_result(plan, chosen, dict(zip(outcomes, changed, strict=True)), None).arms[0]
    moe, model = result.arms[0], plan.config.model
    expert = 3 * model.dim * model.expert_hidden_dim * len(model.moe_layers)
    assert (moe.mixture_routing().experts_per_token, fewer.mixture_routing().experts_per_token) == (2.0, 1.5)
    assert moe.parameters.active - fewer.parameters.active == 0.5 * expert
    assert moe.flops_per_token.computed - fewer.flops_per_token.computed == expert
    assert moe.flops_per_token.measured == moe.flops_per_token.computed
    assert fewer.flops_per_token.measured is None


def test_routers_are_measured_by_what_they_do(routers_result: ComparisonResult) -> None:
    softmax, top_p, choice = routers_result.arms
    assert softmax.mixture_routing().experts_per_token == 2.0
    experts = top_p.mixture_routing().experts_per_token
    assert experts is not None
    assert 1.0 <= experts <= 4.0
    assert choice.mixture_routing().experts_per_token == pytest.approx(2.0, abs=0.3)
    assert choice.sees_future
    assert routers_result.speed is not None
    assert set(routers_result.speed.tasks["decode, batch 1"].arms) == {"softmax-layer", "top-p"}
    text = result_table(routers_result)
    assert "None" not in text
    assert "lets later tokens decide" in text
    assert f"{experts:.2f}" in text


@pytest.mark.parametrize("domains", ["four", "one"])
@pytest.mark.parametrize("timed", [True, False])
def test_the_figure_of_routers(routers_result: ComparisonResult, domains: str, timed: bool) -> None:
    result = routers_result.to_json()
    result["arms"][2]["scores"]["unseen_nats"]["difference"]["mean"] = -3.0  # as far as seeing the future may go
    for arm in result["arms"]:
        nmi, null = (0.1, 0.01) if domains == "four" else (None, None)
        arm["routing"] |= {"domain_nmi": nmi, "domain_nmi_null_p99": null}
    changed = retyped(result if timed else {**result, "speed": None})
    [[figure, known]] = figure_pairs(changed)
    assert known.verdict.endswith(losses_verdict(changed, "validation"))
    svg = figure_bytes(figure, "svg").decode()
    assert ("NMI" in svg) == ("(chance" in svg) == (domains == "four")
    assert ("tokens/s" in svg) == timed
    assert "outside: −3.000" in svg
    assert figure.verdict.endswith(losses_verdict(changed, "unseen"))


def test_a_verdict_on_many_names_the_ends(routers_result: ComparisonResult) -> None:
    tree = routers_result.to_json()
    first, second, _ = tree["arms"]
    many = []
    for number in (3, 1, 2, 5, 4):
        difference = {**second["scores"]["unseen_nats"]["difference"], "mean": number / 10, "verdict": "higher"}
        unseen = {**second["scores"]["unseen_nats"], "difference": difference}
        many.append({**second, "label": f"router {number}", "scores": {**second["scores"], "unseen_nats": unseen}})
    text = losses_verdict(retyped({**tree, "arms": [first, *many]}), "unseen")
    assert "higher: 5 others, from router 1 (+0.100) to router 5 (+0.500)" in text


def test_routers_are_summed_up_with_how_they_share_the_work(result: ComparisonResult) -> None:
    routers = replace(result, kind="routers", arms=result.arms[:1])
    routing = result.arms[0].mixture_routing()
    text = summary_table(routers)
    line = text.splitlines()[-1]
    assert f"| {routing.max_violation.mean:.2f} | {routing.dead_experts:.1f} |" in line
    assert line.endswith("| 1.00 |")  # as fast as itself
    assert "training step" not in summary_table(replace(routers, speed=None))


def test_the_table_is_made_of_the_result(result: ComparisonResult) -> None:
    text = result_table(result)
    for arm in result.arms:
        assert f"{arm.scores.unseen_nats.mean:.4f}" in text
        assert f"{arm.parameters.total:,}" in text
    assert "Times are not measured yet." not in text
    assert text.count("times as fast |") >= 1
    hostile = retyped(json.loads(json.dumps(result.to_json()).replace('"law"', '"la|w<b>"')))
    assert "la\\|w\\<b\\>" in result_table(hostile)
    assert "Times are not measured yet." in result_table(replace(result, speed=None))


def test_every_figure_can_be_drawn_and_says_its_numbers(result: ComparisonResult) -> None:
    pairs = figure_pairs(result)
    names = ["moe_against_dense", "trend", "loss_against_tokens", "loss_against_flops", "loss_against_seconds"]
    assert [[figure.name for figure in pair] for pair in pairs] == [[name, f"{name}_validation"] for name in names]
    figures = {figure.name: figure for pair in pairs for figure in pair}
    for name in ("moe_against_dense", "moe_against_dense_validation"):
        assert set(figures[name].frame["text"]) == {"all text", "code", "law", "news"}
    last = figures["loss_against_tokens"].frame.groupby("arm")["tokens"].max()
    assert set(last) == {result.tokens}
    for name in ("moe_against_dense", "trend", "trend_validation", "loss_against_seconds_validation"):
        assert figure_bytes(figures[name], "svg").startswith(b"<svg")
    assert len(figure_pairs(replace(result, speed=None))) == 4
    assert len(figure_pairs(replace(result, longer=None))) == 4


# ---- what a hostile reader asks ----


def test_the_headline_says_how_much_was_trained_and_both_losses(result: ComparisonResult, plan: Plan) -> None:
    """192 tokens; the tiny mixture has so many parameters that a token is nothing."""
    text, moe = " ".join(headline(result)), result.arms[0]
    data = prepare_data(plan.config, tuning=True)
    assert result.text_tokens == len(data.train)
    assert moe.exposure is not None
    assert moe.exposure.epochs == pytest.approx(192 / len(data.train))
    assert moe.exposure.tokens_per_parameter == pytest.approx(192 / moe.parameters.total)
    assert moe.exposure.tokens_per_active_parameter == pytest.approx(192 / moe.parameters.active)
    assert moe.exposure == result.exposure_of(moe)
    assert result.exposure_of(moe, 4).epochs == pytest.approx(4 * 192 / len(data.train))
    assert text.startswith("Trained on 192 tokens, ")
    assert "epochs of the text, with 2 seeds" in text
    assert "Tokens per parameter (per active one): MoE (4 experts, top-2) 0.0" in text
    for split in ("unseen", "validation"):
        assert losses_verdict(result, split) in text
    assert "With 4 times the tokens" in text
    assert "1 seed, too few for an interval worth the name" in text
    assert str(result.to_json()["arms"][1]["exposure"]["tokens_per_parameter"]) in json.dumps(result.to_json())
    assert shortcomings(result) == ""
    for shown in (result_table(result), summary_table(result)):
        assert shown.count("unseen sources") == shown.count("validation sources") + shown.count("bits per byte, unseen")


def test_a_longer_budget_holds_its_own_losses(result: ComparisonResult, plan: Plan, work: Path) -> None:
    assert result.longer is not None
    [longer] = result.longer
    assert (longer.times, longer.tokens, longer.seeds) == (4, 4 * 192, (0,))
    assert len(longer.seeds) < FEWEST_SEEDS
    assert set(longer.scores) == {arm.name for arm in plan.arms}
    first, second = (longer.scores[arm.name].validation_nats for arm in plan.arms)
    assert first.difference is None
    assert second.difference is not None
    assert second.values[0] is not None
    assert first.values[0] is not None
    assert second.difference.mean == pytest.approx(second.values[0] - first.values[0])
    assert (second.difference.low, second.difference.verdict) == (None, "not distinguishable")
    chosen, outcomes = run_trials(work, plan, resume=True)
    unfinished = dict(list(outcomes.items())[:-1])
    shown = build_result(plan, chosen, unfinished, None)
    assert shown.longer is None  # half a budget compares nothing
    assert [arm.scores for arm in shown.arms] == [arm.scores for arm in result.arms]
    assert "With 4 times" not in " ".join(headline(shown))


def test_a_trend_is_told_over_the_same_seeds(result: ComparisonResult) -> None:
    """The first budget has seeds 0 and 1, the longer one seed 0 alone: seed 1 must not move the trend."""
    tree = result.to_json()
    for arm, first in zip(tree["arms"], ([3.0, 9.0], [3.5, 4.0]), strict=True):
        arm["scores"]["unseen_nats"]["values"] = first
    for scores, nats in zip(tree["longer"][0]["scores"].values(), (2.0, 2.125), strict=True):
        scores["unseen_nats"]["values"] = [nats]
    changed = retyped(tree)
    assert shared_seeds(changed, (changed.longer or ())[0]) == (0,)
    found = seed_differences(changed, changed.arms[1], "unseen")
    assert [(one.tokens, one.seed, one.nats) for one in found] == [(192, 0, 0.5), (192, 1, -5.0), (768, 0, 0.125)]
    said = trend_verdict(changed)
    assert "over the same 1 seed, too few for an interval worth the name" in said
    assert "dense of equal active FLOPs +0.500 becomes +0.125 on unseen sources" in said


def test_the_first_budget_is_handed_over_before_the_second_begins(plan: Plan, work: Path) -> None:
    handed: list[int] = []
    run_trials(work, plan, resume=True, budget_done=lambda _, outcomes: handed.append(len(outcomes)))
    assert handed == [4 + 4]  # four that choose rates, four scored; of the two longer ones none


def test_times_are_taken_on_held_out_text(result: ComparisonResult) -> None:
    assert result.speed is not None
    assert result.speed.text == "held-out"
    assert "on held-out text" in where_measured(result.speed)
    text = np.arange(100, dtype=np.int32)
    found = passages(text, 4, 10)
    assert found[:, 0].tolist() == [0, 22, 45, 67]
    assert all(row.tolist() == list(range(row[0], row[0] + 10)) for row in found)
    short = passages(text[:7], 2, 10)
    assert short.tolist() == 2 * [[*range(7), 0, 1, 2]]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_result_from_before_says_what_it_lacks(path: Path) -> None:
    result = read_result(path)
    if result.text_tokens is not None:
        assert shortcomings(result) == ""
        return
    said = shortcomings(result)
    assert "timed on random ids" in said
    assert "epochs are unknown" in said
    assert ("chosen on the scored documents" in said) == (result.kind == "dense")
    assert "epochs not kept" in headline(result)[0]
    assert said in result_table(result)
    assert all(figure_bytes(figure, "svg") for pair in figure_pairs(result)[:2] for figure in pair)


def test_a_busy_machine_is_named(result: ComparisonResult) -> None:
    assert result.speed is not None
    quiet = replace(result.speed.environment, load_average_before=2.0, processors_usable=2)  # our own trainings
    busy = replace(quiet, load_average_before=7.5)
    assert "busy" not in where_measured(replace(result.speed, environment=quiet))
    assert "load average 7.5 on 2 processors" in where_measured(replace(result.speed, environment=busy))


def test_ratios_that_vary_more_than_twofold_are_called_no_measurement(result: ComparisonResult) -> None:
    assert result.speed is not None
    steady = {name: ArmTimes(1.0, 1.0, 1.0, 1.0, 0.8, 1.5) for name in ("moe", "dense-active")}
    noisy = {**steady, "dense-active": ArmTimes(1.0, 1.0, 1.0, 1.2, 0.8, 1.7)}
    tasks = {"prefill 8 x 64": TaskTimes(1, steady), "training step": TaskTimes(1, noisy)}
    assert "too noisy for training step: ratios vary" in where_measured(replace(result.speed, tasks=tasks))
    assert "noisy" not in where_measured(replace(result.speed, tasks={"training step": TaskTimes(1, steady)}))


def test_two_pairs_have_a_difference_and_no_interval() -> None:
    two = Difference(-0.0283, -0.2301, 0.1734, 0.4, 2, "not distinguishable")
    assert interval_words(two) == "−0.0283 (2 pairs, no interval)"
    assert interval_words(replace(two, pairs=3)) == "−0.0283 (−0.2301 to +0.1734)"


@pytest.fixture
def shelf(tmp_path: Path, trained_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder whose results the Compare page shows."""
    monkeypatch.setenv("MOESCOPE_CHECKPOINTS", str(trained_root))
    monkeypatch.setattr(library, "SHIPPED", tmp_path)
    monkeypatch.setattr(library, "OWN", tmp_path / "none")
    return tmp_path


def opened_compare(**query: str) -> AppTest:
    """The Compare page on results."""
    at = AppTest.from_file(str(ENTRY), default_timeout=240)
    for key, value in {"compare_kind": "Dense models and routers", **query}.items():
        at.query_params[key] = value
    at.run()
    return at.switch_page("app_pages/compare.py").run()


def test_the_compare_page_shows_results(
    result: ComparisonResult, routers_result: ComparisonResult, shelf: Path
) -> None:
    at = opened_compare()
    assert "compare-dense" in at.info[0].value
    write_result(shelf / "dense-tiny.json", result)
    (shelf / "other.json").write_text("{}")
    at.run()
    assert not at.exception
    assert not at.error
    shown = "\n".join(str(part.value) for part in at.main.markdown).replace("\\", "")
    assert "Loss on unseen sources, against MoE (4 experts, top-2)" in shown
    assert "Loss on validation sources, against MoE (4 experts, top-2)" in shown
    assert at.selectbox(key="experiment").options == ["MoE against dense, texts.jsonl text, 2 seeds of 192 tokens"]
    assert len(at.get("vega_lite_chart")) == 6  # differences, trend, curves: each on both splits
    at.segmented_control(key="curves").set_value("Loss against seconds").run()
    assert not at.exception
    write_result(shelf / "routers-tiny.json", routers_result)
    at.run()
    at.selectbox(key="experiment").set_value(
        "Routers against each other, texts.jsonl text, 2 seeds of 192 tokens"
    ).run()
    assert not at.exception
    assert len(at.get("vega_lite_chart")) == 2
    assert any("top-p (loss per layer)" in str(part.value) for part in at.main.markdown)


@pytest.mark.parametrize("asked", ["routers", "gone", "dense-tiny"])
def test_a_link_to_a_result_opens_it_or_the_first(
    result: ComparisonResult, routers_result: ComparisonResult, asked: str, shelf: Path
) -> None:
    write_result(shelf / "dense-tiny.json", result)
    write_result(shelf / "routers-tiny.json", routers_result)
    write_result(shelf / "routers-twin.json", routers_result)  # the same title twice
    titles = {"routers": "Routers against each other, texts.jsonl text, 2 seeds of 192 tokens (routers-tiny)"}
    at = opened_compare(experiment=titles.get(asked, asked))
    assert not at.exception
    chosen = at.selectbox(key="experiment")
    assert len(set(chosen.options)) == 3
    assert str(chosen.value) == titles.get(asked, "MoE against dense, texts.jsonl text, 2 seeds of 192 tokens")


def test_the_command_line_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["compare-dense", "--seeds", "1"], "'1' is not a whole number from 2 to"),
        (["compare-routers", "--data", str(tmp_path / "none.jsonl"), "--out", str(tmp_path)], "none.jsonl"),
        (["compare-dense", "--config", str(tmp_path / "none.conf")], "no config file"),
    ):
        assert main(arguments) in (1, 2)
        lines = capsys.readouterr().err.strip().splitlines()
        assert words in lines[-1]


@pytest.mark.slow
def test_the_command_runs_to_its_result_and_times_it_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus, out = write_corpus(tmp_path / "texts.jsonl"), tmp_path / "out"
    file = tmp_path / "short.conf"
    file.write_text("training.steps = 2")
    command = [
        "compare-dense",
        "--smoke",
        "--seeds",
        "2",
        "--config",
        str(file),
        "--data",
        str(corpus),
        "--out",
        str(out),
    ]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [arm["name"] for arm in result["arms"]] == ["moe", "dense-active", "dense-total"]
    assert result["tokens"] == 2 * 4 * 16
    kept = json.loads((out / "dense-texts-smoke.json").read_text())
    assert kept["plan_hash"] == result["plan_hash"]
    assert main(command) == 2  # it is there already
    assert "continue it with --resume" in capsys.readouterr().err
    assert main([*command, "--time-again", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["arms"] == result["arms"]
    assert again["speed"]["tasks"] != result["speed"]["tasks"]
