"""Interventions: what they should change, against a plain reference; what they must not, to the last bit."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_model_experts import naive_experts
from test_routing_capture import TOKENS, TinyMoE, hooks_left
from torch import Tensor

from moe_core.ablation_modes import MODES, Mode
from moe_core.config import ModelConfig
from moe_core.config.router import RouterConfig
from moe_core.errors import MoescopeError, TraceError, UsageError
from moe_core.model import KVCache, MoETransformer, TopKRouter
from moe_core.model.feed_forward import MoE
from moe_core.model.routers import RouterShape
from moe_core.routing import Intervention, capture, intervene

# Rounds differently with the number of rows on every machine we know: the widths are no multiple of a vector's.
ODD = {"dim": 34, "expert_hidden_dim": 17}


@cache
def tiny(num_experts: int = 4, top_k: int = 2, normalize: bool = True, **options: Any) -> MoETransformer:
    """Two layers in eval mode, with weights large enough that choices differ from token to token."""
    sizes = {"vocab_size": 300, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16, "max_seq_len": 128, **ODD}
    router = {"normalize_scores": normalize}
    config = ModelConfig.model_validate(
        {**sizes, "num_layers": 2, "num_experts": num_experts, "top_k": top_k, "router": router, **options}
    )
    torch.manual_seed(0)
    model = MoETransformer(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.requires_grad_(False)


def moe_of(model: MoETransformer, layer: int = 0) -> MoE:
    moe: Any = model.layers[layer].moe
    assert isinstance(moe, MoE)
    return moe


def text(tokens: int, seed: int = 0) -> Tensor:
    return torch.randint(300, (1, tokens), generator=torch.Generator().manual_seed(seed))


Choice = list[tuple[int, float]]


def naive_choice(logits: Sequence[float], top_k: int, normalize: bool, present: Sequence[int]) -> Choice:
    """The rule of TopKRouter for one token, when only `present` experts exist: [(expert, weight), ...]."""
    order = sorted(present, key=lambda expert: (-logits[expert], expert))[:top_k]
    exponentials = {expert: math.exp(logits[expert] - max(logits)) for expert in present}
    total = sum(exponentials[expert] for expert in (order if normalize else present))
    return [(expert, exponentials[expert] / total) for expert in order]


def naive(logits: Sequence[float], layer: int, change: Intervention, top_k: int, normalize: bool) -> Choice:
    """What the documentation of Intervention says, for one token, in plain Python. Slots in use only."""
    wanted = [x / (change.temperature or 1.0) for x in logits]
    forced = [expert for at, expert in change.force if at == layer]
    largest = max(wanted)
    rivals = [x for expert, x in enumerate(wanted) if expert not in forced]
    for expert in forced:
        wanted[expert] = largest if largest > max(rivals, default=-math.inf) else math.nextafter(largest, math.inf)
    everyone = range(len(logits))
    choice = naive_choice(wanted, change.top_k or top_k, normalize, everyone)
    ablated = {expert for at, expert in change.ablate if at == layer}
    if not ablated & {expert for expert, _ in choice}:
        return choice
    if change.mode == "reroute":
        return naive_choice(wanted, change.top_k or top_k, normalize, [e for e in everyone if e not in ablated])
    rest = [(expert, weight) for expert, weight in choice if expert not in ablated]
    if change.mode == "renormalise" and rest:
        scale = sum(weight for _, weight in choice) / sum(weight for _, weight in rest)
        rest = [(expert, weight * scale) for expert, weight in rest]
    return rest


def used(scores: Tensor, indices: Tensor) -> list[Choice]:
    """The slots in use of every token; an unused one must have score 0."""
    assert not scores[indices < 0].any()
    return [
        [(e, s) for e, s in zip(row, weights, strict=True) if e >= 0]
        for row, weights in zip(indices.tolist(), scores.tolist(), strict=True)
    ]


@st.composite
def interventions(draw: st.DrawFn, num_experts: int, top_k: int, layer: int = 0) -> Intervention:
    experts = draw(st.permutations(range(num_experts)))
    ablated = draw(st.integers(0, num_experts - 1))
    new_k = draw(st.none() | st.integers(1, num_experts))
    forced = draw(st.integers(0, min(num_experts - ablated, new_k or top_k)))
    return Intervention(
        ablate=tuple((layer, expert) for expert in experts[:ablated]),
        force=tuple((layer, expert) for expert in experts[ablated : ablated + forced]),
        mode=draw(st.sampled_from(MODES)),
        top_k=new_k,
        temperature=draw(st.none() | st.sampled_from([0.1, 0.5, 1.0, 2.0, 10.0])),
    )


SHAPES = [(4, 2, True), (4, 2, False), (5, 1, True), (6, 3, True)]


# ---- what changes ----


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_choice_and_output_is_the_plain_reference_and_other_tokens_keep_every_bit(data: st.DataObject) -> None:
    num_experts, top_k, normalize = data.draw(st.sampled_from(SHAPES))
    model = tiny(num_experts, top_k, normalize)
    moe = moe_of(model)
    change = data.draw(interventions(num_experts, top_k))
    tokens = data.draw(st.sampled_from([1, 2, 3, 7, 16, 33, 64]))
    x_TD = torch.randn(tokens, 34, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    with torch.no_grad():
        plain_TD, plain = moe(x_TD)
        with intervene(model, change):
            out_TD, routed = moe(x_TD)
        again_TD, _ = moe(x_TD)
    assert torch.equal(plain_TD, again_TD)
    assert torch.equal(plain.router_logits, routed.router_logits)

    found, before = used(routed.router_scores, routed.router_indices), used(plain.router_scores, plain.router_indices)
    for token, logits in enumerate(plain.router_logits.tolist()):
        expected = naive(logits, 0, change, top_k, normalize and top_k > 1)
        assert [expert for expert, _ in found[token]] == [expert for expert, _ in expected]
        np.testing.assert_allclose([s for _, s in found[token]], [s for _, s in expected], rtol=2e-5)
    experts = moe.experts
    naive_TD = naive_experts(
        x_TD, routed.router_scores, routed.router_indices, experts.gate_proj, experts.up_proj, experts.down_proj
    )
    torch.testing.assert_close(out_TD, naive_TD, atol=1e-4, rtol=1e-4)

    same_T = torch.tensor([a == b for a, b in zip(found, before, strict=True)])
    assert torch.equal(out_TD[same_T], plain_TD[same_T])
    if change.top_k is None and change.temperature is None and not change.force:
        gone = {expert for _, expert in change.ablate}
        touched_T = torch.tensor([bool(gone & {expert for expert, _ in choice}) for choice in before])
        assert same_T[~touched_T].all()
        assert not same_T[touched_T].any()


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_tokens_that_did_not_choose_the_expert_keep_every_bit_at_every_row_count(mode: Mode, grad: bool) -> None:
    moe = moe_of(tiny())
    changed = 0
    with torch.set_grad_enabled(grad):
        for tokens in [*range(1, 40), 63, 64, 65, 100, 257]:
            x_TD = torch.randn(tokens, 34, generator=torch.Generator().manual_seed(tokens))
            plain_TD, plain = moe(x_TD)
            with intervene(tiny(), ablate=[(0, 1)], mode=mode):
                out_TD, _ = moe(x_TD)
            chose_T = (plain.router_indices == 1).any(dim=1)
            assert torch.equal(out_TD[~chose_T], plain_TD[~chose_T])
            assert not (out_TD[chose_T] == plain_TD[chose_T]).all(dim=1).any()
            changed += int(chose_T.sum())
    assert changed > 100


def test_without_the_experts_help_other_tokens_would_round_differently(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason for computing twice: a product over another number of rows, or from another address, rounds apart."""
    model = tiny()
    moe = moe_of(model)
    monkeypatch.setattr(type(moe.experts), "is_moe_experts", False)
    moved = 0
    with torch.no_grad():
        for tokens in range(2, 60):
            x_TD = torch.randn(tokens, 34, generator=torch.Generator().manual_seed(tokens))
            plain_TD, plain = moe(x_TD)
            with intervene(model, force=[(0, 2)]):
                out_TD, routed = moe(x_TD)
            same_T = torch.tensor([a == b for a, b in zip(used(*plain[1:3]), used(*routed[1:3]), strict=True)])
            torch.testing.assert_close(out_TD[same_T], plain_TD[same_T])
            moved += not torch.equal(out_TD[same_T], plain_TD[same_T])
    assert moved > 0


