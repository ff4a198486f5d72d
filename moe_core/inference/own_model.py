"""A model of ours behind the face of protocol.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from moe_core.data.tokenizer import Tokenizer
from moe_core.inference.protocol import Read, ReadTokens
from moe_core.model.kv_cache import KVCache
from moe_core.model.transformer import MoETransformer

if TYPE_CHECKING:
    from moe_core.config import Config


@dataclass(frozen=True)
class OwnModel:
    """A model of ours."""

    model: MoETransformer
    tokenizer: Tokenizer
    name: str
    context_window: int

    @classmethod
    def of(cls, loaded: Any) -> OwnModel:
        """The language model of a LoadedRun, or of anything with model, tokenizer and config.

        The window is the length the model was trained on, as far as its RoPE tables reach: angles beyond it were never
        learned. With windows that overlap by half, a 2-layer model trained at 64 tokens lost 0.02 nats per token more
        at windows of 128 than at 64, and 0.13 more at 512.
        """
        config: Config = loaded.config
        # A model that is still in training has no run of its own yet.
        run = getattr(loaded, "run", None)
        name = f"run {run.name}, step {getattr(loaded, 'step', 0)}" if run is not None else "model in memory"
        window = min(loaded.model.config.max_seq_len, config.training.seq_len)
        return cls(loaded.model, loaded.tokenizer, name, window)

    @property
    def vocab_size(self) -> int:
        return self.model.config.vocab_size

    @property
    def end_ids(self) -> frozenset[int]:
        return frozenset([self.tokenizer.end_of_text])

    @property
    def moe_layers(self) -> Sequence[int]:
        return self.model.config.moe_layers

    @property
    def num_experts(self) -> int:
        return self.model.config.num_experts

    @property
    def top_k(self) -> int:
        return self.model.config.top_k

    @property
    def device(self) -> torch.device:
        return self.model.embedding.weight.device

    def logits(self, token_ids_BS: torch.Tensor) -> torch.Tensor:
        """See LanguageModel."""
        logits_BSV: torch.Tensor = self.model(token_ids_BS).logits
        return logits_BSV

    @contextmanager
    def reading(self) -> Iterator[Read]:
        """See LanguageModel. Nothing has to be put on the model: it tells what its routers chose."""
        yield self._read

    def _read(self, token_ids: Sequence[int], cache: Any) -> ReadTokens:
        if cache is None:
            weight = self.model.embedding.weight
            cache = KVCache(self.model.config, 1, self.context_window, weight.dtype, weight.device)
        output = self.model(torch.tensor([token_ids], device=self.device), cache=cache)
        # The same that capture records, without its checks for each token.
        routed = output.router_outputs
        none = torch.zeros(len(token_ids), 0, self.top_k)  # of a dense model
        experts = torch.stack([layer.router_indices for layer in routed], dim=1) if routed else none
        scores = torch.stack([layer.router_scores for layer in routed], dim=1) if routed else none
        return ReadTokens(
            logits=output.logits[0, -1],
            experts=experts.to(torch.int16).cpu().numpy(),
            scores=scores.float().cpu().numpy(),
            cache=cache,
        )
