"""Models by name, each opened when it is first asked for and answered by a scheduler of its own.

pool = ModelPool({"demo": run_source("demo")})
generation = pool.scheduler("demo").start(Request("The tenant shall"))
...
pool.close()
"""

from __future__ import annotations

import gc
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from moe_core.errors import ShutDownError, UnknownModelError, UsageError
from moe_core.inference.engine import Engine
from moe_core.inference.open import open_huggingface, open_run
from moe_core.inference.protocol import LanguageModel
from moe_core.inference.scheduler import QUEUE, SLOTS, Scheduler
from moe_core.runs.checkpoint import checkpoint_steps, find_checkpoint
from moe_core.runs.folder import RunFolder
from moe_core.runs.names import is_run_name
from moe_core.runs.places import run_names
from moe_core.words import listed

MOST_OPEN = 2
REST_SECONDS = 30.0
"""A model that is to leave waits no longer for whoever was lent it and asks nothing of it."""
MOST_NAMED = 20
"""Names in a message."""


@dataclass(frozen=True)
class ModelSource:
    """A model that can be opened."""

    open: Callable[[], LanguageModel]
    version: Callable[[], str] = str
    """What it would open now, cheap to ask: where it differs from what is open, as of a run that was trained on, that
    is replaced. Both raise MoescopeError for a model that cannot be opened."""


def run_source(name: str, root: str | Path | None = None, *, device: str = "cpu", dtype: str = "auto") -> ModelSource:
    """A run of ours: its newest checkpoint."""
    return ModelSource(
        lambda: open_run(name, root, device=device, dtype=dtype), lambda: str(find_checkpoint(RunFolder(name, root)))
    )


