"""How vLLM and SGLang are asked for the routing of a text, and how they are told apart.

vLLM 0.30 was seen to answer so; of SGLang the source of 0.5.23 was read, and none was run.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from moe_core.client.connection import Connection, RefusedError
from moe_core.errors import ServerError, UsageError, shortened

Prompt = str | Sequence[int]
KINDS = ("auto", "vllm", "sglang")


@dataclass(frozen=True)
class Dialect:
    """One way to ask for a text's routing."""

    kind: str
    """The engine, one of KINDS; also the format of recordings that reads the answer."""
    path: str
    question: Callable[[str, Prompt, int], dict[str, Any]]
    """From the model's name, the prompt and the number of tokens to write: at least 1, which both engines need for
    the last token of the prompt to have its routing."""
    spare_tokens: int
    """That the engine keeps free of its context, besides those to write."""


def _vllm(model: str, prompt: Prompt, tokens: int) -> dict[str, Any]:
    # A salt of its own keeps the request out of the prefix cache, whose tokens some versions do not route anew.
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "return_token_ids": True,
        "cache_salt": uuid.uuid4().hex,
    }


def _sglang(model: str, prompt: Prompt, tokens: int) -> dict[str, Any]:  # noqa: ARG001 - it serves one
    # Log-probabilities from the first token on name the prompt's ids, and keep the prompt out of the prefix cache.
    return {
        ("text" if isinstance(prompt, str) else "input_ids"): prompt,
        "sampling_params": {"max_new_tokens": tokens, "temperature": 0},
        "return_routed_experts": True,
        "return_logprob": True,
        "logprob_start_len": 0,
    }


def _sglang_completions(model: str, prompt: Prompt, tokens: int) -> dict[str, Any]:
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "return_token_ids": True,
        "return_routed_experts": True,
    }


def _moescope(model: str, prompt: Prompt, tokens: int) -> dict[str, Any]:
    question = _vllm(model, prompt, tokens)
    return {**question, "return_routed_experts": True, "return_routed_weights": True}


VLLM = Dialect("vllm", "/v1/completions", _vllm, 0)
MOESCOPE = Dialect("vllm", "/v1/completions", _moescope, 0)
"""Our own API answers as vLLM does, but tells the routing only where it is asked for, and its weights with it."""
SGLANG = Dialect("sglang", "/generate", _sglang, 8)
SGLANG_COMPLETIONS = Dialect("sglang", "/v1/completions", _sglang_completions, 8)
"""Where a gateway in front of it lets OpenAI's interface through alone."""


@dataclass(frozen=True)
class Served:
    """What a server was found to serve."""

    dialect: Dialect
    model: str
    context: int | None
    """Tokens that it reads and writes at most, where it says so."""


async def recognise(connection: Connection, kind: str, wanted: str | None) -> Served:
    """Ask the server what it is and which models it has.

    `kind`: one of KINDS; `wanted`: name of the model, needed where there are several. Raises UsageError for a model
    that it does not have, ServerError where there is no such server.
    """
    if kind not in KINDS:
        raise UsageError(f"server kind {kind!r}; expected one of {', '.join(KINDS)}")
    card = _chosen(_cards(await connection.get("/v1/models", patient=False), connection), wanted)
    context = card.get("max_model_len")
    served = {"model": card["id"], "context": context if isinstance(context, int) and context > 0 else None}
    if card.get("owned_by") == "moescope" and kind != "sglang":
        return Served(MOESCOPE, **served)
    if kind == "vllm" or (kind == "auto" and card.get("owned_by") == "vllm"):
        return Served(VLLM, **served)
    if await _has_native_sglang(connection):
        return Served(SGLANG, **served)
    is_sglang = kind == "sglang" or card.get("owned_by") == "sglang"
    return Served(SGLANG_COMPLETIONS if is_sglang else VLLM, **served)


def _cards(answer: Any, connection: Connection) -> list[dict[str, Any]]:
    found = answer.get("data") if isinstance(answer, dict) else None
    if isinstance(found, list) and all(isinstance(card, dict) and isinstance(card.get("id"), str) for card in found):
        return found
    raise ServerError(
        f"{connection.address} lists no models at /v1/models but {shortened(answer)}; expected a vLLM or SGLang server"
    )


def _chosen(cards: list[dict[str, Any]], wanted: str | None) -> dict[str, Any]:
    names = ", ".join(repr(card["id"][:80]) for card in cards[:20]) or "none"
    if wanted is None and len(cards) == 1:
        return cards[0]
    if wanted is None:
        raise UsageError(f"the server has {len(cards)} models ({names}); say with --model which one to ask")
    for card in cards:
        if card["id"] == wanted:
            return card
    raise UsageError(f"the server has no model {wanted[:80]!r}; expected one of {names}")


async def _has_native_sglang(connection: Connection) -> bool:
    for path in ("/model_info", "/get_model_info"):
        try:
            answer = await connection.get(path)
        except RefusedError:
            continue
        if isinstance(answer, dict) and "model_path" in answer:
            return True
    return False