def route(logits: Sequence[Sequence[float]], slots: int, normalize: bool = True, **change: Any) -> list[Choice]:
    """Choices of a lone router whose weight is the identity, so that the tokens are the logits."""
    logits_TE = torch.tensor(logits)
    router = TopKRouter(
        RouterShape(logits_TE.shape[1], logits_TE.shape[1], slots), RouterConfig(normalize_scores=normalize)
    ).eval()
    torch.nn.init.eye_(router.weight)
    model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([torch.nn.ModuleDict({"router": router})])})
    with torch.no_grad(), intervene(model, **change):
        output = router(logits_TE)
    return used(*output[1:3])


def test_hand_computed_scores() -> None:
    # Weights 1 : 4 : 2 : 8, so that expert 3 and 1 are chosen: 8/12 and 4/12.
    logits = [[math.log(w) for w in (1.0, 4.0, 2.0, 8.0)]]

    def check(expected: Choice, **change: Any) -> None:
        found = route(logits, 2, **change)[0]
        assert [expert for expert, _ in found] == [expert for expert, _ in expected]
        assert [score for _, score in found] == pytest.approx([score for _, score in expected])

    check([(3, 8 / 12), (1, 4 / 12)])
    check([(1, 4 / 12)], ablate=[(0, 3)])
    check([(1, 1.0)], ablate=[(0, 3)], mode="renormalise")
    check([(1, 4 / 6), (2, 2 / 6)], ablate=[(0, 3)], mode="reroute")
    check([(3, 8 / 12), (1, 4 / 12)], ablate=[(0, 0)], mode="reroute")
    check([], ablate=[(0, 3), (0, 1)])
    check([], ablate=[(0, 3), (0, 1)], mode="renormalise")
    check([(2, 1.0)], ablate=[(0, 3), (0, 1), (0, 0)], mode="reroute")
    check([(0, 0.5), (3, 0.5)], force=[(0, 0)])
    check([(3, 8 / 12), (1, 4 / 12)], force=[(0, 3)])
    check([(0, 0.5), (2, 0.5)], force=[(0, 0), (0, 2)])
    check([(0, 0.5)], force=[(0, 0)], ablate=[(0, 3)])
    check([(3, 1.0)], top_k=1)
    check([(3, 8 / 14), (1, 4 / 14), (2, 2 / 14)], top_k=3)
    # The square root of the weights: 2.83 and 2.
    check([(3, 8**0.5 / (8**0.5 + 2)), (1, 2 / (8**0.5 + 2))], temperature=2.0)
    # Weights as shares of all experts, here of those that are left: 15 and 7.
    check([(3, 8 / 15), (1, 4 / 15)], normalize=False)
    check([(1, 4 / 7), (2, 2 / 7)], normalize=False, ablate=[(0, 3)], mode="reroute")
    check([(1, 12 / 15)], normalize=False, ablate=[(0, 3)], mode="renormalise")


