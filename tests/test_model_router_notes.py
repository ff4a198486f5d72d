"""A router's notes are items of its output: whatever maps over outputs keeps them, and nothing depends on its class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from routers_support import lone_router, model_with, route, tokens
from torch import Tensor
from torch.utils import _pytree as pytree

from moe_core.config.router import RouterConfig
from moe_core.model.losses import routing_losses
from moe_core.model.routers import Router, RouterOutput, RouterShape, TopKRouter
from moe_core.routing import capture, intervene
from moe_core.routing.instruments.contract import notes_of

Map = Callable[[RouterOutput], Any]


def by_tree_map(output: RouterOutput) -> Any:
    return pytree.tree_map(torch.clone, output)


def by_type(output: RouterOutput) -> Any:
    """As libraries rebuild a named tuple of tensors and mappings of tensors."""
    return type(output)(*[item.clone() if isinstance(item, Tensor) else dict(item) for item in output])


def to_float32(output: Any) -> Any:
    """As libraries that compute in half precision convert a module's output, item by item at any depth."""
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*[to_float32(item) for item in output])
    if isinstance(output, dict):
        return type(output)({name: to_float32(item) for name, item in output.items()})
    return output.float() if output.is_floating_point() else output


def to_plain_tuple(output: RouterOutput) -> tuple[Any, ...]:
    return tuple(output)


MAPS: list[Map] = [by_tree_map, by_type, to_float32, to_plain_tuple]


def noted() -> RouterOutput:
    """A pool of 2 of 4 experts, with a load probability and a slot that was taken away."""
    output = RouterOutput(torch.randn(3, 4), torch.rand(3, 2), torch.tensor([[0, 1], [1, -1], [2, 3]]))
    return output.noting(
        eligible=torch.tensor([[True, True, False, False]] * 3),
        load_probability=torch.rand(3, 4),
        wanted_indices=torch.tensor([[0, 1], [1, 0], [2, 3]]),
    )


@pytest.mark.parametrize("mapped", MAPS)
def test_what_maps_over_an_output_keeps_its_notes(mapped: Map) -> None:
    output = noted()
    kept = mapped(output)
    for before, after in zip(output[:3], kept[:3], strict=True):
        assert torch.equal(before, after)
    assert set(notes_of(kept)) == {"eligible", "load_probability", "wanted_indices"}
    for name, note in notes_of(kept).items():
        assert torch.equal(note, getattr(output, name))
    again = RouterOutput(*kept)
    assert again.eligible is not None
    assert again.load_probability is not None
    assert torch.equal(again.wanted_indices, output.wanted_indices)


def test_the_first_three_items_are_the_contracts_and_a_note_not_made_is_absent() -> None:
    output = route(lone_router("softmax"), torch.randn(5, 6))
    logits, scores, indices = output[:3]
    assert (logits is output.router_logits, scores is output.router_scores, indices is output.router_indices) == (
        True, True, True,
    )  # fmt: skip
    assert output.notes == {}
    assert (output.eligible, output.load_probability) == (None, None)
    assert output.wanted_indices is indices, "nothing was taken away"
    assert all(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(noted()))
    assert len(pytree.tree_leaves(output)) == 3
    assert notes_of((logits, scores, indices)) == {}
    assert notes_of((logits, scores, indices, torch.zeros(1))) == {}


def test_what_was_wanted_is_kept_where_slots_are_taken_away() -> None:
    """Four tokens want expert 0, then 1; capacity ceil(0.5 * 4 * 2 / 2) = 2 leaves the last two tokens nothing."""
    router = TopKRouter(RouterShape(2, 2, 2, capacity_factor=0.5), RouterConfig()).train()
    torch.nn.init.eye_(router.weight)
    routed = router(torch.tensor([[1.0, 0.0]] * 4))
    assert routed.router_indices.tolist() == [[0, 1], [0, 1], [-1, -1], [-1, -1]]
    assert routed.wanted_indices.tolist() == [[0, 1]] * 4
    assert torch.equal(router.eval()(torch.eye(2)).wanted_indices, torch.tensor([[0, 1], [1, 0]]))
    torch.manual_seed(0)
    masking = TopKRouter(RouterShape(2, 2, 1), RouterConfig(expert_output_dropout=0.5)).train()
    torch.nn.init.eye_(masking.weight)
    masked = masking(torch.tensor([[1.0, 0.0]] * 40))
    assert 5 < (masked.router_indices == -1).sum() < 35
    assert masked.wanted_indices.tolist() == [[0]] * 40


def test_parts_of_a_batch_join_with_their_notes() -> None:
    parts = [noted(), noted()]
    whole = RouterOutput.concatenate([part.detach() for part in parts])
    assert whole.router_indices.shape == (6, 2)
    assert torch.equal(whole.wanted_indices, torch.cat([part.wanted_indices for part in parts]))
    assert whole.load_probability is not None
    assert whole.load_probability.shape == (6, 4)
    assert not whole.router_logits.requires_grad


def wrap(router: Router, mapped: Map) -> None:
    """As libraries do: the module's forward is replaced by one that maps over what the old one returns."""
    forward = router.forward
    router.forward = lambda *args, **kwargs: mapped(forward(*args, **kwargs))  # type: ignore[method-assign]


@pytest.mark.parametrize("mapped", MAPS)
def test_an_intervention_stays_within_the_pool_of_a_wrapped_router(mapped: Map) -> None:
    """A replacement is one of the experts that the token could choose from; without the note it would be any."""
    model, ids = model_with("document_pool").eval(), tokens(2, 24)
    change: dict[str, Any] = {"ablate": [(0, expert) for expert in (0, 1, 2)], "mode": "reroute"}
    with torch.no_grad():
        pool: Any = model(ids).router_outputs[0].eligible
        with intervene(model, **change):
            expected = model(ids).router_outputs[0]
        for router in model.routers:
            wrap(router, mapped)
        with capture(model) as recorder, intervene(model, **change):
            found = model(ids).router_outputs[0]
    assert torch.equal(found.router_indices, expected.router_indices)
    used = found.router_indices >= 0
    assert pool.gather(1, found.router_indices.clamp(min=0))[used].all()
    assert not torch.isin(found.router_indices, torch.tensor([0, 1, 2])).any()
    assert torch.equal(found.eligible, pool), "a changed output keeps its notes"
    assert (recorder.trace(token_ids=ids).router_indices[0] == found.router_indices.numpy()).all()


def test_a_wrapped_noisy_router_still_learns_from_its_expected_load() -> None:
    losses = []
    for mapped in (None, *MAPS):
        model = model_with("noisy").train()
        if mapped is not None:
            for router in model.routers:
                wrap(router, mapped)
        torch.manual_seed(1)
        outputs = model(tokens(2, 24)).router_outputs
        assert all(output.load_probability is not None for output in outputs)
        losses.append(routing_losses(outputs, model.config.router).total)
    assert all(torch.equal(loss, losses[0]) for loss in losses)
