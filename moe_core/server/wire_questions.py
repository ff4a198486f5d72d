"""What comes in over the wire, by the names of OpenAI's interface and, beyond those, of vLLM's.

Other fields are let through and ignored; their names are logged. What would change the answer and is not done here is
refused, unless it has a value that changes nothing.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from moe_core.ablation_modes import Mode
from moe_core.errors import shortened
from moe_core.server.refusals import refused

logger = logging.getLogger(__name__)
MOST_CHOICES = 128
MOST_LIKELIEST = 20
MOST_STOPS = 16
LONGEST_STOP = 256
"""Characters. Each piece of text is held against every beginning of each stop string, in the computing thread."""
MOST_NAMED = 20
"""Fields in a line of the log."""

TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]
StopString = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Whole = Annotated[int, Field(ge=0, lt=2**31)]
Expert = Annotated[list[Annotated[int, Field(ge=0, lt=2**15)]], Field(min_length=2, max_length=2)]

CHANGING_NOTHING: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "frequency_penalty": (0,),
        "presence_penalty": (0,),
        "repetition_penalty": (1,),
        "length_penalty": (1,),
        "logit_bias": ({},),
        "min_p": (0,),
        "min_tokens": (0,),
        "ignore_eos": (False,),
        "best_of": (1,),
        "use_beam_search": (False,),
        "suffix": ("",),
        "stop_token_ids": ([],),
        "bad_words": ([],),
        "allowed_token_ids": ([],),
        "logits_processors": ([],),
        "prompt_logprobs": (),
        "tools": ([],),
        "functions": ([],),
        "tool_choice": ("none", "auto"),
        "function_call": ("none", "auto"),
        "response_format": ({"type": "text"},),
        "structured_outputs": (),
        "guided_json": (),
        "guided_regex": (),
        "guided_choice": (),
        "guided_grammar": (),
        "modalities": (["text"],),
        "audio": (),
        "prediction": (),
        "web_search_options": (),
        "chat_template": (),
        "continue_final_message": (False,),
        "add_generation_prompt": (True,),
    }
)
"""Fields that are not done here, with the values beside null that ask for nothing."""


class Question(BaseModel):
    """What all of them share."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str | None = Field(None, min_length=1, max_length=1_000)
    """Name of the model; the server's first one where none is named."""


class StreamOptions(BaseModel):
    """How a stream ends."""

    model_config = ConfigDict(extra="allow", strict=True)

    include_usage: bool | None = None
    """Whether a last piece counts the tokens."""


class Change(BaseModel):
    """An intervention, for this request alone; see moe_core.routing.Intervention."""

    model_config = ConfigDict(extra="forbid", strict=True)

    ablate: list[Expert] = []
    """Experts to switch off, each as [layer, expert]."""
    force: list[Expert] = []
    """Experts that every token visits."""
    mode: Mode = "zero"
    """What ablated experts leave behind."""
    top_k: Annotated[int, Field(ge=1, lt=2**15)] | None = None
    """Experts per token."""
    temperature: Number | None = None
    """The routers' logits are divided by it."""


class WritingQuestion(Question):
    """How text is written, whatever comes before it."""

    max_tokens: Whole | None = None
    temperature: Number | None = Field(None, ge=0, le=2)
    top_p: Number | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    """vLLM's: 0 and -1 = all."""
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    stop: StopString | Annotated[list[StopString], Field(max_length=MOST_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    """vLLM's: whether the answer has the ids of prompt and answer."""
    return_routed_experts: bool | None = None
    """Whether each choice has `routed_experts`: base64 of a .npy file, [tokens - 1, layers, k]."""
    return_routed_weights: bool | None = None
    """Whether each choice has `routed_weights`, their combine weights, too."""
    routed_experts_prompt_start: Whole | None = None
    """vLLM's: the token of the prompt whose row comes first."""
    moescope: Change | None = None
    """An intervention."""


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
    """How many of the likeliest tokens are told at each place, beside the one that stands there."""


class TextPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """A message; developers' count as the system's."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]


class ChatQuestion(WritingQuestion):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=10_000)
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """The newer name of max_tokens, which it goes before."""
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LIKELIEST)


class TokenizeQuestion(Question):
    """POST /tokenize: a text, or a conversation."""

    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=10_000)] | None = None
    add_special_tokens: bool = True
    """Whether the model's begin of text stands before the prompt, as it does before one that is to be continued."""
    return_token_strs: bool = False


class DetokenizeQuestion(Question):
    """POST /detokenize."""

    tokens: list[Whole]


def check_extra(question: Question) -> None:
    """Raise RefusedError for a field that asks for what is not done here; log the names of what is ignored."""
    for name, value in (question.model_extra or {}).items():
        neutral = CHANGING_NOTHING.get(name)
        if neutral is not None and value is not None and value not in neutral:
            expected = " or ".join([*map(repr, neutral), "none at all"])
            raise refused(f"{name} = {shortened(value)} is not done here; expected {expected}", name, "unsupported")
    names = [name for name in question.model_extra or () if name not in CHANGING_NOTHING]
    plain = [name for name in names if re.fullmatch(r"[A-Za-z0-9_.-]{1,50}", name)]
    if names:
        others = len(names) - len(plain[:MOST_NAMED])
        more = f" and {others} more" if others else ""
        logger.info("fields that are ignored: %s%s", ", ".join(plain[:MOST_NAMED]) or "none with a plain name", more)
