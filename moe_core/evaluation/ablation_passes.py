"""The causal map of a model whose layers we cannot enter: whole forward passes, with and without each expert.

The slow way to what ablation.py measures of a run of ours. Windows in which nobody chose the expert are not read, and
places before its first token count as unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moe_core.data.windows import WindowBatch, window_batches
from moe_core.errors import RunError
from moe_core.evaluation.effects import SourceBootstrap
from moe_core.inference.protocol import LanguageModel
from moe_core.inference.scoring import compare
from moe_core.routing import capture, intervene

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moe_core.ablation_modes import Mode
    from moe_core.data.tokens import TokenDataset


@dataclass(frozen=True, eq=False)
class _Choices:
    """Who chose whom when the model read a batch of windows."""

    windows: WindowBatch
    indices: NDArray[np.int16]
    """[L, B, S, K]"""


def effects_by_passes(
    model: LanguageModel, dataset: TokenDataset, todo: Sequence[tuple[int, int]], mode: Mode
) -> Iterator[tuple[tuple[int, int], list[dict[str, Any]]]]:
    """((layer, expert), rows of EFFECT_COLUMNS) for each of `todo`. Raises RunError when the loss is not finite."""
    bootstrap = SourceBootstrap(dataset.source_ids, dataset.domain_ids, dataset.domains, dataset.positions > 0)
    read = [_choices(model, dataset, windows) for windows in window_batches(dataset, model.context_window)]
    place = {layer: number for number, layer in enumerate(model.moe_layers)}
    for layer, expert in todo:
        delta_T, kl_T, chosen_T = (np.zeros(len(dataset), dtype=np.float32) for _ in range(3))
        for batch in read:
            chosen_BS = (batch.indices[place[layer]] == expert).any(axis=-1)
            chosen_T[batch.windows.index[chosen_BS & batch.windows.keep]] = 1
            if chosen_BS.any():
                at_N, delta_N, kl_N = _changes_of_expert(
                    model, dataset, batch.windows, chosen_BS, (layer, expert), mode
                )
                delta_T[at_N], kl_T[at_N] = delta_N, kl_N
        affected_M = np.bincount(dataset.domain_ids, chosen_T, len(dataset.domains)).astype(int)
        affected = {"all": int(affected_M.sum()), **dict(zip(dataset.domains, affected_M.tolist(), strict=True))}
        rows = bootstrap.means(delta_T, kl_T)
        yield (
            (layer, expert),
            [{"layer": layer, "expert": expert, "affected": affected[row["domain"]], **row} for row in rows],
        )


@torch.inference_mode()
def _choices(model: LanguageModel, dataset: TokenDataset, windows: WindowBatch) -> _Choices:
    with capture(model.model, keep_logits=False) as recorder:
        logits_BSV = model.logits(_token_ids(model, dataset, windows.index))
    if not bool(torch.isfinite(logits_BSV.amax())):
        raise RunError(f"the loss of {model.name} is not finite: its weights are damaged; get them again")
    indices_LTK = recorder.trace(token_ids=dataset.token_ids[windows.index]).router_indices
    return _Choices(windows, indices_LTK.reshape(len(indices_LTK), *windows.index.shape, -1))


@torch.inference_mode()
def _changes_of_expert(
    model: LanguageModel,
    dataset: TokenDataset,
    windows: WindowBatch,
    chosen_BS: NDArray[np.bool_],
    expert: tuple[int, int],
    mode: Mode,
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """Places in the data set of the scored tokens that may have changed, their change of loss, and the KL."""
    rows_B = chosen_BS.any(axis=1)
    index_RS = windows.index[rows_B]
    ids_RS = _token_ids(model, dataset, index_RS)
    original_RSV = model.logits(ids_RS)
    with intervene(model.model, ablate=[expert], mode=mode):
        changed_RSV = model.logits(ids_RS)
    # Attention carries a change to all later places of its window, and to none before.
    reached = (chosen_BS[rows_B].cumsum(axis=1) > 0) & windows.scored[rows_B]
    where = torch.from_numpy(reached).to(original_RSV.device)
    at_N = index_RS[reached] + 1
    targets_N = torch.from_numpy(dataset.token_ids[at_N].astype(np.int64)).to(where.device)
    before, after, kl = compare(original_RSV[where], changed_RSV[where], targets_N)
    return at_N, (after - before).cpu().numpy(), kl.cpu().numpy()


def _token_ids(model: LanguageModel, dataset: TokenDataset, index_BS: NDArray[np.int64]) -> torch.Tensor:
    return torch.from_numpy(dataset.token_ids[index_BS].astype(np.int64)).to(model.device)
