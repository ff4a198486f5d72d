"""Which tokens belong to which expert."""

from __future__ import annotations

import numpy as np
import pandas as pd

from moe_core.errors import TraceError
from moe_core.routing.measures.tokens import (
    TOGETHER,
    TokenKind,
    TokenTypes,
    layer_counts,
    texts_of,
    token_ids_of,
    token_types,
)
from moe_core.routing.trace.counts import ratio
from moe_core.routing.trace.stored import AnyTrace, StoredTrace
from moe_core.routing.trace.types import Int64Array


def vocabulary_specialization(trace: AnyTrace, which: TokenKind = "input", min_count: int = 10) -> pd.DataFrame:
    """How faithful each token type is to one expert (OLMoE, 2409.02060, eq. 8), one row per type and layer.

    `which`: the type is that of the token routed ("input"), of the model's likeliest next token ("predicted"), or of
    the token that does follow in the document ("next"; the last token of a document has none and is left out).
    Columns: layer, token_id, text; tokens = N_x, how often the type occurs, at least `min_count`;
    expert = the one chosen most (the lowest number on a tie; -1 if no token of the type has one);
    share = N_xi / N_x, 0..1, the part of its tokens that chose this expert;
    lift = share / (N_i / T), the expert's share of all tokens, rare types too; chance about 1, more for small counts.
    The score of a layer is the mean share over types. A type that occurs once has share 1 by construction, and the
    largest of E shares is above K/E by chance alone: hold the score against baselines.vocabulary.
    Raises TraceError for "predicted" without predicted_ids, UsageError for a wrong argument.
    """
    types = token_types(trace, which, min_count)
    V, texts, frames = len(types.ids), texts_of(trace, types.ids), []
    layers = layer_counts(trace, lambda part: types.label(token_ids_of(part, which)), V + 1)
    for layer, counts_VE in zip(trace.layers, layers, strict=True):
        share_E = ratio(counts_VE.sum(axis=0), types.total)
        best_V = counts_VE[:V].argmax(axis=1)
        share_V = ratio(counts_VE[np.arange(V), best_V], types.tokens)
        frames.append(
            pd.DataFrame(
                {
                    "layer": layer,
                    "token_id": types.ids,
                    "text": texts,
                    "tokens": types.tokens,
                    "expert": np.where(share_V > 0, best_V, -1),
                    "share": share_V,
                    "lift": ratio(share_V, np.where(share_V > 0, share_E[best_V], 0.0)),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def token_experts(trace: AnyTrace, layer: int, expert: int, min_count: int = 5) -> pd.DataFrame:
    """What an expert lives on: the token types that go to it, most unusual first.

    Columns: token_id, text; tokens = N_x, how often the type occurs, at least `min_count`;
    share = N_xi / N_x, 0..1, the part of its tokens that chose the expert; lift = share / (N_i / T), chance 1.
    Sorted by lift, then by tokens. Types that never chose the expert are left out.
    Raises TraceError for a layer or expert that is not there.
    """
    row = layer_row(trace, layer)
    check_expert(trace, expert)
    types = token_types(trace, "input", min_count)
    V, counts_V = len(types.ids), _type_counts(trace, types, row, expert)
    share_V = ratio(counts_V[:V], types.tokens)
    frame = pd.DataFrame(
        {
            "token_id": types.ids,
            "text": texts_of(trace, types.ids),
            "tokens": types.tokens,
            "share": share_V,
            "lift": ratio(share_V, float(ratio(counts_V.sum(), types.total))),
        }
    )
    return frame[share_V > 0].sort_values(["lift", "tokens"], ascending=False, kind="stable", ignore_index=True)


def _type_counts(trace: AnyTrace, types: TokenTypes, row: int, expert: int) -> Int64Array:
    """[V+1] tokens of each type, and of the rare ones together, that chose the expert of layer `row` of the L axis."""
    size = len(types.ids) + 1
    if isinstance(trace, StoredTrace) and trace.num_layers * size * trace.num_experts <= TOGETHER:
        # The next expert is looked at soon: all are counted in the time that one takes.
        counts_LVE: Int64Array = trace.once(
            ("type_counts", size),
            lambda: np.stack(list(layer_counts(trace, lambda part: types.label(part.token_ids), size))),
        )
        return counts_LVE[row, :, expert]
    counts_V = np.zeros(size, dtype=np.int64)
    for part in trace.parts():
        chose_T = (part.router_indices[row] == expert).any(axis=1)
        counts_V += np.bincount(types.label(part.token_ids[chose_T]), minlength=size)
    return counts_V


def layer_row(trace: AnyTrace, layer: int) -> int:
    """Place of layer number `layer` on the L axis. Raises TraceError for a layer without a router."""
    if layer not in trace.layers:
        raise TraceError(f"layer {layer} is not in this trace; expected one of {', '.join(map(str, trace.layers))}")
    return trace.layers.index(layer)


def check_expert(trace: AnyTrace, expert: int) -> None:
    """Raises TraceError for an expert that the trace's layers do not have."""
    if not 0 <= expert < trace.num_experts:
        raise TraceError(f"expert {expert} is not in this trace; expected 0 to {trace.num_experts - 1}")
