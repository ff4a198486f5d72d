"""report.md of a run: the figures of evaluate.py as a page that reads without the program."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moe_core.config import Config
from moe_core.config.router import SIGHT_WARNING
from moe_core.data.splits import HeldOutSplit
from moe_core.data.windows import window_words
from moe_core.evaluation.markdown import escape, table
from moe_core.inference.held_out import SCORED_TOKENS_PER_DOMAIN
from moe_core.routing.measures.health import describe_model
from moe_core.runs.evaluation import Evaluation, LayerRouting
from moe_core.runs.folder import RunFolder
from moe_core.words import percent, short_count

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
    return "\n".join(
        [
            f"# Run {run.name}",
            "",
            f"{model} Trained for {evaluation.step:,} steps of {config.training.batch_size} sequences of "
            f"{config.training.seq_len} tokens on {text}.",
            "",
            "## How well does it predict text it has not seen?",
            "",
            " ".join([loss_verdict(evaluation), *([] if config.model.can_write else [SIGHT_WARNING])]),
            "",
            *_loss_table(evaluation),
            "",
            "Nats per token depend on the vocabulary; bits per byte do not, compare runs by these. "
            f"{windows_read(config, evaluation)} At most {SCORED_TOKENS_PER_DOMAIN:,} tokens of a domain and split are "
            "scored.",
            "",
            "## Is its routing healthy?",
            "",
            evaluation.verdicts.routing,
            "",
            *_routing_table(evaluation.routing),
            "",
            "Load: the busiest expert's load over the mean, 1 is even. Entropy: 1 means the router prefers no expert. "
            "Dropped: slots without an expert. Held-out documents of both splits.",
            "",
            "## Do its experts know a token's domain?",
            "",
            evaluation.verdicts.domains,
            "",
            *_domain_table(evaluation.routing),
            "",
            "NMI: the part of a token's domain that one choice of expert tells, 0 to 1. It is never 0 on finite text, "
            "so it stands beside the 99th percentile of what shuffling the domain labels over documents gives.",
            "",
            f"Forward cost: {short_count(evaluation.flops_per_token)} floating-point operations a token. "
            f"Made by `python main.py --evaluate --run {run.name}`.",
            "",
        ]
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
    figures = f"{nats:.3f} nats a token on unseen text ({_cell(unseen.bits_per_byte, 3)} bits a byte)"
    if gain <= 0:
        return f"Not yet better than guessing by token frequency ({unigram:.3f}): {figures}."
    return f"{figures}: {gain:.2f} below guessing by token frequency ({unigram:.3f})."


def _loss_table(evaluation: Evaluation) -> list[str]:
    domains = sorted({domain for split in SPLIT_WORDS for domain in evaluation.split(split).by_domain})
    rows = [
        [
            words,
            _cell(evaluation.split(split).nats_per_token, 3),
            _cell(evaluation.split(split).perplexity, 1),
            _cell(evaluation.split(split).bits_per_byte, 3),
            *(_cell(evaluation.split(split).by_domain.get(domain), 3) for domain in domains),
        ]
        for split, words in SPLIT_WORDS.items()
    ]
    baselines = evaluation.baselines
    blank = ["", "", *("" for _ in domains)]
    rows.append(["unseen, guessing by token frequency", _cell(baselines.unigram_nats, 3), *blank])
    rows.append(["guessing uniformly", _cell(baselines.uniform_nats, 3), *blank])
    names = (f"{escape(domain)} (nats)" for domain in domains)
    return table(["split", "nats per token", "perplexity", "bits per byte", *names], rows)


def _routing_table(routing: Sequence[LayerRouting]) -> list[str]:
    return table(
        ["layer", "load (max / mean)", "dead experts", "router entropy", "slots dropped"],
        [
            [
                str(row.layer),
                _cell(row.load_imbalance, 2),
                str(row.dead_experts),
                _cell(row.router_entropy, 2),
                percent(row.dropped_fraction) if row.dropped_fraction is not None else "–",
            ]
            for row in routing
        ],
    )


def _domain_table(routing: Sequence[LayerRouting]) -> list[str]:
    return table(
        ["layer", "domain NMI", "99 % of shuffles below", "p"],
        [
            [
                str(row.layer),
                _cell(row.domain_nmi, 4),
                _cell(row.domain_nmi_null_p99, 4),
                _cell(row.p_value, 3),
            ]
            for row in routing
        ],
    )


def _cell(value: float | None, digits: int) -> str:
    return "unknown" if value is None else f"{value:,.{digits}f}"
