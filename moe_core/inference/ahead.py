"""What the first page does without and most others need is loaded while the first one is read.

Importing torch and opening a model takes seconds, which the first click would otherwise wait for.
"""

from __future__ import annotations

import functools
import os
import threading

WAIT_POLICY = "OMP_WAIT_POLICY"
"""Torch's threads wait for each other in a busy loop, unless this says PASSIVE before torch is imported."""


def wait_without_spinning() -> None:
    """A pass through a small model has hundreds of short parallel parts. Beside other work, such as a training that the
    dashboard has started, busy waiting takes the processor from the very thread that is waited for."""
    os.environ.setdefault(WAIT_POLICY, "PASSIVE")


@functools.cache
def load_ahead() -> None:
    """Start to load, once in a server; returns at once."""
    threading.Thread(target=_load, name="load ahead", daemon=True).start()


def _load() -> None:
    import moe_core.inference.held_out
    import moe_core.inference.open
    import moe_core.inference.passages
    import moe_core.inference.tracing
    import moe_core.model.outline
    import moe_core.runs.checkpoint  # noqa: F401
