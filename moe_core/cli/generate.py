"""`moescope generate`: a text goes on, token by token."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from moe_core.ablation_modes import MODES
from moe_core.cli.exits import printable
from moe_core.cli.models import load_language_model
from moe_core.cli.options import Parser, add_model, command, existing_run, finish, whole
from moe_core.cli.output import Output, progress_on_stderr
from moe_core.errors import UsageError
from moe_core.words import count_of

if TYPE_CHECKING:
    from moe_core.routing import Intervention


def parser() -> Parser:
    """Its options."""
    parser = command(
        "generate",
        "Continue a text. The text appears on stdout as it is written, the speed on stderr. --json tells the\n"
        "experts of every token, those of the prompt included.",
        'generate --run demo --prompt "The tenant shall" --max-new-tokens 60 --temperature 0',
        'generate --run demo --prompt "The tenant shall" --ablate 2:5 --ablate 3:1 --mode reroute',
        'generate --run demo --prompt "The tenant shall" --force 2:5',
    )
    add_model(parser, "writes")
    parser.add_argument("--prompt", metavar="P", required=True, help="the text to continue")
    parser.add_argument(
        "--max-new-tokens",
        metavar="N",
        type=whole(1, 1_000_000),
        default=200,
        help="most tokens to write (default 200)",
    )
    parser.add_argument(
        "--temperature", metavar="T", type=float, default=0.8, help="0 = always the likeliest token (default 0.8)"
    )
    parser.add_argument(
        "--top-k", metavar="K", type=whole(0, 1_000_000), default=50, help="draw from the K likeliest "
        "tokens; 0 = from all (default 50)",
    )  # fmt: skip
    parser.add_argument(
        "--top-p", metavar="P", type=float, default=0.95, help="draw from the likeliest tokens that hold this "
        "share of the probability (default 0.95)",
    )  # fmt: skip
    parser.add_argument("--seed", metavar="S", type=whole(0, 2**32 - 1), default=0, help="default 0")
    parser.add_argument(
        "--stop", metavar="TEXT", action="append", default=[], help="end before this text, which is never shown; "
        "repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--ablate", metavar="L:E", action="append", default=[], help="switch off expert E of layer L, both counted "
        "from 0; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--force", metavar="L:E", action="append", default=[], help="make every token visit expert E of layer L; "
        "repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--mode", choices=MODES, help="what an ablated expert leaves behind: nothing (zero, the default), the "
        "same total weight on the token's other experts (renormalise), or another choice (reroute)",
    )  # fmt: skip
    return finish(parser, generate)


def generate(arguments: argparse.Namespace, output: Output) -> int:
    """Continue a prompt: text on stdout as it comes, speed on stderr."""
    if arguments.run is not None:
        existing_run(arguments.run)
    intervention = _intervention(arguments)
    from moe_core.inference.engine import Engine, GeneratedToken, PromptRead, Request
    from moe_core.inference.sampling import SamplingConfig

    sampling = SamplingConfig(
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        seed=arguments.seed,
    )
    model = load_language_model(arguments)
    request = Request(arguments.prompt, sampling, tuple(arguments.stop), intervention)
    told = model.tokenizer.token_text
    read: list[dict[str, Any]] = []
    tokens: list[dict[str, Any]] = []
    text = ""
    began = time.perf_counter()
    with progress_on_stderr() as progress:
        for event in Engine(model).start(request):
            if isinstance(event, PromptRead):
                pairs = zip(event.token_ids, event.experts.tolist(), strict=True)
                read = [{"text": told(token_id), "experts": experts} for token_id, experts in pairs]
                continue
            if isinstance(event, GeneratedToken):
                tokens.append({"text": told(event.token_id), "experts": event.experts.tolist()})
            text += event.text
            if output.json_only:
                progress("generating", len(tokens), sampling.max_new_tokens)
            else:
                print(printable(event.text), end="", flush=True)
    seconds = time.perf_counter() - began
    if not output.json_only:
        print(flush=True)
    speed = len(tokens) / seconds
    notes = [f"{count_of(len(tokens), 'token')} in {seconds:.1f} s, {speed:.0f} tokens/s", intervention.describe()]
    print("; ".join(filter(None, notes)), file=sys.stderr)
    output.figures(
        {
            "prompt": arguments.prompt,
            "intervention": asdict(intervention),
            "text": text,
            "tokens_per_second": speed,
            "prompt_tokens": read,
            "tokens": tokens,
        }
    )
    return 0


def _intervention(arguments: argparse.Namespace) -> Intervention:
    from moe_core.routing import Intervention

    if arguments.mode is not None and not arguments.ablate:
        raise UsageError(f"--mode {arguments.mode} says what ablated experts leave behind; add --ablate L:E")
    return Intervention(
        ablate=Intervention.parse_experts(arguments.ablate),
        force=Intervention.parse_experts(arguments.force),
        mode=arguments.mode or "zero",
    )
