"""What the experts themselves put out: how much each adds to the stream, and how alike two of them are.

Axes: L MoE layers, T tokens, n sampled tokens, K slots, E experts, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from moe_core.data.document import Document
from moe_core.data.tokens import TokenDataset
from moe_core.data.windows import WindowBatch, window_batches
from moe_core.errors import UsageError
from moe_core.inference.expert_contributions import watched_experts
from moe_core.inference.open import language_model, own_model
from moe_core.inference.own_model import OwnModel
from moe_core.inference.partial_forward import block_of, moe_step, through
from moe_core.inference.protocol import LanguageModel, Loaded
from moe_core.inference.scoring import as_dataset
from moe_core.progress import Progress, silent
from moe_core.routing.measures.keep_list import SaliencySums

if TYPE_CHECKING:
    from torch import Tensor

    from moe_core.model.experts import Experts
    from moe_core.model.routers import RouterOutput
    from moe_core.model.transformer import MoETransformer

SIMILARITY_TOKENS = 2048


def expert_saliency(
    loaded: Loaded | LanguageModel, documents: Sequence[Document] | TokenDataset, progress: Progress | None = None
) -> pd.DataFrame:
    """How much each expert adds, over the tokens that chose it, X_e.

    Columns: layer, expert; tokens = |X_e|;
    reap = mean over X_e of g_e(x) ||E_e(x)||, >= 0 (REAP, arXiv:2510.13999; g the combine weight), NaN without tokens;
    ean = sum over X_e of ||E_e(x)||, >= 0 (the expert activation norm, the same paper's baseline);
    gate_mass = sum over X_e of g_e(x), over all tokens, 0..1.
    Raises as saliency_by_source.
    """
    return saliency_frame(saliency_by_source(loaded, documents, progress))


def saliency_frame(sums: SaliencySums) -> pd.DataFrame:
    """The columns of expert_saliency, from sums over sources."""
    tokens_LE, weighted_LE, norm_LE, gate_LE = (
        values.sum(axis=1) for values in (sums.tokens, sums.weighted, sums.norm, sums.gate)
    )
    E = tokens_LE.shape[1]
    return pd.DataFrame(
        {
            "layer": np.repeat(sums.layers, E),
            "expert": np.tile(np.arange(E), len(sums.layers)),
            "tokens": tokens_LE.ravel(),
            "reap": np.divide(
                weighted_LE, tokens_LE, out=np.full(tokens_LE.shape, np.nan), where=tokens_LE > 0
            ).ravel(),
            "ean": norm_LE.ravel(),
            "gate_mass": (gate_LE / sums.read).ravel(),
        }
    )


@torch.inference_mode()
def saliency_by_source(
    loaded: Loaded | LanguageModel, documents: Sequence[Document] | TokenDataset, progress: Progress | None = None
) -> SaliencySums:
    """What each expert puts out for the tokens that chose it, added up for each source of text.

    Read in the windows of trace_text, by any model whose experts are one module beside their router, as ours and those
    of the families in docs/families.md are. Raises UsageError with no token to read, or for another model.
    """
    report, model = progress or silent, language_model(loaded)
    dataset = as_dataset(model, documents)
    names_S, first_S, source_T = np.unique(dataset.source_ids, return_index=True, return_inverse=True)
    sums = {layer: np.zeros((4, len(names_S), model.num_experts)) for layer in model.moe_layers}
    with watched_experts(model) as watched:
        for batch in window_batches(dataset, model.context_window):
            ids_BS = torch.from_numpy(dataset.token_ids[batch.index].astype(np.int64)).to(model.device)
            watched.keep = torch.from_numpy(batch.keep.ravel()).to(model.device)
            watched.source = torch.from_numpy(source_T[batch.index].ravel())
            watched.add_to = sums
            model.logits(ids_BS)
            report("weighing experts", int(batch.index[-1, -1]) + 1, len(dataset))
    tokens_LSE, weighted_LSE, norm_LSE, gate_LSE = np.stack(list(sums.values()), axis=1)
    return SaliencySums(
        tuple(sums), tokens_LSE.astype(np.int64), weighted_LSE, norm_LSE, gate_LSE,
        np.bincount(source_T, minlength=len(names_S)).astype(np.int64), dataset.domain_ids[first_S].astype(np.int64),
    )  # fmt: skip


@torch.inference_mode()
def expert_similarity(
    loaded: Loaded | LanguageModel,
    documents: Sequence[Document] | TokenDataset,
    tokens: int = SIMILARITY_TOKENS,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """How alike two experts of a layer are, by three views; every ordered pair of different experts.

    Columns: layer, expert_i, expert_j;
    gate_cosine, -1..1, between their rows of the router: are they wanted for the same tokens? NaN for a hash router;
    weight_cosine, -1..1, between all their weights as one vector; two networks with the same units in another order
    count as different, so only copies and near copies stand out (random weights: 0 +- 1 / sqrt(3 D F));
    output_cka, 0..1, linear centred kernel alignment (arXiv:1905.00414, eq. 4) of both experts' outputs on the same
    `tokens` tokens, whoever had chosen them: 1 = the same up to rotation and scale. Independent random outputs of n
    tokens reach about D / n, so it is not 0 by chance. NaN where an expert's output is constant.
    `tokens` are drawn from all of the text, with a fixed seed. Raises UsageError for fewer than 2 of them, or for a
    model that is not ours.
    """
    own = own_model(loaded, "expert_similarity")
    report, model = progress or silent, own.model
    if tokens < 2:
        raise UsageError(f"tokens = {tokens} is too few to compare outputs; expected 2 or more, e.g. 2048")
    dataset = as_dataset(own, documents)
    order = np.random.default_rng(0).permutation(len(dataset))
    sampled_T = np.isin(np.arange(len(dataset)), order[:tokens])
    inputs: dict[int, list[Tensor]] = {layer: [] for layer in model.config.moe_layers}
    for batch, layer, normed_TD, _ in _moe_inputs(own, dataset):
        mine_T = torch.from_numpy((batch.keep & sampled_T[batch.index]).ravel()).to(normed_TD.device)
        inputs[layer].append(normed_TD[mine_T])
        report("reading for comparison", int(batch.index[-1, -1]) + 1, len(dataset))
    frames = []
    for number, (layer, parts) in enumerate(inputs.items()):
        report("comparing experts", number, len(inputs))
        frames.append(_similarity_of_layer(model, layer, torch.cat(parts)))
    return pd.concat(frames, ignore_index=True)


def _similarity_of_layer(model: MoETransformer, layer: int, x_ND: Tensor) -> pd.DataFrame:
    moe, experts = block_of(model, layer).moe, _experts(model, layer)
    assert moe is not None
    E = model.config.num_experts  # null experts have no weights, and nothing of their own to compare
    weights_EW = torch.cat([w.flatten(1) for w in (experts.gate_proj, experts.up_proj, experts.down_proj)], dim=1)
    cka_EE = linear_cka([_outputs(experts, x_ND, expert) for expert in range(E)])
    i, j = np.nonzero(~np.eye(E, dtype=bool))
    return pd.DataFrame(
        {
            "layer": np.full(len(i), layer),
            "expert_i": i,
            "expert_j": j,
            "gate_cosine": np.nan if moe.router.weight is None else _cosines(moe.router.weight)[i, j],
            "weight_cosine": _cosines(weights_EW)[i, j],
            "output_cka": cka_EE[i, j],
        }
    )


def linear_cka(outputs: Sequence[Tensor]) -> np.ndarray:
    """[E, E] ||Y_i' Y_j||^2 / (||Y_i' Y_i|| ||Y_j' Y_j||) of outputs Y [n, D] on the same tokens, columns centred.

    Frobenius norms; 0..1; NaN for outputs that are constant over the tokens.
    """
    # Scaled to length 1, which CKA does not see: squares of squares of small outputs would leave float32.
    centred = [y_ND.float() - y_ND.float().mean(dim=0) for y_ND in outputs]
    centred = [y_ND / y_ND.norm() for y_ND in centred]
    cross = np.zeros((len(centred), len(centred)))
    for i, y_ND in enumerate(centred):
        for j in range(i + 1):
            cross[i, j] = cross[j, i] = float((y_ND.t() @ centred[j]).square().sum())
    own = np.sqrt(np.diag(cross))
    cka_EE: np.ndarray = np.minimum(cross / np.outer(own, own), 1.0)  # rounding; keeps NaN
    return cka_EE


def _cosines(rows_EW: Tensor) -> np.ndarray:
    """[E, E]"""
    unit = torch.nn.functional.normalize(rows_EW.float(), dim=1)
    cosines: np.ndarray = (unit @ unit.t()).clamp(-1.0, 1.0).cpu().numpy()
    return cosines


def _moe_inputs(own: OwnModel, dataset: TokenDataset) -> Iterator[tuple[WindowBatch, int, Tensor, RouterOutput]]:
    """For each batch of windows and each MoE layer: what the layer's router and experts read [T, D], and the choice."""
    model = own.model
    for batch in window_batches(dataset, own.context_window):
        ids_BS = torch.from_numpy(dataset.token_ids[batch.index].astype(np.int64)).to(own.device)
        x_BSD = model.embedding(ids_BS)
        reached = 0
        for layer in model.config.moe_layers:
            step = moe_step(model, through(model, x_BSD, reached, layer, ids_BS), layer, ids_BS)
            x_BSD, reached = step.after, layer + 1
            yield batch, layer, step.normed, step.routed


def _outputs(experts: Experts, x_ND: Tensor, expert: int) -> Tensor:
    """[n, D] one expert's outputs, unweighted, for tokens whoever had chosen it."""
    one_N1 = x_ND.new_ones(len(x_ND), 1)
    outputs: Tensor = experts(x_ND, one_N1, torch.full_like(one_N1, expert, dtype=torch.int64))
    return outputs


def _experts(model: MoETransformer, layer: int) -> Experts:
    moe = block_of(model, layer).moe
    assert moe is not None
    return moe.experts
