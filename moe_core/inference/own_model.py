"""A model of ours behind the face of protocol.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from moe_core.data.tokenizer import Tokenizer
from moe_core.inference.cache_choice import CacheChoice
from moe_core.inference.fixed_pass import FixedPasses, FixedTexts, suits
from moe_core.inference.protocol import Draw, JoinedTexts, Reader, ReadTokens
from moe_core.model.joined_cache import JoinedCache
from moe_core.model.kv_cache import KVCache
from moe_core.model.token_cache import TokenCache
from moe_core.model.transformer import ModelOutput, MoETransformer

if TYPE_CHECKING:
    from moe_core.config import Config


@dataclass(frozen=True)
class OwnModel:
    """A model of ours."""

    model: MoETransformer
    tokenizer: Tokenizer
    name: str
    context_window: int
    cache: CacheChoice = field(default_factory=CacheChoice)
    """How keys and values of what is read piece by piece are kept."""

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
    def chat_template(self) -> None:
        """None: our runs are base models."""
        return None

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
        return self.model.config.router_choices

    @property
    def null_experts(self) -> int:
        return self.model.config.null_experts

    @property
    def top_k(self) -> int:
        return self.model.config.top_k

    @cached_property
    def active_parameters(self) -> int:
        return self.model.active_parameters

    @property
    def device(self) -> torch.device:
        return self.model.embedding.weight.device

    def logits(self, token_ids_BS: torch.Tensor) -> torch.Tensor:
        """See LanguageModel."""
        logits_BSV: torch.Tensor = self.model(token_ids_BS).logits
        return logits_BSV

    @property
    def mixes_texts(self) -> bool:
        """See LanguageModel: where experts choose among all tokens of a pass."""
        return not self.model.config.can_write

    @property
    def reads_apart(self) -> str:
        """Empty while the cache is kept whole: see LanguageModel."""
        return f"{self.name} keeps keys and values otherwise: {self.cache.name}" if self.cache.changes else ""

    def empty_cache(self, batch_size: int = 1) -> TokenCache:
        """Room for that many texts of a whole window."""
        weight = self.model.embedding.weight
        return self.cache.made_for(
            self.model.config, batch_size, self.context_window, dtype=weight.dtype, device=weight.device
        )

    @cached_property
    def fixed_passes(self) -> FixedPasses:
        """What texts are written in where that is the fastest."""
        return FixedPasses(self.model, self.context_window)

    @contextmanager
    def reading(self) -> Iterator[Reader]:
        """See LanguageModel. Nothing has to be put on the model: it tells what its routers chose."""
        yield _OwnReader(self)


class _OwnReader:
    """See Reader."""

    def __init__(self, language: OwnModel) -> None:
        self._language = language
        self.joins_from = 1 if suits(language.model) else 2

    def read(self, token_ids: Sequence[int], cache: TokenCache | None, *, all_logits: bool = False) -> ReadTokens:
        """See Reader."""
        model = self._language.model
        cache = self._language.empty_cache() if cache is None else cache
        ids_1S, step = torch.tensor([token_ids], device=self._language.device), 1 if cache.singly else len(token_ids)
        outputs = [model(ids_1S[:, at : at + step], cache=cache) for at in range(0, len(token_ids), step)]
        routed = [_routed(output, output.logits.shape[1], self._language.top_k) for output in outputs]
        experts, scores = (np.concatenate(parts) for parts in zip(*routed, strict=True))
        logits_SV = torch.cat([output.logits[0] for output in outputs]) if all_logits else None
        return ReadTokens(outputs[-1].logits[0, -1], experts, scores, cache, logits_SV)

    def join(self, *, changed: bool = False) -> JoinedTexts:
        """See Reader. What is replayed runs no hooks, and an intervention is some."""
        if self.joins_from == 1 and not changed:
            return FixedTexts(self._language.fixed_passes)
        return _OwnTexts(self._language)

    def cut(self, cache: TokenCache, length: int) -> TokenCache | None:
        """See Reader."""
        return cache if cache.cut_back(length) else None

    def nbytes(self, cache: TokenCache) -> int:
        """See Reader."""
        return cache.nbytes


class _OwnTexts:
    """See JoinedTexts. The room doubles whenever it is full."""

    def __init__(self, language: OwnModel) -> None:
        self._language = language
        self._rows = 0
        self._cache = self._room(2)

    def add(self, cache: KVCache) -> None:
        """See JoinedTexts."""
        if self._rows == self._cache.keys[0].shape[0]:
            full, self._cache = self._cache, self._room(2 * self._rows)
            for _ in range(self._rows):
                self._cache.add(full.take(0))
        self._cache.add(cache)
        self._rows += 1

    def take(self, row: int) -> KVCache:
        """See JoinedTexts."""
        self._rows -= 1
        return self._cache.take(row)

    def read(self, token_ids: Sequence[int], draws: Sequence[Draw] = ()) -> list[ReadTokens]:  # noqa: ARG002
        """See JoinedTexts."""
        ids_B1 = torch.tensor(token_ids, device=self._language.device)[:, None]
        output = self._language.model(ids_B1, cache=self._cache)
        experts, scores = _routed(output, len(token_ids), self._language.top_k)
        # One copy from the device instead of one for each text.
        logits_BV = output.logits[:, -1].cpu()
        return [ReadTokens(logits_BV[b], experts[b : b + 1], scores[b : b + 1], None) for b in range(len(token_ids))]

    def close(self) -> None:
        """See JoinedTexts."""

    def _room(self, slots: int) -> JoinedCache:
        model = self._language.model
        weight = model.embedding.weight
        return JoinedCache(model.config, slots, self._language.context_window, weight.dtype, weight.device)


def _routed(output: ModelOutput, num_tokens: int, top_k: int) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.float32]]:
    """Experts and weights [T, L, K]: the same that capture records, without its checks for each token."""
    routed = output.router_outputs
    none = torch.zeros(num_tokens, 0, top_k)  # of a dense model
    experts = torch.stack([layer.router_indices for layer in routed], dim=1) if routed else none
    scores = torch.stack([layer.router_scores for layer in routed], dim=1) if routed else none
    return experts.to(torch.int16).cpu().numpy(), scores.float().cpu().numpy()
