"""Contrastive losses against pytorch-metric-learning, by hand, and their properties."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_core.model.contrastive import alignment, info_nce, mean_pooled, sup_con, uniformity

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from pytorch_metric_learning import losses


def unit_rows(rows: int, seed: int, dim: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, dim, generator=generator), dim=1)


def test_two_pairs_by_hand() -> None:
    # Two labels, two orthogonal directions: a positive has similarity 1, a negative 0, at temperature 1.
    z_ND = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    labels_N = torch.tensor([0, 0, 1, 1])
    expected = math.log((math.e + 2) / math.e)
    assert info_nce(z_ND, labels_N, 1.0).item() == pytest.approx(expected, abs=1e-6)
    assert sup_con(z_ND, labels_N, 1.0).item() == pytest.approx(expected, abs=1e-6)
    assert info_nce(z_ND, labels_N, 1.0, hard_negatives=1).item() == pytest.approx(math.log((math.e + 1) / math.e))
    assert alignment(z_ND, labels_N).item() == pytest.approx(0.0, abs=1e-6)
    # Of six pairs two are at distance 0 and four at squared distance 2.
    assert uniformity(z_ND).item() == pytest.approx(math.log((2 + 4 * math.exp(-4)) / 6), abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(labels=st.lists(st.integers(0, 3), min_size=4, max_size=14), seed=st.integers(0, 99))
def test_equal_to_the_reference(labels: list[int], seed: int) -> None:
    x_ND, labels_N = unit_rows(len(labels), seed).requires_grad_(), torch.tensor(labels)
    z_ND = torch.nn.functional.normalize(x_ND, dim=1)  # the reference does so itself
    found = sup_con(z_ND, labels_N, 0.1)
    if max(labels.count(label) for label in labels) < 2:
        assert found.item() == 0
        return
    if len(set(labels)) > 1:  # the reference leaves out what has no negative
        for ours, theirs in ((found, losses.SupConLoss), (info_nce(z_ND, labels_N, 0.1), losses.NTXentLoss)):
            reference = theirs(temperature=0.1)(z_ND, labels_N)
            torch.testing.assert_close(ours, reference, atol=1e-6, rtol=1e-6)
            mine, others = (torch.autograd.grad(loss, x_ND, retain_graph=True)[0] for loss in (ours, reference))
            torch.testing.assert_close(mine, others, atol=1e-5, rtol=1e-4)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), kept=st.integers(1, 6))
def test_hard_negatives_are_the_likest_ones_of_other_labels(seed: int, kept: int) -> None:
    z_ND, labels_N = unit_rows(8, seed).requires_grad_(), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    loss = info_nce(z_ND, labels_N, 0.1, hard_negatives=kept)
    assert 0 <= loss.item() <= info_nce(z_ND, labels_N, 0.1).item() + 1e-6
    assert info_nce(z_ND, labels_N, 0.1, hard_negatives=6).item() == pytest.approx(
        info_nce(z_ND, labels_N, 0.1).item(), rel=1e-6
    )
    # Of the first text's negatives only the likest pull at it: the loss of anchor 0 by hand.
    similar = (z_ND @ z_ND[0]).detach() / 0.1
    hardest = sorted(similar[2:].tolist())[-kept:]
    by_hand = math.log(sum(map(math.exp, [similar[1].item(), *hardest]))) - similar[1].item()
    only_first = info_nce(torch.cat([z_ND[:2], z_ND[2:]]), torch.tensor([0, 0, 1, 2, 3, 4, 5, 6]), 0.1, kept)
    other = (z_ND @ z_ND[1]).detach() / 0.1
    second = math.log(sum(map(math.exp, [other[0].item(), *sorted(other[2:].tolist())[-kept:]]))) - other[0].item()
    assert only_first.item() == pytest.approx((by_hand + second) / 2, rel=1e-4)


def test_means_end_where_the_text_ends() -> None:
    states_BSD = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [9.0, 9.0]], [[0.0, 2.0], [7.0, 7.0], [7.0, 7.0]]])
    pooled_BD = mean_pooled(states_BSD, torch.tensor([2, 1]))
    torch.testing.assert_close(pooled_BD, torch.tensor([[0.6, 0.8], [0.0, 1.0]]))
