"""Someone else's model under the microscope: what tracing, writing and capture cost beside the model's own work.

A random OLMoE of 16 layers, 64 experts, top-8, with OLMoE's vocabulary, but narrow, so that what is ours shows: what it
costs beside little work here is what it costs beside an accelerator's quick work. Functions take the device and the
shape; on an accelerator give the model's own.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.references import absent_rows
from bench.results import Goal, Result, compared
from bench.suite import Scale
from moe_core.data.document import Document
from moe_core.experiments.timing import interleave
from moe_core.inference.engine import Engine, Request
from moe_core.inference.huggingface import HuggingFaceLanguageModel
from moe_core.inference.sampling import SamplingConfig
from moe_core.inference.tracing import write_documents_trace
from moe_core.routing import capture
from moe_core.routing.instruments.find import find_routers
from moe_core.routing.instruments.huggingface.few_tokens import visit_experts_by_tokens

OURS, READING, GENERATE, OFF = (
    "ours",
    "the model alone, batches of equal length",
    "transformers' generate",
    "no capture",
)
ROWS = 8
"""Texts of a batch when the model reads alone."""


@dataclass(frozen=True)
class Shape:
    """How large the model is, and what it is given."""

    hidden_size: int = 64
    expert_size: int = 64
    layers: int = 16
    experts: int = 64
    top_k: int = 8
    vocabulary: int = 50_304
    length: int = 256
    """Tokens of a row when the model reads alone."""
    tokens: int = 8_192
    """Of the documents that are traced."""
    written: int = 64
    dtype: torch.dtype = torch.float32

    @property
    def words(self) -> str:
        return f"OLMoE, {self.layers} layers x {self.experts} experts top-{self.top_k}, width {self.hidden_size}"


SMOKE = Shape(layers=2, experts=8, top_k=2, vocabulary=330, length=16, tokens=200, written=4)
OLMOE = Shape(hidden_size=2048, expert_size=1024, length=1024, tokens=500_000, written=128, dtype=torch.bfloat16)
"""Its own size, 13.8 GB of weights: for an accelerator."""


@dataclass(frozen=True)
class _Loaded:
    model: Any
    tokenizer: Any
    name: str


def run(scale: Scale) -> list[Result]:
    """Rows of the narrow model on the processor."""
    if absent := absent_rows("tracing, writing and capture of a Hugging Face model"):
        return absent
    return rows(SMOKE if scale.smoke else Shape(), torch.device("cpu"), scale)


def rows(shape: Shape, device: torch.device, scale: Scale) -> list[Result]:
    """Tracing, writing and capture of one random model."""
    model = random_model(shape, device)
    scale.progress("foreign_models", 0, 3)
    found = [trace_row(model, shape, scale)]
    scale.progress("foreign_models", 1, 3)
    found.append(generate_row(model, shape, scale))
    scale.progress("foreign_models", 2, 3)
    return found + capture_rows(model, shape, scale)


def random_model(shape: Shape, device: torch.device) -> HuggingFaceLanguageModel:
    """With a tokenizer of as many words as its vocabulary has."""
    import tokenizers
    import transformers

    config = transformers.AutoConfig.for_model(
        "olmoe",
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.expert_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=max(2, shape.hidden_size // 128),
        num_key_value_heads=max(2, shape.hidden_size // 128),
        num_experts=shape.experts,
        num_experts_per_tok=shape.top_k,
        max_position_embeddings=4096,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    with device:
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=shape.dtype).eval()  # type: ignore[no-untyped-call]
    if device.type != "cpu":
        visit_experts_by_tokens(model)
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({f"w{i}": i for i in range(shape.vocabulary)}, unk_token="w0")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, unk_token="w0"
    )
    return HuggingFaceLanguageModel.of(_Loaded(model, tokenizer, shape.words))


def documents(shape: Shape) -> list[Document]:
    """Texts of very unequal length, as real ones are, of words of which few are frequent."""
    random = np.random.default_rng(0)
    found: list[Document] = []
    left = shape.tokens
    while left > 0:
        length = min(left, int(np.clip(random.lognormal(np.log(shape.length / 2), 0.9), 2, 4 * shape.length)))
        words = random.zipf(1.3, length) % shape.vocabulary
        found.append(Document(" ".join(f"w{word}" for word in words), "ab"[len(found) % 2], str(len(found)), ""))
        left -= length
    return found


def trace_row(model: HuggingFaceLanguageModel, shape: Shape, scale: Scale) -> Result:
    """`trace --model`, from text to stored file, against the model reading as many tokens in full batches."""
    texts = documents(shape)
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(shape.vocabulary, (shape.tokens,), generator=random).to(model.device)

    with tempfile.TemporaryDirectory() as folder:
        timings = interleave(
            {
                OURS: lambda: write_documents_trace(model, texts, Path(folder) / "x.parquet"),
                READING: lambda: _read(model, ids, ROWS * shape.length, shape.length),
            },
            rounds=1 if scale.smoke else max(3, scale.rounds // 2),
        )
    case = f"trace of a Hugging Face model, {shape.tokens:,} tokens of {len(texts)} documents ({shape.words})"
    return compared(case, timings, OURS, READING, goal=None if scale.smoke else Goal(0.6, 0.85))


def generate_row(model: HuggingFaceLanguageModel, shape: Shape, scale: Scale) -> Result:
    """`generate --model`, greedy, against transformers' own with the same kind of cache; the same tokens come out."""
    prompt = tuple(range(5, 5 + min(32, shape.length)))
    ours, theirs = partial(written, model, prompt, shape.written), partial(generated, model, prompt, shape.written)
    assert ours() == theirs(), "the engine and transformers' generate wrote different tokens"
    calls: dict[str, Callable[[], object]] = {OURS: ours, GENERATE: theirs}
    timings = interleave(calls, rounds=1 if scale.smoke else scale.rounds)
    case = f"writing {shape.written} tokens by a Hugging Face model ({shape.words})"
    return compared(case, timings, OURS, GENERATE, goal=None if scale.smoke else Goal(0.8, 1.0))


