"""The loop: it learns, it repeats to the bit, it stops when asked, and it keeps what it had when something breaks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_support import make_config, tensor_hashes, timeless_metrics, write_corpus

from moe_core.errors import DataError, RunBusyError, RunError, UsageError
from moe_core.inference.device import resolve_device
from moe_core.model import losses
from moe_core.model.transformer import MoETransformer
from moe_core.routing import RoutingTrace
from moe_core.runs import RunFolder, list_runs
from moe_core.runs.checkpoint import checkpoint_steps, load_run, load_trainer_state
from moe_core.training.loop import train
from moe_core.training.probe import domain_experts, probe_routing
from moe_core.training.repeatability import gains_by_bfloat16, repeatable, resolve_autocast

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "text.jsonl")


def stop_at(run: RunFolder, step: int) -> Callable[[], bool]:
    """Asks to stop once the run's metrics say that `step` steps are done."""
    return lambda: any(record["step"] >= step for record in run.metric_records("train"))


def test_a_run_learns_and_writes_everything_down(corpus: Path, tmp_path: Path) -> None:
    config = make_config(
        corpus, training__steps=60, training__evaluation_interval=25, training__muon_learning_rate=0.03
    )
    run, seen = RunFolder("one", tmp_path), []
    result = train(run, config, progress=lambda *report: seen.append(report))
    assert (result.state, result.step, result.steps, result.signal) == ("finished", 60, 60, None)
    evaluations = run.metrics("evaluation")
    assert sorted(set(evaluations["step"])) == [0, 25, 50, 60]
    first, last = (evaluations[evaluations["step"] == step].set_index("split")["nats_per_token"] for step in (0, 60))
    assert (last < first - 0.3).all()
    assert result.validation_nats == last["validation"]
    assert result.unseen_nats == last["unseen"]
    assert set(evaluations["by_domain"].iloc[0]) == {"code", "law", "news"}
    train_lines = run.metrics("train")
    assert train_lines["step"].tolist() == list(range(1, 61))
    assert train_lines["tokens"].iloc[-1] == 60 * 4 * 16
    assert train_lines["learning_rate"].max() == pytest.approx(config.training.learning_rate)
    assert train_lines["learning_rate"].iloc[-1] == pytest.approx(config.training.learning_rate / (60 - 2))
    assert (train_lines["dropped_fraction"] == 0).all()
    load = run.metrics("load")
    assert load[["step", "layer"]].values.tolist() == [[step, layer] for step in (0, 25, 50, 60) for layer in (0, 1)]
    assert all(sum(share) == pytest.approx(1.0) and len(share) == 4 for share in load["expert_load"])
    assert ((load["domain_nmi"] >= 0) & (load["domain_nmi"] <= 1)).all()
    assert run.probe_steps() == [0, 25, 50, 60]
    probe = RoutingTrace.load(run.probe_path(60))
    assert (probe.num_layers, probe.top_k, probe.domains) == (2, 2, ["code", "law", "news"])
    assert [*probe.token_ids] == [*RoutingTrace.load(run.probe_path(0)).token_ids]
    samples = run.metrics("sample")
    assert samples["step"].tolist() == [0, 25, 50, 60]
    assert samples["text"].map(len).max() > 10
    assert set(run.metrics("baseline")["unigram_nats"].iloc[0]) == {"validation", "unseen"}
    status = run.status()
    assert status is not None
    assert (status.state, status.step, status.steps, status.tokens, status.seconds_left) == (
        "finished", 60, 60, 60 * 64, None,
    )  # fmt: skip
    assert run.held_out("unseen")
    assert run.token_counts().sum() > 1000
    assert run.config().model.vocab_size == load_run("one", tmp_path).tokenizer.vocab_size
    assert {stage for stage, _, _ in seen} >= {"training", "final evaluation"}
    assert [done for stage, done, _ in seen if stage == "training"] == list(range(1, 61))
    assert list_runs(tmp_path)[0].unseen_nats == result.unseen_nats


