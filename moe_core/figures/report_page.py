"""The report of a run: one HTML file with every picture, verdict and number, which needs neither network nor program.

Whatever comes from text or names (tokens, domains, runs) is escaped; a Content-Security-Policy allows the file's own
scripts by their hash and nothing from elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import pandas as pd

from moe_core.config import Config
from moe_core.data.splits import HeldOutSplit
from moe_core.data.windows import window_words
from moe_core.figures.export import csv_bytes, unbroken
from moe_core.figures.figure import Figure
from moe_core.figures.inline_svg import inline_svg
from moe_core.figures.palette import DARK_PAGE, DARK_TEXT, LIGHT_PAGE, LIGHT_TEXT
from moe_core.figures.plotly_export import PLOTLY_STYLE, plotly_bundle, plotly_call
from moe_core.figures.run_figures import Section
from moe_core.program import program
from moe_core.progress import Progress, silent
from moe_core.routing.measures.glossary import GLOSSARY
from moe_core.routing.measures.health import describe_model
from moe_core.routing.measures.registry import MEASURES
from moe_core.runs.evaluation import Evaluation
from moe_core.words import number, short_count

MAX_TABLE_ROWS = 100
"""Rows of a figure's numbers that are shown; the CSV beside them has all."""
MAX_CSV_BYTES = 400_000
_SPLITS: dict[HeldOutSplit, str] = {
    "validation": "validation (held-out documents of known kinds)",
    "unseen": "unseen (held-out kinds or sources)",
}
_MEASURES = {measure.bars.figure: measure for measure in MEASURES if measure.bars is not None}
_STYLE = """
:root { color-scheme: light dark; --page: %(light_page)s; --ink: %(light_text)s; --line: #d5dae1; --soft: #4b5663; }
@media (prefers-color-scheme: dark) {
  :root { --page: %(dark_page)s; --ink: %(dark_text)s; --line: #39424e; --soft: #a9b4c2; }
}
* { box-sizing: border-box; }
body { font: 15px/1.5 sans-serif; background: var(--page); color: var(--ink); margin: 0 auto; padding: 24px 20px 60px;
  max-width: 1400px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 20px; margin: 40px 0 8px; padding-top: 12px;
  border-top: 1px solid var(--line); } h3 { font-size: 16px; margin: 0 0 2px; }
p { margin: 4px 0 10px; max-width: 80ch; } a { color: inherit; }
.soft, figcaption .question { color: var(--soft); }
.verdict { font-weight: 600; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%%, 440px), 1fr)); gap: 28px 32px; }
figure { margin: 0; min-width: 0; break-inside: avoid; }
figure.wide { grid-column: 1 / -1; }
figure svg { display: block; max-width: 100%%; height: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; margin: 6px 0; }
th, td { text-align: right; padding: 3px 10px; border-bottom: 1px solid var(--line); white-space: pre; }
th.text, td.text, th:first-child, td:first-child { text-align: left; }
th { font-weight: 600; }
table.card th { text-align: left; } table.card td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
td.text { max-width: 60ch; overflow: hidden; text-overflow: ellipsis; }
details { margin: 4px 0; font-size: 13px; } summary { cursor: pointer; color: var(--soft); }
dt { font-weight: 600; margin-top: 6px; } dd { margin: 0; max-width: 90ch; } nav li { margin: 2px 0; }
@media print {
  :root { --page: #ffffff; --ink: #000000; --line: #bbbbbb; --soft: #333333; color-scheme: light; }
  body { max-width: none; padding: 0; font-size: 11pt; } details:not([open]), nav { display: none; }
  .pictures { display: block; } figure { margin-bottom: 18px; } h2 { break-after: avoid; }
}
"""


@dataclass(frozen=True)
class ModelCard:
    """Facts about the run that the report gives beside its figures."""

    run: str
    config: Config
    step: int
    """The step whose routing is shown."""
    total_parameters: int
    active_parameters: int
    flops_per_token: int
    """Forward pass, 2 per multiply-add."""
    domains: Sequence[str]
    evaluation: Evaluation | None
    """Figures of evaluation.evaluate_run; None if the run was never scored."""
    routing_of: str
    """The text on which the routing in the pictures was recorded."""
    made: str
    """When the report was made, for people."""


