"""Log-probabilities in the two shapes that OpenAI's interface has for them."""

from __future__ import annotations

from collections.abc import Sequence

from moe_core.data.tokenizer import TextTokenizer
from moe_core.json_values import Json
from moe_core.server.written_choice import ScoredToken

LOWEST = -9999.0
"""In place of minus infinity, which JSON cannot say; vLLM's value."""


def completion_logprobs(
    tokenizer: TextTokenizer, tokens: Sequence[ScoredToken], likeliest: int, offset: int
) -> tuple[Json, int]:
    """Of /v1/completions, and the offset behind these tokens. A token that stands there is told beside the likeliest
    ones; `offset` counts the characters of the tokens before."""
    names = [tokenizer.token_text(token.token_id) for token in tokens]
    offsets = []
    for name in names:
        offsets.append(offset)
        offset += len(name)
    found = {
        "tokens": names,
        "token_logprobs": [None if token.logprob is None else max(token.logprob, LOWEST) for token in tokens],
        "top_logprobs": [_by_name(tokenizer, token, likeliest) for token in tokens],
        "text_offset": offsets,
    }
    return found, offset


def chat_logprobs(tokenizer: TextTokenizer, tokens: Sequence[ScoredToken]) -> Json:
    """Of /v1/chat/completions."""
    content = [
        {
            **_entry(tokenizer, token.token_id, token.logprob or 0.0),
            "top_logprobs": [_entry(tokenizer, token_id, logprob) for token_id, logprob in token.likeliest],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _by_name(tokenizer: TextTokenizer, token: ScoredToken, likeliest: int) -> dict[str, float] | None:
    if token.logprob is None:
        return None
    pairs = [*token.likeliest[:likeliest], (token.token_id, token.logprob)]
    return {tokenizer.token_text(token_id): max(logprob, LOWEST) for token_id, logprob in pairs}


def _entry(tokenizer: TextTokenizer, token_id: int, logprob: float) -> Json:
    return {
        "token": tokenizer.token_text(token_id),
        "logprob": max(logprob, LOWEST),
        "bytes": list(tokenizer.token_bytes(token_id)),
    }
