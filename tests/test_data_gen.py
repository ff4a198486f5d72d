"""Documents are reproducible, consistent in their facts, and keep held-out templates out of training."""

from __future__ import annotations

import ast
import copy
import hashlib
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_gen import DOMAINS, PROSE_DOMAINS, Row, finance, general, generate_corpus, legal, write_document
from data_gen.code import skeletons
from data_gen.grammar import Grammar, capitalise, polish
from data_gen.inflection import noun_forms, verb_forms
from data_gen.lexicon import zipf_table
from data_gen.names import FIRMS, GIVEN_FEMALE, GIVEN_MALE, SURNAMES, TOWNS
from data_gen.prose import RULES, prose_grammar
from data_gen.scene import SLOTS, Scene

ROOT = Path(__file__).resolve().parents[1]
seeds = st.integers(0, 2**32)


def digest(documents: list[Row]) -> str:
    return hashlib.sha256("\0".join(f"{d.source}\1{d.text}" for d in documents).encode()).hexdigest()


# --- the corpus ------------------------------------------------------------------------------------------------------


def test_a_corpus_has_the_documents_asked_for() -> None:
    corpus = generate_corpus(90)
    assert len({document.source for document in corpus}) == len(corpus) == 4 * (90 + 8 + 8)
    assert {document.domain for document in corpus} == set(DOMAINS)
    assert sum(d.split == "unseen" and d.domain == "code" for d in corpus) == 8
    assert sum(d.split == "unseen" for d in generate_corpus(250, domains=("legal",), splits=("unseen",))) == 10
    assert sum(d.split == "validation" for d in generate_corpus(5, domains=("legal",))) == 8
    lengths = [len(document.text) for document in corpus]
    assert 1200 < sum(lengths) / len(lengths) < 2500
    assert min(lengths) > 500
    assert max(lengths) < 5000


def test_a_larger_corpus_begins_with_the_smaller_one() -> None:
    small = {d.source: d.text for d in generate_corpus(3, seed=4)}
    large = {d.source: d.text for d in generate_corpus(12, seed=4)}
    assert all(large[source] == text for source, text in small.items())


def test_bytes_do_not_depend_on_the_order_of_writing_or_the_hash_seed() -> None:
    """So that any number of processes could share the work: a document depends on its own place alone."""
    corpus = generate_corpus(4)
    expected = digest(corpus)
    for document in reversed(corpus):
        domain, split, index = document.source.split("/")
        assert write_document(domain, split, int(index), seed=0, overlap=0.25) == document
    program = (
        "import hashlib; from data_gen import generate_corpus; "
        "print(hashlib.sha256('\\0'.join(f'{d.source}\\1{d.text}' for d in generate_corpus(4)).encode()).hexdigest())"
    )
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        run = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        assert run.stdout.strip() == expected


def test_seed_and_overlap_change_the_text() -> None:
    texts = {
        write_document("legal", "train", 0, seed=seed, overlap=overlap).text
        for seed in (0, 1)
        for overlap in (0.0, 0.5)
    }
    assert len(texts) == 4


