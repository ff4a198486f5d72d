"""A fact hidden in a long text and asked for at its end: is it found, at which depth, in a text of which length?

The test is "needle in a haystack" (G. Kamradt, 2023), told by probabilities instead of written answers, so that models
far too small to hold a conversation can be asked: which of a few words follows the question? The answer is drawn by
chance among them, so a model that does not look at the fact is right as often as chance, whatever words it prefers.
Each text is read twice, with two answers in the fact, so that what a model prefers cancels in the margin.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from moe_core.errors import UsageError
from moe_core.progress import Progress
from moe_core.routing.statistics.intervals import mean_error, student_interval, wilson_of_shares
from moe_core.words import percent

if TYPE_CHECKING:
    from moe_core.data.tokenizer import TextTokenizer

ALTERNATIVES = 8
"""Answers to choose from, the right one among them: chance is 1 in 8."""
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Where the fact stands, as a part of the text before the question: 0 = at its beginning."""
WORDS = 100
"""The most frequent words that begin with different tokens; facts are made of them."""
_TOKENS_AT_ONCE = 8192

Logits = Callable[[torch.Tensor], torch.Tensor]
"""int64 [B, S] -> [B, V], behind the last token"""


@dataclass(frozen=True)
class Found:
    """How often the fact was found in so many trials of one kind."""

    trials: int
    right: float
    """Share of readings in which the named answer is likelier than all others; by chance 1 / ALTERNATIVES."""
    low: float
    high: float
    """95 % interval of it (Wilson)."""
    margin: float
    """How much likelier an answer gets, in nats, because the fact names it and not the other of two; by chance 0."""
    margin_low: float
    margin_high: float
    """95 % interval of it (Student)."""

    @property
    def verdict(self) -> str:
        """Whether it is found at all: "found", "noticed" (likelier, but not surely the likeliest), or "not seen"."""
        if not self.margin_low > 0:
            return "not seen"
        return "found" if self.low > 1 / ALTERNATIVES else "noticed"


@dataclass(frozen=True)
class NeedlesAtLength:
    """Texts of `length` tokens, question included."""

    length: int
    by_depth: tuple[Found, ...]
    """One of each of DEPTHS."""
    together: Found
    """All depths."""


@dataclass(frozen=True)
class Trial:
    """One fact."""

    text: NDArray[np.int64]
    """[T] token ids to hide it in."""
    fact: tuple[int, ...]
    question: tuple[int, ...]
    answers: tuple[int, ...]
    """First tokens of ALTERNATIVES words, all different; the fact names the first one."""
    other: tuple[int, ...]
    """The same fact with the second answer."""

    def ids(self, length: int, depth: float, other: bool = False) -> NDArray[np.int64]:
        """[length] the text's beginning with the fact, or the `other`, at `depth` and the question at the end."""
        fact = self.other if other else self.fact
        room = length - len(fact) - len(self.question)
        at = round(depth * room)
        parts = (self.text[:at], fact, self.text[at:room], self.question)
        return np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])


def trials_of(texts_NT: NDArray[np.int64], tokenizer: TextTokenizer, count: int, seed: int = 0) -> list[Trial]:
    """`count` facts about words of these texts, each to be hidden in one of them, from a place of its own on.

    "Remember: river is garden." is asked for as "Remember: river is", and so is "Remember: river is summer.". Raises
    UsageError where too few of the texts' words begin with different tokens.
    """
    words = _words(texts_NT, tokenizer)
    if len(words) <= ALTERNATIVES:
        raise UsageError(
            f"{len(words)} words of the text begin with different tokens; expected {ALTERNATIVES + 1} or more to make "
            "facts of: give another text with --data"
        )
    rng = np.random.default_rng(seed)
    names, trials = list(words), []
    for _ in range(count):
        key, *values = (names[place] for place in rng.choice(len(names), 1 + ALTERNATIVES, replace=False))
        question = f" Remember: {key} is"
        fact, other = (tuple(tokenizer.encode(f"{question} {value}.")) for value in values[:2])
        text_T = np.roll(texts_NT[rng.integers(len(texts_NT))], -int(rng.integers(texts_NT.shape[1])))
        answers = tuple(words[value] for value in values)
        trials.append(Trial(text_T, fact, tuple(tokenizer.encode(question)), answers, other))
    return trials


def least_length(trials: Sequence[Trial]) -> int:
    """Tokens of the shortest text in which these facts are hidden: half of it is filling."""
    return 2 * max(max(len(trial.fact), len(trial.other)) + len(trial.question) for trial in trials)


