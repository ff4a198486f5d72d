"""Our models as models of transformers, by way of the exported checkpoint: the mapping tested is the product's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from moe_core.config import Config, ModelConfig, TrainingConfig
from moe_core.data.tokenizer import Tokenizer
from moe_core.exchange.export import Exported, export_run
from moe_core.model import MoETransformer
from moe_core.runs.checkpoint import LoadedRun
from moe_core.runs.folder import RunFolder

TEXTS = ["the tenant shall pay the rent on the first day of the month, and the landlord shall keep the roof dry. " * 4]


def tiny_tokenizer(vocab_size: int = 290) -> Tokenizer:
    """A really trained byte-level BPE."""
    return Tokenizer.train(TEXTS, vocab_size)


def random_model(config: ModelConfig, seed: int = 0, scale: float = 0.1) -> MoETransformer:
    """In evaluation mode; weights large enough for routing to be decided and logits to differ, norms and biases too."""
    torch.manual_seed(seed)
    model = MoETransformer(config).eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(scale * torch.randn_like(tensor))
    return model.requires_grad_(False)


def loaded(model: MoETransformer, root: Path, tokenizer: Tokenizer | None = None) -> LoadedRun:
    """What a run with these weights would be once loaded."""
    config = Config(model=model.config, training=TrainingConfig(seq_len=model.config.max_seq_len))
    return LoadedRun(RunFolder("tiny", root), config, model, tokenizer or tiny_tokenizer(model.config.vocab_size), 7)


def exported(model: MoETransformer, folder: Path, tokenizer: Tokenizer | None = None) -> Exported:
    """The checkpoint of transformers, in `folder`."""
    return export_run(loaded(model, folder.parent, tokenizer), folder)


def as_transformers(model: MoETransformer, folder: Path, **options: Any) -> torch.nn.Module:
    """Our model exported to `folder` and read by transformers, which must find every weight and none too many."""
    exported(model, folder)
    theirs, report = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, attn_implementation="sdpa", **options
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    evaluated: torch.nn.Module = theirs.eval()
    return evaluated


def router_indices(hugging_face: torch.nn.Module, token_ids: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Their logits, and what their routers chose, layer by layer."""
    chosen: list[torch.Tensor] = []
    handles = [
        module.register_forward_hook(lambda _module, _inputs, output: chosen.append(output[2]))
        for module in hugging_face.modules()
        if type(module).__name__.lower().endswith("topkrouter")
    ]
    with torch.no_grad():
        logits = hugging_face(token_ids).logits
    for handle in handles:
        handle.remove()
    return logits, chosen
