"""Every page on a model of 48 layers of 128 experts: it opens, answers in a sentence, and sends no heavy picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from app_support import Open, shown
from streamlit.testing.v1 import AppTest

from moe_core.routing import RoutingTrace

PAGES = ("overview", "tokens", "domains", "experts", "flow", "compare")
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


pytestmark = pytest.mark.xdist_group("large")


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


@pytest.mark.parametrize("page", [page for page in PAGES if page != "tokens"])
def test_a_page_shows_the_counts_of_a_large_model(
    large_counts: Path, tmp_path: Path, dashboard: Open, page: str
) -> None:
    at = dashboard(tmp_path, page, ("--trace", str(large_counts)))
    assert not at.error, [error.value for error in at.error]
    assert len(at.main.title) == 1
    assert len(shown(at)) > 200
    assert max(weights(at), default=0) < MAX_BYTES


def test_order_and_part_of_a_map_are_one_choice_and_in_the_url(
    large_trace: Path, tmp_path: Path, dashboard: Open
) -> None:
    at = dashboard(tmp_path, "overview", ("--trace", str(large_trace)))
    assert at.segmented_control(key="order").value == "number"
    at.segmented_control(key="order").set_value("load").run()
    at.select_slider(key="layers").set_value((3, 5)).run()
    at.select_slider(key="ranks").set_value((1, 40)).run()
    cells = data_of(at, 0)
    assert sorted(set(cells["layer"])) == [3, 4, 5]
    assert len(cells) == 3 * 40
    assert cells["sentence"].str.contains("of its layer by load").all()

    link: dict[str, Any] = {"order": "load", "layers": ["3", "5"], "ranks": ["1", "40"]}  # as the browser writes it
    again = dashboard(tmp_path, "overview", **link)
    assert data_of(again, 0)["expert"].tolist() == cells["expert"].tolist()
    again.switch_page("app_pages/domains.py").run()  # a browser takes the choice along, AppTest does not
    again.segmented_control(key="order").set_value("load").run()
    again.select_slider(key="layers").set_value((3, 5)).run()
    again.select_slider(key="ranks").set_value((1, 40)).run()
    own = data_of(again, 1)
    assert sorted(set(own["layer"])) == [3, 4, 5]
    assert own["expert"].tolist() == cells["expert"].tolist()
    again.segmented_control(key="order").set_value("preferred domain").run()
    kinds = data_of(again, 1)
    kinds = kinds[kinds["layer"] == 4].sort_values("column")["kind"].tolist()
    places = [("finance", "legal", "code", "general", "none surely").index(kind) for kind in kinds]
    assert places == sorted(places)
    again.segmented_control(key="order").set_value("number").run()
    assert len(set(data_of(again, 1)["expert"])) == 128  # a part of the ranks is none of the numbers


def data_of(at: AppTest, place: int) -> pd.DataFrame:
    """What a chart of the page was sent."""
    (data,) = at.main.get("vega_lite_chart")[place].proto.datasets
    frame: pd.DataFrame = pa.ipc.open_stream(data.data.data).read_pandas()
    return frame
