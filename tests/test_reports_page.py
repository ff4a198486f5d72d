"""The report is one file that needs nothing else, runs no token, and holds every picture, verdict and number."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import altair as alt
import numpy as np
import pandas as pd
import pytest
from evaluation_support import evaluation_record
from markupsafe import Markup, escape

from moe_core.config import Config
from moe_core.figures.figure import Figure
from moe_core.figures.inline_svg import inline_svg
from moe_core.figures.load import load_map_figure
from moe_core.figures.run_figures import Section, _causes, sections_of_run, sections_of_trace
from moe_core.figures.sankey import flow_sankey_figure
from moe_core.reports.html import cell, render
from moe_core.reports.page import MAX_CSV_BYTES, MAX_TABLE_ROWS, ModelCard, report_page
from moe_core.routing import RoutingTrace, metrics
from moe_core.routing.measures.glossary import GLOSSARY
from moe_core.runs.evaluation import GuessingFigures, SplitFigures
from moe_core.runs.folder import RunFolder
from moe_core.runs.record import read_run
from moe_core.words import number

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\u202ex",
    "\x00\x1b",
    "url(#gradient_0)",
]
EVALUATION = evaluation_record(
    unseen=SplitFigures(3.5, 33.1, 1.75, {"<b>": 3.5}),
    validation=SplitFigures(2.5, 12.2, 1.25, {"<b>": None}),
    baselines=GuessingFigures(uniform_nats=5.7, unigram_nats=4.75),
)


class Page(HTMLParser):
    """What a browser sees: elements, attributes, the text of scripts, and whether every element is closed."""

    void = frozenset({"meta", "br", "img", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data


def card(config: Config, **changes: Any) -> ModelCard:
    fields: dict[str, Any] = {
        "run": "<b>run</b>", "config": config, "step": 40, "total_parameters": 1234567, "active_parameters": 345678,
        "flops_per_token": 2_000_000, "domains": ["<b>", "code"], "evaluation": EVALUATION,
        "routing_of": "500 tokens of <i>text</i>", "made": "2026-01-01 00:00",
    }  # fmt: skip
    return ModelCard(**{**fields, **changes})


@pytest.fixture(scope="module")
def trace() -> RoutingTrace:
    rng = np.random.default_rng(0)
    L, T, E = 2, 1200, 4
    domain = np.repeat(np.arange(40) % 2, 30)
    logits = rng.normal(size=(L, T, E)) + rng.normal(size=(L, 2, E))[:, domain]
    return RoutingTrace.from_arrays(
        router_indices=np.argsort(-logits, axis=2)[..., :2], router_scores=np.full((L, T, 2), 0.5), num_experts=E,
        token_ids=np.arange(T) % len(HOSTILE), document_ids=np.repeat(np.arange(40), 30), domain_ids=domain,
        domains=["<b>", "code"], vocabulary=dict(enumerate(HOSTILE)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def sections(trace: RoutingTrace) -> list[Section]:
    return sections_of_trace(trace)


@pytest.fixture(scope="module")
def text(sections: list[Section], tiny_config: Config) -> str:
    return report_page(card(tiny_config), sections)


def test_every_picture_verdict_and_question_is_there(text: str, sections: list[Section]) -> None:
    page = Page(text)
    assert page.open == [], "every element is closed"
    tags = Counter(tag for tag, _ in page.elements)
    figures = [figure for section in sections for figure in section.figures]
    assert tags["figure"] == len(figures) > 10
    assert tags["svg"] == sum("svg" in figure.formats for figure in figures)
    shown = text.replace("\u00a0", " ")
    for figure in figures:
        for words in (figure.title, figure.question, figure.verdict):
            assert escape(words) in shown
    for section in sections:
        assert shown.count(f">{escape(section.question)}<") >= 2, "in the contents and above its pictures"
    assert "Formula:" in text


def test_it_asks_for_nothing_and_its_own_scripts_alone_may_run(text: str) -> None:
    page = Page(text)
    (policy,) = [a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a]
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "http" not in policy
    hashes = re.findall(r"'sha256-([^']+)'", policy)
    assert hashes == [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in page.scripts]
    assert "unsafe-inline" not in policy.split("style-src")[0]
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "action"):
                assert str(value).startswith(("#", "data:text/csv;base64,")), (tag, name, value)


def test_hostile_tokens_domains_and_names_stay_text(text: str) -> None:
    page = Page(text)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"img", "i", "iframe", "object", "link", "b"}
    assert "alert(1)" not in "".join(page.scripts)
    assert "\x00" not in text
    assert "\u202e" not in text
    assert "&lt;b&gt;run&lt;/b&gt;" in text
    assert "⟨202E⟩x" in text
    assert "url(#gradient_0)" in text, "a token is not rewritten like a reference to a gradient"


def test_ids_of_pictures_do_not_meet(text: str) -> None:
    attributes = [(name, str(value)) for _, all_of_it in Page(text).elements for name, value in all_of_it.items()]
    ids = [value for name, value in attributes if name == "id"]
    assert len(ids) == len(set(ids))
    references = [value[5:-1] for _, value in attributes if value.startswith("url(#")]
    assert references
    assert set(references) <= set(ids)


def test_the_card_says_what_the_model_is(text: str, tiny_config: Config) -> None:
    shown = text.replace("\u00a0", " ")
    for words in (
        "2 MoE layers of 4 experts, 2 for each token",
        "1,234,567 in all, 345,678 active for each token",
        "40 steps of 4 sequences of 32 tokens, 5.12k tokens in all",
        "0 (data), 0 (training)",
        "3.500 nats a token on unseen text; guessing by token frequency 4.750, uniformly 5.700 (step 40)",
        "16 synthetic documents a domain; domains: &lt;b&gt;, code",
        "500 tokens of &lt;i&gt;text&lt;/i&gt;",
    ):
        assert words in shown
    assert '<td class="text">unseen, guessing by token frequency</td><td>4.75</td>' in shown
    unscored = report_page(card(tiny_config, evaluation=None), [])
    assert "not scored yet" in unscored
    assert "guessing by token frequency" not in unscored
    broken = replace(EVALUATION, unseen=replace(EVALUATION.unseen, nats_per_token=None))
    assert "the model is broken" in report_page(card(tiny_config, evaluation=broken), [])


def test_each_layer_stands_in_one_row_with_its_chance(text: str, sections: list[Section]) -> None:
    (nmi,) = [figure for section in sections for figure in section.figures if figure.name == "domain_nmi"]
    row = nmi.frame.iloc[1]
    assert f"{number(row['estimate'])} ({number(row['nmi'])} / {number(row['null_p99'])})" in text


def test_plotly_is_there_once_or_not_at_all(trace: RoutingTrace, tiny_config: Config, sections: list[Section]) -> None:
    figures = [figure for section in sections for figure in section.figures]
    sankey = next(figure for figure in figures if figure.name == "flow_sankey")
    load = load_map_figure(metrics.expert_load(trace), metrics.load_balance(trace))
    without = report_page(card(tiny_config), [Section("Even?", [load], ())])
    assert len(without) < 200_000
    assert "script-src 'none'" in html.unescape(without)
    second = flow_sankey_figure(sankey.frame, next(f for f in figures if f.name == "flow").frame)
    twice = Page(report_page(card(tiny_config), [Section("Ways?", [sankey, second], ())]))
    assert len(twice.scripts) == 2, "the library, and the calls"
    assert twice.scripts[1].count("Plotly.newPlot(") == 2


def test_long_tables_are_cut_and_csv_is_whole_unless_huge(tiny_config: Config) -> None:
    def page(rows: int) -> str:
        frame = pd.DataFrame({"name": ["=x" * 10] * rows, "value": np.linspace(0, 1, rows)})
        chart = alt.Chart(frame.head(3)).mark_bar().encode(x="value:Q", y="name:N")
        figure = Figure("numbers", "Numbers", "How many?", "Some.", chart, frame)
        return report_page(card(tiny_config, evaluation=None), [Section("How many?", [figure], ())])

    text = page(3000)
    assert text.count("<tr>") < MAX_TABLE_ROWS + 30
    assert f"Numbers (3,000 rows, the first {MAX_TABLE_ROWS} of them here)" in text
    (link,) = re.findall(r'href="data:text/csv;base64,([^"]+)"', text)
    lines = base64.b64decode(link).decode().splitlines()
    assert len(lines) == 3001
    assert lines[1].startswith("'=x"), "no formula in a spreadsheet"
    assert "data:text/csv" not in page(MAX_CSV_BYTES // 20)


def test_a_picture_takes_the_pages_ink_and_speaks() -> None:
    frame = pd.DataFrame({"x": [1.0, 2.0], "sentence": ["One <b>is</b> 1.", "Two is 2."]})
    chart = alt.Chart(frame).mark_point().encode(x="x:Q", tooltip="sentence:N")
    svg = inline_svg(chart, "f7", "A picture of <things>")
    root = ElementTree.fromstring(svg)
    assert root.attrib["aria-label"] == "A picture of <things>"
    assert "viewBox" in root.attrib
    assert "width" not in root.attrib
    titles = [title.text for title in root.iter("{http://www.w3.org/2000/svg}title")]
    assert titles == ["One <b>is</b> 1.", "Two is 2."]
    assert "currentColor" in svg
    assert "#000" not in svg
    assert "ns0:" not in svg
    plain = inline_svg(alt.Chart(frame).mark_point().encode(x="x:Q"), "f8", "No tooltips")
    assert "<title>" not in plain


def test_every_section_is_explained_in_the_glossarys_words(trained_root: Path) -> None:
    run = RunFolder("tiny", trained_root)
    for section in sections_of_run(read_run(run)):
        assert set(section.terms) <= set(GLOSSARY), section.question
    assert set(_causes(read_run(run).findings).terms) <= set(GLOSSARY), "also without anything found by `ablate`"


def test_what_a_template_shows_is_escaped_unless_code_made_it() -> None:
    colours = {"light_page": "<b>tokens</b>", "light_text": Markup("<i>"), "dark_page": "\x1b", "dark_text": "{{ 1 }}"}
    shown = render("page.css.j2", **colours)
    assert "--page: &lt;b&gt;tokens&lt;/b&gt;" in shown
    assert "--ink: <i>" in shown
    assert "--page: ⟨1B⟩" in shown
    assert "--ink: {{ 1 }}" in shown


def test_cells_of_a_table() -> None:
    assert [cell(x, 3) for x in (0.12345, 12345.678, 1e-9, None, float("nan"), 7, True, "<b>")] == [
        "0.123", "1.235e+04", "1e-09", "", "", "7", "True", "<b>",
    ]  # fmt: skip
