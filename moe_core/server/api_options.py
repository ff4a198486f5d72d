"""What an API is told by whoever starts it."""

from __future__ import annotations

from dataclasses import dataclass

MOST_BODY_BYTES = 1_000_000


@dataclass(frozen=True)
class ApiOptions:
    """How it answers, whatever the model."""

    api_key: str | None = None
    """The key that every request but /health must bring; None = everyone who reaches it is answered."""
    max_body_bytes: int = MOST_BODY_BYTES
    """Of a request."""
    default_model: str | None = None
    """Who names no model is answered by this one; None = the pool's first."""
    max_tokens: int = 2048
    """Most tokens of one answer; a chat that asks for no number gets as many at most."""
    temperature: float = 1.0
    """Of a request that names none; 0 = always the likeliest token."""
