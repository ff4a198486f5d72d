"""Passes of fixed shapes, as an accelerator replays them: run on the CPU they give what every other pass gives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from routers_support import CAUSAL, START, WINDOWED, model_with
from test_inference_tracing import tiny_loaded

from moe_core.errors import RunError
from moe_core.inference import fixed_pass, own_model
from moe_core.inference.engine import Completion, Engine, Request
from moe_core.inference.fixed_pass import FixedPass, FixedPasses, FixedTexts, suits
from moe_core.inference.own_model import OwnModel
from moe_core.inference.protocol import Draw
from moe_core.inference.sampling import SamplingConfig, candidates_of, draw_each, ranked_probabilities
from moe_core.inference.scheduler import Scheduler
from moe_core.model import KVCache, MoETransformer, experts, one_row
from moe_core.model.experts.grouped import grouped_product
from moe_core.routing import Intervention

GREEDY = Draw(SamplingConfig(temperature=0.0), lambda: 0.5)


@contextmanager
def as_on_cuda() -> Iterator[None]:
    """What the CPU does in its own way for a few rows is done as an accelerator does it."""
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(experts, "way", lambda *_: grouped_product)
        changed.setattr(one_row, "alone", lambda _: False)
        changed.setattr(own_model, "suits", lambda _: True)
        yield


def alone(model: MoETransformer, length: int) -> KVCache:
    """A text of this length, begun with a token that was cut off again."""
    ids = torch.randint(1, 300, (1, length + 1), generator=torch.Generator().manual_seed(length))
    cache = KVCache(model.config, 1, 32)
    model(ids, cache=cache)
    assert cache.cut_back(length)
    return cache


@pytest.mark.parametrize("variant", [*CAUSAL, *WINDOWED])
@torch.inference_mode()
def test_texts_that_join_and_leave_read_what_each_reads_alone(variant: str) -> None:
    model = model_with(variant)
    lengths = [1, 9, 4]
    texts = FixedTexts(FixedPasses(model, 32))
    own, here = [alone(model, length) for length in lengths], list[int]()
    for step in range(9):
        if step in (0, 2, 3):
            here.append(joining := (0, 2, 3).index(step))
            texts.add(alone(model, lengths[joining]))
        if step == 6:
            own[1] = texts.take(here.index(1))
            here.remove(1)
        ids = [START if (step, row) == (4, 1) else 7 * step + row + 1 for row in here]
        with as_on_cuda():
            found = texts.read(ids, [GREEDY] * len(here))
        expected = [model(torch.tensor([[token]]), cache=own[row]) for token, row in zip(ids, here, strict=True)]
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine.logits, theirs.logits[0, 0], rtol=0, atol=1e-5)
            for layer, routed in enumerate(theirs.router_outputs):
                assert mine.experts[0, layer].tolist() == routed.router_indices[0].tolist()
                torch.testing.assert_close(
                    torch.from_numpy(mine.scores[0, layer]), routed.router_scores[0], rtol=0, atol=1e-5
                )
            assert mine.drawn is not None
            token_id, loss = mine.drawn
            assert token_id == int(theirs.logits.argmax())
            assert loss == pytest.approx(-float(theirs.logits[0, 0].double().log_softmax(0)[token_id]), abs=1e-5)


@pytest.mark.parametrize("variant", [*CAUSAL, *WINDOWED])
def test_no_value_of_a_pass_decides_about_a_shape_or_is_read_by_the_host(variant: str) -> None:
    """Tensors that hold nothing raise where somebody asks for their values, as capturing a graph does."""
    from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

    with torch.inference_mode(), as_on_cuda():
        # Torch knows the shapes of a grouped product in bfloat16 alone.
        one = FixedPass(model_with(variant, expert_hidden_dim=16).to(torch.bfloat16), 2, 32)
        one.compute()  # what is allocated once is there
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            for owner in (vars(one), vars(one.cache)):
                owner |= {
                    name: mode.from_tensor(held) for name, held in owner.items() if isinstance(held, torch.Tensor)
                }
            for kept in (one.cache.keys, one.cache.values):
                kept[:] = [mode.from_tensor(held) for held in kept]
            logits_BV, told_BN = one.compute()
            with pytest.raises(DataDependentOutputException):
                told_BN.tolist()
    assert (logits_BV.shape[0], told_BN.shape[0]) == (2, 2)


LOGITS = st.lists(st.sampled_from([-torch.inf, -30.0, -1.0, 0.0, 0.25, 0.5, 2.0]), min_size=2, max_size=9).filter(
    lambda logits: max(logits) > -torch.inf
)


@given(
    logits=LOGITS,
    temperature=st.sampled_from([0.001, 0.7, 1.0, 3.0]),
    top_k=st.integers(0, 10),
    top_p=st.sampled_from([0.01, 0.4, 0.9, 1.0]),
)
@example(logits=[0.0] * 9, temperature=1.0, top_k=4, top_p=0.5)
@settings(max_examples=60, derandomize=True)
def test_a_device_draws_each_token_with_the_probability_that_sample_draws_it(
    logits: list[float], temperature: float, top_k: int, top_p: float
) -> None:
    logits_V = torch.tensor(logits, dtype=torch.float64)
    ids, p = candidates_of(logits_V, SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p))
    expected_V = torch.zeros_like(logits_V).scatter_(0, ids, p / p.sum())
    settings_B = [torch.tensor([value, 1.0]) for value in (temperature, top_k, top_p)]
    both_BV = torch.stack([logits_V, logits_V.flip(0)])  # another text beside it, with settings of its own
    found_ids, found_p = ranked_probabilities(both_BV, *settings_B)
    found_V = torch.zeros_like(logits_V).scatter_(0, found_ids[0], found_p[0] / found_p[0].sum())
    torch.testing.assert_close(found_V, expected_V, rtol=0, atol=1e-6)
    # A number in [0, 1) gives the token in whose share of it the number lies: each has as much as its probability.
    ends = (found_p[0] / found_p[0].sum()).cumsum(0)
    for rank in found_p[0].nonzero()[:, 0].tolist():
        share = float(found_p[0, rank] / found_p[0].sum())
        if share < 1e-6:
            continue  # its share lies within the rounding of its ends
        for inside in (float(ends[rank]) - share * 0.999, float(ends[rank]) - share * 0.001):
            drawn, losses = draw_each(both_BV, torch.tensor([inside, 0.0]), *settings_B)
            assert drawn[0] == found_ids[0, rank]
            assert float(losses[0]) == pytest.approx(-float(logits_V.log_softmax(0)[drawn[0]]))
    last = draw_each(both_BV, torch.tensor([1.0, 1.0]), *settings_B)[0]
    assert found_V[last[0]] > 0


def test_without_temperature_a_device_takes_the_first_of_the_likeliest_and_tells_of_damage() -> None:
    logits_BV = torch.tensor([[1.0, 3.0, 3.0], [1.0, torch.nan, 0.0], [-torch.inf] * 3])
    drawn, losses = draw_each(logits_BV, torch.full((3,), 0.99), torch.zeros(3), torch.zeros(3), torch.ones(3))
    assert drawn[0] == 1
    assert losses.isnan().tolist() == [False, True, True]


def written(model: OwnModel, requests: list[Request]) -> list[Completion]:
    """Together, twice: the second time in passes that were kept."""
    for _ in range(2):
        with Scheduler(Engine(model), slots=len(requests)) as scheduler:
            found = [generation.result() for generation in [scheduler.start(request) for request in requests]]
    return found


def test_requests_are_answered_in_such_passes_as_without_them() -> None:
    model = OwnModel(model_with("document_pool"), tiny_loaded().tokenizer, "document pool", 12)
    greedy = [
        Request(tuple(range(1, 3 + row)), SamplingConfig(max_new_tokens=16 - 6 * row, temperature=0.0), likeliest=row)
        for row in range(3)
    ]
    drawn = [Request(request.prompt, SamplingConfig(max_new_tokens=6, seed=7)) for request in greedy]
    changed = Request((3, 4), greedy[0].sampling, intervention=Intervention(ablate=((1, 0),)))
    expected = written(model, [*greedy, changed])
    with as_on_cuda():
        found = written(model, [*greedy, changed])
        seeded = written(model, drawn)
        alone_ = [Engine(model).start(request).result() for request in drawn]
    assert {idle.cache.slots for idle in model.fixed_passes._idle.values()} == {1, 2, 4}
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine.text, mine.reason) == (theirs.text, theirs.reason)
        for one, other in zip(mine.tokens, theirs.tokens, strict=True):
            assert one.experts.tolist() == other.experts.tolist()
            assert one.loss == pytest.approx(other.loss, abs=1e-5)
            assert one.likeliest == tuple((token, pytest.approx(score, abs=1e-5)) for token, score in other.likeliest)
    # A seed's text does not depend on who is answered beside it.
    assert [each.text for each in seeded] == [each.text for each in alone_]


def test_damaged_weights_are_named_and_only_what_suits_is_replayed() -> None:
    model = model_with("softmax")
    assert not suits(model)  # on a processor
    with torch.no_grad():
        model.norm.weight.fill_(torch.nan)
    broken = OwnModel(model, tiny_loaded().tokenizer, "broken", 20)
    with as_on_cuda(), pytest.raises(RunError, match="not finite"):
        Engine(broken).start(Request((1, 2))).result()


def test_passes_that_wait_for_the_next_text_stay_within_their_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = FixedPasses(model_with("softmax"), 20)
    first, second = passes.take(1), passes.take(2)
    monkeypatch.setattr(fixed_pass, "IDLE_BYTES", second.cache.nbytes)
    passes.put(second)
    passes.put(first)
    assert passes.take(2) is second
    assert passes.take(1) is not first
