"""The one sentence in which a checkpoint is refused."""

from __future__ import annotations

from moe_core.errors import UsageError, shortened


def refuse_key(key: str, value: object, reason: str) -> UsageError:
    """The error for a key whose value our model does not have."""
    return UsageError(f"the checkpoint cannot be imported: its {key} is {shortened(value)}; {reason}")
