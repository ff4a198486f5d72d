"""From a question to what the engine is asked, and how its answer is to be shown."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from moe_core.inference.engine import Request
from moe_core.inference.protocol import LanguageModel
from moe_core.inference.requests import prompt_ids
from moe_core.inference.sampling import SamplingConfig
from moe_core.server.api_options import ApiOptions
from moe_core.server.refusals import refused
from moe_core.server.wire_questions import CompletionQuestion, WritingQuestion

COMPLETION_TOKENS = 16
"""Of a completion that asks for no number, as OpenAI has it."""


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
    max_tokens: int


def completion_writing(model: LanguageModel, question: CompletionQuestion, options: ApiOptions) -> Writing:
    """Raises RefusedError for a prompt that does not fit, UsageError for what this model cannot do."""
    given = question.prompt
    if isinstance(given, str):
        prompts = [_ids_of_text(model, given)]
    else:
        texts = [each for each in given if isinstance(each, str)]
        lists = [each for each in given if isinstance(each, list)]
        ids = [each for each in given if isinstance(each, int)]
        prompts = [tuple(ids)] if ids else [*map(tuple, lists), *(_ids_of_text(model, text) for text in texts)]
    return _writing(model, question, options, prompts, COMPLETION_TOKENS)


def _ids_of_text(model: LanguageModel, text: str) -> tuple[int, ...]:
    return tuple(prompt_ids(model, text))


def _writing(
    model: LanguageModel,
    question: WritingQuestion,
    options: ApiOptions,
    prompts: Sequence[tuple[int, ...]],
    unasked_tokens: int,
) -> Writing:
    longest = max(map(len, prompts))
    max_tokens = _max_tokens(model, question.max_tokens, longest, min(unasked_tokens, options.max_tokens), options)
    each = question.n or 1
    seed = secrets.randbits(62) if question.seed is None else question.seed % 2**63
    stop = (question.stop,) if isinstance(question.stop, str) else tuple(question.stop or ())
    requests = [
        Request(prompt, _sampling(question, options, max_tokens, (seed + choice) % 2**63), stop)
        for prompt in prompts
        for choice in range(each)
    ]
    return Writing(model, tuple(prompts), each, tuple(requests), max_tokens)


def _sampling(question: WritingQuestion, options: ApiOptions, max_tokens: int, seed: int) -> SamplingConfig:
    return SamplingConfig(
        max_new_tokens=max_tokens,
        temperature=options.temperature if question.temperature is None else question.temperature,
        top_k=max(0, question.top_k or 0),
        top_p=1.0 if question.top_p is None else question.top_p,
        seed=seed,
    )


def _max_tokens(model: LanguageModel, asked: int | None, prompt: int, unasked: int, options: ApiOptions) -> int:
    """Tokens to write at most. Prompt and answer fit the window: every token sees all before it."""
    window = model.context_window
    room = window - prompt
    said = f"this model's maximum context length is {window:,} tokens; the prompt has {prompt:,}"
    if room < 1:
        raise refused(f"{said}: expected at most {window - 1:,}", "prompt", "context_length_exceeded")
    if asked is not None and asked > room:
        expected = f"{asked:,} are to be written: expected max_tokens of at most {room:,}"
        raise refused(f"{said} and {expected}", "max_tokens", "context_length_exceeded")
    if asked is not None and asked > options.max_tokens:
        most = f"this server writes at most {options.max_tokens:,}"
        raise refused(f"max_tokens = {asked:,} is out of range; {most}", "max_tokens")
    return min(unasked, room) if asked is None else asked
