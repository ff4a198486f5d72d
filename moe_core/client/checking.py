"""Each answer of a server is checked as it comes, so that a wrong one is known before hours are spent on more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moe_core.data.document import Document
from moe_core.errors import ServerError, TraceError
from moe_core.routing.recordings.examine import recorded_tokens
from moe_core.routing.recordings.one_text import Text
from moe_core.routing.recordings.pieces import Options
from moe_core.routing.recordings.responses import texts_of

Answer = dict[str, Any]
CUT = "moescope_cut"
"""A field of ours in an answer: of the text, only the beginning was read."""


class Checking:
    """Reads answers by the readers of recordings; remembers the layers and slots that all of them must share."""

    def __init__(self, documents: Sequence[Document], options: Options, *, prompt_only: bool, complete: bool) -> None:
        """`prompt_only`: what was written after the text does not count. `complete`: a text that lacks tokens is
        refused."""
        self._documents = documents
        self._options = options
        self._prompt_only = prompt_only
        self._complete = complete
        self._first: tuple[int, tuple[int, ...]] | None = None
        """The first document that was answered, and its [layers, slots]."""

    def check(self, number: int, answer: Answer) -> None:
        """Raises ServerError or TraceError naming document `number` where its routing is not there, not whole, or not
        shaped as that of the others."""
        text = self.text_of(number, answer)
        shape = text.experts.shape[1:]
        if self._first is None:
            self._first = (number, shape)
        if shape != self._first[1]:
            (L, K), (first_L, first_K) = shape, self._first[1]
            raise ServerError(
                f"the answer to document {number} has {L} layers with {K} slots, that to document {self._first[0]} "
                f"{first_L} with {first_K}; expected one model behind the server"
            )
        missing = text.start + int((~recorded_tokens(text.experts)).sum())
        missing += max(0, (_prompt_tokens(answer) or 0) - text.start - len(text.experts))
        if CUT in answer and self._complete:
            raise ServerError(
                f"an earlier command read the beginning of document {number} alone, as --incomplete keep says; say it "
                "again, or remove its answers"
            )
        if missing and self._complete:
            raise ServerError(
                f"{missing:,} tokens of document {number} come without routing, as from a prefix cache; start the "
                "server without one (vLLM: --no-enable-prefix-caching, SGLang: --disable-radix-cache), or say "
                "--incomplete keep to leave them out"
            )

    def text_of(self, number: int, answer: Answer) -> Text:
        """The routing of document `number`, which the answer holds."""
        where = f"the answer to document {number} ({self._documents[number].source})"
        try:
            found = list(texts_of(answer, where, f"document {number}", self._options))
        except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
            raise TraceError(f"{where} is not as a server answers ({type(error).__name__}: {error})") from None
        if len(found) != 1:
            raise TraceError(f"{where} holds {len(found)} texts; expected one")
        text = found[0]
        prompt = _prompt_tokens(answer)
        return text.until(max(0, prompt - text.start)) if self._prompt_only and prompt is not None else text


def _prompt_tokens(answer: Answer) -> int | None:
    """Tokens of the text that was asked about, as the server counts them."""
    counts = answer.get("meta_info") or answer.get("usage")
    found = counts.get("prompt_tokens") if isinstance(counts, dict) else None
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else None