VARIANTS: dict[str, dict[str, Any]] = {
    "muon": {},
    "adamw": {"training__optimizer": "adamw", "training__weight_decay": 0.1},
    "noisy router, capacity, top-3": {
        "model__router": {"noise_std": 0.5},
        "model__capacity_factor": 1.0,
        "model__top_k": 3,
    },
    "bfloat16": {"training__autocast": "bfloat16"},
    "accumulated, biased router": {"training__gradient_accumulation": 2, "model__router": {"kind": "sigmoid"}},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_stopped_and_resumed_equals_never_stopped(variant: str, corpus: Path, tmp_path: Path) -> None:
    config = make_config(corpus, **VARIANTS[variant])
    whole, parts = RunFolder("whole", tmp_path), RunFolder("parts", tmp_path)
    train(whole, config)
    for step in (7, 10):  # between two evaluations, and at one
        result = train(parts, config, resume=step == 10, stop=stop_at(parts, step))
        assert (result.state, result.step) == ("stopped", step)
    torch.manual_seed(1234)  # whatever the process did in between
    assert train(parts, config, resume=True).state == "finished"
    assert tensor_hashes(parts) == tensor_hashes(whole)
    assert timeless_metrics(parts) == timeless_metrics(whole)


def test_a_killed_run_resumes_from_its_last_checkpoint(corpus: Path, tmp_path: Path) -> None:
    config = make_config(corpus)
    whole, killed = RunFolder("whole", tmp_path), RunFolder("killed", tmp_path)
    train(whole, config)

    class Killed(BaseException):
        pass

    def kill(stage: str, done: int, total: int) -> None:  # noqa: ARG001
        if stage == "training" and done == 14:
            with killed.metrics_path.open("ab") as file:
                file.write(b'{"kind":"train","step":15,"lo')
            raise Killed

    with pytest.raises(Killed):
        train(killed, config, progress=kill)
    assert {summary.name: summary.state for summary in list_runs(tmp_path)} == {
        "whole": "finished",
        "killed": "interrupted",
    }
    train(killed, config, resume=True)
    assert tensor_hashes(killed) == tensor_hashes(whole)
    assert timeless_metrics(killed) == timeless_metrics(whole)


def test_two_threads_repeat_to_the_bit(corpus: Path) -> None:
    # Big enough for torch to share the work; with three experts a token, the order of additions would show.
    model = MoETransformer(make_config(corpus, model__dim=64, model__top_k=3).model)
    token_ids = torch.randint(0, 300, (16, 16), generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()

    def gradients() -> torch.Tensor:
        model.zero_grad()
        model(token_ids).logits.logsumexp(-1).mean().backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])

    with repeatable(2, torch.device("cpu")):
        assert torch.get_num_threads() == 2
        assert torch.are_deterministic_algorithms_enabled()
        first = gradients()
        assert torch.equal(first, gradients())
    assert torch.get_num_threads() == before
    assert not torch.are_deterministic_algorithms_enabled()


def test_more_steps_may_be_asked_for_later(corpus: Path, tmp_path: Path) -> None:
    run = RunFolder("one", tmp_path)
    train(run, make_config(corpus, training__steps=5))
    again = train(run, make_config(corpus, training__steps=5), resume=True)
    assert (again.state, again.step) == ("finished", 5)
    assert run.metrics("evaluation")["step"].tolist() == [0, 0, 5, 5]
    assert train(run, make_config(corpus, training__steps=8), resume=True).step == 8


def test_what_would_be_another_run_is_refused(corpus: Path, tmp_path: Path) -> None:
    run = RunFolder("one", tmp_path)
    train(run, make_config(corpus, training__steps=2))
    with pytest.raises(UsageError, match="exists already"):
        train(run, make_config(corpus))
    for changes in (
        {"model__dim": 64},
        {"training__seed": 5},
        {"model__router": {"noise_std": 1.0}},
        {"training__probe_tokens": 48},
        {"training__evaluation_tokens": 96},
        {"training__autocast": "bfloat16"},
    ):
        with pytest.raises(RunError, match="was started with") as caught:
            train(run, make_config(corpus, **changes), resume=True)
        assert "\n" not in str(caught.value)
    text = corpus.read_text()
    try:
        corpus.write_text(text.replace("return", "yield"))
        with pytest.raises(RunError, match="has changed"):
            train(run, make_config(corpus, training__steps=2), resume=True)
    finally:
        corpus.write_text(text)
    status = run.status()
    assert status is not None
    assert status.state == "finished", "a refused resume must not change what the run was"
    with pytest.raises(RunError, match="no run 'absent'"):
        train(RunFolder("absent", tmp_path), make_config(corpus), resume=True)
    assert not RunFolder("absent", tmp_path).exists()