def capture_rows(model: HuggingFaceLanguageModel, shape: Shape, scale: Scale) -> list[Result]:
    """A forward pass with every router captured, logits kept, against the same without; and capture's part of it."""
    ids_BS = torch.arange(ROWS * shape.length, device=model.device).view(ROWS, -1) % shape.vocabulary

    def captured() -> None:
        with capture(model.model):
            _read(model, ids_BS, ids_BS.numel(), shape.length)

    calls: dict[str, Callable[[], object]] = {
        OURS: captured, OFF: lambda: _read(model, ids_BS, ids_BS.numel(), shape.length)
    }  # fmt: skip
    timings = interleave(calls, rounds=1 if scale.smoke else 2 * scale.rounds)
    case = f"reading {ROWS} x {shape.length} tokens, every router captured, logits kept ({shape.words})"
    found = [compared(case, timings, OURS, OFF, goal=None if scale.smoke else Goal(1 / 1.02, 1 / 1.005))]
    if model.device.type == "cpu":  # an accelerator's work is not done when a hook returns
        shares = sorted(hook_share(model, ids_BS) for _ in range(1 if scale.smoke else scale.rounds))
        goal = None if scale.smoke else Goal(2.0, 0.5, at_most=True)
        share = 100 * shares[len(shares) // 2]
        found.append(Result("share of that time spent in capture's hooks, timed directly", share, "%", goal=goal))
    return found


def written(model: HuggingFaceLanguageModel, prompt: tuple[int, ...], count: int) -> list[int]:
    """The token ids that the engine writes."""
    sampling = SamplingConfig(max_new_tokens=count, temperature=0)
    return [token.token_id for token in Engine(model).start(Request(prompt, sampling)).tokens()]


def generated(model: HuggingFaceLanguageModel, prompt: tuple[int, ...], count: int) -> list[int]:
    """Those of model.generate with the library's DynamicCache."""
    ids = torch.tensor([prompt], device=model.device)
    language: Any = model.model
    with torch.inference_mode():
        found = language.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, use_cache=True, max_new_tokens=count
        )
    ids_S: list[int] = found[0, len(prompt) :].tolist()
    return ids_S


def hook_share(model: HuggingFaceLanguageModel, ids_BS: torch.Tensor) -> float:
    """Seconds between a hook that runs right before capture's and one right after, over those of the whole pass."""
    marks: list[float] = []

    def mark(*_: Any) -> None:
        marks.append(time.perf_counter())

    modules = [router.module for router in find_routers(model.model).values()]
    before = [module.register_forward_hook(mark) for module in modules]
    with capture(model.model):
        after = [module.register_forward_hook(mark) for module in modules]
        start = time.perf_counter()
        with torch.inference_mode():
            model.logits(ids_BS)
        whole = time.perf_counter() - start
    for handle in before + after:
        handle.remove()
    return (sum(marks[1::2]) - sum(marks[::2])) / whole


@torch.inference_mode()
def _read(model: HuggingFaceLanguageModel, ids: torch.Tensor, together: int, length: int) -> None:
    """All tokens, and wait for the last of them."""
    for part in torch.split(ids.flatten(), together):
        logits_BSV = model.logits(part[: len(part) // length * length or len(part)].view(-1, min(length, len(part))))
    logits_BSV[-1, -1, 0].item()
