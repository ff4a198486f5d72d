"""Whole models: prefill, one training step, cached decoding.

Four layers of width 256, experts of hidden width 1,024, two a token, vocabulary 4,096, random weights. Held against
transformers' Mixtral with the same weights, against the same model with a naive loop over its experts, and against
dense models of ours: one of equal total parameters, one of equal operations a token. Everything in float32, except the
training step where this processor multiplies bfloat16. What computes the same must agree before it is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.references import HAS_TRANSFORMERS, StackedLoop, absent_rows, affordable_rounds, mixtral, with_experts
from bench.results import Goal, Result, compared
from bench.suite import Scale
from moe_core.config import Config, ModelConfig, TrainingConfig
from moe_core.experiments.arms import dense_arms
from moe_core.experiments.timing import interleave
from moe_core.model import KVCache, MoETransformer
from moe_core.training.repeatability import resolve_autocast

OURS, LOOP = "ours", "naive loop"
EAGER, GROUPED = "Mixtral eager", "Mixtral grouped_mm"
TOTAL, ACTIVE = "dense, equal parameters", "dense, equal operations"
PROMPT = 64
"""Tokens read before those that are decoded."""
SECONDS = 40.0
"""Rounds of one case are fewer than asked for where they would take longer than this; two at least."""

Sides = Mapping[str, Any]
GOALS: Mapping[tuple[str, int, str], Goal] = {
    ("prefill", 16, TOTAL): Goal(4.0, 5.5),
    ("prefill", 8, TOTAL): Goal(2.4, 3.0),
    ("prefill", 8, ACTIVE): Goal(0.7, 0.9),
    ("prefill", 16, ACTIVE): Goal(0.7, 0.9),
    ("prefill", 8, GROUPED): Goal(1.0, 1.15),
    ("prefill", 16, GROUPED): Goal(1.0, 1.15),
    ("training step", 16, TOTAL): Goal(3.8, 4.6),
    ("training step", 16, LOOP): Goal(1.4, 1.8),
    ("training step", 16, EAGER): Goal(1.2, 1.4),
    ("training step", 16, GROUPED): Goal(1.0, 1.25),
    ("decoding 1", 8, TOTAL): Goal(2.1, 2.6),
    ("decoding 1", 8, EAGER): Goal(1.2, 1.5),
    ("decoding 1", 8, GROUPED): Goal(1.2, 1.5),
}
"""Goals by task, number of experts and peer."""


def run(scale: Scale) -> list[Result]:
    """One row for each case and other way."""
    cases: list[Callable[[], list[Result]]] = [
        *(partial(prefill_rows, experts, scale) for experts in (8, 16)),
        partial(training_rows, 16, scale),
        *(partial(decoding_rows, 8, batch, scale) for batch in (1, 8)),
    ]
    rows = absent_rows("whole models")
    for number, case in enumerate(cases):
        scale.progress("whole model", number, len(cases))
        rows += case()
    return rows


def model_config(num_experts: int, *, smoke: bool) -> Config:
    """Mixtral's layout, so that both have the same weights; tiny for a smoke test."""
    dim, hidden, layers, vocabulary = (32, 64, 2, 300) if smoke else (256, 1024, 4, 4096)
    model = ModelConfig(
        vocab_size=vocabulary,
        dim=dim,
        num_layers=layers,
        num_heads=4,
        num_kv_heads=2,
        head_dim=dim // 4,
        num_experts=num_experts,
        top_k=2,
        expert_hidden_dim=hidden,
        qk_norm=False,
    )
    return Config(model=model, training=TrainingConfig(seq_len=256))


def build(num_experts: int, *, smoke: bool, loop: bool = False) -> dict[str, Any]:
    """Models by name, in evaluation mode; those of transformers where it is installed."""
    torch.manual_seed(0)
    ours, active, total = (
        MoETransformer(arm.config.model).eval() for arm in dense_arms(model_config(num_experts, smoke=smoke))
    )
    sides: dict[str, Any] = {OURS: ours}
    if HAS_TRANSFORMERS:
        sides |= {EAGER: mixtral(ours, "eager"), GROUPED: mixtral(ours, "grouped_mm")}
    if loop:
        sides[LOOP] = with_experts(ours, StackedLoop)
    return sides | {TOTAL: total, ACTIVE: active}


def logits(model: Any, token_ids_BS: Tensor) -> Tensor:
    """[B, S, V] of any of them."""
    options = {} if isinstance(model, MoETransformer) else {"use_cache": False}
    found: Tensor = model(token_ids_BS, **options).logits
    return found


def prefill(model: Any, token_ids_BS: Tensor) -> Tensor:
    """[B, S, V], without gradients."""
    with torch.inference_mode():
        return logits(model, token_ids_BS)


def prefill_rows(num_experts: int, scale: Scale) -> list[Result]:
    """All logits of 8 x 256 tokens."""
    shape = (2, 16) if scale.smoke else (8, 256)
    sides = build(num_experts, smoke=scale.smoke)
    token_ids = torch.randint(sides[OURS].config.vocab_size, shape)
    for name, expected in _mixtures(sides):
        _check(name, prefill(sides[name], token_ids), prefill(expected, token_ids))
    calls = {name: partial(prefill, model, token_ids) for name, model in sides.items()}
    case = f"prefill {shape[0]} x {shape[1]} tokens, {num_experts} experts"
    return _rows(case, ("prefill", num_experts), calls, scale)


