"""Which experts to keep: hand-computed verdicts, how often "surely" is wrong, and the list as a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_core.errors import UsageError
from moe_core.routing import RoutingTrace
from moe_core.routing.measures.keep_list import (
    KeepList,
    SaliencySums,
    keep_list_verdict,
    list_by_load,
    list_by_saliency,
    listed_experts,
    sure_verdicts,
)
from moe_core.runs.keep_list_file import read_keep_list, write_keep_list

NAN = float("nan")


def test_an_expert_is_sure_where_its_interval_lies_clear_of_enough_others() -> None:
    low, high = np.array([0.0, 1.0, 4.0, 6.0]), np.array([0.5, 3.0, 5.0, 9.0])
    kept, dropped = sure_verdicts(low, high, 2)
    assert kept.tolist() == [False, False, True, True]
    assert dropped.tolist() == [True, True, False, False]
    high[1] = 4.5  # 1 and 2 may change places; 0 and 3 stay where they are
    kept, dropped = sure_verdicts(low, high, 2)
    assert kept.tolist() == [False, False, False, True]
    assert dropped.tolist() == [True, False, False, False]


def test_what_nothing_bounds_is_unknown_and_makes_others_so() -> None:
    kept, dropped = sure_verdicts(np.array([NAN, 1.0, 4.0]), np.array([NAN, 2.0, 5.0]), 2)
    assert kept.tolist() == [False, False, True]
    assert dropped.tolist() == [False, False, False]
    kept, dropped = sure_verdicts(np.array([NAN] * 3), np.array([NAN] * 3), 3)
    assert kept.all()
    assert not dropped.any()


@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 3)), min_size=2, max_size=8), st.data())
def test_verdicts_never_exceed_their_numbers_and_follow_the_experts(
    pairs: list[tuple[float, float]], data: st.DataObject
) -> None:
    low, high = np.array([a for a, _ in pairs]), np.array([a + width for a, width in pairs])
    keep, order = data.draw(st.integers(1, len(pairs))), np.array(data.draw(st.permutations(range(len(pairs)))))
    kept, dropped = sure_verdicts(low, high, keep)
    assert kept.sum() <= keep
    assert dropped.sum() <= len(pairs) - keep
    assert not (kept & dropped).any()
    again = sure_verdicts(low[order], high[order], keep)
    assert (again[0] == kept[order]).all()
    assert (again[1] == dropped[order]).all()


def routing(rng: np.random.Generator, documents: int, logits_E: np.ndarray, persistence: float = 0.8) -> RoutingTrace:
    """Documents of unequal lengths whose tokens choose two experts, in runs; each document has tastes of its own."""
    chosen, owner = [], []
    for document in range(documents):
        tastes = logits_E + rng.normal(0, 0.5, len(logits_E))
        noise = rng.gumbel(size=len(logits_E))
        for _ in range(int(rng.integers(5, 60))):
            fresh = rng.gumbel(size=len(logits_E))
            noise = np.where(rng.random(len(logits_E)) < persistence, noise, fresh)
            chosen.append(np.argsort(-(tastes + noise))[:2])
            owner.append(document)
    T = len(owner)
    return RoutingTrace.from_arrays(
        router_indices=np.array(chosen)[None], router_scores=np.full((1, T, 2), 0.5), num_experts=len(logits_E),
        token_ids=np.zeros(T, np.int64), document_ids=owner, source_ids=owner, domains=["a"],
        domain_ids=np.zeros(T, np.int64), source="drawn",
    )  # fmt: skip


def test_surely_by_load_is_seldom_wrong_on_runs_unequal_lengths_and_few_documents() -> None:
    """Four experts are alike and wanted a little less than four others: 5 % of 120 lists may hold a wrong verdict; 13
    of them would be less likely than 1 in 100 at that rate."""
    rng, wrong, sure = np.random.default_rng(0), 0, 0
    logits = np.array([0.0, 0.0, 0.0, 0.0, 0.6, 0.6, 0.6, 0.6])
    for documents in (8, 20, 40):
        for _ in range(40):
            found = list_by_load(routing(rng, documents, logits), 4)
            bad = [one for one in found.experts if one.verdict == ("dropped" if one.expert > 3 else "kept")]
            wrong += bool(bad)
            sure += found.count("dropped")
    assert wrong < 13
    assert sure > 0, "a check that never says anything would pass too"


def test_an_expert_that_little_text_does_not_use_is_unknown_and_much_text_makes_it_droppable() -> None:
    rng = np.random.default_rng(1)
    logits = np.array([-9.0, 0.0, 0.0, 0.0])
    little, much = (list_by_load(routing(rng, n, logits), 3) for n in (3, 60))
    assert little.kept == much.kept == {0: [1, 2, 3]}
    assert little.experts[0].verdict == "unknown"
    assert "cannot be told" in keep_list_verdict(little)
    assert much.experts[0].verdict == "dropped"
    assert much.count("kept") == 3
    assert "1 can surely go" in keep_list_verdict(much)


def sums(tokens_SE: np.ndarray, weighted_SE: np.ndarray) -> SaliencySums:
    nothing = np.zeros_like(weighted_SE)[None]
    total = tokens_SE.sum(axis=1)
    return SaliencySums(
        (2,), tokens_SE[None], weighted_SE[None], nothing, nothing, total, np.zeros(len(total), np.int64)
    )


def test_reap_is_a_mean_over_an_experts_tokens_and_needs_sources() -> None:
    """Expert 0: 2 per token in every source; 1: 5, with little spread; 2: 9, but in two sources alone."""
    tokens = np.full((8, 3), 10, np.int64)
    weighted = np.stack([np.full(8, 20.0), 50 + np.array([-1.0, 1] * 4), np.full(8, 90.0)], axis=1)
    tokens[2:, 2], weighted[2:, 2] = 0, 0
    found = list_by_saliency(sums(tokens, weighted), 2)
    assert [one.score for one in found.experts] == pytest.approx([2.0, 5.0, 9.0])
    assert found.kept == {2: [1, 2]}
    assert [one.sources for one in found.experts] == [8, 8, 2]
    # 0 is below 1, but 2 might be anywhere: two that surely lie above are needed to drop one.
    assert [one.verdict for one in found.experts] == ["unknown", "kept", "unknown"]
    assert found.experts[2].low is None


def test_a_domain_alone_decides_where_it_is_named() -> None:
    one = routing(np.random.default_rng(2), 20, np.array([0.0, 2.0, 0.0, 0.0]))
    assert list_by_load(one, 2, domain="a").kept == list_by_load(one, 2).kept
    with pytest.raises(UsageError, match=r"no domain 'legal'; expected one of a"):
        list_by_load(one, 2, domain="legal")
    with pytest.raises(UsageError, match="9 experts cannot be kept"):
        list_by_load(one, 9)


def small_list() -> KeepList:
    scores = np.array([[3.0, NAN, 1.0]])
    return listed_experts("reap", (1,), 2, scores, (scores - 0.1, scores + 0.1), None, read=(100, 7))


def test_a_list_comes_back_from_its_file(tmp_path: Path) -> None:
    found = small_list()
    assert found.kept == {1: [0, 2]}
    write_keep_list(tmp_path / "keep.json", found, "run x")
    assert read_keep_list(tmp_path / "keep.json") == found


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "other", "of": "", "list": {}}', '{"format": 1}'])
def test_a_file_that_is_no_list_is_refused_by_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keep.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"keep.json' is no keep list"):
        read_keep_list(path)
    with pytest.raises(UsageError, match="cannot read"):
        read_keep_list(tmp_path / "none.json")
