"""How long texts are cut: every token counts once, never across documents, in windows of a limited length."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_core.data.document import Document
from moe_core.data.tokenizer import Tokenizer
from moe_core.data.tokens import TokenDataset
from moe_core.data.windows import OVERLAPPING_WINDOWS, WindowBatch, window_batches, window_groups, window_words
from moe_core.errors import UsageError


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["nothing to merge"], 257)


def dataset_of(tokenizer: Tokenizer, lengths: list[int]) -> TokenDataset:
    documents = [Document("xyz€"[i % 4] * n, "ab"[i % 2], str(i), "train") for i, n in enumerate(lengths)]
    return TokenDataset.build(documents, tokenizer, ["a", "b"])


def test_the_last_window_of_a_long_document_reaches_back_to_be_whole(tokenizer: Tokenizer) -> None:
    """End-of-text and "abcdef" in windows of 4: the second predicts e and f, with b and c again as context."""
    dataset = TokenDataset.build([Document("abcdef", "a", "1", "train")], tokenizer, ["a"])
    (batch,) = window_batches(dataset, 4, every_token=False)
    assert batch.index.tolist() == [[0, 1, 2, 3], [2, 3, 4, 5]]
    assert batch.scored.tolist() == [[True] * 4, [False, False, True, True]]
    assert batch.targets.tolist() == [1, 2, 3, 4, 5, 6]


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), max_size=12), st.integers(2, 17), st.integers(1, 5), st.booleans())
def test_every_text_token_is_scored_once_and_never_across_documents(
    tokenizer: Tokenizer, lengths: list[int], size: int, rows: int, by_length: bool
) -> None:
    dataset = dataset_of(tokenizer, lengths)
    scored: list[int] = []
    for batch in window_batches(dataset, size, every_token=False, tokens_per_batch=rows * size, by_length=by_length):
        assert len(batch.index) <= rows
        assert batch.index.shape[1] <= size
        edges = np.diff(np.pad(batch.scored.astype(int), ((0, 0), (1, 1))), axis=1)
        assert (np.abs(edges).sum(axis=1) == 2).all(), "context, then what is scored, then padding"
        begins_late = dataset.positions[batch.index[:, 0]] > 0
        whole = batch.index[:, -1] - batch.index[:, 0] == size - 1
        assert whole[begins_late].all(), "a window that begins late is as long as the context"
        documents = dataset.document_ids[batch.index]
        assert (documents == documents[:, :1]).all()
        np.testing.assert_array_equal(dataset.document_ids[batch.targets], documents[batch.scored])
        scored += batch.targets.tolist()
    assert sorted(scored) == np.flatnonzero(dataset.positions > 0).tolist()
    assert by_length or scored == sorted(scored)


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), max_size=12), st.integers(2, 17))
def test_every_token_is_read_once_and_scored_as_without_the_last_ones(
    tokenizer: Tokenizer, lengths: list[int], size: int
) -> None:
    """A document's last token predicts nothing; it comes with the text before it, as much as fits."""
    dataset = dataset_of(tokenizer, lengths)
    kept, scored, contexts = [], [], {}
    for batch in window_batches(dataset, size):
        assert batch.index.shape[1] <= size
        kept += batch.index[batch.keep].tolist()
        scored += batch.targets.tolist()
        for row, place in zip(*np.nonzero(batch.keep), strict=True):
            contexts[int(batch.index[row, place])] = int(batch.index[row, 0])
    assert kept == list(range(len(dataset)))
    assert scored == np.flatnonzero(dataset.positions > 0).tolist()
    for batch in window_batches(dataset, size, every_token=False):
        for row, place in zip(*np.nonzero(batch.scored), strict=True):
            assert contexts[int(batch.index[row, place])] == batch.index[row, 0], "the same context before it"
    for first, end in zip(*dataset.document_bounds(), strict=True):
        assert contexts[int(end) - 1] == max(first, end - size)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(2, 17), st.integers(17, 60), st.integers(1, 90)
)
def test_groups_of_like_lengths_have_the_same_windows_in_fewer_passes(
    tokenizer: Tokenizer, lengths: list[int], size: int, places: int, tokens: int
) -> None:
    dataset = dataset_of(tokenizer, lengths)

    def rows(batches: Iterable[WindowBatch]) -> list[tuple[list[int], ...]]:
        """Each window's tokens as far as they count, and which of them are scored; padding left out."""
        every = [
            (batch.index[row][keep].tolist(), batch.index[row][batch.scored[row]].tolist(), [int(batch.index[row, 0])])
            for batch in batches
            for row, keep in enumerate(batch.keep)
        ]
        return sorted(every)

    groups = list(window_groups(dataset, size, places=places, tokens=tokens))
    batches = [batch for group in groups for batch in group.batches]
    plain = list(window_batches(dataset, size, tokens_per_batch=max(places, size)))
    assert rows(batches) == rows(plain)
    assert all(batch.index.size <= max(places, size) for batch in batches)
    assert [group.start for group in groups] == [0, *(group.end for group in groups[:-1])]
    assert groups[-1].end == len(dataset)
    for group in groups:
        counted = np.sort(np.concatenate([batch.index[batch.keep] for batch in group.batches]))
        assert counted.tolist() == list(range(group.start, group.end))
        assert group.end - group.start <= max(tokens, size)


def test_the_rule_is_said_in_words() -> None:
    assert window_words(128) == (
        "Each document is read alone, in windows of 128 tokens: context restarts at a window's border."
    )
    assert "the trained length that overlap by half" in window_words(rule=OVERLAPPING_WINDOWS)
    assert "'later'" in window_words(rule="later")


def test_fewer_than_two_tokens_a_batch_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="tokens_per_batch = 1 is too few"):
        next(window_batches(dataset_of(tokenizer, [3]), 4, tokens_per_batch=1))
