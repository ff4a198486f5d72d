"""Tokens sorted by expert, each expert's rows in slices; forward and backward by hand.

Autograd over the same slices copies them together again, and indexing a stacked [E, ...] parameter per expert gives
each expert a full-size gradient, which is O(E^2) memory traffic. Values between the products are never kept for all
rows. They are computed in one small workspace, which stays in the cache, because fresh large buffers cost more time in
page faults than the arithmetic in them. Only the inputs of the activation are kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from moe_core.model.activation import SILU, Activation

PIECE_ROWS = 1024
"""Rows computed at a time, so few that the workspace stays in the cache."""
COLUMNS_BELOW = 192
"""Products of fewer rows are written column by column: MKL is then up to three times as fast."""
ROWS_BELOW = 12
"""Products with the second matrix as it lies, not transposed, are faster row by row for fewer rows than this; and what
lies column by column is better copied before it is multiplied."""


class Piece(NamedTuple):
    """Consecutive rows, sorted by expert, of one expert."""

    expert: int
    start: int
    end: int
    first: bool
    """Whether it is the first of its expert's pieces."""


class _Weights(NamedTuple):
    gate: Tensor
    up: Tensor
    down: Tensor


def sorted_slices(
    x_TD: Tensor,
    scores_TK: Tensor,
    indices_TK: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    activation: Activation = SILU,
) -> Tensor:
    """See Way. Sums are taken in the same order every time."""
    slots_N, pieces = sort_by_expert(indices_TK, len(gate))
    tokens_N = slots_N.div(indices_TK.shape[1], rounding_mode="floor")
    scores_N = scores_TK.flatten().gather(0, slots_N)
    if torch.is_grad_enabled():
        given = x_TD, scores_N, gate, up, down, tokens_N, pieces, activation
        out_TD: Tensor = _Slices.apply(*given)  # type: ignore[no-untyped-call]
        return out_TD
    return _forward_pass(x_TD, scores_N, _Weights(gate, up, down), tokens_N, pieces, None, activation)


def sort_by_expert(indices_TK: Tensor, num_experts: int) -> tuple[Tensor, list[Piece]]:
    """Used slots (t * K + k) [N] ordered by expert, then by token; and the pieces they are computed in."""
    indices_N = indices_TK.flatten()
    unused, *counts = torch.bincount(indices_N + 1, minlength=num_experts + 1).tolist()
    slots_N = indices_N.argsort(stable=True)[unused:]
    return slots_N, list(_cut_into_pieces(counts))


def _cut_into_pieces(counts: list[int]) -> Iterator[Piece]:
    start = 0
    for expert, count in enumerate(counts):
        end = start + count
        for begin in range(start, end, PIECE_ROWS):
            yield Piece(expert, begin, min(begin + PIECE_ROWS, end), begin == start)
        start = end


class _Workspace:
    """Buffers for one piece at a time, allocated once for all pieces."""

    def __init__(self, like: Tensor, pieces: list[Piece], **widths: int) -> None:
        rows = max((piece.end - piece.start for piece in pieces), default=0)
        self._flat = {name: like.new_empty(rows * width) for name, width in widths.items()}
        self._widths = widths

    def rows(self, name: str, count: int) -> Tensor:
        """[count, width], row by row in memory."""
        width = self._widths[name]
        return self._flat[name][: count * width].view(count, width)

    def product(self, name: str, count: int) -> Tensor:
        """[count, width], in the order in which a product with a transposed matrix is written fastest."""
        return _ordered_rows(self._flat[name], 0, count, self._widths[name])

    def plain_product(self, name: str, count: int) -> Tensor:
        """The same with a matrix that is not transposed."""
        return self.rows(name, count) if count < ROWS_BELOW else self.product(name, count)


def _ordered_rows(flat: Tensor, start: int, count: int, width: int) -> Tensor:
    """Rows `start` to `start + count` of a buffer of rows of `width`, as [count, width]."""
    part = flat[start * width : (start + count) * width]
    if count < COLUMNS_BELOW and flat.dtype == torch.float32:
        return part.view(width, count).t()
    return part.view(count, width)


