"""Fine-tuning: the run whose weights and tokenizer a new one starts from (training.init_from)."""

from __future__ import annotations

from typing import Any

import torch

from moe_core.config import Config
from moe_core.data.tokenizer import Tokenizer
from moe_core.errors import UsageError
from moe_core.runs.checkpoint import LoadedRun, find_checkpoint, load_run
from moe_core.runs.folder import RunFolder

# How the model trains, how long its RoPE tables are, or how far it looks: the weights are the same without them.
FREE_MODEL_KEYS = ("attention", "capacity_factor", "max_seq_len", "expert_hidden_dropout", "rope", "router")
FREE_ROUTER_KEYS = (
    "noise_std", "bias_update_speed", "load_balancing_loss_coef", "router_z_loss_coef", "entropy_loss_coef",
    "threshold_decay", "expert_dropout", "expert_output_dropout", "balancing",
)  # fmt: skip


def origin_of(run: RunFolder, config: Config, device: torch.device) -> LoadedRun | None:
    """The run that `config.training.init_from` names, beside `run`, at its newest checkpoint; None = random weights.

    Raises RunError when it is missing or damaged, UsageError when its weights are not of the model configured.
    """
    name = config.training.init_from
    if name is None:
        return None
    origin = load_run(name, run.root, device=device)
    model, theirs = config.model, origin.config.model
    pairs: dict[str, tuple[Any, Any]] = {
        **{f"model.{key}": (getattr(model, key), getattr(theirs, key)) for key in _bound_keys(model, FREE_MODEL_KEYS)},
        **{
            f"model.router.{key}": (getattr(model.router, key), getattr(theirs.router, key))
            for key in _bound_keys(model.router, FREE_ROUTER_KEYS)
        },
    }
    pairs["model.attention.sinks"] = (model.attention.sinks, theirs.attention.sinks)
    if model.router.has_bias != theirs.router.has_bias:
        pairs["model.router.balancing"] = (model.router.balances_by, theirs.router.balances_by)
    for key, (asked, given) in pairs.items():
        if asked != given:
            raise UsageError(
                f"{key} = {asked!r} does not fit the weights of run {name!r}, where it is {given!r}; leave it out, or "
                "train a new run without --init-from"
            )
    return origin


def tokenizer_of(run: RunFolder, config: Config, origin: LoadedRun | None) -> Tokenizer | None:
    """The tokenizer to use; None = train one. A run that is resumed has its own: its origin may be gone by then."""
    if origin is not None:
        return origin.tokenizer
    if config.training.init_from is None:
        return None
    return Tokenizer.load(find_checkpoint(run) / "tokenizer.json")


def _bound_keys(section: object, free: tuple[str, ...]) -> list[str]:
    return [key for key in type(section).model_fields if key not in free]  # type: ignore[attr-defined]
