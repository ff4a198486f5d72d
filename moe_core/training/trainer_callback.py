"""`watch` for the Trainer of the transformers library, hence for the trainers of TRL.

trainer = Trainer(model, args, train_dataset=..., callbacks=[MoescopeCallback(run="mine")])
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from moe_core.training.trackers import Tracker
from moe_core.training.watch_probe import Probe
from moe_core.training.watching import EVERY, PROBE_EVERY, Watch

LOGGED = {
    "loss": "loss",
    "learning_rate": "learning_rate",
    "grad_norm": "gradient_norm",
    "aux_loss": "load_balancing_loss",
}
"""What the Trainer, or TRL's, logs, and what we call it."""


class MoescopeCallback(TrainerCallback):
    """Watch the experts while a Trainer trains. Arguments: see `watch`; the Trainer knows the steps itself, and its
    tokenizer unless another one is given.

    A training that goes on from a checkpoint goes on in its run, from the checkpoint's step. Errors at the beginning of
    a training raise as `watch` does; later ones end the watching, never the training.
    """

    def __init__(
        self,
        run: str,
        *,
        every: int = EVERY,
        probe: Probe | None = None,
        probe_every: int = PROBE_EVERY,
        tokenizer: Any = None,
        log_to: Sequence[Tracker] = (),
        root: str | Path | None = None,
    ) -> None:
        self._run, self._every, self._root = run, every, root
        self._probe, self._probe_every, self._tokenizer = probe, probe_every, tokenizer
        self._log_to = log_to
        self._watch: Watch | None = None
        self._ended_step = False

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002 - the library's signature, here and below
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        model: Any = None,
        processing_class: Any = None,
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Begin to watch."""
        self._close(RuntimeError("another training began"))  # of one that ended by an error, which nobody tells
        done = state.global_step
        self._watch = Watch(
            model,
            self._run,
            every=self._every,
            steps=state.max_steps,
            resume=done > 0,
            step=done,
            by_hand=True,
            probe=self._probe,
            probe_every=self._probe_every,
            tokenizer=self._tokenizer or processing_class,
            log_to=self._log_to,
            root=self._root,
        )

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """The step before has ended, and what it logged is known."""
        if self._watch is not None and self._ended_step:
            self._ended_step = False
            self._watch.step()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """The weights were updated."""
        self._ended_step = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        """Figures for the page."""
        found = {ours: logs[theirs] for theirs, ours in LOGGED.items() if isinstance((logs or {}).get(theirs), float)}
        if self._watch is not None and found:
            self._watch.record(**found)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Write what is left, and let go."""
        self.on_step_begin(args, state, control)
        self._close()

    def _close(self, error: BaseException | None = None) -> None:
        if self._watch is not None:
            self._watch.close(error)
        self._watch, self._ended_step = None, False
