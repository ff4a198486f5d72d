"""One request on its way through a batch: what it has read, how its next token is drawn, which events it sends."""

from __future__ import annotations

import codecs
import threading
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from moe_core.inference.grammar import Constraint
from moe_core.inference.kept_prefixes import Prefix
from moe_core.inference.mailbox import Mailbox
from moe_core.inference.protocol import Draw, LanguageModel, ReadTokens
from moe_core.inference.requests import Ending, EndToken, Finished, GeneratedToken, PromptRead, Request
from moe_core.inference.sampling import check_finite, sample
from moe_core.inference.stop_strings import StopStrings

Likeliest = tuple[tuple[int, float], ...]
_SCORED_AT_ONCE = 2**22
"""Logits of a prompt that are made float64 at once."""


class _Drawn(NamedTuple):
    """A token that is drawn and not read yet; see GeneratedToken."""

    token_id: int
    loss: float
    likeliest: Likeliest


class Row:
    """A request's own state. Whoever runs the batch calls its methods, one thread at a time; `cancelled` anybody sets.

    Tokens go from `waiting` to `recent` as the model reads them. A text that fills the window goes on from its later
    half, which then waits to be read anew.
    """

    def __init__(self, model: LanguageModel, request: Request, token_ids: list[int], mailbox: Mailbox) -> None:
        self.request = request
        self.mailbox = mailbox
        self.cancelled = threading.Event()
        self.ended: Ending | Exception | None = None
        """How it ended; None while it is under way."""
        self.waiting = token_ids[-model.context_window :]
        """Tokens to read next."""
        self.recent: list[int] = []
        """Tokens in its cache."""
        self.cache: Any = None
        """None before the first token, and while it is in a cache with others."""
        self.apart = False
        """Whether it needs passes of its own, because one that it shared failed."""
        self.in_blocks = False
        """Whether its prompt is read in whole blocks from the first token on, for a folder of prefixes."""
        self.written = 0
        """Tokens it has sent."""
        self.reused = 0
        """Tokens of its prompt that were in a kept cache."""
        self._model = model
        self._routing: list[tuple[NDArray[np.int16], NDArray[np.float32]]] = []
        """Of `recent`, in the pieces in which they were read; no longer once the prompt is sent, without a thread."""
        self._random = torch.Generator().manual_seed(request.sampling.seed)
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stops = StopStrings(request.stop)
        grammar = request.grammar
        self._constraint = None if grammar is None else Constraint(model, grammar, token_ids)
        self._logits: torch.Tensor | None = None
        self._drawn_ahead: tuple[int, float] | None = None
        """See ReadTokens.drawn."""
        self.prompt_read = 0
        """Tokens of the prompt, as far as they fit the window, once all are read; before that 0."""
        self._drawn: _Drawn | None = None
        """The token that is being read back in, or the one that ended the text."""
        self._prompt_losses: list[float] = []
        self._prompt_likeliest: list[Likeliest] = []
        """Of the tokens behind the first one, as far as it is read."""

    @property
    def scores(self) -> bool:
        """Whether it needs to know what the model expects behind each token that it reads."""
        return self.request.score_prompt and not self.prompt_read

    @property
    def writes(self) -> bool:
        """Whether it has read all but one token, which a pass can read for many rows at once."""
        return len(self.waiting) == 1 and bool(self.recent)

    @property
    def next_draw(self) -> Draw:
        """How the token behind the next one is drawn, for a device that does it."""
        if self._constraint is not None:  # no device knows the grammar: what it draws is not used
            return Draw(self.request.sampling, lambda: 0.0)
        return Draw(self.request.sampling, self._uniform)

    def continue_from(self, prefix: Prefix, length: int, cache: Any) -> None:
        """Begin behind the first `length` tokens of a prefix, which are in `cache`."""
        self.recent, self.waiting = self.waiting[:length], self.waiting[length:]
        self.cache, self.reused = cache, length
        self._routing = [(prefix.experts[:length], prefix.scores[:length])]

    def draw(self) -> None:
        """Draw the next token if the last one is read; the text may end here. A fault ends this row alone."""
        if self.waiting or self._logits is None:
            return
        try:
            self._drawn = self._draw(self._logits)
            token_id = self._drawn.token_id
            if token_id in self._model.end_ids:
                self.finish("end of text")
                return
        except Exception as error:
            self.fail(error)
            return
        self._logits = None
        window = self._model.context_window
        if len(self.recent) + 1 > window:
            self.waiting = [*self.recent, token_id][-max(window // 2, 1) :]
            self.forget()
        else:
            self.waiting = [token_id]

    def take_in(self, found: ReadTokens) -> None:
        """The first of the waiting tokens, as many as `found` tells of, are read."""
        count = len(found.experts)
        if self.scores and found.all_logits is not None:
            self._score(found.all_logits, self.waiting[1 : count + 1])
        self.recent += self.waiting[:count]
        del self.waiting[:count]
        self.cache = found.cache
        if self.request.thread or not self.prompt_read:
            self._routing.append((found.experts, found.scores))
        if self.waiting:
            return
        self._logits, self._drawn_ahead = found.logits, found.drawn
        if not self.prompt_read:
            self.prompt_read = len(self.recent)
            scored = tuple(self._prompt_losses), tuple(self._prompt_likeliest)
            self.mailbox.put(PromptRead(tuple(self.recent), *self._joined_routing(), self.reused, *scored))
        else:
            self._send_token(found)

    def start_anew(self) -> None:
        """Read everything again, in passes of its own."""
        self.waiting = [*self.recent, *self.waiting]
        self.apart = True
        self.reused = 0
        self.forget()

    def forget(self) -> None:
        """Its cache is of no more use."""
        self.recent, self.cache, self._routing = [], None, []

    def finish(self, reason: Ending) -> None:
        """It has ended well, or was cancelled."""
        self.ended = reason

    def fail(self, error: Exception) -> None:
        """It has ended by a fault."""
        self.ended = error

    def tell_end(self) -> None:
        """Send the last event, or raise what went wrong where the events are read.

        Apart from the end itself, so that its slot is free and its thread's prefix kept once its reader knows.
        """
        if isinstance(self.ended, Exception):
            self.mailbox.fail(self.ended)
        elif self.ended is not None:
            end = EndToken(*self._drawn) if self.ended == "end of text" and self._drawn else None
            self.mailbox.put(Finished(self.ended, self._stops.rest(), end))

    def prefix(self, nbytes: int) -> Prefix:
        """What it has read, for its thread's next request."""
        return Prefix(tuple(self.recent), *self._joined_routing(), self.cache, nbytes)

    def _draw(self, logits_V: torch.Tensor) -> _Drawn:
        if self._drawn_ahead is not None and self._constraint is None:
            token_id, loss = self._drawn_ahead
            check_finite(loss)
            if not self.request.likeliest:
                return _Drawn(token_id, loss, ())
        logits_V = logits_V.cpu().double()
        if self._constraint is not None:
            check_finite(float(logits_V.max()))
            token_id = sample(self._constraint.masked(logits_V), self.request.sampling, self._random)
            self._constraint.add(token_id)
        elif self._drawn_ahead is None:
            token_id = sample(logits_V, self.request.sampling, self._random)
        return _Drawn(token_id, *self._expected(logits_V, token_id))

    def _uniform(self) -> float:
        return float(torch.rand((), generator=self._random, dtype=torch.float64))

    def _send_token(self, found: ReadTokens) -> None:
        assert self._drawn is not None
        token_id, loss, likeliest = self._drawn
        text, stopped = self._stops.add(self._characters.decode(self._model.tokenizer.token_bytes(token_id)))
        self.mailbox.put(GeneratedToken(token_id, text, found.experts[-1], found.scores[-1], loss, likeliest))
        self.written += 1
        if stopped:
            self.finish("stop")
        elif self.written == self.request.sampling.max_new_tokens:
            self.finish("length")

    def _score(self, logits_SV: torch.Tensor, targets: list[int]) -> None:
        """Note what the model expected where the prompt goes on with these tokens."""
        rows = max(1, _SCORED_AT_ONCE // logits_SV.shape[1])
        for begin in range(0, len(targets), rows):
            some = targets[begin : begin + rows]
            for logits_V, target in zip(logits_SV[begin : begin + len(some)].cpu().double(), some, strict=True):
                loss, likeliest = self._expected(logits_V, target)
                self._prompt_losses.append(loss)
                self._prompt_likeliest.append(likeliest)

    def _expected(self, logits_V: torch.Tensor, token_id: int) -> tuple[float, Likeliest]:
        """A token's loss, and the likeliest tokens in its place; see GeneratedToken."""
        total = torch.logsumexp(logits_V, 0)
        loss = float(total - logits_V[token_id])
        if not self.request.likeliest:
            return loss, ()
        top = logits_V.topk(min(self.request.likeliest, len(logits_V)))
        return loss, tuple(zip(top.indices.tolist(), (top.values - total).tolist(), strict=True))

    def _joined_routing(self) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
        """[S, L, K] experts and weights of all `recent` tokens."""
        if len(self._routing) > 1:
            experts, scores = zip(*self._routing, strict=True)
            self._routing = [(np.concatenate(experts), np.concatenate(scores))]
        return self._routing[0]
