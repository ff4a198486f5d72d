"""What is held against each other: configurations that differ in one thing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from moe_core.config import Config, ModelConfig, validate_config
from moe_core.errors import UsageError
from moe_core.model import size

MAX_MISMATCH = 0.01
"""How far FLOPs or parameters that are meant to be equal may be apart, as a part."""
MOE, DENSE_ACTIVE, DENSE_TOTAL = "moe", "dense-active", "dense-total"


@dataclass(frozen=True)
class Arm:
    """One of the sides."""

    name: str
    """Short, for file names: lower-case letters, digits and dashes."""
    label: str
    """For people."""
    config: Config


def dense_arms(config: Config) -> list[Arm]:
    """The mixture, and two dense models as good as it can get without experts: one that costs as much to run for each
    token (floating-point operations, router included), one that has as many parameters.

    The dense models differ in nothing but the hidden width of their feed-forward blocks. Raises UsageError where no
    width comes within MAX_MISMATCH.
    """
    model = config.model
    if not model.moe_layers:
        raise UsageError("the model has no MoE layer, so there is nothing to compare; lower model.first_dense_layers")
    if model.varying_experts:
        raise UsageError(
            f"model.router.kind = {model.router.kind} gives tokens different numbers of experts, so what a token costs "
            "is known after training alone, and no dense model can be made to match; choose another kind"
        )
    context = config.training.seq_len
    active = _matched(model, "FLOPs", lambda one: size.flops_per_token(one, context))
    total = _matched(model, "parameters", size.total_parameters)
    kind = f"MoE ({model.num_experts} experts, top-{model.top_k})"
    return [
        Arm(MOE, kind, config),
        Arm(DENSE_ACTIVE, "dense of equal active FLOPs", _with_model(config, active)),
        Arm(DENSE_TOTAL, "dense of equal size", _with_model(config, total)),
    ]


def measured_flops_per_token(model: ModelConfig, context: int) -> float:
    """Forward operations a token as torch's own counter sees them in one sequence of `context` tokens, head included.

    What size.flops_per_token computes, measured: attention as if every token attended to the whole context.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from moe_core.model.transformer import MoETransformer

    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(0)
        network = MoETransformer(model).eval()
        ids = torch.randint(model.vocab_size, (1, context))
        # The counter knows no formula for the processor's fused attention; plain matrix products it counts.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            network(ids)
    return float(counter.get_total_flops()) / context


def _matched(model: ModelConfig, what: str, measure: Callable[[ModelConfig], int]) -> ModelConfig:
    found = size.nearest_dense(model, measure)
    mismatch = measure(found) / measure(model) - 1
    if abs(mismatch) > MAX_MISMATCH:
        raise UsageError(
            f"no dense model has as many {what} as the mixture: the nearest, of hidden width {found.dense_hidden_dim}, "
            f"differs by {mismatch:+.1%}; choose a larger model.dim or model.expert_hidden_dim"
        )
    return found


def _with_model(config: Config, model: ModelConfig) -> Config:
    return validate_config({**config.model_dump(), "model": model.model_dump()})
