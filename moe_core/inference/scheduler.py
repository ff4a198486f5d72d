"""Many requests at once: a thread that answers them together, a queue before it, and readers that may be slow.

    with Scheduler(Engine(model), slots=8, queue=32) as scheduler:
        generation = scheduler.start(Request("The tenant shall"))     # from any thread
        for event in generation:
            ...

A request's events are those that Engine.start gives, TokensAsText apart.
"""

from __future__ import annotations

import atexit
import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Generator
from types import TracebackType

from moe_core.errors import QueueFullError, ShutDownError, UsageError
from moe_core.inference.batch import PIECE, Batch
from moe_core.inference.counters import Counters, Counts
from moe_core.inference.engine import Engine, Generation
from moe_core.inference.mailbox import Mailbox, Told
from moe_core.inference.requests import Event, Finished, Request
from moe_core.inference.row import Row

SLOTS, QUEUE, ROOM = 8, 32, 1024


class Scheduler:
    """An engine in a thread of its own. `close` ends it; so does leaving its `with` block, or the interpreter."""

    def __init__(
        self, engine: Engine, *, slots: int = SLOTS, queue: int = QUEUE, room: int = ROOM, piece: int = PIECE
    ) -> None:
        """`slots` requests are answered together, `queue` more may wait.

        `room`: tokens of a request that wait for its reader with all that is known of them; what is written beyond
        that is kept as text. `piece`: tokens of a prompt that are read before others have their turn.
        Raises UsageError for a number out of range.
        """
        for name, value, least in (("slots", slots, 1), ("queue", queue, 0), ("room", room, 1), ("piece", piece, 1)):
            if value < least:
                raise UsageError(f"{name} = {value} is out of range; expected at least {least}")
        self.engine = engine
        self.slots, self.queue = slots, queue
        self._room, self._piece = room, piece
        self._changed = threading.Condition()
        """Guards what follows; the computing thread waits on it."""
        self._waiting: deque[Row] = deque()
        self._running: list[Row] = []
        self._began: dict[Row, float] = {}
        self._seconds: deque[float] = deque(maxlen=32)
        """What the last requests took, once they had a slot."""
        self._closing = False
        self._counters = Counters(len(engine.model.moe_layers), engine.model.num_experts)
        self._thread = threading.Thread(target=self._serve, name="scheduler", daemon=True)
        self._thread.start()
        _open.add(self)

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close(drain=error is None)

    @property
    def takes_turns(self) -> str:
        """Why requests of this model do not share a pass, for people; empty if they do.

        A model of the transformers library is tried out for it, the first time somebody asks.
        """
        return self.engine.model.reads_apart

    def start(
        self, request: Request, *, whole: bool = False, told: Told | None = None, further: bool = False
    ) -> Generation:
        """Queue a request; it is computed whether its events are read or not. Requests are let in as they come.

        `whole`: keep all that is known of every token, however late it is read. `told` is called in the computing
        thread whenever there is something for Generation.arrived, with True for the last of it; it must be quick and
        raise nothing. `further`: it belongs to a question that was let in and comes again, so that it is not counted
        where it is refused. Raises as Engine.start, QueueFullError when too many wait already, ShutDownError after
        `close`.
        """
        row = self.engine.row(request, Mailbox(None if whole else self._room, told))
        with self._changed:
            if self._closing:
                raise ShutDownError(f"{self.engine.model.name} takes no further request; ask another model")
            if len(self._waiting) + len(self._running) >= self.slots + self.queue:
                self._counters.add(refused=not further)
                seconds = self._seconds_to_room()
                raise QueueFullError(
                    f"{len(self._running)} requests are being answered and {len(self._waiting)} wait; "
                    f"try again in {seconds:.0f} s",
                    seconds,
                )
            self._waiting.append(row)
            self._counters.add(accepted=1)
            self._changed.notify_all()
        return Generation(request, self._received(row), lambda: self._cancel(row), row.mailbox.pop)

    @property
    def running(self) -> int:
        """Requests that are being answered; cheaper than `counts`."""
        return len(self._running)

    def counts(self) -> Counts:
        """What was done so far; cheap."""
        with self._changed:
            return self._counters.snapshot(len(self._waiting), len(self._running))

    def close(self, *, drain: bool = True, seconds: float | None = None) -> None:
        """Let nobody in any more, and return once all requests have ended.

        `drain`: answer what is queued and running, for at most `seconds`; what is left then, or all of it otherwise, is
        cancelled.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if drain:
            self._thread.join(seconds)
        with self._changed:
            for row in (*self._waiting, *self._running):
                row.cancelled.set()
            self._changed.notify_all()
        self._thread.join()

    def _received(self, row: Row) -> Generator[Event, None, None]:
        try:
            event = None
            while not isinstance(event, Finished):
                event = row.mailbox.wait()
                yield event
        finally:
            self._cancel(row)

    def _cancel(self, row: Row) -> None:
        row.cancelled.set()
        with self._changed:
            self._changed.notify_all()

    def _serve(self) -> None:
        """The computing thread."""
        engine = self.engine
        with Batch(
            engine.model, engine.kept, piece=self._piece, watch=self._counters.add_pass, folder=engine.folder
        ) as batch:
            while self._admit(batch):
                self._step(batch)

    def _admit(self, batch: Batch) -> bool:
        """Wait until there is something to do, and give the slots that are free. False: all is done."""
        with self._changed:
            while not self._waiting and not self._running:
                if self._closing:
                    return False
                self._changed.wait()
            for row in [row for row in self._waiting if row.cancelled.is_set()]:
                self._waiting.remove(row)
                row.finish("cancelled")
                self._counters.add_end(row)
                row.tell_end()
            while self._waiting and len(self._running) < self.slots:
                row = self._waiting.popleft()
                self._running.append(row)
                self._began[row] = time.monotonic()
                try:
                    batch.add(row)
                except Exception as error:  # the model cannot be watched
                    row.fail(error)
        return True

    def _step(self, batch: Batch) -> None:
        before = {row: (row.prompt_read, row.written) for row in self._running}
        try:
            batch.step()
        except Exception as error:  # a fault of ours, not of a request
            batch.close()
            for row in self._running:
                row.fail(error)
        self._count(before)
        with self._changed:
            ended = [row for row in self._running if row.ended is not None]
            for row in ended:
                self._running.remove(row)
                self._seconds.append(time.monotonic() - self._began.pop(row))
                self._counters.add_end(row)
        for row in ended:
            row.tell_end()

    def _count(self, before: dict[Row, tuple[int, int]]) -> None:
        prompts = [row for row, (prompt, _) in before.items() if row.prompt_read and not prompt]
        self._counters.add(
            prompt_tokens=sum(row.prompt_read for row in prompts),
            reused_tokens=sum(row.reused for row in prompts),
            written_tokens=sum(row.written - written for row, (_, written) in before.items()),
        )

    def _seconds_to_room(self) -> float:
        """When a slot may become free, by what the last requests took; a second where nothing is known yet."""
        if not self._seconds:
            return 1.0
        return max(1.0, math.ceil(sum(self._seconds) / len(self._seconds) / self.slots))


_open: weakref.WeakSet[Scheduler] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """A thread inside the model must not outlive the interpreter's end."""
    for scheduler in list(_open):
        scheduler.close(drain=False)