def test_progress_reports_every_document() -> None:
    calls: list[tuple[str, int, int]] = []
    generate_corpus(2, domains=("code",), splits=("train",), progress=lambda *call: calls.append(call))
    assert calls[-1][1:] == (2, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"documents": 0}, "documents=0"),
        ({"overlap": 1.5}, "overlap=1.5"),
        ({"domains": ("poetry",)}, "poetry"),
        ({"splits": ("test",)}, "test"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate_corpus(**{"documents": 1, **arguments})  # type: ignore[arg-type]


# --- the hold-out ----------------------------------------------------------------------------------------------------


def tagged(rules: str) -> str:
    """The grammar with H before each held-out template and T before each one that it replaces."""
    lines: list[str] = []
    for rule in re.split(r"\n(?==)", re.sub(r"\n +", " ", rules)):
        head, *templates = rule.splitlines()
        if head.startswith("=") and any(line.startswith("!") for line in templates):
            templates = [f"! ⟪H⟫ {line[1:]}" if line.startswith("!") else f"⟪T⟫ {line}" for line in templates if line]
        lines += [head, *templates]
    return "\n".join(lines)


def test_each_side_of_the_hold_out_writes_only_its_own_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every template is tagged and whole documents of all domains are written, mixed sentences included."""
    for domain, rules in RULES.items():
        monkeypatch.setitem(RULES, domain, tagged(rules))
    prose_grammar.cache_clear()
    try:
        for document in generate_corpus(12, overlap=0.5):
            own, other = ("⟪H⟫", "⟪T⟫") if document.split == "unseen" else ("⟪T⟫", "⟪H⟫")
            assert own in document.text
            assert other not in document.text
    finally:
        prose_grammar.cache_clear()


@pytest.mark.parametrize("domain", [finance, legal, general])
def test_document_plans_are_held_out_too(domain: types.ModuleType) -> None:
    assert not set(domain.PLANS) & set(domain.HELD_OUT_PLANS)


def test_the_two_sides_of_the_code_skeletons_are_disjoint() -> None:
    train = {ast.dump(node) for node in skeletons(held_out=False)}
    unseen = {ast.dump(node) for node in skeletons(held_out=True)}
    assert len(train) >= 20
    assert len(unseen) >= 6
    assert not train & unseen


def test_marked_templates_replace_the_others_when_held_out() -> None:
    text = "== a\nseen.\n! kept back.\n= b\nshared\n"
    scene = Scene("general", 1, 0.0)
    assert Grammar(text, {}, held_out=False, prefix="x").rules["a"](scene) == "seen."
    assert Grammar(text, {}, held_out=True, prefix="x").rules["a"](scene) == "kept back."
    assert Grammar(text, {}, held_out=True, prefix="x").rules["b"](scene) == "shared"


# --- the grammar -----------------------------------------------------------------------------------------------------


def test_agreement_draws_one_number_for_a_production() -> None:
    grammar = Grammar(
        "%n cat: cat, dog\n= s\nThe <{cat} is|{cat.s} are> [here|there].\n", {}, held_out=False, prefix="x"
    )
    written = {grammar.rules["s"](Scene("general", seed, 0.0)) for seed in range(60)}
    assert written == {f"The {s} {p}." for s in ("cat is", "dog is", "cats are", "dogs are") for p in ("here", "there")}


def test_a_sentence_rule_uses_every_production_before_it_repeats_one() -> None:
    grammar = Grammar("== s\none\ntwo\nthree\n", {}, held_out=False, prefix="x")
    scene = Scene("general", 3, 0.0)
    assert {grammar.rules["s"](scene) for _ in range(3)} == {"one", "two", "three"}


@pytest.mark.parametrize("text", ["= a\n{nothing}\n", "= a\n[open\n", "% a: b\n= a\nc\n", "= a\n! held only\n"])
def test_a_faulty_grammar_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Grammar(text, SLOTS, held_out=False, prefix="x")


def test_english_inflection() -> None:
    assert verb_forms("carry") == ("carry", "carries", "carried", "carried", "carrying")
    assert verb_forms("stop") == ("stop", "stops", "stopped", "stopped", "stopping")
    assert verb_forms("rise/rose/risen") == ("rise", "rises", "rose", "risen", "rising")
    assert verb_forms("write off/wrote/written") == (
        "write off",
        "writes off",
        "wrote off",
        "written off",
        "writing off",
    )
    assert noun_forms("loan book") == ("loan book", "loan books")
    assert noun_forms("wolf/wolves") == ("wolf", "wolves")


def test_articles_follow_the_sound() -> None:
    assert polish("a old a one-off a unit a hour a 8.4 a European A apple") == (
        "an old a one-off a unit an hour an 8.4 a European An apple"
    )
    assert capitalise('"so it is," he said.') == '"So it is," he said.'


@given(st.integers(1, 900))
def test_the_zipf_table_holds_every_word_and_the_first_most_often(size: int) -> None:
    table = zipf_table(size)
    counts = [table.count(index) for index in (0, size - 1)]
    assert set(table) == set(range(size))
    assert counts[0] >= counts[1] >= 1


@pytest.mark.parametrize("domain", PROSE_DOMAINS)
def test_no_slot_or_bracket_is_left_in_the_text(domain: str) -> None:
    for document in generate_corpus(30, domains=(domain,)):
        assert not re.search(r"[{}\[\]<>|]|  | \.|\bNone\b", document.text), document.text


# --- facts ---------------------------------------------------------------------------------------------------------


@given(seeds)
def test_a_scene_keeps_its_books(seed: int) -> None:
    scene = Scene("finance", seed, 0.5)
    total = float(re.sub(r"[^\d.]", "", SLOTS["total_due"](scene)))
    interest = float(re.sub(r"[^\d.]", "", SLOTS["total_interest"](scene)))
    assert total - interest == pytest.approx(scene.principal)
    assert (scene.revenue > scene.revenue_before) == (scene.growth > 0)
    assert 0 < scene.costs < scene.revenue
    days = [scene.next_date() for _ in range(5)]
    assert days == sorted(set(days))
    assert SLOTS["he"](scene) == ("she" if scene.hero.given in GIVEN_FEMALE else "he")


def numbers(line: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", line)]


def test_tables_in_finance_documents_add_up() -> None:
    invoices = statements = portfolios = loans = 0
    for document in generate_corpus(120, overlap=0.0, domains=("finance",), splits=("train",)):
        lines = document.text.split("\n")
        items = [numbers(line.rpartition(": ")[2]) for line in lines if " x " in line]
        if items:
            invoices += 1
            assert all(quantity * price == pytest.approx(amount) for quantity, price, amount in items)
            last = {
                line.split(":")[0].split(" at ")[0]: numbers(line.partition(": ")[2]) for line in lines if ": " in line
            }
            assert last["Subtotal"][0] == pytest.approx(sum(amount for _, _, amount in items))
            assert last["Total due"][0] == pytest.approx(last["Subtotal"][0] + last["Tax"][0])
        if any(line.startswith("Total: ") for line in lines):
            statements += 1
            end = next(i for i, line in enumerate(lines) if line.startswith("Total: "))
            rows = [line for line in lines[:end] if re.fullmatch(r"[^.:]+: [\d,]+", line)]
            total, costs, profit = (numbers(line)[0] for line in lines[end : end + 3])
            assert sum(numbers(row)[0] for row in rows) == total
            assert total - costs == profit
        if any(line.startswith("Cash: ") for line in lines):
            portfolios += 1
            weights = [
                numbers(line.partition(": ")[2])[0]
                for line in lines
                if re.fullmatch(r"[\w ]+: [\d.]+( percent|%)", line)
            ]
            assert sum(weights) == pytest.approx(100)
        for line in lines:
            if re.fullmatch(r"\d{4}(, [\d,.]+){4}", line):
                loans += 1
                _, opening, _, repayment, closing = (float(cell.replace(",", "")) for cell in line.split(", "))
                assert opening - repayment == closing
    assert min(invoices, statements, portfolios, loans) >= 5


def test_name_pools_do_not_share_a_name() -> None:
    for pools in (SURNAMES, TOWNS, FIRMS):
        everything = [name for pool in pools.values() for name in pool]
        assert len(set(everything)) == len(everything)
    assert not set(GIVEN_FEMALE) & set(GIVEN_MALE)


# --- code that runs --------------------------------------------------------------------------------------------------

ARGUMENTS: dict[str, list[object]] = {
    "int": [3, 0, 7],
    "float": [1.5, 0.0, 2.0],
    "str": ["alpha beta", "3", ""],
    "bool": [True, False],
    "list[str]": [["b", "a", "b"], []],
    "list[int]": [[1, 4, 9], []],
    "list[float]": [[1.0, 2.5], []],
    "list[list[int]]": [[[1, 2], [3]]],
    "dict[str, int]": [{"a": 1, "b": 2}],
    "dict[str, float]": [{"a": 1.0}],
    "dict[str, str]": [{"a": "x"}],
}
DELIBERATE = (ValueError, KeyError, RuntimeError, IndexError)  # what the generated code itself raises


@settings(max_examples=60, deadline=None)
@given(index=st.integers(0, 100_000), split=st.sampled_from(["train", "unseen"]))
def test_generated_functions_run_without_name_or_type_errors(index: int, split: str) -> None:
    """Scope and type tracking are right when every function accepts arguments of the types it declares."""
    source = write_document("code", split, index, seed=9, overlap=0.25).text
    module = types.ModuleType("generated")
    sys.modules["generated"] = module  # dataclasses look their module up
    try:
        exec(compile(source, "generated", "exec"), module.__dict__)
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef):
                kinds = [ast.unparse(a.annotation) for a in node.args.args if a.annotation]
                for turn in range(3):
                    values = [copy.deepcopy(ARGUMENTS[kind][turn % len(ARGUMENTS[kind])]) for kind in kinds]
                    try:
                        result = module.__dict__[node.name](*values)
                        if hasattr(result, "__next__"):
                            list(result)
                    except DELIBERATE:
                        pass
    finally:
        del sys.modules["generated"]
