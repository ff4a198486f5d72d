"""The options of every command. Nothing heavy is imported, so that --help answers at once."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Sequence

from moe_core import __version__
from moe_core.cli import (
    analysis,
    commands,
    convert,
    dashboard,
    exchange,
    measuring,
    reporting,
    suite,
    tracing,
    training,
)
from moe_core.cli.options import Parser, add_device, add_json, add_model, command, finish, whole
from moe_core.config.presets import PRESETS
from moe_core.errors import UsageError
from moe_core.inference.device import DEVICES
from moe_core.program import program

ABLATION_MODES = ("zero", "renormalise", "reroute")
IMPORT_FORMATS = ("auto", "vllm", "sglang", "llama.cpp", "parquet")
PLOT_FORMATS = ("png", "svg", "pdf", "html", "csv")

TRAIN_DESCRIPTION = """\
Train a Mixture-of-Experts language model, then score it on unseen text and write checkpoints/<run>/report.md.
Without options: the default model on synthetic text (meant for 30 minutes on two cores); --quick: at most 3 minutes."""

COMMANDS_TEXT = """\
commands (each has its own --help):
  data       write the synthetic documents and measure their quality
  trace      record which experts every token of a text goes to
  convert    make a trace of routing that vLLM, SGLang or llama.cpp recorded
  plots      write every figure of a run or a trace
  report     write one HTML file with all pictures, verdicts and numbers of a run
  generate   continue a text, token by token
  ablate     switch experts off one by one and measure what is lost
  runs       list the runs with their state and key figures
  slim       make a run small enough to ship
  export     write a run as a checkpoint that Hugging Face transformers loads
  import     make a run of a checkpoint of Hugging Face transformers
  presets    list the named configurations with their size, cost and memory
  bench      time Moescope against its peers and the machine's limit
  compare-dense    the mixture against dense models of equal cost and of equal size, over several seeds
  compare-routers  routers and ways of balancing against each other under one budget
  dashboard  open the dashboard in a browser

any configuration key can be given as --section.key VALUE, in a HOCON file (--config) or as an environment variable
MOESCOPE_SECTION__KEY; the command line wins over the environment, that over the file.

examples:"""
EXAMPLES = (
    "--quick",
    "--quick --run mine --data texts.jsonl --seed 1",
    "--run wide --model.num_experts 32 --training.steps 5000",
    "--run wide --resume",
    "--preset blues --training.steps 200",
    "--quick --run tuned --init-from wide --data texts.jsonl",
    "--evaluate --run wide --json figures.json",
    "--evaluate --suite --run wide",
)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command line. The result holds `handler(parsed, output) -> exit code`, `json` and the options.

    Raises UsageError for anything unknown; SystemExit(0) after printing help.
    """
    if arguments and arguments[0] in COMMANDS:
        return _parse_command(COMMANDS[arguments[0]](), arguments[1:])
    parsed, rest = _train_parser().parse_known_args(arguments)
    for argument in rest:
        _refuse_misplaced_command(argument, rest)
    parsed.overrides = rest
    suite.refuse_without_suite(parsed)
    parsed.handler = training.train
    if parsed.evaluate:
        parsed.handler = suite.evaluate_suite if parsed.suite else training.evaluate
        _refuse_training_options(parsed)
    elif parsed.device is not None:
        raise UsageError(f"--device {parsed.device} goes with --evaluate; to train there, --training.device")
    return parsed


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
    if argument in COMMANDS:
        raise UsageError(f"{argument!r} must come first: {program()} {argument} ...")
    near = difflib.get_close_matches(argument, list(COMMANDS), n=1)
    hint = f"did you mean {near[0]!r}" if near else f"expected one of {', '.join(COMMANDS)}, or options only"
    raise UsageError(f"unknown command {argument[:60]!r}; {hint}; see `{program()} --help`")


def _refuse_training_options(parsed: argparse.Namespace) -> None:
    given = {
        "--resume": parsed.resume,
        "--init-from": parsed.init_from is not None,
        "--data": parsed.data is not None,
        "--seed": parsed.seed is not None and not parsed.suite,
        "--config": parsed.config is not None,
        "--section.key": bool(parsed.overrides),
    }
    for option, is_given in given.items():
        if is_given:
            raise UsageError(f"--evaluate scores a trained run as it is and takes no {option}; leave it out")


