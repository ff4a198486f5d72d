"""Problems in HumanEval's form, and pass@k (Chen et al. 2021, arXiv:2107.03374)."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from moe_core.errors import DataError, first_fault
from moe_core.routing.statistics.intervals import TAILS, wilson

DRAWS = 10_000


class Problem(BaseModel):
    """One line of the file; other fields are left alone."""

    model_config = ConfigDict(strict=True, frozen=True)
    task_id: str
    prompt: str
    """Code up to where the model goes on: imports, the function's head, its docstring."""
    entry_point: str
    """The function's name."""
    test: str
    """Code that defines check(candidate), which raises AssertionError where the function is wrong."""
    canonical_solution: str | None = None
    """What goes on from the prompt, and is right."""

    def program(self, completion: str) -> str:
        """The completed function, the tests, and their call."""
        return f"{self.prompt}{completion}\n\n{self.test}\n\ncheck({self.entry_point})\n"


def read_problems(path: Path) -> list[Problem]:
    """Of a file of JSON lines. Raises DataError naming the line for anything that is no problem."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise DataError(f"cannot read the problems in {str(path)!r}: {reason}; expected JSON lines") from None
    found: dict[str, Problem] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"line {number} of {str(path)!r}"
        try:
            problem = Problem.model_validate(json.loads(line))
        except ValidationError as error:
            fault = first_fault(error)
            raise DataError(
                f"{where} is no problem: {fault.line}; expected task_id, prompt, entry_point and test, as HumanEval has"
            ) from None
        except (ValueError, RecursionError):
            raise DataError(f"{where} is no JSON; expected one problem in each line, as HumanEval has") from None
        _check(problem, where)
        if problem.task_id in found:
            raise DataError(f"{where} has the task_id {problem.task_id!r} again; expected each once")
        found[problem.task_id] = problem
    if not found:
        raise DataError(f"{str(path)!r} has no problem; expected one in each line, as HumanEval has")
    return list(found.values())


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Unbiased probability that one of k samples passes, from `passed` of `samples` >= k: 1 - C(n-c, k) / C(n, k)."""
    if samples - passed < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(samples - passed + 1, samples + 1))


@dataclass(frozen=True)
class PassAtK:
    """The mean over problems, and its 95 % interval."""

    k: int
    value: float
    low: float
    high: float


def mean_pass_at_k(counts: Mapping[str, tuple[int, int]], k: int) -> PassAtK:
    """`counts`: samples and passed ones by problem. Interval: percentile bootstrap over problems; Wilson's where all
    are alike, all passed or none, of which draws would know nothing."""
    values = np.array([pass_at_k(samples, passed, k) for samples, passed in counts.values()])
    if values.max() == values.min() and values[0] in (0.0, 1.0):
        low, high = wilson(int(values.sum()), len(values))
    else:
        drawn = np.random.default_rng(0).integers(len(values), size=(DRAWS, len(values)))
        low, high = np.quantile(values[drawn].mean(axis=1), TAILS)
    return PassAtK(k, float(values.mean()), float(low), float(high))


def default_ks(samples: int) -> Sequence[int]:
    """1, 10 and 100, as far as there are samples."""
    return [k for k in (1, 10, 100) if k <= samples]


def _check(problem: Problem, where: str) -> None:
    """Raise DataError for tests that test nothing: they would pass whatever the model writes."""
    try:
        tree = ast.parse(problem.test)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DataError(f"{where}: test is no Python ({type(error).__name__}); expected a function check") from None
    checks = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "check"]
    if not checks:
        raise DataError(f"{where}: test defines no function check(candidate); expected one")
    if not problem.entry_point.isidentifier():
        raise DataError(f"{where}: entry_point {problem.entry_point!r} is no name of a function; expected one")
