"""What each expert adds while a model reads: every expert's output for the tokens that chose it, by itself.

The experts of a layer add up their outputs before anybody can look. So each is asked once more, alone and with weight
1, for the tokens that chose it. The model's own output stays what it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from moe_core.errors import UsageError
from moe_core.routing.instruments.find import find_routers

if TYPE_CHECKING:
    from torch import Tensor, nn

    from moe_core.inference.protocol import LanguageModel
    from moe_core.routing.instruments.contract import Router
    from moe_core.routing.trace.types import Float64Array


@dataclass(eq=False)
class WatchedExperts:
    """Where what is measured goes; set before each pass."""

    keep: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    """bool [T] tokens of the pass that count."""
    source: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """int64 [T] source of each token of the pass, 0..S-1."""
    add_to: dict[int, Float64Array] = field(default_factory=dict)
    """By layer [4, S, E]: tokens that chose the expert, sums of weight times output norm, of output norm, of weight."""
    thread: int = field(default_factory=threading.get_ident)
    """Whose passes count: other threads may use the same model meanwhile."""


@contextmanager
def watched_experts(model: LanguageModel) -> Iterator[WatchedExperts]:
    """Measure what this thread's passes do inside the block; the hooks come off in every case.

    Raises UsageError for a model whose experts are no module that can be asked alone.
    """
    watched = WatchedExperts()
    routers: dict[int, Router] = find_routers(model.model)
    for router in routers.values():
        if router.experts is None:
            raise UsageError(
                f"{router.described} has no module of stacked experts beside it, so the output of one expert cannot be "
                "seen; order experts by load or by effect instead"
            )
    with ExitStack() as stack:
        for layer, router in routers.items():
            assert router.experts is not None
            stack.callback(router.experts.register_forward_hook(_hook(watched, router, layer)).remove)
        yield watched


def _hook(watched: WatchedExperts, router: Router, layer: int) -> Callable[..., None]:
    places = {name: 1 + place for place, name in enumerate(router.form.experts_take)}

    def hook(experts: nn.Module, args: tuple[Any, ...], output: object) -> None:  # noqa: ARG001 - torch's signature
        if threading.get_ident() != watched.thread or layer not in watched.add_to:
            return
        keep = watched.keep.to(args[0].device)
        states_TD, indices_TK, scores_TK = (
            part[keep] for part in (args[0], args[places["indices"]], args[places["scores"]])
        )
        sums_4SE, source_T = watched.add_to[layer], watched.source.to(args[0].device)[keep]
        for expert in range(sums_4SE.shape[2]):
            token, slot = (indices_TK == expert).nonzero(as_tuple=True)
            if len(token):
                norm = expert_outputs(router, states_TD[token], expert).float().norm(dim=1)
                gate = scores_TK[token, slot].float()
                values_4N = torch.stack([torch.ones_like(norm), gate * norm, norm, gate]).double()
                sums_4S = values_4N.new_zeros(4, sums_4SE.shape[1]).index_add_(1, source_T[token], values_4N)
                sums_4SE[:, :, expert] += sums_4S.cpu().numpy()

    return hook


def expert_outputs(router: Router, states_ND: Tensor, expert: int) -> Tensor:
    """[n, D] one expert's outputs, unweighted, for tokens whoever had chosen it."""
    assert router.experts is not None
    given = {
        "scores": states_ND.new_ones(len(states_ND), 1),
        "indices": torch.full((len(states_ND), 1), expert, dtype=torch.int64, device=states_ND.device),
    }
    outputs: Tensor = router.experts.forward(states_ND, *(given[name] for name in router.form.experts_take))
    return outputs