def _train_parser() -> Parser:
    epilog = "\n".join([COMMANDS_TEXT, *(f"  {program()} {example}" for example in EXAMPLES)])
    parser = Parser(program(), TRAIN_DESCRIPTION, epilog)
    parser.add_argument("--version", action="version", version=f"moescope {__version__}")
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--preset", metavar="NAME", choices=PRESETS, help=f"which model and training: {', '.join(PRESETS)} (default: "
        f"default); `{program()} presets` shows what each one is and needs",
    )  # fmt: skip
    size.add_argument(
        "--quick", dest="preset", action="store_const", const="quick", help="the same as --preset quick: a smaller "
        "model, trained in at most 3 minutes",
    )  # fmt: skip
    parser.add_argument(
        "--run", metavar="NAME", help="name of the run (default: that of the preset; with --evaluate the run updated "
        "last)",
    )  # fmt: skip
    parser.add_argument(
        "--data", metavar="PATH", help="your own text: .jsonl, .parquet, .csv, .txt, or a folder of one folder a domain"
    )
    parser.add_argument(
        "--seed", metavar="N", help="seed of the data, its split, the weights and the order of training"
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue a run that was stopped, with the configuration it has"
    )
    parser.add_argument(
        "--init-from", metavar="NAME", help="fine-tune: a new run that starts from the weights and the tokenizer of "
        "run NAME; lower --training.learning_rate and --training.muon_learning_rate keep more of what it knows",
    )  # fmt: skip
    parser.add_argument("--config", metavar="FILE", help="HOCON file with configuration keys")
    parser.add_argument("--evaluate", action="store_true", help="score a trained run instead of training one")
    parser.add_argument(
        "--device", choices=DEVICES, help="with --evaluate: where to compute (default cpu; auto = cuda where present); "
        "to train: --training.device",
    )  # fmt: skip
    add_json(parser)
    suite.add_suite(parser)
    return parser


def _data_parser() -> Parser:
    parser = command(
        "data",
        "Write the synthetic documents as train.jsonl, validation.jsonl and unseen.jsonl, and measure their quality.",
        "data --out out/corpus --documents 200 --seed 3",
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="folder to write to; created if missing")
    parser.add_argument(
        "--documents", metavar="N", type=whole(10, 1_000_000), default=1000, help="training documents per domain "
        "(default 1000); the held-out splits have a 25th each",
    )  # fmt: skip
    parser.add_argument("--seed", metavar="S", type=whole(0, 2**32 - 1), default=0, help="default 0")
    return finish(parser, commands.data)


def _trace_parser() -> Parser:
    parser = command(
        "trace",
        "Record which experts every token of a text goes to, as a Parquet file that pandas, DuckDB and Polars read.\n"
        "The file is written as the text is read; the routing is never all in memory.",
        'trace --run demo --text "The tenant shall pay 4.5 percent." --out out/trace.parquet',
        "trace --model ../some-moe --data texts.jsonl --out out/trace.parquet --dtype bfloat16",
    )
    add_model(parser, "reads the text")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", metavar="T", help="the text itself; token ids for a model without tokenizer")
    source.add_argument("--data", metavar="PATH", help="a file or folder of documents, as for training")
    parser.add_argument("--out", metavar="X.parquet", required=True, help="file to write")
    parser.add_argument(
        "--tokens-per-batch", metavar="N", type=whole(2, 10_000_000), help="tokens that go through the model "
        "together; windows of a long text are no longer than that (default 4096). Fewer take less memory",
    )  # fmt: skip
    return finish(parser, tracing.trace)


def _convert_parser() -> Parser:
    parser = command(
        "convert",
        "Make a trace of routing that was recorded elsewhere: routed_experts of vLLM or SGLang (.npy, .npz, .json,\n"
        ".jsonl), a moe-trace CSV of llama.cpp, or a Parquet table. docs/trace-format.md describes them all.",
        "convert --from answers.jsonl --tokenizer tokenizer.json --num-experts 128 --to out/x.parquet",
    )
    parser.add_argument("--from", dest="source", metavar="X", required=True, help="the recording")
    parser.add_argument("--to", metavar="X.parquet", required=True, help="file to write")
    parser.add_argument("--format", choices=IMPORT_FORMATS, default="auto", help="default auto: by name and content")
    parser.add_argument("--token-ids", metavar="F", help="token ids, if the recording has none: .npy, .json, .csv")
    parser.add_argument("--tokenizer", metavar="F", help="tokenizer.json of the model, for the tokens' texts")
    parser.add_argument("--num-experts", metavar="E", type=whole(2, 32_767), help="experts per layer, if the "
        "recording does not say")  # fmt: skip
    parser.add_argument("--top-k", metavar="K", type=whole(1, 32_767), help="experts per token and layer, if the "
        "recording does not say")  # fmt: skip
    parser.add_argument("--layers", metavar="L", type=convert.layer_numbers, help="numbers of the recorded layers, "
        "such as 3-47; if fewer are named than were recorded, only these are kept")  # fmt: skip
    return finish(parser, convert.convert)


def _plots_parser() -> Parser:
    parser = command(
        "plots",
        "Write every figure of a run or of a trace to files, named after what they show.",
        "plots --run demo --out out/plots --format png --format csv",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--run", metavar="NAME", help="figures of this run: training, routing of held-out text, and what `ablate` found"
    )
    source.add_argument("--trace", metavar="X.parquet", help="figures of this trace")
    parser.add_argument("--out", metavar="DIR", required=True, help="folder to write to; created if missing")
    parser.add_argument(
        "--format", choices=PLOT_FORMATS, action="append", help="repeatable (default png); csv holds the numbers"
    )
    return finish(parser, reporting.plots)


