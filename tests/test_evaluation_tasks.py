"""What the evaluation suite measures: every measure and every chance level by hand."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from generation_support import generate
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from moe_core.data.document import Document
from moe_core.data.python_syntax import correct_so_far, parses, whole_lines
from moe_core.data.tokens import TokenDataset
from moe_core.errors import DataError, UsageError
from moe_core.evaluation.loss import evaluate_loss, unigram_nats
from moe_core.evaluation.tasks import (
    Context,
    Continuation,
    encode_pair,
    likelihoods,
    of_paired_shares,
    of_pairs,
    of_questions,
    of_sources,
)
from moe_core.evaluation.tasks.choices import arithmetic_questions, choose, letter_questions
from moe_core.evaluation.tasks.predicting import perplexity, token_accuracy
from moe_core.evaluation.tasks.questions import read_questions
from moe_core.evaluation.tasks.scored_tokens import score_tokens
from moe_core.evaluation.tasks.scores import verdict, wilson
from moe_core.evaluation.tasks.written import distinct, go_on, repetition
from moe_core.inference.sampling import SamplingConfig
from moe_core.runs.checkpoint import LoadedRun, load_run


@pytest.fixture(scope="module")
def loaded(trained_root: Path) -> LoadedRun:
    return load_run("tiny", trained_root)


@pytest.fixture(scope="module")
def context(loaded: LoadedRun) -> Context:
    return Context(loaded, seed=3)


# ---- scores ----


def test_shares_of_questions_have_wilson_intervals_and_exact_p() -> None:
    score = of_questions("x", [True] * 8 + [False] * 2, 0.5, "a coin")
    assert (score.value, score.level, score.n, score.unit) == (0.8, 0.5, 10, "question")
    # Wilson by hand: (0.8 + 1.92073/10 +- 1.95996 sqrt(0.016 + 0.0096036)) / 1.384146; 1.96^2 = 3.84146
    assert (score.low, score.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert score.p_value == pytest.approx(2 * (45 + 10 + 1) / 1024)  # 8, 9 or 10 of 10, and as far on the other side
    assert score.effect == pytest.approx(0.6)  # 0.3 of the 0.5 that were left
    assert score.p_value == pytest.approx(stats.binomtest(8, 10, 0.5).pvalue)


def test_chance_may_differ_from_question_to_question() -> None:
    score = of_questions("x", [True, True], [0.5, 0.25], "1 of the options")
    assert score.level == pytest.approx(0.375)
    # Numbers of hits 0, 1, 2 have the chances 3/8, 4/8, 1/8: only 2 is as unlikely as 2.
    assert score.p_value == pytest.approx(1 / 8)


def test_no_question_leaves_nothing_to_say() -> None:
    score = of_questions("x", [], 0.25, "1 of 4")
    assert math.isnan(score.value)
    assert verdict(score, math.nan) == "cannot be tested: too few questions"
    for n in range(1, 60):  # never past the share itself, not even by a rounding
        assert wilson(0, n)[0] == 0
        assert wilson(n, n)[1] == 1


def test_means_over_sources_are_ratios_with_the_error_of_the_sources() -> None:
    # Two sources of one domain: 4 nats over 2 tokens, 6 over 2; chance 5 a token.
    score = of_sources("x", [4, 6], [10, 10], [2, 2], [0, 0], "guessing")
    assert (score.value, score.level, score.n) == (2.5, 5.0, 2)
    # Residuals -1 and 1; variance 2/1 * 2 / 4^2 = 1/4, error 1/2, one degree of freedom: t = 12.7062.
    assert score.high - score.value == pytest.approx(12.7062 / 2, abs=1e-3)
    # Differences -6 and -4, mean -2.5 a token, error 1/2: t = -5 with one degree of freedom.
    assert score.p_value == pytest.approx(2 * stats.t.cdf(-5, 1))
    assert score.effect == pytest.approx(0.5)
    with_exp = of_sources("x", [4, 6], [10, 10], [2, 2], [0, 0], "guessing", exponential=True)
    assert (with_exp.value, with_exp.level) == (pytest.approx(math.exp(2.5)), pytest.approx(math.exp(5)))
    assert (with_exp.p_value, with_exp.effect) == (score.p_value, score.effect)


def test_what_domains_differ_by_is_no_uncertainty() -> None:
    """Sources alike within their domain leave none, however far apart the domains are; one source alone has none."""
    score = of_sources("x", [1, 1, 9, 9], [10] * 4, [1] * 4, [0, 0, 1, 1], "guessing")
    assert (score.low, score.value, score.high) == (5, 5, 5)
    alone = of_sources("x", [1], [2], [1], [0], "guessing")
    assert math.isnan(alone.low)
    assert verdict(alone, alone.p_value) == "cannot be tested: too few sources"


def test_pairs_are_compared_document_by_document() -> None:
    score = of_pairs("x", [0.5, 0.7, math.nan], [0.4, 0.4, 0.9], "the documents")
    assert (score.value, score.level, score.n) == (pytest.approx(0.6), pytest.approx(0.4), 2)
    assert score.p_value == pytest.approx(stats.ttest_rel([0.5, 0.7], [0.4, 0.4]).pvalue)
    assert of_pairs("x", [1.0, 1.0], [1.0, 1.0], "").p_value == 1
    assert math.isnan(of_pairs("x", [math.nan], [0.5], "").p_value)
    shares = of_paired_shares("x", [True, False, False, False], [True, True, True, True], "the documents")
    assert (shares.value, shares.level) == (0.25, 1.0)
    assert shares.p_value == pytest.approx(2 * 0.5**3)  # McNemar: three pairs apart, all the same way


def test_verdicts_say_how_much_and_against_what() -> None:
    def words(hits: int, p: float = 0.01) -> str:
        return verdict(of_questions("x", [True] * hits + [False] * (100 - hits), 0.25, ""), p)

    assert words(40) == "clearly better than chance"
    assert words(30) == "slightly better than chance"
    assert words(10) == "clearly worse than chance"
    assert words(40, p=0.06) == "not distinguishable from chance"
    lower = of_pairs("x", [0.1, 0.2], [0.5, 0.7], "")
    assert verdict(lower, 0.01) == "clearly lower than held-out text"
    assert verdict(lower, 0.2) == "not distinguishable from held-out text"


# ---- text that was written ----


def test_distinct_and_repetition_by_hand() -> None:
    ids = [1, 2, 1, 2, 3]
    assert distinct(ids, 1) == pytest.approx(3 / 5)
    assert distinct(ids, 2) == pytest.approx(3 / 4)  # 12 21 12 23
    assert distinct(ids, 4) == 1
    assert math.isnan(distinct(ids, 6))
    assert repetition(ids) == pytest.approx(2 / 5)  # the second 1 and the second 2
    assert repetition(ids, span=1) == 0
    assert repetition([7] * 10) == pytest.approx(0.9)
    assert math.isnan(repetition([]))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(1, 4))
def test_distinct_and_repetition_do_not_depend_on_what_tokens_are_called(ids: list[int], n: int) -> None:
    renamed = [(5 * token + 3) % 7 for token in ids]
    assert repetition(renamed) == repetition(ids)
    assert 0 <= repetition(ids) <= 1 - 1 / len(ids)
    if len(ids) >= n:
        assert distinct(renamed, n) == distinct(ids, n)
        assert 1 / (len(ids) - n + 1) <= distinct(ids, n) <= 1


@pytest.mark.parametrize(
    ("code", "so_far", "whole"),
    [
        ("def f(x):\n    return x\n", True, True),
        ("def f(x):\n", True, False),
        ('x = """abc\n', True, False),
        ("items = [1,\n", True, False),
        ("try:\n    f()\n", True, False),
        ("def f(x:\n    return x\n", False, False),
        ("return = 3\n", False, False),
        ("def f():\nx = 1\n", False, False),
        ("x = '\\d'\n", True, True),  # an invalid escape is a warning, not an error
        ("x = 1\0\n", False, False),
        ("(" * 300 + "\n", False, False),  # more than the parser takes
        ("", False, False),
        ("   \n", False, False),
        ("raise SystemExit('executed')\n", True, True),
    ],
)
def test_code_is_told_apart_from_what_is_not_and_never_executed(code: str, so_far: bool, whole: bool) -> None:
    assert (correct_so_far(code), parses(code)) == (so_far, whole)


