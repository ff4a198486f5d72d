"""The texts in an answer of vLLM, or in a record of plain arrays with the same names (docs/trace-format.md)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from moe_core.errors import TraceError
from moe_core.routing.recordings.decode import experts_array, id_list, numbers_array
from moe_core.routing.recordings.one_text import Text
from moe_core.routing.recordings.pieces import Integers, Options, describe

START = "routed_experts_prompt_start"
"""A field of the request: the token whose row is the first one sent."""


def is_answer(record: dict[str, Any]) -> bool:
    """Whether a record has the list in which vLLM puts what it wrote. Other servers have it as well."""
    return "choices" in record or "outputs" in record


def answer_texts(
    record: dict[str, Any],
    where: str,
    name: str,
    options: Options,  # noqa: ARG001 - every reader of answers takes the same
    given_ids: Integers | None,
) -> Iterator[Text]:
    """One text for each choice. The prompt that several choices continue is counted with the first of them only."""
    choices = record.get("choices") or record.get("outputs") or [record]
    if not isinstance(choices, list):
        raise TraceError(f"{where}: choices is {type(choices).__name__}; expected a list of objects")
    prompts: list[bytes] = []
    for number, choice in enumerate(choices):
        several = len(choices) > 1
        place = f"{where}, choice {number}" if several else where
        if not isinstance(choice, dict):
            raise TraceError(f"{place} is {type(choice).__name__}; expected an object with routed_experts")
        prompt_ids = id_list(
            choice.get("prompt_token_ids", record.get("prompt_token_ids")), f"{place}, prompt_token_ids"
        )
        text, shared = _text_of_choice(
            record, choice, prompt_ids, place, f"{name}, choice {number}" if several else name, given_ids
        )
        # A request may hold several prompts. Where no ids say which, all choices are taken to continue one.
        key = b"" if prompt_ids is None else prompt_ids.tobytes()
        again = key in prompts
        if not again:
            prompts.append(key)
        text = replace(text, prompt=prompts.index(key))
        yield text.without(max(0, shared - text.start)) if again else text


def _text_of_choice(
    record: dict[str, Any],
    choice: dict[str, Any],
    prompt_ids: Integers | None,
    where: str,
    name: str,
    given_ids: Integers | None,
) -> tuple[Text, int]:
    """The text of one choice, and how many tokens its prompt has."""
    prompt = experts_array(record.get("prompt_routed_experts"), f"{where}, prompt_routed_experts")
    routed = experts_array(choice.get("routed_experts"), f"{where}, routed_experts")
    ids = id_list(choice.get("token_ids"), f"{where}, token_ids")
    P = 0 if prompt_ids is None else len(prompt_ids)
    weights = numbers_array(choice.get("routed_weights"), f"{where}, routed_weights")
    if prompt is not None:
        experts = _after_prompt(where, prompt, routed, prompt_ids)
        known = _joined_ids(prompt_ids, ids) if prompt_ids is not None else None
        return Text.checked(where, name, experts, given_ids if known is None else known, weights), len(prompt)
    if routed is None:
        raise TraceError(f"{where} has no routed_experts; start the server with --enable-return-routed-experts")
    known = _joined_ids(prompt_ids, ids)
    known = given_ids if known is None else known
    fits = routed.ndim == 3  # Text.checked says so if not
    start = _first_row(record, choice, where, len(routed), *_sizes_of(record, choice, known, P)) if fits else 0
    text = Text.checked(where, name, routed, None if known is None else known[start:], weights, start=start)
    return text.reading(_token_texts(choice, known)), P


def _first_row(
    record: dict[str, Any], choice: dict[str, Any], where: str, rows: int, tokens: int | None, prompt: int
) -> int:
    """The token that the first row belongs to, of `tokens` in all, `prompt` of them the prompt's.

    Rows end with the last token but one: the last was written, never read. What is missing is missing at the beginning
    of the prompt, where the request asked for it (START) or a prefix came from a cache.
    """
    asked = next((part[START] for part in (choice, record) if part.get(START) is not None), None)
    if asked is not None and (isinstance(asked, bool) or not isinstance(asked, int) or asked < 0):
        raise TraceError(f"{where}, {START}: {repr(asked)[:40]}; expected the number of a token, from 0")
    if tokens is None or rows >= tokens - 1:  # one row more than tokens are read: Text.checked says what fits
        missing = 0 if tokens is not None else asked or 0
    else:
        missing = tokens - 1 - rows
        if missing > prompt:
            raise TraceError(
                f"{where}: {rows:,} rows of routed_experts for {tokens:,} tokens; expected {tokens - 1:,}, or less "
                f"where the first of the {prompt:,} tokens of the prompt were asked to be left out ({START}) or came "
                "from a cache"
            )
    if asked is not None and asked > missing:
        raise TraceError(
            f"{where}: {rows:,} rows of routed_experts for {tokens:,} tokens begin at token {missing:,}; "
            f"expected {START} = {asked:,}"
        )
    return missing


def _sizes_of(
    record: dict[str, Any], choice: dict[str, Any], known: Integers | None, prompt: int
) -> tuple[int | None, int]:
    """Tokens of the text, the last one too, and of its prompt: by its ids, or by the count of an only choice."""
    if known is not None:
        return len(known), prompt
    usage, alone = record.get("usage"), (record.get("choices") or record.get("outputs") or [choice]) == [choice]
    if not isinstance(usage, dict) or not alone:
        return None, 0
    total, of_prompt = (usage.get(name) for name in ("total_tokens", "prompt_tokens"))
    if not all(isinstance(count, int) and not isinstance(count, bool) and count > 0 for count in (total, of_prompt)):
        return None, 0
    return total, of_prompt or 0


def _token_texts(choice: dict[str, Any], known: Integers | None) -> list[str | None] | None:
    """What each token reads, by the log-probabilities that name the answer's tokens, or with `echo` all of them.

    None where there are no ids: an answer alone could not be numbered. A request may ask for "token_id:5" as text.
    """
    logprobs = choice.get("logprobs")
    if known is None or not isinstance(logprobs, dict):
        return None
    entries = logprobs.get("tokens") or logprobs.get("content")
    if not isinstance(entries, list) or len(entries) > len(known):
        return None
    texts: list[Any] = [entry.get("token") if isinstance(entry, dict) else entry for entry in entries]
    if not all(isinstance(text, str) for text in texts):
        return None
    shown = [None if text.startswith("token_id:") else text for text in texts]
    return [*[None] * (len(known) - len(shown)), *shown]


def _after_prompt(where: str, prompt: Integers, routed: Integers | None, prompt_ids: Integers | None) -> Integers:
    """The rows of the prompt and those of the answer, one after the other."""
    if prompt_ids is not None and len(prompt) != len(prompt_ids):
        raise TraceError(
            f"{where}: {len(prompt):,} rows of prompt_routed_experts for {len(prompt_ids):,} prompt_token_ids; "
            "expected as many"
        )
    if routed is None or not len(routed):
        return prompt
    if routed.shape[1:] != prompt.shape[1:]:
        raise TraceError(
            f"{where}: prompt_routed_experts is {describe(prompt)}, routed_experts {describe(routed)}; "
            "expected the same layers and slots"
        )
    return np.concatenate([prompt, routed])


def _joined_ids(prompt_ids: Integers | None, ids: Integers | None) -> Integers | None:
    found = [part for part in (prompt_ids, ids) if part is not None]
    return np.concatenate(found) if found else None
