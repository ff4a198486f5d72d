"""What a comparison will do, written down before it does anything: arms, seeds, learning rates, what will decide."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moe_core.config import Config, load_config, validate_config
from moe_core.errors import UsageError
from moe_core.experiments.arms import Arm, dense_arms
from moe_core.experiments.comparison_result import Kind
from moe_core.experiments.router_arms import router_arms
from moe_core.model import size

PRIMARY = "nats per token on the unseen split"
"""Decides; everything else that is reported describes."""
LONGER = 4
"""Times the tokens of the first budget that the second one has."""
FACTORS = (0.5, 1.0, 2.0)
"""Every arm is trained with its learning rates times each of these, on seeds that are not scored."""
LEARNING_RATES = ("learning_rate", "embedding_learning_rate", "muon_learning_rate")
FIRST_TUNING_SEED = 1000
OWN_KEYS = ("seed", "threads", "device", "evaluation_interval")
"""Of the training section: what the plan itself decides."""
EVALUATIONS = 12
"""Points of each loss curve after step 0."""
STEPS = {"dense": 300, "routers": 150}
PARTS = {"dense": 1, "routers": 4}
"""Of each batch: a loss per layer that sees a part and one that sees the batch are the same thing otherwise."""
SMOKE: dict[str, Any] = {
    "model": {
        "vocab_size": 300, "dim": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16,
        "num_experts": 4, "top_k": 2, "expert_hidden_dim": 32, "dense_hidden_dim": 64, "max_seq_len": 64,
    },
    "data": {"documents": 12},
    "training": {"steps": 8, "batch_size": 4, "seq_len": 16, "evaluation_tokens": 64, "probe_tokens": 64},
}  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """One training."""

    arm: str
    seed: int
    factor: float
    """Of the learning rates."""
    times: int = 1
    """Times the configured steps that it trains for."""

    @property
    def name(self) -> str:
        """Of its run and of the file with its outcome."""
        return f"{self.arm}-s{self.seed}-x{self.factor:g}" + ("" if self.times == 1 else f"-t{self.times}")


@dataclass(frozen=True)
class Budget:
    """How long trainings last, and the seeds that are scored after them."""

    times: int
    """Times the configured steps."""
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """The first arm is the one that the others are held against."""

    kind: Kind
    name: str
    """Of the result's file."""
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    """Scored; each seed's weights, order of the text and router noise are the same for all arms as far as they can."""
    tuning_seeds: tuple[int, ...]
    """Used to choose the learning rate, never scored."""
    factors: tuple[float, ...]
    tuning_split: bool = False
    """Whether rates are chosen on documents of their own (docs/decisions/0019). False where nothing is chosen, and in
    plans from before, whose rates are chosen on the unseen documents."""
    longer: tuple[Budget, ...] = ()
    """Budgets beyond the first, for the trend: same rates, same schedule stretched."""

    @property
    def config(self) -> Config:
        """Of the first arm."""
        return self.arms[0].config

    def arm(self, name: str) -> Arm:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    def tuning_trials(self) -> list[Trial]:
        """Those that choose each arm's learning rate; none where there is nothing to choose."""
        if len(self.factors) < 2:
            return []
        return [
            Trial(arm.name, seed, factor) for seed in self.tuning_seeds for factor in self.factors for arm in self.arms
        ]

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """The first, which decides, and the longer ones."""
        return (Budget(1, self.seeds), *self.longer)

    def is_tuning(self, trial: Trial) -> bool:
        """Whether it chooses a learning rate on the split kept for that."""
        return self.tuning_split and trial.seed in self.tuning_seeds

    def scored_trials(self, chosen: Mapping[str, float], budget: Budget | None = None) -> list[Trial]:
        """Those of a budget (the first, which decides), seed by seed, with the factor chosen for each arm."""
        budget = budget or self.budgets[0]
        return [Trial(arm.name, seed, chosen[arm.name], budget.times) for seed in budget.seeds for arm in self.arms]

    def as_begun(self, stored: Plan | None) -> Plan:
        """What goes on where `stored` was begun: this plan, or the same one from before tuning splits and budgets."""
        before = replace(self, tuning_split=False, longer=())
        return before if stored == before else self

    def trial_config(self, trial: Trial) -> Config:
        """What the trial is trained with."""
        config = self.arm(trial.arm).config
        training = config.training.model_dump() | {"seed": trial.seed}
        for key in ("steps", "evaluation_interval"):
            training[key] *= trial.times
        for key in LEARNING_RATES:
            training[key] = None if training[key] is None else training[key] * trial.factor
        return validate_config({**config.model_dump(), "training": training})

    def work(self, trial: Trial) -> float:
        """About what the trial costs: forward operations of all its tokens."""
        config = self.arm(trial.arm).config
        training = config.training
        tokens = trial.times * training.steps * training.batch_size * training.seq_len
        return float(tokens * size.flops_per_token(config.model, training.seq_len))

    @property
    def hash(self) -> str:
        """SHA-256 of everything above, without where the text lies."""
        return hashlib.sha256(json.dumps(public(self.as_json()), sort_keys=True).encode()).hexdigest()

    def as_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        added: dict[str, Any] = {"tuning_split": True} if self.tuning_split else {}
        if self.longer:
            added["longer"] = [{"times": budget.times, "seeds": list(budget.seeds)} for budget in self.longer]
        return {
            "kind": self.kind,
            "name": self.name,
            "primary": PRIMARY,
            "arms": [
                {"name": arm.name, "label": arm.label, "config": arm.config.model_dump(mode="json")}
                for arm in self.arms
            ],
            "seeds": list(self.seeds),
            "tuning_seeds": list(self.tuning_seeds),
            "factors": list(self.factors),
            **added,
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Plan:
        """Raises KeyError, TypeError or UsageError for something else."""
        arms = tuple(Arm(arm["name"], arm["label"], validate_config(arm["config"])) for arm in tree["arms"])
        seeds, tuning_seeds, factors = (tuple(tree[key]) for key in ("seeds", "tuning_seeds", "factors"))
        longer = tuple(Budget(one["times"], tuple(one["seeds"])) for one in tree.get("longer", ()))
        split = bool(tree.get("tuning_split", False))
        return cls(tree["kind"], tree["name"], arms, seeds, tuning_seeds, factors, split, longer)


def make_plan(
    kind: Kind,
    *,
    file: str | None = None,
    data: str | None = None,
    seeds: int = 5,
    longer_seeds: int = 2,
    smoke: bool = False,
) -> Plan:
    """The plan from the house's size, a HOCON file over it, and the user's text. Raises UsageError.

    `longer_seeds`: scored after LONGER times the tokens; 0 leaves the second budget out. Routers have one budget.
    """
    config = _config(kind, file, data, smoke)
    text = "synthetic" if config.data.path is None else Path(config.data.path).stem
    plain = "".join(c if c.isalnum() else "-" for c in text.lower())
    return Plan(
        kind=kind,
        name=f"{kind}-{plain}{'-smoke' if smoke else ''}",
        arms=tuple(dense_arms(config) if kind == "dense" else router_arms(config)),
        seeds=tuple(range(seeds)),
        tuning_seeds=(FIRST_TUNING_SEED,) if kind == "dense" else (),
        factors=(1.0,) if kind == "routers" else FACTORS[1:] if smoke else FACTORS,
        tuning_split=kind == "dense",
        longer=(Budget(LONGER, tuple(range(longer_seeds))),) if kind == "dense" and longer_seeds else (),
    )


def public(tree: Any) -> Any:
    """JSON values with the path of the user's text cut to its name."""
    if isinstance(tree, Mapping):
        return {
            key: Path(value).name if key == "path" and isinstance(value, str) else public(value)
            for key, value in tree.items()
        }
    return [public(value) for value in tree] if isinstance(tree, Sequence) and not isinstance(tree, str) else tree


def _config(kind: Kind, file: str | None, data: str | None, smoke: bool) -> Config:
    quick = load_config("quick", environment={}).model_dump()
    tree: dict[str, Any] = {**quick, "training": {**quick["training"], "steps": STEPS[kind]}}
    tree["training"]["gradient_accumulation"] = PARTS[kind]
    if smoke:
        tree = {section: {**tree[section], **SMOKE[section]} for section in tree}
    # One thread: the same sums in the same order however many trainings run side by side.
    tree["training"] |= {"time_budget_seconds": None, "threads": 1, "device": "cpu"}
    config = load_config(validate_config(tree), file=file, environment={})
    fixed = [key for key in OWN_KEYS if getattr(config.training, key) != tree["training"][key]]
    if fixed:
        raise UsageError(
            f"training.{fixed[0]} is not yours to choose in a comparison: every arm has the plan's seeds, one thread, "
            f"the processor, and is scored {EVALUATIONS} times; leave it out"
        )
    if config.training.time_budget_seconds is not None or config.training.init_from is not None:
        raise UsageError(
            "a comparison trains every arm from random weights on equally many tokens; "
            "leave out training.time_budget_seconds and training.init_from"
        )
    tree = config.model_dump()
    tree["training"]["evaluation_interval"] = max(1, config.training.steps // EVALUATIONS)
    if data is not None:
        tree["data"]["path"] = data
    return validate_config(tree)
