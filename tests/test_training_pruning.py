"""Experts that training takes away: for good, the same after a resume, and cut exactly in the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_support import begin_trainer, make_config, saved_and_restored, write_corpus

from moe_core.errors import UsageError
from moe_core.exchange.pruned_run import prune_model
from moe_core.exchange.targets import target_family
from moe_core.runs.checkpoint import load_run
from moe_core.runs.folder import RunFolder
from moe_core.training.pruning_schedule import removed_by

SCHEDULE: dict[str, Any] = {
    "model__num_experts": 6, "model__removed_experts": 3, "training__pruning_steps": [4, 8], "training__steps": 14,
}  # fmt: skip


def events(run: RunFolder) -> list[str]:
    lines = run.metric_log().frame("event").to_dict("records")
    return [str(line["message"]) for line in lines if "REAP" in str(line["message"])]


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_a_run_goes_on_with_fewer_and_resumes_exactly(kind: str, tmp_path: Path) -> None:
    config = make_config(write_corpus(tmp_path / "corpus.jsonl"), **SCHEDULE, model__router={"kind": kind})
    assert [removed_by(config, step) for step in (3, 4, 7, 8, 20)] == [0, 1, 1, 3, 3]
    whole = begin_trainer(RunFolder("whole", tmp_path / "runs"), config)
    parts = begin_trainer(RunFolder("parts", tmp_path / "runs"), config)
    for step in range(14):
        whole.step()
        if step in (4, 6, 8, 9):  # right before experts go, and between
            parts = saved_and_restored(parts)
        report = parts.step()
        assert torch.isfinite(report.losses.total)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(parts.model.state_dict()[name], tensor), name
    data = whole.data
    whole.run.write_held_out(data.validation, data.unseen, data.token_counts, data.domains)
    whole.evaluate(None)
    whole.save()
    assert events(whole.run) == events(parts.run)
    assert len(events(whole.run)) == 2
    loaded = load_run("whole", tmp_path / "runs")
    kept = {}
    for layer, router in zip(config.model.moe_layers, loaded.model.routers, strict=True):
        assert router.removed is not None
        kept[layer] = [expert for expert, is_gone in enumerate(router.removed.tolist()) if not is_gone]
        assert len(kept[layer]) == 3
    probe = whole.run.probe(14)
    for layer, indices_TK in zip(probe.layers, probe.router_indices, strict=True):
        assert set(indices_TK.ravel().tolist()) <= set(kept[layer])
    with pytest.raises(UsageError, match="prune --keep 3"):
        target_family(loaded.config.model)
    cut = prune_model(loaded, kept)
    assert cut.difference < 1e-4
    assert (cut.config.model.num_experts, cut.config.model.removed_experts) == (3, 0)
    target_family(cut.config.model)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"training__pruning_steps": []}, "both or neither"),
        ({"training__pruning_steps": [9, 3]}, "ascending"),
        ({"model__removed_experts": 5}, "leaves too few"),
        ({"model__router": {"kind": "top_p"}}, "softmax or sigmoid"),
        ({"model__router": {"expert_dropout": 0.1}}, "expert_dropout"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        make_config(tmp_path / "none.jsonl", **(SCHEDULE | changes))
    steps = SCHEDULE | {"training__pruning_steps": "4, 8"}  # as on a command line
    assert make_config(tmp_path / "none.jsonl", **steps).training.pruning_steps == (4, 8)
    plain = make_config(tmp_path / "none.jsonl").model_dump()
    assert "removed_experts" not in plain["model"]
    assert "pruning_steps" not in plain["training"]
