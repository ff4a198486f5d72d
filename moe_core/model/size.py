"""How large and how costly a configured model is, before one is built: parameters, operations, bytes.

Everything follows from the configuration by arithmetic, without torch; tests hold it against real tensors.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moe_core.config import Config, ModelConfig
from moe_core.errors import UsageError
from moe_core.model.logit_chunks import chunk_rows
from moe_core.program import program

Precision = Literal["float32", "bfloat16", "int8", "int4"]
SERVING_PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "int8", "int4")
"""float16 takes what bfloat16 takes. This program computes in these three; int8 and int4 are for engines that do."""
MATRIX_BYTES: dict[Precision, float] = {"float32": 4, "bfloat16": 2, "int8": 1 + 2 / 128, "int4": 0.5 + 2 / 128}
"""Per weight of attention and feed-forward matrices; the integers come with a 16-bit scale for every 128 weights."""
OTHER_BYTES: dict[Precision, int] = {"float32": 4, "bfloat16": 2, "int8": 2, "int4": 2}
"""Per weight of embedding, router and norms, and per number in the key/value cache."""
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
SMALLEST_VOCABULARY = 257


# ---- parameters and operations ----


@dataclass(frozen=True)
class ModelCost:
    """The size and the work of a configured model."""

    total_parameters: int
    active_parameters: int
    flops_per_token: int
    """Of the forward pass at the length it was trained at, 2 per multiply-add."""


def cost_of(config: Config) -> ModelCost:
    """All three at once."""
    model = config.model
    return ModelCost(total_parameters(model), active_parameters(model), flops_per_token(model, config.training.seq_len))


def total_parameters(config: ModelConfig) -> int:
    """All weights of the model; the tied embedding counts once."""
    _, moe = _layer_kinds(config)
    norms = 2 * config.dim + (2 * config.head_dim if config.qk_norm else 0)
    sinks = config.num_heads if config.attention.sinks else 0
    gate = config.dim if config.shared_expert_hidden_dim and config.shared_expert_gate else 0
    others = config.num_layers * (norms + sinks) + moe * (_router_weights(config) + gate) + config.dim
    return _matrix_weights(config) + others + embedding_parameters(config)


def active_parameters(config: ModelConfig, experts: float | None = None) -> int:
    """Weights that one token passes: as total_parameters, with `experts` per MoE layer (None =
    config.experts_per_token) instead of all; rounded where that is a mean."""
    passed = config.experts_per_token if experts is None else experts
    return total_parameters(config) - round(
        len(config.moe_layers) * (config.num_experts - passed) * _expert_weights(config)
    )


def embedding_parameters(config: ModelConfig) -> int:
    """Weights of the embedding, which is also the output head."""
    return config.vocab_size * config.dim


def flops_per_token(config: ModelConfig, context_len: int, experts: float | None = None) -> int:
    """Floating-point operations (2 per multiply-add) of the forward pass of one token that attends to `context_len`.

    Counts every matrix product, the output head included; the embedding lookup, norms and activations are left out.
    A window changes nothing here: a pass of a whole text computes what its mask hides. `experts`: as for
    active_parameters.
    """
    experts = config.experts_per_token if experts is None else experts
    dense, moe = _layer_kinds(config)
    multiply_adds: float = config.num_layers * (_attention_matrices(config) + 2 * context_len * _query_dim(config))
    multiply_adds += dense * 3 * config.dim * config.dense_hidden_dim
    used = config.router.matrices - config.router.facts.training_matrices
    router = used * config.router_choices * config.dim
    multiply_adds += moe * (router + _shared_expert_weights(config) + experts * _expert_weights(config))
    return round(2 * (multiply_adds + embedding_parameters(config)))


# ---- memory ----


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of a training step."""

    weights: int
    """float32; with autocast the bfloat16 copies that the forward pass makes, too."""
    gradients: int
    optimizer: int
    """Two numbers a weight for AdamW, one for Muon, all float32."""
    activations: int
    """What one of the training.gradient_accumulation parts of the batch keeps for its backward pass."""
    total: int
    """Bytes at the worst moment. Gradients appear as activations disappear, so the larger of the two counts. Both count
    if earlier parts of a batch have left gradients, and with logits in chunks, which are gone before."""


@dataclass(frozen=True)
class ServingMemory:
    """Bytes needed to write text."""

    weights: int
    kv_cache: int

    @property
    def total(self) -> int:
        """Weights and cache together."""
        return self.weights + self.kv_cache


