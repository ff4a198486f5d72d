"""Saliency and similarity of experts against plain loops and the direct formulas."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import silu

from moe_core.data.document import Document
from moe_core.data.tokens import TokenDataset
from moe_core.errors import UsageError
from moe_core.inference.expert_outputs import expert_saliency, expert_similarity, linear_cka
from moe_core.inference.held_out import held_out_text
from moe_core.inference.tracing import trace_dataset
from moe_core.runs.checkpoint import LoadedRun, load_run


@pytest.fixture(scope="module")
def loaded(trained_root: Path) -> LoadedRun:
    return load_run("tiny", trained_root)


@pytest.fixture(scope="module")
def text(loaded: LoadedRun) -> TokenDataset:
    return held_out_text(loaded.run, loaded.tokenizer, 120)


def outputs_by_hand(loaded: LoadedRun, layer: int, expert: int, x: torch.Tensor) -> torch.Tensor:
    experts = loaded.model.layers[layer].moe.experts  # type: ignore[union-attr]
    gate, up, down = (weights[expert] for weights in (experts.gate_proj, experts.up_proj, experts.down_proj))
    return (silu(x @ gate.T) * (x @ up.T)) @ down.T


def what_experts_read(loaded: LoadedRun, ids: torch.Tensor) -> dict[int, torch.Tensor]:
    read: dict[int, torch.Tensor] = {}
    handles = [
        block.moe.register_forward_pre_hook(lambda _, args, layer=layer: read.update({layer: args[0]}))
        for layer, block in enumerate(loaded.model.layers)
    ]
    loaded.model(ids)
    for handle in handles:
        handle.remove()
    return read


# ---- saliency ----


def test_saliency_is_the_mean_and_sum_over_the_tokens_that_chose_the_expert(loaded: LoadedRun) -> None:
    documents = [Document("The party shall pay", "legal", "a", "")]  # one window: what is read is what counts
    dataset = TokenDataset.build(documents, loaded.tokenizer, ["legal"])
    frame = expert_saliency(loaded, documents)
    assert len(frame) == 2 * 4
    with torch.inference_mode():
        ids = torch.from_numpy(dataset.token_ids.astype(np.int64))[None]
        read, trace = what_experts_read(loaded, ids), trace_dataset(loaded, dataset).trace
        for one in frame.itertuples():
            weighted, norms, gates = [], [], []
            for token in range(len(dataset)):
                for expert, score in zip(
                    trace.router_indices[one.layer, token], trace.router_scores[one.layer, token], strict=True
                ):
                    if expert == one.expert:
                        norm = outputs_by_hand(loaded, one.layer, expert, read[one.layer][token]).norm().item()
                        norms.append(norm)
                        gates.append(score)
                        weighted.append(score * norm)
            assert one.tokens == len(norms)
            assert one.ean == pytest.approx(sum(norms), rel=1e-4)
            assert one.gate_mass == pytest.approx(sum(gates) / len(dataset), rel=1e-5)
            assert one.reap == pytest.approx(np.mean(weighted), rel=1e-4) if norms else np.isnan(one.reap)


def test_every_token_counts_once_though_windows_overlap(loaded: LoadedRun, text: TokenDataset) -> None:
    frame = expert_saliency(loaded, text)
    trace = trace_dataset(loaded, text).trace
    for layer, own in frame.groupby("layer"):
        assert own["tokens"].tolist() == np.bincount(trace.router_indices[layer].ravel(), minlength=4).tolist()
        assert own["gate_mass"].sum() == pytest.approx(1, abs=1e-5)  # normalised weights
        assert (own["reap"] * own["tokens"] <= own["ean"] * (1 + 1e-6)).all()  # weights are at most 1


def test_an_expert_of_twice_the_size_is_twice_as_salient(loaded: LoadedRun, text: TokenDataset) -> None:
    model = copy.deepcopy(loaded.model)
    model.layers[1].moe.experts.down_proj[2] *= 2  # type: ignore[union-attr, operator]
    doubled = LoadedRun(loaded.run, loaded.config, model, loaded.tokenizer, loaded.step)
    before, after = (expert_saliency(run, text).set_index(["layer", "expert"]) for run in (loaded, doubled))
    expected = before["reap"] * np.where(before.index == (1, 2), 2, 1)
    np.testing.assert_allclose(after["reap"], expected, rtol=1e-5)


# ---- similarity ----


def kernel_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Kornblith et al. 2019, eq. 3 and 4, as they are printed: HSIC of linear kernels, normalised."""
    n = len(x)
    H = np.eye(n) - 1 / n

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        return float(np.trace(k @ H @ m @ H)) / (n - 1) ** 2

    k, m = x @ x.T, y @ y.T
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(3, 30), st.floats(1e-3, 1e3))
def test_cka_is_the_papers_formula_and_blind_to_rotation_and_scale(seed: int, n: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, 4)) + 3, rng.normal(size=(n, 4)) + rng.normal(size=(n, 1))
    rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    cka = linear_cka([torch.from_numpy(z).float() for z in (x, y, scale * y @ rotation)])
    assert cka[0, 1] == pytest.approx(kernel_cka(x, y), abs=1e-4)
    assert cka[0, 2] == pytest.approx(cka[0, 1], abs=1e-4)
    assert cka[1, 2] == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(cka, cka.T)
    assert (cka >= 0).all()
    assert (cka <= 1).all()


