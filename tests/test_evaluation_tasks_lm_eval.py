"""ARC, MMLU and GSM8K through lm-evaluation-harness: our model as is gives what its export gives there."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from moe_core.evaluation.evaluate import evaluate_run
from moe_core.evaluation.tasks import Inputs, run_suite, select
from moe_core.evaluation.tasks.questions import Questions
from moe_core.exchange.export import export_run
from moe_core.inference.open import language_model
from moe_core.runs.checkpoint import LoadedRun, load_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed (docs/evaluation.md)"
    ),
]

OPTIONS = ["a stone", "the tenant", "cat", "def f(x)"]
ROWS: dict[str, list[dict[str, Any]]] = {
    "arc": [
        {
            "question": f"Which of these is number {number}?",
            "choices": {"text": OPTIONS[: 3 + number % 2], "label": list("ABCD")[: 3 + number % 2]},
            "answerKey": "ABC"[number % 3],
        }
        for number in range(8)
    ],
    "mmlu": [
        {
            "question": f"{number} and {number}?",
            "choices": ["one", "two", "three", "four"],
            "answer": number % 4,
            "subject": "high_school_us_history" if number % 2 else "",
        }
        for number in range(8)
    ],
    "gsm8k": [
        {"question": f"Ann has {number} pears and buys 1.", "answer": f"So {number + 1}.\n#### {number + 1}"}
        for number in range(2)
    ],
}


@pytest.fixture(scope="module")
def loaded(trained_root: Path) -> LoadedRun:
    return load_run("tiny", trained_root)


def test_our_model_scores_as_its_export_does(loaded: LoadedRun, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="lm-eval's own models need accelerate")
    from lm_eval.models.huggingface import HFLM

    from moe_core.evaluation.tasks.known_benchmarks import ask
    from moe_core.evaluation.tasks.lm_eval_model import MoescopeLM

    export_run(loaded, tmp_path / "hf")
    theirs = HFLM(pretrained=str(tmp_path / "hf"), dtype="float32", device="cpu", batch_size=1)
    ours = MoescopeLM(language_model(loaded))
    # The export's window is ours, but lm-eval's own counts differently where a prompt is longer: these are shorter.
    for name in ("arc", "mmlu"):
        ours_answers, their_answers = ask(ours, name, ROWS[name]), ask(theirs, name, ROWS[name])
        assert len(ours_answers) == len(ROWS[name])
        for mine, other in zip(ours_answers, their_answers, strict=True):
            assert mine["acc"] == other["acc"]
            for (log_p, greedy), (their_log_p, their_greedy) in zip(
                mine["filtered_resps"], other["filtered_resps"], strict=True
            ):
                assert log_p == pytest.approx(their_log_p, abs=2e-4)
                assert greedy == their_greedy


def test_mmlu_is_asked_with_the_prompt_of_lm_evals_own_task(loaded: LoadedRun) -> None:
    import lm_eval.tasks
    import yaml

    from moe_core.evaluation.tasks.known_benchmarks import ask
    from moe_core.evaluation.tasks.lm_eval_model import MoescopeLM

    folder = Path(lm_eval.tasks.__file__).parent / "mmlu" / "default"
    own = yaml.safe_load((folder / "mmlu_high_school_us_history.yaml").read_text())
    answers = ask(MoescopeLM(language_model(loaded)), "mmlu", ROWS["mmlu"])
    prompts = [answer["arguments"][0][0] for answer in answers]
    question = "{0} and {0}?\nA. one\nB. two\nC. three\nD. four\nAnswer:"
    assert prompts[:2] == [question.format(0), own["description"] + question.format(1)]


def test_rolling_likelihood_of_unseen_text_is_that_of_evaluate(loaded: LoadedRun) -> None:
    from lm_eval.api.instance import Instance

    from moe_core.evaluation.tasks.lm_eval_model import MoescopeLM

    texts = [document.text for document in loaded.run.held_out("unseen")]
    requests = [Instance("loglikelihood_rolling", {}, (text,), number) for number, text in enumerate(texts)]
    log_p = sum(MoescopeLM(language_model(loaded)).loglikelihood_rolling(requests))
    tokens = sum(len(ids) for ids in loaded.tokenizer.encode_batch(texts))
    assert -log_p / tokens == pytest.approx(evaluate_run(loaded).unseen.nats_per_token, rel=1e-5)


def test_the_suite_asks_all_three_and_gives_their_chance(loaded: LoadedRun) -> None:
    inputs = Inputs(questions={name: Questions(f"{name}.jsonl", tuple(rows)) for name, rows in ROWS.items()})
    result = run_suite(loaded, select(["arc", "mmlu", "gsm8k"]), inputs=inputs)
    assert json.loads(json.dumps(result.to_json(), allow_nan=False)) == result.to_json()
    tasks = {task.name: task for task in result.tasks}
    assert [task.not_run for task in tasks.values()] == ["", "", ""]
    assert [score.name for score in tasks["arc"].scores] == ["accuracy", "accuracy, likelihood per byte"]
    assert tasks["arc"].scores[0].level == pytest.approx((4 / 3 + 4 / 4) / 8)
    assert tasks["mmlu"].scores[0].level == 0.25
    assert [score.level for score in tasks["gsm8k"].scores] == [0.5, 0.5]
    assert "8 of 8 questions of mmlu.jsonl" in tasks["mmlu"].note
