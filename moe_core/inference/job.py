"""Text that is being written: one background thread that fills a list, to be read as often as one likes.

Whoever reads it does not disturb the thread, a page that runs again included; it ends by itself at the last
token, or when it is told to stop.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from typing import TYPE_CHECKING

import numpy as np

from moe_core.errors import MoescopeError
from moe_core.routing.token_arrays import TokenArrays

if TYPE_CHECKING:
    from moe_core.inference.engine import GeneratedToken
    from moe_core.inference.protocol import LanguageModel, Loaded
    from moe_core.inference.sampling import SamplingConfig
    from moe_core.routing import Intervention, RoutingTrace

STOP_PATIENCE_SECONDS = 5.0


class GenerationJob:
    """One continuation of one prompt. Read `written` at any time; it only grows."""

    def __init__(
        self,
        loaded: Loaded | LanguageModel,
        prompt: str,
        sampling: SamplingConfig,
        intervention: Intervention | None = None,
    ) -> None:
        """Start at once; `intervention` changes the model for this job's thread only.

        Raises DataError when UTF-8 cannot hold the prompt, UsageError when the model has no such expert.
        """
        from moe_core.inference.engine import Engine, Request

        self.loaded, self.prompt, self.sampling = loaded, prompt, sampling
        engine = Engine(loaded)
        self.language = engine.model
        self.written: list[GeneratedToken] = []
        self.error: Exception | None = None
        """What ended the thread too early; the page shows it."""
        self.was_stopped = False
        self._generation = engine.start(Request(prompt, sampling, intervention=intervention))
        self._began = time.perf_counter()
        self._first_at: float | None = None
        self._ended: float | None = None
        self._thread = threading.Thread(target=self._write, name="generation", daemon=True)
        self._thread.start()
        _running.add(self)

    @property
    def is_running(self) -> bool:
        """False once the last token is written."""
        return self._ended is None

    @property
    def seconds(self) -> float:
        """Since the start, or the whole time once it has ended."""
        return (self._ended or time.perf_counter()) - self._began

    @property
    def tokens_per_second(self) -> float | None:
        """Speed of writing, reading the prompt not counted; None before the second token."""
        written = len(self.written)
        if self._first_at is None or written < 2:
            return None
        return (written - 1) / max((self._ended or time.perf_counter()) - self._first_at, 1e-9)

    @property
    def text(self) -> str:
        """What was written so far, without the prompt."""
        return "".join(token.text for token in list(self.written))

    def stop(self) -> None:
        """Ask the thread to end after the token it is writing."""
        self.was_stopped = self.is_running
        self._generation.cancel()

    def wait(self, seconds: float) -> None:
        """Block until it has ended, at most this long."""
        self._thread.join(seconds)

    def _write(self) -> None:
        try:
            for token in self._generation.tokens():
                self.written.append(token)
                self._first_at = self._first_at or time.perf_counter()
        except Exception as error:
            self.error = error
        finally:
            self._ended = time.perf_counter()

    def raise_error(self) -> None:
        """Raise what ended the thread too early, if anything did."""
        if isinstance(self.error, MoescopeError):
            raise self.error
        if self.error is not None:
            raise RuntimeError("generation ended by a fault of ours") from self.error


def arrays_of_job(job: GenerationJob) -> TokenArrays:
    """Prompt and what was written so far as the token view takes them; prompt tokens have no expert (index -1)."""
    written = list(job.written)
    tokenizer = job.language.tokenizer
    before = [tokenizer.token_bytes(i) for i in tokenizer.encode(job.prompt)]
    layers, top_k = job.language.moe_layers, job.language.top_k
    silent = np.full((len(layers), len(before), top_k), -1, np.int16)
    experts = np.stack([token.experts for token in written], axis=1) if written else silent[:, :0]
    scores = np.stack([token.scores for token in written], axis=1) if written else np.zeros(experts.shape, np.float32)
    return TokenArrays(
        tokens=[*before, *(tokenizer.token_bytes(token.token_id) for token in written)],
        layers=layers,
        num_experts=job.language.num_experts,
        indices=np.concatenate([silent, experts], axis=1),
        scores=np.concatenate([np.zeros(silent.shape, np.float32), scores], axis=1),
        losses=np.array([np.nan] * len(before) + [token.loss for token in written], np.float32),
    )


def trace_of_job(job: GenerationJob) -> RoutingTrace | None:
    """The routing of what was written; None while there is nothing."""
    from moe_core.routing import RoutingTrace

    written = list(job.written)
    if not written:
        return None
    token_ids = [token.token_id for token in written]
    return RoutingTrace.from_arrays(
        router_indices=np.stack([token.experts for token in written], axis=1),
        router_scores=np.stack([token.scores for token in written], axis=1),
        num_experts=job.language.num_experts,
        token_ids=token_ids,
        document_ids=np.zeros(len(written), np.int32),
        domains=["written"],
        layers=list(job.language.moe_layers),
        source=f"written by {job.language.name}",
        vocabulary={i: job.language.tokenizer.token_text(i) for i in set(token_ids)},
    )


_running: weakref.WeakSet[GenerationJob] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """A thread inside the model must not outlive the interpreter's end."""
    for job in list(_running):
        job.stop()
        job.wait(STOP_PATIENCE_SECONDS)
