"""A conversation as token ids that a model goes on from.

    prompt = chat_prompt(model, [Message("user", "What is a lease?")])
    Engine(model).start(Request(prompt.token_ids, stop=prompt.stop))

With the chat template of the model's tokenizer where it has one. A base model has none: it gets a plain transcript,
which it continues as it would any text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moe_core.errors import UsageError
from moe_core.inference.chat_template import Message, Role
from moe_core.inference.foreign_tokenizer import IdTokenizer
from moe_core.inference.protocol import LanguageModel
from moe_core.inference.requests import prompt_ids

__all__ = ["ChatPrompt", "Message", "Role", "chat_prompt"]

_SPEAKERS: dict[Role, str] = {"system": "System", "user": "User", "assistant": "Assistant"}


@dataclass(frozen=True)
class ChatPrompt:
    """What a Request needs, so that the assistant speaks next."""

    token_ids: tuple[int, ...]
    stop: tuple[str, ...]
    """Strings before which the assistant's turn ends; none with a template, whose turns end with a control token."""
    has_template: bool
    """False: a base model, which was not trained to answer."""


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