def test_a_forced_expert_wins_a_tie_even_when_only_one_is_chosen() -> None:
    logits = [[3.0, 3.0, 1.0], [0.0, 5.0, 5.0], [-2.0, -1.0, -0.5], [0.0, 0.0, 0.0]]
    for expert in range(3):
        assert [choice[0][0] for choice in route(logits, 1, force=[(0, expert)])] == [expert] * 4


def test_temperature_one_and_the_models_own_top_k_change_nothing() -> None:
    model, tokens = tiny(), text(30)
    with intervene(model, temperature=1.0, top_k=2), capture(model) as recorder:
        changed = model(tokens)
    assert torch.equal(changed.logits, model(tokens).logits)
    assert recorder.trace(token_ids=tokens).top_k == 2


# ---- what does not ----


@pytest.mark.parametrize("mode", MODES)
def test_an_expert_that_no_token_chose_changes_nothing_at_all(mode: Mode) -> None:
    model, tokens = tiny(8, 2), text(3)
    plain = model(tokens)
    idle = [
        (layer, expert)
        for layer, routed in enumerate(plain.router_outputs)
        for expert in set(range(8)) - set(routed.router_indices.flatten().tolist())
    ]
    assert {layer for layer, _ in idle} == {0, 1}
    for expert in idle:
        with intervene(model, ablate=[expert], mode=mode):
            assert torch.equal(model(tokens).logits, plain.logits)