@torch.inference_mode()
def find_needles(
    logits: Logits, trials: Sequence[Trial], lengths: Sequence[int], progress: Progress | None = None
) -> tuple[NeedlesAtLength, ...]:
    """Ask for each trial's fact at each length and each of DEPTHS. Raises UsageError for a length without room."""
    least, found = least_length(trials), []
    for place, length in enumerate(lengths):
        if length < least:
            raise UsageError(f"a text of {length} tokens is too short to hide a fact in; expected {least} or more")
        margins_DN, right_DN = np.empty((len(DEPTHS), len(trials))), np.empty((len(DEPTHS), len(trials)))
        for row, depth in enumerate(DEPTHS):
            if progress is not None:
                progress("facts", len(DEPTHS) * sum(lengths[:place]) + row * length, len(DEPTHS) * sum(lengths))
            first_NA, second_NA = (_scores(logits, trials, length, depth, other) for other in (False, True))
            right_DN[row] = (_likeliest(first_NA, 0) + _likeliest(second_NA, 1)) / 2
            margins_DN[row] = (first_NA[:, 0] - first_NA[:, 1] - second_NA[:, 0] + second_NA[:, 1]) / 2
        # A fact's depths share its words: one trial is one fact, its depths together one value.
        by_depth = tuple(_found(right, margins) for right, margins in zip(right_DN, margins_DN, strict=True))
        found.append(NeedlesAtLength(length, by_depth, _found(right_DN.mean(axis=0), margins_DN.mean(axis=0))))
    return tuple(found)


def needle_verdict(found: Sequence[NeedlesAtLength], trained: int) -> str:
    """How far facts are found, in words."""
    chance = percent(1 / ALTERNATIVES)
    seen = [at for at in found if at.together.verdict == "found"]
    if not seen:
        noticed = [at.length for at in found if at.together.verdict == "noticed"]
        most = max(found, key=lambda at: at.together.right).together
        begin = f"Facts are not found: right in at most {percent(most.right)} of trials, {chance} by chance"
        if noticed:
            return f"{begin}. They leave a trace up to {max(noticed):,} tokens: the right answer gets likelier."
        return f"{begin}. A model that does not look back for a fact within its trained length shows nothing beyond it."
    furthest = max(seen, key=lambda at: at.length)
    right = furthest.together
    where = "beyond" if furthest.length > trained else "within"
    shallow = [
        f"{percent(depth)} of the text"
        for depth, cell in zip(DEPTHS, furthest.by_depth, strict=True)
        if cell.verdict != "found"
    ]
    but = f", but not surely at {', '.join(shallow)}" if shallow else ", at every depth"
    return (
        f"Facts are found in texts of up to {furthest.length:,} tokens, {where} the trained {trained:,}: right in "
        f"{percent(right.right)} of trials (95 % interval {percent(right.low)} to {percent(right.high)}; {chance} by "
        f"chance){but}."
    )


def _words(texts_NT: NDArray[np.int64], tokenizer: TextTokenizer) -> dict[str, int]:
    """The most frequent words of four letters or more, each with a first token of its own -> that token's id."""
    text = " ".join(tokenizer.decode(row.tolist()) for row in texts_NT)
    words: dict[str, int] = {}
    for word, _ in Counter(re.findall(r"(?<= )[a-z]{4,}(?=[ .,;])", text)).most_common():
        first = tokenizer.encode(f" {word}")[0]
        if first not in words.values():
            words[word] = first
        if len(words) == WORDS:
            break
    return words


def _scores(logits: Logits, trials: Sequence[Trial], length: int, depth: float, other: bool) -> NDArray[np.float64]:
    """[N, A] log-probability of each answer behind the question."""
    rows = max(1, _TOKENS_AT_ONCE // length)
    scores = []
    for at in range(0, len(trials), rows):
        part = trials[at : at + rows]
        last_BV = logits(torch.from_numpy(np.stack([trial.ids(length, depth, other) for trial in part])))
        answers_BA = torch.tensor([trial.answers for trial in part], device=last_BV.device)
        scores.append(last_BV.float().log_softmax(-1).gather(1, answers_BA).double().cpu().numpy())
    return np.concatenate(scores)


def _likeliest(scores_NA: NDArray[np.float64], answer: int) -> NDArray[np.float64]:
    """[N] 1 where the answer is likelier than all others, else 0; equally likely is not enough."""
    most_N: NDArray[np.float64] = np.delete(scores_NA, answer, axis=1).max(axis=1)
    return np.where(scores_NA[:, answer] > most_N, 1.0, 0.0)


def _found(right_N: NDArray[np.float64], margins_N: NDArray[np.float64]) -> Found:
    """`right_N`: share of right answers of each fact, 0..1."""
    n, share, mean = len(margins_N), float(right_N.mean()), float(margins_N.mean())
    low, high = wilson_of_shares(np.array([share]), np.array([n]))
    return Found(n, share, float(low[0]), float(high[0]), mean, *student_interval(mean, mean_error(margins_N), n - 1))
