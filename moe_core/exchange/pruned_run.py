"""A run with fewer experts in each layer, cut out of another and compared with it before it is written."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from moe_core.config import Config, ModelConfig, validate_config
from moe_core.data.prepare import PreparedData
from moe_core.data.token_stream import TokensInMemory
from moe_core.data.tokens import TokenDataset
from moe_core.errors import RunError, UsageError
from moe_core.exchange.import_ import observe_weights
from moe_core.exchange.pruned_model import CHECKED_TOKENS, Kept, checked_passages
from moe_core.files import TEMPORARY_PREFIX
from moe_core.model.outline import outline
from moe_core.model.transformer import MoETransformer
from moe_core.progress import Progress
from moe_core.routing import intervene
from moe_core.runs.checkpoint import LoadedRun, save_checkpoint
from moe_core.runs.files import translate_os_errors
from moe_core.runs.folder import RunFolder

TOLERANCE = 1e-3
"""Largest difference of a logit between the model that was cut and the one that masks. Sums over other numbers of rows
round differently; a wrong expert shows as tenths."""
_PER_EXPERT = re.compile(r"layers\.(\d+)\.moe\.(?:router\.(?:weight|noise_weight|expert_bias|threshold)|experts\.\w+)$")


@dataclass(frozen=True)
class CutModel:
    """A model that was cut, in evaluation mode."""

    config: Config
    model: MoETransformer
    difference: float
    """The largest difference of any logit from the model that masks the experts that are gone (mode reroute)."""
    tokens: int
    """Tokens of held-out text that this was looked at."""


def refuse_router(config: ModelConfig) -> None:
    """Raise UsageError, with the reason, for a router of which a cut model would choose or weigh otherwise than one
    whose experts are masked and whose tokens choose again."""
    router = config.router
    if config.null_experts:
        raise UsageError(
            f"a run with model.null_experts = {config.null_experts} cannot be pruned: which of its tokens skip work is "
            "decided beside the experts, whose number the null ones are held against; expected a run without"
        )
    reason = router.facts.cannot_choose
    if router.kind == "document_pool":
        reason = "has pools of a fixed number of experts, into which others would move up"
    elif router.kind == "top_p":
        reason = "stops at a share of all experts, which is another share once some are gone"
    elif router.facts.score_function == "softmax" and not reason:
        if router.has_bias:
            reason = "adds its bias to shares of all experts, which grow once some are gone"
        elif not router.normalize_scores or config.top_k == 1:
            reason = "weighs experts by their share of all, which grows once some are gone"
    if reason:
        raise UsageError(
            f"a run with model.router.kind = {router.kind} cannot be pruned exactly: its router {reason}; expected one "
            "that weighs the chosen experts among themselves (softmax with normalize_scores and top_k of at least 2, "
            "noisy likewise, sigmoid, expert_threshold)"
        )


def check_kept(kept: Kept, config: ModelConfig) -> int:
    """How many experts stay in each layer. Raises UsageError unless `kept` fits the model and at least top_k stay."""
    if sorted(kept) != list(config.moe_layers):
        raise UsageError(f"experts are kept in layers {sorted(kept)}; expected {list(config.moe_layers)}")
    counts = {len(experts) for experts in kept.values()}
    if len(counts) != 1:
        raise UsageError(f"layers keep {sorted(counts)} experts; expected as many in each")
    count = counts.pop()
    if not config.top_k <= count <= config.num_experts:
        raise UsageError(
            f"{count} experts cannot be kept in each layer: expected {config.top_k}, which a token is sent to, to "
            f"{config.num_experts}"
        )
    for layer, experts in kept.items():
        if list(experts) != sorted(set(experts)) or experts[0] < 0 or experts[-1] >= config.num_experts:
            raise UsageError(
                f"layer {layer} keeps experts {list(experts)}; expected different ones from 0 to "
                f"{config.num_experts - 1}, ascending"
            )
    return count


def prune_model(loaded: LoadedRun, kept: Kept) -> CutModel:
    """The run's model with the experts of `kept` alone, compared with the whole one on the run's unseen text.

    Raises UsageError for what does not fit, RunError where a logit differs by more than TOLERANCE.
    """
    refuse_router(loaded.config.model)
    count = check_kept(kept, loaded.config.model)
    tree = loaded.config.model_dump()
    tree["model"] |= {"num_experts": count, "removed_experts": 0}
    tree["training"]["pruning_steps"] = ()
    config = validate_config(tree)
    model = outline(config.model)
    model.load_state_dict(_cut(loaded.model.state_dict(), kept), assign=True)
    model.eval().requires_grad_(False)
    difference, tokens = _compare(loaded, model, kept)
    if not difference <= TOLERANCE:
        raise RunError(
            f"the model that was cut differs from the one that masks by {difference:.2g} in a logit; expected at most "
            f"{TOLERANCE:g}: nothing was written"
        )
    return CutModel(config, model, difference, tokens)


def write_pruned_run(loaded: LoadedRun, pruned: CutModel, run: RunFolder, progress: Progress | None = None) -> None:
    """Make `run`, which must be new, a run at step 0 with the model that was cut and the held-out text of the one that
    it comes from. It is written aside and appears whole or not at all.

    Raises UsageError for a name that is taken, RunError when the disk refuses.
    """
    parent = loaded.run
    if run.exists():
        raise UsageError(f"run {run.name!r} exists already; choose another name")
    validation, unseen = (parent.held_out(split) for split in ("validation", "unseen"))
    counts, domains = parent.token_counts(), parent.domains()
    nothing = TokensInMemory(np.zeros(0, dtype=np.int32))  # no text is trained on
    data = PreparedData(loaded.tokenizer, nothing, validation, unseen, domains, counts, "")
    before, after = loaded.config.model.num_experts, pruned.config.model.num_experts
    message = f"pruned from run {parent.name}, step {loaded.step:,}: {after} of {before} experts in each layer"
    aside = run.root / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    with translate_os_errors(run.path):
        run.root.mkdir(parents=True, exist_ok=True)
        try:
            new = RunFolder(run.name, aside)
            with new.lock():
                new.create(pruned.config)
                save_checkpoint(
                    new, step=0, model=pruned.model, tokenizer=loaded.tokenizer, config=pruned.config,
                    trainer_state=None, trainer_meta=None,
                )  # fmt: skip
                observe_weights(new, pruned.config, pruned.model, data, message, progress)
            new.path.rename(run.path)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _cut(state: Mapping[str, Tensor], kept: Kept) -> dict[str, Tensor]:
    """Rows of the experts that stay; what is not an expert's stays as it is."""

    def rows(name: str, tensor: Tensor) -> Tensor:
        match = _PER_EXPERT.match(name)
        return tensor[list(kept[int(match[1])])].clone() if match else tensor

    # What training took away is cut, or else the comparison shows it.
    return {name: rows(name, tensor) for name, tensor in state.items() if not name.endswith(".router.removed")}


def _compare(loaded: LoadedRun, model: MoETransformer, kept: Kept) -> tuple[float, int]:
    E = loaded.config.model.num_experts
    gone = [(layer, expert) for layer, experts in kept.items() for expert in range(E) if expert not in set(experts)]
    text = TokenDataset.build(loaded.run.held_out("unseen"), loaded.tokenizer, loaded.run.domains())
    text = text.select(CHECKED_TOKENS // max(1, len(loaded.run.domains())), seed=0)
    largest, tokens = 0.0, 0
    with torch.no_grad(), intervene(loaded.model, ablate=gone, mode="reroute"):
        for token_ids in checked_passages(text, loaded.config.training.seq_len, loaded.model.embedding.weight.device):
            masked = loaded.model(token_ids).logits
            largest = max(largest, float((masked - model(token_ids).logits).abs().max()))
            tokens += token_ids.shape[1]
    return largest, tokens
