"""metrics.jsonl as it is read back: typed lines, and a count of those that say nothing.

One JSON object a line. Each kind has a model here; a key that is unknown is kept, a value of another type, a number
that is not finite or out of all bounds makes the line a bad one. A bad line is left out and counted, never a reason
not to show the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from moe_core.runs.checksum import KEY, is_verified_line, unverified_words

if TYPE_CHECKING:
    import pandas as pd

MOST_STEPS = 10**12
Step = Annotated[int, Field(ge=0, le=MOST_STEPS)]
Count = Annotated[int, Field(ge=0, le=2**62)]
Seconds = Annotated[float, Field(ge=0, le=1e11)]
Figure = Annotated[float, Field(ge=-1e39, le=1e39)] | None
"""None where it was not finite when it was written."""
FiguresOf = Mapping[str, Figure]
Word = Annotated[str, Field(max_length=1000)]
Text = Annotated[str, Field(max_length=1_000_000)]
Kind = Literal["train", "evaluation", "baseline", "load", "event", "sample", "syntax"]


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="allow", allow_inf_nan=False)


class TrainLine(_Line):
    """One update of the weights."""

    kind: Literal["train"]
    step: Step
    loss: Figure = None
    load_balancing_loss: Figure = None
    router_z_loss: Figure = None
    gradient_norm: Figure = None
    learning_rate: Figure = None
    tokens_per_second: Figure = None
    tokens: Count | None = None
    elapsed_seconds: Seconds | None = None
    dropped_fraction: Figure = None
    contrastive_loss: Figure = None


class EvaluationLine(_Line):
    """The loss on a part of one held-out split, in nats per token and bits per byte."""

    kind: Literal["evaluation"]
    step: Step
    split: Word
    nats_per_token: Figure = None
    bits_per_byte: Figure = None
    by_domain: FiguresOf | None = None
    tokens: Count | None = None


class BaselineLine(_Line):
    """What guessing costs, in nats per token."""

    kind: Literal["baseline"]
    unigram_nats: FiguresOf | None = None
    """By split."""
    uniform_nats: Figure = None


class LoadLine(_Line):
    """The routing of one MoE layer: on the probe text or, of a run that is watched, of the tokens it is trained on."""

    kind: Literal["load"]
    step: Step
    layer: Annotated[int, Field(ge=0, le=100_000)]
    expert_load: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=1, max_length=32_768)]
    load_imbalance: Figure = None
    dead_experts: Count | None = None
    router_entropy: Figure = None
    domain_nmi: Figure = None
    tokens_per_expert: Annotated[list[Count], Field(min_length=1, max_length=32_768)] | None = None
    """Choices since the line before; only of a run that is watched, whose lines hold no expert_load."""
    tokens: Count | None = None
    dropped_fraction: Figure = None

    @model_validator(mode="before")
    @classmethod
    def _load_of_counts(cls, line: Any) -> Any:
        """Shares follow from counts, so that only these are kept."""
        counts = line.get("tokens_per_expert") if isinstance(line, dict) else None
        if isinstance(counts, list) and "expert_load" not in line and all(type(count) is int for count in counts):
            total = max(sum(counts), 1)
            return {**line, "expert_load": [count / total for count in counts]}
        return line


class EventLine(_Line):
    """One sentence about something that happened."""

    kind: Literal["event"]
    step: Step
    message: Text


class SampleLine(_Line):
    """A text that the model wrote."""

    kind: Literal["sample"]
    step: Step
    text: Text


class SyntaxLine(_Line):
    """How much of the code that the model wrote from held-out beginnings is valid."""

    kind: Literal["syntax"]
    step: Step
    samples: Count
    parses: Figure = None
    """Share that Python parses as it stands, an unfinished last line dropped, 0..1."""
    correct_so_far: Figure = None
    """Share that could still become valid code."""


MetricLine = TrainLine | EvaluationLine | BaselineLine | LoadLine | EventLine | SampleLine | SyntaxLine


_FIGURES = (
    "loss", "load_balancing_loss", "router_z_loss", "gradient_norm", "learning_rate", "tokens_per_second", "tokens",
    "elapsed_seconds", "dropped_fraction", "contrastive_loss", "nats_per_token", "bits_per_byte",
    "uniform_nats", "load_imbalance", "dead_experts", "router_entropy", "domain_nmi",
)  # fmt: skip


@dataclass(frozen=True)
class MetricLog:
    """The lines of a run, oldest first."""

    lines: tuple[MetricLine, ...] = ()
    bad: int = 0
    """How many lines are left out: no record, or changed after they were written."""
    unverified: int = 0
    """How many of `lines` were written without a checksum."""

    def frame(self, kind: Kind | None = None) -> pd.DataFrame:
        """The lines of one kind, or all, as a table, one row a line; empty where there is none."""
        import pandas as pd

        rows = [_row(line) for line in self.lines if kind is None or line.kind == kind]
        frame = pd.DataFrame(rows)
        figures = _FIGURES if kind is not None else ()
        for name in set(figures) & set(frame.columns):
            frame[name] = pd.to_numeric(frame[name])
        return frame


def bad_lines_words(count: int) -> str:
    """One sentence about lines that were left out."""
    if count == 1:
        return "1 line of metrics.jsonl could not be read or had been changed; it is left out."
    return f"{count:,} lines of metrics.jsonl could not be read or had been changed; they are left out."


def file_notes(bad_lines: int, unverified: Sequence[str]) -> list[str]:
    """What a reader of a run's figures must know about its files, a sentence each; mostly nothing."""
    notes = [bad_lines_words(bad_lines)] if bad_lines else []
    return notes + ([unverified_words(unverified)] if unverified else [])


def parse_log(content: bytes) -> MetricLog:
    """Read metrics.jsonl. Half a line at its end, which a killed writer leaves, does not count."""
    lines: list[MetricLine] = []
    bad, unverified, sealed = 0, 0, False
    *whole, torn = content.split(b"\n")
    for text in whole:
        line, verified = _read_line(text)
        if line is None or (sealed and not verified):  # once lines carry checksums, all do
            bad += 1
            continue
        sealed = sealed or verified
        unverified += not verified
        lines.append(line)
    # No half line that a killed writer leaves: its line feed was changed.
    bad += _read_line(torn[:-1])[0] is not None
    return MetricLog(tuple(lines), bad, unverified)


def rewound(content: bytes, step: int) -> bytes:
    """metrics.jsonl without the lines of later steps and without half a line at its end; the others as they are."""
    kept = []
    for text in content.split(b"\n")[:-1]:
        line, _ = _read_line(text)
        if line is None or getattr(line, "step", 0) <= step:
            kept.append(text + b"\n")
    return b"".join(kept)


def _read_line(text: bytes) -> tuple[MetricLine | None, bool]:
    """A line, or None for a bad one, and whether it carries a checksum."""
    try:
        verified = is_verified_line(text)
        return _reader().validate_json(text), verified
    except ValueError:  # ValidationError is one
        return None, False


def _row(line: MetricLine) -> dict[str, Any]:
    row = line.model_dump()
    row.pop(KEY, None)
    return row


@cache
def _reader() -> TypeAdapter[MetricLine]:
    return TypeAdapter(Annotated[MetricLine, Field(discriminator="kind")])
