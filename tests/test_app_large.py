"""Every page on a model of 48 layers of 128 experts: it opens, answers in a sentence, and sends no heavy picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from app_support import Open, shown
from streamlit.testing.v1 import AppTest

from moe_core.routing import RoutingTrace

PAGES = ("overview", "tokens", "domains", "experts", "flow", "compare")
OTHERS = ("generation", "interventions", "time", "training")
MAX_BYTES = 2_000_000
"""What a picture may weigh: the budget of `make bench`."""
ANSWERS = {
    "overview": "48 MoE layers of 128 experts, 8 for each token",
    "tokens": "expert",
    "domains": "Experts know a token's domain",
    "experts": "takes",
    "flow": "layer",
    "compare": "A is ",
}


def weights(at: AppTest) -> list[int]:
    """Bytes of every picture of the page, its data included."""
    charts: list[Any] = [*at.main.get("vega_lite_chart"), *at.main.get("plotly_chart")]
    return [one.proto.ByteSize() for one in charts]


@pytest.fixture(scope="module")
def large_counts(large_trace: Path) -> Path:
    """The same as counts by domain, without its tokens."""
    path = large_trace.with_name("large.counts.parquet")
    RoutingTrace.load(large_trace).counts(by="domain").save(path)
    return path


@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_the_trace_of_a_large_model(large_trace: Path, tmp_path: Path, dashboard: Open, page: str) -> None:
    at = dashboard(tmp_path, page, ("--trace", str(large_trace)))
    assert not at.error, [error.value for error in at.error]
    assert ANSWERS[page] in shown(at)
    assert weights(at) or page == "tokens"
    assert max(weights(at), default=0) < MAX_BYTES