def test_an_unfinished_line_is_dropped_unless_the_text_ended() -> None:
    assert whole_lines("a = 1\nb =", ended=False) == "a = 1\n"
    assert whole_lines("a = 1\nb = 2", ended=True) == "a = 1\nb = 2"
    assert whole_lines("a =", ended=False) == ""


def test_both_ways_to_go_on_are_equally_long(context: Context) -> None:
    documents = context.documents(2, "code", 48)
    first, second = go_on(context, documents, 32, 6)
    for one, document in zip((first, second), documents, strict=True):
        assert document.text.startswith(one.prompt + one.own_text[:1])
        assert len(one.token_ids) == len(one.own_ids) == 6
        assert context.model.tokenizer.decode(one.own_ids) == one.own_text
    again = generate(context.model, first.prompt, SamplingConfig(max_new_tokens=6, seed=3))
    assert [token.token_id for token in again] == first.token_ids


def test_documents_are_drawn_by_seed_and_long_enough(loaded: LoadedRun, context: Context) -> None:
    all_of_them = context.documents(1000, "code", 48)
    assert {document.domain for document in all_of_them} == {"code"}
    assert context.documents(3, "code", 48) == all_of_them[:3]
    other = Context(loaded, seed=4).documents(1000, "code", 48)
    assert other != all_of_them
    assert sorted(one.text for one in other) == sorted(one.text for one in all_of_them)
    assert not context.documents(3, "code", 10**6)


