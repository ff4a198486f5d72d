"""JSON to a server and back: bounded in time and in size, and patient with one that is busy or gone for a while."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any

import anyio
import httpx2

from moe_core.client.address import is_loopback, redirected
from moe_core.errors import ServerError, UsageError, shortened

BUSY = (408, 429, 502, 503, 504)
"""Status codes after which the same question is asked again."""
REDIRECTS = (301, 302, 303, 307, 308)
MOST_REDIRECTS = 3
CONNECT_SECONDS = 10.0
LONGEST_PAUSE = 60.0
"""Seconds between two attempts, unless the server asks for more."""
MOST_BYTES = 16 << 20
"""Of an answer that holds no routing."""
MOST_CHARACTERS = 400
"""Of a server's own words in a message."""


@dataclass(frozen=True)
class Limits:
    """What a server may take."""

    seconds: float = 600.0
    """For one answer, from the question to the last byte."""
    attempts: int = 8
    """At one question; with their pauses some two minutes, as long as a server takes to start again."""
    first_pause: float = 1.0
    """Seconds before the second attempt; each further one waits twice as long, up to LONGEST_PAUSE."""
    longest_asked_pause: float = 600.0
    """Seconds that the server may ask us to wait (Retry-After)."""
    most_bytes: int = 256 << 20
    """Of any answer. Routing of 128,000 tokens through 60 layers of 8 experts takes some 160 MiB of it."""


class RefusedError(ServerError):
    """The server answered that it does not do this."""

    def __init__(self, message: str, status: int, words: str) -> None:
        super().__init__(message)
        self.status = status
        self.words = words
        """What the server said of it."""