def training_step(model: Any, optimizer: torch.optim.Optimizer, token_ids_BS: Tensor, precision: Any) -> Tensor:
    """Cross-entropy of the next token, its gradients, fused AdamW; the loss."""
    optimizer.zero_grad()
    with precision:
        found_BSV = logits(model, token_ids_BS)
    loss = nn.functional.cross_entropy(found_BSV[:, :-1].flatten(0, 1).float(), token_ids_BS[:, 1:].flatten())
    torch.autograd.backward(loss)
    optimizer.step()
    return loss.detach()


def training_rows(num_experts: int, scale: Scale) -> list[Result]:
    """One step of 16 x 128 tokens, language-model loss alone, with fused AdamW on both sides."""
    shape = (2, 16) if scale.smoke else (16, 128)
    sides = {name: model.train() for name, model in build(num_experts, smoke=scale.smoke, loop=True).items()}
    token_ids = torch.randint(sides[OURS].config.vocab_size, shape)
    bfloat16 = resolve_autocast(model_config(num_experts, smoke=scale.smoke), torch.device("cpu"))
    precision = torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext()
    # A learning rate of nothing: as much work, and the same weights in every round.
    calls = {
        name: partial(training_step, model, torch.optim.AdamW(model.parameters(), lr=0.0, fused=True), token_ids)
        for name, model in sides.items()
    }
    losses = {name: call(precision) for name, call in calls.items()}
    for name, _ in _mixtures(sides):
        tolerance = 2e-2 if bfloat16 else 1e-4
        _check(f"{name}, loss", losses[name], losses[OURS], tolerance)
        _check(f"{name}, gradient", _gradient_norm(sides[name]), _gradient_norm(sides[OURS]), tolerance)
    kind = "bfloat16 autocast" if bfloat16 else "float32"
    case = f"training step, {shape[0]} x {shape[1]} tokens, {num_experts} experts, {kind}"
    note = "" if bfloat16 else "the goal is set for bfloat16, which this processor has no units for"
    timed = {name: partial(call, precision) for name, call in calls.items()}
    return _rows(case, ("training step", num_experts), timed, scale, notes={TOTAL: note})


def decoding_rows(num_experts: int, batch: int, scale: Scale) -> list[Result]:
    """The likeliest next tokens, one after the other, behind a prompt that is read first and not timed."""
    tokens = 4 if scale.smoke else 32
    sides = build(num_experts, smoke=scale.smoke)
    prompt = torch.randint(sides[OURS].config.vocab_size, (batch, PROMPT))
    new = torch.randint(sides[OURS].config.vocab_size, (tokens, batch, 1))
    readers = {name: Decoder(model, prompt, tokens) for name, model in sides.items()}
    for name, _ in _mixtures(sides):
        _check(name, readers[name].decode(new), readers[OURS].decode(new))
    calls = {name: partial(reader.decode, new) for name, reader in readers.items()}
    case = f"decoding {tokens} tokens behind {PROMPT}, batch {batch}, {num_experts} experts"
    note = f"{batch} tokens touch nearly all experts: a mixture saves little there" if batch > 1 else ""
    return _rows(case, (f"decoding {batch}", num_experts), calls, scale, notes={TOTAL: note, ACTIVE: note})


class Decoder:
    """A model that has read a prompt and goes on from there as often as wanted."""

    def __init__(self, model: Any, prompt_BS: Tensor, tokens: int) -> None:
        self._model, self._length = model, prompt_BS.shape[1]
        with torch.inference_mode():
            if isinstance(model, MoETransformer):
                self._cache: Any = KVCache(model.config, len(prompt_BS), self._length + tokens)
                model(prompt_BS, cache=self._cache)
            else:
                self._cache = model(prompt_BS, use_cache=True).past_key_values

    def decode(self, new_SB1: Tensor) -> Tensor:
        """Read tokens one by one: [S, B, V] logits behind each. What was read is then forgotten again."""
        found = []
        with torch.inference_mode():
            for token_ids in new_SB1:
                if isinstance(self._model, MoETransformer):
                    out = self._model(token_ids, cache=self._cache)
                else:
                    out = self._model(token_ids, past_key_values=self._cache, use_cache=True)
                found.append(out.logits[:, -1])
            self._forget_tokens(len(new_SB1))
            return torch.stack(found)

    def _forget_tokens(self, tokens: int) -> None:
        if isinstance(self._cache, KVCache):
            self._cache.length = self._length
        else:
            self._cache.crop(-tokens)


def _rows(
    case: str,
    key: tuple[str, int],
    calls: Mapping[str, Callable[[], object]],
    scale: Scale,
    *,
    notes: Mapping[str, str] | None = None,
) -> list[Result]:
    rows = []
    # The dense model of equal parameters takes so long that the others would get few rounds beside it.
    for group in ([name for name in calls if name != TOTAL], [OURS, TOTAL]):
        sides = {name: calls[name] for name in group}
        timings = interleave(sides, rounds=affordable_rounds(sides, scale.rounds, SECONDS), warmup=0)
        rows += [
            compared(
                case,
                timings,
                OURS,
                name,
                goal=None if scale.smoke else GOALS.get((*key, name)),
                note=(notes or {}).get(name, ""),
            )
            for name in group
            if name != OURS
        ]
    return rows


def _mixtures(sides: Sides) -> Iterator[tuple[str, MoETransformer]]:
    """Names of those that must agree with ours, and ours."""
    for name in (EAGER, GROUPED, LOOP):
        if name in sides:
            yield name, sides[OURS]


def _gradient_norm(model: nn.Module) -> Tensor:
    squares = [parameter.grad.square().sum() for parameter in model.parameters() if parameter.grad is not None]
    return torch.stack(squares).sum().sqrt()


def _check(name: str, found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    assert torch.allclose(found, expected, rtol=tolerance, atol=tolerance), f"{name} and {OURS} differ"
