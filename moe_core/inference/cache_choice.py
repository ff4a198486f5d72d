"""How the keys and values of a text are kept while it is read piece by piece: whole, in few bits, or of few tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moe_core.errors import UsageError
from moe_core.words import count_of

if TYPE_CHECKING:
    import torch

    from moe_core.config import ModelConfig
    from moe_core.model.token_cache import TokenCache

# torch is imported late: the command line lists these.
BITS = {"int8": 8, "int4": 4, "int2": 2}
EVICTIONS = ("sinks", "heavy")
"""Followed by :N, a budget of tokens; see EvictingCache and HeavyHitterCache."""
EXPECTED = f"{', '.join(BITS)}, sinks:N or heavy:N, such as sinks:64"
RECENT = 32
"""Newest tokens that are kept as they are, at least; see QuantisedCache."""
READ_SINGLY = 1024
"""Tokens of each domain that are read one by one where nothing else is asked for."""


@dataclass(frozen=True)
class CacheChoice:
    """One way; nothing given: whole, as KVCache does it."""

    kind: str | None = None
    """One of BITS or EVICTIONS."""
    recent: int = RECENT
    """Newest tokens kept as they are, where older ones are in few bits."""
    budget: int | None = None
    """Tokens of a text that are kept, with one of EVICTIONS."""

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in (*BITS, *EVICTIONS):
            raise UsageError(f"a cache of {self.kind}; expected {EXPECTED}")
        if (self.budget is not None) != (self.kind in EVICTIONS) or (self.evicts and self.recent != RECENT):
            raise UsageError(
                f"a cache of {self.kind} with budget = {self.budget}, recent = {self.recent}; a budget belongs to "
                f"{' and '.join(EVICTIONS)}, recent tokens to {', '.join(BITS)}"
            )

    @classmethod
    def parse(cls, text: str, recent: int | None = None) -> CacheChoice:
        """Such as "int4" or "sinks:64". Raises UsageError."""
        kind, colon, budget = text.partition(":")
        if kind in BITS and not colon:
            return cls(kind, recent or RECENT)
        if kind in EVICTIONS and budget.isascii() and budget.isdecimal():
            if recent is not None:
                raise UsageError(f"--cache-recent {recent} goes with {', '.join(BITS)}, not with {text}")
            return cls(kind, budget=int(budget))
        raise UsageError(f"a cache of {text!r}; expected {EXPECTED}")

    @property
    def evicts(self) -> bool:
        """Whether tokens are forgotten."""
        return self.kind in EVICTIONS

    @property
    def changes(self) -> bool:
        """Whether anything is kept otherwise than it was computed."""
        return self.kind is not None

    @property
    def name(self) -> str:
        """Such as "int4 cache", "sinks:64 cache"."""
        if self.kind is None:
            return "whole cache"
        if self.evicts:
            return f"{self.kind}:{self.budget} cache"
        return f"{self.kind} cache" + ("" if self.recent == RECENT else f" behind {count_of(self.recent, 'token')}")

    def made_for(
        self, config: ModelConfig, batch_size: int, max_len: int, *, dtype: torch.dtype, device: torch.device
    ) -> TokenCache:
        """An empty cache. Raises UsageError where the model's heads do not suit it, and for a budget of no use."""
        from moe_core.model.evicting_cache import EvictingCache, HeavyHitterCache
        from moe_core.model.kv_cache import KVCache
        from moe_core.model.quantised_cache import QuantisedCache

        if self.budget is not None:
            made = EvictingCache if self.kind == "sinks" else HeavyHitterCache
            return made(config, batch_size, max_len, dtype, device, budget=self.budget)
        if self.kind is not None:
            return QuantisedCache(config, batch_size, max_len, dtype, device, bits=BITS[self.kind], recent=self.recent)
        return KVCache(config, batch_size, max_len, dtype, device)
