"""report.md of a run: the figures of evaluate.py as a page that reads without the program."""

from __future__ import annotations

from pathlib import Path

from moe_core.config import Config
from moe_core.config.router import SIGHT_WARNING
from moe_core.data.splits import SCORED_TOKENS_PER_DOMAIN, HeldOutSplit
from moe_core.data.windows import window_words
from moe_core.reports.markdown import escape, figure, render, table
from moe_core.routing.measures.health import describe_model
from moe_core.runs.evaluation import Evaluation
from moe_core.runs.folder import RunFolder
from moe_core.runs.lost_steps import lost_steps

SPLIT_WORDS: dict[HeldOutSplit, str] = {
    "validation": "validation (held-out documents of known kinds)",
    "unseen": "unseen (held-out kinds or sources)",
}


def write_report(run: RunFolder, evaluation: Evaluation) -> Path:
    """Keep `evaluation` (of evaluate_run) in the run's folder as evaluation.json and report.md; returns the latter.

    Raises RunError when the disk refuses; an older report is then untouched.
    """
    run.write_evaluation(evaluation)
    return run.write_file("report.md", report_text(run, evaluation).encode("utf-8", errors="backslashreplace"))


def report_text(run: RunFolder, evaluation: Evaluation) -> str:
    """The report as Markdown."""
    config = run.config()
    model = describe_model(
        layers=len(config.model.moe_layers),
        experts=config.model.num_experts,
        top_k=config.model.top_k,
        varying=config.model.varying_experts,
        total_parameters=evaluation.parameters.total,
        active_parameters=evaluation.parameters.active,
    )
    text = f"`{config.data.path}`" if config.data.path else "synthetic documents of four domains"
    return render(
        "run.md.j2",
        run=run.name,
        evaluation=evaluation,
        model=model,
        training=config.training,
        text=text,
        lost=lost_steps(run.name, config, run.status()),
        loss_verdict=" ".join([loss_verdict(evaluation), *([] if config.model.can_write else [SIGHT_WARNING])]),
        loss_table=_loss_table(evaluation),
        windows=windows_read(config, evaluation),
        most_tokens=SCORED_TOKENS_PER_DOMAIN,
    )


def windows_read(config: Config, evaluation: Evaluation) -> str:
    """In which windows the text was read."""
    return window_words(config.training.seq_len, evaluation.windows)


def loss_verdict(evaluation: Evaluation) -> str:
    """One sentence: loss on the unseen split, and how far below guessing by token frequency that is."""
    unseen, unigram = evaluation.unseen, evaluation.baselines.unigram_nats
    nats = unseen.nats_per_token
    if nats is None:
        return "The loss on unseen text is not finite: the model is broken."
    gain = unigram - nats
    figures = f"{nats:.3f} nats a token on unseen text ({figure(unseen.bits_per_byte, 3)} bits a byte)"
    if gain <= 0:
        return f"Not yet better than guessing by token frequency ({unigram:.3f}): {figures}."
    return f"{figures}: {gain:.2f} below guessing by token frequency ({unigram:.3f})."


def _loss_table(evaluation: Evaluation) -> str:
    domains = sorted({domain for split in SPLIT_WORDS for domain in evaluation.split(split).by_domain})
    rows = [
        [
            words,
            figure(evaluation.split(split).nats_per_token, 3),
            figure(evaluation.split(split).perplexity, 1),
            figure(evaluation.split(split).bits_per_byte, 3),
            *(figure(evaluation.split(split).by_domain.get(domain), 3) for domain in domains),
        ]
        for split, words in SPLIT_WORDS.items()
    ]
    baselines = evaluation.baselines
    blank = ["", "", *("" for _ in domains)]
    rows.append(["unseen, guessing by token frequency", figure(baselines.unigram_nats, 3), *blank])
    rows.append(["guessing uniformly", figure(baselines.uniform_nats, 3), *blank])
    names = (f"{escape(domain)} (nats)" for domain in domains)
    return table(["split", "nats per token", "perplexity", "bits per byte", *names], rows)
