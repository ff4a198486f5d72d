"""The figures of a really trained run, and its report."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_core.data.splits import HELD_OUT_SPLITS, SCORED_TOKENS_PER_DOMAIN
from moe_core.data.tokens import TokenDataset
from moe_core.errors import RunError
from moe_core.evaluation import evaluate
from moe_core.evaluation.evaluate import evaluate_run
from moe_core.evaluation.loss import evaluate_loss
from moe_core.reports.run_report import loss_verdict, report_text, write_report
from moe_core.routing import baselines, metrics
from moe_core.runs.checkpoint import LoadedRun, load_run
from moe_core.runs.evaluation import Evaluation, evaluation_from_json
from moe_core.runs.folder import RunFolder
from moe_core.training.probe import probe_routing


@pytest.fixture(scope="module")
def loaded(trained_root: Path) -> LoadedRun:
    return load_run("tiny", trained_root)


@pytest.fixture(scope="module")
def evaluation(loaded: LoadedRun) -> Evaluation:
    return evaluate_run(loaded)


@pytest.fixture
def copied(trained_root: Path, tmp_path: Path) -> RunFolder:
    shutil.copytree(trained_root / "tiny", tmp_path / "tiny")
    return RunFolder("tiny", tmp_path)


def test_the_result_is_plain_json_that_reads_back_as_it_was(evaluation: Evaluation) -> None:
    tree = evaluation.to_json()
    content = json.dumps(tree, allow_nan=False).encode()
    assert json.loads(content) == tree
    assert evaluation_from_json(content, "evaluation.json") == evaluation
    assert [*tree] == [
        "run", "step", "windows", "validation", "unseen", "baselines", "parameters", "flops_per_token", "routing",
        "verdicts",
    ]  # fmt: skip
    for split in ("validation", "unseen"):
        assert [*tree[split]] == ["nats_per_token", "perplexity", "bits_per_byte", "by_domain"]
        assert {*tree[split]["by_domain"]} == {"finance", "legal", "code", "general"}
    assert [*tree["baselines"]] == ["uniform_nats", "unigram_nats"]
    assert [*tree["parameters"]] == ["total", "active"]
    for row in tree["routing"]:
        assert [*row] == [
            "layer", "load_imbalance", "dead_experts", "router_entropy", "experts_per_token", "dropped_fraction",
            "domain_nmi", "domain_nmi_null_p99", "p_value", "load_low", "load_high", "surely_dead", "sources",
            "effective_tokens",
        ]  # fmt: skip
    assert [row.layer for row in evaluation.routing] == [0, 1]
    assert (evaluation.run, evaluation.step) == ("tiny", 40)


def test_an_evaluation_of_before_the_load_had_an_interval_is_read(evaluation: Evaluation) -> None:
    older = evaluation.to_json()
    for row in older["routing"]:
        for key in ("load_low", "load_high", "surely_dead", "sources", "effective_tokens"):
            del row[key]
    read = evaluation_from_json(json.dumps(older).encode(), "evaluation.json")
    assert [row.load_low for row in read.routing] == [None, None]
    assert [row.dead_experts for row in read.routing] == [row.dead_experts for row in evaluation.routing]


def test_an_evaluation_of_before_the_window_rule_had_a_name_is_read(evaluation: Evaluation) -> None:
    older = {key: value for key, value in evaluation.to_json().items() if key != "windows"}
    assert evaluation_from_json(json.dumps(older).encode(), "evaluation.json") == evaluation


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"step": "40"}, "step"),
        ({"more": 1}, "more"),
        ({"unseen": {"nats_per_token": 1.0}}, "unseen.perplexity"),
        ({"baselines": {"uniform_nats": float("nan"), "unigram_nats": 1.0}}, "baselines.uniform_nats"),
        ({"verdicts": None}, "verdicts"),
    ],
)
def test_a_damaged_evaluation_names_the_file_and_the_field(
    evaluation: Evaluation, change: dict[str, Any], field: str
) -> None:
    content = json.dumps(evaluation.to_json() | change).encode()
    with pytest.raises(RunError, match=rf"'evaluation\.json' is not an evaluation \({field}: .*--evaluate"):
        evaluation_from_json(content, "evaluation.json")
    for torn in (content[:-9], b"", b"\xff", b"[]"):
        with pytest.raises(RunError, match="not an evaluation"):
            evaluation_from_json(torn, "evaluation.json")


def test_losses_are_those_of_the_whole_held_out_splits(loaded: LoadedRun, evaluation: Evaluation) -> None:
    for split in HELD_OUT_SPLITS:
        documents = loaded.run.held_out(split)
        dataset = TokenDataset.build(documents, loaded.tokenizer, loaded.run.domains())
        assert len(dataset) < SCORED_TOKENS_PER_DOMAIN * 4  # so that all of it is scored
        report = evaluate_loss(loaded.model, dataset, seq_len=loaded.config.training.seq_len)
        figures = evaluation.split(split)
        assert figures.nats_per_token == pytest.approx(report.nats_per_token)
        assert figures.perplexity == pytest.approx(math.exp(report.nats_per_token))
        # Bits per byte from the other end: the text's own bytes, not what the tokenizer says about them.
        total_bytes = sum(len(document.text.encode()) for document in documents)
        assert figures.bits_per_byte == pytest.approx(report.nats_per_token * report.tokens / math.log(2) / total_bytes)


def test_baselines_and_size(loaded: LoadedRun, evaluation: Evaluation) -> None:
    vocabulary = loaded.tokenizer.vocab_size
    assert evaluation.baselines.uniform_nats == pytest.approx(math.log(vocabulary))
    counts = loaded.run.token_counts()
    ids = [i for document in loaded.run.held_out("unseen") for i in loaded.tokenizer.encode(document.text)]
    expected = -np.mean([math.log((counts[i] + 1) / (counts.sum() + vocabulary)) for i in ids])
    assert evaluation.baselines.unigram_nats == pytest.approx(expected)
    assert evaluation.parameters.total == sum(p.numel() for p in loaded.model.parameters())
    assert evaluation.parameters.active < evaluation.parameters.total
    assert evaluation.flops_per_token == loaded.model.flops_per_token(32)


def test_routing_figures_are_those_of_all_scored_tokens(loaded: LoadedRun, evaluation: Evaluation) -> None:
    documents = [*loaded.run.held_out("validation"), *loaded.run.held_out("unseen")]
    dataset = TokenDataset.build(documents, loaded.tokenizer, loaded.run.domains())
    trace = probe_routing(loaded.model, dataset, seq_len=32, vocabulary=loaded.tokenizer.vocabulary(), source="")
    balance, entropy, nmi = metrics.load_balance(trace), metrics.router_entropy(trace), baselines.domain_nmi(trace)
    for at, row in enumerate(evaluation.routing):
        for key in ("load_imbalance", "dead_experts", "dropped_fraction", "load_low", "load_high", "surely_dead"):
            assert getattr(row, key) == pytest.approx(balance[key][at])
        assert row.router_entropy == pytest.approx(entropy["router_entropy"][at])
        for key, column in (("domain_nmi", "nmi"), ("domain_nmi_null_p99", "null_p99"), ("p_value", "p_value")):
            assert getattr(row, key) == pytest.approx(nmi[column][at])


def test_large_splits_are_scored_in_part(loaded: LoadedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "SCORED_TOKENS_PER_DOMAIN", 200)
    calls: list[tuple[str, int, int]] = []
    evaluation = evaluate_run(loaded, progress=lambda *call: calls.append(call))
    scored = max(total for stage, _, total in calls if stage == "scoring")
    assert 2 * 4 * 150 < scored < 2 * 4 * 200  # two splits, four domains, end-of-text not scored
    assert len(evaluation.unseen.by_domain) == 4


def test_progress_counts_all_tokens_of_both_splits(loaded: LoadedRun) -> None:
    calls: list[tuple[str, int, int]] = []
    evaluate_run(loaded, progress=lambda *call: calls.append(call))
    scoring = [(done, total) for stage, done, total in calls if stage == "scoring"]
    assert [done for done, _ in scoring] == sorted(done for done, _ in scoring)
    assert scoring[-1][0] == scoring[-1][1]


def test_a_run_whose_held_out_text_is_gone_or_foreign_is_one_line(copied: RunFolder) -> None:
    validation, unseen = copied.held_out("validation"), copied.held_out("unseen")
    counts, domains = copied.token_counts(), copied.domains()
    root = copied.root
    copied.write_held_out(validation, unseen, counts, domains[:2])
    with pytest.raises(RunError, match="a document of domain 'code'"):
        evaluate_run(load_run("tiny", root))
    copied.write_held_out(validation, unseen, counts[:-1], domains)
    with pytest.raises(RunError, match=f"token counts of {len(counts) - 1} entries"):
        evaluate_run(load_run("tiny", root))
    copied.write_held_out(validation, [], counts, domains)
    with pytest.raises(RunError, match="kept no unseen text"):
        evaluate_run(load_run("tiny", root))
    (copied.path / "held_out.parquet").unlink()
    with pytest.raises(RunError, match=r"held_out\.parquet"):
        evaluate_run(load_run("tiny", root))


def test_the_report_is_written_into_the_run_and_says_it_in_words(copied: RunFolder, evaluation: Evaluation) -> None:
    path = write_report(copied, evaluation)
    assert path == copied.path / "report.md"
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# Run tiny\n")
    assert "2 MoE layers of 4 experts, 2 for each token" in text
    assert f"{evaluation.unseen.nats_per_token:.3f} nats a token on unseen text" in text
    assert evaluation.verdicts.routing in text
    assert evaluation.verdicts.domains in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len(tables) == 6 + 4 + 4  # header, rule and rows of three tables
    assert "| nan |" not in text
    assert "None" not in text


def changed(evaluation: Evaluation, nats: float | None) -> Evaluation:
    return replace(evaluation, unseen=replace(evaluation.unseen, nats_per_token=nats))


def test_the_verdict_tells_better_worse_and_broken_apart(evaluation: Evaluation) -> None:
    unigram = evaluation.baselines.unigram_nats
    assert f"1.50 below guessing by token frequency ({unigram:.3f})" in loss_verdict(changed(evaluation, unigram - 1.5))
    assert "Not yet better than guessing" in loss_verdict(changed(evaluation, unigram + 0.5))
    assert "not finite" in loss_verdict(changed(evaluation, None))


def test_what_cannot_be_measured_is_called_unknown(copied: RunFolder, evaluation: Evaluation) -> None:
    """One domain only: no NMI. And a domain's name cannot break the table."""
    routing = tuple(
        replace(row, domain_nmi=None, domain_nmi_null_p99=None, p_value=None, dropped_fraction=None)
        for row in evaluation.routing
    )
    unseen = replace(evaluation.unseen, by_domain={"a|b\n<img onerror=x>": 2.0})
    text = report_text(copied, replace(evaluation, routing=routing, unseen=unseen))
    assert "| 0 | unknown | unknown | unknown |" in text
    assert "a\\|b \\<img onerror=x\\> (nats)" in text