# ---- choosing among answers ----


def test_likelihoods_are_those_of_reading_token_by_token(context: Context) -> None:
    """Alone or in a batch, and beyond the window, where a token sees the window before it at most."""
    model, window = context.model, context.model.context_window
    ids = [model.tokenizer.end_of_text, *model.tokenizer.encode("The tenant shall pay. " * 12)]
    assert len(ids) > 2 * window
    pairs = [Continuation(ids[:5], ids[5:7]), Continuation(ids[:-3], ids[-3:]), Continuation(ids[:1], ids[1:])]
    together = likelihoods(model, pairs)
    assert [likelihoods(model, [pair])[0].log_probability for pair in pairs] == pytest.approx(
        [found.log_probability for found in together], rel=1e-5
    )

    def log_p(read: list[int], following: list[int]) -> float:
        logits = model.logits(torch.tensor([read])).double().log_softmax(-1)[0, -len(following) :]
        return float(logits.gather(1, torch.tensor(following)[:, None]).sum())

    assert together[0].log_probability == pytest.approx(log_p(ids[:6], ids[5:7]), rel=1e-5)
    assert together[1].log_probability == pytest.approx(log_p(ids[-1 - window : -1], ids[-3:]), rel=1e-5)
    # A whole text, in the windows of evaluate_loss.
    dataset = TokenDataset.build([Document("The tenant shall pay. " * 12, "d", "s", "")], model.tokenizer, ["d"])
    report = evaluate_loss(context.loaded.model, dataset, seq_len=window)
    assert -together[2].log_probability == pytest.approx(report.nats_per_token * report.tokens, rel=1e-5)


def test_greedy_is_what_greedy_decoding_writes(context: Context) -> None:
    prompt = "def "
    written = [
        token.token_id for token in generate(context.model, prompt, SamplingConfig(max_new_tokens=3, temperature=0.0))
    ]
    known = encode_pair(context.model, prompt, "").context
    other = [*written[:-1], (written[-1] + 1) % context.model.vocab_size]
    found = likelihoods(context.model, [Continuation(known, written), Continuation(known, other)])
    assert [one.greedy for one in found] == [True, False]
    with pytest.raises(ValueError, match="at least one token before"):
        likelihoods(context.model, [Continuation([], [1])])


@pytest.mark.parametrize("seed", [0, 1])
def test_letters_are_counted_right_and_nothing_but_the_word_tells_how_many(seed: int) -> None:
    questions = letter_questions(seed)
    assert len(questions) >= 160
    for at in range(0, len(questions), 4):
        letters = set()
        for times, one in enumerate(questions[at : at + 4]):
            letter, word = one.prompt.splitlines()[-1].split('"')[1::2]
            letters.add(letter)
            assert word.count(letter) == times == int(one.options[one.right])
        assert len(letters) == 1
    assert len({one.prompt for one in questions}) == len(questions)


@pytest.mark.parametrize("sign", ["+", "-"])
def test_sums_are_right_and_liking_a_number_does_not_help(sign: str) -> None:
    questions = arithmetic_questions(sign, seed=5)
    assert questions == arithmetic_questions(sign, seed=5)
    assert questions != arithmetic_questions(sign, seed=6)
    for one in questions:
        a, _, b, _ = one.prompt.splitlines()[-1].split()
        assert int(one.options[one.right]) == (int(a) + int(b) if sign == "+" else int(a) - int(b))
        assert len(set(one.options)) == 4
    # Whoever has a fixed liking for numbers, whatever it is, is right exactly once in four.
    for liking in range(5):
        order = np.random.default_rng(liking).permutation(19)
        favourite = [max(range(4), key=lambda at: order[int(one.options[at])]) for one in questions]
        assert sum(at == one.right for at, one in zip(favourite, questions, strict=True)) * 4 == len(questions)


def test_the_likeliest_option_is_chosen(context: Context) -> None:
    questions = arithmetic_questions("+", seed=0)[:8]
    for one, correct in zip(questions, choose(context, questions), strict=True):
        pairs = [encode_pair(context.model, one.prompt, option) for option in one.options]
        weights = [likelihoods(context.model, [pair])[0].log_probability for pair in pairs]
        assert correct == (int(np.argmax(weights)) == one.right)


# ---- held-out text ----


