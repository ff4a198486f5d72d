"""What a comparison found: the types are the file, a field is a key, in the same order.

What is not finite is None, and null in the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from moe_core.config import Config
from moe_core.data.splits import HeldOutSplit
from moe_core.errors import DataError, first_fault
from moe_core.experiments.speed_result import STRICT, Environment, SpeedResult, without_absent
from moe_core.json_values import json_safe

Kind = Literal["dense", "routers"]
"""The mixture against dense models, or routers against each other."""
FORMAT: Literal[1] = 1
"""Of the files; another one is of another version."""
_SIGNIFICANT_DIGITS = 6
_NO_RESULT = "is no result of this version of compare-dense or compare-routers"


@dataclass(frozen=True)
class Difference:
    """Of an arm to the first one, over pairs of equal seeds."""

    mean: float
    low: float | None
    """Ends of the 95 % interval; None where there are too few pairs."""
    high: float | None
    p_value: float | None
    pairs: int
    verdict: Literal["higher", "lower", "not distinguishable"]


@dataclass(frozen=True)
class Score:
    """One measure of an arm."""

    values: tuple[float | None, ...]
    """One a seed."""
    mean: float | None
    difference: Difference | None
    """None for the first arm, and where a value is missing."""


@dataclass(frozen=True)
class Scores:
    """What an arm loses on held-out text."""

    unseen_nats: Score
    """Nats per token; decides."""
    unseen_bits_per_byte: Score
    validation_nats: Score
    """Nats per token."""

    def nats(self, split: HeldOutSplit) -> Score:
        """Nats per token of one split."""
        return self.validation_nats if split == "validation" else self.unseen_nats


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters of an arm's model."""

    total: int
    active: int
    """Those that one token uses, a mean where tokens use different numbers of experts."""
    total_without_embedding: int
    active_without_embedding: int


@dataclass(frozen=True)
class Exposure:
    """How much text an arm met for its size."""

    tokens_per_parameter: float
    """Training tokens over all parameters."""
    tokens_per_active_parameter: float
    """Training tokens over those that one token uses."""
    epochs: float | None
    """Times that the training text was read; None where a file does not say how long that text is."""


@dataclass(frozen=True)
class FlopsPerToken:
    """Operations of the forward pass for one token, two per multiply-add."""

    computed: int
    measured: float | None
    """By torch's own counter; None where the router decides how many experts a token passes."""
    without_head: int


@dataclass(frozen=True)
class LossCurve:
    """Means over the seeds, one value an evaluation."""

    step: tuple[float, ...]
    unseen: tuple[float | None, ...]
    """Nats per token."""
    validation: tuple[float | None, ...]
    """Nats per token."""

    def nats(self, split: HeldOutSplit) -> tuple[float | None, ...]:
        """Of one split."""
        return self.validation if split == "validation" else self.unseen


@dataclass(frozen=True)
class Violation:
    """MaxVio: the busiest expert's load over the mean, less 1 (0 = even)."""

    mean: float | None
    worst: float | None


@dataclass(frozen=True)
class RoutingSummary:
    """Routing on held-out text, over all layers and seeds."""

    max_violation: Violation
    dead_experts: float | None
    """Of all layers together, a mean over the seeds."""
    experts_per_token: float | None
    router_entropy: float | None
    """0..1, 1 = the router prefers no expert."""
    domain_nmi: float | None
    """0..1; None in a text of one domain."""
    domain_nmi_null_p99: float | None
    """Of shuffled domains, 99 % lie below."""
    layers_above_null: float | None
    """Part of the layers whose domain_nmi is above."""


@dataclass(frozen=True)
class ArmResult:
    """One side of the comparison."""

    name: str
    label: str
    """For people."""
    factor: float
    """Of the learning rates: the best of those tried."""
    edge: bool
    """Whether the factor was the lowest or the highest of several."""
    dense_hidden_dim: int | None
    """Of a dense arm."""
    parameters: ParameterCounts
    flops_per_token: FlopsPerToken
    scores: Scores
    by_domain: Mapping[str, Score]
    """Nats per token of each domain of the unseen split."""
    curve: LossCurve
    routing: RoutingSummary | None
    """None for a dense arm."""
    sees_future: bool
    """Whether later tokens decide about earlier ones, so that the model cannot write."""
    validation_by_domain: Mapping[str, Score] | None = None
    """The same as by_domain of the validation split; None in results from before 2026-11-28."""
    exposure: Exposure | None = None
    """None in results from before 2026-11-28; see ComparisonResult.exposure_of."""

    def domains(self, split: HeldOutSplit) -> Mapping[str, Score]:
        """Nats per token of each domain of one split; empty where they were not kept."""
        return (self.validation_by_domain or {}) if split == "validation" else self.by_domain

    def mixture_routing(self) -> RoutingSummary:
        """The routing of an arm with MoE layers. Raises DataError for a dense one."""
        if self.routing is None:
            raise DataError(f"arm {self.label!r} is dense and routes nothing; routers are compared by compare-routers")
        return self.routing


