"""Texts longer than the trained length, under each way to stretch rotary angles: loss and routing by position.

The same weights read the same texts twice: whole, and in windows of the trained length whose context restarts. What the
figures mean stands in routing.measures.beyond_length.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from moe_core.config.rope_schemes import ROPE_SCHEMES, RopeConfig, RopeScheme
from moe_core.errors import RunError, UsageError
from moe_core.evaluation.ablation import analysis_of
from moe_core.inference.held_out import held_out_text
from moe_core.inference.scoring import token_nats
from moe_core.model.transformer import MoETransformer
from moe_core.progress import Progress, silent
from moe_core.routing.measures.beyond_length import (
    LayerSpan,
    LongContext,
    SchemeRead,
    Span,
    mean_of_groups,
    position_test,
)
from moe_core.runs.analysis import HELD_OUT_TEXT
from moe_core.runs.context_file import KeptContext, write_context

if TYPE_CHECKING:
    from moe_core.data.tokens import TokenDataset
    from moe_core.runs.checkpoint import LoadedRun
    from moe_core.runs.folder import RunFolder

SPANS = ((0, 1), (1, 2), (2, 4))
"""From and to, in trained lengths: what was trained, twice and four times as far."""
PLACES = 4
"""In a trained length: the finer look."""
TEXTS = 12
"""Read where nobody says how many."""


@dataclass(frozen=True, eq=False)
class LongTexts:
    """What is read."""

    ids: NDArray[np.int64]
    """[N, T] tokens."""
    group: NDArray[np.int64]
    """[N] Texts of one group are parts of one document; no document is in two groups."""
    documents: NDArray[np.int64]
    """[N] documents in each; 0 where it goes on with that of the text before."""

    def spaced(self, most: int) -> LongTexts:
        """At most so many of them, evenly spaced, so that every domain is there."""
        chosen = np.linspace(0, len(self.ids) - 1, min(most, len(self.ids))).round().astype(np.int64)
        return LongTexts(self.ids[chosen], self.group[chosen], self.documents[chosen])


@dataclass(frozen=True, eq=False)
class _Reading:
    nats: NDArray[np.float64]
    """[N, T]; NaN at the first token of a row, which nothing foretells."""
    experts: NDArray[np.int64]
    """[N, T, L] first choices."""
    entropy: NDArray[np.float64]
    """[N, T, L] H(p) / ln E."""

    def part(self, part: slice) -> _Reading:
        return _Reading(self.nats[:, part], self.experts[:, part], self.entropy[:, part])


def long_texts(dataset: TokenDataset, length: int) -> LongTexts:
    """Documents of one domain put one behind another, as training text is, `length` tokens each. A text begins at a
    random place of a document, as else position in the text would be position in the document, or goes on with one that
    is longer than a text; what is left of others is dropped, so that no document is in two groups.

    Raises UsageError where fewer than three groups come of it, which leave no interval.
    """
    texts: list[NDArray[np.int64]] = []
    groups: list[int] = []
    counts: list[int] = []
    group = -1
    held: list[NDArray[np.int64]] = []
    rng = np.random.default_rng(0)
    domain, room = -1, 0
    starts = np.flatnonzero(np.diff(dataset.document_ids, prepend=-1))
    order = sorted(range(len(starts)), key=lambda at: (int(dataset.domain_ids[starts[at]]), at))
    ends = np.append(starts[1:], len(dataset.token_ids))
    for at in order:
        own = dataset.token_ids[starts[at] : ends[at]].astype(np.int64)
        if int(dataset.domain_ids[starts[at]]) != domain:
            domain, held, room = int(dataset.domain_ids[starts[at]]), [], length
        if not held:
            own, room = own[rng.integers(min(len(own), length)) :], length
        held.append(own[:room])
        room -= len(held[-1])
        if room:
            continue
        group += 1
        texts.append(np.concatenate(held))
        groups.append(group)
        counts.append(len(held))
        rest = own[len(held[-1]) :]
        for start in range(0, len(rest) - length + 1, length):
            texts.append(rest[start : start + length])
            groups.append(group)
            counts.append(0)
        held = []
    if group < 2:
        raise UsageError(
            f"the text gives {group + 1} texts of {length} tokens that share no document; expected 3 or more: give a "
            "longer one with --data"
        )
    return LongTexts(np.stack(texts), np.array(groups, np.int64), np.array(counts, np.int64))


def held_out_texts(run: RunFolder, loaded: LoadedRun, texts: int) -> tuple[TokenDataset, LongTexts]:
    """At most so many long texts of what the run was not trained on, and the dataset that they are from. Raises
    MoescopeError."""
    length = SPANS[-1][1] * loaded.config.training.seq_len
    # Twice as much, as documents are dropped in part at a text's ends.
    dataset = held_out_text(run, loaded.tokenizer, 2 * -(-texts // len(run.domains())) * length)
    return dataset, long_texts(dataset, length).spaced(texts)


def measure_long_context(
    run: RunFolder, loaded: LoadedRun, factor: float, texts: int = TEXTS, progress: Progress | None = None
) -> KeptContext:
    """Read the run's held-out text and keep what is found beside the run. Raises MoescopeError."""
    began = time.monotonic()
    dataset, long = held_out_texts(run, loaded, texts)
    found = read_long(loaded, long, factor, progress)
    of = analysis_of(loaded, dataset, HELD_OUT_TEXT, f"context {factor:g} {texts}")
    kept = KeptContext(of, factor, time.time(), time.monotonic() - began, found)
    write_context(run, kept)
    return kept


