"""The decoder-only MoE Transformer (default: the Qwen3-MoE layout, arXiv:2505.09388; without QK-norm: Mixtral's)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from moe_core.config import ModelConfig
from moe_core.errors import UsageError
from moe_core.model import one_row, size
from moe_core.model.attention import Attention
from moe_core.model.feed_forward import GatedLinearUnit, MoE
from moe_core.model.norm import RMSNorm
from moe_core.model.recomputing import recomputed
from moe_core.model.rope import rope_angles
from moe_core.model.routers import Router, RouterContext, RouterOutput
from moe_core.model.token_cache import TokenCache

INIT_STD = 0.02


class ModelOutput(NamedTuple):
    """One forward pass."""

    logits: Tensor
    """[B, S, V], before the softmax; logits[b, s] predicts token s + 1."""
    router_outputs: tuple[RouterOutput, ...]
    """One per MoE layer, bottom first; T = B * S, sequence after sequence."""


class ModelStates(NamedTuple):
    """A forward pass up to the output head."""

    states: Tensor
    """[B, S, D], behind the last norm: what the head reads."""
    router_outputs: tuple[RouterOutput, ...]
    """See ModelOutput."""


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); the latter is `moe` or, in a dense layer, `mlp`."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config, layer)
        self.feed_forward_norm = RMSNorm(config.dim, config.norm_eps)
        is_moe = layer in config.moe_layers
        self.moe = MoE(config) if is_moe else None
        self.mlp = None if is_moe else GatedLinearUnit(config.dim, config.dense_hidden_dim, config.expert_activation)

    def forward(
        self, x_BSD: Tensor, cos: Tensor, sin: Tensor, context: RouterContext | None
    ) -> tuple[Tensor, RouterOutput | None]:
        """[B, S, D] -> ([B, S, D], what the router chose; None in a dense layer)."""
        x_BSD = x_BSD + self.attention(self.attention_norm(x_BSD), cos, sin, context.cache if context else None)
        normed_BSD = self.feed_forward_norm(x_BSD)
        if self.moe is None:
            assert self.mlp is not None
            return x_BSD + self.mlp(normed_BSD), None
        out_TD, routed = self.moe(normed_BSD.flatten(0, 1), context)
        return x_BSD + out_TD.view_as(x_BSD), routed


class MoETransformer(nn.Module):
    """Token ids in, next-token logits and routing decisions out. The output head is the embedding, transposed.

    Weights are drawn from torch's global generator: normal with standard deviation 0.02, and 0.02 / sqrt(2 * layers)
    for the matrices that write to the residual stream (GPT-2), whose variance then does not grow with depth.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        if torch.get_default_device().type == "cpu":
            size.check_fits_memory(config)
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.recomputes_blocks = False
        """Activation checkpointing, while it trains; see recomputing.py. Set by who trains."""
        self.draw_weights()

    def forward(self, token_ids: Tensor, *, cache: TokenCache | None = None) -> ModelOutput:
        """token_ids int64 [B, S] -> ModelOutput; the arguments are those of `states`."""
        found = self.states(token_ids, cache=cache)
        return ModelOutput(self._output_logits(found.states), found.router_outputs)

    def states(self, token_ids: Tensor, *, cache: TokenCache | None = None) -> ModelStates:
        """token_ids int64 [B, S] -> ModelStates, for who makes the logits some at a time.

        With a cache, the tokens continue the cached ones: S may be 1 or more, and the cache advances by S.
        Raises UsageError when more than config.max_seq_len tokens, or more than the cache holds, come together, and for
        a cache where routers see the future.
        """
        B, S = token_ids.shape
        start = cache.length if cache is not None else 0
        if start + S > self.config.max_seq_len:
            raise UsageError(
                f"a context of {start + S} tokens exceeds model.max_seq_len = {self.config.max_seq_len}; "
                "shorten the text"
            )
        if cache is not None:
            self.check_writes()
            cache.check_room(B, S)
        x_BSD = self.embedding(token_ids)
        if cache is not None:
            cos, sin = cache.angles(S)
        else:
            cos, sin = rope_angles(self.config, 0, S, x_BSD.device)
        context = RouterContext(token_ids, cache)
        router_outputs: list[RouterOutput] = []
        recomputes = self.recomputes_blocks and self.training and torch.is_grad_enabled()
        for block in self.layers:
            arguments = x_BSD, cos, sin, context
            x_BSD, routed = recomputed(block, *arguments) if recomputes else block(*arguments)
            if routed is not None:
                router_outputs.append(routed)
        if cache is not None:
            cache.advance(S)
        return ModelStates(self.norm(x_BSD), tuple(router_outputs))

    @property
    def head(self) -> Tensor:
        """[V, D]: logits are the products of its rows with the states. It is the embedding."""
        return self.embedding.weight

    def _output_logits(self, x_BSD: Tensor) -> Tensor:
        """[B, S, D] -> logits [B, S, V]."""
        if one_row.alone(x_BSD):
            return one_row.product(self.head, one_row.twin(x_BSD)).view(1, 1, -1)
        return nn.functional.linear(x_BSD, self.head)

    @property
    def routers(self) -> list[Router]:
        """The routers of the MoE layers, bottom first."""
        return [block.moe.router for block in self.layers if isinstance(block, Block) and block.moe is not None]

    def check_writes(self) -> None:
        """Raise UsageError for a model that cannot write text."""
        if not self.config.can_write:
            raise UsageError(
                f"model.router.kind = {self.config.router.kind} sees the future: its experts choose among tokens that "
                "are not written yet, so this model cannot generate or decode; train one with another kind of router"
            )

    def prepare_routers(self, token_counts: Tensor, document_start: int) -> None:
        """Tell the routers of the training text, once, before training: occurrences of each token id, [vocab_size], and
        the id that begins a document."""
        for router in self.routers:
            router.prepare(token_counts, document_start)

    def after_step(self, router_outputs: Sequence[RouterOutput], skipped: Tensor | None = None) -> None:
        """Tell the routers what they decided in one training step: biases and thresholds move.

        `skipped`: bool scalar on the model's device, True = this was no step, nothing moves; None = it was one.
        """
        for router, routed in zip(self.routers, router_outputs, strict=True):
            if skipped is None:
                router.after_step(routed)
            else:
                router.after_step_unless(skipped, routed)

    @property
    def total_parameters(self) -> int:
        """All weights; the tied embedding counts once."""
        return size.total_parameters(self.config)

    @property
    def active_parameters(self) -> int:
        """Weights one token passes: config.experts_per_token per MoE layer instead of all."""
        return size.active_parameters(self.config)

    def flops_per_token(self, context_len: int) -> int:
        """Forward operations (2 per multiply-add) of a token attending to `context_len` tokens, head included."""
        return size.flops_per_token(self.config, context_len)

    @torch.no_grad()
    def draw_weights(self) -> None:
        """Draw every matrix anew, as the class says; vectors of norms stay, attention sinks are 0."""
        residual_std = INIT_STD / math.sqrt(2 * self.config.num_layers)
        for name, parameter in self.named_parameters():
            if parameter.ndim >= 2:
                writes_residual = "o_proj" in name or "down_proj" in name
                parameter.normal_(std=residual_std if writes_residual else INIT_STD)
            elif name.endswith(".sinks"):
                parameter.zero_()
