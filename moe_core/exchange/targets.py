"""Which family of transformers equals a model of ours exactly, and the small rewritings that make it equal.

A rewriting changes the configuration and the weights, never the function: a shared expert of zeros, hidden units of
zeros, or a gate that always says one half before an output of twice the size.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from moe_core.config import ModelConfig
from moe_core.config.router import ROUTER_FACTS, RouterConfig
from moe_core.errors import UsageError
from moe_core.exchange.layouts import Family


def target_family(config: ModelConfig) -> Family:
    """The family whose forward pass is that of our model in evaluation mode.

    Raises UsageError naming the options that no family has together. Noise, dropout and capacity concern training only:
    a noisy router leaves as the softmax router that it is without noise.
    """
    if not config.moe_layers:
        raise UsageError("the model is dense: it has no MoE layer to export; expected a Mixture of Experts")
    if config.null_experts:
        raise _no_target(
            f"model.null_experts = {config.null_experts} in our layout",
            "expected 0 (LongCat-Flash's are identities among experts of another attention)",
        )
    if config.removed_experts:
        raise _no_target(
            f"model.removed_experts = {config.removed_experts}, a router that may not choose some of its experts",
            f"write a run without them: prune --keep {config.num_experts - config.removed_experts}",
        )
    _check_router(config.router)
    _check_attention(config)
    normalized, shared = _normalizes(config), config.shared_expert_hidden_dim
    if config.router.facts.exported_as == "sigmoid":
        _check_glm4_moe(config)
        return "glm4_moe"
    if shared and config.qk_norm:
        raise _no_target(
            "a softmax router, QK-norm and a shared expert together",
            "leave out one: model.qk_norm = false, model.shared_expert_hidden_dim = 0, or model.router.kind = sigmoid",
        )
    if config.qk_norm:
        return "qwen3_moe"
    # The families whose window is every layer's, or that have none: what they cannot hold is Qwen2-MoE's, too.
    elsewhere = config.attention.window is not None and (shared > 0 or _mixes_reaches(config))
    plain = normalized and len(config.moe_layers) == config.num_layers and not (shared and config.shared_expert_gate)
    if plain and not elsewhere:
        return "granitemoeshared" if shared else "mixtral"
    return "qwen2_moe"


def fit_to_family(
    config: ModelConfig, state: Mapping[str, Tensor], family: Family
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """An equivalent model of ours that the family can hold as it is: configuration and MoETransformer.state_dict()."""
    if family == "qwen2_moe" and not (config.shared_expert_hidden_dim and config.shared_expert_gate):
        return _with_gated_shared_expert(config, state)
    if family == "glm4_moe":
        return _with_shared_width(config, state)
    return config, dict(state)


def _normalizes(config: ModelConfig) -> bool:
    """Whether the weights of a token's experts really sum to 1; a single expert keeps its probability."""
    return config.router.normalize_scores and config.top_k > 1


def _no_target(what: str, remedy: str) -> UsageError:
    return UsageError(f"no architecture of transformers has {what}, so an export would not be exact; {remedy}")


def _check_router(router: RouterConfig) -> None:
    if router.facts.exported_as is None:
        *others, last = (kind for kind, facts in ROUTER_FACTS.items() if facts.exported_as)
        raise _no_target(
            f"the rule of model.router.kind = {router.kind} in our layout", f"expected {', '.join(others)} or {last}"
        )
    if not router.facts.always_biased and router.balances_by == "bias":
        raise _no_target(
            f"model.router.balancing = bias with model.router.kind = {router.kind} in our layout",
            "expected kind = sigmoid, or a balancing by loss",
        )


def _check_attention(config: ModelConfig) -> None:
    attention = config.attention
    if attention.sinks:
        raise _no_target(
            "attention sinks with experts like ours",
            "expected model.attention.sinks = false (gpt-oss has them beside experts with biases and limits)",
        )
    if attention.window is None:
        return
    if attention.first_tokens:
        raise _no_target(
            f"model.attention.first_tokens = {attention.first_tokens}, which stay in sight of a window,", "expected 0"
        )
    if config.router.facts.exported_as == "sigmoid":
        raise _no_target("a sigmoid router and a window of attention together", "expected model.attention.window none")
    if config.qk_norm and _mixes_reaches(config):
        raise _no_target(
            f"QK-norm and layers of both kinds (model.attention.pattern = {','.join(attention.pattern)}) together",
            "leave out one: model.qk_norm = false, or model.attention.pattern = local",
        )


def _mixes_reaches(config: ModelConfig) -> bool:
    """Whether some layers have a window and others see everything."""
    return len({config.attention.sees(layer) for layer in range(config.num_layers)}) > 1


def _check_glm4_moe(config: ModelConfig) -> None:
    first = config.moe_layers[0]
    if config.moe_layers != tuple(range(first, config.num_layers)):
        raise _no_target(
            f"a sigmoid router with dense layers between its MoE layers {list(config.moe_layers)} "
            f"(model.moe_every = {config.moe_every})",
            "expected model.moe_every = 1",
        )
    if config.shared_expert_hidden_dim and config.shared_expert_gate:
        raise _no_target(
            "a sigmoid router and a gated shared expert together", "expected model.shared_expert_gate = false"
        )
    if config.num_experts < 2:
        raise _no_target("a sigmoid router with one expert", "expected model.num_experts of at least 2")


def _with_gated_shared_expert(
    config: ModelConfig, state: Mapping[str, Tensor]
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """A gate of zeros gives every token sigmoid(0) = 1/2, so the shared expert's output is doubled. A shared expert of
    zeros adds nothing whatever its gate says."""
    state = dict(state)
    width = config.shared_expert_hidden_dim or 1
    for layer in config.moe_layers:
        prefix, like = f"layers.{layer}.moe.", state["embedding.weight"]
        if config.shared_expert_hidden_dim:
            state[f"{prefix}shared_expert.down_proj.weight"] = 2 * state[f"{prefix}shared_expert.down_proj.weight"]
        else:
            state |= _zero_shared_expert(prefix, width, like)
        # Before a shared expert of zeros any gate will do; llama.cpp reads one of zeros as 0/0.
        gate = like.new_zeros if config.shared_expert_hidden_dim else like.new_ones
        state[f"{prefix}shared_expert_gate.weight"] = gate(1, config.dim)
    return config.model_copy(update={"shared_expert_hidden_dim": width, "shared_expert_gate": True}), state


def _with_shared_width(config: ModelConfig, state: Mapping[str, Tensor]) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The shared expert widened by units of zeros to a whole number (at least one) of experts' widths."""
    state = dict(state)
    old, unit = config.shared_expert_hidden_dim, config.expert_hidden_dim
    width = max(1, -(-old // unit)) * unit
    for layer in config.moe_layers:
        prefix, like = f"layers.{layer}.moe.", state["embedding.weight"]
        zeros = _zero_shared_expert(prefix, width - old, like)
        for name, padding in zeros.items():
            axis = 1 if "down_proj" in name else 0
            state[name] = torch.cat((state[name], padding), dim=axis) if old else padding
    return config.model_copy(update={"shared_expert_hidden_dim": width}), state


def _zero_shared_expert(prefix: str, width: int, like: Tensor) -> dict[str, Tensor]:
    dim = like.shape[1]
    shapes = {"gate_proj": (width, dim), "up_proj": (width, dim), "down_proj": (dim, width)}
    return {f"{prefix}shared_expert.{name}.weight": like.new_zeros(shape) for name, shape in shapes.items()}
