"""The models that write for everyone a process serves, a dashboard's sessions and its API: each is in memory once."""

from __future__ import annotations

from functools import cache

from moe_core.inference.model_pool import ModelPool, RunSources


@cache
def shared_pool() -> ModelPool:
    """One for this process: the runs of its folder as they are at the moment, each opened when it is first asked."""
    return ModelPool(RunSources())
