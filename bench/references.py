"""Other ways of computing what our model computes, with the same weights: what the benchmarks hold us against.

- The naive loop, as tutorials have it: every expert, every slot, a mask over all tokens; on stacked weights, or on one
  module an expert.
- The mixture of transformers (MixtralForCausalLM and its parts), with the expert implementations it offers.
- The matrix products of the same operations, each as a single large one, into memory allocated beforehand: a bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bench.results import Result
from moe_core.config import ModelConfig
from moe_core.model.experts import Experts
from moe_core.model.feed_forward import GatedLinearUnit, MoE
from moe_core.model.transformer import Block, MoETransformer

Implementation = Literal["eager", "grouped_mm"]
HAS_TRANSFORMERS = find_spec("transformers") is not None


def absent_rows(case: str) -> list[Result]:
    """A row that says what is not measured where transformers is missing, else none."""
    note = "not measured: transformers is missing; pip install -r requirements-huggingface.txt"
    return [] if HAS_TRANSFORMERS else [Result(f"{case}, against Mixtral", float("nan"), "ms", note=note)]


def naive_loop(
    x_TD: Tensor, scores_TK: Tensor, indices_TK: Tensor, experts: Sequence[Callable[[Tensor], Tensor]]
) -> Tensor:
    """The same output as Experts.forward."""
    out_TD = torch.zeros_like(x_TD)
    for number, expert in enumerate(experts):
        for slot in range(indices_TK.shape[1]):
            chosen_T = indices_TK[:, slot] == number
            if chosen_T.any():
                out_TD[chosen_T] += scores_TK[chosen_T, slot, None] * expert(x_TD[chosen_T])
    return out_TD


class StackedLoop(nn.Module):
    """The naive loop on copies of the stacked weights of `experts`."""

    is_moe_experts = True

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        self.weights = deepcopy(experts)

    def forward(self, x_TD: Tensor, scores_TK: Tensor, indices_TK: Tensor) -> Tensor:
        """As Experts.forward."""
        numbers = range(len(self.weights.gate_proj))
        return naive_loop(x_TD, scores_TK, indices_TK, [partial(self._expert, number) for number in numbers])

    def _expert(self, number: int, x_nD: Tensor) -> Tensor:
        linear = nn.functional.linear
        gate, up, down = (weight[number] for weight in self.weights.parameters())
        return linear(nn.functional.silu(linear(x_nD, gate)) * linear(x_nD, up), down)


class ModuleLoop(nn.Module):
    """The naive loop over one module an expert, weights copied: no stacked parameter is indexed."""

    is_moe_experts = True

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        E, F, D = experts.gate_proj.shape
        self.experts = nn.ModuleList(GatedLinearUnit(D, F) for _ in range(E))
        with torch.no_grad():
            for number, one in enumerate(self.experts):
                for name, parameter in one.named_parameters():
                    parameter.copy_(getattr(experts, name.removesuffix(".weight"))[number])

    def forward(self, x_TD: Tensor, scores_TK: Tensor, indices_TK: Tensor) -> Tensor:
        """As Experts.forward."""
        return naive_loop(x_TD, scores_TK, indices_TK, list(self.experts))


def with_experts(model: MoETransformer, kind: type[StackedLoop] | type[ModuleLoop]) -> MoETransformer:
    """A copy of the model whose experts are visited in a naive loop."""
    copied = deepcopy(model)
    for moe in moe_blocks(copied):
        moe.experts = kind(moe.experts)  # type: ignore[assignment]
    return copied


def moe_blocks(model: MoETransformer) -> list[MoE]:
    """The blocks of all layers that have experts, bottom first."""
    return [block.moe for block in model.layers if isinstance(block, Block) and block.moe is not None]


def mixtral_config(config: ModelConfig, implementation: Implementation) -> Any:
    """The MixtralConfig of a model of ours without QK-norm."""
    from transformers import MixtralConfig

    build: Any = MixtralConfig
    return build(
        vocab_size=config.vocab_size,
        hidden_size=config.dim,
        intermediate_size=config.expert_hidden_dim,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_seq_len,
        rms_norm_eps=config.norm_eps,
        num_local_experts=config.num_experts,
        num_experts_per_tok=config.top_k,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        sliding_window=None,
        attn_implementation="sdpa",
        experts_implementation=implementation,
    )


def mixtral_block(moe: MoE, config: ModelConfig, implementation: Implementation) -> Any:
    """The MixtralSparseMoeBlock with the weights of `moe`: [B, S, D] -> [B, S, D]."""
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    build: Any = MixtralSparseMoeBlock
    block = build(mixtral_config(config, implementation))
    _copy_moe(moe, block)
    return block


def mixtral(model: MoETransformer, implementation: Implementation) -> Any:
    """The MixtralForCausalLM with our weights, in evaluation mode."""
    from transformers import MixtralForCausalLM

    found: Any = MixtralForCausalLM(mixtral_config(model.config, implementation))
    with torch.no_grad():
        found.model.embed_tokens.weight.copy_(model.embedding.weight)
        found.model.norm.weight.copy_(model.norm.weight)
        for block, layer in zip(model.layers, found.model.layers, strict=True):
            assert isinstance(block, Block)
            assert block.moe is not None
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                getattr(layer.self_attn, name).weight.copy_(getattr(block.attention, name).weight)
            layer.input_layernorm.weight.copy_(block.attention_norm.weight)
            layer.post_attention_layernorm.weight.copy_(block.feed_forward_norm.weight)
            _copy_moe(block.moe, layer.mlp)
    return found.eval()


def _copy_moe(moe: MoE, theirs: Any) -> None:
    with torch.no_grad():
        theirs.gate.weight.copy_(moe.router.weight)
        theirs.experts.gate_up_proj.copy_(torch.cat([moe.experts.gate_proj, moe.experts.up_proj], dim=1))
        theirs.experts.down_proj.copy_(moe.experts.down_proj)


def affordable_rounds(sides: Mapping[str, Callable[[], object]], rounds: int, seconds: float) -> int:
    """How many rounds take about `seconds`: 2 to `rounds`. Calls every side once, which warms it up, too."""
    start = time.perf_counter()
    for call in sides.values():
        call()
    return min(rounds, max(2, int(seconds / (time.perf_counter() - start))))


class EqualProducts:
    """As many multiply-adds as an MoE layer of N = T * K rows does in its experts, without a mixture."""

    def __init__(self, rows: int, dim: int, hidden: int) -> None:
        self.x_ND, self.wide_NF = torch.randn(rows, dim), torch.randn(rows, hidden)
        self.up_DF, self.down_FD = torch.randn(dim, 2 * hidden), torch.randn(hidden, dim)
        self.hidden_NF, self.out_ND = torch.empty(rows, 2 * hidden), torch.empty(rows, dim)
        self.d_up_DF, self.d_down_FD = torch.empty_like(self.up_DF), torch.empty_like(self.down_FD)

    def forward(self) -> None:
        """gate and up together, then down."""
        torch.mm(self.x_ND, self.up_DF, out=self.hidden_NF)
        torch.mm(self.wide_NF, self.down_FD, out=self.out_ND)

    def forward_backward(self) -> None:
        """And for each of them the gradients of its input and of its weight."""
        self.forward()
        torch.mm(self.wide_NF.t(), self.x_ND, out=self.d_down_FD)
        torch.mm(self.x_ND.t(), self.hidden_NF, out=self.d_up_DF)
        torch.mm(self.hidden_NF, self.up_DF.t(), out=self.out_ND)
        torch.mm(self.x_ND, self.down_FD.t(), out=self.wide_NF)