def test_a_failed_preparation_leaves_the_reason_and_frees_the_name(corpus: Path, tmp_path: Path) -> None:
    run = RunFolder("one", tmp_path)
    with pytest.raises((DataError, UsageError), match=r"nowhere\.jsonl"):
        train(run, make_config(tmp_path / "nowhere.jsonl"))
    status = run.status()
    assert status is not None
    assert status.state == "failed"
    assert "nowhere.jsonl" in status.message
    assert train(run, make_config(corpus, training__steps=1)).state == "finished"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_save_and_put_the_handlers_back(number: signal.Signals, corpus: Path, tmp_path: Path) -> None:
    run, handlers = RunFolder("one", tmp_path), [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    def send(stage: str, done: int, total: int) -> None:  # noqa: ARG001
        if stage == "training" and done == 3:
            os.kill(os.getpid(), number)

    result = train(run, make_config(corpus), progress=send)
    assert (result.state, result.step, result.signal) == ("stopped", 3, number)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert checkpoint_steps(run) == [0, 3]
    status = run.status()
    assert status is not None
    assert status.state == "stopped"
    assert not run.is_locked()


def test_a_stop_while_preparing_is_heard(corpus: Path, tmp_path: Path) -> None:
    run = RunFolder("one", tmp_path)
    result = train(run, make_config(corpus), stop=lambda: True)
    assert (result.state, result.step, result.validation_nats) == ("stopped", 0, None)
    assert train(run, make_config(corpus, training__steps=1), resume=True).state == "finished"


def test_the_stop_file_stops_and_is_cleared(corpus: Path, tmp_path: Path) -> None:
    run = RunFolder("one", tmp_path)

    def ask(stage: str, done: int, total: int) -> None:  # noqa: ARG001
        if stage == "training" and done == 4:
            RunFolder("one", tmp_path).request_stop()

    result = train(run, make_config(corpus), progress=ask)
    assert (result.state, result.step, result.signal) == ("stopped", 4, None)
    assert not run.stop_requested()


def test_a_second_trainer_is_refused(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_core.runs.folder.LOCK_PATIENCE_SECONDS", 0.1)
    run = RunFolder("one", tmp_path)
    train(run, make_config(corpus, training__steps=1))
    with run.lock(), pytest.raises(RunBusyError):
        train(RunFolder("one", tmp_path), make_config(corpus), resume=True)


def test_the_dashboard_may_train_in_a_thread(corpus: Path, tmp_path: Path) -> None:
    results: list[str] = []
    run = RunFolder("one", tmp_path)
    thread = threading.Thread(target=lambda: results.append(train(run, make_config(corpus, training__steps=2)).state))
    thread.start()
    thread.join()
    assert results == ["finished"]


def break_loss(monkeypatch: pytest.MonkeyPatch, bad: set[int], value: float) -> None:
    """Multiply the loss of these steps (counted from 1) by `value`."""
    real, calls = losses.router_z_loss, [0]

    def broken(router_logits: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        step = (calls[0] + 1) // 2  # two MoE layers
        return real(router_logits) * (value if step in bad else 1.0)

    monkeypatch.setattr(losses, "router_z_loss", broken)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_is_skipped(
    value: float, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_loss(monkeypatch, {4, 5}, value)
    run = RunFolder("one", tmp_path)
    assert train(run, make_config(corpus, training__steps=8)).state == "finished"
    assert run.metrics("train")["step"].tolist() == [1, 2, 3, 6, 7, 8]
    events = run.metrics("event")["message"].tolist()
    assert [message.split(":")[0] for message in events[:2]] == ["step 4 skipped", "step 5 skipped"]
    assert all(torch.isfinite(tensor).all() for tensor in load_run("one", tmp_path).model.state_dict().values())


def test_three_in_a_row_stop_the_run_and_keep_the_last_checkpoint(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_loss(monkeypatch, {12, 13, 14}, float("nan"))
    run = RunFolder("one", tmp_path)
    with pytest.raises(RunError, match=r"step 14.*nan.*checkpoint of step 10 is intact"):
        train(run, make_config(corpus))
    status = run.status()
    assert status is not None
    assert status.state == "failed"
    assert "nan" in status.message
    assert load_run("one", tmp_path).step == 10


def test_the_time_budget_lowers_the_steps(corpus: Path, tmp_path: Path) -> None:
    config = make_config(
        corpus, training__steps=1000, training__time_budget_seconds=1.0, training__evaluation_interval=50
    )
    run = RunFolder("one", tmp_path)
    result = train(run, config)
    assert result.state == "finished"
    assert result.step == result.steps < 1000
    events = run.metrics("event")["message"].tolist()
    assert any(message.startswith("steps lowered from 1000 to") for message in events)
    last = run.metrics("train").iloc[-1]
    assert last["step"] == result.steps
    peak = config.training.learning_rate
    falling = result.steps - round(config.training.warmup_fraction * result.steps)
    assert last["learning_rate"] == pytest.approx(peak / falling), "the schedule follows"
    assert load_trainer_state(run)[1]["steps"] == result.steps
    assert run.metrics("evaluation")["step"].iloc[-1] == result.steps
    assert train(run, config, resume=True).steps == result.steps, "lowered once, lowered for good"


def test_a_disk_that_fills_up_fails_in_one_line(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from moe_core.runs import checkpoint

    run, real = RunFolder("one", tmp_path), checkpoint.save_file

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if len(checkpoint_steps(run)) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(RunError, match="no space left"):
        train(run, make_config(corpus))
    status = run.status()
    assert status is not None
    assert status.state == "failed"
    assert "no space left" in status.message
    monkeypatch.undo()
    assert train(run, make_config(corpus), resume=True).state == "finished"


def test_the_probe_sees_each_token_once_and_leaves_the_mode(corpus: Path, tmp_path: Path) -> None:
    from moe_core.data.tokens import TokenDataset

    run = RunFolder("one", tmp_path)
    train(run, make_config(corpus, training__steps=1))
    loaded = load_run("one", tmp_path)
    dataset = TokenDataset.build(run.held_out("validation"), loaded.tokenizer, run.domains())
    loaded.model.train()
    trace = probe_routing(loaded.model, dataset, seq_len=16, vocabulary=loaded.tokenizer.vocabulary(), source="x")
    assert loaded.model.training
    documents, counts = torch.unique(torch.from_numpy(dataset.document_ids), return_counts=True)
    assert trace.num_tokens == len(dataset) - len(documents)  # all but each document's last
    seen = {(int(d), int(p)) for d, p in zip(trace.document_ids, trace.positions, strict=True)}
    assert seen == {(int(d), p) for d, count in zip(documents, counts, strict=True) for p in range(int(count) - 1)}


def test_an_expert_becomes_a_domains_own_once() -> None:
    # 4 experts, top-1: even share 1/4. Domain b (8 documents) always takes expert 3, domain a spreads evenly.
    indices = [[[(token + document) % 4] for document in range(8) for token in range(8)] + [[3]] * 64]
    trace = RoutingTrace.from_arrays(
        router_indices=indices,
        router_scores=[[[1.0]] * 128],
        num_experts=4,
        token_ids=[0] * 128,
        document_ids=[token // 8 for token in range(128)],
        domain_ids=[0] * 64 + [1] * 64,
        domains=["a", "b"],
        layers=[2],
    )
    assert domain_experts(trace, []) == [((2, 3, "b"), 4.0)]
    assert domain_experts(trace, [(2, 3, "b")]) == []


def test_precision_and_device_are_resolved(corpus: Path) -> None:
    cpu = torch.device("cpu")
    features = torch.cpu.get_capabilities()
    fast = bool(features.get("avx512_bf16") or features.get("amx_bf16"))
    assert resolve_autocast(make_config(corpus, model__dim=192), cpu) is fast
    assert resolve_autocast(make_config(corpus, model__dim=128), cpu) is False
    assert resolve_autocast(make_config(corpus, training__autocast="bfloat16"), cpu) is True
    assert resolve_autocast(make_config(corpus, model__dim=256, training__autocast="none"), cpu) is False
    assert resolve_device("cpu") == cpu
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match=r"training\.device 'cuda'"):
            resolve_device("cuda", "training.device")


@pytest.mark.parametrize(
    ("processor", "features", "narrowest"),
    [
        ("AVX2 alone", {"avx2": True, "avx512_f": False, "avx512_bf16": False, "amx_bf16": False}, None),
        ("AVX-512 without bfloat16", {"avx2": True, "avx512_f": True, "avx512_vnni": True, "avx512_bf16": False}, None),
        ("AVX-512 with it", {"avx2": True, "avx512_f": True, "avx512_bf16": True, "amx_bf16": False}, 192),
        ("AMX", {"avx512_bf16": True, "amx_tile": True, "amx_bf16": True}, 192),
        ("ARM", {"architecture": "arm64", "neon": True, "bf16": True}, None),
        ("unknown", {}, None),
    ],
)
def test_bfloat16_is_chosen_from_the_width_on_at_which_it_was_measured_to_gain(
    processor: str, features: dict[str, object], narrowest: int | None
) -> None:
    chosen = [dim for dim in (64, 128, 191, 192, 256, 512, 768) if gains_by_bfloat16(dim, features)]
    assert chosen == ([] if narrowest is None else [192, 256, 512, 768]), processor


SIGTERM_WHILE_TRAINING = """
import sys
from pathlib import Path
from training_support import make_config
from moe_core.runs import RunFolder
from moe_core.training.loop import train

result = train(
    RunFolder("one", sys.argv[2]),
    make_config(Path(sys.argv[1]), training__steps=100000, training__evaluation_interval=1000),
    progress=lambda stage, done, total: print(stage, done, flush=True),
)
sys.exit(128 + result.signal)
"""


def test_sigterm_ends_a_process_with_143_and_a_checkpoint(corpus: Path, tmp_path: Path) -> None:
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", SIGTERM_WHILE_TRAINING, str(corpus), str(tmp_path)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("training 5"):
            break
    assert list_runs(tmp_path)[0].is_live
    asked = time.time()
    process.terminate()
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 143, errors
    assert errors == ""
    summary = list_runs(tmp_path)[0]
    assert (summary.state, summary.is_live) == ("stopped", False)
    assert load_run("one", tmp_path).step == summary.step >= 5
    assert summary.updated_at >= asked
