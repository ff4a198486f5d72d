"""ARC, MMLU and GSM8K, asked and scored by lm-evaluation-harness where that is installed.

Prompts, options and metrics are those of lm-eval's own tasks (arc_easy, mmlu, gsm8k), without examples in the prompt:
a window of a few hundred tokens holds none.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from moe_core.evaluation.tasks.context import Context, Outcome
from moe_core.evaluation.tasks.questions import MOST_QUESTIONS, Questions
from moe_core.evaluation.tasks.registry import benchmark
from moe_core.evaluation.tasks.scores import Score, of_questions

_MEAN = {"aggregation": "mean", "higher_is_better": True}
TASKS: dict[str, dict[str, Any]] = {
    "arc": {
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{choices.label.index(answerKey)}}",
        "doc_to_choice": "{{choices.text}}",
        "metric_list": [{"metric": "acc", **_MEAN}, {"metric": "acc_norm", **_MEAN}],
    },
    "mmlu": {
        "output_type": "multiple_choice",
        "doc_to_text": "{% if subject %}The following are multiple choice questions (with answers) about "
        "{{subject|replace('_', ' ')}}.\n\n{% endif %}{{question.strip()}}\n"
        "A. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:",
        "doc_to_choice": ["A", "B", "C", "D"],
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", **_MEAN}],
    },
    "gsm8k": {
        "output_type": "generate_until",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["Question:", "</s>", "<|im_end|>"], "do_sample": False, "temperature": 0.0},
        "metric_list": [
            {
                "metric": "exact_match",
                **_MEAN,
                "ignore_case": True,
                "ignore_punctuation": False,
                "regexes_to_ignore": [",", "\\$", "(?s).*#### ", "\\.$"],
            }
        ],
        "filter_list": [
            {
                "name": "strict",
                "filter": [
                    {"function": "regex", "regex_pattern": "#### (\\-?[0-9\\.\\,]+)"},
                    {"function": "take_first"},
                ],
            },
            {
                "name": "flexible",
                "filter": [
                    {
                        "function": "regex",
                        "group_select": -1,
                        "regex_pattern": "(-?[$0-9.,]{2,})|(-?[0-9]+)",
                    },
                    {"function": "take_first"},
                ],
            },
        ],
    },
}


@benchmark("arc", "ARC: school science, several choices.")
def arc(context: Context) -> Outcome:
    """The share of questions whose right choice is the likeliest, as is and per byte."""

    def scores(rows: Sequence[dict[str, Any]], samples: Sequence[dict[str, Any]]) -> tuple[Score, ...]:
        chance = [1 / len(row["choices"]["text"]) for row in rows]
        return tuple(
            of_questions(name, [bool(sample[metric]) for sample in samples], chance, "1 of a question's choices")
            for metric, name in (("acc", "accuracy"), ("acc_norm", "accuracy, likelihood per byte"))
        )

    return _ask_questions(context, "arc", scores)


@benchmark("mmlu", "MMLU: knowledge of many subjects, four choices.")
def mmlu(context: Context) -> Outcome:
    """The share of questions whose right letter is the likeliest."""

    def scores(rows: Sequence[dict[str, Any]], samples: Sequence[dict[str, Any]]) -> tuple[Score, ...]:  # noqa: ARG001
        return (of_questions("accuracy", [bool(sample["acc"]) for sample in samples], 0.25, "1 of 4 choices"),)

    return _ask_questions(context, "mmlu", scores)


@benchmark("gsm8k", "GSM8K: sums in words.")
def gsm8k(context: Context) -> Outcome:
    """The share of questions whose number the model writes."""

    def scores(rows: Sequence[dict[str, Any]], samples: Sequence[dict[str, Any]]) -> tuple[Score, ...]:
        numbers = Counter(re.split("#### *", row["answer"])[-1].strip() for row in rows)
        commonest, times = numbers.most_common(1)[0]
        return tuple(
            of_questions(
                f"exact match, {name}",
                [bool(sample["exact_match"]) for sample in samples if sample["filter"] == name],
                times / len(rows),
                f'always answering "{commonest}"',
            )
            for name in ("strict", "flexible")
        )

    return _ask_questions(context, "gsm8k", scores)


Scorer = Callable[[Sequence[dict[str, Any]], Sequence[dict[str, Any]]], tuple[Score, ...]]
"""(questions, lm-eval's records) -> scores"""


def _ask_questions(context: Context, name: str, scores: Scorer) -> Outcome:
    questions = context.inputs.questions.get(name)
    if questions is None:
        return Outcome(not_run=f"no questions were given; --{name} FILE.jsonl gives them")
    if importlib.util.find_spec("lm_eval") is None:
        return Outcome(not_run="lm_eval is not installed; `pip install lm_eval` in the same environment")
    # A library's advice on its own use would stand between our lines.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from moe_core.evaluation.tasks.lm_eval_model import MoescopeLM

    rows = questions.drawn(MOST_QUESTIONS[name], context.seed)
    samples = ask(MoescopeLM(context.model, context.progress), name, rows, seed=context.seed)
    return Outcome(scores(rows, samples), note=_note_of_version(questions, rows))


def ask(model: Any, name: str, rows: Sequence[dict[str, Any]], *, seed: int = 0) -> list[dict[str, Any]]:
    """lm-eval's record of each answer, with its metrics, in the order of `rows`; one for each filter of the task.

    `model`: any of lm-eval's models. Needs lm-eval; nothing is fetched.
    """
    import datasets
    import lm_eval
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager

    def dataset(**_: Any) -> dict[str, Any]:
        return {"test": datasets.Dataset.from_list(list(rows))}

    task = ConfigurableTask(
        config={"task": name, "test_split": "test", "custom_dataset": dataset, "num_fewshot": 0, **TASKS[name]}
    )
    results = lm_eval.simple_evaluate(
        model,
        tasks=[task],
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
    )
    samples: list[dict[str, Any]] = results["samples"][name]
    return sorted(samples, key=lambda sample: int(sample["doc_id"]))


def _note_of_version(questions: Questions, rows: Sequence[dict[str, Any]]) -> str:
    from importlib.metadata import version

    return (
        f"{len(rows):,} of {len(questions.rows):,} questions of {questions.path}, without examples, by lm-eval "
        f"{version('lm_eval')}."
    )
