"""`moescope solve`: what a model writes for programming problems is executed and judged."""

from __future__ import annotations

import argparse
import hashlib
from collections import Counter
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from moe_core.cli.models import load_language_model
from moe_core.cli.options import Parser, add_model, add_step, command, finish, whole
from moe_core.cli.output import Output, check_regular, progress_on_stderr, table
from moe_core.cli.writing import add_sampling, sampling_of
from moe_core.errors import UsageError
from moe_core.words import count_of

if TYPE_CHECKING:
    from moe_core.evaluation.code_problems import Problem
    from moe_core.evaluation.code_scoring import Writer

STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n@")
"""Where the function is over, as HumanEval's authors cut."""


def parser() -> Parser:
    """Its options."""
    parser = command(
        "solve",
        "Let a model write functions for problems of yours, run them against their tests, and say how often k samples\n"
        "hold one that passes (pass@k). Code that nobody has read is executed, with limits that docs/evaluation.md\n"
        "describes; it is done only with --run-code.",
        "solve --run demo --problems docs/code_problems.jsonl --samples 10 --out out/samples.jsonl --run-code",
        "solve --canonical --problems docs/code_problems.jsonl --out out/canonical.jsonl --run-code",
    )
    add_model(parser, "writes", required=False)
    add_step(parser)
    parser.add_argument(
        "--canonical", action="store_true", help="instead of a model: the problems' own solutions, which should pass"
    )
    parser.add_argument(
        "--problems", metavar="FILE.jsonl", required=True, help="problems as HumanEval has them, one a line: task_id, "
        "prompt, entry_point, test, and perhaps canonical_solution",
    )  # fmt: skip
    parser.add_argument("--out", metavar="FILE.jsonl", required=True, help="file of all samples with their verdicts")
    parser.add_argument("--resume", action="store_true", help="go on with a file that was begun with the same options")
    parser.add_argument("--run-code", action="store_true", help="execute what was written; needed, see above")
    parser.add_argument(
        "--samples", metavar="N", type=whole(1, 10_000), default=10, help="of each problem (default 10)"
    )
    parser.add_argument(
        "--k", metavar="K", type=whole(1, 10_000), nargs="+", help="of pass@k, each at most --samples (default: 1, 10 "
        "and 100, as far as there are samples)",
    )  # fmt: skip
    add_sampling(parser)
    parser.add_argument("--grammar", metavar="G", help="what the text must look like, as in generate")
    parser.add_argument(
        "--cpu-seconds", metavar="S", type=whole(1, 3600), default=5, help="processor time of a program (default 5)"
    )
    parser.add_argument(
        "--memory-mib", metavar="M", type=whole(64, 2**20), default=512, help="memory of a program (default 512)"
    )
    return finish(parser, solve)


def solve(arguments: argparse.Namespace, output: Output) -> int:
    """Write, run and judge all samples; print pass@k and what the verdicts were."""
    from moe_core.evaluation.code_problems import default_ks, mean_pass_at_k, read_problems
    from moe_core.evaluation.code_runner import VERDICTS, Limits, check_platform
    from moe_core.evaluation.code_scoring import counts_of, score_problems
    from moe_core.files import user_path

    if not arguments.run_code:
        raise UsageError("solve executes code that nobody has read; say --run-code if it may")
    check_platform()
    check_regular(arguments.out, "--out")
    problems = read_problems(user_path(arguments.problems))
    samples = 1 if arguments.canonical else arguments.samples
    ks = arguments.k or default_ks(samples)
    if max(ks) > samples:
        raise UsageError(f"--k {max(ks)} needs as many samples of each problem; there are {samples}")
    limits = Limits(arguments.cpu_seconds, arguments.memory_mib * 2**20)
    who, write = _writer(arguments, problems)
    settings = {
        "writer": who,
        "sampling": None if arguments.canonical else asdict(sampling_of(arguments)),
        "grammar": arguments.grammar,
        "limits": asdict(limits),
        "problems": hashlib.sha256("\n".join(one.model_dump_json() for one in problems).encode()).hexdigest(),
    }
    with progress_on_stderr() as progress:
        found = score_problems(
            problems, write, samples=samples, limits=limits, target=user_path(arguments.out), settings=settings,
            resume=arguments.resume, progress=progress,
        )  # fmt: skip
    counts = counts_of(found)
    scores = [mean_pass_at_k(counts, k) for k in sorted(set(ks))]
    rows = [[f"pass@{one.k}", f"{one.value:.1%}", f"{one.low:.1%} to {one.high:.1%}"] for one in scores]
    verdicts = Counter(one.verdict for one in found)
    solved = sum(passed > 0 for _, passed in counts.values())
    output.say(table(["score", "value", "95 % interval"], rows))
    output.say(
        f"{count_of(len(problems), 'problem')}, {samples} of each written by {who}; {solved} solved at least once"
    )
    output.say("Verdicts: " + ", ".join(f"{verdicts[one]:,} {one}" for one in VERDICTS))
    output.say(f"Samples:  {arguments.out}")
    output.figures(
        {
            **settings,
            "samples": samples,
            "pass_at_k": [asdict(one) for one in scores],
            "verdicts": {one: verdicts[one] for one in VERDICTS},
            "problems_solved": solved,
            "by_problem": {name: {"samples": n, "passed": passed} for name, (n, passed) in counts.items()},
        }
    )
    return 0


def _writer(arguments: argparse.Namespace, problems: list[Problem]) -> tuple[str, Writer]:
    """Who writes, and how."""
    models = (arguments.run is not None) + (arguments.model is not None)
    if models + arguments.canonical != 1:
        raise UsageError("solve needs one of --run, --model and --canonical; expected exactly one")
    if arguments.canonical:
        return "canonical solutions", _canonical(problems)
    from moe_core.inference.engine import Engine, Request
    from moe_core.inference.grammar import grammar_of

    sampling = sampling_of(arguments)
    grammar = None if arguments.grammar is None else grammar_of(arguments.grammar)
    model = load_language_model(arguments, arguments.step)
    engine = Engine(model)

    def write(problem: Problem, number: int) -> str:
        seeded = replace(sampling, seed=(sampling.seed + number) % 2**32)
        return engine.start(Request(problem.prompt, seeded, STOP, grammar=grammar)).result().text

    return model.name, write


def _canonical(problems: list[Problem]) -> Writer:
    solutions = {one.task_id: one.canonical_solution for one in problems}
    for name, solution in solutions.items():
        if solution is None:
            raise UsageError(f"problem {name!r} has no canonical_solution, which --canonical runs; expected one")
    return lambda problem, _: str(solutions[problem.task_id])
