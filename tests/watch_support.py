"""Trainings to watch: loops as others write them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from routers_support import tokens


def train(model: Any, optimizer: torch.optim.Optimizer, steps: int = 7, parts: int = 1) -> Iterator[int]:
    """Another one's loop; yields after each update, before the next step."""
    for step in range(steps):
        for part in range(parts):
            model(tokens(2, 12, 100 * step + part)).logits.float().logsumexp(dim=-1).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        yield step
