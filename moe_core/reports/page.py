"""The report of a run: one HTML file with every picture, verdict and number, which needs neither network nor program.

Whatever comes from text or names (tokens, domains, runs) is escaped; a Content-Security-Policy allows the file's own
scripts by their hash and nothing from elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isnan
from typing import Any

import altair as alt
import pandas as pd
from markupsafe import Markup

from moe_core.config import Config
from moe_core.data.splits import HeldOutSplit
from moe_core.data.windows import window_words
from moe_core.figures.figure import Figure
from moe_core.figures.inline_svg import inline_svg
from moe_core.figures.palette import DARK_PAGE, DARK_TEXT, LIGHT_PAGE, LIGHT_TEXT
from moe_core.figures.picture_files import csv_bytes
from moe_core.figures.plotly_export import PLOTLY_STYLE, plotly_bundle, plotly_call
from moe_core.figures.run_figures import Section
from moe_core.progress import Progress, silent
from moe_core.reports.html import render
from moe_core.routing.measures.glossary import GLOSSARY
from moe_core.routing.measures.health import describe_model
from moe_core.routing.measures.registry import MEASURES
from moe_core.runs.evaluation import Evaluation
from moe_core.runs.lost_steps import LostSteps
from moe_core.runs.watched import WatchedModel
from moe_core.words import number, short_count

MAX_TABLE_ROWS = 100
"""Rows of a figure's numbers that are shown; the CSV beside them has all."""
MAX_CSV_BYTES = 400_000
_SPLITS: dict[HeldOutSplit, str] = {
    "validation": "validation (held-out documents of known kinds)",
    "unseen": "unseen (held-out kinds or sources)",
}
_MEASURES = {measure.bars.figure: measure for measure in MEASURES if measure.bars is not None}


@dataclass(frozen=True)
class ModelCard:
    """Facts about the run that the report gives beside its figures."""

    run: str
    config: Config | WatchedModel
    """Of a run that was watched, what is known of its model."""
    step: int
    """The step whose routing is shown."""
    total_parameters: int
    active_parameters: int
    flops_per_token: int
    """Forward pass, 2 per multiply-add; 0, as the two before, of a run that was watched."""
    domains: Sequence[str]
    evaluation: Evaluation | None
    """Figures of evaluation.evaluate_run; None if the run was never scored."""
    routing_of: str
    """The text on which the routing in the pictures was recorded."""
    made: str
    """When the report was made, for people."""
    notes: Sequence[str] = ()
    """What must be known about the run's files, a sentence each."""
    lost: LostSteps | None = None
    """What its time budget took from it."""


@dataclass(frozen=True)
class RoutingCard:
    """Facts about routing whose model is elsewhere: a trace, counts, what another library's model did."""

    name: str
    """Such as "trace text.parquet"."""
    facts: Mapping[str, str]
    """What is said of it, by heading."""
    made: str
    """When the report was made, for people."""


def report_page(card: ModelCard | RoutingCard, sections: Sequence[Section], progress: Progress = silent) -> str:
    """The whole report as HTML. Raises MoescopeError when a picture cannot be drawn."""
    total, calls = sum(len(section.figures) for section in sections), []
    shown: list[_ShownSection] = []
    for section in sections:
        pictures: list[_Picture] = []
        for figure in section.figures:
            done = sum(len(one.pictures) for one in shown) + len(pictures)
            key = f"f{done}"
            pictures.append(_picture(figure, key))
            if pictures[-1].drawn is None:
                calls.append(plotly_call(figure.chart, key))
            progress("drawing", done + 1, total)
        shown.append(_ShownSection(section.question, section.figures[0].verdict, _terms(section.terms), pictures))
    scripts = [plotly_bundle(), "\n".join(calls)] if calls else []
    about = _about_routing(card) if isinstance(card, RoutingCard) else _about_run(card)
    return render(
        "page.html.j2",
        made=card.made,
        policy=_policy(scripts),
        style=_style(),
        sections=shown,
        layers=_layers(sections),
        scripts=[Markup(script) for script in scripts],
        **about,
    )


def _about_run(card: ModelCard) -> dict[str, object]:
    """What the template says of a run, by its names for it."""
    evaluation, config = card.evaluation, card.config
    tree = asdict(config) if isinstance(config, WatchedModel) else config.model_dump(mode="json")
    windows = None
    if evaluation is not None and not isinstance(config, WatchedModel):
        windows = window_words(config.training.seq_len, evaluation.windows)
    return {
        "name": f"run {card.run}",
        "command": f"report --run {card.run}",
        "lost": card.lost,
        "facts": _facts(card),
        "tree": json.dumps(tree, indent=2),
        "loss": _loss_sentence(evaluation),
        "losses": None if evaluation is None else _losses(evaluation),
        "windows": windows,
    }


