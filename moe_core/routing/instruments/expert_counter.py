"""Count what the routers of a model in training choose, on its device, without waiting for it.

A hook on each router adds to a few numbers that stay on the device; `take` reads them, once every so many steps. The
hooks are plain tensor code, so that torch.compile makes them part of what it compiles.

What counts is a pass of training: the model is in training mode and gradients are on. A part that gradient
checkpointing computes once more runs outside of any such pass, so its tokens are not counted again. Where a pass got an
attention mask [B,S], tokens of mask 0 (padding) do not count.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_core.errors import TraceError
from moe_core.routing.instruments.contract import Call, Hook, Router, is_recomputing, layer_of
from moe_core.routing.instruments.find import find_routers
from moe_core.routing.trace.types import Float64Array, Int64Array

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

MASK = "attention_mask"


@dataclass(frozen=True, eq=False)
class Tally:
    """What was counted between two readings. Two of them add up, whether of other steps or of other ranks."""

    tokens_per_expert: Int64Array
    """[L,E] choices."""
    unused: Int64Array
    """[L] slots without an expert: it was full, or the router wanted fewer."""
    padding: Int64Array
    """[L] slots of tokens that do not count."""
    entropy: Float64Array
    """[L,2] sum of the tokens' router entropies, each 0..1, and of how many; of measured steps only."""

    @classmethod
    def nothing(cls, num_layers: int, num_experts: int) -> Tally:
        """Of no token."""
        counts = np.zeros((num_layers, num_experts), np.int64)
        return cls(counts, counts.sum(axis=1), counts.sum(axis=1), np.zeros((num_layers, 2)))

    def flat(self) -> Float64Array:
        """All numbers in a row, for adding up over processes; `like` undoes it."""
        return np.concatenate([np.ravel(part).astype(np.float64) for part in self._parts()])

    def like(self, flat: Float64Array) -> Tally:
        """The tally of these numbers, for the same layers and experts."""
        ends = np.cumsum([part.size for part in self._parts()])[:-1]
        pieces = zip(np.split(flat, ends), self._parts(), strict=True)
        counts, unused, padding, entropy = (piece.reshape(part.shape) for piece, part in pieces)
        return Tally(counts.astype(np.int64), unused.astype(np.int64), padding.astype(np.int64), entropy)

    def _parts(self) -> tuple[Int64Array, Int64Array, Int64Array, Float64Array]:
        return self.tokens_per_expert, self.unused, self.padding, self.entropy

    def slots(self) -> Int64Array:
        """[L] choices that the tokens which count could make: K for each."""
        filled: Int64Array = self.tokens_per_expert.sum(axis=1)
        return filled + self.unused


class ExpertCounter:
    """The hooks on a model and what they add up. Raises TraceError for a model without routers or with unequal ones."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._rows = {layer: _Row(router) for layer, router in find_routers(model).items()}
        for row in self._rows.values():
            row.router.form.waits = False
        sizes = {(row.num_experts, row.top_k) for row in self._rows.values()}
        if len(sizes) > 1 or 0 in next(iter(sizes)):
            raise TraceError(
                "the layers' numbers of experts, and of those for each token, are "
                f"{', '.join(f'{experts} and {top_k}' for experts, top_k in sorted(sizes))} (0 = not told); expected "
                "the same of each layer"
            )
        self._pass: str | None = None
        """Name of the module whose forward pass is under way and counts."""
        self._mask: Tensor | None = None
        self.measures_entropy = True
        """Whether the passes that follow add to Tally.entropy; in what torch.compile compiled they always do."""
        self.masked = False
        """True once a pass came with an attention mask."""
        self.fault: Exception | None = None
        """Why a hook could not count; from then on none does. The model's pass goes on."""

    @property
    def layers(self) -> list[int]:
        """Layer numbers, ascending."""
        return list(self._rows)

    @property
    def routers(self) -> list[Router]:
        """One a layer."""
        return [row.router for row in self._rows.values()]

    @property
    def num_experts(self) -> int:
        """E."""
        return next(iter(self._rows.values())).num_experts

    @property
    def top_k(self) -> int:
        """K."""
        return next(iter(self._rows.values())).top_k

    @contextmanager
    def attached(self) -> Iterator[ExpertCounter]:
        """Count inside the block; the hooks come off in every case."""
        handles: list[Any] = []
        try:
            for name, module in _around(self._model, [row.router for row in self._rows.values()]).items():
                handles.append(module.register_forward_pre_hook(Hook(self._beginning(name, module)), with_kwargs=True))
                handles.append(module.register_forward_hook(Hook(self._end(name))))
            for row in self._rows.values():
                handles += row.router.attach(self._counting(row))
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def take(self) -> Tally:
        """What was counted since the last time; waits for the device. Nothing yet of a layer: zeros."""
        import torch

        L, E = len(self._rows), self.num_experts
        counts, entropy = np.zeros((L, E + 2), np.int64), np.zeros((L, 2))
        places: dict[torch.device, list[int]] = {}
        rows = list(self._rows.values())
        for number, row in enumerate(rows):
            if row.counts is not None:
                places.setdefault(row.counts.device, []).append(number)
        for numbers in places.values():  # one transfer a device
            counts[numbers] = torch.stack([rows[n].counts for n in numbers]).cpu().numpy()  # type: ignore[misc]
            entropy[numbers] = torch.stack([rows[n].entropy for n in numbers]).cpu().numpy()  # type: ignore[misc]
            for number in numbers:
                rows[number].clear()
        self._pass = self._mask = None  # of a pass that an exception ended
        return Tally(counts[:, 1:-1].copy(), counts[:, 0].copy(), counts[:, -1].copy(), entropy)

    def _beginning(self, name: str, module: nn.Module) -> Callable[..., None]:
        place = _place_of_mask(module)

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            import torch

            if not name or self._pass is None:
                counts = module.training and torch.is_grad_enabled()
                if counts and not torch.compiler.is_compiling():
                    counts = not is_recomputing()
                self._pass, self._mask = (name if counts else None), None
            if self._pass is not None and self._mask is None:
                mask = kwargs.get(MASK, args[place] if place is not None and place < len(args) else None)
                if isinstance(mask, torch.Tensor) and mask.dim() == 2 and not mask.is_floating_point():
                    self._mask, self.masked = mask, True

        return before

    def _end(self, name: str) -> Callable[..., None]:
        def after(module: nn.Module, args: object, output: object) -> None:  # noqa: ARG001 - torch's signature
            if self._pass == name:
                self._pass = self._mask = None

        return after

    def _counting(self, row: _Row) -> Callable[[Call], None]:
        def count(call: Call) -> None:
            import torch

            if self._pass is None or self.fault is not None:
                return
            try:
                with torch.no_grad():
                    choice = row.router.read(call)
                    keep = self._mask
                    if keep is not None:
                        keep = keep.reshape(-1) != 0 if keep.numel() == len(choice.indices) else None
                    row.add(choice.indices, keep)
                    if choice.logits is not None and (torch.compiler.is_compiling() or self.measures_entropy):
                        row.add_entropy(choice.logits, keep)
            except Exception as error:  # someone else's training must not end by it
                self.fault = error

        return count


