"""Watching someone else's loop: counts to the last token, in a run folder as others have, and never in its way."""

from __future__ import annotations

import copy
import logging
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from routers_support import model_with, tokens
from torch.utils._python_dispatch import TorchDispatchMode
from watch_support import train

from moe_core.errors import RunBusyError, TraceError, UsageError
from moe_core.routing import capture
from moe_core.routing.instruments.expert_counter import ExpertCounter
from moe_core.routing.measures.decisions import router_entropy
from moe_core.runs import RunFolder, list_runs
from moe_core.training import watch

STEPS = 7


@pytest.fixture(autouse=True)
def _reads_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine: these steps are so short that reading would be put off."""
    monkeypatch.setattr("moe_core.training.watching.READ_SHARE", np.inf)


def counted(run: RunFolder) -> np.ndarray:
    """[L,E] all that the run's lines say."""
    rows: dict[int, Any] = {}
    for line in run.metric_records("load"):
        rows[line["layer"]] = rows.get(line["layer"], 0) + np.array(line["tokens_per_expert"])
    return np.stack([rows[layer] for layer in sorted(rows)])


def chosen(model: Any, batches: list[torch.Tensor]) -> np.ndarray:
    """[L,E] what the routers choose for these, by capture."""
    with capture(model) as recorder, torch.no_grad():
        for batch in batches:
            model(batch)
    trace = recorder.trace(token_ids=torch.cat([batch.flatten() for batch in batches]))
    return np.stack(
        [np.bincount(row[row >= 0], minlength=trace.num_experts) for row in trace.router_indices.astype(int)]
    )


@pytest.mark.parametrize("variant", ["softmax", "sigmoid", "noisy", "top_p", "expert_choice"])
def test_every_choice_of_every_step_is_counted_once(variant: str, tmp_path: Path) -> None:
    model = model_with(variant).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)  # the same weights all through: capture can tell the sum
    torch.manual_seed(3)
    with watch(model, run="mine", every=3, root=tmp_path) as log:
        assert [log.steps_done for _ in train(model, optimizer, parts=2)] == list(range(1, STEPS + 1))
    run = RunFolder("mine", tmp_path)
    torch.manual_seed(3)  # a noisy router draws the same again
    expected = chosen(model, [tokens(2, 12, 100 * step + part) for step in range(STEPS) for part in range(2)])
    assert np.array_equal(counted(run), expected)
    assert sorted({line["step"] for line in run.metric_records("load")}) == [3, 6, 7]
    status = run.status()
    assert status is not None
    assert (status.state, status.step, status.tokens) == ("finished", STEPS, STEPS * 2 * 24)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_evaluation_and_other_optimizers_do_not_count(tmp_path: Path) -> None:
    model, other = model_with("softmax").train(), torch.nn.Linear(2, 2)
    first, second = torch.optim.SGD(list(model.parameters())[:3]), torch.optim.AdamW(list(model.parameters())[3:])
    elsewhere = torch.optim.SGD(other.parameters())
    with watch(model, run="mine", every=1, root=tmp_path) as log:
        for step in range(3):
            model(tokens(2, 12, step)).logits.float().logsumexp(dim=-1).mean().backward()
            for optimizer in (first, second, elsewhere):
                optimizer.step()
            with torch.no_grad():
                model(tokens(2, 12))  # a look in training mode
            model.eval()
            model(tokens(2, 12))
            model.train()
        assert log.steps_done == 3
    assert [line["tokens"] for line in RunFolder("mine", tmp_path).metric_records("load") if not line["layer"]] == [
        24
    ] * 3


def test_an_error_in_the_loop_takes_the_hooks_off_and_stays_the_loops_own(tmp_path: Path) -> None:
    model = model_with("softmax").train()
    optimizer = torch.optim.SGD(model.parameters())

    def fails() -> None:
        with watch(model, run="mine", every=1, root=tmp_path):
            for step in train(model, optimizer):
                1 // (2 - step)

    with pytest.raises(ZeroDivisionError):
        fails()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    (summary,) = list_runs(tmp_path)
    assert (summary.state, summary.step, summary.is_watched, summary.is_live) == ("failed", 3, True, False)
    with pytest.raises(KeyboardInterrupt), watch(model, run="other", root=tmp_path):
        raise KeyboardInterrupt
    assert {run.name: run.state for run in list_runs(tmp_path)} == {"mine": "failed", "other": "stopped"}


def test_a_folder_that_is_removed_ends_the_watching_and_not_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = model_with("softmax").train()
    optimizer = torch.optim.SGD(model.parameters())
    with caplog.at_level(logging.WARNING), watch(model, run="mine", every=1, root=tmp_path):
        for step in train(model, optimizer):
            if step == 2:
                shutil.rmtree(tmp_path / "mine")
    (record,) = caplog.records
    assert "watch of run 'mine': stopped at step 4" in record.message
    assert "the training goes on unwatched" in record.message
    assert not (tmp_path / "mine").exists()
    assert not any(module._forward_hooks for module in model.modules())


