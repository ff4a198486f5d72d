"""From a question to what the engine is asked, and how its answer is to be shown."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from moe_core.errors import TraceError, UsageError
from moe_core.inference.chat_format import Message, chat_prompt
from moe_core.inference.engine import Request
from moe_core.inference.protocol import LanguageModel, check_token_ids
from moe_core.inference.requests import prompt_ids
from moe_core.inference.sampling import SamplingConfig
from moe_core.routing import Intervention
from moe_core.server.api_options import ApiOptions
from moe_core.server.refusals import refused
from moe_core.server.wire_questions import (
    MOST_CHOICES,
    Change,
    ChatMessage,
    ChatQuestion,
    CompletionQuestion,
    WritingQuestion,
)

COMPLETION_TOKENS = 16
"""Of a completion that asks for no number, as OpenAI has it."""


@dataclass(frozen=True)
class Shown:
    """What an answer tells of each choice, beside its text."""

    echo: bool = False
    """The prompt, too."""
    likeliest: int | None = None
    """Log-probabilities, with so many of the likeliest tokens; None = none at all."""
    token_ids: bool = False
    experts: bool = False
    weights: bool = False
    first_row: int = 0
    """Of the routing: the token that it begins with."""

    @property
    def needs_all(self) -> bool:
        """Whether all that is known of a token has to be kept until it is sent."""
        return self.likeliest is not None or self.experts or self.weights


@dataclass(frozen=True)
class Writing:
    """All choices of one answer."""

    model: LanguageModel
    prompts: tuple[tuple[int, ...], ...]
    """Token ids."""
    each: int
    """Choices for each prompt, one after the other."""
    requests: tuple[Request, ...]
    """One for each choice."""
    shown: Shown
    max_tokens: int
    """That each choice may have. With none a request writes one all the same, which is not shown."""
    is_base_chat: bool = False
    """A conversation as a plain transcript, with a model that was not trained to answer."""

    def prompt_of(self, choice: int) -> tuple[int, ...]:
        """Token ids before a choice."""
        return self.prompts[choice // self.each]


def completion_writing(model: LanguageModel, question: CompletionQuestion, options: ApiOptions) -> Writing:
    """Raises RefusedError for what cannot be, UsageError for what this model cannot do."""
    given = question.prompt
    if isinstance(given, str):
        prompts = [_ids_of_text(model, given)]
    else:
        texts = [each for each in given if isinstance(each, str)]
        lists = [each for each in given if isinstance(each, list)]
        ids = [each for each in given if isinstance(each, int)]
        prompts = [tuple(ids)] if ids else [*map(tuple, lists), *(_ids_of_text(model, text) for text in texts)]
    unasked = min(COMPLETION_TOKENS, options.max_tokens)
    max_tokens = _max_tokens(model, question.max_tokens, "max_tokens", prompts, unasked, options)
    shown = _shown(question, echo=bool(question.echo), likeliest=question.logprobs)
    return _writing(model, question, options, prompts, shown, max_tokens)


def chat_writing(model: LanguageModel, question: ChatQuestion, options: ApiOptions) -> Writing:
    """Raises RefusedError for what cannot be, UsageError for what this model or its template cannot do."""
    prompt = chat_prompt(model, messages_of(question.messages))
    asked, name = question.max_completion_tokens, "max_completion_tokens"
    if asked is None:
        asked, name = question.max_tokens, "max_tokens"
    max_tokens = _max_tokens(model, asked, name, [prompt.token_ids], options.max_tokens, options)
    if question.top_logprobs and not question.logprobs:
        raise refused("top_logprobs goes with logprobs = true", "top_logprobs")
    shown = _shown(question, likeliest=(question.top_logprobs or 0) if question.logprobs else None)
    return _writing(
        model, question, options, [prompt.token_ids], shown, max_tokens, prompt.stop, is_base=not prompt.has_template
    )


def messages_of(messages: Sequence[ChatMessage]) -> list[Message]:
    """As the chat format takes them. Raises DataError for text that UTF-8 cannot hold."""
    return [
        Message(
            "system" if message.role == "developer" else message.role,
            message.content if isinstance(message.content, str) else "\n".join(part.text for part in message.content),
        )
        for message in messages
    ]


def _ids_of_text(model: LanguageModel, text: str) -> tuple[int, ...]:
    return tuple(prompt_ids(model, text))


def _shown(question: WritingQuestion, *, echo: bool = False, likeliest: int | None = None) -> Shown:
    return Shown(
        echo=echo,
        likeliest=likeliest,
        token_ids=bool(question.return_token_ids),
        experts=bool(question.return_routed_experts),
        weights=bool(question.return_routed_weights),
        first_row=question.routed_experts_prompt_start or 0,
    )


def _writing(
    model: LanguageModel,
    question: WritingQuestion,
    options: ApiOptions,
    prompts: Sequence[tuple[int, ...]],
    shown: Shown,
    max_tokens: int,
    stop: tuple[str, ...] = (),
    *,
    is_base: bool = False,
) -> Writing:
    each = question.n or 1
    _check(model, question, prompts, shown)
    seed = secrets.randbits(62) if question.seed is None else question.seed % 2**63
    more = (question.stop,) if isinstance(question.stop, str) else tuple(question.stop or ())
    change = _intervention(model, question.moescope)
    requests = [
        Request(
            prompt,
            _sampling(question, options, max(1, max_tokens), (seed + choice) % 2**63),
            (*stop, *more),
            change,
            likeliest=shown.likeliest or 0,
            score_prompt=shown.echo and shown.likeliest is not None,
        )
        for prompt in prompts
        for choice in range(each)
    ]
    return Writing(model, tuple(prompts), each, tuple(requests), shown, max_tokens, is_base)


def _check(model: LanguageModel, question: WritingQuestion, prompts: Sequence[tuple[int, ...]], shown: Shown) -> None:
    if question.stream_options is not None and not question.stream:
        raise refused("stream_options goes with stream = true", "stream_options")
    if (shown.experts or shown.weights) and not model.moe_layers:
        raise refused(f"{model.name} has no experts whose routing could be told", "return_routed_experts")
    if (choices := len(prompts) * (question.n or 1)) > MOST_CHOICES:
        raise refused(f"{len(prompts)} prompts with n = {question.n} are {choices:,} choices; expected at most "
                      f"{MOST_CHOICES} in one request", "n")  # fmt: skip
    shortest = min(map(len, prompts))
    if shown.first_row >= shortest:
        raise refused(
            f"routed_experts_prompt_start = {shown.first_row:,} is out of range; expected at most {shortest - 1:,}",
            "routed_experts_prompt_start",
        )
    for prompt in prompts:
        try:
            check_token_ids(model, prompt)
        except UsageError as error:
            raise refused(str(error), "prompt") from None


def _intervention(model: LanguageModel, change: Change | None) -> Intervention | None:
    if change is None:
        return None
    try:
        found = Intervention(
            ablate=tuple((layer, expert) for layer, expert in change.ablate),
            force=tuple((layer, expert) for layer, expert in change.force),
            mode=change.mode,
            top_k=change.top_k,
            temperature=change.temperature,
        )
        if not found.describe():
            return None
        if not model.moe_layers:
            raise UsageError(f"{model.name} has no experts to change")
        found.check(model.model)
    except (UsageError, TraceError) as error:
        raise refused(f"moescope: {error}", "moescope") from None
    return found


def _sampling(question: WritingQuestion, options: ApiOptions, max_tokens: int, seed: int) -> SamplingConfig:
    return SamplingConfig(
        max_new_tokens=max_tokens,
        temperature=options.temperature if question.temperature is None else question.temperature,
        top_k=max(0, question.top_k or 0),
        top_p=1.0 if question.top_p is None else question.top_p,
        seed=seed,
    )


def _max_tokens(
    model: LanguageModel,
    asked: int | None,
    name: str,
    prompts: Sequence[tuple[int, ...]],
    unasked: int,
    options: ApiOptions,
) -> int:
    """Tokens of each choice at most. Prompt and answer fit the window, so that every token sees all before it."""
    window, prompt = model.context_window, max(map(len, prompts))
    room = window - prompt
    said = f"this model's maximum context length is {window:,} tokens; the prompt has {prompt:,}"
    if room < (1 if asked is None else min(asked, 1)):
        raise refused(f"{said}: expected at most {window - 1:,}", "prompt", "context_length_exceeded")
    if asked is not None and asked > room:
        expected = f"{asked:,} are to be written: expected {name} of at most {room:,}"
        raise refused(f"{said} and {expected}", name, "context_length_exceeded")
    if asked is not None and asked > options.max_tokens:
        most = f"this server writes at most {options.max_tokens:,}"
        raise refused(f"{name} = {asked:,} is out of range; {most}", name)
    return min(unasked, room) if asked is None else asked
