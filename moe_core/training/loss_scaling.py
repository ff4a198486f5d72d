"""Loss scaling for float16 (Micikevicius et al. 2018, arXiv:1710.03740), whose numbers end at 6e-8 and at 65,504.

The loss is multiplied by a scale before its backward pass, so that small gradients are not rounded to zero, and the
gradients are divided by it after. torch.amp.GradScaler keeps the scale: half of it after a step whose gradients
overflowed, twice after 2,000 steps without one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

SCALE, TRACKER = "loss_scaling.scale", "loss_scaling.growth_tracker"
LEAST_SCALE = 1.0
"""A gradient that overflows without any scale overflows by itself: such steps are bad ones."""


class LossScaling:
    """The scale of one training; where it is not `enabled` nothing happens and the scale is 1. Nothing waits for the
    device."""

    def __init__(self, device: torch.device, optimizers: Sequence[Optimizer], *, enabled: bool) -> None:
        self._optimizers = optimizers
        self._scaler = torch.amp.GradScaler(device.type, enabled=enabled)
        self._one = torch.ones((), device=device)

    @property
    def scale(self) -> Tensor:
        """float32 scalar on the device, which the next loss is multiplied by."""
        return self.scaled(self._one)

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss, times the scale."""
        return self._scaler.scale(loss)

    def unscale(self) -> None:
        """Divide the gradients at hand, and note whether they overflowed."""
        for optimizer in self._optimizers:
            self._scaler.unscale_(optimizer)

    def update(self) -> None:
        """Move the scale, after each step that was unscaled, whether it was skipped or not."""
        self._scaler.update()
        if self._scaler.is_enabled():
            self._scaler.update(self.scale.clamp(min=LEAST_SCALE))

    def tensors(self) -> dict[str, Tensor]:
        """What a resumed training needs, for the checkpoint."""
        if not self._scaler.is_enabled():
            return {}
        state = self._scaler.state_dict()
        return {SCALE: torch.tensor(state["scale"]), TRACKER: torch.tensor(state["_growth_tracker"])}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Undo `tensors`."""
        if self._scaler.is_enabled():
            state = self._scaler.state_dict()
            found = {"scale": tensors[SCALE].item(), "_growth_tracker": int(tensors[TRACKER])}
            self._scaler.load_state_dict({**state, **found})