def report_page(card: ModelCard, sections: Sequence[Section], progress: Progress = silent) -> str:
    """The whole report as HTML. Raises MoescopeError when a picture cannot be drawn."""
    total, done, parts, scripts = sum(len(section.figures) for section in sections), 0, [], []
    for place, section in enumerate(sections):
        pictures = []
        for figure in section.figures:
            key = f"f{done}"
            pictures.append(_picture(figure, key))
            if not _is_altair(figure):
                scripts.append(plotly_call(figure.chart, key))
            done += 1
            progress("drawing", done, total)
        parts.append(
            f'<section id="s{place}"><h2>{_text(section.question)}</h2>{_how_to_read(section.terms)}'
            f'<div class="pictures">{"".join(pictures)}</div></section>'
        )
    scripts = [plotly_bundle(), "\n".join(scripts)] if scripts else []
    contents = "".join(
        f'<li><a href="#s{place}">{_text(section.question)}</a> <span class="soft">{_text(_first_verdict(section))}'
        f"</span></li>"
        for place, section in enumerate(sections)
    )
    return "\n".join(
        [
            _head(f"Moescope: run {card.run}", scripts),
            f"<body>\n<header>{_card(card)}</header>",
            f"<nav><h2>What is in this report</h2><ol>{contents}</ol></nav>",
            _losses(card.evaluation, card.config.training.seq_len),
            _layers(sections),
            *parts,
            f"<footer><h2>How this was made</h2><p>{_text(_origin(card))}</p></footer>",
            *(f"<script>{script}</script>" for script in scripts),
            "</body>\n</html>\n",
        ]
    )


def _head(title: str, scripts: Sequence[str]) -> str:
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes) or "'none'"
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    style = _STYLE % {
        "light_page": LIGHT_PAGE, "light_text": LIGHT_TEXT, "dark_page": DARK_PAGE, "dark_text": DARK_TEXT,
    }  # fmt: skip
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="UTF-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_text(title)}</title>\n<style>{style}{PLOTLY_STYLE}</style>\n</head>",
        ]
    )


def _card(card: ModelCard) -> str:
    model, data, training = card.config.model, card.config.data, card.config.training
    sentence = describe_model(
        layers=len(model.moe_layers), experts=model.num_experts, top_k=model.top_k, varying=model.varying_experts,
        total_parameters=card.total_parameters, active_parameters=card.active_parameters,
    )  # fmt: skip
    tokens = card.step * training.batch_size * training.seq_len
    documents = f"{data.documents:,} synthetic documents a domain" if data.path is None else f"texts of {data.path}"
    rows = {
        "Model": sentence,
        "Shape": f"{model.num_layers} layers, width {model.dim}, {model.num_heads} heads, expert width "
        f"{model.expert_hidden_dim}, vocabulary {model.vocab_size:,}",
        "Parameters": f"{card.total_parameters:,} in all, {card.active_parameters:,} active for each token",
        "Cost": f"{short_count(card.flops_per_token)} floating-point operations a token (forward)",
        "Data": f"{documents}; domains: {', '.join(card.domains)}",
        "Trained": f"{card.step:,} steps of {training.batch_size} sequences of {training.seq_len} tokens, "
        f"{short_count(tokens)} tokens in all, optimizer {training.optimizer}",
        "Seeds": f"{data.seed} (data), {training.seed} (training)",
        "Loss": _loss_sentence(card.evaluation),
        "Routing shown": card.routing_of,
    }
    lines = "".join(f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in rows.items())
    tree = _text(json.dumps(card.config.model_dump(mode="json"), indent=2))
    return (
        f'<h1>Run {_text(card.run)}</h1><p class="soft">Report of {_text(card.made)}</p>'
        f'<div class="scroll"><table class="card">{lines}</table></div>'
        f"<details><summary>The whole configuration</summary><pre>{tree}</pre></details>"
    )


def _loss_sentence(evaluation: Evaluation | None) -> str:
    if evaluation is None:
        return "not scored yet"
    nats, unigram = evaluation.unseen.nats_per_token, evaluation.baselines.unigram_nats
    if nats is None:
        return "not finite on unseen text: the model is broken"
    return (
        f"{nats:.3f} nats a token on unseen text; guessing by token frequency {unigram:.3f}, uniformly "
        f"{evaluation.baselines.uniform_nats:.3f} (step {evaluation.step:,})"
    )


def _losses(evaluation: Evaluation | None, window: int) -> str:
    """Loss by split and domain, with the baselines; nothing if the run was never scored."""
    if evaluation is None:
        return ""
    domains = sorted({domain for split in _SPLITS for domain in evaluation.split(split).by_domain})
    rows = [
        {
            "split": words,
            "nats per token": evaluation.split(split).nats_per_token,
            "perplexity": evaluation.split(split).perplexity,
            "bits per byte": evaluation.split(split).bits_per_byte,
            **{f"{domain} (nats)": evaluation.split(split).by_domain.get(domain) for domain in domains},
        }
        for split, words in _SPLITS.items()
    ]
    baselines = evaluation.baselines
    rows += [
        {"split": "unseen, guessing by token frequency", "nats per token": baselines.unigram_nats},
        {"split": "guessing uniformly", "nats per token": baselines.uniform_nats},
    ]
    return (
        f"<section><h2>How well does it predict text it has not seen?</h2>"
        f'<p class="verdict">{_text(_loss_sentence(evaluation))}</p>{_table(pd.DataFrame(rows), digits=3)}'
        f'<p class="soft">{_text(window_words(window, evaluation.windows))}</p></section>'
    )


