"""Tiny random models of the transformers library, with tokenizers trained here, saved as anyone would find them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

TEXT = "The café opened at nine. Der Rest ist Schweigen; 日本 waits.\n" * 3
KINDS = ("byte-level", "sentencepiece")
FAMILIES = ("qwen3_moe", "mixtral", "olmoe")
VOCABULARY = 330
"""Of every model: more than the tokenizers have, as with padded embeddings."""


@dataclass(frozen=True)
class Foreign:
    """What is loaded of someone else's model."""

    model: Any
    tokenizer: Any
    name: str


def trained_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """About 300 tokens of TEXT; with <s> before a text (sentencepiece) or nothing (byte-level), as is usual."""
    if kind == "byte-level":
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<|endoftext|>", "<|im_end|>"],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator([TEXT], trainer)
        backend.add_tokens([tokenizers.AddedToken("<tool>", special=False)])
        return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    backend = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = sorted({letter for letter in TEXT.replace(" ", "▁") if ord(letter) < 0x3000})
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys([*pieces, *letters, "▁T", "he", "▁The"]))}
    backend.model = models.BPE(
        vocabulary, [("▁", "T"), ("h", "e"), ("▁T", "he")], byte_fallback=True, unk_token="<unk>", fuse_unk=True
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def tiny_config(family: str, **changes: Any) -> Any:
    """Three layers (the first dense in qwen3_moe), 4 to 6 experts, 2 for each token, 64 positions."""
    common = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "num_experts_per_tok": 2,
        "eos_token_id": 0,
        "bos_token_id": None,
        "pad_token_id": None,
        "initializer_range": 0.2,
    }
    own: dict[str, dict[str, Any]] = {
        "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 16, "mlp_only_layers": [0]},
        "mixtral": {"num_local_experts": 5},
        "olmoe": {"num_experts": 6},
    }
    return transformers.AutoConfig.for_model(family, **{**common, **own[family], **changes})


def tiny_model(family: str, **changes: Any) -> Any:
    """Random weights, the same every time, in eval mode; large enough that the model has opinions."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(tiny_config(family, **changes)).eval()


def saved_model(folder: Path, family: str, kind: str = "byte-level", **changes: Any) -> Path:
    """A folder as it is found on a disk: safetensors, configuration and tokenizer."""
    tiny_model(family, **changes).save_pretrained(folder)
    trained_tokenizer(kind).save_pretrained(folder)
    return folder
