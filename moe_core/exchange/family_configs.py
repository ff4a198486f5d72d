"""What a config.json of each family says, typed and checked before anything is built.

Every key of transformers' configuration classes (5.23) has one of three fates here: it is a field and is honoured; it
stands in `only` and must have a value that our model has; or it is in `inert`, because it never changes the logits. All
other keys are ignored, as transformers ignores them: norm_topk_prob means nothing to Mixtral. A test walks the classes
and the code of transformers, and fails on a key that has no fate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moe_core.config.attention_reach import AttentionConfig
from moe_core.config.rope_schemes import RopeConfig
from moe_core.errors import RunError, UsageError, first_fault, shortened
from moe_core.exchange.layouts import FAMILIES, Family
from moe_core.exchange.refusing import refuse_key
from moe_core.exchange.rope_parameters import read_rope_parameters
from moe_core.exchange.window_keys import GLOBAL, LOCAL, read_windows
from moe_core.program import program

Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
RopeBase = Annotated[float, Field(ge=1.0, le=1e12)]
"""A smaller base turns slow angles into fast ones, and one near 0 into infinite ones."""
Only = Mapping[str, tuple[object, ...]]

# Read by the code that all families share: masks, caches, loading. The first value is the default.
ONLY_COMMON: Only = {
    "hidden_act": ("silu", "swish", "gelu"),  # the second is another name of the first
    "is_causal": (True,),
    "is_encoder_decoder": (False,),
    "attention_chunk_size": (None,),
    "kv_sharing_modes": (None,),
    "per_layer_config": (None,),
    "fusion_config": (None,),
    "transformers_weights": (None,),
    "quantization_config": (None,),
}
NO_WINDOW: Only = {"sliding_window": (None,)}
INERT_COMMON = frozenset(
    {
        "architectures", "attention_dropout", "bos_token_id", "chunk_size_feed_forward", "dtype", "eos_token_id",
        "id2label", "initializer_range", "label2id", "output_hidden_states", "output_router_logits", "pad_token_id",
        "problem_type", "return_dict", "router_aux_loss_coef", "torch_dtype", "transformers_version", "use_cache",
    }
)  # fmt: skip


class FamilyConfig(BaseModel):
    """The keys that all families honour. Defaults of a family are those of transformers."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)
    aliases: ClassVar[Mapping[str, str]] = {}
    """Second name of a key -> its name here."""
    only: ClassVar[Only] = {}
    inert: ClassVar[frozenset[str]] = frozenset()
    default_rope_base: ClassVar[float] = 1e4
    default_rotary_share: ClassVar[float] = 1.0
    bias_key: ClassVar[str | None] = None
    """The key that says whether attention has biases."""
    biased: ClassVar[tuple[str, ...]] = ("q_proj", "k_proj", "v_proj")
    """Projections that have them then."""
    scores: ClassVar[str] = "softmax"

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: Positive
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int
    rms_norm_eps: float
    num_experts_per_tok: int
    tie_word_embeddings: bool = False
    layer_types: list[str] | None = None
    hidden_act: str = "silu"
    rope_theta: RopeBase
    """Found in rope_scaling, rope_parameters or beside them, see `_rope_values`."""
    rope: RopeConfig = RopeConfig()
    """Found there, too."""
    attention: AttentionConfig = AttentionConfig()
    """Of `window` and `kinds`."""

    @property
    def head_width(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def experts(self) -> int:
        raise NotImplementedError

    @property
    def expert_width(self) -> int:
        return self.intermediate_size

    @property
    def shared_width(self) -> int:
        """0 = no shared expert, or one without hidden units."""
        return 0

    @property
    def normalizes(self) -> bool:
        """Whether the weights of a token's experts are made to sum to 1."""
        return True

    @property
    def norms_queries(self) -> bool:
        return False

    @property
    def has_biases(self) -> bool:
        return self.bias_key is not None and bool(getattr(self, self.bias_key))

    @property
    def moe_layers(self) -> list[int]:
        return list(range(self.num_hidden_layers))

    @property
    def window(self) -> int | None:
        """Tokens that its local layers look at; None = it has none."""
        return None

    @property
    def kinds(self) -> list[str]:
        """Of its layers, LOCAL or GLOBAL."""
        return [GLOBAL if self.window is None else LOCAL] * self.num_hidden_layers


class MixtralConfig(FamilyConfig):
    """transformers.MixtralConfig"""

    aliases = {"num_experts": "num_local_experts"}
    inert = frozenset({"router_jitter_noise"})
    default_rope_base = 1e6

    vocab_size: int = 32_000
    hidden_size: int = 4096
    intermediate_size: int = 14_336
    num_hidden_layers: int = 32
    num_attention_heads: Positive = 32
    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 131_072
    rms_norm_eps: float = 1e-5
    num_experts_per_tok: int = 2
    num_local_experts: int = 8
    sliding_window: int | None = None

    @property
    def experts(self) -> int:
        return self.num_local_experts

    @property
    def window(self) -> int | None:
        return self.sliding_window


class _QwenConfig(FamilyConfig):
    """What the two Qwen families share."""

    vocab_size: int = 151_936
    hidden_size: int = 2048
    num_hidden_layers: int = 24
    max_position_embeddings: int = 32_768
    rms_norm_eps: float = 1e-6
    decoder_sparse_step: Positive = 1
    mlp_only_layers: list[int] | None = None
    norm_topk_prob: bool = False
    num_experts: int
    moe_intermediate_size: int
    use_sliding_window: bool = False
    sliding_window: int | None = 4096

    @property
    def experts(self) -> int:
        return self.num_experts

    @property
    def window(self) -> int | None:
        return self.sliding_window if self.use_sliding_window else None

    @property
    def expert_width(self) -> int:
        return self.moe_intermediate_size

    @property
    def normalizes(self) -> bool:
        return self.norm_topk_prob

    @property
    def moe_layers(self) -> list[int]:
        dense = frozenset(self.mlp_only_layers or ())
        step = self.decoder_sparse_step
        return [layer for layer in range(self.num_hidden_layers) if layer not in dense and (layer + 1) % step == 0]


class Qwen3MoeConfig(_QwenConfig):
    """transformers.Qwen3MoeConfig"""

    aliases = {"num_local_experts": "num_experts"}
    inert = frozenset({"max_window_layers"})
    bias_key = "attention_bias"
    biased = ("q_proj", "k_proj", "v_proj", "o_proj")

    intermediate_size: int = 6144
    num_attention_heads: Positive = 32
    num_key_value_heads: int | None = 4
    num_experts_per_tok: int = 8
    attention_bias: bool = False
    num_experts: int = 128
    moe_intermediate_size: int = 768

    @property
    def norms_queries(self) -> bool:
        return True


class Qwen2MoeConfig(_QwenConfig):
    """transformers.Qwen2MoeConfig"""

    bias_key = "qkv_bias"

    intermediate_size: int = 5632
    num_attention_heads: Positive = 16
    num_key_value_heads: int | None = 16
    num_experts_per_tok: int = 4
    qkv_bias: bool = True
    num_experts: int = 60
    moe_intermediate_size: int = 1408
    shared_expert_intermediate_size: Natural = 5632
    max_window_layers: int = 28

    @property
    def kinds(self) -> list[str]:
        if self.window is None:
            return super().kinds
        layers, last = range(self.num_hidden_layers), self.max_window_layers
        alternate = [LOCAL if i % 2 == 0 and i < last else GLOBAL for i in layers]
        return alternate if self.layer_types is None else self.layer_types

    @property
    def shared_width(self) -> int:
        return self.shared_expert_intermediate_size


class GraniteMoeSharedConfig(FamilyConfig):
    """transformers.GraniteMoeSharedConfig"""

    only = {
        **NO_WINDOW,
        "embedding_multiplier": (1.0,),
        "logits_scaling": (1.0,),
        "residual_multiplier": (1.0,),
    }
    bias_key = "attention_bias"
    biased = ("q_proj", "k_proj", "v_proj", "o_proj")

    vocab_size: int = 32_000
    hidden_size: int = 4096
    intermediate_size: int = 11_008
    num_hidden_layers: int = 32
    num_attention_heads: Positive = 32
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    num_experts_per_tok: int = 2
    attention_bias: bool = False
    attention_multiplier: float = 1.0
    num_local_experts: int = 8
    shared_intermediate_size: Natural = 0

    @property
    def experts(self) -> int:
        return self.num_local_experts

    @property
    def shared_width(self) -> int:
        return self.shared_intermediate_size


class Glm4MoeConfig(FamilyConfig):
    """transformers.Glm4MoeConfig"""

    aliases = {"num_local_experts": "n_routed_experts"}
    only = {**NO_WINDOW, "routed_scaling_factor": (1.0,), "n_group": (1,), "topk_group": (1,)}
    # Layers that guess further tokens lie beside the model and never change its logits.
    inert = frozenset({"num_mtp_layers", "num_nextn_predict_layers"})
    default_rotary_share = 0.5
    bias_key = "attention_bias"
    scores = "sigmoid"

    vocab_size: int = 151_552
    hidden_size: int = 4096
    intermediate_size: int = 10_944
    num_hidden_layers: int = 46
    num_attention_heads: Positive = 96
    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 131_072
    rms_norm_eps: float = 1e-5
    num_experts_per_tok: int = 8
    attention_bias: bool = False
    moe_intermediate_size: int = 1408
    n_routed_experts: Annotated[int, Field(ge=2)] = 128
    n_shared_experts: Natural = 1
    first_k_dense_replace: int = 1
    norm_topk_prob: bool = True
    use_qk_norm: bool = False

    @property
    def experts(self) -> int:
        return self.n_routed_experts

    @property
    def expert_width(self) -> int:
        return self.moe_intermediate_size

    @property
    def shared_width(self) -> int:
        return self.moe_intermediate_size * self.n_shared_experts

    @property
    def normalizes(self) -> bool:
        return self.norm_topk_prob

    @property
    def norms_queries(self) -> bool:
        return self.use_qk_norm

    @property
    def moe_layers(self) -> list[int]:
        return list(range(max(0, self.first_k_dense_replace), self.num_hidden_layers))


FAMILY_CONFIGS: Mapping[Family, type[FamilyConfig]] = {
    "mixtral": MixtralConfig,
    "qwen3_moe": Qwen3MoeConfig,
    "qwen2_moe": Qwen2MoeConfig,
    "granitemoeshared": GraniteMoeSharedConfig,
    "glm4_moe": Glm4MoeConfig,
}


def read_family_config(tree: Mapping[str, Any]) -> tuple[FamilyConfig, Family]:
    """The typed content of a config.json.

    Raises UsageError naming a key whose value our model does not have, RunError naming one of a wrong type.
    """
    family = _family_named(tree)
    kind = FAMILY_CONFIGS[family]
    named = _without_aliases(tree, kind)
    for key, allowed in {**ONLY_COMMON, **kind.only}.items():
        if key in named and not any(_equals_strictly(named[key], value) for value in allowed):
            raise refuse_key(key, named[key], f"our model has {', '.join(map(repr, allowed))} only")
    try:
        rope = _rope_values(named)
        base = _rope_base(rope, named, kind)
        unread = {"rope_theta": base, "rope": RopeConfig(), "attention": AttentionConfig()}
        config = kind.model_validate({**named, **unread})
        stretched = read_rope_parameters(rope, named, config.max_position_embeddings)
    except ValidationError as error:
        raise _malformed_value(error) from None
    return config.model_copy(update={"rope": stretched, "attention": read_windows(config)}), family


def _family_named(tree: Mapping[str, Any]) -> Family:
    found = tree.get("model_type")
    for family in FAMILIES:
        if found == family:
            return family
    raise UsageError(
        f"the checkpoint's model_type is {str(found)[:60]!r}; our model can become one of {', '.join(FAMILIES)}: look "
        f"at other models with `{program()} trace --model`"
    )


def _without_aliases(tree: Mapping[str, Any], kind: type[FamilyConfig]) -> dict[str, Any]:
    named = dict(tree)
    for alias, key in kind.aliases.items():
        if alias in named:
            value = named.pop(alias)
            if named.setdefault(key, value) != value:
                raise refuse_key(alias, value, f"its {key} is {shortened(named[key])}, and the two are one thing")
    return named


def _rope_values(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """As in transformers, rope_scaling goes before rope_parameters, and both before keys beside them."""
    for name in ("rope_parameters", "rope_scaling"):
        if tree.get(name) is not None and not isinstance(tree[name], Mapping):
            raise RunError(f"the checkpoint's config.json has {name} = {shortened(tree[name])}; expected an object")
    rope: Mapping[str, Any] = tree.get("rope_scaling") or tree.get("rope_parameters") or {}
    for name, value in rope.items():
        if isinstance(value, Mapping):
            raise refuse_key("rope_parameters", rope, f"our layers share one, without parts such as {name[:40]!r}")
    return rope


def _rope_base(rope: Mapping[str, Any], tree: Mapping[str, Any], kind: type[FamilyConfig]) -> object:
    """rope_theta. Raises UsageError where only a part of each head is rotated."""
    beside = tree.get("partial_rotary_factor", kind.default_rotary_share)
    share = rope.get("partial_rotary_factor", 1.0 if beside is None else beside)
    if not _equals_strictly(share, 1.0):
        raise refuse_key("partial_rotary_factor", share, "our model rotates whole heads, 1.0")
    return rope.get("rope_theta", tree.get("rope_theta", kind.default_rope_base))


def _malformed_value(error: ValidationError) -> RunError:
    fault = first_fault(error)
    expected = {"int_type": "a whole number", "float_type": "a number", "bool_type": "true or false"}
    words = expected.get(fault.kind, fault.message.removeprefix("input should be "))
    return RunError(f"the checkpoint's config.json has {fault.key} = {fault.value}; expected {words}")


def _equals_strictly(value: object, wanted: object) -> bool:
    """Equal, where true is not 1."""
    return isinstance(value, bool) == isinstance(wanted, bool) and value == wanted
