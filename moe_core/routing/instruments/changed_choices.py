"""How nested interventions change one layer's choice: pure functions of tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from moe_core.errors import TraceError
from moe_core.routing.instruments.contract import Call, Choice, Router

if TYPE_CHECKING:
    from moe_core.routing.instruments.interventions import Intervention


ChooseAgain = Callable[[Tensor, int, Sequence[int]], tuple[Tensor, Tensor]]
"""The router's own rule: (logits [T, E], top_k, forced experts) -> scores and indices [T, top_k]."""


class Stage(NamedTuple):
    """What the experts are told after one more of the nested interventions."""

    scores: Tensor
    """[T, K]"""
    indices: Tensor
    """[T, K]; where the experts cannot take -1, an unused slot has any valid index, with score 0."""
    changed: Tensor
    """bool [T]: is anything of the token's choice another than in the stage before?"""
    recorded: Choice
    """The same for captures: unused slots are -1."""


def stages_of(router: Router, call: Call, changes: Sequence[Intervention]) -> list[Stage]:
    """The choice as it was, then after the first change, after the first two, and so on."""
    chosen = router.read(call)
    again = partial(router.form.choose, router, call)
    unchanged = torch.zeros(len(chosen.scores), dtype=torch.bool, device=chosen.scores.device)
    stages = [Stage(chosen.scores, _valid_indices(router, chosen.indices, chosen.indices), unchanged, chosen)]
    for count in range(1, len(changes) + 1):
        scores, indices = choose(again, router, chosen, changes[:count])
        before = stages[-1].recorded
        scores = scores.to(chosen.scores.dtype)
        recorded = Choice(chosen.logits, scores, indices)
        stages.append(
            Stage(scores, _valid_indices(router, indices, chosen.indices), _changed_tokens(before, recorded), recorded)
        )
    if torch.equal(stages[-1].indices, stages[0].indices):
        # Every expert keeps its tokens, so no rounding changes: the last word is enough.
        stages[-1] = stages[-1]._replace(changed=_changed_tokens(chosen, stages[-1].recorded))
        return stages[-1:]
    return stages


def choose(
    again: ChooseAgain, router: Router, chosen: Choice, changes: Sequence[Intervention]
) -> tuple[Tensor, Tensor]:
    """Scores and indices [T, K] of one layer under nested interventions, from what was chosen without any."""
    logits, scores, indices = chosen
    layer, top_k = router.layer, indices.shape[1]
    num_experts = router.num_experts if logits is None else logits.shape[1]
    all_forced = [expert for change in changes for expert in change.forced_in(layer)]
    if any(change._chooses_again() for change in changes):
        if logits is None:
            raise TraceError(f"{router.described} tells no logits; use ablate with mode zero or renormalise")
        wanted = logits
        for change in changes:
            if change.temperature is not None:
                wanted = wanted / change.temperature
            top_k = change.top_k or top_k
        # After every temperature: dividing may round the step by which a forced expert leads away.
        for change in changes:
            if forced := change.forced_in(layer):
                wanted = _lifted_logits(wanted, forced)
        if wanted is not logits or top_k != indices.shape[1]:
            scores, indices = again(wanted, top_k, all_forced)
        absent: list[int] = []
        for change in changes:
            gone = change.ablated_in(layer)
            if gone and change.mode == "reroute":
                absent += gone
                scores, indices = _choice_without(again, wanted, absent, all_forced, scores, indices)
    for change in changes:
        gone = change.ablated_in(layer)
        if gone and change.mode != "reroute":
            scores, indices = _emptied_slots(gone, scores, indices, num_experts, keep_sum=change.mode == "renormalise")
    return scores, indices


def _valid_indices(router: Router, indices: Tensor, before: Tensor) -> Tensor:
    """Indices that the experts can take: an emptied slot keeps the index that it had."""
    if not router.form.needs_valid_indices:
        return indices
    spare = before if before.shape == indices.shape else torch.zeros_like(indices)
    return torch.where(indices < 0, spare.clamp(min=0), indices)


def _lifted_logits(logits: Tensor, forced: Sequence[int]) -> Tensor:
    """Forced experts at the token's largest logit; a step above it where another expert has that one."""
    index = torch.tensor(forced, device=logits.device)
    # Where all experts are masked there is no largest: the smallest finite number is above all of them.
    largest = logits.amax(dim=1, keepdim=True).clamp(min=torch.finfo(logits.dtype).min)
    rival = logits.detach().index_fill(1, index, -math.inf).amax(dim=1, keepdim=True)
    step = (largest.nextafter(torch.full_like(largest, math.inf)) - largest).detach()
    lifted = torch.where(largest > rival, largest, largest + step)
    return logits.index_copy(1, index, lifted.expand(-1, len(forced)))


def _choice_without(
    again: ChooseAgain, logits: Tensor, absent: Sequence[int], forced: Sequence[int], scores: Tensor, indices: Tensor
) -> tuple[Tensor, Tensor]:
    """Tokens that chose one of the `absent` choose again; where too few experts are left, slots stay empty."""
    left = logits.index_fill(1, torch.tensor(absent, device=logits.device), -math.inf)
    new_scores, new_indices = again(left, indices.shape[1], forced)
    empty = (new_indices < 0) | (left.gather(1, new_indices.clamp(min=0)) == -math.inf)
    concerned = _is_one_of(absent, indices, logits.shape[1]).any(dim=1, keepdim=True)
    return (
        torch.where(concerned, new_scores.masked_fill(empty, 0.0), scores),
        torch.where(concerned, new_indices.masked_fill(empty, -1), indices),
    )


def _emptied_slots(
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


def _changed_tokens(before: Choice, after: Choice) -> Tensor:
    """bool [T]; a slot more or less is no difference while it is unused."""
    slots = max(before.indices.shape[1], after.indices.shape[1])
    old, new = _widened_slots(before.indices, slots, -1), _widened_slots(after.indices, slots, -1)
    return ((old != new) | (_widened_slots(before.scores, slots, 0) != _widened_slots(after.scores, slots, 0))).any(
        dim=1
    )


def _widened_slots(values: Tensor, slots: int, unused: int) -> Tensor:
    """[T, K] -> [T, slots]"""
    return torch.nn.functional.pad(values, (0, slots - values.shape[1]), value=unused)
