"""Experts that several processes share: tokens travel to them and back (all-to-all)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from moe_core.model.experts import Experts
from moe_core.model.routers import tokens_per_expert
from moe_core.training.shared_weights import local_part

WEIGHTS = ("gate_proj", "up_proj", "down_proj")


class SpreadExperts(Experts):
    """The same experts, E / ranks of them in each process of `mesh`, in order. No token is dropped on the way."""

    def __init__(self, whole: Experts, mesh: DeviceMesh) -> None:
        nn.Module.__init__(self)
        self._activation, self.hidden_dropout = whole._activation, whole.hidden_dropout
        self._null_output = whole._null_output
        self.training = whole.training
        self._group: Any = mesh.get_group()
        self._ranks = mesh.size()
        self._num_experts = len(whole.gate_proj)
        for name in WEIGHTS:
            mine = whole.get_parameter(name).detach().chunk(self._ranks)[mesh.get_local_rank()].clone()
            setattr(self, name, nn.Parameter(DTensor.from_local(mine, mesh, [Shard(0)], run_check=False)))

    def _networks(self, x_TD: Tensor, scores_TK: Tensor, indices_TK: Tensor) -> Tensor:
        """See Experts. Every process of the mesh must call it at the same time."""
        # 1. The used slots, by expert, hence by process.
        experts_N, slots_N = indices_TK.flatten().sort(stable=True)
        slots_N = slots_N[experts_N >= 0]
        experts_N = experts_N[experts_N >= 0]
        tokens_N = slots_N.div(indices_TK.shape[1], rounding_mode="floor")
        per_expert = tokens_per_expert(indices_TK, self._num_experts)
        # 2. Every process tells every other how many rows come, then which experts they want, and the rows.
        sent = per_expert.view(self._ranks, -1).sum(dim=1)
        received = torch.empty_like(sent)
        distributed.all_to_all_single(received, sent, group=self._group)
        outward, inward = sent.tolist(), received.tolist()
        wanted_M = experts_N.new_empty(sum(inward))
        distributed.all_to_all_single(wanted_M, experts_N, inward, outward, group=self._group)
        x_MD = _exchange(x_TD[tokens_N], outward, inward, self._group)
        # 3. The experts that are here, one for each row, with weight 1.
        local = self._num_experts // self._ranks
        gate, up, down = (local_part(getattr(self, name)) for name in WEIGHTS)
        one_M1 = x_MD.new_ones(len(x_MD), 1)
        if len(x_MD):
            y_MD = self.visit(x_MD, one_M1, (wanted_M % local)[:, None], gate, up, down)
        else:  # backward must come by here all the same
            y_MD = x_MD + 0.0 * (gate.sum() + up.sum() + down.sum())
        # 4. Back, and weighted where the token lives.
        y_ND = _exchange(y_MD, inward, outward, self._group)
        weighted_ND = y_ND * scores_TK.flatten()[slots_N].to(y_ND.dtype)[:, None]
        return torch.zeros_like(x_TD, dtype=y_ND.dtype).index_add(0, tokens_N, weighted_ND)


def _exchange(rows: Tensor, outward: list[int], inward: list[int], group: Any) -> Tensor:
    """[sum(outward), D] -> [sum(inward), D], rows for the first process first; the gradient travels back."""
    exchanged: Tensor = _Exchange.apply(rows, outward, inward, group)  # type: ignore[no-untyped-call]
    return exchanged


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, outward: list[int], inward: list[int], group: Any) -> Tensor:
        ctx.back = inward, outward, group
        return _all_to_all(rows, outward, inward, group)

    @staticmethod
    def backward(ctx: Any, d_rows: Tensor) -> tuple[Tensor | None, ...]:
        return _all_to_all(d_rows, *ctx.back), None, None, None


def _all_to_all(rows: Tensor, outward: list[int], inward: list[int], group: Any) -> Tensor:
    exchanged = rows.new_empty(sum(inward), rows.shape[1])
    distributed.all_to_all_single(exchanged, rows.contiguous(), inward, outward, group=group)
    return exchanged