def huggingface_source(
    path_or_name: str | Path, *, device: str = "auto", dtype: str = "auto", trust_remote_code: bool = False
) -> ModelSource:
    """A model of the transformers library."""
    return ModelSource(
        lambda: open_huggingface(path_or_name, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    )


class RunSources(Mapping[str, ModelSource]):
    """The runs of a folder that have a checkpoint, as they are there at the moment."""

    def __init__(self, root: str | Path | None = None, *, device: str = "cpu", dtype: str = "auto") -> None:
        self._root, self._device, self._dtype = root, device, dtype

    def __getitem__(self, name: str) -> ModelSource:
        if not is_run_name(name) or not checkpoint_steps(RunFolder(name, self._root)):
            raise KeyError(name)
        return run_source(name, self._root, device=self._device, dtype=self._dtype)

    def __iter__(self) -> Iterator[str]:
        return (name for name in run_names(self._root) if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass(eq=False)
class _Open:
    scheduler: Scheduler
    version: str
    loans: int = 0

    @property
    def is_idle(self) -> bool:
        counts = self.scheduler.counts()
        return not (self.loans or counts.waiting or counts.running)


class Loan:
    """A model that takes requests until it is given back, whatever is to be opened meanwhile; see REST_SECONDS."""

    def __init__(self, scheduler: Scheduler, give_back: Callable[[], None]) -> None:
        """ModelPool.lend makes it."""
        self.scheduler = scheduler
        self._give_back: Callable[[], None] | None = give_back

    def give_back(self) -> None:
        """No further request comes of this loan. Once is enough."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back()


class ModelPool:
    """Any thread may call. `close` ends it; so does leaving its `with` block."""

    def __init__(
        self,
        sources: Mapping[str, ModelSource],
        *,
        most_open: int = MOST_OPEN,
        slots: int = SLOTS,
        queue: int = QUEUE,
        opened_first: Sequence[str] = (),
        prefix_cache: Path | None = None,
    ) -> None:
        """`most_open`: models in memory at once. `slots`, `queue`: of each one's Scheduler. `opened_first`: names that
        `open_first` opens; until it has, the pool is not ready. `prefix_cache`: see Engine. Raises UsageError for a
        number out of range.
        """
        if most_open < 1:
            raise UsageError(f"most_open = {most_open} is out of range; expected at least 1")
        self._sources, self._prefix_cache = sources, prefix_cache
        self._most_open = most_open
        self._slots, self._queue = slots, queue
        self._first = tuple(opened_first)
        self._changed = threading.Condition()
        """Guards what follows; held for moments only."""
        self._models: OrderedDict[str, _Open] = OrderedDict()
        """The least recently asked for first."""
        self._leaving: list[_Open] = []
        """Those whose requests are ending."""
        self._is_ready = not self._first
        self._is_closing = False
        self._opening = threading.Lock()
        """Held while a model is opened: two at once would need memory that only one has."""

    def __enter__(self) -> ModelPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close(drain=error is None)

    @property
    def is_ready(self) -> bool:
        """Whether the models that are to be opened first are open, and it is not being closed."""
        return self._is_ready and not self._is_closing

    @property
    def is_closing(self) -> bool:
        """Whether `close` was called."""
        return self._is_closing

    def names(self) -> list[str]:
        """All that can be asked for, in the order in which they were given."""
        return list(self._sources)

    def open_first(self) -> None:
        """Open the models that are to be opened first. Raises as `scheduler`."""
        for name in self._first:
            self.scheduler(name)
        self._is_ready = True

    def open_schedulers(self) -> dict[str, Scheduler]:
        """The models that are open now, by name."""
        with self._changed:
            return {name: found.scheduler for name, found in self._models.items()}

    def opened(self, name: str) -> Scheduler | None:
        """The scheduler of a model if that is open and as new as there is; waits for nothing.

        Raises UnknownModelError, and ShutDownError after `close`.
        """
        version = self._source(name).version()
        with self._changed:
            found = self._newest(name, version)
            return None if found is None else found.scheduler

    def lend(self, name: str) -> Loan | None:
        """The same, to be given back: for several requests that belong together. Raises as `opened`."""
        version = self._source(name).version()
        with self._changed:
            if self._is_closing:
                raise self._shut_down()
            found = self._newest(name, version)
            if found is None:
                return None
            found.loans += 1
            return Loan(found.scheduler, lambda: self._take_back(found))

    def scheduler(self, name: str) -> Scheduler:
        """The scheduler of a model, which is opened if it is not.

        Where there is no room, the model that was asked for least recently makes it, one that answers nothing if there
        is any; else its requests end first. The same goes for one that is replaced. A scheduler that was not lent may
        be closed so at any time: its `start` then raises ShutDownError, and the next call here gives another one.
        Raises UnknownModelError, ShutDownError after `close`, and whatever opening raises.
        """
        if (found := self.opened(name)) is not None:
            return found
        with self._opening:
            if (found := self.opened(name)) is not None:
                return found
            source = self._source(name)
            version = source.version()
            while (leaving := self._leaves_for(name)) is not None:
                self._end(leaving)
                del leaving
                gc.collect()  # models hold on to themselves by their hooks
            engine = Engine(source.open(), prefix_cache=self._prefix_cache)
            scheduler = Scheduler(engine, slots=self._slots, queue=self._queue)
            with self._changed:
                if not self._is_closing:
                    self._models[name] = _Open(scheduler, version)
                    return scheduler
            scheduler.close(drain=False)
            raise self._shut_down()

    def close(self, *, drain: bool = True, seconds: float | None = None) -> None:
        """Open nothing any more, lend nothing, and return once all requests have ended; see Scheduler.close."""
        until = None if seconds is None else time.monotonic() + seconds
        with self._changed:
            self._is_closing = True
            models = [*self._models.values(), *self._leaving]
            if drain:
                self._changed.wait_for(lambda: not any(found.loans for found in models), seconds)
        rest = None if until is None else max(0.0, until - time.monotonic())
        threads = [
            threading.Thread(target=found.scheduler.close, kwargs={"drain": drain, "seconds": rest}, daemon=True)
            for found in models
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _source(self, name: str) -> ModelSource:
        if self._is_closing:
            raise self._shut_down()
        source = self._sources.get(name)
        if source is None:
            names = self.names()
            shown = listed([repr(each) for each in names[:MOST_NAMED]]) if names else "none, as there is no model"
            more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
            raise UnknownModelError(f"there is no model {name[:80]!r}; expected one of {shown}{more}")
        return source

    def _newest(self, name: str, version: str) -> _Open | None:
        found = self._models.get(name)
        if found is None or found.version != version:
            return None
        self._models.move_to_end(name)
        return found

    def _take_back(self, found: _Open) -> None:
        with self._changed:
            found.loans -= 1
            self._changed.notify_all()

    def _end(self, leaving: _Open) -> None:
        with self._changed:
            asked_before = -1
            while not self._changed.wait_for(lambda: not leaving.loans, REST_SECONDS):
                counts = leaving.scheduler.counts()
                if not (counts.waiting or counts.running) and counts.accepted == asked_before:
                    break
                asked_before = counts.accepted
        leaving.scheduler.close(drain=True)
        with self._changed:
            self._leaving.remove(leaving)

    def _leaves_for(self, name: str) -> _Open | None:
        """Take out the model that makes room for another one, or for a newer version of itself; None if none has to."""
        with self._changed:
            if name in self._models:
                leaves = name
            elif len(self._models) < self._most_open:
                return None
            else:
                leaves = next((each for each, found in self._models.items() if found.is_idle), next(iter(self._models)))
            leaving = self._models.pop(leaves)
            self._leaving.append(leaving)
            return leaving

    def _shut_down(self) -> ShutDownError:
        return ShutDownError("the models are being taken down; no further request is taken")
