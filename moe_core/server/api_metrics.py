"""GET /metrics: what the models of a pool did and do, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from moe_core.inference.counters import Counts
from moe_core.inference.model_pool import ModelPool

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_TOTALS = {
    "prompt_tokens": "tokens of prompts that were read",
    "reused_tokens": "of these, what a kept prefix spared the model",
    "written_tokens": "tokens that were written",
    "passes": "forward passes",
}
"""Counts whose numbers only grow, by their names there."""
_OUTCOMES = ("completed", "cancelled", "failed", "refused")


class ApiMetrics:
    """A registry of its own for each API, so that two of them in a process do not add up."""

    def __init__(self, pool: ModelPool) -> None:
        self._registry = CollectorRegistry()
        self._answers = Counter(
            "moescope_http_answers", "Answers by route and status", ["route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "moescope_http_seconds", "Seconds from a request to the end of its answer", ["route"],
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self._registry.register(_OfPool(pool))

    def note_answer(self, route: str, status: int, seconds: float) -> None:
        """Count an answer; status 0 where the client went away before it began."""
        self._answers.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self._registry)


class _OfPool(Collector):
    """Read when somebody asks. A model that was closed is told no longer; opened again it begins at 0."""

    def __init__(self, pool: ModelPool) -> None:
        self._pool = pool

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """See Collector."""
        models = {name: (found.engine.model, found.counts()) for name, found in self._pool.open_schedulers().items()}
        counts: dict[str, Counts] = {name: found for name, (_, found) in models.items()}
        requests = CounterMetricFamily("moescope_requests", "Requests that ended", labels=["model", "outcome"])
        for name, found in counts.items():
            for outcome in _OUTCOMES:
                requests.add_metric([name, outcome], getattr(found, outcome))
        yield requests
        for what, meaning in (("waiting", "Requests in the queue"), ("running", "Requests that are being answered")):
            gauge = GaugeMetricFamily(f"moescope_requests_{what}", meaning, labels=["model"])
            for name, found in counts.items():
                gauge.add_metric([name], getattr(found, what))
            yield gauge
        for what, meaning in _TOTALS.items():
            total = CounterMetricFamily(f"moescope_{what}", meaning, labels=["model"])
            for name, found in counts.items():
                total.add_metric([name], getattr(found, what))
            yield total
        routed = CounterMetricFamily(
            "moescope_expert_tokens", "Tokens that chose an expert", labels=["model", "layer", "expert"]
        )
        for name, (model, found) in models.items():
            for layer, tokens_E in zip(model.moe_layers, _tokens_per_expert(found), strict=False):
                for expert, tokens in enumerate(tokens_E):
                    routed.add_metric([name, str(layer), str(expert)], tokens)
        yield routed


def _tokens_per_expert(counts: Counts) -> list[list[int]]:
    found: list[list[int]] = [] if counts.tokens_per_expert is None else counts.tokens_per_expert.tolist()
    return found
