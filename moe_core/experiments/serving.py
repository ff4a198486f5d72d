"""How models of the same active size serve: a mixture beside a dense one, under one, four and sixteen clients."""

from __future__ import annotations

import gc
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import numpy as np
import torch

from moe_core.errors import UsageError
from moe_core.experiments.machine import environment
from moe_core.experiments.serving_result import FORMAT, LoadTimes, ServedModel, ServingResult
from moe_core.experiments.timing import HIGH, LOW, Spread
from moe_core.inference.device import resolve_device, resolve_dtype
from moe_core.inference.engine import Engine, GeneratedToken, Request
from moe_core.inference.held_out import text_of_ours
from moe_core.inference.open import open_run
from moe_core.inference.own_model import OwnModel
from moe_core.inference.sampling import SamplingConfig
from moe_core.inference.scheduler import Scheduler
from moe_core.inference.sized_model import TRAINED, check_fits_serving, is_trained, random_model, sized_config
from moe_core.model import size
from moe_core.model.random_weights import random_transformer
from moe_core.progress import Progress, silent
from moe_core.runs.folder import RunFolder

Kind = Literal["moe", "dense"]


@dataclass(frozen=True)
class ServingPlan:
    """What is measured. Raises UsageError for a size that is none, and where nothing is left to measure."""

    sizes: tuple[str, ...]
    """Names of presets; of one that is dense, 7b, its mixture is measured beside it."""
    kinds: tuple[Kind, ...] = ("dense", "moe")
    clients: tuple[int, ...] = (1, 4, 16)
    prompt_tokens: int = 32
    answer_tokens: int = 48
    rounds: int = 9
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        if not self.kinds:
            raise UsageError("neither the dense model nor the mixture is to be measured; leave one of both in")
        for name in self.sizes:
            sized_config(name)

    def check_memory(self) -> None:
        """Raise UsageError, naming what fits, where the models of one size do not fit into memory together."""
        texts = max(self.clients)
        for name in self.sizes:
            for kind in self.kinds:
                check_fits_serving(name, kind == "moe", device=self.device, dtype=self.dtype, texts=texts)
            place = resolve_device(self.device).type
            if place not in ("cpu", "cuda"):
                continue
            precision: size.Precision = "bfloat16" if self.dtype in ("bfloat16", "float16") else "float32"
            models = [sized_config(name, kind == "moe").model for kind in self.kinds]
            need = sum(size.serving_memory(model, precision, texts).total for model in models)
            if need > (present := size.memory_present(place)):
                raise UsageError(
                    f"size {name} needs {size.gib(need)} for the dense model and the mixture together, there are "
                    f"{size.gib(present)}; measure one at a time with --no-baseline and --no-moe"
                )


def measure_serving(plan: ServingPlan, progress: Progress = silent) -> ServingResult:
    """Measure all sizes, one after the other; the models of one size take turns in every round.

    A client is a thread that asks a Scheduler once and reads the answer's tokens as they come. Raises as check_memory,
    and RunError where the trained run is gone.
    """
    plan.check_memory()
    threads = torch.get_num_threads()
    where = environment(threads)
    found: list[ServedModel] = []
    dtype = ""
    for place, name in enumerate(plan.sizes):
        models = {kind: sized_model(name, kind, plan) for kind in plan.kinds}
        dtype = str(next(iter(models.values())).model.embedding.weight.dtype).removeprefix("torch.")
        rounds = _measure_size(models, plan, lambda done, at=place: progress(  # type: ignore[misc]
            "serving", at * plan.rounds + done, len(plan.sizes) * plan.rounds))  # fmt: skip
        found += [_served(name, kind, model, rounds, plan) for kind, model in models.items()]
        del models
        gc.collect()
    return ServingResult(
        FORMAT, datetime.now().isoformat(timespec="minutes"), where, resolve_device(plan.device).type, dtype,
        plan.rounds, plan.prompt_tokens, plan.answer_tokens, tuple(found),
    )  # fmt: skip


def sized_model(name: str, kind: Kind, plan: ServingPlan) -> OwnModel:
    """The model of a size: the trained run for the mixture of size demo, else random weights.

    The dense model beside the trained run reads by the run's vocabulary, so that both have the same head.
    """
    device, dtype = resolve_device(plan.device), resolve_dtype(plan.dtype)
    if is_trained(name, kind == "moe"):
        model = open_run(TRAINED, device=device.type, dtype=plan.dtype)
    elif name == TRAINED:
        trained = open_run(TRAINED, device=device.type, dtype=plan.dtype)
        assert isinstance(trained, OwnModel)
        dense = size.nearest_dense(trained.model.config, size.active_parameters)
        network = random_transformer(dense, device=device, dtype=dtype)
        return OwnModel(network, trained.tokenizer, f"dense {name}, not trained", trained.context_window)
    else:
        model = random_model(name, kind == "moe", device=device.type, dtype=plan.dtype, texts=max(plan.clients))
    assert isinstance(model, OwnModel)
    return model


