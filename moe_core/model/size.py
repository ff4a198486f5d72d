"""How large and how costly a configured model is, before one is built. Tests hold these against real tensors."""

from __future__ import annotations

import os

from moe_core.config import ModelConfig
from moe_core.errors import UsageError


def total_parameters(config: ModelConfig) -> int:
    """All weights of the model; the tied embedding counts once."""
    return _parameters(config, config.num_experts)


def active_parameters(config: ModelConfig) -> int:
    """Weights that one token passes: as total_parameters, with top_k experts per MoE layer instead of all."""
    return _parameters(config, config.top_k)


def flops_per_token(config: ModelConfig, context_len: int) -> int:
    """Floating-point operations (2 per multiply-add) of the forward pass of one token that attends to `context_len`.

    Counts every matrix product, the output head included; the embedding lookup, norms and activations are left out.
    """
    dense, moe = _layer_kinds(config)
    multiply_adds = config.num_layers * (_attention_matrices(config) + 2 * context_len * _query_dim(config))
    multiply_adds += dense * 3 * config.dim * config.dense_hidden_dim
    multiply_adds += moe * (_router_and_shared(config) + config.top_k * _expert(config))
    return 2 * (multiply_adds + config.vocab_size * config.dim)


def check_fits_memory(config: ModelConfig) -> None:
    """Raise UsageError if the float32 weights alone exceed this machine's memory."""
    needed = 4 * total_parameters(config)
    present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > present:
        raise UsageError(
            f"a model of {total_parameters(config):,} parameters needs {needed / 2**30:,.1f} GiB for its weights, this "
            f"machine has {present / 2**30:,.1f} GiB; lower model.num_experts, model.dim or model.vocab_size"
        )


def _parameters(config: ModelConfig, experts: int) -> int:
    dense, moe = _layer_kinds(config)
    norms = 2 * config.dim + (2 * config.head_dim if config.qk_norm else 0)
    total = config.num_layers * (_attention_matrices(config) + norms)
    total += dense * 3 * config.dim * config.dense_hidden_dim
    total += moe * (_router_and_shared(config) + experts * _expert(config))
    return total + config.vocab_size * config.dim + config.dim


def _layer_kinds(config: ModelConfig) -> tuple[int, int]:
    moe = len(config.moe_layers)
    return config.num_layers - moe, moe


def _query_dim(config: ModelConfig) -> int:
    return config.num_heads * config.head_dim


def _attention_matrices(config: ModelConfig) -> int:
    return 2 * config.dim * (_query_dim(config) + config.num_kv_heads * config.head_dim)


def _expert(config: ModelConfig) -> int:
    return 3 * config.dim * config.expert_hidden_dim


def _router_and_shared(config: ModelConfig) -> int:
    shared = 3 * config.dim * config.shared_expert_hidden_dim
    gate = config.dim if config.shared_expert_hidden_dim and config.shared_expert_gate else 0
    return config.num_experts * config.dim + shared + gate
