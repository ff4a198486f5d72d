"""model.rope as transformers' rope_parameters, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from moe_core.config import ModelConfig
from moe_core.config.rope_schemes import RopeConfig
from moe_core.errors import RunError, first_fault, shortened
from moe_core.exchange.refusing import refuse_key
from moe_core.model.rope import rope_base

# Their rope_type -> the numbers that it reads, and whether it must have them.
_NUMBERS: Mapping[str, Mapping[str, bool]] = {
    "default": {},
    "linear": {"factor": True},
    "dynamic": {"factor": True},
    "yarn": {"factor": False, "attention_factor": False, "beta_fast": False, "beta_slow": False},
    "llama3": {"factor": True, "low_freq_factor": True, "high_freq_factor": True},
}


def rope_parameters(config: ModelConfig) -> dict[str, Any]:
    """rope_parameters of a config.json whose angles are the model's.

    NTK with a fixed factor is nothing but another base. The dynamic scheme needs max_position_embeddings to be
    `positions(config, ...)`, by which transformers measures a text.
    """
    rope = config.rope
    tree: dict[str, Any] = {"rope_type": "default", "rope_theta": rope_base(config, 1)}
    if rope.scheme in ("none", "ntk"):
        return tree
    tree |= {"rope_type": rope.scheme, "factor": rope.factor}
    if rope.scheme in ("yarn", "llama3"):
        tree["original_max_position_embeddings"] = rope.original_length or config.max_seq_len
    if rope.scheme == "yarn":
        tree |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow}
        if rope.attention_factor is not None:
            tree["attention_factor"] = rope.attention_factor
    if rope.scheme == "llama3":
        tree |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    return tree


def positions(config: ModelConfig, context: int) -> int:
    """max_position_embeddings of a model that has learned to see `context` tokens at once."""
    return (config.rope.original_length or config.max_seq_len) if config.rope.scheme == "dynamic" else context


def read_rope_parameters(rope: Mapping[str, Any], tree: Mapping[str, Any], max_position_embeddings: int) -> RopeConfig:
    """model.rope of a checkpoint with these rope_parameters; `tree`: the config.json that they stand in.

    Raises UsageError for a rope_type or value that our model does not have, RunError for one of a wrong type.
    """
    kind = rope.get("rope_type", rope.get("type", "default"))
    if not isinstance(kind, str) or kind not in _NUMBERS:
        raise refuse_key("rope_type", kind, f"our model has {', '.join(_NUMBERS)}")
    if kind == "default":
        return RopeConfig()
    found: dict[str, object] = {"scheme": kind, "original_length": max_position_embeddings}
    for key, needed in _NUMBERS[kind].items():
        number = _number(rope, key)
        if number is None and needed:
            raise refuse_key("rope_type", kind, f"it needs {key} beside it")
        if number is not None:
            found[key] = number
    if kind in ("yarn", "llama3"):
        original = tree.get("original_max_position_embeddings", rope.get("original_max_position_embeddings"))
        found["original_length"] = max_position_embeddings if original is None else original
    if kind == "yarn":
        found |= _yarn(rope, found, max_position_embeddings)
    if kind == "linear":
        del found["original_length"]
    try:
        return RopeConfig.model_validate(found)
    except ValidationError as error:
        fault = first_fault(error)
        raise refuse_key(f"rope_type {kind} with {fault.key}", fault.value, fault.message) from None


def _yarn(rope: Mapping[str, Any], found: Mapping[str, object], max_position_embeddings: int) -> dict[str, object]:
    if rope.get("truncate", True) is not True:
        raise refuse_key("rope_type yarn with truncate", rope["truncate"], "our model has true only")
    original = found["original_length"]
    if "factor" in found:
        factor = found["factor"]
    elif isinstance(original, int) and original > 0:
        factor = max_position_embeddings / original
    else:
        factor = 1.0
    top, bottom = _number(rope, "mscale"), _number(rope, "mscale_all_dim")
    filled = {"factor": factor}
    if "attention_factor" not in found and top and bottom and isinstance(factor, float | int) and factor > 1:
        filled["attention_factor"] = (0.1 * top * math.log(factor) + 1) / (0.1 * bottom * math.log(factor) + 1)
    # As there: 0 is none.
    return filled | {
        key: 32.0 if key == "beta_fast" else 1.0 for key in ("beta_fast", "beta_slow") if not found.get(key)
    }


def _number(rope: Mapping[str, Any], key: str) -> float | None:
    value = rope.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise RunError(f"the checkpoint's config.json has {key} = {shortened(value)}; expected a number")
    return value
