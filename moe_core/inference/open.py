"""The one way to open a run of ours or a model of the transformers library as a language model.

    model = open_run("demo")                                  # or: open_huggingface("path/to/model")
    trace_text(model, "The tenant shall"), Engine(model).start(Request("The tenant shall")).result()

Everything in this folder takes either what was loaded or its language model. Making a language model of someone else's
reads its tokenizer and one token, which takes up to seconds: make it once and hand it on.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from moe_core.errors import UsageError
from moe_core.inference.device import resolve_device, resolve_dtype
from moe_core.inference.huggingface import HuggingFaceLanguageModel
from moe_core.inference.own_model import OwnModel
from moe_core.inference.protocol import LanguageModel, Loaded
from moe_core.model.transformer import MoETransformer
from moe_core.routing.instruments.huggingface.few_tokens import visit_experts_by_tokens
from moe_core.routing.instruments.huggingface.loading import load
from moe_core.runs.checkpoint import Step, load_run


def open_run(
    name: str,
    root: str | Path | None = None,
    *,
    device: str = "cpu",
    dtype: str = "auto",
    step: Step | None = None,
) -> LanguageModel:
    """The newest checkpoint of a run, or that of `step` (a number, or "best"); `device` and `dtype` as in DEVICES and
    DTYPES.

    Raises RunError when it is missing or damaged, UsageError for a device that this machine lacks.
    """
    loaded = load_run(name, root, device=resolve_device(device), dtype=resolve_dtype(dtype), step=step)
    return language_model(loaded)


def open_huggingface(
    path_or_name: str | Path, *, device: str = "auto", dtype: str = "auto", trust_remote_code: bool = False
) -> LanguageModel:
    """A model from a folder, or by its name from the library's cache or the hub.

    `device` "auto" spreads it over all GPUs where there are several and accelerate is installed. Raises as
    routing.instruments.huggingface.load.load, UsageError for a device that this machine lacks.
    """
    place = resolve_device(device)
    on_accelerator = place.type != "cpu"
    # With accelerate the library puts every part where it belongs as it reads it.
    placed = on_accelerator and importlib.util.find_spec("accelerate") is not None
    spread = device == "auto" and place.type == "cuda" and torch.cuda.device_count() > 1
    loaded = load(
        path_or_name,
        device_map=None if not placed else "auto" if spread else {"": place},
        dtype=resolve_dtype(dtype),
        trust_remote_code=trust_remote_code,
    )
    if on_accelerator:
        if not placed:
            loaded.model.to(place)
        visit_experts_by_tokens(loaded.model)
    return language_model(loaded)


def language_model(loaded: Loaded | LanguageModel) -> LanguageModel:
    """The language model of what was loaded; one that is one already is given back.

    Raises UsageError or TraceError, in one line, for a model that does not continue text or cannot be captured.
    """
    if isinstance(loaded, OwnModel | HuggingFaceLanguageModel):
        return loaded
    return OwnModel.of(loaded) if isinstance(loaded.model, MoETransformer) else HuggingFaceLanguageModel.of(loaded)


def own_model(loaded: Loaded | LanguageModel, what: str) -> OwnModel:
    """The same, for `what` looks between the layers of our own model. Raises UsageError for another one."""
    found = language_model(loaded)
    if not isinstance(found, OwnModel):
        raise UsageError(
            f"{what} needs the experts of a run of our own; {found.name} is another kind of model: measure the change "
            "of its loss with token_effects or ablation_map"
        )
    return found


def context_window(loaded: Loaded | LanguageModel) -> int:
    """Tokens the model should see at once, at most."""
    return language_model(loaded).context_window
