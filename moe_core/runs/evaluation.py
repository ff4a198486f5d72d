"""What scoring a run on its whole held-out text found, as evaluation.json keeps it.

The types here are the file: a field is a key, in the same order. What is not finite is None, and null in the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from moe_core.data.splits import HeldOutSplit
from moe_core.data.windows import WINDOW_RULE
from moe_core.errors import RunError, first_fault
from moe_core.runs.checksum import KEY, is_verified


@dataclass(frozen=True)
class SplitFigures:
    """The loss on one held-out split, documents scored alone."""

    nats_per_token: float | None
    perplexity: float | None
    bits_per_byte: float | None
    by_domain: Mapping[str, float | None]
    """Nats per token of each domain."""


@dataclass(frozen=True)
class GuessingFigures:
    """What guessing without reading costs, in nats per token."""

    uniform_nats: float
    """ln V."""
    unigram_nats: float
    """By the token frequencies of the training split, add-one smoothed, on the unseen split."""


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters of the model."""

    total: int
    active: int
    """Those that one token uses."""


@dataclass(frozen=True)
class LayerRouting:
    """Routing of one MoE layer on the scored tokens of both splits."""

    layer: int
    load_imbalance: float | None
    """Largest load over the mean, 1 = even."""
    dead_experts: int
    """Experts without any token; on little text by chance too."""
    router_entropy: float | None
    """0..1, 1 = the router prefers no expert."""
    experts_per_token: float | None
    dropped_fraction: float | None
    """0..1 of the slots; None where the router's rule leaves slots unused."""
    domain_nmi: float | None
    """0..1."""
    domain_nmi_null_p99: float | None
    p_value: float | None
    """Domain labels shuffled by document."""
    load_low: float | None = None
    """95 % interval of load_imbalance; None, as all below, where the run was scored by an older version."""
    load_high: float | None = None
    surely_dead: int | None = None
    """Those of dead_experts of which the text is enough to say so."""
    sources: int | None = None
    """How many sources the scored text is of."""
    effective_tokens: float | None = None
    """As many independent tokens would tell as much of the load."""


@dataclass(frozen=True)
class RoutingVerdicts:
    """The routing in words."""

    routing: str
    domains: str


@dataclass(frozen=True)
class Evaluation:
    """Figures of one run at one step."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    run: str
    step: int
    windows: str
    """The rule by which long documents are cut (moe_core.data.windows)."""
    validation: SplitFigures
    unseen: SplitFigures
    baselines: GuessingFigures
    parameters: ParameterCounts
    flops_per_token: int
    """Forward pass, 2 per multiply-add, context training.seq_len."""
    routing: tuple[LayerRouting, ...]
    """One a layer; none for a dense model."""
    verdicts: RoutingVerdicts

    def split(self, name: HeldOutSplit) -> SplitFigures:
        """The figures of one held-out split."""
        return self.validation if name == "validation" else self.unseen

    def to_json(self) -> dict[str, Any]:
        """Plain values for a file or for --json."""
        return asdict(self) | {"routing": [asdict(layer) for layer in self.routing]}


def evaluation_from_json(content: bytes, where: str) -> Evaluation:
    """Read evaluation.json. A file that names no window rule is older, and was made by the present one.

    Raises RunError that names the file (`where`) and the first field that is unknown, missing or wrong.
    """
    is_verified(content, where)
    try:
        tree = json.loads(content)
        if isinstance(tree, dict):
            tree.pop(KEY, None)
            tree.setdefault("windows", WINDOW_RULE)
        return _reader().validate_json(json.dumps(tree))
    except ValidationError as error:
        reason = first_fault(error).line
    except (ValueError, RecursionError) as error:
        reason = f"no JSON: {' '.join(str(error).split())[:200]}"
    raise RunError(
        f"{where!r} is not an evaluation ({reason}); delete it, or score the run again with --evaluate"
    ) from None


@cache
def _reader() -> TypeAdapter[Evaluation]:
    return TypeAdapter(Evaluation)