class _Row:
    """The sums of one layer, on the device of its router."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self.num_experts = router.num_experts if isinstance(router.num_experts, int) else 0
        self.top_k = router.top_k if isinstance(router.top_k, int) else 0
        self.counts: Tensor | None = None
        """int64 [E+2]: slots without an expert, those of each expert, those of padding."""
        self.entropy: Tensor | None = None
        """float32 [2]."""
        if (device := _device_of(router.module)) is not None:
            self._allocate(device)

    def clear(self) -> None:
        """Begin at zero."""
        assert self.counts is not None
        assert self.entropy is not None
        self.counts.zero_()
        self.entropy.zero_()

    def add(self, indices_TK: Tensor, keep_T: Tensor | None) -> None:
        """Count a choice."""
        import torch

        if self.counts is None or self.counts.device != indices_TK.device:
            self._allocate(indices_TK.device)
        assert self.counts is not None
        slots = indices_TK.to(torch.int64) + 1
        if keep_T is not None:
            slots = torch.where(keep_T[:, None], slots, self.num_experts + 1)
        slots = slots.reshape(-1)
        self.counts.scatter_add_(0, slots, slots.new_ones(()).expand_as(slots))

    def add_entropy(self, reported_TE: Tensor, keep_T: Tensor | None) -> None:
        """Add the tokens' entropies, as measures.decisions.router_entropy defines them."""
        import torch

        assert self.entropy is not None
        logits = self.router.form.true_logits(reported_TE).float()
        p_TE = _log_weights(logits, self.router.score_function).softmax(dim=-1)
        entropy_T = torch.special.entr(p_TE).sum(dim=-1) / math.log(max(self.num_experts, 2))
        known = ~entropy_T.isnan()  # a token whose logits are all -inf has none
        if keep_T is not None:
            known = known & keep_T
        sums = torch.stack([torch.where(known, entropy_T, 0.0).sum(), known.sum()])
        self.entropy.add_(sums)

    def _allocate(self, device: torch.device) -> None:
        import torch

        before = (self.counts, self.entropy)
        self.counts = torch.zeros(self.num_experts + 2, dtype=torch.int64, device=device)
        self.entropy = torch.zeros(2, dtype=torch.float32, device=device)
        if before[0] is not None and before[1] is not None:  # the model was moved
            self.counts += before[0].to(device)
            self.entropy += before[1].to(device)


def _log_weights(logits_TE: Tensor, score_function: str) -> Tensor:
    """Logarithms of what a router shares out among the experts, up to a constant a token."""
    import torch

    if score_function == "sigmoid":
        return torch.nn.functional.logsigmoid(logits_TE)
    if score_function == "sqrtsoftplus":
        positive = torch.nn.functional.softplus(logits_TE)
        return 0.5 * torch.where(logits_TE < -20.0, logits_TE, positive.clamp(min=1e-30).log())
    return logits_TE


def _around(model: nn.Module, routers: list[Router]) -> Mapping[str, nn.Module]:
    """The modules that are called once for all layers, outermost first; the model's own name is empty.

    Not every library calls the model itself: an adapter calls what it wraps by its forward, without its hooks.
    """
    tower = layer_of(routers[0].name)[0].split(".")
    names = [".".join(tower[:count]) for count in range(len(tower))]
    return {name: model.get_submodule(name) for name in names}


def _place_of_mask(module: nn.Module) -> int | None:
    """Which of the positional arguments is the attention mask."""
    names = list(inspect.signature(module.forward).parameters)
    return names.index(MASK) if MASK in names else None


def _device_of(module: nn.Module) -> torch.device | None:
    found = next((tensor.device for tensor in (*module.parameters(), *module.buffers())), None)
    return None if found is None or found.type == "meta" else found