def test_an_empty_intervention_changes_nothing() -> None:
    model, tokens = tiny(), text(20)
    with intervene(model) as change:
        assert hooks_left(model) == 0
        assert torch.equal(model(tokens).logits, tiny()(tokens).logits)
    assert change == Intervention()
    assert change.describe() == ""


def test_tokens_before_the_first_concerned_one_keep_their_logits_and_later_ones_move() -> None:
    model, tokens = tiny(), text(40)
    plain = model(tokens)
    chose_T = (plain.router_outputs[1].router_indices == 3).any(dim=1)
    with intervene(model, ablate=[(1, 3)], mode="reroute"):
        changed = model(tokens).logits[0]
    # The last layer: no later layer or token takes the change on.
    assert torch.equal(changed[~chose_T], plain.logits[0][~chose_T])
    chose_T = (plain.router_outputs[0].router_indices == 3).any(dim=1)
    first = int(chose_T.nonzero()[0])
    assert first > 0
    with intervene(model, ablate=[(0, 3)], mode="reroute"):
        changed = model(tokens).logits[0]
    torch.testing.assert_close(changed[:first], plain.logits[0][:first])
    assert ((changed[first:] - plain.logits[0][first:]).abs().amax(dim=1) > 1e-4).all()


def test_weights_settings_and_hooks_are_as_before_also_after_an_exception() -> None:
    model, tokens = tiny(), text(10)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = model(tokens).logits
    attributes = [{*module.__dict__} for module in model.modules()]
    with intervene(model, ablate=[(0, 1)], force=[(1, 2)], top_k=3, temperature=0.5):
        assert not torch.equal(model(tokens).logits, plain)
        assert hooks_left(model) > 0
    with pytest.raises(IndexError), intervene(model, ablate=[(0, 1)], force=[(1, 2)], top_k=3, temperature=0.5):
        model(torch.tensor([[9999]]))
    assert hooks_left(model) == 0
    assert attributes == [{*module.__dict__} for module in model.modules()]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(model(tokens).logits, plain)


@pytest.mark.parametrize("place", ["before the experts", "in the experts"])
def test_a_pass_that_was_broken_off_leaves_nothing_for_the_next(place: str) -> None:
    model, tokens = tiny(), text(12)
    moe = moe_of(model)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    x_TD = torch.randn(40, 34, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), intervene(model, ablate=[(0, 1)]):
        expected = model(tokens).logits
        _, routed = moe(x_TD)
        unconcerned_TD = x_TD[(routed.router_indices >= 0).all(dim=1)]
        register: Any = (
            moe.router.register_forward_hook if place == "before the experts" else moe.experts.register_forward_pre_hook
        )
        handle = register(fail)
        with pytest.raises(KeyboardInterrupt):
            model(tokens)
        handle.remove()
        after_TD, _ = moe(unconcerned_TD)
        assert torch.equal(model(tokens).logits, expected)
    assert torch.equal(after_TD, moe(unconcerned_TD)[0])


def test_other_threads_see_the_model_as_it_is() -> None:
    model, tokens = tiny(), text(25)
    plain = model(tokens).logits
    changes = [Intervention(ablate=((0, expert),), mode=mode) for expert in range(2) for mode in MODES]
    expected = []
    for change in changes:
        with torch.no_grad(), intervene(model, change):
            expected.append(model(tokens).logits)
    barrier = threading.Barrier(len(changes) + 1, timeout=240)
    found: dict[int, list[Tensor]] = {}

    def session(number: int) -> None:
        with torch.no_grad(), intervene(model, changes[number]):
            barrier.wait()  # all hooks are on now
            found[number] = [model(tokens).logits for _ in range(5)]
            barrier.wait()

    threads = [threading.Thread(target=session, args=(number,)) for number in range(len(changes))]
    for thread in threads:
        thread.start()
    barrier.wait()
    untouched = [model(tokens).logits for _ in range(5)]
    barrier.wait()
    for thread in threads:
        thread.join()
    assert all(torch.equal(logits, plain) for logits in untouched)
    for number, logits in enumerate(expected):
        assert all(torch.equal(again, logits) for again in found[number])
    assert hooks_left(model) == 0


