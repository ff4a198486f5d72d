"""What the model loses, on each domain, when one attention head is masked (Michel et al., arXiv:1905.10650, sec. 3).

A masked head puts nothing into the layer's output projection, which is the same as a model without the head. The text
goes up the layers once; each head's pass starts in its own layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from moe_core.data.document import Document
from moe_core.data.tokens import TokenDataset
from moe_core.errors import UsageError
from moe_core.evaluation.ablation import analysis_of
from moe_core.evaluation.effects import SourceBootstrap
from moe_core.evaluation.window_reading import WindowReading, changes, read_all_windows
from moe_core.inference.held_out import ABLATED_TOKENS_PER_DOMAIN, held_out_text
from moe_core.inference.own_model import OwnModel
from moe_core.inference.partial_forward import block_of, through
from moe_core.inference.scoring import as_dataset
from moe_core.progress import Progress, silent
from moe_core.runs.analysis import HEADS, HELD_OUT_TEXT, AblationJournal, heads_frame

if TYPE_CHECKING:
    from torch import Tensor, nn

    from moe_core.model.transformer import MoETransformer
    from moe_core.runs.checkpoint import LoadedRun

STAGE = "masking attention heads"


@contextmanager
def without_head(model: MoETransformer, layer: int, head: int) -> Iterator[None]:
    """Inside, query head `head` of layer `layer` adds nothing."""
    attention = block_of(model, layer).attention
    own = slice(head * attention.head_dim, (head + 1) * attention.head_dim)

    def mask(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        mixed_BSQ = given[0].clone()
        mixed_BSQ[..., own] = 0.0
        return (mixed_BSQ, *given[1:])

    handle = attention.o_proj.register_forward_pre_hook(mask)
    try:
        yield
    finally:
        handle.remove()


def head_effects(
    loaded: LoadedRun,
    documents: Sequence[Document] | TokenDataset | None = None,
    *,
    layers: Sequence[int] | None = None,
    text: str = "other text",
    keep: bool = True,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Mask every query head alone (or those of `layers`) and measure what each domain loses.

    Columns, for each head a row for domain "all" and one for each domain with tokens: layer, head, domain; tokens
    scored; delta_nats, low, high, kl, uncertain as in evaluation.ablation.ablation_map, over the same text and drawn
    from the same sources, so that heads and experts compare. `documents`, `text`: as there. `keep`: each finished head
    is kept in the run's folder and never computed again for the same weights and text.
    Raises UsageError for a layer that is not there, RunError when the loss is not finite or the disk refuses.
    """
    report = progress or silent
    model = loaded.config.model
    chosen = list(range(model.num_layers)) if layers is None else sorted(set(layers))
    if chosen and not 0 <= chosen[0] <= chosen[-1] < model.num_layers:
        wrong = chosen[0] if chosen[0] < 0 else chosen[-1]
        raise UsageError(f"layer {wrong} is not in the model; expected one of 0 to {model.num_layers - 1}")
    report("tokenising", 0, 1)
    if documents is None:
        dataset = held_out_text(loaded.run, loaded.tokenizer, ABLATED_TOKENS_PER_DOMAIN)
    else:
        dataset = as_dataset(loaded, documents)
    of = analysis_of(loaded, dataset, HELD_OUT_TEXT if documents is None else text, HEADS)
    journal = AblationJournal(loaded.run, of)
    wanted = [(layer, head) for layer in chosen for head in range(model.num_heads)]
    known = journal.read() if keep else {}
    done = {place: known[place] for place in wanted if place in known}
    if len(done) < len(wanted):
        report(STAGE, len(done), len(wanted))
        missing = [place for place in wanted if place not in done]
        for place, rows in _effects(OwnModel.of(loaded), dataset, missing):
            if keep:
                journal.append(rows)
            done[place] = rows
            report(STAGE, len(done), len(wanted))
    return heads_frame([row for place in wanted for row in done[place]], of)


def _effects(
    own: OwnModel, dataset: TokenDataset, todo: Sequence[tuple[int, int]]
) -> Iterator[tuple[tuple[int, int], list[dict[str, Any]]]]:
    model = own.model
    bootstrap = SourceBootstrap(dataset.source_ids, dataset.domain_ids, dataset.domains, dataset.positions > 0)
    with torch.inference_mode():
        readings = read_all_windows(own, dataset)
    reached = 0
    for layer in sorted({layer for layer, _ in todo}):
        with torch.inference_mode():
            for reading in readings:
                reading.state = through(model, reading.state, reached, layer, reading.token_ids)
        reached = layer
        for head in (head for at, head in todo if at == layer):
            with torch.inference_mode():
                delta_T, kl_T = _one_head(model, dataset, readings, layer, head)
            rows = bootstrap.means(delta_T, kl_T)
            # Every token of a text goes through every head.
            yield (layer, head), [{"layer": layer, "expert": head, "affected": row["tokens"], **row} for row in rows]


def _one_head(
    model: MoETransformer, dataset: TokenDataset, readings: Sequence[WindowReading], layer: int, head: int
) -> tuple[np.ndarray, np.ndarray]:
    """[T] change of loss and KL of every token of the data set, 0 where it is not scored."""
    delta_T, kl_T = (np.zeros(len(dataset), dtype=np.float32) for _ in range(2))
    for reading in readings:
        with without_head(model, layer, head):
            x_BSD = through(model, reading.state, layer, len(model.layers), reading.token_ids)
        every_N = torch.ones(len(reading.targets), dtype=torch.bool, device=x_BSD.device)
        delta_N, kl_N = changes(model, reading, every_N, x_BSD[reading.scored])
        delta_T[reading.batch.targets], kl_T[reading.batch.targets] = delta_N.cpu().numpy(), kl_N.cpu().numpy()
    return delta_T, kl_T
