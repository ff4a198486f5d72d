"""Figures as files: every format, light and self-contained, harmless in a spreadsheet and in a browser."""

from __future__ import annotations

import csv
import io
import struct

import altair as alt
import pandas as pd
import pytest

from moe_core.errors import UsageError
from moe_core.figures.picture_files import FORMATS, chart_bytes, csv_bytes

FRAME = pd.DataFrame({"token": ["</script><script>alert(1)</script>", "=1+1"], "value": [1.0, -2.0]})


@pytest.fixture
def chart() -> alt.Chart:
    return alt.Chart(FRAME).mark_bar().encode(x="token:N", y="value:Q").properties(width=200, height=100)


def test_every_format_is_a_file_of_its_kind(chart: alt.Chart) -> None:
    starts = {"png": b"\x89PNG", "svg": b"<svg", "pdf": b"%PDF", "html": b"<!DOCTYPE html>", "csv": b"token,value"}
    assert set(starts) == set(FORMATS)
    for name in FORMATS:
        assert chart_bytes(chart, name, title="A title", subtitle="A verdict.").startswith(starts[name])


def test_pictures_are_light_on_white(chart: alt.Chart) -> None:
    svg = chart_bytes(chart, "svg", title="A title", subtitle="A verdict.").decode()
    assert 'fill="#ffffff"' in svg.lower() or 'fill="white"' in svg.lower()
    assert "A title" in svg
    assert "A verdict." in svg
    png = chart_bytes(chart, "png")
    width, height = struct.unpack(">II", png[16:24])
    assert width > 400, "two pixels per unit"
    assert height > 200


def test_the_chart_itself_keeps_no_theme(chart: alt.Chart) -> None:
    before = chart.to_json()
    chart_bytes(chart, "svg")
    assert chart.to_json() == before
    assert "background" not in before


def test_html_needs_no_network_and_runs_no_token(chart: alt.Chart) -> None:
    html = chart_bytes(chart, "html", title="</title><script>alert(2)</script>").decode()
    assert "<script>alert" not in html
    assert 'src="http' not in html
    assert "cdn.jsdelivr" not in html
    assert html.count("<script") == html.count("</script>") == 2


def test_csv_cannot_start_a_formula() -> None:
    frame = pd.DataFrame({"t": ["=1+1", "+1", "-1", "@x", "\t=1", "a=1", "", None], "n": [-1.5, 2, 3, 4, 5, 6, 7, 8]})
    rows = list(csv.reader(io.StringIO(csv_bytes(frame).decode())))
    assert [row[0] for row in rows] == ["t", "'=1+1", "'+1", "'-1", "'@x", "'\t=1", "a=1", "", ""]
    assert rows[1][1] == "-1.5", "numbers stay numbers"
    assert frame["t"][0] == "=1+1", "the table itself is not changed"
    assert csv_bytes(pd.DataFrame({"=x": [1]})).startswith(b"'=x")


def test_csv_takes_the_given_table_or_the_charts_own(chart: alt.Chart) -> None:
    assert b"other" in chart_bytes(chart, "csv", frame=pd.DataFrame({"other": [1]}))
    with pytest.raises(UsageError, match="pass frame="):
        chart_bytes(alt.Chart().mark_bar(), "csv")


def test_many_rows_are_no_obstacle() -> None:
    frame = pd.DataFrame({"x": range(6000), "y": range(6000)})
    assert chart_bytes(alt.Chart(frame).mark_line().encode(x="x:Q", y="y:Q"), "svg").startswith(b"<svg")


def test_an_unknown_format_is_one_line(chart: alt.Chart) -> None:
    with pytest.raises(UsageError, match="unknown format 'gif'; expected one of png, svg, pdf, html, csv"):
        chart_bytes(chart, "gif")
