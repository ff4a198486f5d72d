"""Gradient clipping: to training.gradient_clip, or to a percentile of the norms so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grads_with_norm_, get_total_norm

from moe_core.config import TrainingConfig

HISTORY = "clipping.norms"
FIRST_ROOM = 1024


class Clipping:
    """Clips the gradients of one training, and remembers their norms where it needs them.

    With training.gradient_clip_percentile the limit is that percentile of all norms so far, this step's included
    (AutoClip, Seetharaman et al. 2020, arXiv:2007.14469, algorithm 1). Nothing waits for the device.
    """

    def __init__(self, training: TrainingConfig, device: torch.device) -> None:
        self._limit, self._percentile = training.gradient_clip, training.gradient_clip_percentile
        self._norms = torch.full((FIRST_ROOM,), torch.nan, device=device)
        """One for each step, NaN for one that was skipped; the rest is room."""
        self._seen = 0

    def clip(self, parameters: Iterable[nn.Parameter], loss: Tensor, norm: Tensor | None = None) -> Tensor:
        """Scale the gradients down to the limit; returns their global norm before. `loss`: of this step; where it or
        the norm is not finite the step is skipped, and its norm does not enter the history. `norm`: where the gradients
        are parts of those it is of; None = they are whole."""
        parameters = list(parameters)
        if self._percentile is None:
            if norm is None:
                return clip_grad_norm_(parameters, self._limit)
            clip_grads_with_norm_(parameters, self._limit, norm)
            return norm
        norm = (
            norm
            if norm is not None
            else get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        )
        if self._seen == len(self._norms):
            self._norms = torch.cat([self._norms, torch.full_like(self._norms, torch.nan)])
        self._norms[self._seen] = torch.where(loss.isfinite() & norm.isfinite(), norm.detach(), torch.nan)
        self._seen += 1
        limit = torch.nanquantile(self._norms[: self._seen], self._percentile / 100)
        # The limit is on the device, and max_norm a number: a norm in units of the limit is clipped to 1.
        clip_grads_with_norm_(parameters, 1.0, norm / limit)
        return norm

    def tensors(self) -> dict[str, Tensor]:
        """What a resumed training needs, for the checkpoint."""
        return {} if self._percentile is None else {HISTORY: self._norms[: self._seen].clone()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Undo `tensors`. A run that clipped otherwise so far begins its history here."""
        if self._percentile is not None and HISTORY in tensors:
            past = tensors[HISTORY].to(self._norms.device)
            self._seen = len(past)
            self._norms = torch.cat([past, self._norms])
