"""Letter counting and single-digit arithmetic: which of four answers does the model find likeliest?

Questions come in fours that share their four answers, each of which is right once. So a model that merely likes some
numbers better than others is right once in every four: chance is 1/4 exactly for whoever does not read the question.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from moe_core.evaluation.tasks.common_words import WORDS
from moe_core.evaluation.tasks.context import Context, Outcome
from moe_core.evaluation.tasks.likelihood import encode_pair, likelihoods
from moe_core.evaluation.tasks.registry import benchmark
from moe_core.evaluation.tasks.scores import of_questions
from moe_core.inference.engine import Engine, Request
from moe_core.inference.sampling import SamplingConfig

MOST_LETTERS = 3
"""Words are asked for that have a letter 0, 1, 2 or 3 times."""
ARITHMETIC_EXAMPLES = ("1 + 1 = 2", "5 - 2 = 3")
"""Shown before every question, and never asked: what an answer looks like has to be known from somewhere."""
ANSWER_TOKENS = 4
"""An answer is two digits at most; so many tokens are written to find it."""
_EXAMPLE = 'Question: How many "t" are in "table"? Answer: 1\n'


@dataclass(frozen=True)
class Question:
    """A text to go on from, the answers to weigh, and which of them is right."""

    prompt: str
    options: tuple[str, ...]
    right: int


@benchmark("letter_counting", "Can it count the letters of a word?")
def letter_counting(context: Context) -> Outcome:
    """The number of a letter in a word, 0 to 3, by likelihood."""
    questions = letter_questions(context.seed)
    score = of_questions("right answer likeliest", choose(context, questions), 0.25, "1 of 4 answers")
    note = (
        f"Asked as {questions[0].prompt.splitlines()[-1]!r} after one example. The four words of a group are asked for "
        "the same letter and are about equally long, so neither tells the answer."
    )
    return Outcome((score,), note=note)


@benchmark("arithmetic", "Can it add and subtract single digits?")
def arithmetic(context: Context) -> Outcome:
    """Sums and differences of 0 to 9: the likeliest of four answers, and what greedy decoding writes."""
    by_sign = {sign: arithmetic_questions(sign, context.seed) for sign in "+-"}
    questions = [one for some in by_sign.values() for one in some]
    correct = choose(context, questions)
    added = len(by_sign["+"])
    written = [_greedy_answer(context, one, done, len(questions)) for done, one in enumerate(questions)]
    answers = [one.options[one.right].strip() for one in questions]
    commonest, times = Counter(answers).most_common(1)[0]
    exact = [answer == right for answer, right in zip(written, answers, strict=True)]
    return Outcome(
        (
            of_questions("addition, right answer likeliest", correct[:added], 0.25, "1 of 4 answers"),
            of_questions("subtraction, right answer likeliest", correct[added:], 0.25, "1 of 4 answers"),
            of_questions("exact match, greedy", exact, times / len(answers), f'always answering "{commonest}"'),
        ),
        note=f"Each question follows the examples {', '.join(ARITHMETIC_EXAMPLES)}, which are not asked.",
    )


def choose(context: Context, questions: Sequence[Question]) -> list[bool]:
    """Whether the right one is the likeliest option of each question; of equal ones the first counts."""
    pairs = [encode_pair(context.model, one.prompt, option) for one in questions for option in one.options]
    found = iter(likelihoods(context.model, pairs, context.progress))
    correct = []
    for one in questions:
        weights = [next(found).log_probability for _ in one.options]
        correct.append(weights.index(max(weights)) == one.right)
    return correct


def letter_questions(seed: int) -> list[Question]:
    """Fours of words that have one letter 0, 1, 2 and 3 times and are about equally long."""
    order = random.Random(seed)
    by_letter: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for word in order.sample(WORDS, len(WORDS)):
        for letter in sorted({letter for some in WORDS for letter in some}):
            by_letter[letter][word.count(letter)].append(word)
    questions = []
    for letter, words in sorted(by_letter.items()):
        for longest in words[MOST_LETTERS]:
            if not all(words[times] for times in range(MOST_LETTERS)):
                break
            for times in range(MOST_LETTERS + 1):
                word = longest
                if times < MOST_LETTERS:
                    word = min(words[times], key=lambda other: abs(len(other) - len(longest)))
                    words[times].remove(word)
                prompt = f'{_EXAMPLE}Question: How many "{letter}" are in "{word}"? Answer:'
                questions.append(Question(prompt, tuple(f" {n}" for n in range(MOST_LETTERS + 1)), times))
    return questions


def arithmetic_questions(sign: str, seed: int) -> list[Question]:
    """Fours of sums ("+") or differences that are not negative ("-"), no two of four with the same answer."""
    order = random.Random(seed)
    problems = [
        (f"{a} {sign} {b} =", a + b if sign == "+" else a - b)
        for a in range(10)
        for b in range(10)
        if sign == "+" or a >= b
    ]
    problems = [one for one in problems if f"{one[0]} {one[1]}" not in ARITHMETIC_EXAMPLES]
    groups = len(problems) // 4
    # Sorted by answer and dealt round: no answer is right more often than there are fours, so no four has it twice.
    dealt = sorted(order.sample(problems, 4 * groups), key=lambda one: one[1])
    shown = "".join(f"{example}\n" for example in ARITHMETIC_EXAMPLES)
    questions = []
    for group in range(groups):
        four = dealt[group::groups]
        options = tuple(f" {answer}" for _, answer in four)
        questions += [Question(shown + text, options, right) for right, (text, _) in enumerate(four)]
    return questions


def _greedy_answer(context: Context, one: Question, done: int, total: int) -> str:
    """The number at the start of what the model writes; "" where it writes none."""
    context.progress("writing answers", done, total)
    sampling = SamplingConfig(max_new_tokens=ANSWER_TOKENS, temperature=0.0)
    text = Engine(context.model).start(Request(one.prompt, sampling)).result().text
    number = re.match(r"\s*(-?\d+)", text)
    return number[1] if number else ""