def test_cka_of_independent_outputs_is_about_width_over_tokens_and_of_constants_unknown() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2000, 40, generator=generator) for _ in range(2))
    assert linear_cka([x, y])[0, 1] == pytest.approx(40 / 2000, rel=0.2)
    constant = linear_cka([x, torch.ones(2000, 40)])
    assert np.isnan(constant[0, 1])
    assert constant[0, 0] == pytest.approx(1)


def test_similarity_is_measured_on_the_same_tokens_whoever_chose_them(loaded: LoadedRun) -> None:
    documents = [Document("The party shall pay 4.5 percent.", "legal", "a", "")]
    dataset = TokenDataset.build(documents, loaded.tokenizer, ["legal"])
    frame = expert_similarity(loaded, documents).set_index(["layer", "expert_i", "expert_j"])
    assert len(frame) == 2 * 4 * 3  # ordered pairs, none with itself
    with torch.inference_mode():
        read = what_experts_read(loaded, torch.from_numpy(dataset.token_ids.astype(np.int64))[None])
        outputs = [outputs_by_hand(loaded, 1, expert, read[1]).double().numpy() for expert in range(4)]
    for i in range(4):
        for j in range(4):
            if i != j:
                pair = frame.loc[(1, i, j)]
                assert pair["output_cka"] == pytest.approx(kernel_cka(outputs[i], outputs[j]), abs=1e-4)
                assert pair["output_cka"] == pytest.approx(frame.loc[(1, j, i), "output_cka"])
                rows = loaded.model.layers[1].moe.router.weight.double()  # type: ignore[union-attr]
                cosine = torch.nn.functional.cosine_similarity(rows[i], rows[j], dim=0)
                assert pair["gate_cosine"] == pytest.approx(cosine.item(), abs=1e-5)


def test_a_copied_expert_is_found(loaded: LoadedRun, text: TokenDataset) -> None:
    model = copy.deepcopy(loaded.model)
    experts, router = model.layers[0].moe.experts, model.layers[0].moe.router  # type: ignore[union-attr]
    for weights in (experts.gate_proj, experts.up_proj, experts.down_proj, router.weight):  # type: ignore[union-attr]
        weights[3] = weights[1]  # type: ignore[index, operator]
    copied = LoadedRun(loaded.run, loaded.config, model, loaded.tokenizer, loaded.step)
    frame = expert_similarity(copied, text, tokens=200)
    views = frame[["gate_cosine", "weight_cosine", "output_cka"]]
    twins = (frame["layer"] == 0) & frame["expert_i"].isin([1, 3]) & frame["expert_j"].isin([1, 3])
    assert twins.sum() == 2
    np.testing.assert_allclose(views[twins], 1, atol=1e-5)
    assert (frame.loc[~twins, "output_cka"] < 0.99).all()
    assert (frame.loc[~twins, "weight_cosine"].abs() < 0.5).all()


def test_the_sample_is_seeded_and_must_hold_two_tokens(loaded: LoadedRun, text: TokenDataset) -> None:
    first, again, more = (expert_similarity(loaded, text, tokens=tokens) for tokens in (50, 50, 100))
    np.testing.assert_array_equal(first["output_cka"], again["output_cka"])
    assert (first["output_cka"] != more["output_cka"]).all()
    np.testing.assert_array_equal(first["weight_cosine"], more["weight_cosine"])
    with pytest.raises(UsageError, match="tokens = 1 is too few"):
        expert_similarity(loaded, text, tokens=1)
