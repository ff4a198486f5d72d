"""A causal language model of the transformers library behind our own face, see protocol.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from moe_core.data.tokenizer import TextTokenizer
from moe_core.errors import UsageError
from moe_core.inference.chat_template import ChatTemplate
from moe_core.inference.foreign_tokenizer import ForeignTokenizer, IdTokenizer
from moe_core.inference.huggingface_reader import CachedReader, reason_to_read_apart
from moe_core.inference.protocol import Reader
from moe_core.routing import capture
from moe_core.routing.instruments.huggingface.loading import explained_errors

UNLIMITED_WINDOW = 32_768
"""Context of a model that names no limit, because its layers have none: what it is shown at once at most."""
_MIXES_TOKENS = ("doge",)
"""Families whose routers mix the logits of the tokens that are read together (see docs/families.md)."""
_EXPERTS = re.compile(r"(^|\.)experts\.")
"""Names of weights that only the tokens of one expert pass."""
_LIMITS = ("max_position_embeddings", "max_seq_len", "n_positions", "seq_length", "max_sequence_length")


@dataclass(frozen=True)
class HuggingFaceLanguageModel:
    """Such a model; see LanguageModel. Make it with `of`."""

    model: nn.Module
    tokenizer: TextTokenizer
    chat_template: ChatTemplate | None
    name: str
    context_window: int
    vocab_size: int
    end_ids: frozenset[int]
    moe_layers: tuple[int, ...]
    num_experts: int
    null_experts: int
    top_k: int

    @classmethod
    def of(cls, loaded: Any) -> HuggingFaceLanguageModel:
        """The language model of a HuggingFaceModel, or of anything with model, tokenizer (or None) and perhaps name.

        One token goes through the model: what it really does says more than its configuration, whose names differ from
        family to family. Raises UsageError, in one line, for a model that does not continue text or whose tokenizer is
        not a fast one, TraceError for one that cannot be captured.
        """
        model: nn.Module = loaded.model
        config: Any = model.config
        name = f"model {getattr(loaded, 'name', '') or getattr(config, 'name_or_path', '') or type(model).__name__}"
        if config.model_type in _MIXES_TOKENS:
            raise UsageError(
                f"{name} ({config.model_type}) routes a token otherwise when other texts are read beside it, so traces "
                "would depend on the batch; capture(model) records one reading of yours"
            )
        if getattr(config, "is_encoder_decoder", False):
            raise UsageError(f"{name} ({config.model_type}) reads one text and writes another; expected a causal model")
        with torch.inference_mode(), explained_errors(name, local=True), capture(model, keep_logits=False) as recorder:
            output = model(input_ids=torch.zeros((1, 1), dtype=torch.int64, device=_device(model)), use_cache=False)
        logits = getattr(output, "logits", None)
        if logits is None:
            raise UsageError(f"{name} ({type(model).__name__}) predicts no tokens; load it as a causal language model")
        vocab_size = int(logits.shape[-1])
        trace = recorder.trace(token_ids=[0])
        with explained_errors(name, local=True):
            tokenizer = _tokenizer(loaded.tokenizer, name, vocab_size)
        has_template = bool(getattr(loaded.tokenizer, "chat_template", None))
        template = ChatTemplate(loaded.tokenizer, name) if has_template else None
        return cls(
            model=model,
            tokenizer=tokenizer,
            chat_template=template,
            name=name,
            context_window=_context_window(config),
            vocab_size=vocab_size,
            end_ids=_end_ids(model, loaded.tokenizer, template),
            moe_layers=tuple(trace.layers),
            num_experts=trace.num_experts,
            null_experts=trace.null_experts,
            top_k=trace.top_k,
        )

    @cached_property
    def active_parameters(self) -> int:
        """See LanguageModel; all weights where a family's names do not tell which are an expert's."""
        share = self.top_k / self.num_experts
        return round(
            sum(
                parameter.numel() * (share if _EXPERTS.search(name) else 1)
                for name, parameter in self.model.named_parameters()
            )
        )

    @property
    def device(self) -> torch.device:
        return _device(self.model)

    def logits(self, token_ids_BS: torch.Tensor) -> torch.Tensor:
        """See LanguageModel."""
        logits_BSV: torch.Tensor = self.model(input_ids=token_ids_BS, use_cache=False).logits
        return logits_BSV

    @property
    def mixes_texts(self) -> bool:
        """See LanguageModel; `of` refuses the families that do."""
        return False

    @cached_property
    def reads_apart(self) -> str:
        """See LanguageModel. It is tried out when first asked for: families differ beyond their configurations."""
        return reason_to_read_apart(self)

    @contextmanager
    def reading(self) -> Iterator[Reader]:
        """See LanguageModel. The cache is whatever the model itself makes: layers of some are no plain attention."""
        with capture(self.model, keep_logits=False) as recorder:
            recorder.pause()
            yield CachedReader(self.model, self.name, self.device, recorder)


def _device(model: Any) -> torch.device:
    """The embedding's device. If the embedding is kept elsewhere until it is needed, its hooks fetch the ids."""
    device: torch.device = model.get_input_embeddings().weight.device
    return torch.device("cpu") if device.type == "meta" else device


def _context_window(config: Any) -> int:
    """Positions the model was made for.

    A RoPE whose base grows with the length ("dynamic") gives keys in a cache other angles than a reading from the
    start, once the text is longer than the original length: it is not read beyond that.
    """
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None)
    limits = [getattr(text, name, None) for name in _LIMITS]
    if isinstance(rope, dict) and rope.get("rope_type") == "dynamic":
        limits.append(rope.get("original_max_position_embeddings"))
    return min((limit for limit in limits if isinstance(limit, int) and limit > 0), default=UNLIMITED_WINDOW)


def _end_ids(model: Any, tokenizer: Any, template: ChatTemplate | None) -> frozenset[int]:
    """What the model's files name, and what its chat template puts behind an answer: many files forget the latter."""
    found: set[int] = set() if template is None or template.turn_end is None else {template.turn_end}
    for holder in (getattr(model, "generation_config", None), model.config, tokenizer):
        ids = getattr(holder, "eos_token_id", None)
        found.update(ids if isinstance(ids, list | tuple) else [] if ids is None else [ids])
    return frozenset(found)


def _tokenizer(tokenizer: Any, name: str, vocab_size: int) -> TextTokenizer:
    if tokenizer is None:
        return IdTokenizer(vocab_size)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UsageError(
            f"the tokenizer of {name} ({type(tokenizer).__name__}) is not a fast one, whose tokens' bytes are known; "
            "expected a tokenizer.json beside the weights"
        )
    return ForeignTokenizer(backend, bos=tokenizer.bos_token_id, eos=tokenizer.eos_token_id)
