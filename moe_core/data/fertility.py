"""How many bytes a token holds in each language or domain: text that a tokenizer cuts finely costs more to read.

Fertility is mostly given as tokens a word; bytes a token need no idea of words, and compare languages without spaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from moe_core.data.document import Document
from moe_core.data.tokenizer import TextTokenizer
from moe_core.errors import DataError

ALL = "all"
"""The last row, of all text together."""


def fertility_by_domain(documents: Sequence[Document], tokenizer: TextTokenizer) -> pd.DataFrame:
    """A row for each domain, the one that needs fewest tokens first, and one for ALL.

    Columns: domain; documents; bytes (UTF-8); tokens, without end-of-text;
    bytes_per_token, higher = cheaper; low, high: its 95 % interval over documents, as a ratio of sums (NaN for one);
    tokens_per_word, words being what white space parts; single_bytes = the part of tokens that hold one byte, 0..1;
    vocabulary = the part of the tokenizer's ids that occur, 0..1; to_best = tokens for as many bytes, in multiples of
    the domain that needs fewest, >= 1. Raises DataError without text.
    """
    texts = [one for one in documents if one.text]
    if not texts:
        raise DataError("there is no text to count; expected at least one document that is not empty")
    sizes = np.array([len(tokenizer.token_bytes(number)) for number in range(tokenizer.vocab_size)])
    counted = [_counted(one, tokenizer, sizes) for one in texts]
    names = list(dict.fromkeys(one.domain for one in texts))
    rows = [_row(name, [c for c, one in zip(counted, texts, strict=True) if one.domain == name]) for name in names]
    rows.sort(key=lambda row: -row["bytes_per_token"])
    frame = pd.DataFrame([*rows, _row(ALL, counted)] if len(names) > 1 else rows)
    frame["vocabulary"] = frame["vocabulary"] / tokenizer.vocab_size
    return frame.assign(to_best=frame["bytes_per_token"].max() / frame["bytes_per_token"])


def _counted(
    document: Document, tokenizer: TextTokenizer, sizes_V: np.ndarray
) -> tuple[int, int, int, int, np.ndarray]:
    """(bytes, tokens, words, tokens of one byte, ids that occur) of one text."""
    ids = np.array([i for part in tokenizer.parts(document.text) for i in tokenizer.encode(part)], dtype=np.int64)
    words = len(document.text.split())
    return len(document.text.encode()), len(ids), words, int((sizes_V[ids] == 1).sum()), np.unique(ids)


def _row(name: str, counted: Sequence[tuple[int, int, int, int, np.ndarray]]) -> dict[str, Any]:
    size_N, tokens_N = (np.array([one[place] for one in counted], dtype=np.float64) for place in (0, 1))
    words, single = (sum(one[place] for one in counted) for place in (2, 3))
    size, tokens, N = size_N.sum(), max(tokens_N.sum(), 1.0), len(counted)
    ratio = size / tokens
    residual = size_N - ratio * tokens_N
    half = 1.96 * np.sqrt(N / (N - 1) * (residual**2).sum()) / tokens if N > 1 else np.nan
    return {
        "domain": name,
        "documents": N,
        "bytes": int(size),
        "tokens": int(tokens_N.sum()),
        "bytes_per_token": ratio,
        "low": ratio - half,
        "high": ratio + half,
        "tokens_per_word": tokens / words if words else np.nan,
        "single_bytes": single / tokens,
        "vocabulary": len(np.unique(np.concatenate([one[4] for one in counted]))),
    }
