"""The commands, and how a command line becomes one of them. Nothing heavy is imported: --help answers at once."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from moe_core.cli import (
    ablate,
    agree,
    bench,
    chat,
    compare,
    compare_serving,
    context,
    convert,
    counts,
    dashboard,
    data,
    export,
    fertility,
    generate,
    import_,
    label,
    placement,
    plots,
    presets,
    prune,
    report,
    runs,
    scale,
    serve,
    slim,
    solve,
    states,
    trace,
    train,
)
from moe_core.cli import open as open_file
from moe_core.cli.options import Parser
from moe_core.errors import UsageError
from moe_core.program import program


class Command(NamedTuple):
    """A command as `moescope --help` lists it; its file has the parser and, beside it, the handler."""

    name: str
    summary: str
    parser: Callable[[], Parser]


COMMANDS = (
    Command("data", "text before training: synthetic documents, copies removed", data.parser),
    Command("trace", "record which experts every token of a text goes to", trace.parser),
    Command("label", "say whether experts know the node type of code, or any label of yours", label.parser),
    Command("fertility", "say how finely a tokenizer cuts each language or domain", fertility.parser),
    Command("convert", "make a trace of routing that vLLM, SGLang or llama.cpp recorded", convert.parser),
    Command("open", "say what a file of routing is and what it can answer", open_file.parser),
    Command("counts", "add up the routing of many traces, in several processes or on a Ray cluster", counts.parser),
    Command("plots", "write every figure of a run or a trace", plots.parser),
    Command("placement", "say which experts are hot, and place them on GPUs", placement.parser),
    Command("report", "write one HTML file with all pictures, verdicts and numbers of a run", report.parser),
    Command("generate", "continue a text, token by token", generate.parser),
    Command("chat", "talk with a model in the terminal", chat.parser),
    Command("ablate", "switch experts off one by one and measure what is lost", ablate.parser),
    Command("prune", "write a run with fewer experts in each layer, and say what that costs", prune.parser),
    Command("agree", "how far two routings of the same tokens agree: precisions, engines, quantisations", agree.parser),
    Command("solve", "run what a model writes for problems of yours against their tests: pass@k", solve.parser),
    Command("states", "whether states of one text lie together", states.parser),
    Command("context", "loss and routing by position, beyond the trained length", context.parser),
    Command("runs", "list the runs with their state and key figures", runs.parser),
    Command("slim", "make a run small enough to ship", slim.parser),
    Command("export", "write a run as a checkpoint that Hugging Face transformers loads", export.parser),
    Command("import", "make a run of a checkpoint of Hugging Face transformers", import_.parser),
    Command("presets", "list the named configurations with their size, cost and memory", presets.parser),
    Command("scale", "what each process of a large training would keep and send, on paper", scale.parser),
    Command("bench", "time Moescope against its peers and the machine's limit", bench.parser),
    Command(
        "compare-dense",
        "the mixture against dense models of equal cost and of equal size, over several seeds",
        compare.dense_parser,
    ),
    Command(
        "compare-routers",
        "routers and ways of balancing against each other under one budget",
        compare.routers_parser,
    ),
    Command(
        "compare-serving",
        "how fast a mixture serves, beside a dense model of equal active size",
        compare_serving.parser,
    ),
    Command("serve", "answer over an API that OpenAI's clients know; tells the experts of every token", serve.parser),
    Command("dashboard", "open the dashboard in a browser", dashboard.parser),
)
_BY_NAME = {command.name: command for command in COMMANDS}
_CONFIGURATION_TEXT = """\
any configuration key can be given as --section.key VALUE, in a HOCON file (--config) or as an environment variable
MOESCOPE_SECTION__KEY; the command line wins over the environment, that over the file."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command line. The result holds `handler(parsed, output) -> exit code`, `json` and the options.

    Raises UsageError for anything unknown; SystemExit(0) after printing help.
    """
    if arguments and arguments[0] == "data":
        return _parse_command(*data.parser_of(arguments[1:]))
    if arguments and arguments[0] in _BY_NAME:
        return _parse_command(_BY_NAME[arguments[0]].parser(), arguments[1:])
    parsed, rest = train.parser(_commands_text()).parse_known_args(arguments)
    for argument in rest:
        _refuse_misplaced_command(argument, rest)
    train.choose_handler(parsed, rest)
    return parsed


def _commands_text() -> str:
    """The part of --help between the options and the examples; long names have a column of their own width."""
    lines = [f"  {name:<{10 if len(name) <= 10 else 16}} {summary}" for name, summary, _ in COMMANDS]
    return "\n".join(["commands (each has its own --help):", *lines, "", _CONFIGURATION_TEXT, "", "examples:"])


def _parse_command(parser: Parser, arguments: Sequence[str]) -> argparse.Namespace:
    parsed, rest = parser.parse_known_args(arguments)
    if "rest" in parsed:  # a command that passes on what it does not know itself
        parsed.rest = rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return parsed


def _refuse_misplaced_command(argument: str, rest: Sequence[str]) -> None:
    """A word that is no value of a --section.key: a command in the wrong place, or a typo of one."""
    before = rest[rest.index(argument) - 1] if rest.index(argument) else ""
    if argument.startswith("-") or (before.startswith("--") and "." in before and "=" not in before):
        return
    if argument in _BY_NAME:
        raise UsageError(f"{argument!r} must come first: {program()} {argument} ...")
    near = difflib.get_close_matches(argument, list(_BY_NAME), n=1)
    hint = f"did you mean {near[0]!r}" if near else f"expected one of {', '.join(_BY_NAME)}, or options only"
    raise UsageError(f"unknown command {argument[:60]!r}; {hint}; see `{program()} --help`")
