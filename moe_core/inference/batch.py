"""Requests that a model answers together: they join and leave between passes, each with a text of its own length.

A step is a round: a piece of one prompt is read, then every text that is being written gets a token. Texts under the
same intervention share the pass; a text's tokens are those it gets alone, its logits the same but for rounding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack, nullcontext
from types import TracebackType

import torch

from moe_core.inference.kept_prefixes import KeptPrefixes
from moe_core.inference.prefix_folder import BLOCK, PrefixFolder
from moe_core.inference.protocol import JoinedTexts, LanguageModel, Reader, ReadTokens
from moe_core.inference.row import Row
from moe_core.inference.small_passes import threads_for
from moe_core.routing import Intervention, intervene

PIECE = 256
"""Tokens of a prompt that are read in a step. A longer piece holds up the texts that are being written, several short
ones cost a pass each."""
Watch = Callable[[list[ReadTokens]], None]
"""Is told what each pass has read, in the thread that steps."""


class Batch:
    """The rows under way. One thread at a time may use it; `with` takes everything off the model at the end."""

    def __init__(
        self,
        model: LanguageModel,
        kept: KeptPrefixes | None = None,
        *,
        piece: int = PIECE,
        watch: Watch | None = None,
        folder: PrefixFolder | None = None,
    ) -> None:
        """`folder`: where beginnings of prompts are looked for and kept; prompts are read in its blocks then."""
        self._model = model
        self._kept = kept
        self._folder = folder
        self._piece = piece if folder is None else BLOCK
        self._watch = watch
        self._rows: deque[Row] = deque()
        self._groups: dict[Intervention | None, _Group] = {}
        self._open = ExitStack()
        self._reader: Reader | None = None
        """Open while there are rows."""

    def __len__(self) -> int:
        return len(self._rows)

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def add(self, row: Row) -> None:
        """Let a request join: it takes part in the next step."""
        if self._reader is None:
            self._reader = self._open.enter_context(self._model.reading())
        self._rows.append(row)

    def close(self) -> None:
        """Give up all rows, whose readers are told nothing, and take everything off the model."""
        self._rows.clear()
        for group in self._groups.values():
            group.texts.close()
        self._groups.clear()
        self._reader = None
        self._open.close()

    @torch.inference_mode()
    def step(self) -> list[Row]:
        """A round. What goes wrong in a pass ends the rows that it was for, and no other.

        The rows that have ended have left; their readers are still to be told.
        """
        for row in self._rows:
            if row.cancelled.is_set():
                row.finish("cancelled")
            else:
                row.draw()
        left = self._let_leave()
        for change, group in list(self._groups.items()):
            # A text that starts anew has nothing here any more.
            self._settle(change, group, [row for row in group.rows if row.recent])
        self._read_a_prompt()
        writers: dict[Intervention | None, list[Row]] = {change: [] for change in self._groups}
        for row in self._rows:
            if row.writes and row.ended is None:
                writers.setdefault(row.request.change, []).append(row)
        for change, rows in writers.items():
            self._write(change, rows)
        return left + self._let_leave()

    def _read_a_prompt(self) -> None:
        """Read a piece of the prompt that has waited longest for its turn."""
        row = next((row for row in self._rows if row.waiting and not row.writes), None)
        if row is None:
            return
        self._rows.remove(row)
        self._rows.append(row)
        if not (row.recent or row.prompt_read or row.apart or row.scores):
            self._look_for_prefix(row)
        row.in_blocks &= not row.writes
        if not row.writes:
            whole = len(row.waiting) <= self._piece or bool(self._model.reads_apart)
            self._read_alone(row, len(row.waiting) if whole else self._piece)
            # The one token that may be left is written back in, perhaps together with those of others.
            if row.in_blocks and self._folder is not None and len(row.waiting) <= 1 and row.ended is None:
                self._folder.put(row.prefix(0))
                row.in_blocks = False

    def _look_for_prefix(self, row: Row) -> None:
        prefix = self._kept.take(row.request) if self._kept is not None else None
        if prefix is None and self._folder is not None and row.request.change is None:
            row.in_blocks = True
            prefix = self._folder.find(row.waiting)
        if prefix is None:
            return
        # The last token is always read: only so its logits are known.
        length = min(prefix.common_with(row.waiting), len(row.waiting) - 1)
        if not length or self._model.reads_apart:
            return
        cache = self._opened.cut(prefix.cache, length)
        if cache is not None:
            row.continue_from(prefix, length, cache)

    def _write(self, change: Intervention | None, rows: list[Row]) -> None:
        """One token for each of these rows, in one pass if the model can."""
        sharing = [row for row in rows if not row.apart]
        if self._model.reads_apart or len(sharing) < (2 if change is not None else self._opened.joins_from):
            sharing = []
        group = self._groups.get(change)
        if group is None and sharing:
            group = self._groups[change] = _Group(self._opened.join(changed=change is not None))
        if group is not None:
            self._write_together(change, group, sharing)
        for row in rows:
            if row not in sharing:
                self._read_alone(row, 1)

    def _write_together(self, change: Intervention | None, group: _Group, rows: list[Row]) -> None:
        if not self._settle(change, group, rows):
            return
        if not rows:
            self._groups.pop(change).texts.close()
            return
        try:
            token_ids = [row.waiting[0] for row in group.rows]
            draws = [row.next_draw for row in group.rows]
            found = self._passed(change, len(token_ids), lambda: group.texts.read(token_ids, draws))
        except Exception:
            self._take_apart(change, group.rows)
            return
        for row, read in zip(group.rows, found, strict=True):
            row.take_in(read)

    def _settle(self, change: Intervention | None, group: _Group, rows: list[Row]) -> bool:
        """Make these the rows of a group; False if that fails, for want of memory, and there is no group any more."""
        concerned = {*group.rows, *rows}
        try:
            group.settle(rows)
        except Exception:
            self._take_apart(change, concerned)
            return False
        return True

    def _take_apart(self, change: Intervention | None, rows: Iterable[Row]) -> None:
        """Whose fault it was is not known, nor what is left in the cache they share: each goes on for itself."""
        del self._groups[change]
        for row in rows:
            row.start_anew()

    def _read_alone(self, row: Row, count: int) -> None:
        tokens, reader = row.waiting[:count], self._opened
        try:
            (found,) = self._passed(
                row.request.change, count, lambda: [reader.read(tokens, row.cache, all_logits=row.scores)]
            )
            row.take_in(found)
        except Exception as error:
            row.fail(error)

    def _passed(
        self, change: Intervention | None, tokens: int, read: Callable[[], list[ReadTokens]]
    ) -> list[ReadTokens]:
        """One pass of the model that reads so many tokens, under an intervention."""
        with (
            threads_for(self._model, tokens),
            nullcontext() if change is None else intervene(self._model.model, change),
        ):
            found = read()
        if self._watch is not None:
            self._watch(found)
        return found

    @property
    def _opened(self) -> Reader:
        assert self._reader is not None, "there are rows"
        return self._reader

    def _let_leave(self) -> list[Row]:
        """Rows that have ended make room; the last one takes everything off the model."""
        left = [row for row in self._rows if row.ended is not None]
        for row in left:
            self._rows.remove(row)
            if self._kept is not None and row.request.thread and not isinstance(row.ended, Exception):
                self._keep(row, self._kept)
        if not self._rows:
            self.close()
        return left

    def _keep(self, row: Row, kept: KeptPrefixes) -> None:
        group = self._groups.get(row.request.change)
        if group is not None and row in group.rows:
            self._settle(row.request.change, group, [other for other in group.rows if other is not row])
        if row.cache is not None and not self._model.reads_apart:
            kept.put(row.request, row.prefix(self._opened.nbytes(row.cache)))


class _Group:
    """Rows whose texts are in one cache, in its order."""

    def __init__(self, texts: JoinedTexts) -> None:
        self.texts = texts
        self.rows: list[Row] = []

    def settle(self, wanted: list[Row]) -> None:
        """Let rows leave and join until these are the ones here."""
        for place in reversed(range(len(self.rows))):
            row = self.rows[place]
            if row not in wanted:
                del self.rows[place]
                cache = self.texts.take(place)
                # A text that starts anew, or is given up, needs none.
                row.cache = cache if row.recent else None
        for row in wanted:
            if row not in self.rows:
                self.texts.add(row.cache)
                row.cache = None
                self.rows.append(row)
