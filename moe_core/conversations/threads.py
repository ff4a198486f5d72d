"""What a conversation is made of: a thread has messages in a tree, and an answer knows how it was written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field

from moe_core.routing.instruments.change import Change

Role = Literal["user", "assistant"]
Ending = Literal["end of text", "length", "stop", "cancelled", "failed", "interrupted"]
"""The model ended the text; as many tokens as were asked for; a stop string came; somebody stopped it; it went wrong;
the program ended. The first four are those of moe_core.inference.requests."""
SILENT_SECONDS = 10.0
"""Who writes an answer says so every half second: after so long nobody writes it any more."""


@dataclass(frozen=True)
class Settings:
    """How answers are written. Checked by inference.sampling when one is asked for."""

    __pydantic_config__ = ConfigDict(extra="ignore")

    model: Annotated[str, Field(max_length=1000)]
    """A run, or what was opened, by its name."""
    max_new_tokens: int = 200
    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 0.95
    seed: int = 0
    system: str = ""
    """What the model is told before the first message; "" = nothing."""


@dataclass(frozen=True)
class Writer:
    """The model that wrote an answer, as far as showing its routing takes."""

    __pydantic_config__ = ConfigDict(extra="ignore")

    name: str
    """For people, such as "run demo, step 350"."""
    layers: tuple[int, ...]
    """[L] numbers of its MoE layers; none of a dense model."""
    num_experts: int
    top_k: int
    context_window: int
    """Tokens it sees at once, at most."""
    answers: bool
    """Whether it was taught to answer; a base model continues text."""


@dataclass(frozen=True)
class Thread:
    """A conversation, without its messages."""

    id: str
    """128 random bits in hexadecimal digits; stands in a URL."""
    name: str
    created_at: float
    used_at: float
    """When a message was added last; seconds since 1970."""
    settings: Settings
    """Of the next answer."""


@dataclass(frozen=True)
class Found:
    """A thread in a list, with what a search found in it."""

    thread: Thread
    message: int | None = None
    """The message that the text was found in; None where it is in the thread's name, and without a search."""
    excerpt: str = ""
    """Some of that message, on one line."""


@dataclass(frozen=True)
class Answer:
    """How an answer was or is being written."""

    settings: Settings
    change: Change | None
    """What was done to experts of the model."""
    writer: Writer | None
    """None until the model is open."""
    ending: Ending | None
    """None while it is written, and where its writer was killed."""
    error: str
    """What went wrong, in one sentence; "" where nothing did."""
    tokens: int
    """Written so far."""
    prompt_tokens: int
    """Read before; 0 until they are."""
    left_out: int
    """Messages at the beginning of the thread that the model's window has no room for."""
    first_seconds: float
    """From the question to the first token."""
    seconds: float
    """From the first token to the last one."""
    heard_at: float
    """When its writer was last heard of; seconds since 1970."""

    def is_written(self, now: float) -> bool:
        """Whether somebody is writing it now."""
        return self.ending is None and abs(now - self.heard_at) < SILENT_SECONDS

    @property
    def tokens_per_second(self) -> float | None:
        """Reading the prompt not counted; None before the second token."""
        return (self.tokens - 1) / self.seconds if self.tokens > 1 and self.seconds > 0 else None


@dataclass(frozen=True)
class Message:
    """One message of the branch that is shown."""

    id: int
    parent: int | None
    role: Role
    text: str
    created_at: float
    siblings: tuple[int, ...]
    """Ids of the messages that stand at its place in one branch each, itself among them, the oldest first."""
    answer: Answer | None
    """None of a user's message."""
    compared: tuple[Message, ...] = ()
    """The same answer by a changed model, the oldest first; of no branch."""

    @property
    def place(self) -> int:
        """Among its siblings, from 1."""
        return self.siblings.index(self.id) + 1


@dataclass(frozen=True)
class Conversation:
    """A thread with the messages of the branch that is shown."""

    thread: Thread
    messages: tuple[Message, ...]

    def find(self, message: int) -> Message | None:
        """The message with this id, if it is shown."""
        return next((one for one in self.messages if one.id == message), None)

    def written(self, now: float) -> Message | None:
        """The first answer that is being written now, a changed model's included."""
        shown = (one for message in self.messages for one in (message, *message.compared))
        return next((one for one in shown if one.answer is not None and one.answer.is_written(now)), None)


@dataclass(frozen=True, eq=False)
class WrittenTokens:
    """S tokens of an answer in L layers, K slots each."""

    token_ids: npt.NDArray[np.int32]
    """[S]"""
    pieces: tuple[bytes, ...]
    """[S] UTF-8 bytes of each token, perhaps part of a character."""
    experts: npt.NDArray[np.int16]
    """[S, L, K] chosen experts; -1 = unused slot."""
    weights: npt.NDArray[np.float32]
    """[S, L, K] combine weights, rounded to 11 bits."""
    losses: npt.NDArray[np.float32]
    """[S] nats under the model itself."""