def test_a_router_that_breaks_its_contract_ends_the_watching_and_not_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_with("softmax").train()
    optimizer = torch.optim.SGD(model.parameters())
    with caplog.at_level(logging.WARNING), watch(model, run="mine", every=2, root=tmp_path):
        monkeypatch.setattr("moe_core.routing.instruments.contract.contract_triple", strange)
        assert len(list(train(model, optimizer))) == STEPS
    assert [record.message.partition(": ")[2] for record in caplog.records] == [
        "stopped at step 2: router 'layers.0.moe.router' is strange; the training goes on unwatched"
    ]
    (summary,) = list_runs(tmp_path)
    assert summary.state == "failed"


def test_a_watched_model_can_be_saved_whole_and_its_copies_are_not_watched(tmp_path: Path) -> None:
    model = model_with("softmax").train()
    with watch(model, run="mine", every=1, root=tmp_path, by_hand=True) as log:
        model(tokens(2, 12))
        torch.save(model, tmp_path / "whole.pt")
        for copied in (copy.deepcopy(model), torch.load(tmp_path / "whole.pt", weights_only=False)):
            assert copied.training
            copied(tokens(2, 12))
        log.step()
    assert [line["tokens"] for line in RunFolder("mine", tmp_path).metric_records("load")] == [24] * 3


def strange(router: Any, output: object) -> None:  # noqa: ARG001 - what it stands for
    raise TraceError(f"{router.described} is strange")


