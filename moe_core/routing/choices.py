"""How nested interventions change one layer's choice: pure functions of tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from moe_core.routing.interventions import Intervention


class Stage(NamedTuple):
    """What the experts are told after one more of the nested interventions."""

    scores: Tensor
    """[T, K]"""
    indices: Tensor
    """[T, K]"""
    changed: Tensor
    """bool [T]: is anything of the token's choice another than in the stage before?"""


def stages_of(
    router: Any, layer: int, chosen: tuple[Tensor, Tensor, Tensor], changes: Sequence[Intervention]
) -> list[Stage]:
    """The choice as it was (logits, scores, indices), then after the first change, after the first two, and so on."""
    _, scores, indices = chosen
    stages = [Stage(scores, indices, torch.zeros(len(scores), dtype=torch.bool, device=scores.device))]
    for count in range(1, len(changes) + 1):
        scores, indices = choose(router, layer, chosen, changes[:count])
        stages.append(Stage(scores, indices, _differs(stages[-1], scores, indices)))
    return stages


def choose(
    router: Any, layer: int, chosen: tuple[Tensor, Tensor, Tensor], changes: Sequence[Intervention]
) -> tuple[Tensor, Tensor]:
    """Scores and indices [T, K] of one layer under nested interventions, from (logits, scores, indices) without any."""
    logits, scores, indices = chosen
    wanted, top_k = logits, indices.shape[1]
    for change in changes:
        if change.temperature is not None:
            wanted = wanted / change.temperature
        top_k = change.top_k or top_k
    # After every temperature: dividing may round the step by which a forced expert leads away.
    for change in changes:
        if forced := change.forced_in(layer):
            wanted = _lift(wanted, forced)
    if wanted is not logits or top_k != indices.shape[1]:
        scores, indices = router.choose(wanted, top_k)
    absent: list[int] = []
    for change in changes:
        gone = change.ablated_in(layer)
        if gone and change.mode == "reroute":
            absent += gone
            scores, indices = _without(router, wanted, absent, scores, indices)
    for change in changes:
        gone = change.ablated_in(layer)
        if gone and change.mode != "reroute":
            scores, indices = _emptied(gone, scores, indices, logits.shape[1], keep_sum=change.mode == "renormalise")
    return scores, indices


def _lift(logits: Tensor, forced: Sequence[int]) -> Tensor:
    """Forced experts at the token's largest logit; a step above it where another expert has that one."""
    index = torch.tensor(forced, device=logits.device)
    largest = logits.amax(dim=1, keepdim=True)
    rival = logits.detach().index_fill(1, index, -math.inf).amax(dim=1, keepdim=True)
    step = (largest.nextafter(torch.full_like(largest, math.inf)) - largest).detach()
    lifted = torch.where(largest > rival, largest, largest + step)
    return logits.index_copy(1, index, lifted.expand(-1, len(forced)))


def _without(
    router: Any, logits: Tensor, absent: Sequence[int], scores: Tensor, indices: Tensor
) -> tuple[Tensor, Tensor]:
    """Tokens that chose one of the `absent` choose again; where too few experts are left, slots stay empty."""
    left = logits.index_fill(1, torch.tensor(absent, device=logits.device), -math.inf)
    new_scores, new_indices = router.choose(left, indices.shape[1])
    empty = left.gather(1, new_indices) == -math.inf
    concerned = _is_one_of(absent, indices, logits.shape[1]).any(dim=1, keepdim=True)
    return (
        torch.where(concerned, new_scores.masked_fill(empty, 0.0), scores),
        torch.where(concerned, new_indices.masked_fill(empty, -1), indices),
    )


def _emptied(
    gone: Sequence[int], scores: Tensor, indices: Tensor, num_experts: int, *, keep_sum: bool
) -> tuple[Tensor, Tensor]:
    """Slots of the `gone` become -1 with score 0; `keep_sum` scales the token's other scores up to the former sum."""
    empty = _is_one_of(gone, indices, num_experts)
    left = scores.masked_fill(empty, 0.0)
    if keep_sum:
        before, after = scores.sum(dim=1, keepdim=True), left.sum(dim=1, keepdim=True)
        has_rest = after != 0
        scaled = left * before / after.masked_fill(~has_rest, 1.0)
        left = torch.where(empty.any(dim=1, keepdim=True) & has_rest, scaled, left)
    return left, indices.masked_fill(empty, -1)


def _is_one_of(experts: Sequence[int], indices: Tensor, num_experts: int) -> Tensor:
    """bool [T, K]; index -1 reads the last entry of the table, which is no expert's."""
    table = torch.zeros(num_experts + 1, dtype=torch.bool, device=indices.device)
    table[list(experts)] = True
    return table[indices.long()]


def _differs(before: Stage, scores: Tensor, indices: Tensor) -> Tensor:
    """bool [T]; a slot more or less is no difference while it is unused."""
    slots = max(before.indices.shape[1], indices.shape[1])
    old, new = _widened(before.indices, slots, -1), _widened(indices, slots, -1)
    return ((old != new) | (_widened(before.scores, slots, 0) != _widened(scores, slots, 0))).any(dim=1)


def _widened(values: Tensor, slots: int, unused: int) -> Tensor:
    """[T, K] -> [T, slots]"""
    return torch.nn.functional.pad(values, (0, slots - values.shape[1]), value=unused)
