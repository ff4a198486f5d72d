"""What routers and their losses ask of the tokens that other processes of a training see."""

from __future__ import annotations

from torch import Tensor


class AllTokens:
    """Sums and lists over the tokens of a whole training batch; here all of them are in this process."""

    are_elsewhere = False
    """True = other processes hold tokens of the same batch."""

    def add_up(self, values: Tensor) -> Tensor:
        """The sum of `values` over all processes, same shape; no gradient."""
        return values

    def add_up_with_gradient(self, values: Tensor) -> Tensor:
        """The same with a gradient: each process's share of it is that of its own tokens, times the processes, because
        gradients of processes are averaged."""
        return values

    def concatenate(self, rows: Tensor) -> Tensor:
        """[T, ...] of each process -> [processes * T, ...], in their order; no gradient."""
        return rows


ALL_HERE = AllTokens()