def _forward_pass(
    x_TD: Tensor,
    scores_N: Tensor,
    weights: _Weights,
    tokens_N: Tensor,
    pieces: list[Piece],
    kept: tuple[Tensor, Tensor] | None,
    activation: Activation,
) -> Tensor:
    """sum of scores[n] * expert_of_n(x[tokens[n]]) over the rows n of a token; fills `kept`, gate and up products."""
    D, F = x_TD.shape[1], weights.gate.shape[1]
    space = _Workspace(x_TD, pieces, x=D, gate=F, up=F, y=D, scaled=D)
    out_TD = torch.zeros_like(x_TD)
    for expert, start, end, _ in pieces:
        n = end - start
        tokens, scores = tokens_N[start:end], scores_N[start:end, None]
        x = torch.index_select(x_TD, 0, tokens, out=space.rows("x", n))
        if kept is None:
            gate, up = space.product("gate", n), space.product("up", n)
        else:
            gate, up = (_ordered_rows(buffer, start, n, F) for buffer in kept)
        torch.mm(x, weights.gate[expert].t(), out=gate)
        torch.mm(x, weights.up[expert].t(), out=up)
        hidden = space.product("gate", n)
        activation.value_out(gate, out=hidden)
        hidden.mul_(up)
        y = torch.mm(
            hidden.contiguous() if n < ROWS_BELOW else hidden, weights.down[expert].t(), out=space.product("y", n)
        )
        out_TD.index_add_(0, tokens, torch.mul(y, scores, out=space.rows("scaled", n)))
    return out_TD


class _Slices(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        scores_N: Tensor,
        gate: Tensor,
        up: Tensor,
        down: Tensor,
        tokens_N: Tensor,
        pieces: list[Piece],
        activation: Activation,
    ) -> Tensor:
        kept = x_TD.new_empty(len(tokens_N) * gate.shape[1]), x_TD.new_empty(len(tokens_N) * gate.shape[1])
        ctx.save_for_backward(x_TD, scores_N, gate, up, down, tokens_N, *kept)
        ctx.pieces, ctx.activation = pieces, activation
        return _forward_pass(x_TD, scores_N, _Weights(gate, up, down), tokens_N, pieces, kept, activation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out_TD: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, scores_N, *stacked, tokens_N, gate_NF, up_NF = ctx.saved_tensors
        weights, pieces, activation = _Weights(*stacked), ctx.pieces, ctx.activation
        D, F = x_TD.shape[1], weights.gate.shape[1]
        space = _Workspace(x_TD, pieces, rows=D, active=F, hidden=F, d_hidden=F, d_x=D)
        d_x_TD, d_scores_N = torch.zeros_like(x_TD), torch.empty_like(scores_N)
        d_weights = _Weights(*(_empty_where_visited(weight, pieces) for weight in weights))
        for piece in pieces:
            expert, start, end, _ = piece
            n = end - start
            tokens, scores = tokens_N[start:end], scores_N[start:end, None]
            gate, up = _ordered_rows(gate_NF, start, n, F), _ordered_rows(up_NF, start, n, F)
            active, hidden, d_hidden = (space.plain_product(name, n) for name in ("active", "hidden", "d_hidden"))
            activation.value_out(gate, out=active)
            torch.mul(active, up, out=hidden)
            d_out = torch.index_select(d_out_TD, 0, tokens, out=space.rows("rows", n))
            # The score is multiplied in as late as possible, into rows of width D: rows of width F hold more numbers.
            torch.mm(d_out, weights.down[expert], out=d_hidden)
            _add_product(d_weights.down, piece, d_out.mul_(scores), hidden)
            torch.sum(hidden.mul_(d_hidden), dim=1, out=d_scores_N[start:end])
            d_up = active.mul_(d_hidden)
            d_gate = activation.gradient_out(d_hidden.mul_(up), gate, grad_input=d_hidden)
            x = torch.index_select(x_TD, 0, tokens, out=space.rows("rows", n)).mul_(scores)
            _add_product(d_weights.gate, piece, d_gate, x)
            _add_product(d_weights.up, piece, d_up, x)
            d_x = torch.mm(d_gate, weights.gate[expert], out=space.plain_product("d_x", n)).addmm_(
                d_up, weights.up[expert]
            )
            d_x_TD.index_add_(0, tokens, torch.mul(d_x, scores, out=space.rows("rows", n)))
        return d_x_TD, d_scores_N, *d_weights, None, None, None


def _empty_where_visited(weight: Tensor, pieces: list[Piece]) -> Tensor:
    """A gradient to fill: zero for experts without tokens, anything for the others, which are overwritten whole."""
    unvisited = set(range(len(weight))) - {piece.expert for piece in pieces}
    if 2 * len(unvisited) > len(weight):
        return torch.zeros_like(weight)  # all threads share this work; one expert at a time is too little for them
    gradient = torch.empty_like(weight)
    for expert in unvisited:
        gradient[expert].zero_()
    return gradient


def _add_product(gradient: Tensor, piece: Piece, left_nA: Tensor, right_nB: Tensor) -> None:
    """gradient[expert] = left^T right, added to what earlier pieces left there."""
    if piece.first:
        torch.mm(left_nA.t(), right_nB, out=gradient[piece.expert])
    else:
        gradient[piece.expert].addmm_(left_nA.t(), right_nB)
