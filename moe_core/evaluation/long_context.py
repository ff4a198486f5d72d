"""Texts longer than the trained length, under each way to stretch rotary angles: loss and routing by position.

The same weights read the same texts twice: whole, and in windows of the trained length whose context restarts. What is
told of a span is the whole reading against the windows, text by text, so that hard places in the texts cancel out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from moe_core.config.rope_schemes import ROPE_SCHEMES, RopeConfig, RopeScheme
from moe_core.errors import UsageError
from moe_core.inference.scoring import token_nats
from moe_core.model.transformer import MoETransformer
from moe_core.progress import Progress
from moe_core.routing.statistics.intervals import t_quantile
from moe_core.routing.trace.shares import mutual_information

if TYPE_CHECKING:
    from moe_core.data.tokens import TokenDataset
    from moe_core.runs.checkpoint import LoadedRun

SPANS = ((0, 1), (1, 2), (2, 4))
"""From and to, in trained lengths: what was trained, twice and four times as far."""
EIGHTHS = 8
TURNS = 99
"""Of the null; the least p value is .01."""


@dataclass(frozen=True)
class Mean:
    """A mean over texts with the 95 % interval of Student's t over them."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Span:
    """Positions `start` to before `end` of all texts."""

    start: int
    end: int
    nats: Mean
    """Loss per token of the whole reading."""
    above_windows: Mean
    """Its loss less that in windows of the trained length; below 0 = the longer context helps."""
    flips: Mean
    """Share of first choices, over all MoE layers, that are another expert than in the window; 0 in a dense model."""
    busiest: float
    """Load of the busiest expert, times its even share, in the MoE layer where that is most; 0 in a dense model."""


@dataclass(frozen=True)
class SchemeRead:
    """One scheme on all texts."""

    scheme: RopeScheme
    spans: tuple[Span, ...]
    position_nmi: float
    """I(position; expert) / H(position), position in eighths of a text, first choices, the mean of the MoE layers."""
    position_nmi_chance: float
    """The 95th percentile of the same with every text's choices turned round by a random distance of its own, which
    keeps load, texts and runs of equal choice."""
    position_p: float
    """Share of turns that reach position_nmi, the found one counted in."""


@dataclass(frozen=True)
class LongContext:
    """All schemes on the same weights and texts."""

    trained: int
    texts: int
    schemes: tuple[SchemeRead, ...]


def long_texts(dataset: TokenDataset, length: int) -> NDArray[np.int64]:
    """[N, length] documents of one domain put one behind another, as training text is; what is left over is dropped.

    Raises UsageError where fewer than three texts come of it, which leave no interval.
    """
    domains_T = dataset.domain_ids
    parts = [dataset.token_ids[domains_T == domain].astype(np.int64) for domain in range(len(dataset.domains))]
    texts = [part[at : at + length] for part in parts for at in range(0, len(part) - length + 1, length)]
    if len(texts) < 3:
        raise UsageError(
            f"the text gives {len(texts)} texts of {length} tokens; expected 3 or more: give a longer one with --data"
        )
    return np.stack(texts)


@torch.inference_mode()
def read_long(
    loaded: LoadedRun, texts_NT: NDArray[np.int64], factor: float, progress: Progress | None = None
) -> LongContext:
    """Read `texts_NT`, four times the trained length each, under every scheme at `factor`.

    Raises UsageError for a router that sees the future: what comes later would change what stands before.
    """
    loaded.model.check_writes()
    trained = loaded.config.training.seq_len
    ids_NT = torch.from_numpy(texts_NT).to(loaded.model.embedding.weight.device)
    N, T = ids_NT.shape
    nats, experts = _read(_with(loaded, loaded.config.model.rope, T), ids_NT.reshape(-1, trained))
    short = nats.reshape(N, T), experts.reshape(N, T, -1)
    found = []
    for place, scheme in enumerate(ROPE_SCHEMES):
        if progress is not None:
            progress("reading", place, len(ROPE_SCHEMES))
        whole = _read(under_scheme(loaded, scheme, factor, T), ids_NT)
        spans = _spans(whole, short, trained, loaded.config.model.num_experts)
        found.append(SchemeRead(scheme, spans, *_position_test(whole[1], loaded.config.model.num_experts)))
    return LongContext(trained, N, tuple(found))


def under_scheme(loaded: LoadedRun, scheme: RopeScheme, factor: float, length: int) -> MoETransformer:
    """The run's weights with `scheme` at `factor`, from the trained length on, for texts of up to `length` tokens."""
    rope = RopeConfig(scheme=scheme, factor=factor, original_length=loaded.config.training.seq_len)
    return _with(loaded, rope, length)


