"""Activation checkpointing (Chen et al. 2016, arXiv:1604.06174): a block keeps what came in, not what it computed."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


def recomputed(block: nn.Module, *arguments: Any) -> Any:
    """What `block` gives. Of the pass only its arguments are kept; the backward pass computes it once more.

    The second pass draws the random numbers of the first, so that noise and dropout are the same and gradients equal to
    the bit. What it decides again is left to the gradient: losses, balance and routers read the outputs of the first.
    """
    return checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=True)