def training_memory(config: Config, *, autocast: bool = False, parts: int | None = None) -> TrainingMemory:
    """Estimate for one optimizer step; `autocast` = bfloat16 mixed precision; `parts` of the batch, None =
    training.gradient_accumulation.

    Activations are what the backward pass needs: with T tokens in a part of the batch, for each

        layer      T * (4D + 3Q + 3C)   norms, queries Q = num_heads * head_dim, keys and values C, attention's output
        dense one  T * 4F               gate, activation(gate), up and their product
        MoE one    T * K * 2F           gate and up of K experts, the rest is computed again
        model      T * (2D + 3V)        the last norm; logits, log-softmax and the gradient of the two; or, with logits
                   2N + (T + V) * D     in chunks of N, two of a chunk and the gradients of states and head

    numbers of 4 bytes; with autocast of 2, but norms (half of 4D, all of 2D; Q and C once with qk_norm), V and this
    last row keep 4. With training.activation_checkpointing a layer keeps T * D numbers of 4 bytes, and one layer at a
    time the rest: when the loss is gone, beside gradients, and half as much again for gradients of its own.
    Left out: fragmentation, the process itself (about 0.5 GiB with torch) and what evaluation keeps.
    """
    model, training = config.model, config.training
    total, matrices = total_parameters(model), _matrix_weights(model)
    by_muon = matrices if training.optimizer == "muon" else 0
    copies = 2 * (matrices + embedding_parameters(model)) if autocast else 0
    parts = parts or training.gradient_accumulation
    tokens = training.batch_size // parts * training.seq_len
    weights, gradients, optimizer = 4 * total + copies, 4 * total, 8 * (total - by_muon) + 4 * by_muon
    logits = _logit_bytes(model, tokens)
    if training.activation_checkpointing:
        kept = 4 * tokens * model.dim * model.num_layers
        again = round(1.5 * tokens * _activation_bytes(_one_layer(model), autocast))
        activations = kept + max(again, logits)
        both = parts > 1
        together = kept + max(gradients + again, (gradients if both else 0) + logits)
    else:
        activations = tokens * _activation_bytes(model, autocast) + logits
        both = parts > 1 or chunk_rows(tokens, model.vocab_size) is not None
        together = gradients + activations if both else max(gradients, activations)
    return TrainingMemory(weights, gradients, optimizer, activations, total=weights + optimizer + together)


def serving_memory(config: ModelConfig, precision: Precision, batch_size: int = 1) -> ServingMemory:
    """Weights and a key/value cache of max_seq_len tokens, as far as each layer looks back, for each of `batch_size`
    sequences."""
    matrices = _matrix_weights(config)
    others = total_parameters(config) - matrices
    longest = config.max_seq_len
    seen = [config.attention.sees(layer) for layer in range(config.num_layers)]
    kept = sum(longest if sees is None else min(sees, longest) for sees in seen)
    cached = 2 * kept * config.num_kv_heads * config.head_dim * batch_size
    return ServingMemory(
        weights=round(MATRIX_BYTES[precision] * matrices) + OTHER_BYTES[precision] * others,
        kv_cache=OTHER_BYTES[precision] * cached,
    )


def memory_present(device: str = "cpu") -> int:
    """Bytes of this machine's memory, or of what its container may use; for "cuda" those of the GPU."""
    if device == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(0).total_memory)
    present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in CGROUP_LIMITS:
        if path.exists() and (limit := path.read_text().strip()).isdigit():
            present = min(present, int(limit))
    return present


def check_fits_memory(config: ModelConfig) -> None:
    """Raise UsageError if the float32 weights alone exceed this machine's memory."""
    needed, present = 4 * total_parameters(config), memory_present()
    if needed > present:
        raise UsageError(
            f"a model of {total_parameters(config):,} parameters needs {gib(needed)} for its weights, this machine has "
            f"{gib(present)}; lower model.num_experts, model.dim or model.vocab_size"
        )


