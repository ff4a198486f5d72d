"""The causal map: what the model loses, on each domain, when one expert is switched off.

An expert in layer l changes nothing below l, and in l nothing but the tokens that had chosen it. So the text goes up
the layers once; each expert's pass starts in its own layer, with its own tokens, and only what that can reach is
computed: windows in which somebody chose the expert and, at the head, places from its first token on.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from moe_core.ablation_modes import Mode
from moe_core.data.document import Document
from moe_core.data.tokens import TokenDataset
from moe_core.data.windows import WINDOW_RULE, window_batches
from moe_core.errors import UsageError
from moe_core.evaluation.ablation_passes import effects_by_passes
from moe_core.evaluation.effects import (
    SourceBootstrap,
    TokenEffects,
    domain_effects,
    token_effects,
)
from moe_core.evaluation.window_reading import WindowReading, changes, read_all_windows
from moe_core.inference.held_out import ABLATED_TOKENS_PER_DOMAIN, held_out_text
from moe_core.inference.open import language_model
from moe_core.inference.own_model import OwnModel
from moe_core.inference.partial_forward import MoEStep, block_of, moe_step, through
from moe_core.inference.protocol import LanguageModel, Loaded
from moe_core.inference.scoring import as_dataset
from moe_core.progress import Progress, silent
from moe_core.routing import Intervention, intervene
from moe_core.runs.analysis import (
    HELD_OUT_TEXT,
    AblationJournal,
    AnalysisOf,
    effects_frame,
    read_ablation_map,
)

if TYPE_CHECKING:
    from torch import Tensor

    from moe_core.model.transformer import MoETransformer
    from moe_core.runs.folder import RunFolder

__all__ = [
    "TokenEffects",
    "ablation_map",
    "analysis_of",
    "domain_effects",
    "read_ablation_map",
    "token_effects",
]

STAGE = "switching experts off"


def ablation_map(
    loaded: Loaded | LanguageModel,
    documents: Sequence[Document] | TokenDataset | None = None,
    *,
    mode: Mode = "zero",
    layers: Sequence[int] | None = None,
    experts: Sequence[int] | None = None,
    run: RunFolder | None = None,
    memory: EffectsInMemory | None = None,
    text: str = "other text",
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Switch every expert off alone (or those of `layers` and `experts`) and measure what each domain loses.

    Columns, for each expert a row for domain "all" and one for each domain with tokens: layer, expert, domain;
    tokens scored; affected, tokens that had chosen the expert (a document's end-of-text is not scored but may have);
    delta_nats, mean change of loss over all scored tokens, chosen or not, above 0 = the expert was of use; low, high:
    its 95 % interval by bootstrap over sources; kl, mean KL(original || ablated) in nats; uncertain = 0 lies in the
    interval, or there is none (each interval stands for itself: of 100 experts without effect about 5 look certain).
    `frame.attrs` says of what it is (the fields of AnalysisOf).

    `documents` None = the run's held_out_text, which only a run has; `text` names other text. With `run`, each finished
    expert is kept in the run's folder and never computed again for the same weights, text and mode; a kill loses at
    most one expert. `memory` keeps them likewise for a model that has no folder. A model of the transformers library
    takes two forward passes an expert, a run of ours far less.
    Raises UsageError for a mode, layer or expert that the model does not have, RunError when its loss is not finite or
    the disk refuses.
    """
    report, model = progress or silent, language_model(loaded)
    wanted = _wanted_experts(model, mode, layers, experts)
    report("tokenising", 0, 1)
    dataset = _held_out(loaded) if documents is None else as_dataset(model, documents)
    of = analysis_of(loaded, dataset, HELD_OUT_TEXT if documents is None else text, mode)
    journal = AblationJournal(run, of) if run is not None else memory
    known = journal.read() if journal is not None else {}
    done = {expert: known[expert] for expert in wanted if expert in known}
    if len(done) < len(wanted):
        report(STAGE, len(done), len(wanted))
        for expert, rows in _effects(model, dataset, [one for one in wanted if one not in done], mode):
            if journal is not None:
                journal.append(rows)
            done[expert] = rows
            report(STAGE, len(done), len(wanted))
    return effects_frame([row for expert in wanted for row in done[expert]], of)


class EffectsInMemory:
    """The finished experts of one model, text and mode, as AblationJournal keeps them in a run's folder."""

    def __init__(self) -> None:
        self._rows: dict[tuple[int, int], list[dict[str, Any]]] = {}

    def read(self) -> dict[tuple[int, int], list[dict[str, Any]]]:
        """See AblationJournal."""
        return dict(self._rows)

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """See AblationJournal."""
        self._rows[int(rows[0]["layer"]), int(rows[0]["expert"])] = [dict(row) for row in rows]

    def frame(self) -> pd.DataFrame:
        """What is known so far, as ablation_map gives it."""
        known = self.read()
        return effects_frame([row for expert in sorted(known) for row in known[expert]])


def seconds_for_experts(model: LanguageModel, dataset: TokenDataset, count: int) -> float:
    """About how long switching off `count` experts will take: as two readings of the text for each, from the time that
    its first batch of windows takes now. A run of ours needs less, as its layers are entered where the expert is."""
    batch = next(iter(window_batches(dataset, model.context_window)))
    ids_BS = torch.from_numpy(dataset.token_ids[batch.index].astype(np.int64)).to(model.device)
    with torch.inference_mode():
        model.logits(ids_BS[:1])  # the first call takes longer
        began = time.perf_counter()
        model.logits(ids_BS)
        seconds = time.perf_counter() - began
    return 2 * count * seconds * len(dataset) / max(1, int(batch.keep.sum()))