def _report_parser() -> Parser:
    parser = command(
        "report",
        "Write one HTML file with everything about a run: pictures, verdicts, numbers and the model. It can be read\n"
        "without a network or a program, and printed.",
        "report --run demo --out out/demo.html",
    )
    parser.add_argument("--run", metavar="NAME", required=True, help="run to report on")
    parser.add_argument("--out", metavar="FILE", help="file to write (default out/report-NAME.html)")
    return finish(parser, reporting.report)


def _generate_parser() -> Parser:
    parser = command(
        "generate",
        "Continue a text. The text appears on stdout as it is written, the speed on stderr.",
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
        "--ablate", metavar="L:E", action="append", default=[], help="switch off expert E of layer L, both counted "
        "from 0; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--force", metavar="L:E", action="append", default=[], help="make every token visit expert E of layer L; "
        "repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--mode", choices=ABLATION_MODES, help="what an ablated expert leaves behind: nothing (zero, the default), the "
        "same total weight on the token's other experts (renormalise), or another choice (reroute)",
    )  # fmt: skip
    return finish(parser, commands.generate)


def _ablate_parser() -> Parser:
    parser = command(
        "ablate",
        "Switch experts off one by one and measure the loss on each domain. The whole map also says whether anything\n"
        "observed predicts which experts matter. Results are kept in the run's folder: repeat the command to\n"
        "continue after an interruption.",
        "ablate --run demo",
        "ablate --run demo --layer 2 --expert 5 --mode reroute",
    )
    parser.add_argument("--run", metavar="NAME", required=True, help="run whose newest checkpoint is examined")
    add_device(parser)
    parser.add_argument("--layer", metavar="L", type=whole(0, 999_999), help="only this layer, counted from 0")
    parser.add_argument("--expert", metavar="E", type=whole(0, 999_999), help="only this expert of --layer")
    parser.add_argument(
        "--mode", choices=ABLATION_MODES, default="zero", help="what the expert leaves behind: nothing (zero, the "
        "default), the same total weight on the token's other experts (renormalise), or another choice (reroute)",
    )  # fmt: skip
    parser.add_argument(
        "--data", metavar="PATH", help="read this text, a file or folder of documents as for training, instead of the "
        "run's held-out text: at most 2048 tokens of each domain, always from the same documents",
    )  # fmt: skip
    return finish(parser, analysis.ablate)


def _runs_parser() -> Parser:
    parser = command("runs", "List the runs, the last updated first, with their state and key figures.",
                      "runs --json runs.json")  # fmt: skip
    return finish(parser, commands.runs)


def _slim_parser() -> Parser:
    parser = command(
        "slim",
        "Make a run small enough to ship: bfloat16 weights, no optimizer state. It can then no longer be resumed.",
        "slim --run demo",
    )
    parser.add_argument("--run", metavar="NAME", required=True, help="run to change")
    parser.add_argument(
        "--max-mib", metavar="M", type=whole(1, 1_000_000), default=10, help="refuse, changing nothing, if the run "
        "would still take more (default 10)",
    )  # fmt: skip
    return finish(parser, commands.slim)


def _export_parser() -> Parser:
    parser = command(
        "export",
        "Write a run's newest checkpoint for Hugging Face transformers, in the architecture that computes exactly\n"
        "the same: mixtral, qwen3_moe, qwen2_moe, granitemoeshared or glm4_moe.\n"
        "transformers is not needed.",
        "export --run demo --to out/demo-hf",
    )
    parser.add_argument("--run", metavar="NAME", required=True, help="run whose newest checkpoint is exported")
    parser.add_argument("--to", metavar="DIR", required=True, help="folder to write; must be missing or empty")
    parser.add_argument(
        "--unseen", metavar="FILE.jsonl", help="also write the unseen text that --evaluate scores, for lm-eval "
        "(docs/lm_eval)",
    )  # fmt: skip
    return finish(parser, exchange.export)


def _import_parser() -> Parser:
    parser = command(
        "import",
        "Make a run from a checkpoint of Hugging Face transformers whose architecture equals ours (see export). Look\n"
        f"at it, generate with it, or fine-tune it: {program()} --run tuned --init-from NAME --data texts.jsonl",
        "import --from out/demo-hf --run demo-again",
    )
    parser.add_argument(
        "--from", dest="source", metavar="DIR", required=True, help="folder with config.json, safetensors and tokenizer"
    )
    parser.add_argument("--run", metavar="NAME", required=True, help="name of the new run")
    parser.add_argument(
        "--data", metavar="PATH", help="your own text, as for training: the run is scored on its held-out parts and "
        "shown with them (default: synthetic documents)",
    )  # fmt: skip
    return finish(parser, exchange.import_)


COMMANDS: dict[str, Callable[[], Parser]] = {
    "data": _data_parser,
    "trace": _trace_parser,
    "convert": _convert_parser,
    "plots": _plots_parser,
    "report": _report_parser,
    "generate": _generate_parser,
    "ablate": _ablate_parser,
    "runs": _runs_parser,
    "slim": _slim_parser,
    "export": _export_parser,
    "import": _import_parser,
    "presets": measuring.presets_parser,
    "bench": measuring.bench_parser,
    "compare-dense": measuring.compare_dense_parser,
    "compare-routers": measuring.compare_routers_parser,
    "dashboard": dashboard.parser,
}