def check_fits_training(config: Config, device: str, *, autocast: bool = False) -> None:
    """Raise UsageError if a training step needs more than the memory of `device` (cpu, cuda; others are not known).

    model.vocab_size is what is asked for and may end far smaller: before the text has been read, check with
    SMALLEST_VOCABULARY.
    """
    if device not in ("cpu", "cuda"):
        return
    training = config.training
    parts = training.gradient_accumulation if training.micro_batch == "fixed" else training.batch_size
    need, present = training_memory(config, autocast=autocast, parts=parts), memory_present(device)
    if need.total > present:
        remedy = f"choose a smaller preset ({program()} presets), or lower model.dim or model.num_experts"
        if need.weights + need.gradients + need.optimizer < present:
            remedy = "lower training.batch_size, or raise training.gradient_accumulation to pass it in smaller parts"
            if parts == training.batch_size:
                remedy = "lower training.seq_len, or set training.activation_checkpointing = true"
        part = f"{training.batch_size // parts} x {training.seq_len}"
        raise UsageError(
            f"training a model of {total_parameters(config.model):,} parameters needs about {gib(need.total)} "
            f"(weights {gib(need.weights)}, gradients {gib(need.gradients)}, {training.optimizer} "
            f"{gib(need.optimizer)}, activations of {part} tokens {gib(need.activations)}), "
            f"{'the GPU' if device == 'cuda' else 'this machine'} has {gib(present)}; {remedy}"
        )


def gib(size: float) -> str:
    """A number of bytes in words, such as 3.7 GiB."""
    return f"{size / 2**30:,.1f} GiB"


# ---- models to compare with ----


def nearest_dense(model: ModelConfig, measure: Callable[[ModelConfig], int]) -> ModelConfig:
    """The dense model whose measure is nearest to that of `model`; the measure is linear in the hidden width."""
    low, high = measure(_dense(model, 1)), measure(_dense(model, 2))
    return _dense(model, max(1, round(1 + (measure(model) - low) / (high - low))))


def _dense(model: ModelConfig, width: int) -> ModelConfig:
    return model.model_copy(update={"first_dense_layers": model.num_layers, "moe_every": 1, "dense_hidden_dim": width})


# ---- the parts of these sums ----


def _activation_bytes(config: ModelConfig, autocast: bool) -> int:
    """Per token of the batch, without the loss; see training_memory."""
    dense, moe = _layer_kinds(config)
    width, queries, keys = config.dim, _query_dim(config), config.num_kv_heads * config.head_dim
    in_float32 = config.num_layers * (2 * width + (queries + keys if config.qk_norm else 0)) + 2 * width
    either = config.num_layers * (4 * width + 3 * (queries + keys)) + 2 * width
    either += dense * 4 * config.dense_hidden_dim
    either += moe * (config.top_k * 2 * config.expert_hidden_dim + 4 * config.shared_expert_hidden_dim)
    return 2 * (either + in_float32) if autocast else 4 * either


def _one_layer(config: ModelConfig) -> ModelConfig:
    """The model with one of its layers alone, of the kind that keeps more."""
    kinds = [{"first_dense_layers": 1}] if len(config.moe_layers) < config.num_layers else []
    kinds += [{"first_dense_layers": 0}] if config.moe_layers else []
    alone = [config.model_copy(update={"num_layers": 1, "moe_every": 1, **kind}) for kind in kinds]
    return max(alone, key=lambda one: _activation_bytes(one, autocast=False))


def _logit_bytes(config: ModelConfig, tokens: int) -> int:
    """Of the loss of so many tokens; see training_memory."""
    rows = chunk_rows(tokens, config.vocab_size)
    if rows is None:
        return 4 * 3 * tokens * config.vocab_size
    return 4 * (2 * rows * config.vocab_size + (tokens + config.vocab_size) * config.dim)


def _matrix_weights(config: ModelConfig) -> int:
    """Weights of the attention's and the feed-forward blocks' matrices."""
    dense, moe = _layer_kinds(config)
    total = config.num_layers * _attention_matrices(config)
    total += dense * 3 * config.dim * config.dense_hidden_dim
    return total + moe * (
        3 * config.dim * config.shared_expert_hidden_dim + config.num_experts * _expert_weights(config)
    )


def _layer_kinds(config: ModelConfig) -> tuple[int, int]:
    moe = len(config.moe_layers)
    return config.num_layers - moe, moe


def _query_dim(config: ModelConfig) -> int:
    return config.num_heads * config.head_dim


def _attention_matrices(config: ModelConfig) -> int:
    return 2 * config.dim * (_query_dim(config) + config.num_kv_heads * config.head_dim)


def _expert_weights(config: ModelConfig) -> int:
    return 3 * config.dim * config.expert_hidden_dim


def _router_weights(config: ModelConfig) -> int:
    return config.router.matrices * config.router_choices * config.dim


def _shared_expert_weights(config: ModelConfig) -> int:
    """Multiply-adds of the shared expert and its gate."""
    hidden = config.shared_expert_hidden_dim
    return 3 * config.dim * hidden + (config.dim if hidden and config.shared_expert_gate else 0)
