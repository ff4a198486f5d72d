"""The gradient of one training step: forward, losses, backward, in equal parts of the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from moe_core.config import Config
from moe_core.config.router import RouterConfig
from moe_core.model.cross_entropy import cross_entropy
from moe_core.model.losses import StepLoad, routing_losses
from moe_core.model.routers import RouterOutput
from moe_core.model.transformer import ModelStates, MoETransformer
from moe_core.training.batches import TensorBatch
from moe_core.training.loss_scaling import LossScaling
from moe_core.training.phases import phase
from moe_core.training.repeatability import autocast_dtype

if TYPE_CHECKING:
    from moe_core.training.parallel.wrap import SpreadModel


class StepLosses(NamedTuple):
    """Scalars of one training batch, where the model is: reading one on the host waits for the step to end."""

    total: Tensor
    """What is minimised: the loss below and the auxiliary ones that model.router asks for, weighted."""
    language_model: Tensor
    """Nats per token."""
    load_balancing: Tensor
    """Mean over MoE layers; 1 = perfect balance."""
    router_z: Tensor
    """Mean over MoE layers."""
    dropped_fraction: Tensor
    """Slots without an expert: it was full, or the router wanted fewer."""
    contrastive: Tensor
    """Nats of the step's views (contrast.py), 0 without; its weighted gradient is in the parameters', too."""


def accumulate_gradient(
    model: MoETransformer,
    batch: TensorBatch,
    config: Config,
    *,
    autocast: bool,
    parts: int | None = None,
    scaling: LossScaling | None = None,
    spread: SpreadModel | None = None,
) -> tuple[StepLosses, tuple[RouterOutput, ...]]:
    """Add the gradient of one step to the parameters', in `parts` equal parts of its batch (None =
    training.gradient_accumulation). With `scaling` it is that much larger. `spread`: the same model where other
    processes have their rows of each part; the gradient is then that of all rows.

    Returns the losses, means over the parts, and what the routers chose for the tokens of all parts, both detached.
    Parts are as good as the whole but for what a router does with a whole batch: the load-balancing loss asks for
    balance within each part (E * sum f_e * P_e of a part), unless model.router.balancing = global_batch, and an
    expert's capacity is that of a part.
    """
    parts = parts or config.training.gradient_accumulation
    load = StepLoad() if spread is None else StepLoad(spread.tokens)
    losses: list[StepLosses] = []
    routed: list[tuple[RouterOutput, ...]] = []
    for number, rows in enumerate(batch.split(parts), 1):
        part = rows if spread is None else spread.own_rows(rows, is_last=number == parts)
        autocasting = torch.autocast(part.token_ids.device.type, dtype=autocast_dtype(config), enabled=autocast)
        with phase("forward"), autocasting:
            states = None if spread is None else spread.states
            part_losses, router_outputs = batch_losses(model, part, config.model.router, load, states)
        loss = part_losses.total / parts
        with phase("backward"):
            (loss if scaling is None else scaling.scaled(loss)).backward()  # type: ignore[no-untyped-call]
        losses.append(StepLosses(*(loss.detach() for loss in part_losses)))
        routed.append(tuple(output.detach() for output in router_outputs))
    means = losses[0] if parts == 1 else StepLosses(*(torch.stack(v).mean() for v in zip(*losses, strict=True)))
    if spread is not None:
        spread.finish_gradients()
        means = StepLosses(*spread.mean(torch.stack(list(means))))
    if parts == 1:
        return means, routed[0]
    return (
        means,
        tuple(RouterOutput.concatenate(layer) for layer in zip(*routed, strict=True)),
    )


def batch_losses(
    model: MoETransformer,
    batch: TensorBatch,
    router: RouterConfig,
    load: StepLoad | None = None,
    states: Callable[[Tensor], ModelStates] | None = None,
) -> tuple[StepLosses, tuple[RouterOutput, ...]]:
    """Forward pass of one training batch: what is minimised, and what the routers chose. `load`: see routing_losses.
    `states`: the pass in place of model.states, None = that."""
    states_BSD, router_outputs = (states or model.states)(batch.token_ids)
    nats = cross_entropy(states_BSD.flatten(0, 1), model.head, batch.targets.flatten())
    if not router_outputs:  # a dense model has nothing to balance
        nothing = nats.new_zeros(())
        return StepLosses(nats, nats, nothing, nothing, nothing, nothing), ()
    routing = routing_losses(router_outputs, router, load)
    dropped = torch.stack([(routed.router_indices < 0).float().mean() for routed in router_outputs]).mean()
    losses = StepLosses(
        nats + routing.total, nats, routing.load_balancing, routing.router_z, dropped, nats.new_zeros(())
    )
    return losses, router_outputs
