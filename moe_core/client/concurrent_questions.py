"""What a server is asked while a trace is made: the routing of texts, the text of tokens."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import TypeVar

from anyio.from_thread import BlockingPortal

from moe_core.client.checking import CUT
from moe_core.client.connection import Connection, RefusedError
from moe_core.client.engines import Prompt, Served
from moe_core.data.document import Document
from moe_core.errors import ServerError

Item = TypeVar("Item")
Result = TypeVar("Result")
Answer = dict[str, object]
REPORT_SECONDS = 1.0
MOST_TOKEN_BYTES = 32 << 10
"""Of an answer for each token of a text, which has no more of them than bytes: 128 layers of 32 experts take 22 KiB."""
MOST_TOKEN_CHARACTERS = 200
"""Of a token's text: more is no token."""
_TOO_LONG = re.compile(r"context[ _]length|longer than the model")


@dataclass(frozen=True)
class Questions:
    """Puts questions to one server; the event loop behind `portal` waits for the answers."""

    portal: BlockingPortal
    connection: Connection
    served: Served
    concurrency: int
    """Questions under way at once, after the first was answered."""
    max_new_tokens: int
    cut_long_texts: bool
    """Whether of a text that is longer than the server's context the beginning is read; else it is refused."""

    def routing(
        self, documents: Sequence[Document], numbers: Sequence[int], report: Callable[[], None]
    ) -> Iterator[tuple[int, Answer]]:
        """The answers about the documents of these numbers, as they come.

        `report` is called about once a second. Raises ServerError.
        """

        async def ask(number: int) -> Answer:
            return await self._ask_document(documents[number], f"document {number}")

        return self._answers(ask, numbers, report)

    def token_texts(self, ids: Sequence[int], progress: Callable[[int], None]) -> Mapping[int, str] | None:
        """What each token stands for, with the space before it; None where the server does not say."""
        found: dict[int, str] = {}
        for token_id, text in self._answers(self._ask_token, ids, lambda: progress(len(found))):
            if text is None:
                return None
            found[token_id] = text
        return found

    def _answers(
        self, ask: Callable[[Item], Awaitable[Result]], items: Sequence[Item], report: Callable[[], None]
    ) -> Iterator[tuple[Item, Result]]:
        under_way: dict[Future[Result], Item] = {}
        rest = iter(items)
        allowed = 1
        try:
            while True:
                while len(under_way) < allowed and (item := next(rest, None)) is not None:
                    under_way[self.portal.start_task_soon(ask, item)] = item
                if not under_way:
                    return
                done, _ = wait(under_way, timeout=REPORT_SECONDS, return_when=FIRST_COMPLETED)
                report()
                # One that failed comes last, so that nothing is lost that came with it.
                for future in sorted(done, key=lambda one: one.exception() is not None):
                    yield under_way.pop(future), future.result()
                    allowed = self.concurrency
        finally:
            for future in under_way:
                future.cancel()

    async def _ask_document(self, document: Document, name: str) -> Answer:
        try:
            return await self._ask_prompt(document.text, name)
        except ServerError as error:
            if not isinstance(error, RefusedError) or not _TOO_LONG.search(error.words):
                raise ServerError(f"{name} ({document.source}): {error}") from None
            if not self.cut_long_texts:
                size = f" of {self.served.context:,} tokens" if self.served.context else ""
                size += f" with {self.max_new_tokens:,} new ones" if self.max_new_tokens else ""
                raise ServerError(
                    f"{name} ({document.source}, {len(document.text):,} characters) is longer than the server's "
                    f"context{size}: cut it or leave it out, start the server with more, or say --incomplete keep to "
                    "read its beginning alone"
                ) from None
        return await self._ask_prompt(await self._beginning(document, name), name) | {CUT: True}

    async def _ask_prompt(self, prompt: Prompt, name: str) -> Answer:
        dialect = self.served.dialect
        question = dialect.question(self.served.model, prompt, max(1, self.max_new_tokens))
        tokens = max(1, self.max_new_tokens) + (len(prompt.encode()) if isinstance(prompt, str) else len(prompt))
        answer = await self.connection.post(dialect.path, question, most_bytes=(1 << 20) + tokens * MOST_TOKEN_BYTES)
        if not isinstance(answer, dict):
            raise ServerError(f"the answer to {name} is {type(answer).__name__}; expected an object with its routing")
        return answer

    async def _beginning(self, document: Document, name: str) -> list[int]:
        """The ids of as much of a text as the server's context holds."""
        answer = await self.connection.post("/tokenize", {"model": self.served.model, "prompt": document.text})
        said = answer if isinstance(answer, dict) else {}
        ids, context = said.get("tokens"), self.served.context or said.get("max_model_len")
        if not isinstance(ids, list) or not all(isinstance(one, int) for one in ids) or not isinstance(context, int):
            raise ServerError(f"the server's /tokenize names no tokens for {name}; cut it, or leave it out")
        room = context - max(1, self.max_new_tokens) - self.served.dialect.spare_tokens
        if room < 1:
            raise ServerError(
                f"the server's context of {context:,} tokens has no room for a text and {self.max_new_tokens:,} new "
                "tokens; lower --max-new-tokens"
            )
        return ids[:room]

    async def _ask_token(self, token_id: int) -> str | None:
        # Twice in a row, for alone many tokenizers drop the space before it.
        question = {"model": self.served.model, "tokens": [token_id, token_id], "skip_special_tokens": False}
        try:
            answer = await self.connection.post("/detokenize", question)
        except RefusedError:
            return None
        found = answer.get("prompt", answer.get("text")) if isinstance(answer, dict) else None
        if not isinstance(found, str):
            return None
        return half_of_doubled(found.encode(errors="replace").decode())[:MOST_TOKEN_CHARACTERS]


def half_of_doubled(text: str) -> str:
    """What stands twice in `text`: "ab" of "abab", " ab" of "ab ab"; all of it where nothing does."""
    middle = len(text) // 2
    if len(text) % 2 == 0 and text[:middle] == text[middle:]:
        return text[:middle]
    if len(text) % 2 and text[middle] == " " and text[:middle] == text[middle + 1 :]:
        return text[middle:]
    return text
