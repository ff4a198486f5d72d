"""One GPU: writing text with models of ours, and reading and writing with one of transformers under capture.

The foreign model is OLMoE's architecture with random bfloat16 weights, at its own size where there is room for it.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch

from bench.references import HAS_TRANSFORMERS, absent_rows
from bench.results import Goal, Result
from bench.suite import Scale
from bench.training_loop import timed
from moe_core.config import ModelConfig
from moe_core.data.document import Document
from moe_core.data.tokens import TokenDataset
from moe_core.data.windows import window_batches
from moe_core.experiments.timing import Spread, Timings
from moe_core.inference.engine import Engine, Request
from moe_core.inference.huggingface import HuggingFaceLanguageModel
from moe_core.inference.open import open_run
from moe_core.inference.own_model import OwnModel
from moe_core.inference.protocol import Draw, LanguageModel
from moe_core.inference.sampling import SamplingConfig
from moe_core.inference.scoring import tokenised
from moe_core.inference.tracing import trace_dataset
from moe_core.model import MoETransformer
from moe_core.routing import capture
from moe_core.runs.places import SHIPPED

PROMPT = "The tenant shall pay the rent"
WRITTEN = 256
DECODED = {
    "default shape": (ModelConfig(expert_hidden_dim=1024), Goal(1200.0, 1500.0)),
    "768 x 12, E8 k2 F3072": (
        ModelConfig(
            vocab_size=32_768, dim=768, num_layers=12, num_heads=12, num_kv_heads=12, num_experts=8,
            expert_hidden_dim=3072,
        ),
        Goal(350.0, 420.0),
    ),
}  # fmt: skip


def writing_rows(device: torch.device, scale: Scale) -> list[Result]:
    """Tokens a second of one text: of the bare model, and of `generate` from prompt to text."""
    tokens = 4 if scale.smoke else WRITTEN
    rows = []
    for name, (config, goal) in DECODED.items():
        torch.manual_seed(0)
        small = config.model_copy(update={"dim": 64, "expert_hidden_dim": 64, "vocab_size": 512, "num_layers": 2})
        model = MoETransformer(small if scale.smoke else config).to(device, torch.bfloat16).eval()
        seconds = decoding_seconds(_language_model_of(model), tokens, device, scale.rounds)
        case = f"decoding one text, bare model, {name}, bfloat16"
        rows.append(Result(case, tokens / seconds, "tokens/s", goal=None if scale.smoke else goal))
    engine = Engine(open_run("demo", SHIPPED, device=device.type))
    seconds, written = writing_seconds(engine, PROMPT, tokens, device, scale.rounds)
    goal_of_all = None if scale.smoke else Goal(700.0, 1100.0)
    rows.append(Result(f"generate on the demo, {written} tokens", written / seconds, "tokens/s", goal=goal_of_all))
    return rows


def _language_model_of(model: MoETransformer) -> LanguageModel:
    """Ours without a tokenizer: nothing here asks for text."""
    return OwnModel(model, SimpleNamespace(end_of_text=0), "random weights", model.config.max_seq_len)  # type: ignore[arg-type]


def decoding_seconds(language: LanguageModel, tokens: int, device: torch.device, rounds: int) -> float:
    """Median seconds of reading so many tokens one by one behind a prompt of 64, as texts that are written are read:
    on CUDA in a captured pass, which draws as well."""
    draw = Draw(SamplingConfig(temperature=0.0), lambda: 0.0)

    def decode() -> None:
        with torch.inference_mode(), language.reading() as reader:
            texts = reader.join()
            texts.add(reader.read(range(64), None).cache)
            for token in range(tokens):
                texts.read([token], [draw])
            texts.close()

    decode()
    return median(timed(decode, device) for _ in range(rounds))


def writing_seconds(
    engine: Engine, prompt: str | tuple[int, ...], tokens: int, device: torch.device, rounds: int
) -> tuple[float, int]:
    """Median seconds of writing, and tokens written, which are fewer where the model ends the text."""
    request = Request(prompt, SamplingConfig(max_new_tokens=tokens, temperature=0.0))
    written = len(engine.start(request).result().tokens)
    return median(timed(lambda: engine.start(request).result(), device) for _ in range(rounds)), written


def reading_rows(device: torch.device, scale: Scale) -> list[Result]:
    """What capture, `trace --model` and `generate --model` leave of the model's own speed."""
    if not HAS_TRANSFORMERS:
        return absent_rows("reading and writing with a model of another library")
    model = olmoe(device, small=scale.smoke)
    language = HuggingFaceLanguageModel.of(SimpleNamespace(model=model, tokenizer=None, name="OLMoE"))
    dataset = random_text(language, documents=4 if scale.smoke else 200, tokens=24 if scale.smoke else 640)
    batches = list(window_batches(dataset, language.context_window))

    def read(*, captured: bool = False) -> None:
        with torch.inference_mode():
            for windows in batches:
                ids_BS = torch.from_numpy(dataset.token_ids[windows.index].astype(np.int64)).to(device)
                if captured:
                    with capture(model, keep_logits=False):
                        model(input_ids=ids_BS, use_cache=False)
                else:
                    model(input_ids=ids_BS, use_cache=False)

    ways: dict[str, Callable[[], object]] = {
        "bare": read,
        "captured": lambda: read(captured=True),
        "traced": lambda: trace_dataset(language, dataset),
    }
    seconds = in_turns(ways, device, scale.rounds)
    case = f"OLMoE of {sum(one.numel() for one in model.parameters()) / 1e9:.3g}B"
    note = f"it reads {len(dataset) / seconds.median('bare'):,.0f} tokens/s"
    overhead = _times(seconds, "captured", "bare")
    at_most = None if scale.smoke else Goal(2.0, 0.5, at_most=True)
    return [
        row("trace --model, share of the model's own reading speed", case, _times(seconds, "bare", "traced"),
            Goal(0.6, 0.85), note, scale),
        Result(f"capture overhead, {case}", 100 * (overhead.median - 1), "%", goal=at_most, note=note),
        _generate_row(language, model, case, device, scale),
    ]  # fmt: skip


