"""The model that a command's --run or --model names, loaded where --device and --dtype say."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from moe_core.cli.commands import existing_run
from moe_core.errors import UsageError

if TYPE_CHECKING:
    from moe_core.inference.protocol import LanguageModel


def load_language_model(arguments: argparse.Namespace) -> LanguageModel:
    """Raises one of our errors for a run or model that is not there, is damaged, or cannot be used."""
    if arguments.model is None and arguments.trust_remote_code:
        raise UsageError("--trust-remote-code goes with --model; a run of our own has no code of its own")
    run = existing_run(arguments.run) if arguments.model is None else None
    from moe_core.inference.device import resolve_device, resolve_dtype
    from moe_core.inference.protocol import language_model

    device, dtype = resolve_device(arguments.device), resolve_dtype(arguments.dtype)
    if run is not None:
        from moe_core.runs.checkpoint import load_run

        return language_model(load_run(run.name, device=device, dtype=dtype))
    from moe_core.routing.instruments.huggingface.load import load

    # Left to "auto", a model that needs them is spread over all accelerators; the library then puts it there itself.
    spread = arguments.device == "auto" and device.type == "cuda" and _several_accelerators()
    loaded = load(
        arguments.model,
        device_map="auto" if spread else None,
        dtype=dtype,
        trust_remote_code=arguments.trust_remote_code,
    )
    if not spread and device.type != "cpu":
        loaded.model.to(device)
    return language_model(loaded)


def said_of(model: LanguageModel) -> dict[str, str]:
    """Where and how precisely it computes, for --json: device and dtype."""
    dtype = next(model.model.parameters()).dtype
    return {"device": model.device.type, "dtype": str(dtype).removeprefix("torch.")}


def _several_accelerators() -> bool:
    import importlib.util

    import torch

    return torch.cuda.device_count() > 1 and importlib.util.find_spec("accelerate") is not None
