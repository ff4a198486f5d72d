"""`moescope generate`: a text goes on, token by token."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict

from moe_core.cli.exits import printable
from moe_core.cli.models import load_language_model
from moe_core.cli.options import Parser, add_model, add_step, command, existing_run, finish
from moe_core.cli.output import Output, progress_on_stderr
from moe_core.cli.writing import Written, add_intervention, add_sampling, intervention_of, sampling_of
from moe_core.words import count_of


def parser() -> Parser:
    """Its options."""
    parser = command(
        "generate",
        "Continue a text. The text appears on stdout as it is written, the speed on stderr. --json tells the\n"
        "experts of every token, those of the prompt included.",
        'generate --run demo --prompt "The tenant shall" --max-new-tokens 60 --temperature 0',
        'generate --run demo --prompt "The tenant shall" --ablate 2:5 --ablate 3:1 --mode reroute',
        'generate --run demo --prompt "The tenant shall" --force 2:5',
        "generate --run demo --prompts-file prompts.txt --json out/answers.jsonl",
    )
    add_model(parser, "writes")
    add_step(parser)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--prompt", metavar="P", help="the text to continue")
    which.add_argument(
        "--prompts-file", metavar="FILE", help="a prompt in each line, or - for standard input; they are answered "
        "together, each as it is alone, and told in order, a line each (line breaks as \\n; with --json as lines of "
        "JSON). A line may be JSON: {\"prompt\": ...}, with its own max_new_tokens, temperature, top_k, top_p, seed "
        "and stop",
    )  # fmt: skip
    add_sampling(parser)
    parser.add_argument(
        "--stop", metavar="TEXT", action="append", default=[], help="end before this text, which is never shown; "
        "repeatable",
    )  # fmt: skip
    add_intervention(parser)
    return finish(parser, generate)


def generate(arguments: argparse.Namespace, output: Output) -> int:
    """Continue a prompt: text on stdout as it comes, speed on stderr. Or many prompts, see prompts_file.py."""
    if arguments.run is not None:
        existing_run(arguments.run)
    intervention = intervention_of(arguments)
    from moe_core.inference.engine import Engine, Request

    sampling = sampling_of(arguments)
    request = Request(arguments.prompt or "", sampling, tuple(arguments.stop), intervention)
    if arguments.prompts_file is not None:
        from moe_core.cli.prompts_file import answer_prompts, read_prompts

        prompts = read_prompts(arguments.prompts_file, request)
        answer_prompts(load_language_model(arguments, arguments.step), prompts, output)
        return 0
    model = load_language_model(arguments, arguments.step)
    written = Written(model)
    began = time.perf_counter()
    with progress_on_stderr() as progress:
        for event in Engine(model).start(request):
            text = written.add(event)
            if output.json_only:
                progress("generating", len(written.tokens), sampling.max_new_tokens)
            else:
                print(printable(text), end="", flush=True)
    seconds = time.perf_counter() - began
    if not output.json_only:
        print(flush=True)
    number = len(written.tokens)
    speed = number / seconds
    notes = [f"{count_of(number, 'token')} in {seconds:.1f} s, {speed:.0f} tokens/s", intervention.describe()]
    print("; ".join(filter(None, notes)), file=sys.stderr)
    output.figures(
        {
            "prompt": arguments.prompt,
            "intervention": asdict(intervention),
            "text": written.text,
            "tokens_per_second": speed,
            "prompt_tokens": written.prompt_tokens,
            "tokens": written.tokens,
        }
    )
    return 0
