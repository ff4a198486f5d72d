"""The cost of looking: capture of every routing decision, and streaming token by token."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.results import Goal, Result, compared
from bench.suite import Scale
from bench.whole_model import OURS, model_config, prefill
from data_gen import generate_corpus
from moe_core.data.tokenizer import Tokenizer
from moe_core.experiments.timing import interleave
from moe_core.inference.engine import Engine, Request
from moe_core.inference.own_model import OwnModel
from moe_core.inference.sampling import SamplingConfig, sample
from moe_core.model import KVCache, MoETransformer
from moe_core.routing import capture

EXPERTS = 16
OFF, BARE = "the same without capture", "bare loop: model and sampling alone"
PROMPT = "The tenant shall pay the rent on the first day of the month."


def run(scale: Scale) -> list[Result]:
    """Rows for capture and for streaming."""
    torch.manual_seed(0)
    config = model_config(EXPERTS, smoke=scale.smoke)
    model = MoETransformer(config.model).eval()
    shape = (2, 16) if scale.smoke else (8, 256)
    scale.progress("observing", 0, 2)
    rows = capture_rows(model, torch.randint(config.model.vocab_size, shape), scale)
    scale.progress("observing", 1, 2)
    return rows + streaming_rows(model, 8 if scale.smoke else 64, scale)


def capture_rows(model: MoETransformer, token_ids_BS: Tensor, scale: Scale) -> list[Result]:
    """Prefill with and without; and the part of its time that passes inside capture's hooks."""
    assert torch.equal(captured(model, token_ids_BS), prefill(model, token_ids_BS)), "capture changed the output"
    calls = {OURS: partial(captured, model, token_ids_BS), OFF: partial(prefill, model, token_ids_BS)}
    case = f"prefill {token_ids_BS.shape[0]} x {token_ids_BS.shape[1]} tokens, every router captured, logits kept"
    # A goal of "at most 10 % slower", as a ratio of times.
    goal = None if scale.smoke else Goal(1 / 1.1)
    share = sorted(hook_share(model, token_ids_BS) for _ in range(scale.rounds))[scale.rounds // 2]
    return [
        compared(case, interleave(calls, rounds=2 * scale.rounds), OURS, OFF, goal=goal),
        Result(
            "share of that time spent in capture's hooks, timed directly",
            100 * share,
            "%",
            goal=None if scale.smoke else Goal(10.0, 0.5, at_most=True),
        ),
    ]


def captured(model: MoETransformer, token_ids_BS: Tensor) -> Tensor:
    """prefill, inside capture."""
    with capture(model):
        return prefill(model, token_ids_BS)


def hook_share(model: MoETransformer, token_ids_BS: Tensor) -> float:
    """Seconds between a hook that runs right before capture's and one right after, over those of the whole pass."""
    marks: list[float] = []

    def mark(*_: Any) -> None:
        marks.append(time.perf_counter())

    def watch() -> list[Any]:
        return [router.register_forward_hook(mark) for router in model.routers]

    before = watch()
    with capture(model):
        after = watch()
        start = time.perf_counter()
        prefill(model, token_ids_BS)
        whole = time.perf_counter() - start
    for handle in before + after:
        handle.remove()
    return (sum(marks[1::2]) - sum(marks[::2])) / whole


def streaming_rows(model: MoETransformer, tokens: int, scale: Scale) -> list[Result]:
    """The engine, which tells text, experts and loss of every token, against nothing but the model and the drawing."""
    vocabulary = model.config.vocab_size
    texts = [document.text for document in generate_corpus(10 if scale.smoke else 200, splits=("train",))]
    reader = OwnModel(model, Tokenizer.train(texts, vocabulary), "random weights", 256)
    sampling = SamplingConfig(max_new_tokens=tokens)
    streamed = partial(stream, reader, sampling)
    bare = partial(bare_loop, reader, sampling)
    assert streamed() == bare(), "the engine and the bare loop wrote different tokens"
    calls: dict[str, Callable[[], object]] = {OURS: streamed, BARE: bare}
    # Not over 5 % slower.
    goal = None if scale.smoke else Goal(1 / 1.05)
    timings = interleave(calls, rounds=4 * scale.rounds)  # a difference of some per cent
    return [compared(f"streaming {tokens} tokens, {model.config.num_experts} experts", timings, OURS, BARE, goal=goal)]


def stream(reader: OwnModel, sampling: SamplingConfig) -> list[int]:
    """The token ids that the engine writes."""
    return [token.token_id for token in Engine(reader).start(Request(PROMPT, sampling)).tokens()]


def bare_loop(reader: OwnModel, sampling: SamplingConfig) -> list[int]:
    """The same ids, with nothing told about them."""
    tokenizer, model = reader.tokenizer, reader.model
    cache = KVCache(model.config, 1, reader.context_window)
    random = torch.Generator().manual_seed(sampling.seed)
    written: list[int] = []
    with torch.inference_mode():

        def read(token_ids: list[int]) -> Tensor:
            logits_V: Tensor = model(torch.tensor([token_ids]), cache=cache).logits[0, -1]
            return logits_V.double()

        logits_V = read([tokenizer.end_of_text, *tokenizer.encode(PROMPT)])
        for _ in range(sampling.max_new_tokens):
            token_id = sample(logits_V, sampling, random)
            if token_id in reader.end_ids:
                break
            written.append(token_id)
            logits_V = read([token_id])
    return written
