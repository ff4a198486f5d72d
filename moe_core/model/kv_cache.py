"""Keys and values of the tokens already seen, in memory allocated once."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_core.config import ModelConfig
from moe_core.model.token_cache import TokenCache


class KVCache(TokenCache):
    """Room for `max_len` tokens of `batch_size` sequences, all of the same length so far, kept as they are.

    keys, values: [layers, B, num_kv_heads, max_len, head_dim]; positions at and after `length` hold nothing of meaning.
    Keys are stored after RoPE. Setting `length` to a smaller number cuts the texts back. For sequences of unequal
    lengths there is JoinedCache, for less memory QuantisedCache and EvictingCache.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        max_len: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(config, batch_size, max_len, device)
        shape = (config.num_layers, batch_size, config.num_kv_heads, max_len, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    def write(self, layer: int, keys_BHSd: Tensor, values_BHSd: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's new keys and values behind the old ones; return views of all, [B, Hkv, length + S, d]."""
        new = keys_BHSd.shape[2]
        keys, values = self.keys[layer], self.values[layer]
        keys.narrow(2, self.length, new).copy_(keys_BHSd)
        values.narrow(2, self.length, new).copy_(values_BHSd)
        return keys.narrow(2, 0, self.length + new), values.narrow(2, 0, self.length + new)

    @property
    def key_value_bytes(self) -> int:
        """See TokenCache."""
        return self.keys.nbytes + self.values.nbytes
