"""Text under a grammar: what is complete parses, what data_gen writes is accepted, and nothing else changes."""

from __future__ import annotations

import ast
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_support import Run

from data_gen.corpus import write_document
from moe_core.data.tokenizer import Tokenizer
from moe_core.errors import DataError, UsageError
from moe_core.evaluation.grammar_trial import trial
from moe_core.inference.engine import Engine, Request
from moe_core.inference.grammar import Constraint, Grammar, grammar_of
from moe_core.inference.protocol import LanguageModel
from moe_core.inference.sampling import SamplingConfig
from moe_core.runs.checkpoint import load_run

LIKES = (b"\n", b")", b"]", b"}", b":", b"'", b'"')
"""Tokens that end something: drawn more often, so that random texts come to an end."""


@pytest.fixture(scope="module")
def engine(trained_root: Path) -> Engine:
    return Engine(load_run("tiny", trained_root))


class Letters:
    """A tokenizer of single bytes, behind a control token."""

    end_of_text, vocab_size = 0, 257

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id - 1]) if token_id else b""

    def encode(self, text: str) -> list[int]:
        return [byte + 1 for byte in text.encode()]

    def decode(self, ids: list[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")


class Model:
    """As much of a model as a constraint asks for; its logits are wider than the vocabulary."""

    name, end_ids, vocab_size = "letters", frozenset({0, 258}), 260

    def __init__(self, tokenizer: object) -> None:
        self.tokenizer = tokenizer


def constraint(tokenizer: Letters | Tokenizer, grammar: Grammar, prompt: str = "") -> Constraint:
    model: LanguageModel = Model(tokenizer)  # type: ignore[assignment]
    return Constraint(model, grammar, [0, *tokenizer.encode(prompt)])


def allowed(state: Constraint) -> set[int]:
    return set(torch.isfinite(state.masked(torch.zeros(260, dtype=torch.float64))).nonzero()[:, 0].tolist())


def test_a_token_is_left_out_where_no_text_goes_on_with_it_and_the_end_where_it_is_not_complete() -> None:
    letters = Letters()
    state = constraint(letters, Grammar("ab", 'start: "a" ("b" | "c")'), "of the prompt nothing is asked")
    assert allowed(state) == {1 + ord("a")}
    state.add(1 + ord("a"))
    assert not state.is_complete
    assert allowed(state) == {1 + ord("b"), 1 + ord("c")}
    state.add(1 + ord("c"))
    assert state.is_complete
    assert allowed(state) == {0, 258}  # every token that ends a text, and nothing else
    state.add(258)


def test_whoever_asks_for_what_cannot_be_is_told_why(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be used.*unknown name"):
        constraint(Letters(), Grammar("mine", "start: nothing"))
    with pytest.raises(UsageError, match="breaks the grammar python behind 'x = ', at '= 1'"):
        constraint(Letters(), grammar_of("python"), "x = = 1")
    with pytest.raises(DataError, match="cannot be read"):
        grammar_of(str(tmp_path / "none.lark"))
    (tmp_path / "yes.lark").write_text('start: "yes" | "no"')
    assert grammar_of(str(tmp_path / "yes.lark")).holds_prompt is False


def test_all_code_that_data_gen_writes_is_accepted() -> None:
    letters, grammar = Letters(), grammar_of("python")
    texts = [write_document("code", "unseen", index, seed=5, overlap=0.02).text for index in range(25)]
    for text in texts:
        assert constraint(letters, grammar, text).is_complete, text


def test_what_the_grammar_accepts_python_parses(engine: Engine) -> None:
    """Random tokens out of those that are allowed; two texts of 25,000 broke a rule of annotations at first."""
    tokenizer, rng, texts = engine.model.tokenizer, np.random.default_rng(0), list[str]()
    weight_V = np.array([80.0 if tokenizer.token_bytes(i) in LIKES else 1.0 for i in range(tokenizer.vocab_size)])
    weight_V[0] = 300
    for _ in range(150):
        state, ids = Constraint(engine.model, grammar_of("python"), []), list[int]()
        while len(ids) < 60:
            p_V = weight_V * torch.isfinite(state.masked(torch.zeros(len(weight_V), dtype=torch.float64))).numpy()
            token_id = int(rng.choice(len(p_V), p=p_V / p_V.sum()))
            if token_id == 0:
                assert state.is_complete
                texts.append(tokenizer.decode(ids))
                break
            ids.append(token_id)
            state.add(token_id)
    assert len(texts) > 50
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as a number that is called
        for text in texts:
            ast.parse(text)


def test_a_request_writes_under_its_grammar_beside_free_ones(engine: Engine) -> None:
    sampling = SamplingConfig(max_new_tokens=40, seed=3)
    yes = Request("Is it so? ", sampling, grammar=Grammar("answer", 'start: "yes" | "no, never"'))
    found = engine.start(yes).result()
    assert found.text in ("yes", "no, never")
    assert found.reason == "end of text"
    code = Request("def ", sampling, grammar=grammar_of("python"))
    held, free = trial(engine, code, 2)
    assert (held.way, free.way, held.texts) == ("python", "free", 2)
    assert held.parsed == held.complete
    assert held.tokens_per_second > 0
    free_text = engine.start(Request("def ", sampling)).result().text
    every = Grammar("everything", "start: /(.|\\n)*/")
    assert engine.start(Request("def ", sampling, grammar=every)).result().text == free_text


def test_the_command_writes_and_compares(cli: Run, trained_root: Path, tmp_path: Path) -> None:
    (tmp_path / "yes.lark").write_text('start: "yes"')
    words = ["generate", "--run", "tiny", "--prompt", "Well: ", "--grammar", str(tmp_path / "yes.lark")]
    assert cli(trained_root, *words)[:2] == (0, "yes\n")
    assert "1 of 1    not checked" in cli(trained_root, *words, "--max-new-tokens", "4", "--compare-free", "1")[1]
    code, _, error = cli(trained_root, "generate", "--run", "tiny", "--prompt", "x", "--compare-free", "2")
    assert code == 2
    assert "expected both" in error
