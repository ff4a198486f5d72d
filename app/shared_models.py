"""The models that write for all sessions of the dashboard, and for its API: each is in memory once."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moe_core.inference.model_pool import ModelPool


@cache
def shared_pool() -> ModelPool:
    """One for this server: the runs of its folder as they are at the moment, each opened when it is first asked."""
    from moe_core.inference.model_pool import ModelPool, RunSources

    return ModelPool(RunSources())
