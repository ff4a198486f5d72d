"""A model of the transformers library with fewer experts in each layer, compared with the whole one and then saved."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moe_core.data.tokens import TokenDataset
from moe_core.errors import RunError, UsageError
from moe_core.routing.instruments.changed_choices import Stage
from moe_core.routing.instruments.contract import Call, Choice, Router
from moe_core.routing.instruments.find import find_routers
from moe_core.routing.instruments.huggingface.loading import quiet_library
from moe_core.runs.files import replace_folder, translate_os_errors

Kept = Mapping[int, Sequence[int]]
"""Layer -> the experts that stay, ascending; of each layer as many."""
EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""What configurations call E."""
TOLERANCE = 1e-3
"""Largest difference of a logit, as a part of the largest logit: sums over other numbers of rows round differently."""
CHECKED_TOKENS = 2048
"""Of text, on which logits are compared."""
COPIED = ("*.json", "*.jinja", "*.model", "*.txt")
"""Files beside the weights that are taken along where the library does not write them itself."""


@dataclass(frozen=True)
class PrunedModel:
    """A model that was cut, in evaluation mode."""

    model: nn.Module
    difference: float
    """The largest difference of any logit from the model whose other experts no token can choose."""
    tolerance: float
    """What would have been refused, in logits."""
    tokens: int
    """Tokens that this was looked at."""


@torch.inference_mode()
def prune_model(model: nn.Module, kept: Kept, num_experts: int, token_ids: Sequence[Tensor]) -> PrunedModel:
    """The model with the experts of `kept` alone, compared on `token_ids`, each [1, S].

    What is cut is rows: of all that belongs to a router, and of the stacked experts beside it. The comparison gives the
    whole model's routers logits of -inf for the experts that are gone, for every token. Both compute in float32: in
    bfloat16 ties would be decided otherwise; weights come back as they were.
    Raises UsageError for a family whose experts are not stacked, or whose groups of experts would not stay equal,
    RunError where a logit differs by more than TOLERANCE says.
    """
    routers: dict[int, Router] = find_routers(model)
    config = _smaller_config(model, kept, num_experts)
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    try:
        model.float()
        pruned = type(model)._from_config(config, dtype=torch.float32)  # type: ignore[attr-defined]
        pruned.load_state_dict(_cut(model, routers, kept, num_experts))
        pruned = pruned.to(next(model.parameters()).device).eval().requires_grad_(False)
        _share_tables(model, pruned)
        largest, difference, tokens = 0.0, 0.0, 0
        with _without_experts(routers, kept, num_experts):
            for ids in token_ids:
                masked, cut = (one(input_ids=ids, use_cache=False).logits for one in (model, pruned))
                largest = max(largest, float(masked.abs().max()))
                difference = max(difference, float((masked - cut).abs().max()))
                tokens += ids.numel()
    finally:
        _give_types(model, dtypes)
    _give_types(pruned, dtypes)
    tolerance = TOLERANCE * largest
    if not difference <= tolerance:
        raise RunError(
            f"the model that was cut differs from the one that masks by {difference:.2g} in a logit; expected at most "
            f"{tolerance:.2g}: this family ({model.config.model_type}) cannot be pruned by rows, nothing was written"  # type: ignore[union-attr]
        )
    return PrunedModel(pruned, difference, tolerance, tokens)


def checked_passages(text: TokenDataset, window: int, device: torch.device) -> list[Tensor]:
    """[1, S] the beginning of each document, at most `window` tokens of it and CHECKED_TOKENS in all."""
    found, left = [], CHECKED_TOKENS
    for start, end in zip(*text.document_bounds(), strict=True):
        ids = text.token_ids[start : min(end, start + window, start + left)]
        if len(ids):
            found.append(torch.as_tensor(ids, dtype=torch.int64, device=device)[None])
            left -= len(ids)
    return found


def save_pruned_model(pruned: PrunedModel, source: Path, target: Path) -> None:
    """Write a folder that the library opens, with the tokenizer's files of `source`; whole or not at all.

    Raises UsageError where `target` is there already, RunError when the disk refuses or has no room.
    """
    if target.exists():
        raise UsageError(f"--to {str(target)!r} exists already; choose another folder, or remove it")
    with translate_os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        needed = sum(one.numel() * one.element_size() for one in pruned.model.parameters())
        if (free := shutil.disk_usage(target.parent).free) < needed:
            raise RunError(f"{str(target)!r} needs {needed:,} bytes and the disk has {free:,}; free some space")
    import transformers

    with replace_folder(target) as folder, quiet_library(transformers):
        pruned.model.save_pretrained(folder)  # type: ignore[operator]
        for pattern in COPIED:
            for path in sorted(source.glob(pattern)):
                if not (folder / path.name).exists() and "safetensors" not in path.name:
                    shutil.copyfile(path, folder / path.name)


