"""`moescope generate`: a text goes on, token by token."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from moe_core.cli.cache_options import add_cache, add_prefix_cache, cache_bytes, cache_of, prefix_cache_of, with_cache
from moe_core.cli.exits import printable
from moe_core.cli.models import load_language_model
from moe_core.cli.options import Parser, add_model, add_step, command, existing_run, finish, whole
from moe_core.cli.output import Output, progress_on_stderr, table
from moe_core.cli.writing import Written, add_intervention, add_sampling, intervention_of, sampling_of
from moe_core.errors import UsageError
from moe_core.words import count_of, percent

if TYPE_CHECKING:
    from moe_core.inference.engine import Request
    from moe_core.inference.protocol import LanguageModel


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
        "generate --run demo --prompt 'def ' --grammar python --max-new-tokens 600",
        'generate --run demo --prompt "The tenant shall" --cache int4',
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
    parser.add_argument(
        "--grammar", metavar="G", help="what the text must look like (needs requirements-code.txt): python, that of "
        "the code in the synthetic text, prompt included; or a file of rules in Lark's notation, for what is written",
    )  # fmt: skip
    parser.add_argument(
        "--compare-free", metavar="N", type=whole(1, 10_000), help="with --grammar: write N texts under it and N "
        "freely, and say how many are complete, how many of these parse, and how fast",
    )  # fmt: skip
    add_intervention(parser)
    add_cache(parser, "")
    add_prefix_cache(parser)
    return finish(parser, generate)


def generate(arguments: argparse.Namespace, output: Output) -> int:
    """Continue a prompt: text on stdout as it comes, speed on stderr. Or many prompts, see prompts_file.py."""
    if arguments.run is not None:
        existing_run(arguments.run)
    intervention, cache, folder = intervention_of(arguments), cache_of(arguments), prefix_cache_of(arguments)
    from moe_core.inference.engine import Engine, PromptRead, Request
    from moe_core.inference.grammar import grammar_of
    from moe_core.inference.own_model import OwnModel

    sampling = sampling_of(arguments)
    grammar = None if arguments.grammar is None else grammar_of(arguments.grammar)
    request = Request(arguments.prompt or "", sampling, tuple(arguments.stop), intervention, grammar=grammar)
    if arguments.compare_free is not None:
        if grammar is None or arguments.prompt is None:
            raise UsageError("--compare-free compares a --grammar with free writing from one --prompt; expected both")
        return _compare(
            with_cache(load_language_model(arguments, arguments.step), cache), request, arguments.compare_free, output
        )
    if arguments.prompts_file is not None:
        from moe_core.cli.prompts_file import answer_prompts, read_prompts

        prompts = read_prompts(arguments.prompts_file, request)
        answer_prompts(with_cache(load_language_model(arguments, arguments.step), cache), prompts, output, folder)
        return 0
    model = with_cache(load_language_model(arguments, arguments.step), cache)
    written, engine = Written(model), Engine(model, prefix_cache=folder)
    began, first, reused = time.perf_counter(), None, 0
    with progress_on_stderr() as progress:
        for event in engine.start(request):
            text = written.add(event)
            if isinstance(event, PromptRead):
                first, reused = time.perf_counter() - began, event.reused
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
    kept, whole = cache_bytes(model) if isinstance(model, OwnModel) else (None, None)
    if cache.changes and kept is not None and whole is not None:
        notes.append(f"{cache.name}: {kept:,} bytes a window, {percent(kept / whole)} of the whole one's")
    if folder is not None and first is not None:
        notes.append(
            f"{count_of(reused, 'token')} of the prompt from {str(folder)!r}, read after {1000 * first:.1f} ms"
        )
    print("; ".join(filter(None, notes)), file=sys.stderr)
    output.figures(
        {
            "prompt": arguments.prompt,
            "intervention": asdict(intervention),
            "text": written.text,
            "tokens_per_second": speed,
            "prompt_seconds": first,
            "prompt_reused": reused,
            "prompt_tokens": written.prompt_tokens,
            "tokens": written.tokens,
            "cache": {"name": cache.name, "bytes": kept, "whole_bytes": whole},
        }
    )
    return 0


def _compare(model: LanguageModel, request: Request, texts: int, output: Output) -> int:
    """Texts under the grammar beside free ones."""
    from moe_core.evaluation.grammar_trial import trial
    from moe_core.inference.engine import Engine

    with progress_on_stderr() as progress:
        trials = trial(Engine(model), request, texts, progress)
    rows = [
        [
            one.way,
            f"{one.complete} of {one.texts}",
            "not checked" if one.parsed is None else f"{one.parsed} of {one.complete}",
            "" if not one.parsed else percent(one.parsed / one.complete),
            f"{one.tokens:,}",
            f"{one.tokens_per_second:.0f}",
        ]
        for one in trials
    ]
    output.say(table(["written", "complete", "of these parse", "", "tokens", "tokens/s"], rows))
    output.figures(
        {
            "prompt": request.prompt,
            "sampling": asdict(request.sampling),
            "trials": [asdict(one) | {"tokens_per_second": one.tokens_per_second} for one in trials],
        }
    )
    return 0