def test_names_models_and_numbers_that_will_not_do_are_refused_at_the_start(tmp_path: Path) -> None:
    model = model_with("softmax")
    with pytest.raises(TraceError, match="has no router"), watch(torch.nn.Linear(2, 2), run="a", root=tmp_path):
        pass
    with pytest.raises(UsageError, match="every = 0 is not allowed"), watch(model, run="a", every=0, root=tmp_path):
        pass
    with pytest.raises(UsageError, match="run name"), watch(model, run="../a", root=tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
    with watch(model, run="a", root=tmp_path), pytest.raises(RunBusyError), watch(model, run="a", root=tmp_path):
        pass
    with pytest.raises(UsageError, match=r"exists already.*resume=True"), watch(model, run="a", root=tmp_path):
        pass
    assert not any(module._forward_hooks for module in model.modules())


def test_resuming_goes_on_where_it_was_or_from_an_earlier_step(tmp_path: Path) -> None:
    model = model_with("softmax").train()
    optimizer = torch.optim.SGD(model.parameters())
    for resume, step, at in ((False, None, [2, 4]), (True, None, [2, 4, 6, 8]), (True, 2, [2, 4, 6])):
        with watch(model, run="mine", every=2, root=tmp_path, resume=resume, step=step):
            list(train(model, optimizer, steps=4))
        run = RunFolder("mine", tmp_path)
        assert [line["step"] for line in run.metric_records("train")] == at
        status = run.status()
        assert status is not None
        assert (status.step, status.tokens) == (at[-1], at[-1] * 24)
    other = model_with("softmax", num_experts=8)
    with pytest.raises(UsageError, match="watched with num_experts"), watch(other, "mine", root=tmp_path, resume=True):
        pass


@pytest.mark.parametrize(("model", "run", "given"), [(None, "a", "NoneType"), ("model", "a", "str"), (None, None, "N")])
def test_what_is_no_model_or_no_name_is_refused(model: Any, run: Any, given: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"given a {given}.*; expected a torch module, and run=... as text"):
        watch(model, run=run, root=tmp_path)


def test_steps_by_hand_and_a_loop_that_never_steps_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = model_with("softmax").train()
    optimizer = torch.optim.SGD(model.parameters())
    with watch(model, run="hand", every=1, by_hand=True, root=tmp_path, steps=2) as log:
        for _ in train(model, optimizer, steps=2):
            log.record(loss=torch.tensor(2.0), learning_rate=0.5)
            log.record(loss=4.0)
            log.step()
    lines = RunFolder("hand", tmp_path).metric_records("train")
    assert [(line["step"], line["loss"], line["learning_rate"]) for line in lines] == [(1, 3.0, 0.5), (2, 3.0, 0.5)]
    with caplog.at_level(logging.WARNING), watch(model, run="none", root=tmp_path) as log:
        model(tokens()).logits.sum().backward()
        log.step()
        log.step()
    assert [word in record.message for word, record in zip(("step()", "no step"), caplog.records, strict=True)] == [
        True,
        True,
    ]


def test_importing_it_is_light() -> None:
    code = (
        "import sys; import moe_core.training; assert 'torch' not in sys.modules; from moe_core.training import watch"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_callback_says_what_it_needs_where_transformers_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "moe_core.training.trainer_callback", raising=False)
    import moe_core.training

    with pytest.raises(ModuleNotFoundError, match="MoescopeCallback needs the transformers library"):
        _ = moe_core.training.MoescopeCallback


def legal_and_code() -> dict[str, list[list[int]]]:
    return {
        name: [tokens(1, 20, seed + 10 * k)[0].tolist() for k in range(4)] for name, seed in (("legal", 1), ("code", 2))
    }


def test_a_probe_text_is_read_at_first_now_and_then_and_in_the_end(tmp_path: Path) -> None:
    model = model_with("softmax").train()
    model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    batches = []
    with watch(model, run="mine", every=2, root=tmp_path, probe=legal_and_code(), probe_every=4):
        for _ in train(model, optimizer):
            batches.append([module.training for module in model.modules()])
    assert all(found == modes for found in batches)
    run = RunFolder("mine", tmp_path)
    assert run.probe_steps() == [0, 4, 7]
    probe = run.probe(7)
    assert (probe.num_tokens, probe.domains, probe.num_layers) == (160, ["legal", "code"], 3)
    with capture(model.eval()) as recorder, torch.no_grad():
        for ids in [text for texts in legal_and_code().values() for text in texts]:
            model(torch.tensor([ids]))
    expected = recorder.trace(token_ids=probe.token_ids)
    assert np.array_equal(probe.router_indices, expected.router_indices)
    assert counted(run).sum() == 7 * 24 * 3 * 3  # the probe's own tokens are not among them
    watched = run.watched()
    assert watched is not None
    assert watched.probe_tokens == 160


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        ({"legal": ["The tenant"]}, "give tokenizer="),
        ({"legal": [[1, -2]]}, "expected text, or token ids"),
        ({"legal": [[]]}, "expected text, or token ids"),
        ({}, "has 0 tokens"),
        ({"legal": [[1, 100_000]]}, "the model cannot read the probe text"),
    ],
)
def test_a_probe_that_cannot_be_read_is_refused_before_a_file_is_written(
    probe: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = model_with("softmax").train()
    with pytest.raises(UsageError, match=message):
        watch(model, run="mine", root=tmp_path, probe=probe)
    assert list(tmp_path.iterdir()) == []
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("variant", ["softmax", "noisy"])
def test_watching_changes_no_bit_of_the_training(variant: str, tmp_path: Path) -> None:
    weights = []
    for watched in (False, True):
        model = model_with(variant).train()
        torch.manual_seed(5)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        if watched:
            with watch(model, run="mine", every=1, root=tmp_path, probe=legal_and_code(), probe_every=2):
                list(train(model, optimizer))
        else:
            list(train(model, optimizer))
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


class Waits(TorchDispatchMode):
    """Counts what makes the processor wait for the device: a number that is asked for, or sizes that depend on one."""

    names = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "bincount")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += any(name in str(func) for name in self.names)
        return func(*args, **(kwargs or {}))


OF_OWN_FORM = ["dbrx", "deepseek_v4", "doge", "gemma4", "inkling", "jetmoe", "llama4", "switch_transformers", "zaya"]


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", *OF_OWN_FORM])
def test_every_kind_of_router_is_counted_as_it_is_captured_and_no_step_waits_for_the_device(family: str) -> None:
    pytest.importorskip("transformers", reason="Hugging Face models need requirements-huggingface.txt")
    from bench.family_configs import tiny_model

    model, ids = tiny_model(family).train(), torch.arange(5, 25).view(2, 10)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    found = []
    for counter in (None, ExpertCounter(model)):
        torch.manual_seed(1)
        with counter.attached() if counter is not None else nullcontext(), Waits() as waits:
            model(input_ids=ids)
        found.append(waits.count)
    assert counter is not None
    assert counter.fault is None
    assert found[1] == found[0]
    with capture(model) as recorder:
        torch.manual_seed(1)
        model(input_ids=ids)
    trace = recorder.trace(token_ids=ids)
    counts = [np.bincount(row[row >= 0].astype(int), minlength=trace.num_experts) for row in trace.router_indices]
    tally = counter.take()
    assert np.array_equal(tally.tokens_per_expert, np.stack(counts))
    assert (tally.slots() == ids.numel() * trace.top_k).all()
    if trace.router_logits is not None:  # which the trace holds in half precision
        expected = router_entropy(trace)["router_entropy"].to_numpy()
        assert tally.entropy[:, 0] / tally.entropy[:, 1] == pytest.approx(expected, abs=2e-3)
    assert not counter.take().tokens_per_expert.any()
