"""Labels permuted by source, in units of the error: by hand, and where domains differ in spread only."""

from __future__ import annotations

from itertools import permutations
from math import factorial, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_core.routing import RoutingTrace, baselines
from moe_core.routing.statistics.label_permutation import label_orders, labelled_shares
from moe_core.routing.trace.blocks import BlockCounts

RNG = np.random.default_rng(0)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_all_orders_of_few_labels_once_and_the_observed_first(labels: list[int]) -> None:
    orders = label_orders(np.array(labels), factorial(6), RNG)
    assert orders[0].tolist() == labels
    assert sorted(map(tuple, orders.tolist())) == sorted(set(permutations(labels)))


def test_of_many_labels_random_orders() -> None:
    labels = np.arange(30) % 3
    orders = label_orders(labels, 20, RNG)
    assert orders.shape == (21, 30)
    assert (np.sort(orders, axis=1) == np.sort(labels)).all()


def test_difference_in_standard_errors_by_hand() -> None:
    """Two experts; expert 0 in sources of 10 tokens: 8, 6 of domain 0; 2, 3, 1 of domain 1."""
    own = np.array([8, 6, 2, 3, 1])
    counts = np.stack([own, 10 - own], axis=1)[None]
    parts = BlockCounts(np.arange(5), np.array([0, 0, 1, 1, 1]), np.full(5, 10), counts)
    found = labelled_shares(parts, 2, 200, RNG)
    assert len(found.difference) == 10  # orders of the labels
    # Variances of the shares: 2 (1 + 1) / 20^2 and 3/2 (0 + 1 + 1) / 30^2, but never below the usual design effect:
    # share .4, squares 16 + 4 + 4 + 1 + 9 = 34, so that the effect is 5/4 34 / (50 .24) and the least .85 / tokens.
    least = 5 / 4 * 34 / 50
    error = sqrt(max(4 / 400, least / 20) + max(3 / 900, least / 30))
    assert found.difference[0, 0, :, 0] == pytest.approx([0.5 / error, -0.5 / error])
    assert found.difference[0, 0, :, 1] == pytest.approx([-0.5 / error, 0.5 / error])
    # Over the nine other orders of ten: the mean over all, .4, less the observed one.
    assert found.expected[0, :, 0] == pytest.approx([(10 * 0.4 - 0.7) / 9, (10 * 0.4 - 0.2) / 9])


def test_a_domain_of_one_source_has_no_error_and_one_of_none_no_share() -> None:
    counts = np.full((1, 4, 2), 5)
    found = labelled_shares(BlockCounts(np.arange(4), np.array([0, 1, 1, 1]), np.full(4, 10), counts), 3, 9, RNG)
    assert np.isnan(found.difference[0, 0, 0]).all()
    assert np.isnan(found.expected[0, 2]).all()
    assert found.expected[0, :2] == pytest.approx(np.full((2, 2), 0.5))


def domains_of_other_lengths(seed: int, lengths: list[int], domain_ids: list[int]) -> RoutingTrace:
    """Documents with tastes of their own, whatever their domain."""
    rng = np.random.default_rng(seed)
    document_ids = np.repeat(np.arange(len(lengths)), lengths)
    logits = rng.gumbel(size=(len(document_ids), 8)) + rng.normal(size=(len(lengths), 8))[document_ids]
    indices = np.argsort(-logits, axis=-1)[:, :2]
    return RoutingTrace.from_arrays(
        router_indices=indices,
        router_scores=np.full(indices.shape, 0.5),
        num_experts=8,
        token_ids=np.zeros(len(indices), int),
        document_ids=document_ids,
        domain_ids=np.array(domain_ids)[document_ids],
        domains=["a", "b"],
    )


@pytest.mark.parametrize(
    ("lengths", "domain_ids"),
    [
        ([20] * 30 + [340] * 10, [0] * 30 + [1] * 10),
        ([100] * 30 + [20] * 6, [0] * 30 + [1] * 6),
        ([60] * 8, [0, 1] * 4),
    ],
    ids=["few long sources", "few short sources", "few sources"],
)
def test_domains_that_differ_in_their_sources_only_have_no_experts(lengths: list[int], domain_ids: list[int]) -> None:
    traces = [domains_of_other_lengths(seed, lengths, domain_ids) for seed in range(40)]
    found = [bool((~baselines.domain_cells(trace, permutations=99)["uncertain"]).any()) for trace in traces]
    assert sum(found) <= 7  # of 40 at 5 %: more than 7 has a chance of 0.1 %; plain labels found 26, 5 and 0
