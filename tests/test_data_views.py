"""Two views of a document: crops of its halves, a function of the step; names of code change and it still parses."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_gen import generate_corpus
from moe_core.config.contrastive_views import ContrastiveConfig
from moe_core.data.renaming import rename_identifiers
from moe_core.data.token_stream import DocumentPlaces, TokensInMemory
from moe_core.data.tokenizer import Tokenizer
from moe_core.data.views import SHORTEST_VIEW, ViewMaker
from moe_core.errors import DataError

CODE = [row.text for row in generate_corpus(10, seed=5, splits=["train"]) if row.domain == "code"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(CODE, 400)


def maker(tokenizer: Tokenizer, documents: list[str], sources: list[int], seed: int = 0, **keys: object) -> ViewMaker:
    encoded = [[tokenizer.end_of_text, *tokenizer.encode(text)] for text in documents]
    lengths = np.array([len(ids) for ids in encoded])
    places = DocumentPlaces(np.cumsum(lengths) - lengths, lengths, np.array(sources, dtype=np.int32))
    stream = TokensInMemory(np.concatenate(encoded).astype(np.int32))
    return ViewMaker(stream, places, tokenizer, ContrastiveConfig.model_validate(keys), seed)


def test_views_are_crops_of_both_halves_and_depend_on_the_step_alone(tokenizer: Tokenizer) -> None:
    made = maker(tokenizer, CODE[:6], [0, 0, 1, 2, 3, 4], texts=4, tokens=10)
    views, again, other = made.of(3), made.of(3), made.of(4)
    assert np.array_equal(views.token_ids, again.token_ids)
    assert not np.array_equal(views.token_ids, other.token_ids)
    assert views.token_ids.shape == (8, 10)
    assert not (views.token_ids == tokenizer.end_of_text).any(), "a beginning of a document is no crop of one"
    assert (views.lengths == 10).all()
    assert np.array_equal(views.labels[::2], views.labels[1::2])
    assert len(set(views.labels)) == 4
    for row, document in zip(views.token_ids, views.labels, strict=True):
        ids = tokenizer.encode(CODE[document])
        half = len(ids) // 2
        part = ids[:half] if row is views.token_ids[0] else ids
        assert any(part[at : at + 10] == row.tolist() for at in range(len(part)))


def test_texts_of_one_source_may_be_what_belongs_together(tokenizer: Tokenizer) -> None:
    views = maker(tokenizer, CODE[:4], [7, 7, 8, 8], texts=4, positives="source").of(0)
    assert sorted(set(views.labels)) == [7, 8]
    apart = maker(tokenizer, CODE[:4], [7, 7, 8, 8], texts=4).of(0)
    assert len(set(apart.labels)) == 4
    assert sorted(set(apart.source_ids)) == [7, 8]


def test_short_documents_have_no_views(tokenizer: Tokenizer) -> None:
    made = maker(tokenizer, ["x", CODE[0], CODE[1]], [0, 1, 2], texts=16)
    assert set(made.of(0).labels) == {1, 2}
    with pytest.raises(DataError, match=rf"two documents of at least {2 * SHORTEST_VIEW} tokens .* found 1"):
        maker(tokenizer, ["x", CODE[0]], [0, 1])


def test_tokens_left_out_and_names_changed(tokenizer: Tokenizer) -> None:
    whole = maker(tokenizer, CODE[:4], [0, 1, 2, 3], texts=4, tokens=40).of(1)
    fewer = maker(tokenizer, CODE[:4], [0, 1, 2, 3], texts=4, tokens=40, deletion=0.5).of(1)
    assert fewer.lengths.min() >= 1
    assert 0.3 < fewer.lengths.sum() / whole.lengths.sum() < 0.7
    renamed = maker(tokenizer, CODE[:4], [0, 1, 2, 3], texts=4, tokens=40, rename_identifiers=True).of(1)
    assert not np.array_equal(renamed.token_ids, whole.token_ids)


@settings(max_examples=20, deadline=None)
@given(number=st.integers(0, len(CODE) - 1), seed=st.integers(0, 99))
def test_renamed_code_is_the_same_program_in_other_words(number: int, seed: int) -> None:
    code = CODE[number]
    renamed = rename_identifiers(code, np.random.default_rng(seed))
    shape, before = ast.parse(renamed), ast.parse(code)
    assert [type(node) for node in ast.walk(shape)] == [type(node) for node in ast.walk(before)]
    constants = [node.value for node in ast.walk(before) if isinstance(node, ast.Constant)]
    assert constants == [node.value for node in ast.walk(shape) if isinstance(node, ast.Constant)]
    defined = {node.name for node in ast.walk(before) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    kept = {node.name for node in ast.walk(shape) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    shared = {name for name in defined & kept if not name.startswith("__")}
    assert all(f"{{{name}" in code for name in shared), "but for names within f-strings"
    pairs = zip(ast.walk(before), ast.walk(shape), strict=True)
    names = {(a.id, b.id) for a, b in pairs if isinstance(a, ast.Name) and isinstance(b, ast.Name)}
    assert len({old for old, _ in names}) == len({new for _, new in names}) == len(names), "one name for one name"


def test_what_is_no_python_stays() -> None:
    for text in ("The tenant shall pay the rent.", "def f(:\n", "", "x = 1\n" + "(" * 3):
        assert rename_identifiers(text, np.random.default_rng(0)) == text


def test_real_code_still_parses() -> None:
    code = (Path(__file__).resolve().parent.parent / "moe_core" / "data" / "renaming.py").read_text(encoding="utf-8")
    renamed = rename_identifiers(code, np.random.default_rng(1))
    assert renamed != code
    ast.parse(renamed)
    assert "rename_identifiers" not in renamed