def _held_out(loaded: Loaded | LanguageModel) -> TokenDataset:
    run = getattr(loaded, "run", None)
    if run is None:
        raise UsageError(f"{language_model(loaded).name} has no held-out text; expected documents to read")
    return held_out_text(run, loaded.tokenizer, ABLATED_TOKENS_PER_DOMAIN)


def analysis_of(loaded: Loaded | LanguageModel, dataset: TokenDataset, text: str, mode: str = "") -> AnalysisOf:
    """The identity of an analysis of this text with these weights."""
    weights, read = hashlib.sha256(), hashlib.sha256(json.dumps(list(dataset.domains)).encode())
    for tensor in loaded.model.state_dict().values():
        weights.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    for array in (dataset.token_ids, dataset.document_ids, dataset.source_ids, dataset.domain_ids):
        read.update(array.tobytes())
    step = getattr(loaded, "step", 0)
    return AnalysisOf(weights.hexdigest(), step, text, read.hexdigest(), len(dataset), mode, WINDOW_RULE)


def _wanted_experts(
    model: LanguageModel, mode: Mode, layers: Sequence[int] | None, experts: Sequence[int] | None
) -> list[tuple[int, int]]:
    """(layer, expert) in ascending order; UsageError for one that is not there."""
    if not model.moe_layers:
        raise UsageError(f"{model.name} is dense; expected a model with experts to switch off")
    chosen_layers = list(model.moe_layers) if layers is None else sorted(set(layers))
    chosen = list(range(model.num_experts)) if experts is None else sorted(set(experts))
    for layer in chosen_layers:
        for expert in {chosen[0], chosen[-1]} if chosen else ():
            Intervention(ablate=((layer, expert),), mode=mode).check(model.model)
    return [(layer, expert) for layer in chosen_layers for expert in chosen]


def _effects(
    model: LanguageModel, dataset: TokenDataset, todo: Sequence[tuple[int, int]], mode: Mode
) -> Iterator[tuple[tuple[int, int], list[dict[str, Any]]]]:
    """((layer, expert), rows of EFFECT_COLUMNS) for each of `todo`, which is ascending."""
    return (
        _effects_by_layers(model, dataset, todo, mode)
        if isinstance(model, OwnModel) and model.model.config.router.facts.by_state_alone
        else effects_by_passes(model, dataset, todo, mode)
    )


def _effects_by_layers(
    own: OwnModel, dataset: TokenDataset, todo: Sequence[tuple[int, int]], mode: Mode
) -> Iterator[tuple[tuple[int, int], list[dict[str, Any]]]]:
    model = own.model
    bootstrap = SourceBootstrap(dataset.source_ids, dataset.domain_ids, dataset.domains, dataset.positions > 0)
    with torch.inference_mode():
        readings = read_all_windows(own, dataset)
    reached = 0
    for layer in sorted({layer for layer, _ in todo}):
        with torch.inference_mode():
            steps = []
            for reading in readings:
                steps.append(moe_step(model, through(model, reading.state, reached, layer), layer))
                reading.state = steps[-1].after
        reached = layer + 1
        for expert in (expert for at, expert in todo if at == layer):
            with torch.inference_mode():
                rows = _one_expert(model, dataset, bootstrap, readings, steps, (layer, expert), mode)
            yield (layer, expert), rows


def _one_expert(
    model: MoETransformer,
    dataset: TokenDataset,
    bootstrap: SourceBootstrap,
    readings: Sequence[WindowReading],
    steps: Sequence[MoEStep],
    expert: tuple[int, int],
    mode: Mode,
) -> list[dict[str, Any]]:
    delta_T, kl_T, chosen_T = (np.zeros(len(dataset), dtype=np.float32) for _ in range(3))
    for reading, step in zip(readings, steps, strict=True):
        chosen_BS = (step.routed.router_indices == expert[1]).any(dim=1).view_as(reading.keep)
        chosen_T[reading.batch.index[(chosen_BS & reading.keep).cpu().numpy()]] = 1
        if chosen_BS.any():
            which_N, delta_N, kl_N = _changes_of_expert(model, reading, step, chosen_BS, expert, mode)
            at = reading.batch.targets[which_N.cpu().numpy()]
            delta_T[at], kl_T[at] = delta_N.cpu().numpy(), kl_N.cpu().numpy()
    affected_M = np.bincount(dataset.domain_ids, chosen_T, len(dataset.domains)).astype(int)
    affected = {"all": int(affected_M.sum()), **dict(zip(dataset.domains, affected_M.tolist(), strict=True))}
    layer, number = expert
    return [
        {"layer": layer, "expert": number, "affected": affected[row["domain"]], **row}
        for row in bootstrap.means(delta_T, kl_T)
    ]


def _changes_of_expert(
    model: MoETransformer, reading: WindowReading, step: MoEStep, chosen_BS: Tensor, expert: tuple[int, int], mode: Mode
) -> tuple[Tensor, Tensor, Tensor]:
    """Which of a batch's N scored tokens may have changed, their change of loss, and KL(original || changed)."""
    layer = expert[0]
    moe = block_of(model, layer).moe
    assert moe is not None
    with intervene(model, ablate=[expert], mode=mode):
        out_AD, _ = moe(step.normed[chosen_BS.flatten()])
    after_BSD = step.after.clone()
    after_BSD[chosen_BS] = step.residual[chosen_BS] + out_AD
    rows_B = chosen_BS.any(dim=1)
    x_RSD = through(model, after_BSD[rows_B], layer + 1, len(model.layers))
    # Attention carries a change to all later places of its window.
    reach_BS = chosen_BS.cumsum(dim=1) > 0 if layer + 1 < len(model.layers) else chosen_BS
    changed_BS = reach_BS & reading.scored
    which_N = changed_BS[reading.scored]
    return which_N, *changes(model, reading, which_N, x_RSD[changed_BS[rows_B]])
