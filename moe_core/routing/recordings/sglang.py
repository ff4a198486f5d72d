"""The texts in an answer of SGLang: flat base64 numbers, whose shape stands elsewhere (docs/trace-format.md)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from moe_core.errors import TraceError
from moe_core.routing.recordings.decode import id_list, raw_integers
from moe_core.routing.recordings.one_text import Text
from moe_core.routing.recordings.pieces import Integers, Options

Fields = dict[str, Any]
EXTENSIONS = ("meta_info", "sglext", "sgl_ext")
WIRE_TYPES = ("int32", "uint16", "uint8")


def is_answer(record: Fields) -> bool:
    """Whether an answer has one of the places where SGLang puts routing."""
    choices = record.get("choices")
    parts = [record, *(choices if isinstance(choices, list) else [])]
    return any(isinstance(part, dict) and any(name in part for name in EXTENSIONS) for part in parts)


def answer_texts(record: Fields, where: str, name: str, options: Options, given_ids: Integers | None) -> Iterator[Text]:
    """One text for each choice, or the one of an answer of /generate."""
    choices = record.get("choices") or [record]
    for number, choice in enumerate(choices):
        several = len(choices) > 1
        place = f"{where}, choice {number}" if several else where
        yield _text_of_choice(
            record, choice, place, f"{name}, choice {number}" if several else name, options, given_ids
        )


def _text_of_choice(
    record: Fields, choice: Fields, where: str, name: str, options: Options, given_ids: Integers | None
) -> Text:
    info: Fields = {}
    for part in (record, choice):
        for extension in EXTENSIONS:
            info |= part.get(extension) or {}
    prompt_ids, ids = _token_ids_of(record, choice, info, where)
    known = given_ids
    if known is None and prompt_ids is not None and ids is not None:
        known = np.concatenate([prompt_ids, ids])
    flat, start = _expert_ids(info, record, where)
    schema = info.get("expert_ids_schema") or {}
    rows = _number_of_rows(record, info, known, where) - start
    if rows < 1:
        raise TraceError(f"{where}: routing begins at token {start}, where the text ends; nothing was routed")
    top_k = schema.get("top_k") or options.top_k
    if top_k is None:
        raise TraceError(
            f"{where}: {flat.size:,} expert ids in a row; say with --top-k how many a token has in a layer"
        )
    if flat.size % (rows * top_k) or not flat.size:
        raise TraceError(
            f"{where}: {flat.size:,} expert ids; expected a multiple of {rows * top_k:,} = {rows:,} tokens x {top_k} "
            "slots: check --top-k, and that prompt and answer are whole"
        )
    experts_TLK = flat.reshape(rows, -1, top_k)
    routed_layers = schema.get("moe_layer_ids")
    if routed_layers is not None:
        experts_TLK = experts_TLK.astype(np.int64)
        experts_TLK[:, ~np.isin(np.arange(experts_TLK.shape[1]), routed_layers)] = -1
    text = Text.checked(where, name, experts_TLK, None if known is None else known[start:], start=start)
    return text.reading(_token_texts(info, known))


def _expert_ids(info: Fields, record: Fields, where: str) -> tuple[Integers, int]:
    """All expert ids one after the other, and the token that the first ones belong to."""
    start = int(info.get("routed_experts_start_len") or record.get("routed_experts_start_len") or 0)
    if info.get("routed_experts") is not None:
        return raw_integers(info["routed_experts"], _wire_type(info.get("routed_experts_dtype"), where), where), start
    schema = info.get("expert_ids_schema") or {}
    kind = _wire_type(schema.get("dtype"), where)
    parts = [name for name in ("input_expert_ids", "output_expert_ids") if info.get(name) is not None]
    if not parts:
        raise TraceError(
            f"{where} has no routed_experts; start the server with --enable-return-routed-experts and ask with "
            "return_routed_experts"
        )
    first = int(schema.get(parts[0].replace("expert_ids", "start_position"), 0))
    return np.concatenate([raw_integers(info[part], kind, f"{where}, {part}") for part in parts]), first


def _wire_type(name: Any, where: str) -> str:
    if name is None:
        return WIRE_TYPES[0]
    if name not in WIRE_TYPES:
        raise TraceError(f"{where}: expert ids of type {name!r}; expected one of {', '.join(WIRE_TYPES)}")
    return str(name)


def _number_of_rows(record: Fields, info: Fields, known: Integers | None, where: str) -> int:
    """How many tokens of the text were read by the model: all but the last one."""
    counts = info if "prompt_tokens" in info else record.get("usage") or {}
    if "prompt_tokens" in counts and "completion_tokens" in counts:
        return int(counts["prompt_tokens"]) + int(counts["completion_tokens"]) - 1
    if known is not None:
        return len(known) - 1
    raise TraceError(
        f"{where} has neither prompt_tokens and completion_tokens nor token ids; "
        "save the whole answer, or give --token-ids"
    )


def _token_ids_of(record: Fields, choice: Fields, info: Fields, where: str) -> tuple[Integers | None, Integers | None]:
    """Vocabulary ids of prompt and answer, from the request's ids or from the log-probabilities that name them."""
    prompt = _first_given(choice, record, "input_ids", "prompt_token_ids")
    answer = _first_given(choice, record, "output_ids", "token_ids")
    if prompt is None and info.get("input_token_logprobs"):
        prompt = [entry[1] for entry in info["input_token_logprobs"]]
    if answer is None and info.get("output_token_logprobs"):
        answer = [entry[1] for entry in info["output_token_logprobs"]]
    return id_list(prompt, f"{where}, prompt ids"), id_list(answer, f"{where}, answer ids")


def _token_texts(info: Fields, known: Integers | None) -> list[str | None] | None:
    """What each token reads, where the log-probabilities have texts beside the ids: "return_text_in_logprobs"."""
    entries = [*(info.get("input_token_logprobs") or []), *(info.get("output_token_logprobs") or [])]
    texts = {entry[1]: entry[2] for entry in entries if len(entry) > 2 and isinstance(entry[2], str)}
    return [texts.get(token_id) for token_id in known.tolist()] if texts and known is not None else None


def _first_given(choice: Fields, record: Fields, *names: str) -> Any:
    return next((part[name] for name in names for part in (choice, record) if part.get(name) is not None), None)