# ---- together ----


def test_captures_inside_and_outside_record_what_the_experts_received() -> None:
    model, tokens = tiny(), text(20)
    received: list[tuple[Tensor, Tensor]] = []
    plain = model(tokens)
    with ExitStack() as stack:
        outside = stack.enter_context(capture(model))
        stack.enter_context(intervene(model, ablate=[(0, 1)], mode="reroute"))
        between = stack.enter_context(capture(model))
        stack.enter_context(intervene(model, ablate=[(1, 2)]))
        inside = stack.enter_context(capture(model))
        received = [output[1:3] for output in model(tokens).router_outputs]
    for recorder in (outside, between, inside):
        trace = recorder.trace(token_ids=tokens)
        for layer, (scores, indices) in enumerate(received):
            assert np.array_equal(trace.router_indices[layer], indices.numpy())
            assert np.array_equal(trace.router_scores[layer], scores.numpy())
        assert trace.router_logits is not None
        # What the router wanted stays on record.
        assert np.array_equal(trace.router_logits[0], plain.router_outputs[0].router_logits.half().numpy())
    assert not (trace.router_indices[0] == 1).any()
    assert (trace.router_indices[1] == -1).any()


@pytest.mark.parametrize("top_k", [1, 3, 4])
def test_a_trace_under_another_top_k_has_that_many_slots(top_k: int) -> None:
    model, tokens = tiny(), text(10)
    with intervene(model, top_k=top_k), capture(model) as recorder:
        model(tokens)
    trace = recorder.trace(token_ids=tokens)
    assert trace.top_k == top_k
    np.testing.assert_allclose(trace.router_scores.sum(axis=-1), 1.0, rtol=1e-5)


def test_a_slot_that_stays_empty_leaves_the_token_exact_and_the_trace_whole() -> None:
    # One expert a token and, of two that it may have, the second ablated wherever it comes up.
    model = tiny(5, 1)
    moe = moe_of(model)
    x_TD = torch.randn(50, 34, generator=torch.Generator().manual_seed(0))
    _, plain = moe(x_TD)
    change = Intervention(ablate=((0, 0),), top_k=2)
    with intervene(model, change):
        second_T = moe(x_TD)[1].router_indices[:, 1] < 0
        assert second_T.any()
        some_TD, routed = moe(x_TD[second_T])
    assert routed.router_indices.shape[1] == 2
    assert torch.equal(routed.router_indices[:, :1], plain.router_indices[second_T])
    assert torch.equal(some_TD, moe(x_TD[second_T])[0])
    with intervene(model, change), capture(model) as recorder:
        for i in range(8):
            model(text(1, seed=i))
    assert recorder.trace(token_ids=[0] * 8).top_k == 2


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_nested_interventions_add_up_and_the_inner_one_leaves_the_rest_of_the_outer_one(data: st.DataObject) -> None:
    model = tiny(6, 3)
    moe = moe_of(model)
    outer, inner = (data.draw(interventions(6, 3)) for _ in range(2))
    x_TD = torch.randn(21, 34, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 9))))
    with torch.no_grad(), ExitStack() as stack:
        stack.enter_context(intervene(model, outer))
        outer_TD, outer_routed = moe(x_TD)
        try:
            stack.enter_context(intervene(model, inner))
        except UsageError:
            assume(False)
        both_TD, both = moe(x_TD)
    with torch.no_grad(), intervene(model, outer):
        assert torch.equal(moe(x_TD)[0], outer_TD)
    gone = {expert for _, expert in (*outer.ablate, *inner.ablate)}
    choices = used(both.router_scores, both.router_indices)
    assert all(not gone & {expert for expert, _ in choice} for choice in choices)
    forced = {expert for _, expert in (*outer.force, *inner.force)}
    assert all(forced <= {expert for expert, _ in choice} for choice in choices)
    if outer_routed.router_indices.shape == both.router_indices.shape:
        same_T = ((outer_routed.router_indices == both.router_indices)
                  & (outer_routed.router_scores == both.router_scores)).all(dim=1)  # fmt: skip
        assert torch.equal(outer_TD[same_T], both_TD[same_T])
    torch.testing.assert_close(
        both_TD,
        naive_experts(x_TD, both.router_scores, both.router_indices, *moe.experts.parameters()),
        atol=1e-4,
        rtol=1e-4,
    )


