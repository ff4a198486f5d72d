"""The forward pass of our model one layer at a time: to look between the parts of a block, and to go on from there.

A test holds it against the model's own forward pass, bit for bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

from moe_core.model.rope import rope_angles
from moe_core.model.routers import RouterContext

if TYPE_CHECKING:
    from torch import Tensor

    from moe_core.model.routers import RouterOutput
    from moe_core.model.transformer import Block, MoETransformer


class MoEStep(NamedTuple):
    """One MoE layer on the way through the model; T = B * S."""

    residual: Tensor
    """[B, S, D] the residual stream after attention, to which the experts' output is added."""
    normed: Tensor
    """[T, D] what router and experts read: the same, normalised."""
    routed: RouterOutput
    after: Tensor
    """[B, S, D] the residual stream after the layer."""


def block_of(model: MoETransformer, layer: int) -> Block:
    """The block of a layer number."""
    return cast("Block", model.layers[layer])


def through(model: MoETransformer, x_BSD: Tensor, first: int, end: int, token_ids: Tensor | None = None) -> Tensor:
    """The residual stream before layer `first` -> before layer `end` (after the last one: num_layers).

    `token_ids` [B, S]: needed only where a router does not choose by the token's state alone.
    """
    cos, sin = _angles(model, x_BSD)
    for layer in range(first, end):
        x_BSD, _ = block_of(model, layer)(x_BSD, cos, sin, _context(token_ids))
    return x_BSD


def moe_step(model: MoETransformer, x_BSD: Tensor, layer: int, token_ids: Tensor | None = None) -> MoEStep:
    """Go through MoE layer `layer`, keeping what lies between its parts; `token_ids` as in `through`."""
    block = block_of(model, layer)
    assert block.moe is not None
    cos, sin = _angles(model, x_BSD)
    residual_BSD = x_BSD + block.attention(block.attention_norm(x_BSD), cos, sin, None)
    normed_TD: Tensor = block.feed_forward_norm(residual_BSD).flatten(0, 1)
    out_TD, routed = block.moe(normed_TD, _context(token_ids))
    return MoEStep(residual_BSD, normed_TD, routed, residual_BSD + out_TD.view_as(residual_BSD))


def _context(token_ids: Tensor | None) -> RouterContext | None:
    return None if token_ids is None else RouterContext(token_ids, None)


def _angles(model: MoETransformer, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
    return rope_angles(model.config, 0, x_BSD.shape[1], x_BSD.device)
