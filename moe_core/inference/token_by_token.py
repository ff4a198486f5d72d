"""Texts read as they are written, one token of each at a time: what a cache keeps is then what every token looks at."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from moe_core.inference.cache_choice import CacheChoice
from moe_core.inference.own_model import OwnModel
from moe_core.inference.small_passes import threads_for
from moe_core.words import count_of, percent


@dataclass
class Decoding:
    """What reading token by token took, so far."""

    kept_bytes: int
    """Of keys and values of one text of a whole window."""
    whole_bytes: int
    """The same where all is kept."""
    window: int
    tokens: int = 0
    """Read, padding included."""
    seconds: float = 0.0
    together: int = 0
    """Texts that shared a pass, at most."""
    exact: int = 0
    """Tokens at the beginning of a window that look at nothing but what was computed."""

    @property
    def tokens_per_second(self) -> float:
        """Of all texts that are read together."""
        return self.tokens / self.seconds if self.seconds else float("nan")

    def describe(self, cache: CacheChoice, whole: Decoding) -> str:
        """What the cache saves and costs, for people, against a reading with the whole one."""
        return (
            f"{cache.name}: {self.kept_bytes:,} bytes of keys and values for a window of {self.window:,} tokens, "
            f"{percent(self.kept_bytes / self.whole_bytes)} of {self.whole_bytes:,}; {self.tokens_per_second:,.0f} "
            f"tokens/s against {whole.tokens_per_second:,.0f}, {count_of(self.together, 'text')} at a time. The first "
            f"{self.exact:,} tokens of a window look at nothing that was changed."
        )


@dataclass(frozen=True)
class TokenByToken(OwnModel):
    """A model whose `logits` are those of each token read by a pass of its own, behind the cache of those before."""

    decoding: Decoding = field(default_factory=lambda: Decoding(0, 0, 0))
    report: Callable[[int], None] | None = None
    """Is told how many tokens are read, padding included."""

    @classmethod
    def of_model(cls, model: OwnModel, cache: CacheChoice, report: Callable[[int], None] | None = None) -> TokenByToken:
        """`model` so, with its cache kept as said. Raises UsageError where it cannot write text, or its heads do not
        suit the cache."""
        model.model.check_writes()
        kept, whole = (replace(model, cache=choice).empty_cache() for choice in (cache, CacheChoice()))
        decoding = Decoding(kept.key_value_bytes, whole.key_value_bytes, model.context_window)
        return cls(model.model, model.tokenizer, model.name, model.context_window, cache, decoding, report)

    def logits(self, token_ids_BS: torch.Tensor) -> torch.Tensor:
        """See LanguageModel."""
        (B, S), counted, begun = token_ids_BS.shape, self.decoding, time.perf_counter()
        cache, before = self.empty_cache(B), counted.tokens
        logits = []
        for at in range(S):
            counted.exact = max(counted.exact, at + 1) if cache.is_exact else counted.exact
            with threads_for(self, B):
                logits.append(self.model(token_ids_BS[:, at : at + 1], cache=cache).logits)
            if self.report is not None:
                self.report(before + B * (at + 1))
        found = torch.cat(logits, dim=1)
        counted.tokens += B * S
        counted.seconds += time.perf_counter() - begun
        counted.together = max(counted.together, B)
        return found
