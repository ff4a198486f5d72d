"""What comes in over the wire, by the names of OpenAI's interface and, beyond those, of vLLM's.

Other fields are let through and ignored; their names are logged. What would change the answer and is not done here is
refused, unless it has the value that changes nothing.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MOST_CHOICES = 128
MOST_LIKELIEST = 20
MOST_STOPS = 16
LONGEST_STOP = 1_000
"""Characters."""

TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]
StopString = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class Question(BaseModel):
    """What all of them share."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str | None = Field(None, max_length=1_000)
    """Name of the model; the server's first one where none is named."""


class StreamOptions(BaseModel):
    """How a stream ends."""

    model_config = ConfigDict(extra="allow", strict=True)

    include_usage: bool | None = None
    """Whether a last piece counts the tokens."""


class WritingQuestion(Question):
    """How text is written, whatever comes before it."""

    max_tokens: int | None = Field(None, ge=0, le=2**31 - 1)
    temperature: Number | None = Field(None, ge=0, le=2)
    top_p: Number | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=2**31 - 1)
    """vLLM's: 0 and -1 = all."""
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    stop: StopString | Annotated[list[StopString], Field(max_length=MOST_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class CompletionQuestion(WritingQuestion):
    """POST /v1/completions."""

    prompt: (
        str
        | TokenIds
        | Annotated[list[str], Field(min_length=1, max_length=MOST_CHOICES)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MOST_CHOICES)]
    )
    """A text, token ids, or a list of either."""
    echo: bool | None = None
    """Whether the prompt is part of the answer."""
    logprobs: int | None = Field(None, ge=0, le=MOST_LIKELIEST)
