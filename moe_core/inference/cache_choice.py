"""How the keys and values of a text are kept while it is read piece by piece: whole, or in few bits."""

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
"""What --cache can be."""
RECENT = 32
"""Newest tokens that are kept as they are, at least; see QuantisedCache."""
READ_SINGLY = 1024
"""Tokens of each domain that are read one by one where nothing else is asked for."""


@dataclass(frozen=True)
class CacheChoice:
    """One way; nothing given: whole, as KVCache does it."""

    kind: str | None = None
    """One of BITS."""
    recent: int = RECENT
    """Newest tokens kept as they are, where older ones are in few bits."""

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in BITS:
            raise UsageError(f"a cache of {self.kind}; expected one of {', '.join(BITS)}")

    @property
    def changes(self) -> bool:
        """Whether anything is kept otherwise than it was computed."""
        return self.kind is not None

    @property
    def name(self) -> str:
        """Such as "int4 cache"."""
        if self.kind is None:
            return "whole cache"
        return f"{self.kind} cache" + ("" if self.recent == RECENT else f" behind {count_of(self.recent, 'token')}")

    def made_for(
        self, config: ModelConfig, batch_size: int, max_len: int, *, dtype: torch.dtype, device: torch.device
    ) -> TokenCache:
        """An empty cache. Raises UsageError where the model's heads do not suit it."""
        from moe_core.model.kv_cache import KVCache
        from moe_core.model.quantised_cache import QuantisedCache

        if self.kind is not None:
            return QuantisedCache(config, batch_size, max_len, dtype, device, bits=BITS[self.kind], recent=self.recent)
        return KVCache(config, batch_size, max_len, dtype, device)