def _layers(sections: Sequence[Section]) -> str:
    """Every headline measure by layer with what chance reaches: the tests' own tables, side by side."""
    columns: dict[str, pd.Series[Any]] = {}
    for figure in (figure for section in sections for figure in section.figures):
        if figure.name in _MEASURES:
            measure = _MEASURES[figure.name]
            frame = figure.frame.set_index("layer")
            both = zip(frame[measure.value], frame["null_p99"], strict=True)
            cells = [f"{number(value)} ({number(null)})" for value, null in both]
            columns[measure.title] = pd.Series(cells, index=frame.index)
    if not columns:
        return ""
    table = pd.DataFrame(columns).rename_axis("layer").reset_index().fillna("")
    return (
        '<section><h2>Each layer in numbers</h2><p class="soft">In brackets what chance stays under in 99 of 100 '
        f"cases; a number that is not above it is not distinguishable from chance.</p>{_table(table)}</section>"
    )


def _picture(figure: Figure, key: str) -> str:
    wide = not _is_altair(figure)
    drawn = f'<div id="{key}"></div>' if wide else inline_svg(figure.chart, key, f"{figure.title}. {figure.verdict}")
    return (
        f"<figure{' class=wide' if wide else ''}><figcaption><h3>{_text(figure.title)}</h3>"
        f'<p class="question">{_text(figure.question)}</p><p class="verdict">{_text(figure.verdict)}</p></figcaption>'
        f"{drawn}{_numbers(figure)}</figure>"
    )


def _numbers(figure: Figure) -> str:
    frame = figure.frame
    shown = "" if len(frame) <= MAX_TABLE_ROWS else f", the first {MAX_TABLE_ROWS} of them here"
    content = csv_bytes(frame)
    link = f"<p>As CSV: <code>{program()} plots --format csv</code> writes {_text(figure.name)}.csv.</p>"
    if len(content) <= MAX_CSV_BYTES:
        data = base64.b64encode(content).decode()
        link = f'<p><a download="{_text(figure.name)}.csv" href="data:text/csv;base64,{data}">Save as CSV</a></p>'
    return (
        f"<details><summary>Numbers ({len(frame):,} rows{shown})</summary>{link}"
        f"{_table(frame.head(MAX_TABLE_ROWS))}</details>"
    )


def _table(frame: pd.DataFrame, digits: int = 4) -> str:
    head = "".join(f"<th{_kind(frame[name])}>{_text(str(name).replace('_', ' '))}</th>" for name in frame.columns)
    body = "".join(
        f"<tr>{''.join(_cell(value, digits) for value in row)}</tr>" for row in frame.itertuples(index=False)
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _kind(column: pd.Series[Any]) -> str:
    return "" if pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column) else " class=text"


def _cell(value: Any, digits: int) -> str:
    if isinstance(value, str):
        return f'<td class="text">{_text(value)}</td>'
    if value is None or value != value:
        return "<td></td>"
    if isinstance(value, float):
        return f"<td>{value:#.{digits}g}</td>" if 1e-4 <= abs(value) < 10 ** (digits - 1) else f"<td>{value:,.4g}</td>"
    return f"<td>{_text(str(value))}</td>"


def _how_to_read(terms: Sequence[str]) -> str:
    entries = []
    for name in terms:
        term = GLOSSARY[name]
        notes = [
            term.one_line,
            f"Formula: {term.formula}." if term.formula else "",
            f"Compare with: {term.chance}." if term.chance else "",
            f"Source: {term.source}." if term.source else "",
        ]
        entries.append(f"<dt>{_text(term.name)}</dt><dd>{_text(' '.join(note for note in notes if note))}</dd>")
    return f"<details><summary>How to read this</summary><dl>{''.join(entries)}</dl></details>"


def _first_verdict(section: Section) -> str:
    return section.figures[0].verdict


def _origin(card: ModelCard) -> str:
    return (
        f"Made by Moescope with `{program()} report --run {card.run}`. Pictures are SVG: point at a cell or bar to "
        "read it. Chance is measured, not assumed: each test holds the routing against the same routing shuffled, or "
        "drawn anew with the same load, and its p-values are corrected for the number of layers or cells; 95 % "
        "intervals draw whole sources of text anew."
    )


def _is_altair(figure: Figure) -> bool:
    return isinstance(figure.chart, alt.TopLevelMixin)


def _text(value: str) -> str:
    """Escaped, with characters that no document may hold (or that turn the direction of writing) made visible."""
    shown = "".join(c if c.isprintable() or c in "\n\t" else f"⟨{ord(c):X}⟩" for c in value)
    return html.escape(unbroken(shown))
