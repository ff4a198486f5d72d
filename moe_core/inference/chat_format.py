"""A conversation as token ids that a model goes on from.

    prompt = chat_prompt(model, [Message("user", "What is a lease?")])
    Engine(model).start(Request(prompt.token_ids, stop=prompt.stop))

With the chat template of the model's tokenizer where it has one. A base model has none: it gets a plain transcript,
which it continues as it would any text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from moe_core.errors import UsageError
from moe_core.inference.chat_template import Message, Role
from moe_core.inference.foreign_tokenizer import IdTokenizer
from moe_core.inference.protocol import LanguageModel
from moe_core.inference.requests import prompt_ids

__all__ = ["ChatPrompt", "Message", "Role", "chat_prompt", "chat_prompt_in_window"]

_SPEAKERS: dict[Role, str] = {"system": "System", "user": "User", "assistant": "Assistant"}


@dataclass(frozen=True)
class ChatPrompt:
    """What a Request needs, so that the assistant speaks next."""

    token_ids: tuple[int, ...]
    stop: tuple[str, ...]
    """Strings before which the assistant's turn ends; none with a template, whose turns end with a control token."""
    has_template: bool
    """False: a base model, which was not trained to answer."""
    left_out: int = 0
    """How many of the oldest messages are not in it, see chat_prompt_in_window."""


def chat_prompt(model: LanguageModel, messages: Sequence[Message]) -> ChatPrompt:
    """The conversation so far. What a message says never becomes a control token.

    The answer to a plain transcript begins with a space, as words do. Raises UsageError for no messages, for messages
    that the model's template refuses, and for a model without a tokenizer.
    """
    if not messages:
        raise UsageError("there are no messages; expected at least one, such as a user's")
    if model.chat_template is not None:
        return ChatPrompt(tuple(model.chat_template.token_ids(messages)), (), has_template=True)
    if isinstance(model.tokenizer, IdTokenizer):
        raise UsageError(
            f"{model.name} came without a tokenizer, so nobody can talk with it; put its tokenizer.json beside the "
            "weights"
        )
    lines = [f"{_SPEAKERS[message.role]}: {message.content.strip()}" for message in messages]
    text = "\n".join([*lines, f"{_SPEAKERS['assistant']}:"])
    stop = tuple(f"\n{speaker}:" for speaker in _SPEAKERS.values())
    return ChatPrompt(tuple(prompt_ids(model, text)), stop, has_template=False)


def chat_prompt_in_window(model: LanguageModel, messages: Sequence[Message], answer_tokens: int) -> ChatPrompt:
    """As chat_prompt, without the oldest messages where all of them and an answer are longer than the model's window.

    Of the window an answer gets half at most. The system's message and the last one stay; those between go two by two,
    so that turns still alternate. What is too long even so is left to the engine, which reads its end. Raises as
    chat_prompt.
    """
    room = model.context_window - min(answer_tokens, model.context_window // 2)
    kept = list(messages)
    first = 1 if kept and kept[0].role == "system" else 0
    prompt = chat_prompt(model, kept)
    while len(prompt.token_ids) > room and len(kept) - first > 2:
        del kept[first : first + 2]
        prompt = chat_prompt(model, kept)
    return replace(prompt, left_out=len(messages) - len(kept))