@dataclass(frozen=True)
class TuningTrial:
    """A training that chose an arm's learning rate."""

    arm: str
    factor: float
    unseen_nats: float | None = None
    """By which rates were chosen before there was a tuning split. None where the training failed."""
    tuning_nats: float | None = None
    """Nats per token on the tuning split. None where the training failed, and in results from before."""


@dataclass(frozen=True)
class LongerBudget:
    """What the arms lose after more tokens, at the rates of the first budget. It does not decide."""

    times: int
    """Times the tokens of the first budget."""
    tokens: int
    """That each training reads."""
    seeds: tuple[int, ...]
    scores: Mapping[str, Scores]
    """By the arm's name."""


@dataclass(frozen=True)
class Bound:
    """The most that E experts of which k are chosen can save, against the dense model of equal total size."""

    experts: int
    top_k: int
    flops_saved: float
    """Part of the feed-forward operations that is not done: 1 - k / E, the router being free."""
    speedup: float
    """E / k: how many times as fast, if operations took equally long on both sides and nothing else took any time."""
    active: float
    """k / E: the smallest part of all parameters that a token needs."""
    model_flops_saved: float | None
    """The same for a whole model with its attention, router and head; None where no model was given."""
    model_speedup: float | None
    possible: Mapping[str, bool]
    """Which published claims arithmetic does not rule out, by name."""


@dataclass(frozen=True)
class ComparisonResult:
    """Everything that is shown of a comparison; nothing in it names the machine or its owner."""

    __pydantic_config__ = STRICT

    format: Literal[1]
    kind: Kind
    name: str
    primary: str
    """What decides."""
    plan_hash: str
    data: str
    """The name of the text's file, or "synthetic"."""
    environment: Environment
    """Where it was trained."""
    config: Config
    """Of the first arm, with the number of entries that the tokenizer really has."""
    tokens: int
    """That each training reads."""
    unigram_nats: float
    """What guessing by token frequency costs on unseen text."""
    seeds: tuple[int, ...]
    tuning_seeds: tuple[int, ...]
    tuning: tuple[TuningTrial, ...]
    arms: tuple[ArmResult, ...]
    """The others are held against the first one."""
    speed: SpeedResult | None
    """None before it was measured."""
    bounds: tuple[Bound, ...] | None = None
    """Of the kind "dense" alone; the key is missing otherwise."""
    text_tokens: int | None = None
    """Of the training text; None in results from before 2026-11-28."""
    longer: tuple[LongerBudget, ...] | None = None
    """Budgets beyond the first that are finished; None where there are none."""

    @property
    def rates_chosen_on(self) -> Literal["tuning", "unseen"] | None:
        """The split by which learning rates were chosen; None where nothing was chosen."""
        if not self.tuning:
            return None
        return "tuning" if any(trial.tuning_nats is not None for trial in self.tuning) else "unseen"

    def exposure_of(self, arm: ArmResult, times: int = 1) -> Exposure:
        """How much text an arm met in the first budget, or in one that is `times` as long."""
        tokens = times * self.tokens
        return exposure(tokens, arm.parameters, self.text_tokens)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a file or for --json."""
        tree = asdict(self, dict_factory=without_absent) | {"config": self.config.model_dump(mode="json")}
        plain: dict[str, Any] = json_safe(tree)
        return plain

    def to_bytes(self) -> bytes:
        """The file: one line, figures rounded to six significant digits."""
        return (
            json.dumps(_with_rounded_figures(self.to_json()), separators=(",", ":"), allow_nan=False) + "\n"
        ).encode()


def result_from_json(content: bytes, where: str) -> ComparisonResult:
    """Read a result's file. Raises DataError that names the file (`where`) and the first unknown, missing or wrong
    field."""
    try:
        return _result_reader().validate_json(content)
    except ValidationError as error:
        raise DataError(f"{where!r} {_NO_RESULT} ({first_fault(error).line}); run it again") from None


def read_result(path: Path) -> ComparisonResult:
    """A result as build_result made it. Raises DataError for anything else, FileNotFoundError where there is none."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error.strerror}") from None
    return result_from_json(content, str(path))


def exposure(tokens: int, parameters: ParameterCounts, text_tokens: int | None) -> Exposure:
    """Of a model with those parameters, trained on `tokens` of a text of `text_tokens`."""
    return Exposure(
        tokens_per_parameter=tokens / parameters.total,
        tokens_per_active_parameter=tokens / parameters.active,
        epochs=None if text_tokens is None else tokens / text_tokens,
    )


def finite(value: float) -> float | None:
    """`value`, or None where a result has no figure."""
    return float(value) if math.isfinite(value) else None


@cache
def _result_reader() -> TypeAdapter[ComparisonResult]:
    return TypeAdapter(ComparisonResult)


def _with_rounded_figures(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_SIGNIFICANT_DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: _with_rounded_figures(item) for key, item in value.items()}
    return [_with_rounded_figures(item) for item in value] if isinstance(value, list | tuple) else value
