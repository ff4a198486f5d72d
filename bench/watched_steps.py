"""What watching costs a training: steps with and without, in turns, and the time inside what watches."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from bench.results import Goal, Result, compared
from bench.suite import Scale
from moe_core.config import load_config
from moe_core.experiments.timing import interleave
from moe_core.model import MoETransformer
from moe_core.routing.instruments.find import find_routers
from moe_core.training import watch
from moe_core.training.watching import EVERY

WATCHED, BARE = "watched", "the same steps unwatched"
QUICK, QWEN = "our quick model", "a Qwen3-MoE of 4 layers of 16 experts"


def run(scale: Scale) -> list[Result]:
    """Rows for our quick model and, where transformers is installed, a small Qwen3-MoE with random weights."""
    makers: dict[str, Callable[[bool], tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]]]] = {QUICK: _quick}
    if importlib.util.find_spec("transformers") is not None:
        makers[QWEN] = _qwen
    rows: list[Result] = []
    for number, (name, make) in enumerate(makers.items()):
        scale.progress("watched steps", number, len(makers))
        rows += _rows(name, make, scale)
    return rows


def _rows(
    name: str, make: Callable[[bool], tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]]], scale: Scale
) -> list[Result]:
    shape = (2, 16) if scale.smoke else (8, 128)
    case = f"{EVERY} training steps of {shape[0]} x {shape[1]} tokens, {name}"
    with tempfile.TemporaryDirectory() as folder:
        sides = {side: _Training(*make(scale.smoke), shape) for side in (WATCHED, BARE)}
        with watch(sides[WATCHED].model, run="bench", root=folder):
            timings = interleave({side: one.steps for side, one in sides.items()}, rounds=2 * scale.rounds)
        share = _share(sides[WATCHED], folder, 2 * EVERY if scale.smoke else 5 * EVERY)
    goal = None if scale.smoke else Goal(1 / 1.01)
    at_most = None if scale.smoke else Goal(1.0, at_most=True)
    return [
        compared(case, timings, WATCHED, BARE, goal=goal),
        Result(f"share of that time spent watching, timed directly, {name}", 100 * share, "%", goal=at_most),
    ]


class _Training:
    """A model with its optimizer and its batches."""

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, Tensor], Tensor], shape: tuple[int, int]) -> None:
        self.model = model.train()
        self._loss, self._shape, self._number = loss, shape, count()
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def steps(self) -> None:
        """As many as there are between two readings."""
        for _ in range(EVERY):
            drawn = torch.Generator().manual_seed(next(self._number))
            self._loss(self.model, torch.randint(1, 300, self._shape, generator=drawn)).backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            self._optimizer.zero_grad()


def _share(training: _Training, folder: str, steps: int) -> float:
    """Seconds between hooks that run right before those of `watch` and right after, over those of the steps.

    In the optimizer's hook the counts are read and written, every EVERY steps or more seldom, as watch decides.
    """
    marks: list[float] = []

    def mark(*_: Any) -> None:
        marks.append(time.perf_counter())

    def attach() -> list[Any]:
        hooks = [router.module.register_forward_hook(mark) for router in find_routers(training.model).values()]
        around = [training.model.register_forward_pre_hook(mark), training.model.register_forward_hook(mark)]
        return [*hooks, *around, register_optimizer_step_post_hook(mark)]

    before = attach()
    with watch(training.model, run="share", root=folder):
        after = attach()
        start = time.perf_counter()
        for _ in range(0, steps, EVERY):
            training.steps()
        whole = time.perf_counter() - start
    for handle in before + after:
        handle.remove()
    return (sum(marks[1::2]) - sum(marks[::2])) / whole


def _quick(smoke: bool) -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]]:
    torch.manual_seed(0)
    changes = {"model.num_layers": 2, "model.dim": 32, "model.num_heads": 2, "model.head_dim": 16} if smoke else {}
    config = load_config("quick", overrides=changes, environment={})
    return MoETransformer(config.model), _our_loss


def _our_loss(model: nn.Module, ids_BS: Tensor) -> Tensor:
    logits_BSV = model(ids_BS).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits_BSV.flatten(0, 1), ids_BS[:, 1:].flatten())


def _qwen(smoke: bool) -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]]:
    import transformers

    width = 32 if smoke else 256
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        "qwen3_moe", vocab_size=4096, hidden_size=width, intermediate_size=width, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=width // 4, max_position_embeddings=512, num_experts=16,
        moe_intermediate_size=width, num_experts_per_tok=2, bos_token_id=None, eos_token_id=0, pad_token_id=None,
    )  # fmt: skip
    kind: Any = transformers.AutoModelForCausalLM
    return kind.from_config(config), _their_loss


def _their_loss(model: nn.Module, ids_BS: Tensor) -> Tensor:
    loss: Tensor = model(input_ids=ids_BS, labels=ids_BS).loss
    return loss
