"""`moescope trace --server`: the same of a model that a server runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from moe_core.cli.convert import layer_numbers
from moe_core.cli.exits import Terminated, printable
from moe_core.cli.options import Parser, positive, whole
from moe_core.cli.output import Output, progress_on_stderr
from moe_core.errors import UsageError
from moe_core.program import program
from moe_core.server.paths import KEY_VARIABLE
from moe_core.words import count_of

if TYPE_CHECKING:
    from moe_core.data.document import Document

ONLY_WITH_SERVER = (
    *("server_kind", "concurrency", "timeout", "max_new_tokens", "incomplete", "api_key_from", "tokenizer"),
    *("num_experts", "top_k", "layers"),
)
"""Options that mean nothing to a model of our own; None where they were not given."""


def add_server(parser: Parser) -> None:
    """--server and what goes with it. Every default is None, so that one without --server is noticed."""
    group = parser.add_argument_group(
        "a server",
        "Moescope's own (serve), or vLLM or SGLang, started with --enable-return-routed-experts. --model says which\n"
        "of its models, if it has several. Answers are kept beside --out until the trace is written: the same command\n"
        "goes on after a stop.",
    )
    group.add_argument("--server", metavar="URL", help="where it is, such as http://127.0.0.1:8000")
    group.add_argument(
        "--server-kind", choices=("auto", "vllm", "sglang"), help="default auto: by what the server answers"
    )
    group.add_argument(
        "--max-new-tokens", metavar="N", type=whole(1, 1_000_000), help="let it write so many tokens after each text, "
        "and trace them too (default: the text alone)",
    )  # fmt: skip
    group.add_argument("--concurrency", metavar="N", type=whole(1, 1024), help="questions at once (default 8)")
    group.add_argument("--timeout", metavar="S", type=positive(86_400), help="seconds for one answer (default 600)")
    group.add_argument(
        "--incomplete", choices=("refuse", "keep"), help="a text that is longer than the server's context, or whose "
        "beginning came from a cache without routing: keep what there is of it (default refuse)",
    )  # fmt: skip
    group.add_argument(
        "--api-key-from", metavar="VARIABLE", help="environment variable that holds the server's key (default "
        f"{KEY_VARIABLE}, where it is set)",
    )  # fmt: skip
    group.add_argument("--tokenizer", metavar="F", help="tokenizer.json of the model, for the tokens' exact texts "
        "(default: the server is asked)")  # fmt: skip
    group.add_argument("--num-experts", metavar="E", type=whole(2, 32_767), help="experts per layer, which no server "
        "says (default: the largest that was chosen, + 1)")  # fmt: skip
    group.add_argument("--top-k", metavar="K", type=whole(1, 32_767), help="experts per token and layer, if the "
        "server does not say (SGLang)")  # fmt: skip
    group.add_argument("--layers", metavar="L", type=layer_numbers, help="numbers of the layers to keep, such as 3-47")


def refuse_options_of_a_server(arguments: argparse.Namespace) -> None:
    """Raises UsageError where there is neither model nor server, or an option of a server without one."""
    if arguments.run is None and arguments.model is None:
        raise UsageError("one of the arguments --run --model --server is required; see the command's --help")
    for name in ONLY_WITH_SERVER:
        if getattr(arguments, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} goes with --server")


def ask_server(arguments: argparse.Namespace, documents: Sequence[Document], output: Output) -> int:
    """Ask a server for the routing of documents and write its trace."""
    _refuse_options_of_a_model(arguments)
    key = _api_key(arguments.api_key_from)
    from moe_core.client import Asking, Limits, trace_server
    from moe_core.inference.tokenizer_texts import TokenizerTexts
    from moe_core.routing import RoutingTrace
    from moe_core.routing.trace.independence import independence_note

    texts = None if arguments.tokenizer is None else TokenizerTexts(Path(arguments.tokenizer))
    asking = Asking(
        engine=arguments.server_kind or "auto",
        model=arguments.model,
        max_new_tokens=arguments.max_new_tokens or 0,
        concurrency=arguments.concurrency or Asking.concurrency,
        incomplete=arguments.incomplete or Asking.incomplete,
    )
    with _saying_what_is_kept(arguments.out), progress_on_stderr() as progress:
        asked = trace_server(
            arguments.server,
            documents,
            arguments.out,
            asking=asking,
            limits=Limits(seconds=arguments.timeout or Limits.seconds),
            api_key=key,
            num_experts=arguments.num_experts,
            top_k=arguments.top_k,
            layers=arguments.layers,
            texts=texts,
            origin="text" if arguments.data is None else Path(arguments.data).name,
            progress=progress,
        )
    found = asked.trace
    output.say(
        f"{count_of(found.tokens, 'token')} of {count_of(found.documents, 'document')} through "
        f"{count_of(len(found.layers), 'MoE layer')} of {asked.model} ({asked.engine}) in {arguments.out}"
    )
    if asked.resumed:
        output.say(f"{count_of(asked.resumed, 'answer')} had been kept by an earlier command.")
    for note in found.notes:
        output.say(f"Note: {note}.")
    if dependent := independence_note(RoutingTrace.open(arguments.out)):
        output.say(f"Note: {dependent}")
    output.say(f"Look at it:  {program()} plots --trace {arguments.out} --out out/plots")
    output.figures(
        {
            "server": arguments.server,
            "engine": asked.engine,
            "model": asked.model,
            "out": arguments.out,
            "resumed": asked.resumed,
            **asdict(found),
            "independence": dependent,
        }
    )
    return 0


@contextmanager
def _saying_what_is_kept(out: str) -> Iterator[None]:
    """After Ctrl-C or a signal, say that nothing is lost."""
    from moe_core.client.kept_answers import kept_beside

    try:
        yield
    except (KeyboardInterrupt, Terminated):
        if kept_beside(out).exists():
            kept = f"The answers so far are kept in {str(kept_beside(out))!r}: the same command goes on from there."
            print(printable(kept), file=sys.stderr)
        raise


def _refuse_options_of_a_model(arguments: argparse.Namespace) -> None:
    given = {
        "--run": arguments.run is not None,
        "--step": arguments.step is not None,
        "--trust-remote-code": arguments.trust_remote_code,
        "--device": arguments.device != "auto",
        "--dtype": arguments.dtype != "auto",
        "--tokens-per-batch": arguments.tokens_per_batch is not None,
    }
    for name in (name for name, is_given in given.items() if is_given):
        raise UsageError(f"{name} does not go with --server, whose model runs elsewhere")


def _api_key(variable: str | None) -> str | None:
    """The key, from the environment alone: what stands on a command line is seen by everyone on the machine."""
    key = os.environ.get(variable or KEY_VARIABLE)
    if variable and not key:
        # The name is not repeated: it may be the key itself.
        raise UsageError(
            f"the environment has no variable of the name that --api-key-from gives; expected one as {KEY_VARIABLE}"
        )
    return key or None
