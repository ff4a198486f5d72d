"""The loss in chunks: torch's cross-entropy and its gradients, without all logits at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moe_core.model import logit_chunks
from moe_core.model.cross_entropy import IGNORED, chunked_cross_entropy, cross_entropy

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain(states_ND: Tensor, head_VD: Tensor, targets_N: Tensor) -> Tensor:
    logits_NV = torch.nn.functional.linear(states_ND, head_VD).float()
    return torch.nn.functional.cross_entropy(logits_NV, targets_N, ignore_index=-1)


def in_chunks(rows: int) -> Loss:
    return lambda *given: chunked_cross_entropy(*given, rows)


def problem(N: int, D: int, V: int, seed: int = 0, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    states = (scale * torch.randn(N, D, generator=drawn)).requires_grad_(True)
    head = torch.randn(V, D, generator=drawn).requires_grad_(True)
    return states, head, torch.randint(V, (N,), generator=drawn)


def loss_and_gradients(
    loss_of: Loss, states: Tensor, head: Tensor, targets: Tensor, *, autocast: bool = False
) -> list[Tensor]:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = loss_of(states, head, targets)
    return [loss.detach(), *torch.autograd.grad(0.5 * loss, [states, head])]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 24), st.integers(2, 90), st.integers(1, 50),
    st.sampled_from([0.0, 0.1, 5.0, 60.0]), st.floats(0, 0.9),
)  # fmt: skip
def test_the_loss_and_its_gradients_are_torchs(
    seed: int, N: int, D: int, V: int, rows: int, scale: float, ignored: float
) -> None:
    states, head, targets = problem(N, D, V, seed, scale)
    targets[torch.rand(N, generator=torch.Generator().manual_seed(seed)) < ignored] = IGNORED
    targets[0] = 0  # one is scored
    found, expected = (loss_and_gradients(way, states, head, targets) for way in (in_chunks(rows), plain))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * max(1.0, float(other.abs().max())))


def test_with_nothing_to_score_it_is_nan_as_torchs_is() -> None:
    states, head, _ = problem(3, 4, 5)
    nothing = torch.full((3,), IGNORED)
    assert all(way(states, head, nothing).isnan() for way in (in_chunks(2), plain))


def test_what_is_not_a_number_is_not_hidden() -> None:
    states, head, targets = problem(4, 4, 5)
    with torch.no_grad():
        states[1, 2] = torch.nan
    loss, d_states, d_head = loss_and_gradients(in_chunks(2), states, head, targets)
    assert loss.isnan()
    assert d_states[1].isnan().all()
    assert d_head.isnan().any()


def test_with_autocast_the_products_alone_are_coarse() -> None:
    states, head, targets = problem(96, 32, 200, scale=0.3)
    exact = loss_and_gradients(plain, states, head, targets)
    for way in (plain, in_chunks(20)):
        found = loss_and_gradients(way, states, head, targets, autocast=True)
        for one, other in zip(found, exact, strict=True):
            assert one.dtype == torch.float32
            assert (one - other).norm() < 0.01 * other.norm()


def test_in_float16_small_gradients_of_logits_are_not_lost() -> None:
    """Each is a 2,048th of a probability, which float16 cannot hold."""
    states, head, targets = problem(2048, 16, 2000, scale=0.1)
    exact = loss_and_gradients(plain, states, head, targets)
    with torch.autocast("cpu", torch.float16):
        loss = in_chunks(512)(states, head, targets)
    found = torch.autograd.grad(0.5 * loss, [states, head])
    for one, other in zip(found, exact[1:], strict=True):
        assert (one - other).norm() < 0.001 * other.norm()


def test_chunks_are_taken_where_there_are_many_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert logit_chunks.chunk_rows(2048, 2048) is None, "the quick preset"
    assert logit_chunks.chunk_rows(32 * 128, 4096) is None, "the default preset"
    assert logit_chunks.chunk_rows(16 * 1024, 32_768) == 2048
    assert logit_chunks.chunk_rows(2, 2**30) == 1
    states, head, targets = problem(30, 8, 50)
    monkeypatch.setattr(logit_chunks, "CHUNK_NUMBERS", 500)
    assert "_Chunked" in type(cross_entropy(states, head, targets).grad_fn).__name__
    with torch.no_grad():
        torch.testing.assert_close(cross_entropy(states, head, targets), plain(states, head, targets))
    monkeypatch.setattr(logit_chunks, "CHUNK_NUMBERS", 1500)
    assert torch.equal(cross_entropy(states, head, targets), plain(states, head, targets))


def peak_bytes(way: Loss, states: Tensor, head: Tensor, targets: Tensor) -> int:
    """What is allocated at the worst moment of a forward and a backward pass."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        loss_and_gradients(way, states, head, targets)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def test_the_memory_is_that_of_a_chunk() -> None:
    N, D, V, rows = 1024, 16, 2048, 64
    states, head, targets = problem(N, D, V)
    logits, chunk, gradients = 4 * N * V, 4 * rows * V, 4 * (N + V) * D
    assert peak_bytes(plain, states, head, targets) > 3 * logits
    assert peak_bytes(in_chunks(rows), states, head, targets) < 2 * chunk + 3 * gradients < logits / 4
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one.nbytes) or one, lambda one: one):
        in_chunks(rows)(states, head, targets)
    assert sum(kept) == gradients
