"""`moescope agree`: how far two routings of the same tokens agree, and whether they differ in ties or in earnest."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from moe_core.cli.cache_options import add_cache, cache_of
from moe_core.cli.figure_files import add_format, chosen_formats, figure_records, write_figures
from moe_core.cli.options import Parser, add_model, command, existing_run, finish, folder_name, output_folder, whole
from moe_core.cli.output import Output, progress_on_stderr
from moe_core.errors import TraceError, UsageError
from moe_core.files import user_path
from moe_core.inference.cache_choice import READ_SINGLY
from moe_core.inference.rounding import FEWEST_BITS, GROUP_SIZE, MOST_BITS, WHAT
from moe_core.progress import Progress
from moe_core.words import count_of

if TYPE_CHECKING:
    from moe_core.data.tokens import TokenDataset
    from moe_core.inference.protocol import LanguageModel
    from moe_core.inference.subjects import Live
    from moe_core.inference.two_readings import Reading
    from moe_core.routing import AnyRouting, RoutingTrace
    from moe_core.routing.measures.agreement import Agreement
    from moe_core.routing.measures.flip_accumulation import Accumulation
    from moe_core.routing.measures.flip_margins import FlipMargins
    from moe_core.runs.folder import RunFolder

TOKENS_PER_DOMAIN = 4096


def parser() -> Parser:
    """Its options."""
    parser = command(
        "agree",
        "Say how far two routings of the same tokens agree (engines, precisions, quantisations, checkpoints): the\n"
        "share of identical choices with its interval and chance level, whether the choices that differ had been\n"
        "close, and whether they carry on from layer to layer.\n"
        "A and B are files that `open` opens, or runs: NAME reads the held-out text with the newest checkpoint,\n"
        "NAME@STEP is the snapshot of a step. With --run or --model instead of both, one model reads the same text\n"
        "twice: as it is, and in another precision (--dtype), with its weights rounded (--quantise), or with keys and\n"
        "values of fewer bits (--cache); with it instead of B, the model reads the tokens of A.",
        "agree float32.parquet bfloat16.parquet",
        "agree demo@100 demo@350",
        "agree --run demo --dtype bfloat16",
        "agree --run demo --quantise 4 --group-size 32 --json agree.json",
        "agree --run demo --cache int4",
        "agree --model path/to/mixtral --quantise 8 --quantise-what experts --data texts.jsonl",
        "agree recorded.jsonl --run demo",
    )
    parser.add_argument("routings", metavar="ROUTING", nargs="*", help="A and B: a file, a run, or a run@step")
    add_model(
        parser,
        "reads the text",
        required=False,
        dtype_help="precision of the second reading (default auto: as the first, which is as the weights were saved)",
    )
    change = parser.add_argument_group("--quantise", "weights rounded to few bits and back, for the second reading")
    change.add_argument(
        "--quantise", metavar="BITS", type=whole(FEWEST_BITS, MOST_BITS), help=f"bits of a weight, {FEWEST_BITS} to "
        f"{MOST_BITS}: round to nearest, asymmetric, per group along the input dimension (needs "
        "requirements-low-precision.txt)",
    )  # fmt: skip
    change.add_argument(
        "--group-size", metavar="N", type=whole(1, 1_000_000), help=f"weights with one scale (default {GROUP_SIZE})"
    )
    change.add_argument(
        "--quantise-what", choices=WHAT, help="all (default): experts, attention, shared and dense blocks, head; "
        "experts: the routed experts alone. Routers and norms are left as they are",
    )  # fmt: skip
    add_cache(parser, ", for the second reading; both are then read token by token")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--text", metavar="T", help="read this text")
    source.add_argument(
        "--data", metavar="PATH", help="read this file or folder of documents, as for training (default: what --run "
        "was not trained on; for --model generated text in four domains)",
    )  # fmt: skip
    parser.add_argument(
        "--tokens-per-domain", metavar="N", type=whole(2, 10_000_000),
        help=f"of the text that is read, at most (default {TOKENS_PER_DOMAIN}; with --cache {READ_SINGLY})",
    )  # fmt: skip
    parser.add_argument(
        "--match-experts", action="store_true", help="give each expert of B the number of the one in A that serves "
        "most of the same tokens: for models that were trained separately",
    )  # fmt: skip
    parser.add_argument("--save-traces", metavar="DIR", help="keep both routings, as A.parquet and B.parquet")
    parser.add_argument("--out", metavar="DIR", help="write the figures there: agreement and margins by layer")
    add_format(parser)
    return finish(parser, agree)


class Two(NamedTuple):
    """What is held against each other."""

    names: tuple[str, str]
    a: RoutingTrace
    b: RoutingTrace
    readings: tuple[Reading, Reading] | None = None
    """Where one model read the text twice."""
    left_out: int = 0
    """Documents of A that B could not read again."""


def agree(arguments: argparse.Namespace, output: Output) -> int:
    """Print how far A and B agree, where they do not, and what it costs."""
    _check(arguments)
    folder = None if arguments.save_traces is None else folder_name(arguments.save_traces, "--save-traces")
    pictures = None if arguments.out is None else output_folder(arguments.out)
    with progress_on_stderr() as progress:
        two = _two(arguments, progress)
        two = _matched(two) if arguments.match_experts else two
        progress("comparing", 0, 1)
        told = _compared(two)
        figures = _say(two, told, output)
        if pictures is not None:
            figures |= {"figures": _drawn(told, pictures, arguments.format, progress)}
            output.say(f"{count_of(len(figures['figures']), 'figure')} in {pictures}")
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for letter, trace in (("A", two.a), ("B", two.b)):
                trace.save(folder / f"{letter}.parquet")
            output.say(f"Both routings are in {folder}")
    output.figures(figures | {"traces": None if folder is None else str(folder)})
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what does not go together before anything is read. Raises UsageError."""
    given, has_model = len(arguments.routings), arguments.run is not None or arguments.model is not None
    if given + (has_model and given < 2) != (1 if not given and has_model else 2) or (given == 2 and has_model):
        raise UsageError(
            f"{count_of(given, 'routing')}{' and a model' if has_model else ''}; expected A and B, A with --run or "
            "--model, or --run or --model alone with --dtype, --quantise or --cache"
        )
    has_cache = arguments.cache is not None
    changed = arguments.dtype != "auto" or arguments.quantise is not None or has_cache
    if has_model and not given and not changed:
        raise UsageError(
            "one model reads the text twice; say how the second time: --dtype bfloat16, --quantise 4 or --cache int4"
        )
    if not has_model and changed:
        raise UsageError("--dtype, --quantise and --cache say how a model reads; give --run or --model")
    cache_of(arguments)
    if given and (arguments.data is not None or arguments.text is not None):
        raise UsageError("the text is that of the routings; --data and --text go with --run or --model alone")
    if arguments.quantise is None and (arguments.group_size is not None or arguments.quantise_what is not None):
        raise UsageError("--group-size and --quantise-what go with --quantise BITS")
    if arguments.model is None and arguments.trust_remote_code:
        raise UsageError("--trust-remote-code goes with --model; a run of our own has no code of its own")
    if arguments.format is not None and arguments.out is None:
        raise UsageError("--format goes with --out DIR, where the figures are written")
    if arguments.tokens_per_domain is None:
        arguments.tokens_per_domain = READ_SINGLY if has_cache else TOKENS_PER_DOMAIN
    if arguments.text == "":
        raise UsageError("there is no text to read; expected at least one character")
    if arguments.quantise is not None:
        from moe_core.inference.rounding import check_library

        check_library()