def test_two_nested_ablations_are_one_of_both() -> None:
    model, tokens = tiny(6, 3), text(30)
    for mode in ("zero", "reroute"):
        with intervene(model, ablate=[(0, 1)], mode=mode), intervene(model, ablate=[(0, 4), (1, 2)], mode=mode):
            nested = model(tokens)
        with intervene(model, ablate=[(0, 1), (0, 4), (1, 2)], mode=mode):
            together = model(tokens)
        assert torch.equal(nested.router_outputs[0].router_indices, together.router_outputs[0].router_indices)
        torch.testing.assert_close(nested.logits, together.logits)


def test_blocks_may_be_left_in_any_order() -> None:
    model, tokens = tiny(), text(15)
    first, second = intervene(model, ablate=[(0, 0)]), intervene(model, ablate=[(0, 1)])
    with intervene(model, ablate=[(0, 1)]):
        expected = model(tokens).logits
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.equal(model(tokens).logits, expected)
    second.__exit__(None, None, None)
    assert hooks_left(model) == 0


# ---- in every way a model is used ----


@pytest.mark.parametrize("change", [
    Intervention(ablate=((0, 1), (1, 0))),
    Intervention(ablate=((0, 1), (1, 0)), mode="renormalise"),
    Intervention(ablate=((0, 1),), mode="reroute"),
    Intervention(force=((1, 2),)),
    Intervention(top_k=1),
    Intervention(top_k=3, temperature=3.0),
])  # fmt: skip
def test_decoding_token_by_token_is_the_uncached_pass(change: Intervention) -> None:
    model, tokens = tiny(), text(24)
    with torch.inference_mode(), intervene(model, change):
        whole = model(tokens)
        cache = KVCache(model.config, 1, 24)
        steps = [model(tokens[:, :5], cache=cache), *(model(tokens[:, i : i + 1], cache=cache) for i in range(5, 24))]
    torch.testing.assert_close(torch.cat([step.logits for step in steps], 1), whole.logits, atol=2e-4, rtol=1e-4)
    for layer in range(2):
        indices = torch.cat([step.router_outputs[layer].router_indices for step in steps])
        assert torch.equal(indices, whole.router_outputs[layer].router_indices)


def test_one_token_that_is_not_concerned_keeps_every_bit_and_one_that_is_moves() -> None:
    model = tiny()
    moe = moe_of(model)
    seen = set()
    with torch.inference_mode():
        for token in range(20):
            x_1D = torch.randn(1, 34, generator=torch.Generator().manual_seed(token))
            plain, routed = moe(x_1D)
            with intervene(model, ablate=[(0, 1)]):
                changed = moe(x_1D)[0]
            chosen = bool((routed.router_indices == 1).any())
            assert torch.equal(plain, changed) is not chosen
            seen.add(chosen)
    assert seen == {True, False}


def test_shared_experts_stay_and_dense_layers_are_no_place_to_intervene() -> None:
    model = tiny(num_layers=3, first_dense_layers=1, shared_expert_hidden_dim=16)
    moe = moe_of(model, 2)
    assert moe.shared_expert is not None
    x_TD = torch.randn(9, 34, generator=torch.Generator().manual_seed(0))
    with intervene(model, ablate=[(2, expert) for expert in range(4)]):
        out_TD, routed = moe(x_TD)
    assert (routed.router_indices == -1).all()
    assert torch.equal(out_TD, moe.shared_expert(x_TD))
    with pytest.raises(UsageError, match=r"layer 0 has no experts; expected one of the MoE layers 1, 2$"):
        Intervention(ablate=((0, 1),)).check(model)


