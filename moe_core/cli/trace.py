"""`moescope trace`: where every token of a text goes, as a file."""

from __future__ import annotations

import argparse

from moe_core.cli.models import load_language_model, said_of
from moe_core.cli.options import Parser, add_model, add_step, command, finish, whole
from moe_core.cli.output import Output, check_regular, progress_on_stderr
from moe_core.cli.trace_server import add_server, ask_server, refuse_options_of_a_server
from moe_core.errors import UsageError
from moe_core.program import program
from moe_core.words import count_of


def parser() -> Parser:
    """Its options."""
    parser = command(
        "trace",
        "Record which experts every token of a text goes to, as a Parquet file that pandas, DuckDB and Polars read.\n"
        "The file is written as the text is read; the routing is never all in memory.",
        'trace --run demo --text "The tenant shall pay 4.5 percent." --out out/trace.parquet',
        "trace --model ../some-moe --data texts.jsonl --out out/trace.parquet --dtype bfloat16",
        "trace --server http://127.0.0.1:8000 --data texts.jsonl --out out/trace.parquet",
    )
    add_model(parser, "reads the text", required=False)
    add_step(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", metavar="T", help="the text itself; token ids for a model without tokenizer")
    source.add_argument("--data", metavar="PATH", help="a file or folder of documents, as for training")
    parser.add_argument("--out", metavar="X.parquet", required=True, help="file to write")
    parser.add_argument(
        "--tokens-per-batch", metavar="N", type=whole(2, 10_000_000), help="tokens that go through the model "
        "together; windows of a long text are no longer than that (default 4096). Fewer take less memory",
    )  # fmt: skip
    add_server(parser)
    return finish(parser, trace)


def trace(arguments: argparse.Namespace, output: Output) -> int:
    """Send a text or documents through a run, another model or a server, and write the routing as it comes."""
    check_regular(arguments.out, "--out")
    if arguments.text == "":
        raise UsageError("there is no text to trace; expected at least one character")
    if arguments.server is None:
        refuse_options_of_a_server(arguments)
    from moe_core.data.document import Document
    from moe_core.data.shards.documents_at import check_tokenizer, documents_at

    documents = (
        [Document(arguments.text, "text", "text", "")] if arguments.text is not None else documents_at(arguments.data)
    )
    if arguments.server is not None:
        return ask_server(arguments, documents, output)
    model = load_language_model(arguments, arguments.step)
    if arguments.data is not None and arguments.run is not None:
        check_tokenizer(arguments.data, model.tokenizer)
    from moe_core.inference.tracing import MAX_LOGITS_BYTES, logits_bytes, logits_fit, write_documents_trace
    from moe_core.routing.trace.independence import independence_note
    from moe_core.routing.trace.parquet import count_ids

    with progress_on_stderr() as progress:
        routing = write_documents_trace(
            model, documents, arguments.out, tokens_per_batch=arguments.tokens_per_batch, progress=progress
        )
    kept = logits_fit(model, routing.num_tokens)
    read = len(count_ids(routing.path, "document_id")[0])
    computed = said_of(model)
    output.say(
        f"{count_of(routing.num_tokens, 'token')} of {count_of(read, 'document')} through "
        f"{count_of(routing.num_layers, 'MoE layer')} of {model.name} in {arguments.out}"
    )
    output.say(f"Computed on {computed['device']} in {computed['dtype']}.")
    if not kept:
        size = logits_bytes(model, routing.num_tokens) / 2**20
        output.say(
            f"Without the routers' logits, which would take {size:,.0f} MiB (kept up to {MAX_LOGITS_BYTES // 2**20}): "
            "experts and weights are all there."
        )
    if dependent := independence_note(routing):
        output.say(f"Note: {dependent}")
    output.say(f"Look at it:  {program()} plots --trace {arguments.out} --out out/plots")
    output.figures(
        {
            "run": arguments.run,
            "model": arguments.model,
            "out": arguments.out,
            "tokens": routing.num_tokens,
            "documents": read,
            "domains": list(routing.domains),
            "layers": list(routing.layers),
            "num_experts": routing.num_experts,
            "top_k": routing.top_k,
            "router_logits": kept,
            "independence": dependent,
            **computed,
        }
    )
    return 0
