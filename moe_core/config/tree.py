"""The configuration tree: every field's docstring gives its meaning and unit.

The tree is frozen and is saved beside everything that a run writes. merging.py says how values are merged.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from moe_core.config.attention_reach import AttentionConfig
from moe_core.config.contrastive_views import ContrastiveConfig
from moe_core.config.parallel import ParallelConfig
from moe_core.config.rope_schemes import RopeConfig
from moe_core.config.router import RouterConfig
from moe_core.config.section import Section
from moe_core.config.serve import ServeConfig

ActivationName = Literal["silu", "gelu"]
NullOutput = Literal["zero", "identity"]


class ModelConfig(Section):
    """A decoder-only Transformer whose feed-forward blocks are Mixtures of Experts, or dense where moe_every or
    first_dense_layers say so; with first_dense_layers = num_layers it is an ordinary dense model."""

    vocab_size: int = Field(4096, ge=257, le=1_000_000)
    """Entries asked for in the byte-level BPE vocabulary, at least 257 (256 bytes and end-of-text). A run stores the
    number that its tokenizer really has."""
    dim: int = Field(256, ge=8, le=65_536)
    """Model width D."""
    num_layers: int = Field(4, ge=1, le=1_000)
    """Transformer blocks."""
    num_heads: int = Field(4, ge=1, le=1_024)
    """Query heads."""
    num_kv_heads: int = Field(2, ge=1, le=1_024)
    """Key/value heads (grouped-query attention)."""
    head_dim: int = Field(64, ge=2, le=1_024)
    """Width of one attention head; even, for RoPE."""
    max_seq_len: int = Field(1024, ge=8, le=1_000_000)
    """Longest context in tokens; RoPE tables are built for it."""
    rope_theta: float = Field(10_000.0, ge=1e-6, le=1e12)
    """RoPE base; the angle of the last pair is about position / base, which float32 must hold."""
    # Like `compile` below: what was saved before there was this key stays as it is.
    rope: RopeConfig = Field(RopeConfig(), exclude_if=lambda value: value == RopeConfig())
    attention: AttentionConfig = Field(AttentionConfig(), exclude_if=lambda value: value == AttentionConfig())
    norm_eps: float = Field(1e-5, ge=1e-30, lt=1.0)
    """Epsilon of RMSNorm."""
    qk_norm: bool = True
    """RMSNorm on every query and key head before RoPE (Qwen3)."""
    num_experts: int = Field(16, ge=1, le=4_096)
    """Experts E per MoE layer."""
    top_k: int = Field(2, ge=1, le=256)
    """Experts K chosen for each token. Where the router varies their number, this is the most a token can have."""
    expert_hidden_dim: int = Field(512, ge=1, le=262_144)
    """Hidden width F of one expert."""
    # What was saved before there was this key stays as it is.
    expert_activation: ActivationName = Field("silu", exclude_if=lambda value: value == "silu")
    """What gates the hidden units of experts and dense blocks: silu (SwiGLU) or gelu (GeGLU), arXiv:2002.05202."""
    null_experts: int = Field(0, ge=0, le=4_096, exclude_if=lambda value: value == 0)
    """Further choices of the router behind the num_experts networks that compute nothing, so that a token can skip work
    (arXiv:2601.15370). They count as experts for balancing: with an even load a token passes K E / (E + N) networks."""
    null_output: NullOutput = Field("zero", exclude_if=lambda value: value == "zero")
    """What a null expert puts out: zero, or identity = what the layer's experts read (LongCat-Flash,
    arXiv:2509.01322), weighted like any expert's output."""
    removed_experts: int = Field(0, ge=0, le=4_096, exclude_if=lambda value: value == 0)
    """Experts of each layer that training takes away for good, at training.pruning_steps: no token can choose them any
    more. They stay in memory and in checkpoints until `prune` writes a run without them."""
    expert_hidden_dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Probability that a hidden unit of an expert is zeroed for one token while training; the others are divided by
    1 - p (Switch's expert dropout, arXiv:2101.03961, sec. 2.4, which uses 0.4 for fine-tuning). 0 = off."""
    capacity_factor: float | None = Field(None, gt=0.0, le=4_096.0)
    """None = dropless. Else an expert takes at most ceil(capacity_factor * T * K / E) of the T tokens of a training
    batch; later tokens lose that slot (index -1, score 0). From E / K on none is lost."""
    shared_expert_hidden_dim: int = Field(0, ge=0, le=262_144)
    """Hidden width of an expert every token passes (0 = none)."""
    shared_expert_gate: bool = False
    """Scale the shared expert's output by sigmoid(w.x) (Qwen2-MoE)."""
    moe_every: int = Field(1, ge=1)
    """Every n-th layer after the first dense ones is an MoE layer; the others have a dense feed-forward block."""
    first_dense_layers: int = Field(0, ge=0)
    """Number of dense layers at the bottom. num_layers means that there are no experts at all."""
    dense_hidden_dim: int = Field(1024, ge=1, le=1_048_576)
    """Hidden width of the dense layers' gated block."""
    router: RouterConfig = RouterConfig()

    @property
    def can_write(self) -> bool:
        """Whether the model can write text: False if its routers look at later tokens."""
        return not (self.moe_layers and self.router.facts.sees_future)

    @property
    def experts_per_token(self) -> float:
        """Experts a token is meant to pass in each MoE layer, on average. For top_p this is top_k, the most it can
        pass: how many it does pass is known after training alone. With null experts it is the number under an even
        load."""
        if "mean_experts" in self.router.facts.own_keys:
            return self.router.mean_experts
        return self.top_k * self.num_experts / self.router_choices

    @property
    def router_choices(self) -> int:
        """What a token chooses from in an MoE layer: experts and null experts."""
        return self.num_experts + self.null_experts

    @property
    def varying_experts(self) -> bool:
        """Whether the router's rule, and not a lack of capacity, gives some tokens fewer than top_k experts."""
        return bool(self.moe_layers) and (self.router.facts.varying_experts or self.null_experts > 0)

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Indices of the MoE layers, counted from 0 over all layers."""
        first = self.first_dense_layers
        return tuple(i for i in range(first, self.num_layers) if (i - first + 1) % self.moe_every == 0)

    @model_validator(mode="after")
    def _fits_together(self) -> ModelConfig:
        if self.top_k > self.num_experts:
            raise ValueError(
                f"model.top_k = {self.top_k} is more than model.num_experts = {self.num_experts}; "
                "lower top_k or raise num_experts"
            )
        own_keys = self.router.facts.own_keys
        if self.null_experts and not self.router.facts.takes_bias:
            raise ValueError(
                f"model.null_experts = {self.null_experts} needs a router that gives every token top_k choices by its "
                f"logits; expected model.router.kind = softmax, noisy or sigmoid, not {self.router.kind}"
            )
        if self.null_output != "zero" and not self.null_experts:
            raise ValueError(
                f"model.null_output = {self.null_output} is of null experts and model.null_experts = 0; set both"
            )
        if self.removed_experts:
            self._check_removal()
        if "mean_experts" in own_keys and self.router.mean_experts > self.top_k:
            raise ValueError(
                f"model.router.mean_experts = {self.router.mean_experts:g} is more than model.top_k = {self.top_k}, "
                "the most a token can have; raise top_k or lower mean_experts"
            )
        pool = self.router.pool_size
        if "pool_size" in own_keys and pool is not None and not self.top_k <= pool <= self.num_experts:
            raise ValueError(
                f"model.router.pool_size = {pool} does not fit; expected model.top_k = {self.top_k} to "
                f"model.num_experts = {self.num_experts}"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"model.num_heads = {self.num_heads} is not a multiple of model.num_kv_heads = {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"model.head_dim = {self.head_dim} is odd; RoPE rotates pairs, choose an even number")
        if self.rope.scheme in ("ntk", "dynamic") and self.head_dim < 4:
            raise ValueError(
                f"model.head_dim = {self.head_dim} is a single pair, which model.rope.scheme = "
                f"{self.rope.scheme} cannot stretch; choose 4 or more"
            )
        if self.rope.scheme == "yarn" and self.rope_theta <= 1:
            raise ValueError(
                f"model.rope_theta = {self.rope_theta:g} makes no pair slower than the first; model.rope.scheme = yarn "
                "needs more than 1"
            )
        return self

    def _check_removal(self) -> None:
        most = self.num_experts - self.top_k
        if self.removed_experts > most:
            raise ValueError(
                f"model.removed_experts = {self.removed_experts} leaves too few: a token is sent to {self.top_k} of "
                f"{self.num_experts}; expected 0 to {most}"
            )
        if self.router.kind not in ("softmax", "sigmoid"):
            raise ValueError(
                f"model.removed_experts = {self.removed_experts} needs a router that chooses by logits alone; expected "
                f"model.router.kind = softmax or sigmoid, not {self.router.kind}"
            )
        if self.null_experts or self.router.expert_dropout:
            raise ValueError(
                f"model.removed_experts = {self.removed_experts} goes with neither null experts nor expert dropout; "
                "expected model.null_experts = 0 and model.router.expert_dropout = 0"
            )


class DataConfig(Section):
    """Where the text comes from: the four synthetic domains, or the user's own."""

    path: str | None = Field(None, min_length=1)
    """None = synthetic. Else a .jsonl, .parquet, .csv or .txt file, a folder whose subfolders are domains, or a folder
    of shards that `moescope data prepare` wrote."""
    documents: int = Field(1000, ge=10, le=1_000_000)
    """Synthetic documents per domain in the training split."""
    overlap: float = Field(0.25, ge=0.0, le=1.0)
    """Share of vocabulary and templates that the synthetic domains have in common (0 = none, 1 = all)."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of the synthetic documents and of the split of the user's own text."""


class TrainingConfig(Section):
    """The training loop."""

    steps: int = Field(3000, ge=1, le=100_000_000)
    """Optimizer steps."""
    # Like `compile` below: what was saved before there was this key stays as it is.
    epochs: float | None = Field(None, gt=0.0, le=1_000_000.0, exclude_if=lambda value: value is None)
    """Passes through the training text, which then decide the number of steps; None = `steps` does."""
    batch_size: int = Field(16, ge=1, le=65_536)
    """Sequences per step."""
    gradient_accumulation: int = Field(1, ge=1, le=65_536)
    """The batch is processed in this many equal parts, whose gradients add up to the batch's. The step is the same and
    needs less memory, but the load-balancing loss and capacity_factor then apply to each part, not to the batch. Where
    memory ends within a step, it is done again in smaller parts, and so are those that follow."""
    micro_batch: Literal["fixed", "auto"] = Field("fixed", exclude_if=lambda value: value == "fixed")
    """auto = begin with the fewest parts, of at least gradient_accumulation, that fit into the memory that is free."""
    seq_len: int = Field(128, ge=8, le=1_000_000)
    """Tokens per sequence."""
    time_budget_seconds: float | None = Field(None, gt=0.0)
    """Seconds that training may take; None = unlimited. If the steps would take longer, their number falls, and the
    learning-rate schedule is shortened with it, so that the run still ends with a low learning rate."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """muon: Muon on attention and expert matrices, AdamW on the rest. adamw: fused AdamW on all."""
    learning_rate: float = Field(3e-3, gt=0.0, le=10.0)
    """Peak learning rate of AdamW."""
    embedding_learning_rate: float | None = Field(None, gt=0.0, le=10.0)
    """Peak learning rate of the embedding, which is also the output head; AdamW trains it. None = learning_rate."""
    muon_learning_rate: float = Field(0.02, gt=0.0, le=10.0)
    """Peak learning rate of Muon."""
    weight_decay: float = Field(0.0, ge=0.0, le=10.0)
    """Decoupled weight decay on matrices."""
    warmup_fraction: float = Field(0.03, ge=0.0, le=1.0)
    """Share of the steps over which the learning rate rises linearly. After that it falls linearly."""
    final_lr_fraction: float = Field(0.0, ge=0.0, le=1.0)
    """Learning rate at the end of the fall, one step after the last step, as a share of the peak."""
    gradient_clip: float = Field(1.0, gt=0.0)
    """Largest global gradient norm."""
    gradient_clip_percentile: float | None = Field(None, gt=0.0, le=100.0, exclude_if=lambda value: value is None)
    """None = gradient_clip is the limit. Else, in its place, this percentile of the norms of all steps so far
    (AutoClip, arXiv:2007.14469, which takes 10)."""
    autocast: Literal["auto", "bfloat16", "float16", "none"] = "auto"
    """Mixed precision. auto = bfloat16 where the hardware multiplies it and the model is wide enough to gain (192 on
    a processor, 256 on a GPU), else none. float16 scales the loss, for GPUs that multiply no bfloat16."""
    # What was saved before there was this key, and the hashes of comparisons, stay as they are.
    compile: Literal["auto", "none"] = Field("auto", exclude_if=lambda value: value == "auto")
    """torch.compile of the blocks. auto = on CUDA in bfloat16, once a run's speed shows that the steps left pay for
    it; never on a CPU."""
    activation_checkpointing: bool = Field(False, exclude_if=lambda value: value is False)
    """Keep only what enters each block, and compute the block once more in the backward pass: less memory, more time,
    the same numbers to the bit."""
    pruning_steps: tuple[Annotated[int, Field(ge=1)], ...] = Field((), exclude_if=lambda value: not value)
    """Steps, ascending, such as 100,200, behind which experts are taken away, at each as many as at any other until
    model.removed_experts of each layer are gone: those of the smallest REAP (arXiv:2510.13999) on the validation text
    that is scored while training."""
    evaluation_interval: int = Field(100, ge=1)
    """Steps between evaluations (loss on both validation splits, routing of the probe set, checkpoint)."""
    early_stopping_patience: int | None = Field(None, ge=1, exclude_if=lambda value: value is None)
    """The run ends once so many evaluations in a row have not lowered the loss on validation; None = it never does."""
    keep_best: bool = Field(False, exclude_if=lambda value: value is False)
    """Keep the checkpoint whose loss on validation is lowest beside the newest ones (`--step best` opens it)."""
    evaluation_tokens: int = Field(4096, ge=64)
    """Tokens per domain and split scored at each evaluation while training (the final report scores more)."""
    probe_tokens: int = Field(512, ge=32, le=65_536)
    """Tokens per domain whose routing is kept at every evaluation, from eight documents where there are as many."""
    data_workers: int = Field(0, ge=0, le=64, exclude_if=lambda value: value == 0)
    """Threads that read the batches of coming steps, one ahead each; 0 = a step reads its own, which takes under a
    hundredth of it unless the text lies on slow storage."""
    contrastive: ContrastiveConfig = Field(ContrastiveConfig(), exclude_if=lambda value: value == ContrastiveConfig())
    syntax_samples: int = Field(0, ge=0, le=256, exclude_if=lambda value: value == 0)
    """Beginnings of held-out code that the model goes on from at each evaluation, to see how much of what it writes is
    valid; 0 = none. Of text in a domain named code or python; without such a domain nothing is written."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of weights, data order and router noise."""
    init_from: str | None = Field(None, min_length=1)
    """None = random weights. Else the run whose newest weights and tokenizer this one starts from (fine-tuning)."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto = cuda if present, else cpu."""
    threads: int = Field(0, ge=0, le=1_024)
    """CPU threads (0 = torch's own choice: OMP_NUM_THREADS, else the physical cores)."""

    @field_validator("pruning_steps", mode="before")
    @classmethod
    def _steps_in_words(cls, value: object) -> object:
        """A command line and an environment give "100,200"."""
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _parts_are_equal(self) -> TrainingConfig:
        if self.batch_size % self.gradient_accumulation:
            raise ValueError(
                f"training.batch_size = {self.batch_size} is not a multiple of training.gradient_accumulation = "
                f"{self.gradient_accumulation}; change either"
            )
        return self


class Config(Section):
    """The whole tree; all but `serve` and `parallel` is saved as config.json in every run."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    serve: ServeConfig = Field(ServeConfig(), exclude=True)
    """No part of a run, so it is in no saved tree."""
    parallel: ParallelConfig = Field(ParallelConfig(), exclude=True)
    """Neither is how many processes train it."""

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        if self.training.seq_len > self.model.max_seq_len:
            raise ValueError(
                f"training.seq_len = {self.training.seq_len} is more than model.max_seq_len = "
                f"{self.model.max_seq_len}; lower seq_len or raise max_seq_len"
            )
        self._check_pruning()
        if self.model.attention.sinks and self.parallel.tensor > 1:
            raise ValueError(
                f"parallel.tensor = {self.parallel.tensor} spreads heads, and model.attention.sinks keeps a number for "
                "each of them together; set parallel.tensor = 1"
            )
        contrastive = self.training.contrastive
        if contrastive.coef and contrastive.tokens >= self.model.max_seq_len:
            raise ValueError(
                f"training.contrastive.tokens = {contrastive.tokens} is not less than model.max_seq_len = "
                f"{self.model.max_seq_len}; lower it"
            )
        return self

    def _check_pruning(self) -> None:
        steps, removed = self.training.pruning_steps, self.model.removed_experts
        if bool(steps) != bool(removed) or len(steps) > max(removed, 0):
            raise ValueError(
                f"training.pruning_steps = {list(steps)} and model.removed_experts = {removed} do not fit: expected "
                "both or neither, and at least one expert for each step"
            )
        if list(steps) != sorted(set(steps)):
            raise ValueError(f"training.pruning_steps = {list(steps)}: expected ascending steps, each once")
        if steps and self.parallel.processes > 1:
            raise ValueError(
                f"training.pruning_steps = {list(steps)} needs one process, not {self.parallel.processes}: what an "
                "expert adds is weighed by the whole model"
            )
