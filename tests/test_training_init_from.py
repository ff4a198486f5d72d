"""A new run that starts from another one's weights and tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from training_support import make_config, tensor_hashes, timeless_metrics, write_corpus

from moe_core.config import Config
from moe_core.errors import RunError, UsageError
from moe_core.inference.scoring import as_dataset
from moe_core.routing import RoutingTrace, metrics
from moe_core.runs.checkpoint import load_run
from moe_core.runs.folder import RunFolder
from moe_core.training.loop import train
from moe_core.training.probe import probe_routing


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoints folder with the trained run "base", a sigmoid model, so that its bias must travel too."""
    root = tmp_path_factory.mktemp("checkpoints")
    config = make_config(write_corpus(root / "base.jsonl"), model__router={"kind": "sigmoid"}, training__seed=5)
    train(RunFolder("base", root), config)
    return root


@pytest.fixture
def tuned_config(origin: Path, tmp_path: Path) -> Config:
    """New text (the old without its first domain), the model of "base", other training options."""
    lines = (origin / "base.jsonl").read_text().splitlines()
    corpus = tmp_path / "new.jsonl"
    corpus.write_text("\n".join(line for line in lines if '"code"' not in line) + "\n")
    config = make_config(corpus, training__init_from="base", training__learning_rate=1e-3)
    return config.model_copy(update={"model": RunFolder("base", origin).config().model})


def test_the_probe_at_step_0_is_the_origin_and_the_end_is_not(origin: Path, tuned_config: Config) -> None:
    run = RunFolder("tuned", origin)
    train(run, tuned_config)
    base, tuned = load_run("base", origin), load_run("tuned", origin)
    assert tuned.tokenizer.vocabulary() == base.tokenizer.vocabulary()
    before, after = (RoutingTrace.load(run.probe_path(step)) for step in (0, 20))
    # What the origin's weights do with the new run's probe text is just what was kept at step 0.
    probe = as_dataset(base, run.held_out("validation")).select(tuned_config.training.probe_tokens, 0)
    again = probe_routing(base.model, probe, seq_len=16, vocabulary=base.tokenizer.vocabulary(), source="")
    assert again.domains == before.domains == ["law", "news"]
    np.testing.assert_array_equal(again.token_ids, before.token_ids)
    np.testing.assert_array_equal(again.router_indices, before.router_indices)
    assert (metrics.routing_diff(before, after)["flip_rate"] > 0).any()
    assert "starts from the weights and the tokenizer of run base, step 20" in str(run.metric_records("event")[0])
    records = [record for record in run.metric_records("evaluation") if record["split"] == "validation"]
    assert records[-1]["nats_per_token"] < records[0]["nats_per_token"]


def test_a_stopped_fine_tuning_resumes_to_the_bit_even_without_its_origin(
    origin: Path, tuned_config: Config, tmp_path: Path
) -> None:
    shutil.copytree(origin / "base", tmp_path / "base")
    whole, parted = RunFolder("whole", tmp_path), RunFolder("parted", tmp_path)
    train(whole, tuned_config)
    steps = iter(range(100))
    assert train(parted, tuned_config, stop=lambda: next(steps) >= 7).state == "stopped"
    shutil.rmtree(tmp_path / "base")
    train(parted, tuned_config, resume=True)
    assert tensor_hashes(parted) == tensor_hashes(whole)
    assert timeless_metrics(parted) == timeless_metrics(whole)
    bias = load_run("parted", tmp_path).model.state_dict()["layers.0.moe.router.expert_bias"]
    assert bias.abs().sum() > 0


def test_what_does_not_fit_is_refused_by_name(origin: Path, tuned_config: Config) -> None:
    run = RunFolder("unfit", origin)
    for update, message in (
        ({"top_k": 1}, r"model\.top_k = 1 does not fit the weights of run 'base', where it is 2"),
        ({"dim": 64}, r"model\.dim = 64 does not fit"),
        ({"router": tuned_config.model.router.model_copy(update={"kind": "softmax"})}, r"model\.router\.kind"),
    ):
        config = tuned_config.model_copy(update={"model": tuned_config.model.model_copy(update=update)})
        with pytest.raises(UsageError, match=message):
            train(run, config)
    router = tuned_config.model.router.model_copy(update={"bias_update_speed": 0.0})
    free = tuned_config.model.model_copy(update={"capacity_factor": 2.0, "router": router})
    config = tuned_config.model_copy(update={"model": free})
    train(run, config, stop=lambda: True)
    missing = config.model_copy(update={"training": config.training.model_copy(update={"init_from": "nobody"})})
    with pytest.raises(RunError, match="no run 'nobody'"):
        train(RunFolder("other", origin), missing)


def test_a_bias_that_stands_still_stays_as_it_was(origin: Path, tuned_config: Config) -> None:
    router = tuned_config.model.router.model_copy(update={"bias_update_speed": 0.0})
    model = tuned_config.model.model_copy(update={"router": router})
    train(RunFolder("still", origin), tuned_config.model_copy(update={"model": model}))
    name = "layers.1.moe.router.expert_bias"
    base, still = (load_run(run, origin).model.state_dict()[name] for run in ("base", "still"))
    assert torch.equal(base, still)
    assert base.abs().max() > 0
