"""Splits never part a source, hold out about 8 % twice, and never score a text that was trained on."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_core.data.document import Document
from moe_core.data.splits import HELD_OUT_SPLITS, LARGEST_SHARE, TUNING, keep_for_tuning, split_documents
from moe_core.errors import DataError


def corpus(sizes: dict[str, list[int]]) -> list[Document]:
    """One document a source; `sizes` gives their lengths in bytes, by domain. All texts differ."""
    return [
        Document(f"{domain}{i}:".ljust(size, "x"), domain, f"{domain}/{i}", "")
        for domain, lengths in sizes.items()
        for i, size in enumerate(lengths)
    ]


def size_by_split(documents: list[Document]) -> Counter[tuple[str, str]]:
    sizes: Counter[tuple[str, str]] = Counter()
    for document in documents:
        sizes[document.domain, document.split] += len(document.text.encode())
    return sizes


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 12), st.integers(1, 500)), min_size=1, max_size=60, unique=True
    ),
    st.integers(0, 2**32 - 1),
)
def test_no_source_is_ever_in_two_splits_and_every_split_has_every_domain(
    rows: list[tuple[str, int, int]], seed: int
) -> None:
    documents = [Document(f"{i} {'x' * size}", domain, str(n), "") for i, (domain, n, size) in enumerate(rows)]
    try:
        split = split_documents(documents, seed=seed)
    except DataError:
        return  # too few sources, or all shared between the domains
    splits_of: dict[str, set[str]] = {}
    for document in split:
        splits_of.setdefault(document.source, set()).add(document.split)
    assert all(len(splits) == 1 for splits in splits_of.values())
    assert {(d.domain, d.split) for d in split} == {
        (domain, s) for domain in {d.domain for d in documents} for s in ("train", *HELD_OUT_SPLITS)
    }
    assert [d.text for d in split] == [d.text for d in documents], "order and texts stay"


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_each_held_out_split_gets_about_eight_percent_of_the_bytes(seed: int) -> None:
    sizes = size_by_split(split_documents(corpus({"a": [100] * 200, "b": [50, 150] * 100}), seed=seed))
    for domain in "ab":
        for split in HELD_OUT_SPLITS:
            assert 0.07 * 20_000 <= sizes[domain, split] <= LARGEST_SHARE * 20_000


def test_three_sources_give_the_largest_to_training() -> None:
    split = split_documents(corpus({"a": [300, 9000, 200]}), seed=5)
    assert split[1].split == "train"
    assert {split[0].split, split[2].split} == set(HELD_OUT_SPLITS)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(10, 10_000), min_size=3, max_size=30), min_size=1, max_size=2), st.integers(0, 99))
def test_three_sources_a_domain_are_always_enough(sizes: list[list[int]], seed: int) -> None:
    split = split_documents(corpus(dict(zip("ab", sizes, strict=False))), seed=seed)
    assert len({(document.domain, document.split) for document in split}) == 3 * len(sizes)


def test_the_same_seed_gives_the_same_split_and_another_seed_another() -> None:
    documents = corpus({"a": [100] * 50})
    assert split_documents(documents, seed=1) == split_documents(documents, seed=1)
    assert split_documents(documents, seed=1) != split_documents(documents, seed=2)


def test_the_split_of_a_source_does_not_depend_on_the_order_of_the_rows() -> None:
    documents = corpus({"a": [100] * 50, "b": [70] * 30})
    forward = {d.source: d.split for d in split_documents(documents, seed=1)}
    assert {d.source: d.split for d in split_documents(documents[::-1], seed=1)} == forward


def test_a_held_out_text_that_is_also_in_training_is_dropped_from_the_held_out_side() -> None:
    documents = corpus({"a": [100] * 50})
    splits = {d.source: d.split for d in split_documents(documents, seed=0)}
    held_out = [d for d in documents if splits[d.source] == "validation"]
    trained = next(d for d in documents if splits[d.source] == "train")
    copies = [Document(trained.text, "a", held_out[0].source, ""), *documents]
    after = split_documents(copies, seed=0)
    assert Counter(d.text for d in after)[trained.text] == 1
    assert len(after) == len(documents)
    assert next(d for d in after if d.text == trained.text).split == "train"


def test_too_few_sources_are_refused_by_name() -> None:
    with pytest.raises(DataError, match="domain 'b' has 1 source; expected at least 3"):
        split_documents(corpus({"a": [100] * 3, "b": [100]}), seed=0)
    with pytest.raises(DataError, match="domain 'a' has 2 sources; expected at least 3"):
        split_documents(corpus({"a": [100] * 2}), seed=0)


def test_a_corpus_that_repeats_one_text_is_refused() -> None:
    with pytest.raises(DataError, match="domain 'a' has no text left for 'validation'"):
        split_documents([Document("same", "a", str(i), "") for i in range(9)], seed=0)


# ---- the split for tuning ----


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 12), st.integers(1, 500), st.integers(0, 20)),
        min_size=1,
        max_size=80,
    ),
    st.integers(0, 2**32 - 1),
)
def test_tuning_takes_whole_sources_from_training_and_shares_no_text(
    rows: list[tuple[str, int, int, int]], seed: int
) -> None:
    """Sources may stand in several domains, and texts may repeat within and between them."""
    documents = [Document(f"{text} {'x' * size}", domain, str(n), "") for domain, n, size, text in rows]
    try:
        split = split_documents(documents, seed=seed)
        kept = keep_for_tuning(split, seed=seed)
    except DataError:
        return  # too few sources or too few different texts
    for name in HELD_OUT_SPLITS:
        assert [d for d in kept if d.split == name] == [d for d in split if d.split == name]
    splits_of: dict[str, set[str]] = {}
    for document in kept:
        splits_of.setdefault(document.source, set()).add(document.split)
    assert all(len(splits) == 1 for splits in splits_of.values())
    domains = {d.domain for d in documents}
    assert {(d.domain, d.split) for d in kept} == {
        (domain, s) for domain in domains for s in ("train", TUNING, *HELD_OUT_SPLITS)
    }
    texts = {s: {d.text for d in kept if d.split == s} for s in ("train", TUNING, *HELD_OUT_SPLITS)}
    assert not any(texts[TUNING] & texts[s] for s in ("train", *HELD_OUT_SPLITS))
    trained = {d.source for d in kept if d.split == "train"}
    gone = [d for d in split if d.split == "train" and d.source not in trained]
    assert {d.text for d in gone} <= texts[TUNING] | texts["train"] | texts["validation"] | texts["unseen"]


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_tuning_gets_as_much_as_each_other_held_out_split(seed: int) -> None:
    split = split_documents(corpus({"a": [100] * 200, "b": [50, 150] * 100}), seed=seed)
    sizes = size_by_split(keep_for_tuning(split, seed=seed))
    for domain in "ab":
        assert 0.07 * 20_000 <= sizes[domain, TUNING] <= LARGEST_SHARE * 20_000


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(10, 10_000), min_size=3, max_size=30), min_size=1, max_size=2), st.integers(0, 99))
def test_two_training_sources_a_domain_are_enough_for_tuning(sizes: list[list[int]], seed: int) -> None:
    split = split_documents(corpus(dict(zip("ab", sizes, strict=False))), seed=seed)
    trained = Counter(document.domain for document in split if document.split == "train")
    if min(trained.values()) < 2:
        with pytest.raises(DataError, match="has no source to spare for choosing learning rates"):
            keep_for_tuning(split, seed=seed)
        return
    kept = keep_for_tuning(split, seed=seed)
    assert len({(document.domain, document.split) for document in kept}) == 4 * len(sizes)


def test_three_sources_are_too_few_for_tuning_and_repeated_texts_leave_it_empty() -> None:
    split = split_documents(corpus({"a": [100] * 9, "b": [100] * 3}), seed=0)
    with pytest.raises(
        DataError, match=r"domain 'b' has no source to spare for choosing learning rates: .* it has 1 source,"
    ):
        keep_for_tuning(split, seed=0)
    same = [Document("same", "a", str(number), "train") for number in range(6)]
    apart = [Document("v", "a", "v", "validation"), Document("u", "a", "u", "unseen")]
    with pytest.raises(DataError, match="domain 'a' has no text left to choose learning rates on"):
        keep_for_tuning([*same, *apart], seed=0)
