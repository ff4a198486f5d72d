"""Scoring code that a model writes: nothing passes but what the tests let pass, and nothing gets out."""

from __future__ import annotations

import json
import platform
import sys
from itertools import combinations
from pathlib import Path

import pytest
from cli_support import Run

from moe_core.errors import DataError, UsageError
from moe_core.evaluation.code_problems import Problem, mean_pass_at_k, pass_at_k, read_problems
from moe_core.evaluation.code_runner import Limits, run_program
from moe_core.evaluation.code_scoring import score_problems

ROOT = Path(__file__).resolve().parent.parent
SHIPPED_PROBLEMS = ROOT / "docs" / "code_problems.jsonl"
LIMITS = Limits(cpu_seconds=1, memory_bytes=256 * 2**20)
PROBLEM = Problem(
    task_id="one",
    prompt="def one():\n",
    entry_point="one",
    test="def check(candidate):\n    assert candidate() == 1\n",
)
FILTERED = sys.platform == "linux" and platform.machine() == "x86_64"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no limits of processes")


def judged(body: str) -> str:
    return run_program(PROBLEM.program(body), LIMITS).verdict


@pytest.mark.parametrize(
    ("body", "verdict"),
    [
        ("    return 1\n", "passed"),
        ("    return 2\n", "failed"),
        ("    return nothing\n", "error"),
        ("    return (\n", "error"),
        ("    while True:\n        pass\n", "time"),
        ("    return [0] * 10**9\n", "memory"),
        ("    raise SystemExit(0)\n", "error"),
        ("    return 1\nimport sys\nsys.exit(0)\n", "error"),
        ("    return 1\nimport os\nos._exit(0)\n", "error"),
        ("    print('passed')\n", "failed"),
        (
            "    import os\n    for fd in range(3, 32):\n        try:\n"
            "            os.write(fd, b'[\"\", \"passed\", \"\"]')\n        except OSError:\n            pass\n"
            "    os._exit(0)\n",
            "error",
        ),
        ("    import os\n    while True:\n        os.fork()\n", "error"),
        ("    import signal as s\n    s.signal(s.SIGXCPU, s.SIG_IGN)\n    while True:\n        pass\n", "time"),
        ("    open('filled', 'w').write('x' * 10**6)\n    return 1\n", "error"),
    ],
)  # fmt: skip
def test_only_what_is_right_and_comes_to_its_end_passes(body: str, verdict: str) -> None:
    assert judged(body) == verdict


def test_a_program_that_waits_is_ended_by_the_clock() -> None:
    waits = PROBLEM.program("    import time\n    time.sleep(3600)\n")
    assert run_program(waits, LIMITS, clock_seconds=1.0).verdict == "time"