def long_context_verdict(found: LongContext) -> str:
    """Which scheme reads furthest, in words."""
    last = {read.scheme: read.spans[-1] for read in found.schemes}
    best = min(last, key=lambda scheme: last[scheme].above_windows.value)
    span = last[best]
    gap = span.above_windows
    numbers = f"{gap.value:+.3f} nats a token (95 % interval {gap.low:+.3f} to {gap.high:+.3f})"
    where = f"at positions {span.start} to {span.end - 1}"
    if gap.high < 0:
        return f"Text beyond the trained {found.trained} tokens helps {where} under {best}: {numbers} against windows."
    if gap.low > 0:
        return (
            f"No scheme reads beyond the trained {found.trained} tokens as well as windows of that length do {where}: "
            f"the nearest, {best}, loses {numbers}. Train at a longer length, or read in windows."
        )
    return f"Whether text beyond the trained {found.trained} tokens helps cannot be told {where}: {best}, {numbers}."


def _with(loaded: LoadedRun, rope: RopeConfig, length: int) -> MoETransformer:
    """The run's weights under another scheme, on the same device."""
    longest = max(length, loaded.config.model.max_seq_len)
    model = MoETransformer(loaded.config.model.model_copy(update={"rope": rope, "max_seq_len": longest}))
    model.load_state_dict(loaded.model.state_dict())
    return model.to(loaded.model.embedding.weight.device).eval()


def _read(model: MoETransformer, ids_BS: torch.Tensor) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """([B, S] nats of each token, NaN for the first, which nothing foretells; [B, S, L] first choices)."""
    nats, experts = [], []
    for row_S in ids_BS:
        row_1S = row_S[None]
        output = model(row_1S)
        known = token_nats(output.logits[0, :-1], row_1S[0, 1:]).double().cpu()
        nats.append(torch.cat((known.new_full((1,), math.nan), known)).numpy())
        first = [routed.router_indices[:, 0].cpu().numpy() for routed in output.router_outputs]
        experts.append(np.stack(first, axis=1) if first else np.zeros((row_1S.shape[1], 0), np.int64))
    return np.stack(nats), np.stack(experts)


def _spans(
    whole: tuple[NDArray[np.float64], NDArray[np.int64]],
    short: tuple[NDArray[np.float64], NDArray[np.int64]],
    trained: int,
    num_experts: int,
) -> tuple[Span, ...]:
    spans = []
    for low, high in SPANS:
        part = slice(low * trained, high * trained)
        nats, windows = whole[0][:, part], short[0][:, part]
        chosen, before = whole[1][:, part], short[1][:, part]
        L = chosen.shape[-1]
        flips = (chosen != before).reshape(len(chosen), -1).mean(axis=1) if L else np.zeros(len(chosen))
        loads = [np.bincount(chosen[..., layer].ravel().clip(0), minlength=num_experts) for layer in range(L)]
        busiest = max((float(load.max() * num_experts / load.sum()) for load in loads), default=0.0)
        gap = np.nanmean(nats - windows, axis=1)
        spans.append(Span(part.start, part.stop, _mean(np.nanmean(nats, axis=1)), _mean(gap), _mean(flips), busiest))
    return tuple(spans)


def _position_test(experts_NTL: NDArray[np.int64], num_experts: int) -> tuple[float, float, float]:
    """Position NMI, its level by chance and the p value; 0, 0 and 1 in a dense model."""
    N, T, L = experts_NTL.shape
    if not L:
        return 0.0, 0.0, 1.0
    rng = np.random.default_rng(0)
    found = _position_nmi(experts_NTL, num_experts)
    places_T = np.arange(T)
    by_chance = []
    for _ in range(TURNS):
        turned_NT = (places_T + rng.integers(1, T, (N, 1))) % T
        by_chance.append(_position_nmi(np.take_along_axis(experts_NTL, turned_NT[..., None], axis=1), num_experts))
    reached = sum(value >= found for value in by_chance)
    return found, float(np.quantile(by_chance, 0.95)), (1 + reached) / (1 + TURNS)


def _position_nmi(experts_NTL: NDArray[np.int64], num_experts: int) -> float:
    _, T, L = experts_NTL.shape
    places_T: NDArray[np.int64] = np.arange(T, dtype=np.int64) * EIGHTHS // T
    layers_L: NDArray[np.int64] = np.arange(L, dtype=np.int64) * EIGHTHS
    flat = (np.add.outer(places_T, layers_L) * num_experts + experts_NTL.clip(0)).ravel()
    counts_LPE = np.bincount(flat, minlength=L * EIGHTHS * num_experts).reshape(L, EIGHTHS, num_experts)
    return float(mutual_information(counts_LPE).mean() / math.log(EIGHTHS))


def _mean(values_N: NDArray[np.float64]) -> Mean:
    value = float(values_N.mean())
    half = float(t_quantile(len(values_N) - 1)) * float(values_N.std(ddof=1)) / math.sqrt(len(values_N))
    return Mean(value, value - half, value + half)
