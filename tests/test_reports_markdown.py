"""Markdown from templates: foreign text stays text, and a template that lacks a value says so."""

from __future__ import annotations

import pytest
from evaluation_support import evaluation_record
from jinja2 import UndefinedError

from moe_core.config import Config
from moe_core.reports.markdown import escape, fenced, figure, render, table


def test_a_sample_cannot_leave_its_block() -> None:
    assert fenced("a\n````\nb") == "`````text\na\n````\nb\n`````"
    assert fenced("plain").startswith("```text\n")


def test_a_name_stays_one_cell() -> None:
    assert table(["a", "b"], [[escape("x|y\n<b>"), "1"]]) == "| a | b |\n| --- | ---: |\n| x\\|y \\<b\\> | 1 |"


def test_figures_have_their_decimals_or_are_unknown() -> None:
    assert [figure(x, 2) for x in (0.125, 1234.5, None)] == ["0.13", "1,234.50", "unknown"]


def test_a_template_reads_no_template_out_of_its_values() -> None:
    report = {
        "run": "{{ 1 + 1 }}", "evaluation": evaluation_record(), "model": "{% raw %}", "training": Config().training,
        "text": "<b>tokens</b>", "loss_verdict": "", "loss_table": "", "windows": "", "most_tokens": 10_000,
        "lost": None,
    }  # fmt: skip
    text = render("run.md.j2", **report)
    assert text.startswith("# Run {{ 1 + 1 }}\n")
    assert "At most 10,000 tokens" in text
    del report["windows"]
    with pytest.raises(UndefinedError, match="windows"):
        render("run.md.j2", **report)
