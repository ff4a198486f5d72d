"""A thread as a file: Markdown for people, JSON for programs. Of its branches the one that is shown."""

from __future__ import annotations

import json
import re
import time
from dataclasses import asdict

from moe_core.conversations.store import Conversations
from moe_core.conversations.threads import Answer, Conversation, Message
from moe_core.words import count_of, fixed

_FENCE = re.compile(r"`{3,}")


def markdown_of(conversation: Conversation) -> str:
    """Every message word for word in a block of its own, so that nothing in it is taken for markup."""
    thread = conversation.thread
    lines = [f"# {_plain(thread.name)}", "", f"A conversation of {_date(thread.created_at)}, kept by Moescope.", ""]
    if thread.settings.system.strip():
        lines += ["## What the model is told first", "", *_block(thread.settings.system)]
    for message in conversation.messages:
        lines += ["## You" if message.answer is None else f"## {_plain(_about(message.answer))}", ""]
        lines += _block(message.text.strip())
        for other in message.compared:
            if other.answer is not None:
                lines += [f"### The same {_plain(_about(other.answer))}", "", *_block(other.text.strip())]
    return "\n".join(lines)


def json_of(conversation: Conversation, kept: Conversations) -> str:
    """With token ids, experts, weights and losses of each answer: experts[s][l][k] of token s, layer `layers`[l]."""
    thread = conversation.thread
    whole = {
        "format": "moescope conversation 1",
        "name": thread.name,
        "created_at": thread.created_at,
        "settings": asdict(thread.settings),
        "messages": [_record(message, kept) for message in conversation.messages],
    }
    return json.dumps(whole, ensure_ascii=False, indent=1, allow_nan=False)


def _record(message: Message, kept: Conversations) -> dict[str, object]:
    record: dict[str, object] = {"role": message.role, "text": message.text, "created_at": message.created_at}
    if message.answer is None:
        return record
    tokens = kept.tokens(message.id)
    record["answer"] = {
        **asdict(message.answer),
        "change": None if message.answer.change is None else message.answer.change.what,
    }
    if tokens is not None:
        losses = [round(float(loss), 4) if loss == loss else None for loss in tokens.losses]
        record["tokens"] = {
            "token_ids": tokens.token_ids.tolist(),
            "experts": tokens.experts.tolist(),
            "weights": [
                [[round(w, 4) for w in of_layer] for of_layer in of_token] for of_token in tokens.weights.tolist()
            ],
            "losses": losses,
        }
    if message.compared:
        record["compared"] = [_record(other, kept) for other in message.compared]
    return record


def _about(answer: Answer) -> str:
    name = answer.settings.model if answer.writer is None else answer.writer.name
    parts = [f"{name}{'' if answer.change is None else f' {answer.change.what}'}", count_of(answer.tokens, "token")]
    sampling = f"temperature {answer.settings.temperature:g}, seed {answer.settings.seed}"
    speed = answer.tokens_per_second
    return ", ".join([*parts, sampling, *([] if speed is None else [f"{fixed(speed, 0)} tokens/s"])])


def _block(text: str) -> list[str]:
    """A fence longer than any in the text."""
    fence = "`" * max(3, 1 + max((len(found) for found in _FENCE.findall(text)), default=0))
    return [f"{fence}text", text, fence, ""]


def _plain(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]()#+!|<>~$:^=-])", r"\\\1", text)


def _date(seconds: float) -> str:
    return time.strftime("%d %B %Y", time.localtime(seconds))
