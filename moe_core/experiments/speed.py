"""How long each arm takes, on this machine, in turns: reading a text, writing a token, one training step."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from moe_core.data.splits import SCORED_TOKENS_PER_DOMAIN
from moe_core.data.token_stream import TokensInMemory, training_batch
from moe_core.data.tokens import TokenDataset
from moe_core.experiments.machine import environment
from moe_core.experiments.plan import Plan, Trial
from moe_core.experiments.speed_result import TRAINING_STEP, ArmTimes, SpeedResult, TaskTimes, speed_from_json
from moe_core.experiments.timing import Timings, interleave
from moe_core.experiments.trial import run_folder
from moe_core.inference.held_out import held_out_text
from moe_core.model.kv_cache import KVCache
from moe_core.model.transformer import MoETransformer
from moe_core.progress import Progress, silent
from moe_core.runs.checkpoint import LoadedRun, load_run
from moe_core.runs.files import write_atomic
from moe_core.training.batches import tensor_batch
from moe_core.training.gradient import accumulate_gradient
from moe_core.training.optimizers import build_optimizers, set_learning_rates
from moe_core.training.repeatability import resolve_autocast

ROUNDS = {"dense": (60, 30), "routers": (12, 8)}
"""Of reading and writing, and of training steps, which take longer and vary less. Routers are many and much alike."""
PREFILL_BATCH, PREFILL_TOKENS = 8, 256
DECODE_BATCHES = (1, 32)
DECODE_CONTEXT = 128
"""Tokens in the cache when one more is read."""


def read_speed(work: Path) -> SpeedResult | None:
    """What measure_speed kept; None before. Raises DataError where it is damaged or of another version."""
    try:
        content = (work / "speed.json").read_bytes()
    except FileNotFoundError:
        return None
    return speed_from_json(content, str(work / "speed.json"))


def measure_speed(
    work: Path,
    plan: Plan,
    chosen: Mapping[str, float],
    *,
    threads: int,
    smoke: bool = False,
    progress: Progress = silent,
) -> SpeedResult:
    """Time the trained models of the first scored seed against each other and keep what was found.

    Routers that see the future do not decode.
    """
    loaded = {
        arm.name: load_run(run_folder(work, Trial(arm.name, plan.seeds[0], chosen[arm.name])).name, work / "runs")
        for arm in plan.arms
    }
    rounds = (2, 2) if smoke else ROUNDS[plan.kind]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        where = environment(threads)
        with torch.inference_mode():
            tasks = _time_reading(plan, loaded, rounds[0], progress)
        tasks[TRAINING_STEP] = _time_training(plan, loaded, rounds[1], progress)
    finally:
        torch.set_num_threads(before)
    found = SpeedResult(datetime.now().isoformat(timespec="minutes"), threads, where, tasks, "held-out")
    write_atomic(work / "speed.json", (json.dumps(found.to_json(), indent=1, allow_nan=False) + "\n").encode())
    return found


def _time_reading(plan: Plan, loaded: Mapping[str, LoadedRun], rounds: int, progress: Progress) -> dict[str, TaskTimes]:
    model, some = plan.config.model, next(iter(loaded.values()))
    text = held_out_text(some.run, some.tokenizer, SCORED_TOKENS_PER_DOMAIN).token_ids
    prompt = passages(text, PREFILL_BATCH, min(PREFILL_TOKENS, model.max_seq_len))
    sides: dict[str, Callable[[], object]] = {name: reading_call(run.model, prompt) for name, run in loaded.items()}
    tasks = {f"prefill {PREFILL_BATCH} x {prompt.shape[1]}": _time_sides(sides, prompt.numel(), rounds, progress)}
    context = min(DECODE_CONTEXT, model.max_seq_len - 1)
    writing = {name: run for name, run in loaded.items() if run.config.model.can_write}
    for batch in DECODE_BATCHES:
        begun = passages(text, batch, context + 1)
        sides = {name: decoding_call(run.model, begun) for name, run in writing.items()}
        tasks[f"decode, batch {batch}"] = _time_sides(sides, batch, rounds, progress)
    return tasks


def passages(text_N: NDArray[np.int32], count: int, length: int) -> torch.Tensor:
    """[count, length]: passages that begin at even distances, so that all domains of the text take part.

    What a mixture costs depends on which experts its tokens choose, and random tokens choose as no text does. Passages
    of a short text overlap; one shorter than a passage is gone through again from its beginning.
    """
    starts = np.arange(count) * max(1, len(text_N) - length) // count
    return torch.from_numpy(text_N[(starts[:, None] + np.arange(length)) % len(text_N)].astype(np.int64))


def reading_call(model: MoETransformer, ids: torch.Tensor) -> Callable[[], object]:
    return lambda: model(ids)


def decoding_call(model: MoETransformer, text_BS: torch.Tensor) -> Callable[[], object]:
    """The last token of every passage, read behind the others; the cache is put back, so that every call does the
    same."""
    batch, context = text_BS.shape[0], text_BS.shape[1] - 1
    cache = KVCache(model.config, batch, context + 1)
    model(text_BS[:, :-1], cache=cache)
    last = text_BS[:, -1:]

    def step() -> object:
        cache.length = context
        return model(last, cache=cache)

    return step


def _time_training(plan: Plan, loaded: Mapping[str, LoadedRun], rounds: int, progress: Progress) -> TaskTimes:
    training = plan.config.training
    some = next(iter(loaded.values()))
    held_out = TokenDataset.build(some.run.held_out("validation"), some.tokenizer, some.run.domains())
    text = TokensInMemory(held_out.token_ids)
    sides = {name: _training_call(run, text) for name, run in loaded.items()}
    return _time_sides(sides, training.batch_size * training.seq_len, rounds, progress)


def _training_call(run: LoadedRun, text: TokensInMemory) -> Callable[[], object]:
    """Forward, backward and optimizer on one batch, again and again, from the trained weights."""
    device, training = torch.device("cpu"), run.config.training
    model = run.model.train().requires_grad_(True)
    optimizers = build_optimizers(model, training)
    set_learning_rates(optimizers, training.final_lr_fraction)  # as much work, and the weights stay sound
    batch = tensor_batch(
        training_batch(text, 0, batch_size=training.batch_size, seq_len=training.seq_len, seed=0), device
    )
    autocast = resolve_autocast(run.config, device)

    def step() -> None:
        _, decided = accumulate_gradient(model, batch, run.config, autocast=autocast)
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.gradient_clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        model.after_step(decided)

    return step


def _time_sides(sides: Mapping[str, Callable[[], object]], tokens: int, rounds: int, progress: Progress) -> TaskTimes:
    timings = interleave(sides, rounds=rounds, on_round=lambda done: progress("timing", done, rounds))
    return TaskTimes(tokens, {name: _arm_times(timings, name, next(iter(sides))) for name in sides})


def _arm_times(timings: Timings, name: str, reference: str) -> ArmTimes:
    seconds, times = timings.spread(name), timings.times_faster(name, reference)
    return ArmTimes(seconds.median, seconds.low, seconds.high, times.median, times.low, times.high)
