"""The auxiliary loss that draws states of texts that belong together towards each other."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from moe_core.config.section import Section


class ContrastiveConfig(Section):
    """Each step also reads two views of some training documents: crops of a document's two halves, each read alone. The
    mean of a view's last states is its embedding (moe_core/model/contrastive.py has the losses)."""

    coef: float = Field(0.0, ge=0.0, le=1_000.0)
    """Weight of the loss; 0 = off."""
    loss: Literal["info_nce", "sup_con"] = "info_nce"
    """info_nce: one positive at a time (arXiv:1807.03748). sup_con: all positives together (arXiv:2004.11362)."""
    temperature: float = Field(0.05, gt=0.0, le=100.0)
    """What similarities are divided by; SimCSE's is 0.05 (arXiv:2104.08821)."""
    positives: Literal["document", "source"] = "document"
    """What makes two views belong together. Texts of one source are never negatives of each other."""
    hard_negatives: int | None = Field(None, ge=1, le=65_536)
    """Only so many negatives of each view count, those that are most alike; None = all in the batch."""
    texts: int = Field(16, ge=2, le=65_536)
    """Documents of one step."""
    tokens: int = Field(64, ge=8, le=1_000_000)
    """Longest view."""
    deletion: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of a view's tokens that are left out at random."""
    rename_identifiers: bool = False
    """Names of Python code are changed in one of the two views, all places of a name alike, so that it still parses."""
