"""What models take while they answer several clients at once, dense beside mixture; the types are the file.

`moescope compare-serving` writes it, the terminal and the Compare page show it. A file ends with its checksum.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from moe_core.errors import DataError, MoescopeError
from moe_core.experiments.speed_result import STRICT, Environment
from moe_core.experiments.timing import Spread
from moe_core.json_values import json_safe
from moe_core.runs.checksum import read_typed, with_checksum
from moe_core.runs.files import write_atomic
from moe_core.words import count_of, fixed, listed, number, short_count

FORMAT: Literal[1] = 1
OWN = Path("out") / "serving"
"""Where the Compare page looks for results."""
LEVEL = 0.05
FASTER, SLOWER, UNTOLD = "writes faster", "writes slower", "writes as fast, as far as these rounds can tell"
HEADER = (
    "model", "weights", "parameters (active)", "clients", "tokens/s", "times as fast as dense", "first token, ms",
    "memory, MB", "held-out loss",
)  # fmt: skip


@dataclass(frozen=True)
class LoadTimes:
    """With so many clients at once; medians over rounds and the range of the middle 80 % of them."""

    clients: int
    tokens_per_second: Spread
    """Of all clients together, from the first question to the last answer's end."""
    first_token_seconds: Spread
    """Until a client has its first token, the median client of each round."""
    times_dense: Spread | None
    """Tokens a second, over those of the dense model of this size in the same round; None where there is none."""
    rounds_faster: int | None
    """Rounds in which it wrote more tokens a second than the dense model; None where there is none."""


@dataclass(frozen=True)
class ServedModel:
    """One model, and what it takes."""

    size: str
    """The preset's name."""
    kind: Literal["moe", "dense"]
    weights: str
    """"random", or what was trained: "run demo, step 350"."""
    total_parameters: int
    active_parameters: int
    """Those that one token passes; the dense model's are as many as the mixture's."""
    weight_bytes: int
    """Of all its tensors."""
    cache_bytes: int
    """Of keys and values of as many whole contexts as there are clients at most."""
    held_out_nats: float | None
    """Nats per token of unseen text; None for random weights, and where a run was never scored."""
    held_out_bits_per_byte: float | None
    loads: tuple[LoadTimes, ...]

    @property
    def name(self) -> str:
        """For people: "demo, MoE"."""
        return f"{self.size}, {'MoE' if self.kind == 'moe' else 'dense'}"


@dataclass(frozen=True)
class ServingResult:
    """All models, measured on one machine."""

    __pydantic_config__ = STRICT

    format: Literal[1]
    date: str
    """ISO 8601, to the minute."""
    environment: Environment
    device: str
    dtype: str
    rounds: int
    prompt_tokens: int
    answer_tokens: int
    """That each client asks for; random weights may end an answer before."""
    models: tuple[ServedModel, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values for the file."""
        plain: dict[str, Any] = json_safe(asdict(self))
        return plain


def write_serving(path: Path, result: ServingResult) -> None:
    """Keep it, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, with_checksum(result.to_json(), indent=1))


def read_serving(path: Path) -> ServingResult:
    """Raises DataError for a file that is not there, RunError for one that is damaged or something else."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error.strerror or error}") from None
    wrong, remedy = "is no result of compare-serving", "measure again with compare-serving"
    return read_typed(content, path, TypeAdapter(ServingResult), wrong, remedy)[0]


def find_serving(folder: Path | None = None) -> dict[str, ServingResult]:
    """The results in a folder (None = OWN) by their files' names; files that are none are passed over."""
    found = {}
    for path in sorted((OWN if folder is None else folder).glob("*.json")):
        try:
            found[path.stem] = read_serving(path)
        except MoescopeError:
            continue
    return found


def serving_rows(result: ServingResult) -> list[tuple[str, ...]]:
    """A line for each model and number of clients, under HEADER."""
    return [
        (
            model.name,
            model.weights,
            f"{short_count(model.total_parameters)} ({short_count(model.active_parameters)})",
            str(load.clients),
            _range_words(load.tokens_per_second, 0),
            "" if load.times_dense is None else _range_words(load.times_dense, 2),
            _range_words(load.first_token_seconds, 1, 1000),
            f"{number(model.weight_bytes / 1e6)} + {number(model.cache_bytes / 1e6)}",
            loss_words(model),
        )
        for model in result.models
        for load in model.loads
    ]


def loss_words(model: ServedModel) -> str:
    """ "3.41 nats, 2.30 bits a byte"; a model of random weights has none."""
    if model.held_out_nats is None or model.held_out_bits_per_byte is None:
        return "not trained" if model.weights == "random" else "not scored"
    return f"{fixed(model.held_out_nats, 3)} nats, {fixed(model.held_out_bits_per_byte, 3)} bits a byte"


def serving_verdict(result: ServingResult) -> str:
    """For each mixture beside its dense model, at which numbers of clients it is faster or slower.

    A sign test over the rounds says so, at 5 % for all that are told of together (Bonferroni).
    """
    told = [
        (model.size, load, load.times_dense, load.rounds_faster)
        for model in result.models
        for load in model.loads
        if load.times_dense is not None and load.rounds_faster is not None
    ]
    if not told:
        return "Only one kind of model was measured, so that nothing can be held against it."
    by_size: dict[str, dict[str, list[str]]] = {}
    for size, load, times, faster in told:
        p_value = sign_test(faster, result.rounds) * len(told)
        kind = UNTOLD if p_value >= LEVEL else FASTER if 2 * faster > result.rounds else SLOWER
        case = f"{fixed(times.median, 2)} times with {count_of(load.clients, 'client')}"
        by_size.setdefault(size, {}).setdefault(kind, []).append(case)
    return " ".join(
        f"{size}: against a dense model of equal active size, the mixture "
        f"{listed([f'{kind} ({listed(cases)})' for kind, cases in found.items()])}."
        for size, found in by_size.items()
    )


def sign_test(faster: int, rounds: int) -> float:
    """Two-sided p-value of so many rounds of one sign, or more, if either were as likely."""
    most = max(faster, rounds - faster)
    ways = sum(math.comb(rounds, number) for number in range(most, rounds + 1))
    return min(1.0, float(2 * ways / 2**rounds))


def where_served(result: ServingResult) -> str:
    """What was asked, of which weights, and on which machine."""
    where = result.environment
    kinds = listed([f"{model.name}: {model.weights}" for model in result.models])
    noise = f" The machine was busy (load average {where.load_average_before:.1f}): trust the ratios alone."
    busy = where.load_average_before > 0.5 * (where.processors_usable or 1)
    return (
        f"Measured {result.date[:10]} on {where.accelerator if result.device == 'cuda' else where.processor}, "
        f"{count_of(where.threads, 'thread')}, {result.dtype}, torch {where.versions['torch']}. Each client asks for "
        f"{count_of(result.answer_tokens, 'token')} behind a prompt of {result.prompt_tokens}; {result.rounds} rounds "
        f"in which the models take turns; in brackets the middle 80 %. Weights: {kinds}. Memory is that of weights, "
        f"and of keys and values of whole contexts.{noise if busy else ''}"
    )  # fmt: skip


def _range_words(found: Spread, digits: int, times: float = 1.0) -> str:
    low, high = (fixed(times * end, digits) for end in (found.low, found.high))
    return f"{fixed(times * found.median, digits)} ({low} to {high})"
