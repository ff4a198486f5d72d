"""Text that a grammar allows: at every token what would break it is left out of the draw, by llguidance.

The grammar goes by characters, the model by tokens: a token is left out where no text that begins with what is there
and this token has the grammar's form. The model may end its text only where the text is complete.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from moe_core.data.tokenizer import TextTokenizer
from moe_core.errors import DataError, UsageError

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from moe_core.inference.protocol import LanguageModel

PYTHON = "python"
"""The name of the grammar of what data_gen writes as code, see python_grammar.py."""
MOST_BYTES = 2**20
"""Of a grammar's file."""


@dataclass(frozen=True)
class Grammar:
    """What a text must look like."""

    name: str
    """For people."""
    lark: str
    """Rules in llguidance's form of Lark's notation, from `start` on."""
    holds_prompt: bool = False
    """Whether it is of the prompt and what is written together, or of what is written alone."""


def grammar_of(name: str) -> Grammar:
    """The grammar PYTHON, which is of the whole text, or one out of a file, of what is written. Raises DataError."""
    if name == PYTHON:
        from moe_core.inference.python_grammar import python_grammar

        return Grammar(PYTHON, python_grammar(), holds_prompt=True)
    path = Path(name)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"the grammar {name!r} is larger than {MOST_BYTES // 2**20} MiB; expected a smaller one")
        return Grammar(name, path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise DataError(
            f"the grammar {name!r} cannot be read ({reason}); expected {PYTHON!r} or a file in Lark's notation"
        ) from None


class Constraint:
    """A grammar, and how far one text has come in it."""

    def __init__(self, model: LanguageModel, grammar: Grammar, prompt_ids: Sequence[int]) -> None:
        """Raises UsageError for a grammar that is none, a prompt that breaks it, and without llguidance."""
        if not model.end_ids:
            raise UsageError(f"{model.name} has no token that ends a text, which a grammar takes; use another model")
        self._ends = sorted(model.end_ids)
        kept = _machine(model.tokenizer, self._ends[0], grammar.name, grammar.lark)  # type: ignore[arg-type]  # by identity
        self._matcher = kept.deep_copy()
        self._mask = np.zeros((model.tokenizer.vocab_size + 31) // 32, dtype=np.int32)
        if grammar.holds_prompt:
            tokenizer = model.tokenizer
            text = [token_id for token_id in prompt_ids if tokenizer.token_bytes(token_id)]
            taken = self._matcher.try_consume_tokens(text)
            if taken < len(text):
                there, breaks = tokenizer.decode(text[:taken]), tokenizer.decode(text[taken : taken + 8])
                raise UsageError(
                    f"the prompt breaks the grammar {grammar.name} behind {there[-40:]!r}, at {breaks[:40]!r}; "
                    "expected the beginning of a text that it allows"
                )

    @property
    def is_complete(self) -> bool:
        """Whether the text may end here."""
        return bool(self._matcher.is_accepting())

    def masked(self, logits_V: torch.Tensor) -> torch.Tensor:
        """[V] the logits on the CPU, -inf for every token that the text cannot go on with."""
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        bits = np.unpackbits(self._mask.view(np.uint8), bitorder="little")[: len(logits_V)]
        allowed_V = np.zeros(len(logits_V), dtype=bool)
        allowed_V[: len(bits)] = bits
        allowed_V[self._ends] = allowed_V[self._ends[0]]
        return logits_V.masked_fill(~torch.from_numpy(allowed_V), -torch.inf)

    def add(self, token_id: int) -> None:
        """The text goes on with an allowed token."""
        if token_id not in self._ends:
            self._matcher.consume_token(token_id)


class _TokenTable:
    """A tokenizer as llguidance takes it."""

    bos_token_id = None

    def __init__(self, tokenizer: TextTokenizer, end_id: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = end_id
        texts = [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)]
        self.special_token_ids = [token_id for token_id, text in enumerate(texts) if not text]
        self.tokens = [text or f"<|control {token_id}|>".encode() for token_id, text in enumerate(texts)]

    def __call__(self, text: str | bytes) -> list[int]:
        return self._tokenizer.encode(text.decode("utf-8", "replace") if isinstance(text, bytes) else text)


@lru_cache(maxsize=4)
def _machine(tokenizer: TextTokenizer, end_id: int, name: str, lark: str) -> LLMatcher:
    """The grammar over the tokens of a tokenizer, at its beginning; to be copied. Raises UsageError."""
    try:
        from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
    except ImportError:
        raise UsageError(
            "a grammar needs the library llguidance; install it: pip install -r requirements-code.txt in a checkout, "
            "else pip install 'moescope[code]'"
        ) from None
    table = LLTokenizer(TokenizerWrapper(_TokenTable(tokenizer, end_id)), n_vocab=tokenizer.vocab_size)
    matcher = LLMatcher(table, LLMatcher.grammar_from_lark(lark), log_level=0)
    if reason := matcher.get_error():
        raise UsageError(f"the grammar {name} cannot be used: {' '.join(reason.split())[:200]}")
    return matcher