@torch.inference_mode()
def read_long(loaded: LoadedRun, texts: LongTexts, factor: float, progress: Progress | None = None) -> LongContext:
    """Read `texts`, four times the trained length each, under every scheme at `factor`.

    Raises UsageError for a router that sees the future: what comes later would change what stands before. RunError
    where the loss is no number.
    """
    loaded.model.check_writes()
    report = progress or silent
    trained, E = loaded.config.training.seq_len, loaded.config.model.num_experts
    ids_NT = torch.from_numpy(texts.ids).to(loaded.model.embedding.weight.device)
    N, T = ids_NT.shape
    rounds = (2 + len(ROPE_SCHEMES)) * N
    own = _with(loaded, loaded.config.model.rope, T)
    short = _read(own, ids_NT, trained, report, (0, rounds))
    half = trained // 2
    # Windows that begin half their length earlier: there the first half of each window has more context.
    earlier = _read(own, ids_NT[:, trained - half : T - half], trained, report, (N, rounds))
    first_half = np.concatenate([np.arange(at, at + half) for at in range(trained, T, trained)])
    in_windows = short.experts[:, first_half]
    by_context = _flips(earlier.experts[:, first_half - (trained - half)], in_windows)
    found = []
    for place, scheme in enumerate(ROPE_SCHEMES):
        whole = _read(under_scheme(loaded, scheme, factor, T), ids_NT, T, report, ((2 + place) * N, rounds))
        if not np.isfinite(whole.nats[:, 1:]).all():
            raise RunError(f"the loss is not finite under {scheme}; expected a trained model")
        edges = [trained * quarter // PLACES for quarter in range(PLACES * SPANS[-1][1] + 1)]
        more = _flips(whole.experts[:, first_half], in_windows) - by_context
        read = SchemeRead(
            scheme,
            tuple(_span(whole, short, texts.group, low * trained, high * trained, E) for low, high in SPANS),
            tuple(_span(whole, short, texts.group, *ends, E) for ends in pairwise(edges)),
            mean_of_groups(more, texts.group),
            *position_test(list(whole.experts), E),
        )
        found.append(read)
    report("reading", rounds, rounds)
    groups = len(set(texts.group.tolist()))
    return LongContext(
        trained, N, groups, max(groups, int(texts.documents.sum())), N * T, tuple(loaded.config.model.moe_layers),
        mean_of_groups(by_context, texts.group), tuple(found),
    )  # fmt: skip


def under_scheme(loaded: LoadedRun, scheme: RopeScheme, factor: float, length: int) -> MoETransformer:
    """The run's weights with `scheme` at `factor`, from the trained length on, for texts of up to `length` tokens."""
    rope = RopeConfig(scheme=scheme, factor=factor, original_length=loaded.config.training.seq_len)
    return _with(loaded, rope, length)


def _with(loaded: LoadedRun, rope: RopeConfig, length: int) -> MoETransformer:
    """The run's weights under another scheme, on the same device."""
    longest = max(length, loaded.config.model.max_seq_len)
    model = MoETransformer(loaded.config.model.model_copy(update={"rope": rope, "max_seq_len": longest}))
    model.load_state_dict(loaded.model.state_dict())
    return model.to(loaded.model.embedding.weight.device).eval()


def _read(
    model: MoETransformer, ids_NT: torch.Tensor, window: int, report: Progress, rounds: tuple[int, int]
) -> _Reading:
    """Each text in windows whose context restarts. `rounds`: those done before this reading, and all."""
    nats, experts, entropies = [], [], []
    for at, row_T in enumerate(ids_NT):
        report("reading", rounds[0] + at, rounds[1])
        ids_BS = row_T.reshape(-1, window)
        output = model(ids_BS)
        B, S = ids_BS.shape
        known = token_nats(output.logits[:, :-1].reshape(B * (S - 1), -1), ids_BS[:, 1:].reshape(-1)).reshape(B, -1)
        nats.append(torch.cat((known.new_full((B, 1), math.nan), known), dim=1).double().cpu().numpy().ravel())
        first = [routed.router_indices[:, 0].cpu().numpy() for routed in output.router_outputs]
        experts.append(np.stack(first, axis=1) if first else np.zeros((B * S, 0), np.int64))
        sure = [_entropy(routed.router_logits) for routed in output.router_outputs]
        entropies.append(np.stack(sure, axis=1) if sure else np.zeros((B * S, 0)))
    return _Reading(np.stack(nats), np.stack(experts), np.stack(entropies))


def _entropy(logits_TE: torch.Tensor) -> NDArray[np.float64]:
    logs_TE = logits_TE.double().log_softmax(dim=-1)
    entropy_T = -(logs_TE.exp() * logs_TE.clamp_min(-1e9)).sum(dim=-1) / math.log(max(logits_TE.shape[1], 2))
    values: NDArray[np.float64] = entropy_T.cpu().numpy()
    return values


def _flips(chosen_NTL: NDArray[np.int64], before_NTL: NDArray[np.int64]) -> NDArray[np.float64]:
    """[N] share of first choices that differ; 0 in a dense model."""
    if not chosen_NTL.shape[-1]:
        return np.zeros(len(chosen_NTL))
    share: NDArray[np.float64] = (chosen_NTL != before_NTL).mean(axis=(1, 2))
    return share


def _span(whole: _Reading, short: _Reading, group_N: NDArray[np.int64], start: int, end: int, num_experts: int) -> Span:
    own, windows = whole.part(slice(start, end)), short.part(slice(start, end))
    layers = [_layer_span(own, windows, group_N, layer, num_experts) for layer in range(own.experts.shape[-1])]
    return Span(
        start,
        end,
        mean_of_groups(np.nanmean(own.nats, axis=1), group_N),
        mean_of_groups(np.nanmean(own.nats - windows.nats, axis=1), group_N),
        mean_of_groups(_flips(own.experts, windows.experts), group_N),
        max((num_experts * max(layer.load) for layer in layers), default=0.0),
        tuple(layers),
    )


def _layer_span(
    own: _Reading, windows: _Reading, group_N: NDArray[np.int64], layer: int, num_experts: int
) -> LayerSpan:
    chosen_NT = own.experts[..., layer]
    load_E = np.bincount(chosen_NT.ravel().clip(0), minlength=num_experts) / chosen_NT.size
    share_N = (chosen_NT == int(load_E.argmax())).mean(axis=1) * num_experts
    return LayerSpan(
        mean_of_groups((chosen_NT != windows.experts[..., layer]).mean(axis=1), group_N),
        mean_of_groups(own.entropy[..., layer].mean(axis=1), group_N),
        mean_of_groups(share_N, group_N),
        tuple(float(share) for share in load_E),
    )
