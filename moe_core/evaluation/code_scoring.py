"""What a model writes for problems, sample by sample into a file, each run and judged; a stopped one goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from moe_core.errors import DataError, UsageError
from moe_core.evaluation.code_problems import Problem
from moe_core.evaluation.code_runner import Limits, Verdict, run_program
from moe_core.progress import Progress, silent

Writer = Callable[[Problem, int], str]
"""The completion of a problem, for the number of the sample from 0."""


@dataclass(frozen=True)
class CodeSample:
    """One line of the file."""

    task_id: str
    sample: int
    prompt: str
    completion: str
    verdict: Verdict
    detail: str


def score_problems(
    problems: Sequence[Problem],
    write: Writer,
    *,
    samples: int,
    limits: Limits,
    target: Path,
    settings: Mapping[str, object],
    resume: bool = False,
    progress: Progress = silent,
) -> list[CodeSample]:
    """`samples` of each problem, those that `target` has already included.

    The file's first line is `settings`, each other one a sample; it is written as they come. A line that was cut off is
    done again. Raises UsageError for a file that is there without `resume`, or whose settings are others, DataError for
    one that is none.
    """
    done = _kept(target, settings, resume)
    target.parent.mkdir(parents=True, exist_ok=True)
    places = [(problem, number) for problem in problems for number in range(samples)]
    with target.open("a", encoding="utf-8") as file:
        if not file.tell():
            file.write(json.dumps({"settings": settings}) + "\n")
        for count, (problem, number) in enumerate(places):
            progress("solving", count, len(places))
            if (problem.task_id, number) in done:
                continue
            completion = write(problem, number)
            outcome = run_program(problem.program(completion), limits)
            one = CodeSample(
                problem.task_id, number, problem.prompt, completion, outcome.verdict, outcome.detail
            )  # fmt: skip
            file.write(json.dumps(asdict(one)) + "\n")
            file.flush()
            done[one.task_id, number] = one
    return [done[problem.task_id, number] for problem, number in places]


def counts_of(found: Sequence[CodeSample]) -> dict[str, tuple[int, int]]:
    """(samples, passed ones) of each problem."""
    counts: dict[str, tuple[int, int]] = {}
    for one in found:
        samples, passed = counts.get(one.task_id, (0, 0))
        counts[one.task_id] = samples + 1, passed + (one.verdict == "passed")
    return counts


def _kept(target: Path, settings: Mapping[str, object], resume: bool) -> dict[tuple[str, int], CodeSample]:
    """The samples that are there; what follows the last whole line is cut off."""
    if not target.exists():
        return {}
    if not resume:
        raise UsageError(f"{str(target)!r} is there already; --resume goes on from it, or remove it")
    lines = target.read_bytes().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith(b"\n")]
    try:
        rows = list(_rows(whole))
        there = rows[0]["settings"] if rows else dict(settings)
        found = [CodeSample(**row) for row in rows[1:]]  # type: ignore[arg-type]  # checked by their names alone
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{str(target)!r} holds no samples of this command; expected another name in --out") from None
    if there != json.loads(json.dumps(settings)):
        raise UsageError(f"{str(target)!r} was written with other options or problems; expected the same, or another")
    if len(whole) < len(lines):
        with target.open("r+b") as file:
            file.truncate(sum(map(len, whole)))
    return {(one.task_id, one.sample): one for one in found}


def _rows(lines: Sequence[bytes]) -> Iterator[dict[str, object]]:
    for line in lines:
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError("not an object")
        yield row