def _two(arguments: argparse.Namespace, progress: Progress) -> Two:
    if not arguments.routings:
        return _read_twice(arguments, progress)
    if len(arguments.routings) == 1:
        return _against_model(arguments, progress)
    first, second = arguments.routings
    runs = [_run_name(one) for one in (first, second)]
    if None not in runs and not any("@" in one for one in (first, second)):
        return _through_both(first, second, progress)
    with tempfile.TemporaryDirectory(prefix="moescope-") as scratch:
        routings = [
            _opened(one, Path(scratch) / f"{letter}.parquet", progress)
            for letter, one in zip("AB", (first, second), strict=True)
        ]
        a, b = _tokens(routings, (first, second))
    return Two((first, second), a, b)


def _tokens(routings: Sequence[AnyRouting], names: Sequence[str]) -> list[RoutingTrace]:
    """All in memory, or where one is larger than that the same sample of documents of each. Raises TraceError for
    counts."""
    from moe_core.routing import RoutingCounts, RoutingTrace
    from moe_core.routing.measured import SAMPLE_TOKENS

    traces = []
    for routing, name in zip(routings, names, strict=True):
        if isinstance(routing, RoutingCounts):
            raise TraceError(
                f"{name!r} holds counts, without single tokens; expected a trace, or a recording of tokens"
            )
        traces.append(routing)
    fits = all(isinstance(one, RoutingTrace) for one in traces)
    return [one.sample(one.num_tokens if fits else SAMPLE_TOKENS) for one in traces]