@pytest.mark.parametrize("change", [
    Intervention(ablate=((0, 1),), mode="renormalise"),
    Intervention(ablate=((0, 1),), mode="reroute"),
    Intervention(force=((0, 2),), temperature=2.0),
])  # fmt: skip
def test_gradients_are_those_of_the_plain_reference(change: Intervention) -> None:
    torch.manual_seed(0)
    moe = MoE(ModelConfig(dim=8, num_experts=4, top_k=2, expert_hidden_dim=5)).double().eval()
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([moe])})
    x_TD = torch.randn(9, 8, dtype=torch.float64, requires_grad=True)
    with intervene(model, change):
        out_TD, routed = moe(x_TD)
        experts = moe.experts
        expected_TD = naive_experts(
            x_TD, routed.router_scores, routed.router_indices, experts.gate_proj, experts.up_proj, experts.down_proj
        )
    seed, inputs = torch.randn_like(out_TD), [x_TD, *moe.parameters()]
    found = torch.autograd.grad(out_TD, inputs, seed, retain_graph=True)
    expected = torch.autograd.grad(expected_TD, inputs, seed)
    for gradient, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, reference, atol=1e-5, rtol=1e-4)
    if change.ablate:
        assert not found[2][1].any()
        assert found[1].abs().max() > 1e-3  # the router's weight


def test_autocast_keeps_other_tokens_exact() -> None:
    model = tiny()
    moe = moe_of(model)
    x_TD = torch.randn(30, 34, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain_TD, plain = moe(x_TD)
        with intervene(model, ablate=[(0, 1)], mode="reroute"):
            out_TD, _ = moe(x_TD)
    chose_T = (plain.router_indices == 1).any(dim=1)
    assert out_TD.dtype == torch.bfloat16
    assert torch.equal(out_TD[~chose_T], plain_TD[~chose_T])
    assert not torch.equal(out_TD[chose_T], plain_TD[chose_T])


def test_training_mode_is_refused() -> None:
    model = MoETransformer(tiny().config)
    words = r"'layers\.0\.moe\.router' is in training mode.*model\.eval\(\)"
    with pytest.raises(UsageError, match=words), intervene(model, ablate=[(0, 1)]):
        model(text(3))
    assert hooks_left(model) == 0


# ---- other people's models ----


def test_a_router_without_choose_can_be_ablated_but_not_asked_again() -> None:
    model = TinyMoE().eval()
    with torch.no_grad():
        with capture(model) as recorder:
            plain = model(TOKENS)
        before = recorder.trace(token_ids=TOKENS).router_indices[1]
        counts = [(before == expert).any(axis=1).sum() for expert in range(4)]
        expert = next(expert for expert, count in enumerate(counts) if 0 < count < before.shape[0])
        with capture(model) as recorder, intervene(model, ablate=[(2, expert)], mode="renormalise"):
            changed = model(TOKENS)
    trace = recorder.trace(token_ids=TOKENS)
    moved = (changed != plain).flatten(0, 1).any(dim=1).numpy()
    assert np.array_equal(moved, (before == expert).any(axis=1))
    assert np.array_equal(trace.router_indices[1], np.where(before == expert, -1, before))
    for change in [{"mode": "reroute", "ablate": [(2, 1)]}, {"force": [(2, 1)]}, {"top_k": 1}, {"temperature": 2.0}]:
        words = r"router 'layers\.\d\.router' \(TinyRouter\) has no method choose.*zero"
        with pytest.raises(UsageError, match=words), intervene(model, **change):  # type: ignore[arg-type]
            pass
    assert hooks_left(model) == 0


def test_experts_that_are_called_otherwise_than_their_mark_promises_are_named() -> None:
    class Rounded(MoE):
        def forward(self, x_TD: Tensor) -> Any:
            routed = self.router(x_TD)
            return self.experts(x_TD, routed[1].half().float(), routed[2]), routed

    moe = Rounded(ModelConfig(dim=8, num_experts=4, top_k=2, expert_hidden_dim=5)).eval()
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter)
    model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([moe])})
    words = "experts of layer 0 were called with something else"
    with torch.no_grad(), pytest.raises(TraceError, match=words), intervene(model, ablate=[(0, 1)]):
        moe(torch.randn(9, 8))


