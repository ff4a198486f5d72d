"""`moescope open`: what a file of routing is, and what it can answer."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from moe_core.cli.convert import add_recording_options
from moe_core.cli.options import Parser, command, finish
from moe_core.cli.output import Output, progress_on_stderr, table
from moe_core.program import program


def parser() -> Parser:
    """Its options."""
    parser = command(
        "open",
        "Say what a file of routing is, whether its routing is healthy, and which questions it can answer: a trace or\n"
        "counts of Moescope, or a recording of an engine or a trainer (docs/trace-format.md describes them all).",
        "open x.parquet",
        "open imatrix.gguf --json",
        "open out/tokens_per_expert --top-k 8",
    )
    parser.add_argument("file", metavar="FILE", help="a file, or a folder or glob of files that ranks wrote")
    add_recording_options(parser)
    return finish(parser, open_file)


def open_file(arguments: argparse.Namespace, output: Output) -> int:
    """Print what the file holds, its health, and the table of questions."""
    from moe_core.inference.tokenizer_texts import TokenizerTexts
    from moe_core.routing.measures.capability import capabilities, remedies
    from moe_core.routing.measures.health import describe_routing, extent_words, health
    from moe_core.routing.measures.load import load_balance
    from moe_core.routing.opening import open_routing

    with tempfile.TemporaryDirectory(prefix="moescope-") as folder, progress_on_stderr() as progress:
        found = open_routing(
            arguments.file,
            format=arguments.format,
            convert_to=Path(folder) / "trace.parquet",
            token_ids=arguments.token_ids,
            num_experts=arguments.num_experts,
            top_k=arguments.top_k,
            layers=arguments.layers,
            texts=None if arguments.tokenizer is None else TokenizerTexts(Path(arguments.tokenizer)),
            progress=progress,
        )
        routing = found.routing
        verdict = health(load_balance(routing)).sentence
        answers = capabilities(routing)
        extent = extent_words(routing)
    made_of = describe_routing(routing)
    ours = f", {routing.source}" if routing.source and found.format in ("trace", "counts") else ""
    output.say(f"{arguments.file}: {found.title}{ours}")
    output.say(f"{made_of} {extent}.")
    output.say(verdict)
    extras = list(getattr(routing, "extras", ()))
    if extras:
        output.say(f"Further sums: {', '.join(extras)}.")
    for note in found.notes:
        output.say(f"Note: {note}.")
    output.say()
    rows = [[answer.measure.question, answer.answer, answer.needs] for answer in answers]
    output.say(table(["question", "can be told", "for the rest it takes"], rows))
    output.say()
    ways = [[f"{program()} {how}", needs] for how, needs in remedies(answers).items()]
    output.say(table(["how to get there", ""], ways))
    output.say()
    output.say(f"Look at it:  {program()} plots --trace {arguments.file} --out out/plots")
    output.figures(
        {
            "file": arguments.file,
            "format": found.format,
            "holds": "counts" if hasattr(routing, "tokens_per_expert") else "tokens",
            "source": routing.source,
            "layers": list(routing.layers),
            "num_experts": routing.num_experts,
            "top_k": routing.top_k,
            "unit": getattr(routing, "unit", "token"),
            "tokens": routing.num_tokens,
            "steps": len(getattr(routing, "steps", [0])),
            "domains": list(routing.domains),
            "extras": extras,
            "notes": list(found.notes),
            "health": verdict,
            "questions": [
                {
                    "measure": answer.measure.name,
                    "question": answer.measure.question,
                    "answer": answer.answer,
                    "needs": answer.needs,
                }
                for answer in answers
            ],
        }
    )
    return 0
