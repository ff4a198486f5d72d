"""Logits of -inf, an expert or a word that is masked, and finite ones beyond what float16 holds, are what they say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import special
from torch import Tensor, nn

from moe_core.errors import RunError, TraceError
from moe_core.inference.sampling import SamplingConfig, sample
from moe_core.inference.scoring import compare, token_nats, token_ranks
from moe_core.model.losses import entropy_loss, load_balancing_loss, router_z_loss
from moe_core.routing import RoutingTrace, capture, intervene, metrics
from moe_core.routing.measures.decisions import token_boundary, token_entropy

INF = math.inf
Rule = Literal["softmax", "sigmoid", "sqrtsoftplus"]
RULES: list[Rule] = ["softmax", "sigmoid", "sqrtsoftplus"]


def trace_of(logits_TE: Any, score_function: Rule = "softmax", top_k: int = 1) -> RoutingTrace:
    logits = np.asarray(logits_TE, float)
    chosen = np.argsort(-logits, axis=1, kind="stable")[:, :top_k]
    return RoutingTrace.from_arrays(
        router_indices=chosen, router_scores=np.full(chosen.shape, 1 / top_k), num_experts=logits.shape[1],
        token_ids=np.arange(len(logits)), router_logits=logits, score_function=score_function,
    )  # fmt: skip


def probabilities(logits_TE: Any, score_function: Rule) -> Any:
    """In float64, from the logits as they were."""
    logits = np.asarray(logits_TE, float)
    if score_function == "softmax":
        return special.softmax(logits, axis=1)
    if score_function == "sigmoid":
        return special.softmax(special.log_expit(logits), axis=1)
    weights = np.sqrt(np.logaddexp(0, logits))
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("rule", RULES)
def test_a_masked_expert_has_probability_zero(rule: Rule) -> None:
    logits = [[1.0, -INF, 0.5, 0.25], [-INF, 2.0, -INF, 1.0], [0.0, -INF, -INF, -INF]]
    trace = trace_of(logits, rule)
    assert np.isneginf(trace.router_logits).tolist()[0] == np.isneginf(logits).tolist()  # type: ignore[arg-type]
    p = probabilities(logits, rule)
    expected = special.entr(p).sum(axis=1) / math.log(4)
    assert token_entropy(trace, 0) == pytest.approx(expected, abs=1e-3)
    ordered = np.sort(p, axis=1)
    assert token_boundary(trace, 0) == pytest.approx(ordered[:, -1] - ordered[:, -2], abs=1e-3)
    frame = metrics.router_entropy(trace)
    assert frame["router_entropy"].item() == pytest.approx(expected.mean(), abs=1e-3)
    assert np.isfinite(frame.select_dtypes("number").to_numpy()).all()
    assert metrics.load_balance(trace)["load_imbalance"].item() == pytest.approx(8 / 3)


@pytest.mark.parametrize(
    ("logits", "rule"),
    [
        ([[70_000.0, 69_999.0, 0.0]], "softmax"),  # cut off they would be equal
        ([[70_000.0, 69_999.0, -INF]], "softmax"),
        ([[1e300, -1e300, 1e300]], "softmax"),
        ([[65_504.0, 65_504.0, 3.0]], "softmax"),
        ([[1.0, 2.0, -3.4e38]], "softmax"),  # how some models mask
        ([[1.0, 2.0, -3.4e38]], "sigmoid"),
        ([[70_000.0, 1.0, -1e30]], "sigmoid"),
        ([[1.0, 2.0, -3.4e38]], "sqrtsoftplus"),
        ([[-800.0, -801.0, -INF]], "sigmoid"),
        ([[-1600.0, -1602.0, -INF]], "sqrtsoftplus"),
    ],
)
def test_finite_logits_of_any_size_keep_their_probabilities(logits: Any, rule: Rule) -> None:
    trace = trace_of(logits, rule)
    underflows = rule != "softmax" and max(logits[0]) < -700  # both examples are a softmax of 0 and -1
    p = special.softmax([[0.0, -1.0, -INF]], axis=1) if underflows else probabilities(logits, rule)
    assert token_entropy(trace, 0) == pytest.approx(special.entr(p).sum(axis=1) / math.log(3), abs=1e-3)
    assert trace.router_logits is not None
    assert (np.isneginf(trace.router_logits[0]) == np.isneginf(logits)).all(), "what was finite stays so"


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(RULES[:2]),
    st.lists(
        st.lists(
            st.one_of(
                st.floats(-60, 60, width=16), st.floats(-(2.0**99), 2.0**99, width=32), st.just(-INF),
                st.floats(60_000, 70_000, width=32),
            ),
            min_size=3, max_size=3,
        ),
        min_size=1, max_size=4,
    ),
)  # fmt: skip
@example("softmax", [[0.0, -INF, 65_510.0]])  # beyond float16, and rounded to its last number
def test_any_logits_are_kept_so_that_probabilities_stay_in_arrays_capture_and_files(
    rule: Rule, logits: list[list[float]]
) -> None:
    trace, captured = trace_of(logits, rule), captured_trace(torch.tensor(logits, dtype=torch.float64), rule)
    assert trace.router_logits is not None
    assert captured.router_logits is not None
    assert np.array_equal(trace.router_logits, captured.router_logits)
    some = ~np.isneginf(logits).all(axis=1)
    p = probabilities(np.asarray(logits)[some], rule) if some.any() else np.zeros((0, 3))
    found = trace.router_logits[0].astype(float)[some]
    kept = probabilities(found, rule) if some.any() else p
    # A float16 has 11 bits: a logit of 60 is off by up to 1/32.
    size = np.abs(np.where(np.isfinite(found), found, 0)).max(initial=0)
    if size <= 60 and np.isfinite(p).all():
        assert kept == pytest.approx(p, abs=0.04)
    assert not np.isnan(metrics.router_entropy(trace)["confidence"]).any() or not some.any()


class Gate(nn.Module):
    """A router that tells the logits it was given, masks and all."""

    is_moe_router = True

    def __init__(self, logits_TE: Tensor, rule: Rule) -> None:
        super().__init__()
        self.logits_TE, self.score_function = logits_TE, rule

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.logits_TE, torch.ones(len(self.logits_TE), 1), self.logits_TE.argmax(dim=1, keepdim=True)


def captured_trace(logits_TE: Tensor, rule: Rule) -> RoutingTrace:
    model = nn.Module()
    model.layers = nn.ModuleList([Gate(logits_TE, rule)])
    with capture(model) as recorder:
        model.layers[0]()
    return recorder.trace(token_ids=torch.arange(len(logits_TE)))


def test_a_file_keeps_masks_and_far_logits(tmp_path: Path) -> None:
    for rule in RULES:
        trace = trace_of([[1.0, -INF, 70_000.0], [-INF, -INF, -INF], [-1e30, 2.0, 3.0]], rule)
        trace.save(tmp_path / "trace.parquet")
        loaded = RoutingTrace.load(tmp_path / "trace.parquet")
        assert np.array_equal(loaded.router_logits, trace.router_logits)  # type: ignore[arg-type]
        stored = RoutingTrace.open(tmp_path / "trace.parquet")
        found, expected = metrics.router_entropy(stored), metrics.router_entropy(trace)
        assert np.allclose(found.select_dtypes("number"), expected.select_dtypes("number"))


@pytest.mark.parametrize("rule", RULES)
def test_a_token_whose_logits_are_all_masked_is_left_out(rule: Rule) -> None:
    rows = [[1.0, 0.0, -INF], [0.5, -INF, 0.0]]
    without, with_masked = trace_of(rows, rule), trace_of([*rows, [-INF, -INF, -INF]], rule)
    expected, found = metrics.router_entropy(without), metrics.router_entropy(with_masked)
    assert np.allclose(expected.select_dtypes("number"), found.select_dtypes("number"))
    assert np.isnan(token_entropy(with_masked, 0)[2])
    assert np.isnan(token_boundary(with_masked, 0)).tolist() == [False, False, True]


@pytest.mark.parametrize("wrong", [math.nan, INF])
def test_nan_and_plus_infinity_stay_errors(wrong: float) -> None:
    logits = torch.tensor([[1.0, wrong, -INF]])
    with pytest.raises(TraceError, match=r"router_logits holds NaN or \+infinity.*masked"):
        trace_of(logits)
    with pytest.raises(TraceError, match=r"router_logits holds NaN or \+infinity"):
        captured_trace(logits, "softmax")


def pruned(family: str) -> Any:
    pytest.importorskip("transformers", reason="Hugging Face models need requirements-huggingface.txt")
    from bench.family_configs import tiny_model

    model: Any = tiny_model(family)
    for layer in model.model.layers:
        layer.mlp.router.bias.data[3] = -INF
    return model


def test_a_model_with_a_pruned_expert_is_captured_measured_and_changed() -> None:
    model, ids = pruned("gpt_oss"), torch.arange(5, 25).view(2, 10)
    with torch.no_grad():
        with capture(model) as recorder:
            model(input_ids=ids)
        plain = recorder.trace(token_ids=ids)
        assert not (plain.router_indices == 3).any()
        assert (metrics.expert_load(plain).query("expert == 3")["share"] == 0).all()
        assert np.isfinite(metrics.router_entropy(plain).select_dtypes("number")).all(axis=None)
        busiest = int(np.bincount(plain.router_indices[0].ravel()).argmax())
        for change in (
            {"ablate": [(0, busiest)], "mode": "zero"},
            {"ablate": [(0, busiest)], "mode": "renormalise"},
            {"ablate": [(0, busiest)], "mode": "reroute"},
            {"force": [(0, busiest)]},
            {"top_k": 3},
            {"temperature": 2.0},
        ):
            with intervene(model, **change), capture(model) as recorder:  # type: ignore[arg-type]
                logits = model(input_ids=ids).logits
            trace = recorder.trace(token_ids=ids)
            assert torch.isfinite(logits).all()
            assert not (trace.router_indices == 3).any(), change
            assert np.isfinite(trace.router_scores).all()
        with intervene(model, force=[(0, 3)]), capture(model) as recorder:
            model(input_ids=ids)
        assert (recorder.trace(token_ids=ids).router_indices[0] == 3).any(axis=1).all()


# ---- words of the vocabulary ----


@settings(max_examples=60, deadline=None)
@given(
    st.sets(st.integers(0, 9), min_size=1), st.floats(0, 50), st.integers(0, 12), st.floats(0.01, 1), st.integers(0, 9)
)
def test_a_masked_word_is_never_drawn(
    allowed: set[int], temperature: float, top_k: int, top_p: float, seed: int
) -> None:
    logits = torch.full((10,), -INF, dtype=torch.float64)
    logits[sorted(allowed)] = torch.randn(
        len(allowed), dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    sampling = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    random = torch.Generator().manual_seed(seed)
    assert {sample(logits, sampling, random) for _ in range(5)} <= allowed


@pytest.mark.parametrize("wrong", [[-INF, -INF], [0.0, math.nan], [0.0, INF], [-INF, math.nan]])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_damaged_weights_are_told(wrong: list[float], temperature: float) -> None:
    with pytest.raises(RunError, match="weights are damaged"):
        sample(torch.tensor(wrong).double(), SamplingConfig(temperature=temperature), torch.Generator())


def test_losses_with_masked_words_and_experts_are_numbers() -> None:
    before, after = torch.tensor([[1.0, 0.0, -INF]]), torch.tensor([[0.0, 1.0, -INF]])
    target = torch.tensor([0])
    nats, changed, divergence = compare(before, after, target)
    p = before.softmax(dim=1)[0, :2]
    assert divergence.item() == pytest.approx(float((p * (p / p.flip(0)).log()).sum()))
    assert nats.item() == pytest.approx(token_nats(before, target).item())
    assert changed.item() == pytest.approx(math.log(1 + math.e))
    assert token_ranks(before, torch.tensor([2])).item() == 3
    logits = torch.tensor([[1.0, -INF, 0.0], [2.0, 1.0, -INF]], requires_grad=True)
    for loss in (
        entropy_loss(logits),
        router_z_loss(logits),
        load_balancing_loss(logits, logits.topk(1).indices, 3),
        load_balancing_loss(logits, logits.topk(1).indices, 3, "sigmoid"),
    ):
        assert loss.isfinite()
        assert torch.autograd.grad(loss, logits)[0].isfinite().all()
    two = torch.tensor([[1.0, 0.0], [2.0, 1.0]])
    assert entropy_loss(logits.detach()).item() == pytest.approx(entropy_loss(two).item())
