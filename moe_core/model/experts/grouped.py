"""All experts in one call of torch's grouped_mm, forward and backward by hand: for accelerators, where every launch
costs, and on a CPU for gradients where an expert has few rows (docs/LOG.md, 2026-11-23 and 2026-11-28, dispatch).

Autograd over the same calls adds the gathered rows' gradients one by one (index_add), keeps seven buffers where two
are needed, and has to zero what memory held in unused rows. Here every sum over slots is a gather and a sum over K, in
one order, and rows of unused slots are never read.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from moe_core.model.activation import SILU, Activation


class _Order(NamedTuple):
    """The N = T * K slots sorted by expert, unused ones last."""

    slots: Tensor
    """int64 [N], t * K + k of each row."""
    places: Tensor
    """int64 [N], the row of each slot; of an unused one the first row, which its score of 0 takes out of every sum."""
    ends: Tensor
    """int32 [E], where each expert's rows end. Rows behind the last end are neither read nor written."""


def grouped_product(
    x_TD: Tensor,
    scores_TK: Tensor,
    indices_TK: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    activation: Activation = SILU,
) -> Tensor:
    """See Way. The host never waits for the device. Weights of another dtype than x are cast to it."""
    unused_TK = indices_TK < 0
    order = _sort_by_expert(indices_TK, unused_TK, len(gate))
    scores_TK = scores_TK.masked_fill(unused_TK, 0.0)
    if torch.is_grad_enabled():
        out_TD: Tensor = _Grouped.apply(x_TD, scores_TK, gate, up, down, *order, activation)  # type: ignore[no-untyped-call]
        return out_TD
    *outward, inward = _cast(gate, up, down, x_TD.dtype)
    x_ND = _gather(x_TD, order.slots, indices_TK.shape[1])
    y_ND = _product(_hidden([_product(x_ND, weight, order.ends) for weight in outward], activation), inward, order.ends)
    # Infinity in the first row must not reach other tokens; in training it spoils the step by way of the loss anyway.
    y_TKD = _in_slots(y_ND, order.places, scores_TK).masked_fill_(unused_TK[:, :, None], 0.0)
    return y_TKD.mul_(scores_TK[:, :, None]).sum(dim=1)


