"""The shipped run stays readable: an old checkpoint that a new version cannot load is a broken promise."""

from __future__ import annotations

import pytest

from moe_core.evaluation.evaluate import evaluate_run
from moe_core.figures.run_figures import sections_of_run
from moe_core.routing import RoutingTrace, metrics
from moe_core.routing.trace.independence import independence_note
from moe_core.runs import RunFolder, list_runs
from moe_core.runs.checkpoint import load_run
from moe_core.runs.evaluation import Evaluation
from moe_core.runs.places import SHIPPED
from moe_core.runs.record import read_run

MAX_BYTES = 10 * 2**20
# One worker scores the demo, once.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("demo")]


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return evaluate_run(load_run("demo", SHIPPED))


def test_it_is_small_enough_to_ship() -> None:
    size = sum(path.stat().st_size for path in (SHIPPED / "demo").rglob("*") if path.is_file())
    assert size <= MAX_BYTES


def test_it_is_listed_as_finished() -> None:
    (summary,) = [run for run in list_runs(SHIPPED) if run.name == "demo"]
    assert summary.error is None
    assert summary.state == "finished"
    assert summary.step == summary.steps > 0


def test_it_predicts_unseen_text_far_better_than_token_frequencies(evaluation: Evaluation) -> None:
    assert evaluation.baselines.unigram_nats - evaluation.unseen.nats_per_token >= 1.5
    assert set(evaluation.unseen.by_domain) == {"finance", "legal", "code", "general"}


def test_its_routing_is_healthy_and_knows_domains(evaluation: Evaluation) -> None:
    assert len(evaluation.routing) == 4
    for layer in evaluation.routing:
        assert layer.dead_experts == 0
        assert layer.load_imbalance <= 2.0
        assert layer.domain_nmi > layer.domain_nmi_null_p99


def test_its_last_evaluation_while_training_agrees(evaluation: Evaluation) -> None:
    """Weights rounded to bfloat16 and the whole split instead of a part of it: near, not equal."""
    records = [
        record for record in RunFolder("demo", SHIPPED).metric_records("evaluation") if record["split"] == "unseen"
    ]
    assert records[-1]["nats_per_token"] == pytest.approx(evaluation.unseen.nats_per_token, abs=0.3)


def test_its_probes_show_the_routing_at_every_evaluation() -> None:
    run = RunFolder("demo", SHIPPED)
    steps = run.probe_steps()
    assert steps[0] == 0
    assert len(steps) >= 5
    for step in (steps[0], steps[-1]):
        trace = RoutingTrace.load(run.probe_path(step))
        assert trace.domains == ["finance", "legal", "code", "general"]
        assert len(metrics.load_balance(trace)) == 4


def test_its_probe_has_known_sources_and_is_not_suspected_of_windows() -> None:
    """All 32 documents have 63 tokens; each is of a source of its own, as the split knows."""
    record = read_run(RunFolder("demo", SHIPPED))
    assert record.newest_probe is not None
    assert independence_note(record.newest_probe)
    verdicts = [figure.verdict for section in sections_of_run(record) for figure in section.figures]
    assert verdicts
    assert not any("each its own source" in verdict for verdict in verdicts)