def _run_name(given: str) -> str | None:
    """The run that A or B names; None for a file."""
    return None if user_path(given).exists() else given.partition("@")[0]


def _opened(given: str, scratch: Path, progress: Progress) -> AnyRouting:
    """The routing of a file, of a run's snapshot, or of its newest one; `scratch` is for a recording. Raises
    MoescopeError."""
    name = _run_name(given)
    if name is None:
        from moe_core.routing.opening import open_routing

        return open_routing(user_path(given), convert_to=scratch, progress=progress).routing
    from moe_core.routing import RoutingTrace

    run, (_, _, wanted) = _named_run(name, given), given.partition("@")
    steps = run.probe_steps()
    if wanted and (not wanted.isdecimal() or int(wanted) not in steps):
        kept = ", ".join(f"{step}" for step in steps)
        raise UsageError(f"run {name!r} has no snapshot of step {wanted!r}; expected one of {kept or 'none'}")
    if not steps:
        raise UsageError(f"run {name!r} has no snapshot yet; train it, or give a trace")
    return RoutingTrace.load(run.probe_path(int(wanted) if wanted else steps[-1]))


def _named_run(name: str, given: str) -> RunFolder:
    from moe_core.runs.folder import RunFolder

    if not RunFolder(name).exists():
        raise UsageError(
            f"{given!r} is neither a file nor a run; expected a trace, a recording, NAME or NAME@STEP of a run"
        )
    return RunFolder(name)


def _through_both(first: str, second: str, progress: Progress) -> Two:
    """The held-out text of the first run through both."""
    runs = [_named_run(name, name) for name in (first, second)]
    from moe_core.inference.held_out import trace_held_out
    from moe_core.inference.open import open_run

    a, b = (trace_held_out(open_run(run.name), runs[0], progress) for run in runs)
    return Two((first, second), a, b)


def _subject(arguments: argparse.Namespace) -> Live:
    if arguments.model is None:
        return existing_run(arguments.run)
    from moe_core.inference.subjects import ForeignModel

    return ForeignModel(
        arguments.model, arguments.model, device=arguments.device, trust_remote_code=arguments.trust_remote_code
    )


def _variant(arguments: argparse.Namespace) -> Any:
    from moe_core.inference.rounding import Rounding
    from moe_core.inference.two_readings import Variant

    choice = cache_of(arguments)
    cache = choice if choice.changes else None
    if arguments.quantise is None:
        return Variant(arguments.dtype, cache=cache)
    rounding = Rounding(arguments.quantise, arguments.group_size or GROUP_SIZE, arguments.quantise_what or "all")
    return Variant(arguments.dtype, rounding, cache)


def _read_twice(arguments: argparse.Namespace, progress: Progress) -> Two:
    from moe_core.inference.two_readings import Variant, read_twice

    subject = _subject(arguments)

    def text(model: LanguageModel) -> TokenDataset:
        return _text(arguments, subject, model)

    readings = read_twice(subject, text, Variant(), _variant(arguments), device=arguments.device, progress=progress)
    name = arguments.run or arguments.model
    names = [f"{name} in {one.name}" for one in readings]
    a, b = (one.text.trace for one in readings)
    return Two((names[0], names[1]), a, b, readings)


def _text(arguments: argparse.Namespace, subject: Live, model: LanguageModel) -> TokenDataset:
    from moe_core.data.document import Document
    from moe_core.data.shards.documents_at import check_tokenizer, documents_at
    from moe_core.inference.held_out import beginnings, held_out_text, text_of_ours
    from moe_core.inference.scoring import as_dataset
    from moe_core.runs.folder import RunFolder

    if arguments.text is not None:
        return as_dataset(model, [Document(arguments.text, "text", "text", "")])
    if arguments.data is None and isinstance(subject, RunFolder):
        limit = arguments.tokens_per_domain
        return as_dataset(model, held_out_text(subject, model.tokenizer, limit, only_beginnings=True))
    if arguments.data is not None and isinstance(subject, RunFolder):
        check_tokenizer(arguments.data, model.tokenizer)
    documents = documents_at(arguments.data) if arguments.data is not None else beginnings(text_of_ours())
    return as_dataset(model, as_dataset(model, list(documents)).select(arguments.tokens_per_domain, seed=0))


