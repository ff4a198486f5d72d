"""Generation: the cache changes nothing, a seed fixes the text, characters stay whole, experts match the trace."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch
from generation_support import generate
from hypothesis import given, settings
from hypothesis import strategies as st
from test_inference_tracing import Loaded, tiny_loaded

from moe_core.data.tokenizer import Tokenizer
from moe_core.errors import DataError, RunError, UsageError
from moe_core.inference.engine import GeneratedToken
from moe_core.inference.open import context_window
from moe_core.inference.sampling import SamplingConfig, sample
from moe_core.inference.tracing import trace_text
from moe_core.routing import Intervention, capture, intervene

GREEDY = SamplingConfig(max_new_tokens=10, temperature=0)


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return tiny_loaded()


@pytest.fixture
def roomy(loaded: Loaded) -> Loaded:
    """The same model, said to be trained on 64 tokens, so that short texts never leave the window."""
    training = loaded.config.training.model_copy(update={"seq_len": 64})
    return replace(loaded, config=loaded.config.model_copy(update={"training": training}))


def uncached_greedy(loaded: Loaded, prompt: str, count: int) -> list[int]:
    ids = [loaded.tokenizer.end_of_text, *loaded.tokenizer.encode(prompt)]
    new: list[int] = []
    with torch.inference_mode():
        for _ in range(count):
            new.append(int(loaded.model(torch.tensor([ids + new])).logits[0, -1].argmax()))
    return new


@pytest.mark.parametrize("prompt", ["", "The café", "日本 waits. "])
def test_cached_greedy_generation_equals_the_uncached_argmax(roomy: Loaded, prompt: str) -> None:
    expected = uncached_greedy(roomy, prompt, 20)
    assert roomy.tokenizer.end_of_text not in expected
    found = list(generate(roomy, prompt, replace(GREEDY, max_new_tokens=20)))
    assert [token.token_id for token in found] == expected


def test_experts_and_losses_while_decoding_are_those_of_the_teacher_forced_trace(roomy: Loaded) -> None:
    sampling = SamplingConfig(max_new_tokens=25, temperature=1.0, seed=3)
    found = list(generate(roomy, "Der Rest", sampling))
    ids = [roomy.tokenizer.end_of_text, *roomy.tokenizer.encode("Der Rest"), *(token.token_id for token in found)]
    with torch.inference_mode():
        output = roomy.model(torch.tensor([ids]))
    log_p_SV = output.logits[0].log_softmax(-1)
    for at, token in enumerate(found, start=len(ids) - len(found)):
        assert token.experts.shape == token.scores.shape == (2, 2)
        assert token.loss == pytest.approx(-log_p_SV[at - 1, token.token_id].item(), rel=1e-4)
        for layer, routed in enumerate(output.router_outputs):
            assert token.experts[layer].tolist() == routed.router_indices[at].tolist()
            np.testing.assert_allclose(token.scores[layer], routed.router_scores[at].numpy(), rtol=1e-4)


def test_text_that_was_written_and_is_traced_again_has_the_same_experts(roomy: Loaded) -> None:
    found = list(generate(roomy, "The", replace(GREEDY, max_new_tokens=12)))
    text = roomy.tokenizer.decode([token.token_id for token in found])
    # The model knows its one training text by heart, so what it writes tokenises as it was written.
    assert roomy.tokenizer.encode("The" + text)[-len(found) :] == [token.token_id for token in found]
    trace = trace_text(roomy, "The" + text).trace
    np.testing.assert_array_equal(
        trace.router_indices[:, -len(found) :], np.stack([token.experts for token in found], axis=1)
    )


def test_the_same_seed_gives_the_same_text_and_another_seed_another(roomy: Loaded) -> None:
    def text(seed: int) -> str:
        sampling = SamplingConfig(max_new_tokens=20, temperature=2.0, seed=seed)
        return "".join(token.text for token in generate(roomy, "The", sampling))

    torch.manual_seed(1)
    first = text(5)
    torch.manual_seed(2)
    assert text(5) == first
    assert len({text(seed) for seed in range(4)}) > 1


def test_generation_goes_on_beyond_the_window_and_long_prompts_count_by_their_end(loaded: Loaded) -> None:
    size = context_window(loaded)
    found = list(generate(loaded, "The café opened", replace(GREEDY, max_new_tokens=3 * size)))
    assert len(found) == 3 * size
    ids = [loaded.tokenizer.end_of_text, *loaded.tokenizer.encode("The café opened at nine. Der Rest " * 9)]
    with torch.inference_mode():
        expected = int(loaded.model(torch.tensor([ids[-size:]])).logits[0, -1].argmax())
    prompt = loaded.tokenizer.decode(ids[1:])
    assert next(generate(loaded, prompt, GREEDY)).token_id == expected


def test_when_the_window_is_full_the_later_half_is_read_in_anew(loaded: Loaded) -> None:
    size = context_window(loaded)
    start = [loaded.tokenizer.end_of_text, *loaded.tokenizer.encode("The café")]
    found = [t.token_id for t in generate(loaded, "The café", replace(GREEDY, max_new_tokens=size))]
    seen = list(start)
    for token_id in found:
        with torch.inference_mode():
            assert int(loaded.model(torch.tensor([seen])).logits[0, -1].argmax()) == token_id
        seen = [*seen, token_id] if len(seen) < size else [*seen, token_id][-(size // 2) :]


def scripted(loaded: Loaded, ids: list[int], monkeypatch: pytest.MonkeyPatch) -> list[GeneratedToken]:
    """Generate exactly `ids`: the draw is replaced, everything after it is real."""
    queue = iter(ids)
    monkeypatch.setattr("moe_core.inference.row.sample", lambda *_: next(queue))
    return list(generate(loaded, "", SamplingConfig(max_new_tokens=len(ids))))


def byte_ids(tokenizer: Tokenizer, data: bytes) -> list[int]:
    of_bytes = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size)}
    return [of_bytes[bytes([byte])] for byte in data]


def test_characters_of_several_tokens_come_whole_or_not_at_all(
    loaded: Loaded,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids = byte_ids(loaded.tokenizer, "a€b".encode() + b"\xffc" + "日".encode()[:2])
    texts = [token.text for token in scripted(loaded, ids, monkeypatch)]
    assert texts == ["a", "", "", "€", "b", "\ufffd", "c", "", ""]


def test_end_of_text_ends_the_generation_and_is_not_given_out(
    loaded: Loaded,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids = [*byte_ids(loaded.tokenizer, b"ab"), loaded.tokenizer.end_of_text, *byte_ids(loaded.tokenizer, b"c")]
    assert [token.text for token in scripted(loaded, ids, monkeypatch)] == ["a", "b"]


def draws(logits: list[float], sampling: SamplingConfig, count: int = 300) -> set[int]:
    random = torch.Generator().manual_seed(0)
    return {sample(torch.tensor(logits, dtype=torch.float64), sampling, random) for _ in range(count)}


def test_top_k_and_top_p_keep_the_tokens_worked_out_by_hand() -> None:
    logits = [math.log(p) for p in (0.1, 0.5, 0.3, 0.1)]
    every = SamplingConfig(temperature=1, top_k=0, top_p=1)
    assert draws(logits, every) == {0, 1, 2, 3}
    assert draws(logits, replace(every, top_k=2)) == {1, 2}
    assert draws(logits, replace(every, top_p=0.5)) == {1}
    assert draws(logits, replace(every, top_p=0.51)) == {1, 2}
    # Of the two tokens that top-k leaves, the first has 0.5 / 0.8 = 0.625 of the probability.
    assert draws(logits, replace(every, top_k=2, top_p=0.62)) == {1}
    assert draws(logits, replace(every, temperature=0)) == {1}


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=20),
    st.floats(0, 1e300),
    st.integers(0, 30),
    st.floats(0, 1, exclude_min=True),
)
def test_any_valid_sampling_draws_a_token(logits: list[float], temperature: float, top_k: int, top_p: float) -> None:
    sampling = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    assert draws(logits, sampling, count=3) <= set(range(len(logits)))


def test_higher_temperature_spreads_the_draws() -> None:
    logits = [0.0, -3.0, -3.0, -3.0]
    random = torch.Generator().manual_seed(0)
    shares = []
    for temperature in (0.5, 1.0, 5.0):
        sampling = SamplingConfig(temperature=temperature, top_k=0, top_p=1)
        drawn = [sample(torch.tensor(logits, dtype=torch.float64), sampling, random) for _ in range(500)]
        shares.append(drawn.count(0) / 500)
    assert shares[0] > shares[1] > shares[2]
    assert shares[1] == pytest.approx(1 / (1 + 3 * math.exp(-3)), abs=0.05)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("seed", -1),
    ],
)
def test_sampling_values_out_of_range_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"{field} = {value} is out of range; expected"):
        SamplingConfig(**{field: value})  # type: ignore[arg-type]


def test_a_bad_prompt_is_refused_at_once_and_damaged_weights_are_named(loaded: Loaded) -> None:
    with pytest.raises(DataError, match="lone surrogate"):
        generate(loaded, "\udcff")
    with pytest.raises(RunError, match="not finite"):
        draws([0.0, math.nan], SamplingConfig())


def test_stopping_early_leaves_nothing_behind(loaded: Loaded) -> None:
    stream = generate(loaded, "The", GREEDY)
    next(stream)
    assert not torch.is_inference_mode_enabled()
    assert not any(module._forward_hooks for module in loaded.model.modules())


# ---- under an intervention ----

CHANGES = [
    Intervention(ablate=((1, 0), (2, 1))),
    Intervention(ablate=((1, 0),), mode="renormalise"),
    Intervention(ablate=((1, 0), (2, 1)), mode="reroute"),
    Intervention(force=((2, 3),)),
    Intervention(top_k=1),
    Intervention(top_k=3, temperature=4.0),
]


@pytest.mark.parametrize("change", CHANGES, ids=Intervention.describe)
def test_generation_under_an_intervention_is_the_uncached_argmax_of_the_changed_model(
    roomy: Loaded, change: Intervention
) -> None:
    with intervene(roomy.model, change):
        expected = uncached_greedy(roomy, "The café", 12)
    found = list(generate(roomy, "The café", replace(GREEDY, max_new_tokens=12), change))
    assert [token.token_id for token in found] == expected[: len(found)]
    for token in found:
        assert token.experts.shape == (2, change.top_k or 2)
        for layer, expert in change.ablate:
            assert expert not in token.experts[layer - 1]
        for layer, expert in change.force:
            assert expert in token.experts[layer - 1]


def test_each_reader_of_a_shared_model_has_its_own_intervention(roomy: Loaded) -> None:
    def written(tokens: Iterable[GeneratedToken]) -> list[tuple[int, float]]:
        return [(token.token_id, token.loss) for token in tokens]

    def text(change: Intervention | None) -> list[tuple[int, float]]:
        return written(generate(roomy, "The", GREEDY, change))

    change = Intervention(ablate=tuple((layer, expert) for layer in (1, 2) for expert in range(3)))
    plain, changed = text(None), text(change)
    assert plain != changed
    assert text(Intervention()) == plain
    # Step by step in turn, as a page that streams both side by side; and a reader that is given up in the middle.
    pairs = list(zip(generate(roomy, "The", GREEDY, change), generate(roomy, "The", GREEDY), strict=False))
    assert [written(pair) for pair in pairs] == [list(pair) for pair in zip(changed, plain, strict=False)]
    given_up = generate(roomy, "The", GREEDY, change)
    next(given_up)
    with torch.inference_mode(), capture(roomy.model) as recorder:
        roomy.model(torch.tensor([[1, 2, 3]]))
    assert (recorder.trace(token_ids=[1, 2, 3]).router_indices >= 0).all()
    given_up.close()  # type: ignore[attr-defined]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in roomy.model.modules())


@pytest.mark.parametrize(
    "change", [Intervention(ablate=((0, 1),)), Intervention(force=((1, 4),)), Intervention(top_k=9)]
)
def test_what_the_model_cannot_do_is_refused_at_once(loaded: Loaded, change: Intervention) -> None:
    with pytest.raises(UsageError, match="expected"):
        generate(loaded, "The", GREEDY, change)
