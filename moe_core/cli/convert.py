"""`moescope convert`: a trace, or counts, of routing that was recorded elsewhere."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from moe_core.cli.options import Parser, command, finish, whole
from moe_core.cli.output import Output, check_regular, progress_on_stderr, table
from moe_core.errors import UsageError
from moe_core.program import program
from moe_core.recording_formats import FORMAT_NAMES
from moe_core.words import count_of


def parser() -> Parser:
    """Its options."""
    parser = command(
        "convert",
        "Make a trace of routing that was recorded elsewhere: routed_experts of vLLM or SGLang (.npy, .npz, .json,\n"
        ".jsonl), SGLang's recorder per token (.pt), a router trace of Megatron-LM, a moe-trace CSV of llama.cpp,\n"
        "JSON of gpt-oss fingerprints, or a Parquet table; counts where only counts were kept, as in an importance\n"
        "matrix of llama.cpp. A folder or a glob stands for the files of all ranks. docs/trace-format.md has them all.",
        "convert --from answers.jsonl --tokenizer tokenizer.json --num-experts 128 --to out/x.parquet",
        "convert --from router_traces/ --num-experts 64 --to out/x.parquet",
        "convert --from imatrix.gguf --to out/x.counts.parquet",
    )
    parser.add_argument("--from", dest="source", metavar="X", required=True, help="the recording")
    parser.add_argument("--to", metavar="X.parquet", required=True, help="file to write")
    add_recording_options(parser)
    return finish(parser, convert)


def add_recording_options(parser: Parser) -> None:
    """What a recording may not say itself."""
    parser.add_argument("--format", choices=FORMAT_NAMES, default="auto", help="default auto: by name and content")
    parser.add_argument("--token-ids", metavar="F", help="token ids, if the recording has none: .npy, .json, .csv")
    parser.add_argument("--tokenizer", metavar="F", help="tokenizer.json of the model, for the tokens' texts")
    parser.add_argument("--num-experts", metavar="E", type=whole(2, 32_767), help="experts per layer, if the "
        "recording does not say")  # fmt: skip
    parser.add_argument("--top-k", metavar="K", type=whole(1, 32_767), help="experts per token and layer, if the "
        "recording does not say")  # fmt: skip
    parser.add_argument("--layers", metavar="L", type=layer_numbers, help="numbers of the recorded layers, "
        "such as 3-47; if fewer are named than were recorded, only these are kept")  # fmt: skip


def convert(arguments: argparse.Namespace, output: Output) -> int:
    """Read a recording, check it, and write its trace, or its counts."""
    check_regular(arguments.to, "--to")
    source = Path(arguments.source)
    if source.exists() and Path(arguments.to).exists() and source.samefile(arguments.to):
        raise UsageError(f"--to {arguments.to!r} is the recording itself; choose another file")
    from moe_core.inference.tokenizer_texts import TokenizerTexts
    from moe_core.routing import RoutingTrace, recordings
    from moe_core.routing.recordings.detection import format_at
    from moe_core.routing.trace.independence import independence_note

    chosen, _ = format_at(source, arguments.format)
    if chosen is not None and chosen.holds == "counts":
        return convert_counts(arguments, output)
    texts = None if arguments.tokenizer is None else TokenizerTexts(Path(arguments.tokenizer))
    with progress_on_stderr() as progress:
        found = recordings.convert(
            source,
            arguments.to,
            format=arguments.format,
            token_ids=arguments.token_ids,
            num_experts=arguments.num_experts,
            top_k=arguments.top_k,
            layers=arguments.layers,
            texts=texts,
            progress=progress,
        )
    output.say(f"{count_of(found.tokens, 'token')} of {count_of(found.documents, 'text')} in {arguments.to}")
    output.say(
        table(
            ["format", "layers", "experts", "top k", "domains", "weights"],
            [
                [
                    found.format,
                    str(len(found.layers)),
                    str(found.num_experts),
                    str(found.top_k),
                    str(len(found.domains)),
                    "recorded" if found.weights else f"none: 1/{found.top_k} each",
                ]
            ],
        )
    )
    for note in found.notes:
        output.say(f"Note: {note}.")
    if dependent := independence_note(RoutingTrace.open(arguments.to)):
        output.say(f"Note: {dependent}")
    output.say(f"Look at it:  {program()} plots --trace {arguments.to} --out out/plots")
    output.figures({"from": arguments.source, "out": arguments.to, **asdict(found), "independence": dependent})
    return 0


def convert_counts(arguments: argparse.Namespace, output: Output) -> int:
    """Read counts, check them, and write them as one file of ours."""
    from moe_core.routing import RoutingCounts
    from moe_core.routing.opening import open_routing

    with progress_on_stderr() as progress:
        found = open_routing(
            arguments.source,
            format=arguments.format,
            token_ids=arguments.token_ids,
            num_experts=arguments.num_experts,
            top_k=arguments.top_k,
            layers=arguments.layers,
            progress=progress,
        )
    counts = found.routing
    assert isinstance(counts, RoutingCounts)
    counts.save(arguments.to)
    output.say(f"Counts of {counts.num_tokens:,} {counts.unit}s in {arguments.to}")
    top_k = "unknown" if counts.unit == "choice" else counts.top_k
    shape = [len(counts.layers), counts.num_experts, top_k, len(counts.steps), len(counts.domains)]
    row = [found.format, *map(str, shape), ", ".join(counts.extras) or "none"]
    output.say(table(["format", "layers", "experts", "top k", "steps", "domains", "further sums"], [row]))
    for note in counts.notes:
        output.say(f"Note: {note}.")
    output.say("Note: counts tell how evenly experts are used, and by what; of single tokens nothing is kept.")
    output.say(f"What they can answer:  {program()} open {arguments.to}")
    output.figures(
        {
            "from": arguments.source,
            "out": arguments.to,
            "holds": "counts",
            "format": found.format,
            "tokens": counts.num_tokens,
            "unit": counts.unit,
            "steps": len(counts.steps),
            "domains": counts.domains,
            "layers": counts.layers,
            "num_experts": counts.num_experts,
            "top_k": counts.top_k,
            "extras": list(counts.extras),
            "source": counts.source,
            "notes": list(counts.notes),
        }
    )
    return 0


def layer_numbers(text: str) -> tuple[int, ...]:
    """An argparse type: "3-47" or "1,3,5", or both, as ascending numbers."""
    from moe_core.routing.recordings.pieces import layers_of_text

    try:
        return layers_of_text(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
