"""Experts that training takes away: at given steps, those that add least, by the measure of `prune`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from moe_core.evaluation.expert_ranking import ranking_by_scores
from moe_core.inference.expert_outputs import expert_saliency
from moe_core.inference.own_model import OwnModel
from moe_core.words import count_of

if TYPE_CHECKING:
    from moe_core.config import Config
    from moe_core.data.tokenizer import Tokenizer
    from moe_core.data.tokens import TokenDataset
    from moe_core.model.transformer import MoETransformer


def removed_by(config: Config, step: int) -> int:
    """Experts of each layer that are gone once `step` steps are done and those due behind them were taken away."""
    steps = config.training.pruning_steps
    done = sum(at <= step for at in steps)
    return config.model.removed_experts * done // len(steps) if steps else 0


def remove_experts(
    model: MoETransformer, tokenizer: Tokenizer, text: TokenDataset, config: Config, step: int
) -> str | None:
    """Take away what is due behind `step`; returns what was done in a sentence, None where nothing was due.

    Nothing is drawn and no weight changes: only which experts the routers may choose, a buffer of the checkpoint. What
    is due follows from the step and the weights, so that a resumed run takes away the same.
    """
    if step not in config.training.pruning_steps:
        return None
    was_training = model.training
    model.eval()
    window = min(config.model.max_seq_len, config.training.seq_len)
    scores = expert_saliency(OwnModel(model, tokenizer, "model in training", window), text)
    model.train(was_training)
    routers = dict(zip(config.model.moe_layers, model.routers, strict=True))
    removed = {layer: _flags(router.removed) for layer, router in routers.items()}
    # An expert that nobody chose adds nothing; one that is gone comes before it.
    places = zip(scores["layer"], scores["expert"], strict=True)
    is_gone = np.array([removed[layer][expert] for layer, expert in places], dtype=bool)
    scores["score"] = scores["reap"].fillna(0.0).mask(is_gone)
    ranking = ranking_by_scores("reap", scores[["layer", "expert", "score"]], config.model.top_k)
    said = []
    for layer, expert in ranking.removed(removed_by(config, step)):
        flags = routers[layer].removed
        assert flags is not None
        if not removed[layer][expert]:
            flags[expert] = True
            said.append(f"{expert} of layer {layer}")
    return (
        f"{count_of(len(said), 'expert')} taken away, the least by REAP on {len(text):,} tokens of validation text: "
        f"{', '.join(said)}"
    )


def _flags(removed_E: torch.Tensor | None) -> list[bool]:
    assert removed_E is not None
    return [bool(flag) for flag in removed_E.tolist()]
