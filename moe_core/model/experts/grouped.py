"""All experts in one call of torch's grouped_mm: for accelerators, where every launch costs, and on a CPU for
gradients where an expert has few rows (docs/LOG.md, 2026-11-23, dispatch)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def grouped_product(
    x_TD: Tensor, scores_TK: Tensor, indices_TK: Tensor, gate: Tensor, up: Tensor, down: Tensor
) -> Tensor:
    """See Way. The host never waits for the device."""
    E, (T, K) = len(gate), indices_TK.shape
    # Unused slots sort behind all experts, where grouped_mm neither reads nor writes: what memory held there, in
    # the backward pass too, is masked.
    indices_N = indices_TK.flatten()
    sorted_N, slots_N = torch.where(indices_N < 0, E, indices_N).sort(stable=True)
    ends_E = torch.searchsorted(sorted_N, torch.arange(E, device=x_TD.device), right=True).to(torch.int32)
    unused_N1 = (sorted_N == E)[:, None]
    x_ND = x_TD.index_select(0, slots_N.div(K, rounding_mode="floor")).masked_fill(unused_N1, 0.0)

    def product(rows: Tensor, weight: Tensor) -> Tensor:
        return nn.functional.grouped_mm(rows, weight.transpose(1, 2), offs=ends_E)

    y_ND = product(nn.functional.silu(product(x_ND, gate)) * product(x_ND, up), down).masked_fill(unused_N1, 0.0)
    # Back in the order of slots, so that a token's sum is taken in one order.
    places_N = torch.empty_like(slots_N).scatter_(0, slots_N, torch.arange(T * K, device=x_TD.device))
    y_TKD = y_ND.index_select(0, places_N).view(T, K, -1)
    return (y_TKD * scores_TK[:, :, None]).sum(dim=1)
