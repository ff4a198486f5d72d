"""What a trace's file says of the whole trace, read back by a typed model before anything leans on it."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from moe_core.errors import Fault, TraceError, first_fault
from moe_core.routing.trace.checks import MAX_EXPERTS, check_sizes
from moe_core.routing.trace.types import ScoreFunction

FORMAT = 1
MAX_DOMAINS = 32_767  # int16
_Number = Annotated[int, Field(ge=0, le=2**31 - 1)]


class TraceMetadata(BaseModel):
    """The JSON under the key `moescope` of a trace's file, see docs/trace-format.md for what each key means."""

    model_config = ConfigDict(frozen=True, strict=True)

    num_experts: int = Field(ge=1, le=MAX_EXPERTS)
    top_k: int = Field(ge=1, le=MAX_EXPERTS)
    layers: list[_Number] = Field(min_length=1)
    domains: list[str] = Field(min_length=1, max_length=MAX_DOMAINS)
    score_function: ScoreFunction
    varying_experts: bool = False
    """Older files do not say it."""
    null_experts: int = Field(0, ge=0, le=MAX_EXPERTS)
    """Absent where there are none."""
    source: str
    router_logits: bool
    labels: list[str] = Field(default=[], max_length=MAX_DOMAINS)
    labelling: str = ""
    """Only of a file with a label for each token."""
    vocabulary: dict[_Number, str]

    @classmethod
    def parse(cls, content: bytes) -> TraceMetadata:
        """Raises TraceError naming the first key that is wrong."""
        try:
            _Format.model_validate_json(content)
            return cls.model_validate_json(content)
        except ValidationError as error:
            raise TraceError(_words_of(first_fault(error))) from None

    @field_validator("layers")
    @classmethod
    def _ascending(cls, layers: list[int]) -> list[int]:
        if sorted(set(layers)) != layers:
            raise ValueError("expected ascending layer numbers, each once")
        return layers

    @field_validator("domains", "labels")
    @classmethod
    def _each_once(cls, names: list[str]) -> list[str]:
        if len(set(names)) != len(names):
            raise ValueError("expected each name once")
        return names

    @model_validator(mode="after")
    def _of_a_size_that_fits(self) -> TraceMetadata:
        check_sizes(len(self.layers), self.top_k, self.num_experts)
        return self


class _Format(BaseModel):
    """Read first: another format may have other keys."""

    model_config = ConfigDict(strict=True)

    format: int

    @field_validator("format")
    @classmethod
    def _known(cls, number: int) -> int:
        if number != FORMAT:
            raise TraceError(f"format {number} is unknown; expected {FORMAT}, update Moescope or trace again")
        return number


def _words_of(fault: Fault) -> str:
    """The key, what it holds, and what is wrong with it."""
    if fault.kind == "missing":
        return f"its metadata has no key {fault.key!r}; make the trace again"
    if not fault.key:
        return f"its metadata is damaged: {fault.message}; make the trace again"
    return f"its metadata's key {fault.key!r} is {fault.value}: {fault.message}; make the trace again"
