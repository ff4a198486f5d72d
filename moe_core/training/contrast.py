"""The contrastive term of a training: its own small batch of views, its own forward pass, its gradient on top."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_core.config import Config
from moe_core.data.prepare import PreparedData
from moe_core.data.views import ViewMaker
from moe_core.errors import UsageError
from moe_core.model.contrastive import info_nce, mean_pooled, sup_con
from moe_core.model.transformer import MoETransformer
from moe_core.training.loss_scaling import LossScaling
from moe_core.training.repeatability import autocast_dtype


class ContrastiveTerm:
    """Adds its gradient to that of the language model's loss, step by step.

    What the routers choose for the views is neither balanced nor counted: balance, biases and thresholds are about the
    text that the model learns to write.
    """

    def __init__(self, config: Config, data: PreparedData, device: torch.device) -> None:
        """Raises UsageError in several processes, DataError where documents are too short."""
        training = config.training
        if config.parallel.processes > 1:
            raise UsageError(
                f"training.contrastive.coef = {training.contrastive.coef:g} does not go with several processes "
                f"({config.parallel}): views of one process would not see those of another as negatives; set it to 0, "
                "or train in one process"
            )
        self._config, self._device = config, device
        self._views = ViewMaker(data.train, data.places(), data.tokenizer, training.contrastive, training.seed)

    def add_gradient(self, model: MoETransformer, step: int, *, autocast: bool, scaling: LossScaling) -> Tensor:
        """Add the gradient of coef times the loss of `step` to the parameters'; returns the loss, detached, in nats."""
        views, contrastive = self._views.of(step), self._config.training.contrastive
        token_ids, lengths, labels, sources = (
            torch.from_numpy(array).to(self._device)
            for array in (views.token_ids, views.lengths, views.labels, views.source_ids)
        )
        with torch.autocast(self._device.type, dtype=autocast_dtype(self._config), enabled=autocast):
            states_VSD = model.states(token_ids).states
        z_VD = mean_pooled(states_VSD, lengths)
        of = info_nce if contrastive.loss == "info_nce" else sup_con
        loss = of(z_VD, labels, contrastive.temperature, contrastive.hard_negatives, sources)
        scaling.scaled(contrastive.coef * loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach()
