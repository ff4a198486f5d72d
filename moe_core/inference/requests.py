"""What is asked of the engine and what it answers: a Request, events one after the other, a Completion of all of them.

Experts and weights are [S, L, K]: S positions, L MoE layers, K slots.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moe_core.errors import UsageError
from moe_core.inference.grammar import Grammar
from moe_core.inference.protocol import LanguageModel
from moe_core.inference.sampling import SamplingConfig
from moe_core.routing import Intervention

Ending = Literal["end of text", "length", "stop", "cancelled"]
"""The model ended the text; max_new_tokens are written; a stop string came; somebody called cancel."""


@dataclass(frozen=True)
class Request:
    """What is to be written. Raises UsageError for an empty stop string."""

    prompt: str | tuple[int, ...]
    """Text to continue, before which the model's begin of text is put where it has one; or token ids, read as they are.
    """
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How tokens are drawn, from which seed, and how many at most."""
    stop: tuple[str, ...] = ()
    """The text ends before the first of these strings; each of at least one character."""
    intervention: Intervention | None = None
    """What is done to experts, for this request alone, while the prompt is read, too."""
    thread: str = ""
    """Requests of one conversation share a name: what the last one has read and written is kept, as far as there is
    room, and is not read again where the next one's prompt begins with it. Empty: nothing is kept."""

    grammar: Grammar | None = None
    """What the text must look like; it can end only where it is complete."""
    likeliest: int = 0
    """How many of the likeliest tokens are told at each place of what is written; 0 = none."""
    score_prompt: bool = False
    """Whether PromptRead tells what the model expected in the prompt, too; nothing kept of a thread is used then."""

    def __post_init__(self) -> None:
        if self.likeliest < 0:
            raise UsageError(f"likeliest = {self.likeliest} is out of range; expected 0 or more")
        given: tuple[object, ...] | str = self.stop  # whatever the annotation says, a caller may hand over
        if isinstance(given, str) or not all(isinstance(stop, str) and stop for stop in given):
            raise UsageError(f"stop = {self.stop!r}; expected a tuple of strings of at least one character")

    @property
    def change(self) -> Intervention | None:
        """The intervention; None too if it changes nothing. Requests of equal changes can share a pass."""
        return self.intervention if self.intervention is not None and self.intervention.describe() else None


@dataclass(frozen=True, eq=False)
class PromptRead:
    """The prompt is read, as far as it fits the model's window: the last tokens of a longer one."""

    token_ids: tuple[int, ...]
    """[S] what was read, the begin of text included."""
    experts: NDArray[np.int16]
    """[S, L, K] chosen experts; -1 = unused slot."""
    scores: NDArray[np.float32]
    """[S, L, K] combine weights."""
    reused: int
    """How many of them, from the beginning, the request's thread had read before, or a folder of prefixes kept."""
    losses: tuple[float, ...] = ()
    """S - 1 losses of the second token and those after it, as GeneratedToken.loss; none unless asked for."""
    likeliest: tuple[tuple[tuple[int, float], ...], ...] = ()
    """As GeneratedToken.likeliest, of the same tokens."""


@dataclass(frozen=True, eq=False)
class GeneratedToken:
    """One token the model wrote, and its way through the model when it was read back in."""

    token_id: int
    text: str
    """The characters that can be shown once it is there: never part of a character or of a stop string, so perhaps none
    or some of an earlier token."""
    experts: NDArray[np.int16]
    """[L, K] chosen experts per MoE layer; -1 = unused slot."""
    scores: NDArray[np.float32]
    """[L, K] combine weights."""
    loss: float
    """Nats: -ln of its probability under the model itself, at temperature 1 and without top-k or top-p."""
    likeliest: tuple[tuple[int, float], ...] = ()
    """As many as the request asks for: token ids at this place and ln of their probabilities, the likeliest first."""


@dataclass(frozen=True)
class TokensAsText:
    """What was written while the scheduler's reader was too far behind: experts and losses were not kept."""

    text: str
    """As GeneratedToken.text, of all of them."""
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class EndToken:
    """The token with which the model ended the text; it was drawn, but never read."""

    token_id: int
    loss: float
    """As GeneratedToken.loss."""
    likeliest: tuple[tuple[int, float], ...] = ()
    """As GeneratedToken.likeliest."""


@dataclass(frozen=True)
class Finished:
    """The last event."""

    reason: Ending
    text: str
    """Characters that were held back because a stop string could have begun with them."""
    end_token: EndToken | None = None
    """Of a text that the model ended."""


Event = PromptRead | GeneratedToken | TokensAsText | Finished


@dataclass(frozen=True, eq=False)
class Completion:
    """All that came of a request."""

    text: str
    tokens: tuple[GeneratedToken, ...]
    """All but those of a TokensAsText."""
    reason: Ending


def prompt_ids(model: LanguageModel, prompt: str | tuple[int, ...]) -> list[int]:
    """A prompt's token ids. Raises UsageError where there would be none, DataError when UTF-8 cannot hold it."""
    if not isinstance(prompt, str):
        if not prompt:
            raise UsageError("the prompt has no token ids; expected at least one, or a text")
        return list(prompt)
    begin = [] if model.tokenizer.end_of_text is None else [model.tokenizer.end_of_text]
    token_ids = [*begin, *model.tokenizer.encode(prompt)]
    if not token_ids:
        raise UsageError(f"{model.name} has no token that begins a text; expected a prompt of at least one token")
    return token_ids
