"""What an intervention does to the loss: token by token, and as means of each domain with their certainty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from moe_core.data.document import Document
from moe_core.data.tokens import TokenDataset
from moe_core.data.windows import window_batches
from moe_core.inference.open import language_model
from moe_core.inference.protocol import LanguageModel, Loaded
from moe_core.inference.scoring import as_dataset, compare
from moe_core.inference.tracing import logits_fit, trace_of_windows
from moe_core.progress import Progress, silent
from moe_core.routing import Intervention, RoutingTrace, capture, concatenate, intervene
from moe_core.routing.statistics.bootstrap import percentile_interval, stratified_draws
from moe_core.routing.trace.types import BoolArray, Float32Array, Float64Array, Int32Array

if TYPE_CHECKING:
    from numpy.typing import NDArray

RESAMPLES = 1000


@dataclass(frozen=True, eq=False)
class TokenEffects:
    """One text read twice: as the model is, and under an intervention. T tokens, documents' end-of-text included."""

    trace: RoutingTrace
    """The routing without the intervention."""
    losses_before: Float32Array
    """[T] nats: -ln of the token's probability; NaN for the first token of a document, which nothing predicts."""
    losses_after: Float32Array
    """[T] the same under the intervention."""
    kl: Float32Array
    """[T] nats, >= 0: Kullback-Leibler divergence KL(original || changed) of the two predictions for this token; NaN
    for the first of a document."""

    @property
    def delta(self) -> Float32Array:
        """[T] change of loss in nats; above 0 the intervention made the token harder to foresee."""
        return self.losses_after - self.losses_before


def token_effects(
    loaded: Loaded | LanguageModel,
    documents: Sequence[Document] | TokenDataset,
    intervention: Intervention,
    progress: Progress | None = None,
) -> TokenEffects:
    """Read `documents` with and without `intervention`, in the windows of trace_text.

    Raises UsageError when the model cannot do it, or there is no token to score.
    """
    report, model = progress or silent, language_model(loaded)
    intervention.check(model.model)
    dataset = as_dataset(model, documents)
    keep_logits = logits_fit(model, len(dataset))
    before, after, kl = (np.full(len(dataset), np.nan, dtype=np.float32) for _ in range(3))
    traces: list[RoutingTrace] = []
    with torch.inference_mode():
        for batch in window_batches(dataset, model.context_window):
            ids_BS = torch.from_numpy(dataset.token_ids[batch.index].astype(np.int64)).to(model.device)
            with capture(model.model, keep_logits=keep_logits) as recorder:
                original_BSV = model.logits(ids_BS)
            with intervene(model.model, intervention):
                changed_BSV = model.logits(ids_BS)
            traces.append(trace_of_windows(model, recorder, dataset, batch, original_BSV))
            scored, at = torch.from_numpy(batch.scored).to(original_BSV.device), batch.targets
            targets_N = torch.from_numpy(dataset.token_ids[at].astype(np.int64)).to(original_BSV.device)
            compared = compare(original_BSV[scored], changed_BSV[scored], targets_N)
            before[at], after[at], kl[at] = (values_N.cpu().numpy() for values_N in compared)
            report("reading twice", int(at.max(initial=0)) + 1, len(dataset))
    return TokenEffects(concatenate(traces), before, after, kl)


def domain_effects(effects: TokenEffects) -> pd.DataFrame:
    """Means over all scored tokens, then over those of each domain that has any.

    Columns: domain ("all" first); tokens scored; delta_nats, the mean change of loss; low, high: its 95 % interval by
    bootstrap over sources (NaN with fewer than two); kl, mean KL(original || changed); uncertain = 0 is in the
    interval, or there is none.
    """
    trace, scored_T = effects.trace, np.isfinite(effects.delta)
    bootstrap = SourceBootstrap(trace.source_ids, trace.domain_ids, trace.domains, scored_T)
    frame = pd.DataFrame(bootstrap.means(effects.delta, effects.kl))
    return frame.assign(uncertain=~((frame["low"] > 0) | (frame["high"] < 0)))


class SourceBootstrap:
    """Means over tokens and their 95 % intervals, where the tokens of one source are not independent.

    Within each domain whole sources are drawn anew with replacement, RESAMPLES times; the percentiles of the means are
    widened for N sources in M domains with N - M degrees of freedom (routing.statistics.bootstrap.widening). The
    draws are made once and serve every question, so that answers differ by what is asked and never by luck.
    """

    def __init__(
        self,
        source_ids: Int32Array,
        domain_ids: NDArray[np.int16],
        domains: Sequence[str],
        counted: BoolArray,
        seed: int = 0,
    ) -> None:
        """`source_ids`, `domain_ids`, `counted` [T]: tokens that are not counted are left out of every mean."""
        keys = source_ids[counted].astype(np.int64) * len(domains) + domain_ids[counted]
        unique, of_token, tokens = np.unique(keys, return_inverse=True, return_counts=True)
        self._counted, self._of_token, self._tokens_N = counted, of_token, tokens.astype(np.float64)
        self._domains = list(domains)
        self._domain_N = unique % len(domains)
        self._weights_RN = stratified_draws(self._domain_N, RESAMPLES, np.random.default_rng(seed))

    def means(self, delta_T: Float32Array, kl_T: Float32Array) -> list[dict[str, Any]]:
        """A row for "all", then one for each domain with tokens: domain, tokens, delta_nats, low, high, kl."""
        return self.means_of_sums(self.sums(delta_T), kl=self.sums(kl_T))

    def sums(self, values_T: Float32Array) -> Float64Array:
        """[N] the sum of each source's values. Sums of the same source may be taken from each other: paired."""
        values = values_T[self._counted].astype(np.float64)
        return np.bincount(self._of_token, values, len(self._tokens_N)).astype(np.float64)

    def means_of_sums(self, delta_N: Float64Array, **others_N: Float64Array) -> list[dict[str, Any]]:
        """The rows of `means` from `sums`, with the mean of each of the others in place of kl."""
        choices = [("all", np.ones(len(self._tokens_N), dtype=bool))]
        choices += [(name, self._domain_N == number) for number, name in enumerate(self._domains)]
        rows = []
        for name, own in choices:
            if own.any():
                tokens = self._tokens_N[own].sum()
                mean = float(delta_N[own].sum() / tokens)
                low, high = self._interval(mean, delta_N, own)
                row = {"domain": name, "tokens": int(tokens), "delta_nats": mean, "low": low, "high": high}
                rows.append(row | {other: float(sums_N[own].sum() / tokens) for other, sums_N in others_N.items()})
        return rows

    def _interval(self, mean: float, delta_N: Float64Array, own: BoolArray) -> tuple[float, float]:
        N = int(own.sum())
        freedom = N - len(np.unique(self._domain_N[own]))
        if freedom < 1:
            return float("nan"), float("nan")
        weights_RN = self._weights_RN[:, own]
        means_R = (weights_RN @ delta_N[own]) / (weights_RN @ self._tokens_N[own])
        low, high = percentile_interval(mean, means_R, N, freedom)
        return float(low), float(high)