def test_perplexity_is_that_of_evaluate_and_its_chance_that_of_token_frequency(context: Context) -> None:
    loaded, scores = context.loaded, {score.name: score for score in perplexity(context).scores}
    dataset = TokenDataset.build(loaded.run.held_out("unseen"), loaded.tokenizer, loaded.run.domains())
    report = evaluate_loss(loaded.model, dataset, seq_len=loaded.config.training.seq_len)
    whole = scores["unseen"]
    assert whole.value == pytest.approx(report.perplexity, rel=1e-5)
    assert whole.level == pytest.approx(math.exp(unigram_nats(loaded.run.token_counts(), dataset)))
    assert whole.low < whole.value < whole.high
    for domain, nats in report.by_domain.items():
        assert scores[f"unseen, {domain}"].value == pytest.approx(math.exp(nats), rel=1e-5)
    assert {name.split(",")[0] for name in scores} == {"validation", "unseen"}


def test_token_accuracy_and_its_chance_level(context: Context) -> None:
    scores = {score.name: score for score in token_accuracy(context).scores}
    tokens, counts = context.held_out["unseen"], context.loaded.run.token_counts()
    commonest = [token for token, _ in Counter(dict(enumerate(counts.tolist()))).most_common(5)]
    assert scores["unseen, top-1"].value == pytest.approx((tokens.ranks == 1).mean())
    assert scores["unseen, top-5"].value == pytest.approx((tokens.ranks <= 5).mean())
    assert scores["unseen, top-1"].level == pytest.approx((tokens.token_ids == commonest[0]).mean())
    assert scores["unseen, top-5"].level == pytest.approx(np.isin(tokens.token_ids, commonest).mean())


def test_ranks_count_the_likelier_tokens(context: Context) -> None:
    model, text = context.model, "The tenant shall pay."
    dataset = TokenDataset.build([Document(text, "d", "s", "")], model.tokenizer, ["d"])
    tokens = score_tokens(model, dataset, seq_len=32)
    logits = model.logits(torch.from_numpy(dataset.token_ids[None, :-1].astype(np.int64)))[0]
    for at, target in enumerate(dataset.token_ids[1:].tolist()):
        assert tokens.ranks[at] == 1 + int((logits[at] > logits[at, target]).sum())
        assert tokens.nats[at] == pytest.approx(-float(logits[at].double().log_softmax(-1)[target]), rel=1e-4)


# ---- files of questions ----


@pytest.mark.parametrize(
    ("task", "line", "words"),
    [
        ("arc", "{", "line 2 is not valid JSON"),
        ("arc", "[1]", "line 2 is no JSON object"),
        ("arc", '{"question": "q"}', "line 2 has no choices"),
        (
            "arc",
            '{"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "A"]}, "answerKey": "A"}',
            "1 different",
        ),
        (
            "arc",
            '{"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "C"}',
            "answerKey 'C'",
        ),
        ("mmlu", '{"question": "q", "choices": ["a", "b"], "answer": 0}', "line 2 has 2 choices"),
        ("mmlu", '{"question": "q", "choices": ["a", "b", "c", "d"], "answer": 4}', "line 2 has the answer '4'"),
        ("mmlu", '{"question": "q", "choices": ["a", "b", "c", "d"], "answer": true}', "line 2 has the answer"),
        ("mmlu", '{"question": " ", "choices": ["a", "b", "c", "d"], "answer": 0}', "no text in the field question"),
        ("gsm8k", '{"question": "q", "answer": "five"}', "line 2 has an answer without ####"),
    ],
)
def test_a_malformed_question_is_named_by_its_line(task: str, line: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text("\n" + line + "\n")
    with pytest.raises(DataError) as error:
        read_questions(task, path)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_questions_are_read_and_drawn_by_seed(tmp_path: Path) -> None:
    path = tmp_path / "mmlu.jsonl"
    row = '{{"question": "q{}", "choices": ["a", "b", "c", "d"], "answer": "C", "subject": "x"}}'
    path.write_text("\n".join(row.format(number) for number in range(20)))
    questions = read_questions("mmlu", path)
    assert len(questions.rows) == 20
    assert questions.rows[0] == {"question": "q0", "choices": ["a", "b", "c", "d"], "answer": 2, "subject": "x"}
    assert questions.drawn(20, seed=1) == list(questions.rows)
    drawn = questions.drawn(5, seed=1)
    assert len(drawn) == 5
    assert drawn == questions.drawn(5, seed=1) != questions.drawn(5, seed=2)
    path.write_text("\n\n")
    with pytest.raises(DataError, match="holds no question"):
        read_questions("mmlu", path)
    with pytest.raises(UsageError, match="no file at --arc"):
        read_questions("arc", tmp_path / "missing.jsonl")
