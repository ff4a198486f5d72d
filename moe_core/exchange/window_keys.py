"""model.attention as transformers' sliding windows, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from moe_core.config import ModelConfig
from moe_core.config.attention_reach import AttentionConfig, LayerReach
from moe_core.errors import first_fault
from moe_core.exchange.refusing import refuse_key

if TYPE_CHECKING:
    from moe_core.exchange.family_configs import FamilyConfig
    from moe_core.exchange.layouts import Family

LOCAL, GLOBAL = "sliding_attention", "full_attention"
MOST_LAYERS = 4096
"""Of a checkpoint with windows, whose pattern is looked for layer by layer."""


def window_keys(config: ModelConfig, family: Family) -> dict[str, Any]:
    """Keys of a config.json whose windows are the model's; targets.target_family says which family has them."""
    window = config.attention.window
    if family == "mixtral":
        return {} if window is None else {"sliding_window": window}
    if family not in ("qwen3_moe", "qwen2_moe"):
        return {}
    keys: dict[str, Any] = {"use_sliding_window": window is not None, "sliding_window": window}
    if window is not None and family == "qwen2_moe":
        layers = range(config.num_layers)
        keys["layer_types"] = [GLOBAL if config.attention.sees(layer) is None else LOCAL for layer in layers]
        keys["max_window_layers"] = config.num_layers
    return keys


def read_windows(theirs: FamilyConfig) -> AttentionConfig:
    """model.attention of a checkpoint. Raises UsageError for layer_types or a window that our model does not have."""
    window = theirs.window
    if window is None and theirs.layer_types is None:
        return AttentionConfig()
    if theirs.num_hidden_layers > MOST_LAYERS:
        raise refuse_key("num_hidden_layers", theirs.num_hidden_layers, f"with a window at most {MOST_LAYERS:,}")
    kinds = theirs.kinds
    if theirs.layer_types is not None:
        other = next((kind for kind in theirs.layer_types if kind not in (LOCAL, GLOBAL)), None)
        if other is not None:
            raise refuse_key("layer_types", [other], f"our model has {GLOBAL!r} and {LOCAL!r} only")
        if len(theirs.layer_types) != theirs.num_hidden_layers:
            raise refuse_key(
                "layer_types", theirs.layer_types, f"expected as many as num_hidden_layers = {theirs.num_hidden_layers}"
            )
        if theirs.layer_types != kinds:
            says = "says no window" if window is None else f"gives every layer a window of {window}"
            raise refuse_key("layer_types", theirs.layer_types, f"the rest of its config.json {says}")
    if LOCAL not in kinds:
        return AttentionConfig()
    pattern: list[LayerReach] = ["local" if kind == LOCAL else "global" for kind in kinds]
    period = next(n for n in range(1, len(pattern) + 1) if pattern == [pattern[i % n] for i in range(len(pattern))])
    try:
        return AttentionConfig(window=window, pattern=tuple(pattern[:period]))
    except ValidationError as error:
        raise refuse_key("sliding_window", window, first_fault(error).message) from None