class _Grouped(torch.autograd.Function):
    """Keeps x, which its neighbours keep too, and the two inputs of the activation."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        scores_TK: Tensor,
        gate: Tensor,
        up: Tensor,
        down: Tensor,
        slots_N: Tensor,
        places_N: Tensor,
        ends_E: Tensor,
        activation: Activation,
    ) -> Tensor:
        ctx.activation = activation
        *outward, inward = weights = _cast(gate, up, down, x_TD.dtype)
        x_ND = _gather(x_TD, slots_N, scores_TK.shape[1])
        inner = [_product(x_ND, weight, ends_E) for weight in outward]
        # The casts of all layers are much memory; an accelerator makes them again in little time, a CPU does not.
        casts = weights if x_TD.is_cpu else []
        ctx.save_for_backward(x_TD, scores_TK, slots_N, places_N, ends_E, gate, up, down, *inner, *casts)
        y_ND = _product(_hidden(inner, activation), inward, ends_E)
        return _in_slots(y_ND, places_N, scores_TK).mul_(scores_TK[:, :, None]).sum(dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out_TD: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, scores_TK, slots_N, places_N, ends_E, gate, up, down, *others = ctx.saved_tensors
        joined = gate.dtype != x_TD.dtype
        inner, casts = others[: 1 if joined else 2], others[1 if joined else 2 :]
        *outward, inward = casts or _cast(gate, up, down, x_TD.dtype)
        K, product = scores_TK.shape[1], nn.functional.grouped_mm
        scores_N1 = scores_TK.flatten().index_select(0, slots_N)[:, None]
        gate_NF, up_NF = _gate_and_up(inner)
        d_out_ND = _gather(d_out_TD, slots_N, K)
        active_NF = ctx.activation.value(gate_NF)
        hidden_NF = active_NF * up_NF
        # The score is multiplied in as late as possible, into rows of width D; the gradient of the score comes first.
        d_hidden_NF = product(d_out_ND, inward, offs=ends_E)
        d_down = product(d_out_ND.mul_(scores_N1).t(), hidden_NF, offs=ends_E)
        d_scores_N = hidden_NF.mul_(d_hidden_NF).sum(dim=1)
        d_up_NF = active_NF.mul_(d_hidden_NF)
        d_gate_NF = ctx.activation.gradient(d_hidden_NF.mul_(up_NF), gate_NF)
        d_inner = [torch.cat((d_gate_NF, d_up_NF), dim=1)] if joined else [d_gate_NF, d_up_NF]
        x_ND = _gather(x_TD, slots_N, K).mul_(scores_N1)
        d_weights = [product(d_rows.t(), x_ND, offs=ends_E) for d_rows in d_inner]
        d_gate, d_up = _gate_and_up(d_weights)
        d_x_ND, *more = (product(*pair, offs=ends_E) for pair in zip(d_inner, outward, strict=True))
        for rows_ND in more:
            d_x_ND += rows_ND
        d_x_TD = _in_slots(d_x_ND, places_N, scores_TK).mul_(scores_TK[:, :, None]).sum(dim=1)
        d_scores_TK = d_scores_N.index_select(0, places_N).view_as(scores_TK)
        return d_x_TD, d_scores_TK, d_gate.to(gate.dtype), d_up.to(up.dtype), d_down.to(down.dtype), *[None] * 4


def _sort_by_expert(indices_TK: Tensor, unused_TK: Tensor, num_experts: int) -> _Order:
    indices_N, unused_N = indices_TK.flatten(), unused_TK.flatten()
    sorted_N, slots_N = indices_N.masked_fill(unused_N, num_experts).sort(stable=True)
    experts_E = torch.arange(num_experts, device=indices_N.device)
    ends_E = torch.searchsorted(sorted_N, experts_E, right=True, out_int32=True)
    # If no slot is used at all, the last expert computes the first row, so that it holds numbers.
    ends_E[-1:].clamp_(min=min(1, len(slots_N)))
    rows_N = torch.arange(len(slots_N), device=indices_N.device)
    places_N = torch.empty_like(slots_N).scatter_(0, slots_N, rows_N)
    return _Order(slots_N, places_N.masked_fill_(unused_N, 0), ends_E)


def _gather(x_TD: Tensor, slots_N: Tensor, top_k: int) -> Tensor:
    """[N, D], the token of each row."""
    return x_TD.index_select(0, slots_N.div(top_k, rounding_mode="floor"))


def _in_slots(rows_ND: Tensor, places_N: Tensor, scores_TK: Tensor) -> Tensor:
    """[T, K, D], rows back in the order of slots, so that a token's sum is taken in one order."""
    return rows_ND.index_select(0, places_N).view(*scores_TK.shape, -1)


def _product(rows: Tensor, weight: Tensor, ends_E: Tensor) -> Tensor:
    return nn.functional.grouped_mm(rows, weight.transpose(1, 2), offs=ends_E)


def _cast(gate: Tensor, up: Tensor, down: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """[gate, up, down]; where a cast copies them anyway [gate and up in one [E, 2F, D], down], a product less."""
    if gate.dtype == dtype:
        return [gate, up, down]
    E, F, D = gate.shape
    both = gate.new_empty(E, 2 * F, D, dtype=dtype)
    both[:, :F] = gate
    both[:, F:] = up
    return [both, down.to(dtype)]


def _gate_and_up(parts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """What belongs to gate and to up, each [.., F, ..] along axis 1, of one tensor for both or of two."""
    gate, up = parts if len(parts) == 2 else parts[0].chunk(2, dim=1)
    return gate, up


def _hidden(inner: list[Tensor], activation: Activation) -> Tensor:
    gate_NF, up_NF = _gate_and_up(inner)
    return activation.value(gate_NF).mul_(up_NF)