class _TryAgain(Exception):  # noqa: N818 - no error yet
    """This attempt failed in a way that may pass."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause
        """Seconds that the server asks us to wait."""


class Connection:
    """Asks one server; several questions may be under way at once. Enter it (`async with`) before asking."""

    def __init__(self, address: httpx2.URL, api_key: str | None = None, limits: Limits | None = None) -> None:
        if api_key is not None and not re.fullmatch(r"[\x21-\x7e]+", api_key):
            raise UsageError("the API key has characters that no key has; expected letters, figures and signs")
        self.address = address
        self.limits = limits or Limits()
        self.trouble = ""
        """Why the last attempt failed, while it is repeated; empty where all is well."""
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        try:
            self._client = httpx2.AsyncClient(
                headers=headers | ({"Authorization": f"Bearer {api_key}"} if api_key else {}),
                timeout=httpx2.Timeout(None, connect=CONNECT_SECONDS),
                limits=httpx2.Limits(max_connections=None),
                trust_env=not is_loopback(address),
            )
        except (ImportError, ValueError, OSError, httpx2.InvalidURL) as error:
            raise UsageError(
                f"the proxy or the certificates that the environment names cannot be used ({error}); mend HTTP_PROXY, "
                f"ALL_PROXY or SSL_CERT_FILE, or put {address.host} into NO_PROXY"
            ) from None

    async def __aenter__(self) -> Connection:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.__aexit__(kind, error, trace)

    async def get(self, path: str, *, patient: bool = True) -> Any:
        """What the server answers at `path`, see post; one that is gone is asked again only where we are patient."""
        return await self._ask("GET", path, None, MOST_BYTES, patient)

    async def post(self, path: str, question: Mapping[str, Any], *, most_bytes: int = MOST_BYTES) -> Any:
        """The JSON that the server answers, of at most so many bytes. One that is busy or gone is asked again.

        Raises RefusedError for any other status than success, ServerError for whatever else is wrong.
        """
        return await self._ask("POST", path, json.dumps(question).encode(), most_bytes, patient=True)

    async def _ask(self, method: str, path: str, content: bytes | None, most_bytes: int, patient: bool) -> Any:
        most_bytes = min(most_bytes, self.limits.most_bytes)
        url = self.address.copy_with(path=self.address.path.rstrip("/") + path)
        pause = self.limits.first_pause
        for attempt in range(1, self.limits.attempts + 1):
            try:
                answer = _json_of(await self._bytes_within_time(method, url, content, most_bytes), url)
            except _TryAgain as failed:
                gone = failed.__cause__ is not None  # a status of BUSY has no cause
                if attempt == self.limits.attempts or (gone and not patient):
                    raise ServerError(_given_up(url, str(failed), attempt)) from None
                self.trouble = str(failed)
                await anyio.sleep(random.uniform(0.5, 1) * pause if failed.pause is None else failed.pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                self.trouble = ""
                return answer
        raise AssertionError("the last attempt returns or raises")

    async def _bytes_within_time(self, method: str, url: httpx2.URL, content: bytes | None, most: int) -> bytearray:
        try:
            with anyio.fail_after(self.limits.seconds):
                return await self._bytes_of(method, url, content, most)
        except TimeoutError:
            raise ServerError(
                f"{url} did not finish its answer within {self.limits.seconds:g} seconds; ask for less at once "
                "(--concurrency, shorter texts) or allow more time (--timeout)"
            ) from None
        except httpx2.UnsupportedProtocol as error:
            raise ServerError(f"{url}: {error}") from None
        except httpx2.TransportError as error:
            raise _TryAgain(" ".join(str(error).split())[:MOST_CHARACTERS] or type(error).__name__) from error

    async def _bytes_of(self, method: str, url: httpx2.URL, content: bytes | None, most: int) -> bytearray:
        for _ in range(MOST_REDIRECTS + 1):
            headers = {} if content is None else {"Content-Type": "application/json"}
            async with self._client.stream(method, url, content=content, headers=headers) as response:
                if response.status_code in REDIRECTS and "location" in response.headers:
                    url = redirected(url, response.headers["location"])
                    continue
                body = await _bounded_body(response, url, most)
            if response.is_success:
                return body
            words = _words_of(body)
            if response.status_code in BUSY:
                raise _TryAgain(_status_in_words(response.status_code, words), self._asked_pause(response, url))
            raise RefusedError(_refused(url, response.status_code, words), response.status_code, words)
        raise ServerError(f"{url} redirects more than {MOST_REDIRECTS} times; give the address it leads to")

    def _asked_pause(self, response: httpx2.Response, url: httpx2.URL) -> float | None:
        """Seconds of a Retry-After, which is a number or a date; None without one that can be read."""
        given = response.headers.get("retry-after", "").strip()
        if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", given):
            pause = float(given)
        else:
            try:
                until = parsedate_to_datetime(given)
            except (TypeError, ValueError):
                return None
            pause = (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
        if pause > self.limits.longest_asked_pause:
            raise ServerError(f"{url} is busy and asks to come back in {math.ceil(pause):,} seconds; try again then")
        return max(pause, 0.0)


async def _bounded_body(response: httpx2.Response, url: httpx2.URL, most: int) -> bytearray:
    said = response.headers.get("content-length", "")
    found = bytearray()
    if not (said.isdigit() and int(said[:20]) > most):
        async for part in response.aiter_bytes():
            found += part
            if len(found) > most:
                break
        else:
            return found
    raise ServerError(f"{url} answers with more than {most / 2**20:,.0f} MiB; expected the routing of one text")


def _json_of(body: bytearray, url: httpx2.URL) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        start = shortened(body[:80].decode(errors="replace"))
        raise ServerError(
            f"{url} answers no JSON but {start}; expected a vLLM or SGLang server: check address and path"
        ) from None


def _words_of(body: bytearray) -> str:
    """What a server says about its refusal, on one line: engines wrap it as {"error": {"message": ...}} and alike."""
    try:
        found: Any = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    for name in ("error", "message", "detail"):
        if isinstance(found, dict) and name in found:
            found = found[name]
    text = found if isinstance(found, str) else body.decode(errors="replace")
    return " ".join(text.split())[:MOST_CHARACTERS].rstrip(". ")


def _status_in_words(status: int, words: str) -> str:
    return f"status {status}" + (f", {words!r}" if words else "")


def _refused(url: httpx2.URL, status: int, words: str) -> str:
    answer = f"{url} answers {_status_in_words(status, words)}"
    if status in (401, 403):
        return f"{answer}; it wants an API key: set the variable that --api-key-from names"
    if status in (404, 405):
        return f"{answer}; expected the address of a vLLM or SGLang server, and a model that it serves"
    return answer


def _given_up(url: httpx2.URL, reason: str, attempts: int) -> str:
    if attempts == 1:
        return f"no server answers at {url} ({reason}); start it, or check host and port"
    return f"{url} could not be asked, {attempts} times in a row ({reason}); see whether the server still runs"