@dataclass(frozen=True)
class _Load:
    """What one round of one model came to."""

    tokens_per_second: float
    first_token_seconds: float


def _measure_size(
    models: dict[Kind, OwnModel], plan: ServingPlan, on_round: Callable[[int], None]
) -> list[dict[tuple[Kind, int], _Load]]:
    most = max(plan.clients)
    schedulers = {kind: Scheduler(Engine(model, kept_bytes=0), slots=most, queue=0) for kind, model in models.items()}
    rounds = []
    try:
        for kind, scheduler in schedulers.items():  # once to warm up
            serve_clients(scheduler, requests_for(models[kind], most, plan))
        for number in range(plan.rounds):
            order = list(schedulers) if number % 2 == 0 else list(reversed(schedulers))
            found = {}
            for clients in plan.clients:
                for kind in order:
                    found[kind, clients] = serve_clients(
                        schedulers[kind], requests_for(models[kind], clients, plan, number)
                    )
            rounds.append(found)
            on_round(number + 1)
    finally:
        for scheduler in schedulers.values():
            scheduler.close(drain=False)
    return rounds


def requests_for(model: OwnModel, clients: int, plan: ServingPlan, seed: int = 0) -> list[Request]:
    """A question of each client: the beginning of a document of its own, gone through again where that is short."""
    documents = text_of_ours()
    prompts = (model.tokenizer.encode(documents[number % len(documents)].text) for number in range(clients))
    sampling = SamplingConfig(plan.answer_tokens, temperature=1.0, top_k=0, top_p=1.0, seed=seed)
    length = min(plan.prompt_tokens, model.context_window)
    return [Request(tuple((ids * (1 + length // len(ids)))[:length]), sampling) for ids in prompts]


def serve_clients(scheduler: Scheduler, requests: Sequence[Request]) -> _Load:
    """A thread for each request, all let go at once; raises what went wrong in the first one that failed."""
    start = threading.Barrier(len(requests) + 1)
    tokens, first_seconds, errors = [0] * len(requests), [0.0] * len(requests), []

    def ask(number: int) -> None:
        start.wait()
        asked = time.perf_counter()
        try:
            for event in scheduler.start(requests[number]):
                if isinstance(event, GeneratedToken):
                    first_seconds[number] = first_seconds[number] or time.perf_counter() - asked
                    tokens[number] += 1
        except Exception as error:  # told by whoever waits
            errors.append(error)

    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(len(requests))]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    if errors:
        raise errors[0]
    heard = [one for one in first_seconds if one]
    return _Load(sum(tokens) / seconds, statistics.median(heard) if heard else seconds)


def _served(
    name: str, kind: Kind, model: OwnModel, rounds: Sequence[dict[tuple[Kind, int], _Load]], plan: ServingPlan
) -> ServedModel:
    config = model.model.config
    trained = is_trained(name, kind == "moe")
    scored = RunFolder(TRAINED).evaluation() if trained else None
    if scored is not None and not model.name.endswith(f", step {scored.step}"):
        scored = None  # of another step
    weight = model.model.embedding.weight
    cached = 2 * config.num_layers * config.num_kv_heads * config.head_dim * model.context_window
    loads = []
    for clients in plan.clients:
        own = [found[kind, clients] for found in rounds]
        against = kind == "moe" and "dense" in plan.kinds
        dense = [found["dense", clients].tokens_per_second for found in rounds] if against else []
        speeds = [load.tokens_per_second for load in own]
        ratios = [speed / other for speed, other in zip(speeds, dense, strict=against)]
        first_tokens = _spread([load.first_token_seconds for load in own])
        times, faster = (_spread(ratios), sum(ratio > 1 for ratio in ratios)) if against else (None, None)
        loads.append(LoadTimes(clients, _spread(speeds), first_tokens, times, faster))
    return ServedModel(
        name.removesuffix("-moe"), kind, model.name if trained else "random",
        size.total_parameters(config), size.active_parameters(config),
        sum(parameter.numel() * parameter.element_size() for parameter in model.model.parameters()),
        cached * weight.element_size() * max(plan.clients),
        None if scored is None else scored.unseen.nats_per_token,
        None if scored is None else scored.unseen.bits_per_byte, tuple(loads),
    )  # fmt: skip


def _spread(values: Sequence[float]) -> Spread:
    median, low, high = (float(np.quantile(values, q)) for q in (0.5, LOW, HIGH))
    return Spread(median, low, high)
