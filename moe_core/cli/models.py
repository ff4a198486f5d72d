"""The model that a command's --run or --model names, loaded where --device and --dtype say."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from moe_core.cli.options import existing_run
from moe_core.errors import UsageError

if TYPE_CHECKING:
    from moe_core.inference.protocol import LanguageModel
    from moe_core.runs.checkpoint import Step


def load_language_model(arguments: argparse.Namespace, step: Step | None = None) -> LanguageModel:
    """Raises one of our errors for a run or model that is not there, is damaged, or cannot be used. `step`: of a run's
    checkpoint, see options.add_step; None = the newest."""
    if arguments.model is None and arguments.trust_remote_code:
        raise UsageError("--trust-remote-code goes with --model; a run of our own has no code of its own")
    if arguments.model is not None and step is not None:
        raise UsageError("--step goes with --run; a model of the transformers library has no checkpoints here")
    run = existing_run(arguments.run) if arguments.model is None else None
    from moe_core.inference.open import open_huggingface, open_run

    if run is not None:
        return open_run(run.name, device=arguments.device, dtype=arguments.dtype, step=step)
    return open_huggingface(
        arguments.model,
        device=arguments.device,
        dtype=arguments.dtype,
        trust_remote_code=arguments.trust_remote_code,
    )


def said_of(model: LanguageModel) -> dict[str, str]:
    """Where and how precisely it computes, for --json: device and dtype."""
    dtype = next(model.model.parameters()).dtype
    return {"device": model.device.type, "dtype": str(dtype).removeprefix("torch.")}