@pytest.mark.skipif(not FILTERED, reason="the kernel is asked on Linux with x86-64")
def test_a_program_reaches_no_file_no_network_and_no_process(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    tried = [
        f"os.remove({str(kept)!r})",
        f"os.truncate({str(kept)!r}, 0)",
        f"os.rename({str(kept)!r}, {str(kept) + '2'!r})",
        f"os.chmod({str(kept)!r}, 0)",
        f"os.open({str(kept)!r}, os.O_WRONLY)",
        f"os.open({str(kept)!r}, os.O_RDONLY | os.O_TRUNC)",
        "os.mkdir('new')",
        "os.symlink('a', 'b')",
        "os.kill(os.getppid(), 0)",
        "os.fork()",
        "os.setsid()",
        "__import__('fcntl').ioctl(0, 0x5412, b'x')",
        "__import__('fcntl').fcntl(0, 8, os.getppid())",
        "os.execv('/bin/true', ['true'])",
        "__import__('socket').socket()",
        "__import__('_thread').start_new_thread(print, ())",
        "__import__('resource').setrlimit(7, (99, 99))",
    ]
    lines = [f"try:\n    {call}\nexcept (OSError, RuntimeError, ValueError):\n    refused += 1\n" for call in tried]
    program = f"import os\nrefused = 0\n{''.join(lines)}assert refused == {len(tried)}, refused\n"
    found = run_program(program, LIMITS)
    assert found.verdict == "passed", found.detail
    assert kept.read_text() == "as it was"


def test_the_estimate_is_the_share_of_all_choices_of_k_samples_that_hold_a_right_one() -> None:
    for passed in range(7):
        for k in range(1, 7):
            choices = list(combinations([True] * passed + [False] * (6 - passed), k))
            assert pass_at_k(6, passed, k) == pytest.approx(sum(map(any, choices)) / len(choices))
    few = mean_pass_at_k({str(n): (10, n) for n in range(4)}, 1)
    assert few.value == pytest.approx(0.15)
    assert 0 <= few.low < few.value < few.high <= 0.3
    none = mean_pass_at_k({"a": (10, 0), "b": (10, 0)}, 1)
    assert (none.value, none.low) == (0, 0)
    assert none.high > 0.5  # two problems say little


def test_shipped_solutions_all_pass_and_wrong_ones_none(tmp_path: Path) -> None:
    problems = read_problems(SHIPPED_PROBLEMS)
    assert len(problems) == 20
    for name, expected in (("right", "passed"), ("wrong", "failed")):

        def write(problem: Problem, _: int, name: str = name) -> str:
            return str(problem.canonical_solution) if name == "right" else "    return 'something else'\n"

        found = score_problems(
            problems, write, samples=1, limits=Limits(), target=tmp_path / f"{name}.jsonl", settings={}
        )
        assert {one.verdict for one in found} == {expected}


def test_what_was_stopped_goes_on_and_other_options_are_refused(tmp_path: Path) -> None:
    target, written = tmp_path / "samples.jsonl", list[int]()

    def write(_: Problem, number: int) -> str:
        written.append(number)
        if len(written) == 3:
            raise KeyboardInterrupt
        return f"    return {number}\n"

    def score(resume: bool, **settings: object) -> list[str]:
        found = score_problems(
            [PROBLEM], write, samples=4, limits=LIMITS, target=target, settings=settings, resume=resume
        )
        return [one.verdict for one in found]

    with pytest.raises(KeyboardInterrupt):
        score(False)
    with target.open("a") as file:
        file.write('{"task_id": "cut')
    with pytest.raises(UsageError, match="--resume goes on"):
        score(False)
    with pytest.raises(UsageError, match="other options"):
        score(True, seed=1)
    assert score(True) == ["failed", "passed", "failed", "failed"]
    assert written == [0, 1, 2, 2, 3]
    assert len(target.read_text().splitlines()) == 5
    target.write_text("[]\n")
    with pytest.raises(DataError, match="holds no samples"):
        score(True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "has no problem"),
        ("nonsense", "line 1 .* is no JSON"),
        ("[1]", "line 1 .* is no problem"),
        ('{"task_id": "a", "prompt": "x"}', "line 1 .* is no problem: entry_point"),
        ('{"task_id": "a", "prompt": "x", "entry_point": "f", "test": "x = 1"}', "no function check"),
        ('{"task_id": "a", "prompt": "x", "entry_point": "f", "test": "def"}', "is no Python"),
        ('{"task_id": "a", "prompt": "x", "entry_point": "f()", "test": "def check(c):\\n  c()"}', "entry_point"),
        (f"{PROBLEM.model_dump_json()}\n{PROBLEM.model_dump_json()}", "line 2 .* again"),
    ],
)
def test_what_is_no_problem_is_named(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_text(line)
    with pytest.raises(DataError, match=message):
        read_problems(path)


def test_the_command(cli: Run, trained_root: Path, tmp_path: Path) -> None:
    problems, out = tmp_path / "problems.jsonl", tmp_path / "samples.jsonl"
    problems.write_text("\n".join(SHIPPED_PROBLEMS.read_text().splitlines()[:2]))
    words = ["solve", "--run", "tiny", "--problems", str(problems), "--out", str(out), "--samples", "2"]
    words += ["--max-new-tokens", "4"]
    code, _, err = cli(trained_root, *words)
    assert (code, "say --run-code" in err, out.exists()) == (2, True, False)
    assert "exactly one" in cli(trained_root, *words, "--canonical", "--run-code")[2]
    assert "--k 3 needs" in cli(trained_root, *words, "--run-code", "--k", "3")[2]
    code, said, _ = cli(trained_root, *words, "--run-code", "--grammar", "python", "--json", str(tmp_path / "f.json"))
    assert code == 0
    assert "2 problems, 2 of each" in said
    figures = json.loads((tmp_path / "f.json").read_text())
    assert sum(figures["verdicts"].values()) == 4
    assert [one["k"] for one in figures["pass_at_k"]] == [1]
    assert cli(trained_root, *words, "--run-code", "--grammar", "python", "--resume")[0] == 0
    assert len(out.read_text().splitlines()) == 5