def _against_model(arguments: argparse.Namespace, progress: Progress) -> Two:
    """A routing against the same tokens through a model."""
    from moe_core.inference.reread import reread
    from moe_core.inference.two_readings import read_tokens

    given = arguments.routings[0]
    with tempfile.TemporaryDirectory(prefix="moescope-") as scratch:
        (a,) = _tokens([_opened(given, Path(scratch) / "A.parquet", progress)], (given,))
    found = reread(a)
    reading = read_tokens(_subject(arguments), found, _variant(arguments), device=arguments.device, progress=progress)
    names = given, f"{arguments.run or arguments.model} in {reading.name}"
    return Two(names, found.routing, reading.text.trace, left_out=found.left_out)


def _matched(two: Two) -> Two:
    from moe_core.routing.measures.comparison import match_experts, rename_experts

    return two._replace(b=rename_experts(two.b, match_experts(two.a, two.b)))


class Told(NamedTuple):
    """What was measured."""

    agreement: Agreement
    margins: FlipMargins
    accumulation: Accumulation | None


def _compared(two: Two) -> Told:
    from moe_core.routing.measures.agreement import routing_agreement
    from moe_core.routing.measures.flip_accumulation import flip_accumulation
    from moe_core.routing.measures.flip_margins import flip_margins

    return Told(routing_agreement(two.a, two.b), flip_margins(two.a, two.b), flip_accumulation(two.a, two.b))


def _drawn(told: Told, folder: Path, formats: list[str] | None, progress: Progress) -> list[dict[str, Any]]:
    from moe_core.figures.flips import agreement_figure, margins_figure

    figures = [agreement_figure(told.agreement), margins_figure(told.margins)]
    return figure_records(figures, write_figures(figures, folder, chosen_formats(formats), progress))


def _say(two: Two, told: Told, output: Output) -> dict[str, Any]:
    """Print it; the same for --json."""
    from moe_core.cli.agree_tables import layers_table
    from moe_core.routing.measures.agreement import agreement_verdict
    from moe_core.routing.measures.flip_accumulation import accumulation_verdict
    from moe_core.routing.measures.flip_margins import margins_verdict
    from moe_core.routing.trace.independence import independence_note

    found, margins, carried = told
    documents = len(set(two.a.document_ids.tolist()))
    verdicts = {
        "agreement": agreement_verdict(found),
        "margins": margins_verdict(margins),
        "accumulation": accumulation_verdict(carried),
    }
    output.say(f"A: {two.names[0]}")
    output.say(f"B: {two.names[1]}")
    sources = count_of(found.sources, "source")
    output.say(f"{count_of(found.tokens, 'token')} of {count_of(documents, 'document')} from {sources}.")
    if two.left_out:
        output.say(f"Left out: {count_of(two.left_out, 'document')} without a beginning, which cannot be read again.")
    output.say()
    for sentence in verdicts.values():
        output.say(sentence)
    output.say()
    output.say(layers_table(found, margins))
    figures: dict[str, Any] = {
        "a": two.names[0], "b": two.names[1], "documents": documents, "left_out": two.left_out,
        "agreement": asdict(found),
        "margins": asdict(margins), "accumulation": None if carried is None else asdict(carried),
    }  # fmt: skip
    if two.readings is not None:
        figures |= _say_cost(two.readings, verdicts, output)
    if note := independence_note(two.a):
        output.say(f"Note: {note}")
    return figures | {"verdicts": verdicts, "independence": note}


def _say_cost(readings: tuple[Reading, Reading], verdicts: dict[str, str], output: Output) -> dict[str, Any]:
    """What was rounded, and what happened to the loss."""
    from moe_core.cli.agree_tables import loss_table
    from moe_core.evaluation.twice_read import loss_change, loss_verdict

    found, rounded = loss_change(*(one.text for one in readings)), readings[1].rounded
    verdicts["loss"] = loss_verdict(found)
    output.say()
    output.say(verdicts["loss"])
    output.say()
    output.say(loss_table(found))
    rounding = readings[1].variant.rounding
    if rounded is not None and rounding is not None:
        output.say(rounded.describe(rounding))
    whole, kept = (one.decoding for one in readings)
    if whole is not None and kept is not None and readings[1].variant.cache is not None:
        output.say(kept.describe(readings[1].variant.cache, whole))
    return {
        "first": {"dtype": readings[0].dtype, "cache": None if whole is None else asdict(whole)},
        "second": {
            "dtype": readings[1].dtype,
            "cache": None if kept is None else asdict(kept) | {"name": readings[1].variant.changes[-1]},
            "rounding": None if rounded is None or rounding is None else asdict(rounding) | asdict(rounded),
        },
        "loss": {
            "groups": found.frame.to_dict("records"),
            "flipped_minus_kept": {"value": found.difference, "low": found.low, "high": found.high},
        },
    }