# ---- what is refused ----


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"ablate": [(0, -1)]}, r"ablate has \(0, -1\); expected \(layer, expert\)"),
        ({"ablate": [(0.5, 1)]}, r"ablate has \(0\.5, 1\)"),
        ({"ablate": [3]}, "ablate has 3"),
        ({"ablate": ["2:5"]}, "ablate has '2:5'"),
        ({"force": [(0, True)]}, r"force has \(0, True\)"),
        ({"force": [(0, 1, 2)]}, r"force has \(0, 1, 2\)"),
        ({"mode": "off"}, "mode = 'off' is unknown; expected one of zero, renormalise, reroute"),
        ({"top_k": 0}, "top_k = 0 is out of range"),
        ({"top_k": 1.5}, "top_k = 1.5 is out of range"),
        ({"temperature": 0.0}, "temperature = 0.0 is out of range; expected 0.01 to 100"),
        ({"temperature": math.nan}, "temperature = nan is out of range"),
        ({"temperature": math.inf}, "temperature = inf is out of range"),
        ({"ablate": [(1, 3)], "force": [(1, 3)]}, "expert 1:3 is both ablated and forced"),
        ({"ablate": [(2, 0)]}, r"layer 2 has no experts; expected one of the MoE layers 0, 1$"),
        ({"ablate": [(1, 4)]}, r"layer 1 has no expert 4; expected 0 to 3$"),
        ({"force": [(10**9, 0)]}, "layer 1000000000 has no experts"),
        ({"force": [(0, 0), (0, 1), (0, 2)]}, "3 experts of layer 0 are forced; expected at most top_k = 2"),
        ({"force": [(0, 0), (0, 1)], "top_k": 1}, "2 experts of layer 0 are forced; expected at most top_k = 1"),
        ({"top_k": 5}, "top_k = 5 is more than layer 0 has experts; expected 1 to 4"),
        ({"ablate": [(0, e) for e in range(4)], "mode": "reroute"}, "all 4 experts of layer 0 are ablated"),
    ],
)
def test_impossible_interventions_are_refused_in_one_line(fields: dict[str, Any], words: str) -> None:
    model = tiny()
    with pytest.raises(UsageError, match=words) as refusal, intervene(model, **fields):
        pass
    assert "\n" not in str(refusal.value)
    assert hooks_left(model) == 0


def test_contradictions_between_nested_ones_are_refused_and_the_outer_one_goes_on() -> None:
    model, tokens = tiny(), text(10)
    with intervene(model, ablate=[(0, 1)]):
        expected = model(tokens).logits
        with pytest.raises(UsageError, match="expert 0:1 is both ablated and forced"):
            intervene(model, force=[(0, 1)]).__enter__()
        with pytest.raises(UsageError, match="an Intervention was given and fields of one beside it"):
            intervene(model, Intervention(), top_k=1).__enter__()
        assert torch.equal(model(tokens).logits, expected)
        # Another model is another matter.
        with intervene(tiny(6, 3), force=[(0, 1)]):
            assert torch.equal(model(tokens).logits, expected)


def test_experts_are_read_from_the_command_lines_form() -> None:
    assert Intervention.parse_experts(["2:5", " 0:11 "]) == ((2, 5), (0, 11))
    for bad in ("2", "2:", ":5", "2:5:1", "-1:2", "2.5", "a:b", "", "2:٣", "1:" + "9" * 5000):
        with pytest.raises(UsageError, match="names no expert; expected LAYER:EXPERT, such as 2:5") as refusal:
            Intervention.parse_experts([bad])
        assert len(str(refusal.value)) < 120


def test_experts_from_a_table_are_plain_numbers_each_once() -> None:
    pairs = [(np.int64(1), np.int16(2)), [1, 2], (0, 3)]
    change = Intervention(ablate=pairs, force=[(1, 0)], top_k=1, temperature=0.5)  # type: ignore[arg-type]
    assert change.ablate == ((1, 2), (0, 3))
    assert all(type(number) is int for pair in change.ablate for number in pair)
    assert change.describe() == "ablate 1:2, 0:3 (zero), force 1:0, top_k 1, router temperature 0.5"
    assert hash(change) == hash(Intervention(change.ablate, change.force, top_k=1, temperature=0.5))
    assert issubclass(UsageError, MoescopeError)