def _generate_row(language: LanguageModel, model: Any, case: str, device: torch.device, scale: Scale) -> Result:
    tokens, prompt = (4 if scale.smoke else 128), tuple(range(5, 37))
    engine = Engine(language)
    request = Request(prompt, SamplingConfig(max_new_tokens=tokens, temperature=0.0))
    ids_BS = torch.tensor([prompt], device=device)
    options = {"do_sample": False, "max_new_tokens": tokens, "min_new_tokens": tokens, "use_cache": True}

    def theirs() -> None:
        with torch.inference_mode():
            model.generate(ids_BS, attention_mask=torch.ones_like(ids_BS), **options)

    ways: dict[str, Callable[[], object]] = {"ours": lambda: engine.start(request).result(), "theirs": theirs}
    seconds = in_turns(ways, device, scale.rounds)
    written = len(engine.start(request).result().tokens)
    note = f"{written / seconds.median('ours'):.3g} tokens/s, theirs {tokens / seconds.median('theirs'):.3g}"
    share = _times(seconds, "theirs", "ours", written / tokens)
    return row("generate --model, share of the model's own generate", case, share, Goal(0.8, 1.0), note, scale)


def row(what: str, case: str, share: Spread, goal: Goal, note: str, scale: Scale) -> Result:
    """A row whose figure is a share, with its spread in the note."""
    spread = f"{note}; middle 80 % of the rounds {share.low:.2f} to {share.high:.2f}"
    return Result(f"{what}, {case}", share.median, "", goal=None if scale.smoke else goal, note=spread)


def in_turns(ways: dict[str, Callable[[], object]], device: torch.device, rounds: int) -> Timings:
    """Seconds of each way, round by round, after one call of each; the device is waited for."""
    for call in ways.values():
        call()
    found = [{name: timed(call, device) for name, call in ways.items()} for _ in range(rounds)]
    return Timings(pd.DataFrame(found))


def _times(seconds: Timings, above: str, below: str, factor: float = 1.0) -> Spread:
    """Seconds of one way over those of the other, round by round, times `factor`."""
    found = seconds.times_faster(below, above)
    return Spread(factor * found.median, factor * found.low, factor * found.high)


def olmoe(device: torch.device, *, small: bool) -> Any:
    """OlmoeForCausalLM with random bfloat16 weights on the device, of OLMoE-1B-7B's size or tiny."""
    from transformers import OlmoeConfig, OlmoeForCausalLM

    build: Any = OlmoeConfig
    tiny = {
        "vocab_size": 128, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    config = build(**(tiny if small else {}), eos_token_id=None, pad_token_id=None)
    torch.manual_seed(0)
    kind: Any = OlmoeForCausalLM
    with device:
        model = kind._from_config(config, dtype=torch.float32 if device.type == "cpu" else torch.bfloat16)
    return model.eval()


def random_text(language: LanguageModel, *, documents: int, tokens: int) -> TokenDataset:
    """Documents of random token ids, in figures as a model without tokenizer reads them."""
    drawn = np.random.default_rng(0).integers(1, language.vocab_size, (documents, tokens))
    return tokenised(language, [Document(" ".join(map(str, ids)), "random", str(n), "") for n, ids in enumerate(drawn)])
