"""Named configurations: ours, and those that the documents this project grew from describe.

A preset is a tree of configuration keys laid over the defaults of moe_core.config; only the standard library is
imported. What a document leaves open is chosen here and said in `chosen`; what it names and this architecture has not
is said in `differs`: no key imitates it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """A configuration with a name."""

    about: str
    """What it is, in a line."""
    tree: Mapping[str, Any]
    """Sections of the configuration, laid over the defaults."""
    chosen: str = ""
    """What its document leaves open and we filled in."""
    differs: str = ""
    """What its document names and our architecture has not, or has otherwise."""


_QUICK_MODEL: dict[str, Any] = {
    "vocab_size": 2048,
    "dim": 128,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 32,
    "num_experts": 8,
    "expert_hidden_dim": 256,
    "dense_hidden_dim": 512,
    # At .01 and .02 a few hundred steps leave one layer with a load just above twice the mean (docs/LOG.md).
    "router": {"load_balancing_loss_coef": 0.05},
}
_QUICK_TRAINING: dict[str, Any] = {
    "steps": 350,
    # At the other parameters' 0.003, 150 steps of real text end at 2.48 instead of 2.20 bits a byte (docs/LOG.md).
    "embedding_learning_rate": 0.03,
    "time_budget_seconds": 145.0,
    "evaluation_interval": 50,
    "evaluation_tokens": 1024,
}

_BLUES_DIFFERS = "the vocabulary is learned instead of o200k_base"

# The sizes of the third document; it gives no shape. These are Mistral's at 7b, and at 40b the depth and width that
# make 40e9 parameters at the same ratios. An expert is half as wide as the dense block it replaces, so that a token's
# two experts cost what that block did.
_7B: dict[str, Any] = {
    "vocab_size": 32_000,
    "dim": 4096,
    "num_layers": 32,
    "num_heads": 32,
    "num_kv_heads": 8,
    "head_dim": 128,
    "max_seq_len": 2048,
    "qk_norm": False,
    "dense_hidden_dim": 14_336,
    "expert_hidden_dim": 7168,
    "num_experts": 8,
    "top_k": 2,
}
_40B: dict[str, Any] = {
    **_7B,
    "dim": 8192,
    "num_layers": 48,
    "num_heads": 64,
    "dense_hidden_dim": 27_648,
    "expert_hidden_dim": 13_824,
}
_LARGE_TRAINING: dict[str, Any] = {"batch_size": 8, "seq_len": 2048, "optimizer": "adamw", "learning_rate": 3e-4}
_LARGE_CHOSEN = (
    "everything but the size, the context of 2,048 and the MoE switch. Vocabulary and 7b shape are Mistral's; of the 8 "
    "experts each is half as wide as the dense block, so that at top-2 a token costs the same with and without them"
)

# At .01 the busiest of 16 experts ended with 3.4 times the mean load (docs/LOG.md).
_DEFAULT_MODEL: dict[str, Any] = {"router": {"load_balancing_loss_coef": 0.1}}
_DEFAULT_TRAINING: dict[str, Any] = {
    "steps": 1500,
    # At this width the optimizer costs more than the gradient of 16 sequences (docs/LOG.md).
    "batch_size": 32,
    "embedding_learning_rate": 0.02,
    # Preparing and scoring take a minute or two more.
    "time_budget_seconds": 1600.0,
    "evaluation_interval": 100,
}
_TINY_MODEL: dict[str, Any] = {
    **_QUICK_MODEL,
    "vocab_size": 1024,
    "dim": 64,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "expert_hidden_dim": 128,
    "dense_hidden_dim": 256,
}

PRESETS: dict[str, Preset] = {
    "default": Preset(
        "the default run: meant to take 30 minutes on two cores",
        {"model": _DEFAULT_MODEL, "training": _DEFAULT_TRAINING},
    ),
    "quick": Preset("at most three minutes on two cores", {"model": _QUICK_MODEL, "training": _QUICK_TRAINING}),
    "demo": Preset(
        "what the shipped run was trained with",
        {"model": _QUICK_MODEL, "training": {**_QUICK_TRAINING, "embedding_learning_rate": 0.003}},
        differs="the shipped run's learning rate fell by a cosine to 2 %, and Muon's momentum was 0.95",
    ),
    "tiny": Preset(
        "20 seconds of training, to try things out",
        {
            "model": _TINY_MODEL,
            "data": {"documents": 200},
            "training": {
                **_QUICK_TRAINING,
                "steps": 200,
                "time_budget_seconds": 20.0,
                "evaluation_interval": 25,
                "evaluation_tokens": 512,
            },
        },
    ),
    "small": Preset(
        "the quick model for a minute",
        {
            "model": _QUICK_MODEL,
            "data": {"documents": 500},
            "training": {**_QUICK_TRAINING, "steps": 150, "time_budget_seconds": 60.0, "evaluation_interval": 25},
        },
    ),
    "medium": Preset(
        "the quick model for ten minutes",
        {
            "model": _QUICK_MODEL,
            "training": {**_QUICK_TRAINING, "steps": 1500, "time_budget_seconds": 570.0, "evaluation_interval": 100},
        },
    ),
    "long": Preset(
        "the default model for an hour",
        {
            "model": _DEFAULT_MODEL,
            "training": {**_DEFAULT_TRAINING, "steps": 3200, "time_budget_seconds": 3450.0},
        },
    ),
    "router": Preset(
        "the router document's: 4 experts, 2 layers",
        {
            "model": {
                "vocab_size": 50_257,
                "dim": 256,
                "num_layers": 2,
                "num_heads": 4,
                "num_kv_heads": 4,
                "head_dim": 64,
                "qk_norm": False,
                "num_experts": 4,
                "top_k": 2,
                "expert_hidden_dim": 1024,
                "capacity_factor": 1.25,
            },
            "data": {"documents": 1000},
            # Ten epochs: 1,594,540 tokens of the synthetic text in batches of 32 x 128.
            "training": {
                "steps": 3893,
                "batch_size": 32,
                "optimizer": "adamw",
                "learning_rate": 1e-4,
                "evaluation_interval": 200,
            },
        },
        chosen="heads; the capacity limit (1.25, Switch's); 128 tokens a sequence, hence 3,893 steps for its 10 epochs",
        differs="experts are SwiGLU, three matrices without biases instead of two",
    ),
    "blues": Preset(
        "Blues: 4 layers, 192 wide, top-1 of 4 experts",
        {
            "model": {
                "vocab_size": 200_019,
                "dim": 192,
                "num_layers": 4,
                "num_heads": 4,
                "num_kv_heads": 2,
                "head_dim": 48,
                "max_seq_len": 256,
                "qk_norm": False,
                "num_experts": 4,
                "top_k": 1,
                "expert_hidden_dim": 768,
                "expert_activation": "gelu",
                # V-MoE's (arXiv:2106.05974, sec. 2.1): 1 / E.
                "router": {"noise_std": 0.25},
            },
            "training": {"batch_size": 32},
        },
        chosen="expert width (4 x 192); strength of the exploration noise (1/E); all of the training",
        differs=_BLUES_DIFFERS,
    ),
    "blues-01": Preset(
        "Blues-01: 12 layers, 768 wide, every second one MoE, top-2 of 8 experts",
        {
            "model": {
                "vocab_size": 200_019,
                "dim": 768,
                "num_layers": 12,
                "num_heads": 12,
                "num_kv_heads": 1,
                "head_dim": 64,
                "qk_norm": False,
                "num_experts": 8,
                "top_k": 2,
                "expert_hidden_dim": 3072,
                "moe_every": 2,
                "dense_hidden_dim": 3072,
                "router": {"noise_std": 0.125},
            },
            "training": {"batch_size": 16},
        },
        chosen="expert and dense width (4 x 768); one key/value head; context; noise (1/E); all of the training",
        differs=_BLUES_DIFFERS,
    ),
    "7b": Preset(
        "the 7b size, dense",
        {"model": {**_7B, "first_dense_layers": 32}, "training": _LARGE_TRAINING},
        chosen=_LARGE_CHOSEN,
    ),
    "7b-moe": Preset(
        "the 7b size with every feed-forward block replaced by experts",
        {"model": _7B, "training": _LARGE_TRAINING},
        chosen=_LARGE_CHOSEN,
    ),
    "40b": Preset(
        "the 40b size, dense",
        {"model": {**_40B, "first_dense_layers": 48}, "training": _LARGE_TRAINING},
        chosen=_LARGE_CHOSEN,
    ),
    "40b-moe": Preset(
        "the 40b size with every feed-forward block replaced by experts",
        {"model": _40B, "training": _LARGE_TRAINING},
        chosen=_LARGE_CHOSEN,
    ),
}
