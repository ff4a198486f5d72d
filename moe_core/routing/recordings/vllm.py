"""The texts in an answer of vLLM, or in a record of plain arrays with the same names (docs/trace-format.md)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from moe_core.errors import TraceError
from moe_core.routing.recordings.decode import experts_array, id_list
from moe_core.routing.recordings.one_text import Text
from moe_core.routing.recordings.pieces import Integers, Options, describe


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
    """One text for each choice. The prompt that several choices share is counted with the first one only."""
    choices = record.get("choices") or record.get("outputs") or [record]
    for number, choice in enumerate(choices):
        several = len(choices) > 1
        place = f"{where}, choice {number}" if several else where
        if not isinstance(choice, dict):
            raise TraceError(f"{place} is {type(choice).__name__}; expected an object with routed_experts")
        text, shared = _text_of_choice(
            record, choice, place, f"{name}, choice {number}" if several else name, given_ids
        )
        yield text.without(max(0, shared - text.start)) if number else text


def _text_of_choice(
    record: dict[str, Any], choice: dict[str, Any], where: str, name: str, given_ids: Integers | None
) -> tuple[Text, int]:
    """The text of one choice, and how many tokens its prompt has."""
    prompt = experts_array(record.get("prompt_routed_experts"), f"{where}, prompt_routed_experts")
    routed = experts_array(choice.get("routed_experts"), f"{where}, routed_experts")
    prompt_ids = id_list(choice.get("prompt_token_ids", record.get("prompt_token_ids")), f"{where}, prompt_token_ids")
    ids = id_list(choice.get("token_ids"), f"{where}, token_ids")
    P = 0 if prompt_ids is None else len(prompt_ids)
    weights = choice.get("routed_weights")
    if prompt is not None:
        experts = _after_prompt(where, prompt, routed, prompt_ids)
        known = _joined_ids(prompt_ids, ids) if prompt_ids is not None else None
        return Text.checked(where, name, experts, given_ids if known is None else known, weights), len(prompt)
    if routed is None:
        raise TraceError(f"{where} has no routed_experts; start the server with --enable-return-routed-experts")
    rows = len(routed)
    if P and ids is not None and rows in (len(ids), len(ids) - 1) and rows != P + len(ids) - 1:
        return Text.checked(where, name, routed, ids, weights, start=P), P  # routing of the answer alone
    known = _joined_ids(prompt_ids, ids)
    return Text.checked(where, name, routed, given_ids if known is None else known, weights), P


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