def _about_routing(card: RoutingCard) -> dict[str, object]:
    """The same of routing without its model."""
    return {
        "name": card.name,
        "lost": None,
        "command": "report --trace FILE",
        "facts": card.facts,
        "tree": None,
        "loss": None,
        "losses": None,
        "windows": None,
    }


@dataclass(frozen=True)
class _Picture:
    """One figure as the page shows it."""

    key: str
    figure: Figure
    drawn: Markup | None
    """The SVG; None for a picture that a script draws."""
    numbers: pd.DataFrame
    link: str | None
    """All numbers as a data: link; None where they are too many to carry along."""


@dataclass(frozen=True)
class _ShownSection:
    """One question with its pictures."""

    question: str
    verdict: str
    terms: Sequence[tuple[str, str]]
    """Words of the glossary and what they mean."""
    pictures: Sequence[_Picture]


def _policy(scripts: Sequence[str]) -> str:
    """The Content-Security-Policy: these scripts by their hash, and nothing from elsewhere."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes) or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def _style() -> Markup:
    colours = {"light_page": LIGHT_PAGE, "light_text": LIGHT_TEXT, "dark_page": DARK_PAGE, "dark_text": DARK_TEXT}
    return Markup(render("page.css.j2", **colours) + PLOTLY_STYLE)


def _facts(card: ModelCard) -> dict[str, str]:
    if isinstance(card.config, WatchedModel):
        return _facts_of_watched(card, card.config)
    model, data, training = card.config.model, card.config.data, card.config.training
    sentence = describe_model(
        layers=len(model.moe_layers), experts=model.num_experts, top_k=model.top_k, varying=model.varying_experts,
        total_parameters=card.total_parameters, active_parameters=card.active_parameters,
    )  # fmt: skip
    tokens = card.step * training.batch_size * training.seq_len
    documents = f"{data.documents:,} synthetic documents a domain" if data.path is None else f"texts of {data.path}"
    return {
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
        **({"Files": " ".join(card.notes)} if card.notes else {}),
    }


def _facts_of_watched(card: ModelCard, model: WatchedModel) -> dict[str, str]:
    ranks = f" in {model.ranks:,} processes" if model.ranks > 1 else ""
    return {
        "Model": f"{model.model}: "
        + describe_model(
            layers=len(model.layers), experts=model.num_experts, top_k=model.top_k, varying=model.varying_experts
        ),
        "Parameters": f"{model.parameters:,} in all, {model.trained_parameters:,} of them trained",
        "Trained": f"{card.step:,} steps{ranks} by another program, which was watched",
        "Routing shown": card.routing_of,
        **({"Files": " ".join(card.notes)} if card.notes else {}),
    }


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


def _losses(evaluation: Evaluation) -> pd.DataFrame:
    """Loss by split and domain, with the baselines."""
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
    return pd.DataFrame(rows)


def _layers(sections: Sequence[Section]) -> pd.DataFrame | None:
    """Every headline measure by layer, its estimate, then as counted with what chance reaches, side by side."""
    columns: dict[str, pd.Series[Any]] = {}
    for figure in (figure for section in sections for figure in section.figures):
        if figure.name in _MEASURES:
            measure = _MEASURES[figure.name]
            frame = figure.frame.set_index("layer")
            cells = [
                f"{number(best)} ({number(value)} / {'not tested' if isnan(null) else number(null)})"
                for best, value, null in zip(frame["estimate"], frame[measure.value], frame["null_p99"], strict=True)
            ]
            columns[measure.title] = pd.Series(cells, index=frame.index)
    if not columns:
        return None
    return pd.DataFrame(columns).rename_axis("layer").reset_index().fillna("")


def _picture(figure: Figure, key: str) -> _Picture:
    content = csv_bytes(figure.frame)
    link = f"data:text/csv;base64,{base64.b64encode(content).decode()}" if len(content) <= MAX_CSV_BYTES else None
    by_script = not isinstance(figure.chart, alt.TopLevelMixin)
    drawn = None if by_script else Markup(inline_svg(figure.chart, key, f"{figure.title}. {figure.verdict}"))
    return _Picture(key, figure, drawn, figure.frame.head(MAX_TABLE_ROWS), link)


def _terms(names: Sequence[str]) -> list[tuple[str, str]]:
    entries = []
    for name in names:
        term = GLOSSARY[name]
        notes = [
            term.one_line,
            f"Formula: {term.formula}." if term.formula else "",
            f"Compare with: {term.chance}." if term.chance else "",
            f"Source: {term.source}." if term.source else "",
        ]
        entries.append((term.name, " ".join(note for note in notes if note)))
    return entries
