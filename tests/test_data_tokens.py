"""Every token keeps document, domain and position; batches are pure functions and score each token once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_core.data import shuffled_order
from moe_core.data.document import Document
from moe_core.data.token_stream import TokensInMemory, training_batch
from moe_core.data.tokenizer import Tokenizer
from moe_core.data.tokens import MIN_DOCUMENTS, TokenDataset
from moe_core.errors import DataError

DOMAINS = ("a", "b")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["nothing to merge"], 257)


def documents_of(lengths: list[int]) -> list[Document]:
    return [Document("xyz€"[i % 4] * n, DOMAINS[i % 2], str(i), "train") for i, n in enumerate(lengths)]


def plain(tokens: int) -> TokensInMemory:
    """A stream whose token ids are their own positions in it."""
    return TokensInMemory(np.arange(tokens, dtype=np.int32))


def test_build_puts_end_of_text_before_each_document(tokenizer: Tokenizer) -> None:
    documents = [Document("ab", "b", "1", "train"), Document("€", "a", "2", "train")]
    dataset = TokenDataset.build(documents, tokenizer, DOMAINS)
    end = tokenizer.end_of_text
    assert dataset.token_ids.tolist() == [end, *tokenizer.encode("ab"), end, *tokenizer.encode("€")]
    assert dataset.document_ids.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert dataset.source_ids.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert dataset.domain_ids.tolist() == [1, 1, 1, 0, 0, 0, 0]
    assert dataset.positions.tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert dataset.domain_bytes.tolist() == [3, 2]
    types = (dataset.token_ids.dtype, dataset.document_ids.dtype, dataset.domain_ids.dtype, dataset.positions.dtype)
    assert types == (np.int32, np.int32, np.int16, np.int32)
    assert len(TokenDataset.build([], tokenizer, DOMAINS)) == 0


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), max_size=20), st.integers(0, 100), st.integers(0, 5))
def test_select_fills_the_limit_from_several_documents_and_counts_their_bytes(
    tokenizer: Tokenizer, lengths: list[int], limit: int, seed: int
) -> None:
    dataset = TokenDataset.build(documents_of(lengths), tokenizer, DOMAINS)
    chosen = dataset.select(limit, seed)
    starts, ends = chosen.document_bounds()
    for domain in (0, 1):
        whole = np.bincount(dataset.document_ids[dataset.domain_ids == domain])
        whole = whole[whole > 0]
        sharing = min(MIN_DOCUMENTS, max(1, len(whole)))
        taken = int((chosen.domain_ids == domain).sum())
        assert min(limit, int(np.minimum(whole, limit // sharing).sum())) - 1 <= taken <= limit
        if whole.sum() <= limit:
            assert taken == whole.sum()
        else:
            assert int((chosen.domain_ids[starts] == domain).sum()) >= min(sharing, limit // 2)
    assert (chosen.source_ids == dataset.source_ids[dataset.document_ids.searchsorted(chosen.document_ids)]).all()
    for start, end in zip(starts, ends, strict=True):
        original = dataset.token_ids[dataset.document_ids == chosen.document_ids[start]]
        assert chosen.token_ids[start:end].tolist() == original[: end - start].tolist()
    assert int(chosen.domain_bytes.sum()) == int((chosen.positions > 0).sum())  # one byte a token in this vocabulary
    assert chosen.token_ids.tolist() == dataset.select(limit, seed).token_ids.tolist()


def test_sources_are_numbered_within_their_domain_and_a_missing_one_is_its_own(tokenizer: Tokenizer) -> None:
    names = [("a", "book"), ("b", "book"), ("a", "book"), ("a", ""), ("a", ""), ("b", "other")]
    documents = [Document("x", domain, source, "train") for domain, source in names]
    dataset = TokenDataset.build(documents, tokenizer, DOMAINS)
    assert dataset.source_ids.dtype == np.int32
    assert dataset.source_ids[dataset.positions == 0].tolist() == [0, 1, 0, 2, 3, 4]


def test_a_selection_takes_every_source_before_it_takes_one_again(tokenizer: Tokenizer) -> None:
    """Ten documents of one book and one each of three: the three are in whatever the seed."""
    documents = [Document("x" * 9, "a", "book" if i < 10 else str(i), "train") for i in range(13)]
    dataset = TokenDataset.build(documents, tokenizer, ["a"])
    for seed in range(10):
        chosen = dataset.select(45, seed)
        assert set(chosen.source_ids.tolist()) == set(dataset.source_ids.tolist())


@settings(deadline=None)
@given(st.integers(9, 200), st.integers(1, 7), st.integers(0, 3))
def test_an_epoch_of_training_batches_visits_each_window_once(tokens: int, batch_size: int, seed: int) -> None:
    seq_len = 8
    windows = max(1, (tokens - seq_len) // seq_len)
    rows: list[np.ndarray] = []
    for step in range(3 * windows):
        batch = training_batch(plain(tokens), step, batch_size=batch_size, seq_len=seq_len, seed=seed)
        assert batch.token_ids.shape == batch.targets.shape == (batch_size, seq_len)
        assert (batch.targets == batch.token_ids + 1).all()
        rows += list(batch.token_ids[:, 0])
    for epoch in range(3 * batch_size):
        starts = np.sort(rows[epoch * windows : (epoch + 1) * windows])
        assert (np.diff(starts) == seq_len).all()
        assert starts[0] < seq_len
        assert starts[-1] + seq_len < tokens


def test_a_step_gives_the_same_batch_whatever_came_before_and_epochs_differ() -> None:
    dataset = plain(1000)

    def first_tokens(step: int, seed: int = 0) -> list[int]:
        return training_batch(dataset, step, batch_size=4, seq_len=16, seed=seed).token_ids[:, 0].tolist()

    alone = first_tokens(37)
    for step in range(37):
        first_tokens(step)
    assert first_tokens(37) == alone
    assert first_tokens(37, seed=1) != alone
    windows = (1000 - 16) // 16
    epochs = [[first_tokens(step) for step in range(e * windows // 4, (e + 1) * windows // 4)] for e in (0, 4)]
    assert epochs[0] != epochs[1]


def test_rows_of_a_batch_are_those_of_the_whole_one() -> None:
    """Also where an epoch ends within it."""
    for step in range(9):
        whole = training_batch(plain(300), step, batch_size=6, seq_len=16, seed=3)
        parts = [training_batch(plain(300), step, batch_size=6, seq_len=16, seed=3, rows=r) for r in ((0, 2), (2, 6))]
        np.testing.assert_array_equal(np.concatenate([part.token_ids for part in parts]), whole.token_ids)
        np.testing.assert_array_equal(np.concatenate([part.targets for part in parts]), whole.targets)


@pytest.mark.parametrize("windows", [2, 3, 1000, 1025, 4096])
def test_without_a_permutation_every_window_is_still_visited_once_in_an_order_of_its_own(
    windows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shuffled_order, "MOST_PERMUTED", 1)
    places, tokens = np.arange(windows), (windows + 1) * 8
    orders = [shuffled_order.window_starts(places, tokens, 8, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for starts in orders:
        np.testing.assert_array_equal(np.sort(starts) // 8, places)
        assert len(set((starts % 8).tolist())) == 1
        assert starts.max() + 8 < tokens
    if windows >= 1000:
        ranks = [np.argsort(np.argsort(starts)) for starts in (*orders, places)]
        correlations = np.corrcoef(ranks) - np.eye(4)
        assert np.abs(correlations).max() < 4.5 / np.sqrt(windows)
        steps = np.abs(np.diff(ranks[0]))  # neighbours are as far apart as chance has them: a third of the windows
        assert steps.mean() == pytest.approx(windows / 3, rel=0.1)


def test_an_order_of_a_thousand_million_windows_is_asked_in_a_moment() -> None:
    starts = shuffled_order.window_starts(np.arange(64), 2**37, 128, 0, 0)
    assert len(set(starts.tolist())) == 64
    assert starts.max() < 2**37


def test_a_data_set_smaller_than_a_window_is_refused() -> None:
    assert training_batch(plain(9), 0, batch_size=2, seq_len=8, seed=0).token_ids[:, 0].tolist() == [0, 0]
    with pytest.raises(DataError, match=r"has 8 tokens; expected at least seq_len \+ 1 = 9"):
        training_batch(plain(8), 0, batch_size=2, seq_len=8, seed=0)
