"""What is told of a model before anything is asked of it."""

from __future__ import annotations

from moe_core.inference.own_model import OwnModel
from moe_core.inference.protocol import LanguageModel
from moe_core.inference.scheduler import Scheduler
from moe_core.json_values import Json
from moe_core.model.size import active_parameters


def model_card(name: str, created: int, scheduler: Scheduler | None) -> Json:
    """A line of /v1/models; the context of a model that is not open is not known."""
    context = None if scheduler is None else scheduler.engine.model.context_window
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "moescope",
        "root": name,
        "parent": None,
        "max_model_len": context,
        "is_open": scheduler is not None,
    }


def model_facts(name: str, scheduler: Scheduler) -> Json:
    """GET /model/info."""
    model = scheduler.engine.model
    parameter = next(model.model.parameters())
    is_own = isinstance(model, OwnModel)
    return {
        "id": name,
        "description": model.name,
        "kind": "run" if is_own else "transformers",
        "architecture": "mixture of experts" if model.moe_layers else "dense",
        "parameters": sum(each.numel() for each in model.model.parameters()),
        "active_parameters": active_parameters(model.model.config) if isinstance(model, OwnModel) else None,
        "context_length": model.context_window,
        "vocab_size": model.vocab_size,
        "moe_layers": list(model.moe_layers),
        "num_experts": model.num_experts if model.moe_layers else 0,
        "experts_per_token": model.top_k if model.moe_layers else 0,
        "has_chat_template": model.chat_template is not None,
        "device": str(model.device),
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "slots": scheduler.slots,
        "queue": scheduler.queue,
    }


def tokenizer_facts(model: LanguageModel) -> Json:
    """GET /tokenizer_info, whose names are those of a tokenizer_config.json."""
    tokenizer = model.tokenizer
    begin = None if tokenizer.end_of_text is None else tokenizer.token_text(tokenizer.end_of_text)
    end = tokenizer.token_text(min(model.end_ids)) if model.end_ids else begin
    return {
        "tokenizer_class": type(tokenizer).__name__,
        "bos_token": begin,
        "eos_token": end,
        "pad_token": None,
        "model_max_length": model.context_window,
        "chat_template": None,
    }


def control_token(model: LanguageModel, text: str) -> int | None:
    """The begin or end token whose name a text is, and nothing else: clients ask so for its id. None for other text."""
    tokenizer = model.tokenizer
    ids = [*model.end_ids, *([] if tokenizer.end_of_text is None else [tokenizer.end_of_text])]
    return next((token_id for token_id in ids if tokenizer.token_text(token_id) == text), None)
