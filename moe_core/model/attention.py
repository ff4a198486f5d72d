"""Causal grouped-query attention (arXiv:2305.13245) with optional QK-norm (Qwen3, arXiv:2505.09388), windows
(Mistral, arXiv:2310.06825) and sinks (gpt-oss, arXiv:2508.10925)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moe_core.config import ModelConfig
from moe_core.model.norm import RMSNorm
from moe_core.model.rope import apply_rope
from moe_core.model.token_cache import TokenCache


class Attention(nn.Module):
    """Query heads share key/value heads in groups of num_heads / num_kv_heads; RoPE after the optional norm."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.sees, self.first_tokens = config.attention.sees(layer), config.attention.first_tokens
        self.grouped = config.num_heads != config.num_kv_heads
        self.sinks = nn.Parameter(torch.zeros(config.num_heads)) if config.attention.sinks else None
        query_dim, key_dim = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.dim, query_dim, bias=False)
        self.k_proj = nn.Linear(config.dim, key_dim, bias=False)
        self.v_proj = nn.Linear(config.dim, key_dim, bias=False)
        self.o_proj = nn.Linear(query_dim, config.dim, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x_BSD: Tensor, cos: Tensor, sin: Tensor, cache: TokenCache | None) -> Tensor:
        """[B, S, D] -> [B, S, D]; `cos`, `sin` belong to the positions of these S tokens, [S, 1, head_dim / 2], or
        [B, S, 1, head_dim / 2] where the sequences stand at different ones."""
        B, S, _ = x_BSD.shape
        queries = self.q_norm(self.q_proj(x_BSD).view(B, S, -1, self.head_dim))
        keys = self.k_norm(self.k_proj(x_BSD).view(B, S, -1, self.head_dim))
        values = self.v_proj(x_BSD).view(B, S, -1, self.head_dim)
        queries = apply_rope(queries, cos, sin).transpose(1, 2)
        keys = apply_rope(keys, cos, sin).transpose(1, 2)
        values = values.transpose(1, 2)
        mask = None
        if cache is not None:
            keys, values = cache.write(self.layer, keys, values)
            cache.look(self.layer, queries)
            mask = cache.mask(self.layer)
        if mask is None:
            mask = self._mask(S, keys.shape[2], x_BSD.device)
        if self.sinks is not None:
            keys, values, mask = _with_sinks(self.sinks, queries, keys, values, mask)
        mixed = nn.functional.scaled_dot_product_attention(
            queries,
            keys.to(queries.dtype),
            values.to(queries.dtype),
            attn_mask=mask,
            is_causal=mask is None and S > 1,
            enable_gqa=self.grouped,
        )
        projected: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(B, S, -1))
        return projected

    def _mask(self, new: int, total: int, device: torch.device) -> Tensor | None:
        """bool [new, total], True = may look, for `new` tokens behind `total - new` earlier ones.

        None if no mask is needed: a single token sees everything, and an uncached sequence is simply causal. Only the
        distance to the last token counts, so what a cache has forgotten may be missing in the middle.
        """
        sees = total if self.sees is None else min(self.sees, total)
        if sees == total and new in (1, total):
            return None
        earlier = torch.ones(new, total, dtype=torch.bool, device=device).tril(diagonal=total - new)
        if sees == total:
            return earlier
        near = earlier.triu(diagonal=total - new - (sees - self.first_tokens) + 1)
        return near | (earlier & (torch.arange(total, device=device) < self.first_tokens))


def _with_sinks(
    sinks_H: Tensor, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, values and a mask of numbers with one more place behind the others, whose logit is the head's sink and
    whose value is zero. `mask`: bool, True = may look; None = the causal rule."""
    (B, H, S, _), total = queries.shape, keys.shape[2]
    if mask is None:
        mask = torch.ones(S, total, dtype=torch.bool, device=queries.device).tril(diagonal=total - S)
    hidden = torch.zeros_like(mask, dtype=queries.dtype).masked_fill(~mask, -torch.inf).expand(B, H, S, total)
    logits = torch.cat((hidden, sinks_H.to(queries.dtype).view(1, H, 1, 1).expand(B, H, S, 1)), dim=-1)
    keys, values = (torch.cat((each, torch.zeros_like(each[:, :, :1])), dim=2) for each in (keys, values))
    return keys, values, logits