def _share_tables(model: nn.Module, pruned: nn.Module) -> None:
    """Give the pruned model the buffers that are not saved (angles of RoPE) as the whole one has them."""
    saved, theirs = model.state_dict().keys(), dict(model.named_buffers())
    for name, buffer in pruned.named_buffers():
        if name not in saved and name in theirs:
            buffer.data = theirs[name].data.clone()


def _give_types(model: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    """Give parameters and saved buffers the types that they had; each value was of that type before."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name in dtypes and tensor.dtype != dtypes[name]:
            tensor.data = tensor.data.to(dtypes[name])


def _smaller_config(model: nn.Module, kept: Kept, num_experts: int) -> Any:
    config: Any = copy.deepcopy(model.config)
    own = config.get_text_config()
    count = len(next(iter(kept.values())))
    keys = [key for key in EXPERT_KEYS if getattr(own, key, None) == num_experts]
    if not keys:
        raise UsageError(
            f"the configuration of this {own.model_type} model does not say its {num_experts} experts under any of "
            f"{', '.join(EXPERT_KEYS)}; this family cannot be pruned"
        )
    if count < (getattr(own, "num_experts_per_tok", None) or 1):
        raise UsageError(f"{count} experts cannot be kept: a token is sent to {own.num_experts_per_tok}")
    groups = getattr(own, "n_group", None) or 1
    for layer, experts in kept.items():
        of_group = [sum(expert * groups // num_experts == group for expert in experts) for group in range(groups)]
        if len(set(of_group)) > 1:
            raise UsageError(
                f"layer {layer} would keep {of_group} experts of its {groups} groups (n_group); expected as many of "
                "each: choose another number, or give a --keep-list that keeps groups equal"
            )
    for key in keys:
        setattr(own, key, count)
    return config


def _cut(model: nn.Module, routers: Mapping[int, Router], kept: Kept, num_experts: int) -> dict[str, Tensor]:
    names = {id(module): name for name, module in model.named_modules()}
    state: dict[str, Tensor] = dict(model.state_dict())
    for layer, router in routers.items():
        if router.experts is None or router.experts is router.module:
            raise UsageError(f"{router.described} has no module of stacked experts beside it; it cannot be pruned")
        rows = torch.tensor(list(kept[layer]))
        for module in (router.module, router.experts):
            prefix = f"{names[id(module)]}."
            found = [name for name in state if name.startswith(prefix) and state[name].shape[:1] == (num_experts,)]
            if not found:
                raise UsageError(f"{router.described} keeps nothing by expert under {prefix!r}; it cannot be pruned")
            for name in found:
                state[name] = state[name][rows.to(state[name].device)].clone()
    return state


@contextmanager
def _without_experts(routers: Mapping[int, Router], kept: Kept, num_experts: int) -> Iterator[None]:
    """Inside the block no token of the model can choose the experts that are gone."""
    with ExitStack() as stack:
        for layer, router in routers.items():
            gone = sorted(set(range(num_experts)) - set(kept[layer]))
            for handle in router.attach(partial(_chosen_again, router, gone)):
                stack.callback(handle.remove)
        yield


def _chosen_again(router: Router, gone: list[int], call: Call) -> Any:
    if (reason := router.form.choose_refused(router)) is not None:
        raise UsageError(f"{router.described} {reason}, so what was cut cannot be compared with it")
    chosen = router.read(call)
    if chosen.logits is None:
        raise UsageError(f"{router.described} reports no logits, so what was cut cannot be compared with it")
    logits = chosen.logits.clone()
    logits[:, gone] = -math.inf
    scores, indices = router.form.choose(router, call, logits, chosen.indices.shape[1], ())
    changed = torch.ones(len(indices), dtype=torch.bool, device=indices.device)
    stage = Stage(scores.to(chosen.scores.dtype), indices, changed, Choice(logits, scores, indices))
    return router.form.write(router, call, stage)
