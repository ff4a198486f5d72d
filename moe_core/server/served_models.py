"""The pool's models for whoever must not wait: a model is opened in a thread, once for all who ask meanwhile."""

from __future__ import annotations

import asyncio

from anyio import to_thread

from moe_core.errors import UnknownModelError
from moe_core.inference.model_pool import Loan, ModelPool
from moe_core.inference.scheduler import Scheduler


class ServedModels:
    """Used in one event loop."""

    def __init__(self, pool: ModelPool, default: str | None) -> None:
        """`default`: who names no model gets this one; None = the first."""
        self.pool = pool
        self._default = default
        self._opening: dict[str, asyncio.Task[Scheduler]] = {}

    async def name(self, given: str | None) -> str:
        """The name of the model that is meant. Raises UnknownModelError where there is none at all."""
        if given is not None:
            return given
        if self._default is not None:
            return self._default
        names = await to_thread.run_sync(self.pool.names)
        if not names:
            raise UnknownModelError("there is no model to ask; train a run, or open another folder of runs")
        return names[0]

    async def lend(self, name: str) -> Loan:
        """A model for as long as its answer takes. Raises as ModelPool.scheduler."""
        while (loan := await to_thread.run_sync(self.pool.lend, name)) is None:
            await self._open(name)
        return loan

    async def scheduler(self, name: str) -> Scheduler:
        """As ModelPool.scheduler."""
        found = await to_thread.run_sync(self.pool.opened, name)
        return await self._open(name) if found is None else found

    async def _open(self, name: str) -> Scheduler:
        task = self._opening.get(name)
        if task is None:
            task = asyncio.ensure_future(to_thread.run_sync(self.pool.scheduler, name))
            self._opening[name] = task
            task.add_done_callback(lambda ended: self._forget(name, ended))
        return await asyncio.shield(task)

    def _forget(self, name: str, ended: asyncio.Task[Scheduler]) -> None:
        del self._opening[name]
        if not ended.cancelled():
            ended.exception()  # whoever asked may have gone: it is no news to the loop
