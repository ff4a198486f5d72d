"""`moescope serve`: an OpenAI-compatible API over runs and models of the transformers library, and nothing else."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_core.cli.cache_options import add_prefix_cache
from moe_core.cli.options import Parser, command, existing_run, finish, whole
from moe_core.cli.output import Output
from moe_core.config.presets import PRESETS
from moe_core.errors import UsageError
from moe_core.files import user_path
from moe_core.inference.device import DEVICES, DTYPES, resolve_device
from moe_core.program import program
from moe_core.server.libraries import missing_library
from moe_core.server.paths import KEY_VARIABLE
from moe_core.words import listed

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from moe_core.config.serve import ServeConfig
    from moe_core.inference.model_pool import ModelSource

SHORTEST_KEY, LONGEST_KEY = 8, 512


def parser() -> Parser:
    """Its options."""
    parser = command(
        "serve",
        "Serve models over an API that OpenAI's clients know (/v1/chat/completions, /v1/completions), which also\n"
        "tells through which experts every token went. The API alone: `dashboard` has the same one beside its pages.\n"
        "With nothing named the run demo is served. It listens at this machine alone; --host opens it to others, and\n"
        f"asks for a key, in the variable {KEY_VARIABLE} or in a file. Ctrl-C or SIGTERM let the answers under\n"
        "way end.",
        "serve --run demo",
        "serve --run demo --run mine --port 8080",
        "serve --model ../some-moe --dtype bfloat16",
        "serve --host 0.0.0.0 --api-key-file key.txt",
        "serve --model-size 7b --moe --dtype bfloat16",
        "serve --config serve.conf --serve.temperature 0",
    )
    models = parser.add_argument_group("what is served; the first one, a run if there is any, answers who names none")
    models.add_argument("--run", metavar="NAME", action="append", default=[], help="run of ours; repeatable")
    models.add_argument(
        "--model", metavar="DIR_OR_NAME", action="append", default=[], help="model of the transformers library, a "
        "folder or a name that it finds (needs requirements-huggingface.txt); repeatable",
    )  # fmt: skip
    models.add_argument(
        "--model-size", metavar="SIZE", choices=PRESETS, help="a preset's size with random weights, to measure speed "
        "and memory; demo is the trained run",
    )  # fmt: skip
    models.add_argument(
        "--moe", action=argparse.BooleanOptionalAction, help="with --model-size: the variant with experts, or the "
        "dense one (default: as the preset is)",
    )  # fmt: skip
    models.add_argument(
        "--trust-remote-code", action="store_true", help="run the Python code that comes with --model; without it a "
        "model that needs its own code is refused",
    )  # fmt: skip
    models.add_argument(
        "--device", choices=DEVICES, help="where to compute (default auto: cuda where present, else cpu)"
    )
    models.add_argument("--dtype", choices=DTYPES, help="precision of the weights (default auto: as they were saved)")
    where = parser.add_argument_group("where, and for whom")
    where.add_argument("--port", metavar="N", type=whole(0, 65_535), help="default 8001; 0 = any that is free")
    where.add_argument("--host", metavar="ADDRESS", help="address to listen at (default 127.0.0.1: this machine alone)")
    key = where.add_mutually_exclusive_group()
    key.add_argument(
        "--api-key-file", metavar="FILE", help="file whose first line is the key that every request must bring "
        f"(default: the variable {KEY_VARIABLE}, where it is set)",
    )  # fmt: skip
    key.add_argument(
        "--api-key",
        metavar="KEY",
        help="the key itself; whoever is on this machine can read it in the list of processes",
    )
    key.add_argument("--no-api-key", action="store_true", help="answer everyone who can reach --host, without a key")
    load = parser.add_argument_group("load and log")
    load.add_argument("--slots", metavar="N", type=whole(1, 1024), help="requests answered together (default 8)")
    load.add_argument(
        "--queue", metavar="N", type=whole(0, 100_000), help="requests that may wait; one more gets 429 (default 32)"
    )
    load.add_argument("--log-dir", metavar="DIR", help="write serve.log there, too (default: standard error alone)")
    add_prefix_cache(load)
    parser.add_argument(
        "--config", metavar="FILE", help="HOCON file whose section serve has these options and more; --serve.KEY VALUE "
        "and the variables MOESCOPE_SERVE__KEY set them, too",
    )  # fmt: skip
    parser.set_defaults(rest=[])
    return finish(parser, serve)


def serve(arguments: argparse.Namespace, output: Output) -> int:
    """Serve until a signal comes; exit code 128 + its number."""
    config = serve_config(arguments)
    key = api_key(arguments, config)
    check_libraries()
    check_models(config)
    from moe_core.server.listening import listening_socket, url_of
    from moe_core.server.logs import log_to

    log = log_to(config.log_level, config.log_dir)
    with listening_socket(config.host, config.port) as listener:
        models = sources(config, arguments.trust_remote_code)
        _say_where(output, url_of(listener), list(models), log, has_key=key is not None)
        from moe_core.inference.model_pool import ModelPool
        from moe_core.server.api import create_api
        from moe_core.server.api_options import ApiOptions
        from moe_core.server.draining import DrainedAnswers
        from moe_core.server.running import run

        pool = ModelPool(
            models,
            most_open=config.open_models,
            slots=config.slots,
            queue=config.queue,
            opened_first=list(models)[: config.open_models],
            prefix_cache=None if config.prefix_cache is None else user_path(config.prefix_cache),
        )
        options = ApiOptions(
            api_key=key,
            default_model=next(iter(models)),
            max_tokens=config.max_tokens,
            temperature=config.temperature,
        )
        answers = DrainedAnswers(create_api(pool, options))
        ended_by = run(
            _guarded(answers, config),
            listener,
            answers=answers,
            open_models=pool.open_first,
            close_models=lambda: pool.close(drain=False),
            drain_seconds=config.drain_seconds,
        )
    return 128 + ended_by


def _guarded(answers: ASGIApp, config: ServeConfig) -> ASGIApp:
    """Headers and the check of hosts around all answers."""
    from moe_core.server.guarded_answers import THIS_MACHINE, GuardedAnswers

    names = config.allowed_hosts or (THIS_MACHINE if config.is_loopback else ())
    return GuardedAnswers(
        answers,
        allowed=lambda: names,
        remedy=lambda host: f"Set --serve.allowed_hosts {host or 'NAME'} if this is your own name for its machine.",
        as_json=True,
    )


def sources(config: ServeConfig, trust_remote_code: bool) -> dict[str, ModelSource]:
    """What is served, by name; the first one answers who names none. Raises UsageError for two of one name."""
    from moe_core.inference.model_pool import ModelSource, huggingface_source, run_source
    from moe_core.inference.sized_model import TRAINED, is_trained, random_model, sized_name

    where: dict[str, str] = {"device": config.device, "dtype": config.dtype}
    size, use_moe = config.model_size, config.use_moe
    runs = list(dict.fromkeys(config.runs))
    if (TRAINED not in runs and is_trained(size, use_moe)) if size is not None else not (runs or config.models):
        runs.append(TRAINED)
    found = [(name, run_source(name, **where)) for name in runs]
    found += [
        (_name_of(model), huggingface_source(model, trust_remote_code=trust_remote_code, **where))
        for model in config.models
    ]
    if size is not None and not is_trained(size, use_moe):
        opened = partial(random_model, size, use_moe, texts=config.slots, **where)
        found.append((sized_name(size, use_moe), ModelSource(opened)))
    names = [name for name, _ in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"two models are called {twice!r}; each needs a name of its own, so rename one folder")
    return dict(found)


def _name_of(model: str) -> str:
    """What a client calls it: the folder's name, or the whole name of one that is found by name."""
    folder = user_path(model)
    return folder.resolve().name if folder.is_dir() else model


def _say_where(output: Output, url: str, names: Sequence[str], log: Path | None, *, has_key: bool) -> None:
    """The address, and a request to try; for --json the same."""
    for name in names:
        if name.startswith("random-"):
            output.say(f"{name} has random weights and writes noise: it is there to measure speed and memory.")
    output.say(f"Serving {listed(names)} at {url}; ready when {url}/health says so. Ctrl-C ends it.")
    bearer = f' -H "Authorization: Bearer ${KEY_VARIABLE}"' if has_key else ""
    body = json.dumps({"model": names[0], "prompt": "The tenant shall", "max_tokens": 40})
    output.say(f"Try it:  curl {url}/v1/completions -H 'Content-Type: application/json'{bearer} -d '{body}'")
    if log is not None:
        output.say(f"The log is in {log}")
    output.figures(
        {"url": url, "models": list(names), "process": os.getpid(), "log": None if log is None else str(log)}
    )
    sys.stdout.flush()


def serve_config(arguments: argparse.Namespace) -> ServeConfig:
    """Defaults < --config < the environment, Condor's names and then ours < the command line. Raises UsageError."""
    from moe_core.config import load_config, parse_overrides

    overrides: dict[str, Any] = parse_overrides(arguments.rest)
    for key in overrides:
        if not key.startswith("serve."):
            raise UsageError(f"--{key} is a key of training; `{program()} serve` takes --serve.KEY VALUE")
    given = {
        "host": arguments.host,
        "port": arguments.port,
        "device": arguments.device,
        "dtype": arguments.dtype,
        "slots": arguments.slots,
        "queue": arguments.queue,
        "log_dir": arguments.log_dir,
        "prefix_cache": arguments.prefix_cache,
        "use_moe": arguments.moe,
    }
    overrides |= {f"serve.{name}": value for name, value in given.items() if value is not None}
    if arguments.run or arguments.model or arguments.model_size:
        # What the command line names is all there is: a size in the environment would come with it otherwise.
        overrides |= {
            "serve.runs": arguments.run,
            "serve.models": arguments.model,
            "serve.model_size": arguments.model_size,
        }
    found = load_config(file=arguments.config, overrides=overrides, with_condor=True).serve
    if arguments.trust_remote_code and not found.models:
        raise UsageError("--trust-remote-code goes with --model; a run of our own has no code of its own")
    if arguments.moe is not None and found.model_size is None:
        raise UsageError(
            f"--{'' if arguments.moe else 'no-'}moe says which variant of --model-size; add --model-size SIZE"
        )
    return found


def api_key(arguments: argparse.Namespace, config: ServeConfig) -> str | None:
    """The key that requests must bring; None where everyone who reaches the server is answered. Raises UsageError."""
    if arguments.no_api_key:
        return None
    where, key = _given_key(arguments)
    if key is None:
        if config.is_loopback:
            return None
        raise UsageError(
            f"--host {config.host} lets other machines in: give a key in the variable {KEY_VARIABLE} or with "
            "--api-key-file FILE, or say --no-api-key to answer everyone"
        )
    # What a header cannot carry is no key. Its value is not repeated here.
    if not SHORTEST_KEY <= len(key) <= LONGEST_KEY or not all(33 <= ord(character) < 127 for character in key):
        raise UsageError(
            f"the key in {where} is not usable; expected {SHORTEST_KEY} to {LONGEST_KEY} printable ASCII characters "
            "without spaces"
        )
    return key


def _given_key(arguments: argparse.Namespace) -> tuple[str, str | None]:
    """Where the key comes from, for people, and the key."""
    if arguments.api_key is not None:
        return "--api-key", arguments.api_key
    if arguments.api_key_file is not None:
        where = f"--api-key-file {arguments.api_key_file!r}"
        try:
            with Path(arguments.api_key_file).open(encoding="utf-8") as file:
                return where, file.readline(LONGEST_KEY + 2).strip()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise UsageError(f"{where} cannot be read: {reason}; expected a file whose first line is the key") from None
    return f"the variable {KEY_VARIABLE}", os.environ.get(KEY_VARIABLE) or None


def check_libraries() -> None:
    """Raise UsageError where the extra is missing."""
    missing = missing_library()
    if missing is not None:
        raise UsageError(
            f"the server needs {missing}, which is not installed; python -m pip install -r requirements-serve.txt "
            "in a checkout, else pip install 'moescope[serve]'"
        )


def check_models(config: ServeConfig) -> None:
    """Refuse what is not there before anybody is let in. Raises MoescopeError."""
    for name in config.runs:
        existing_run(name)
    if config.prefix_cache is not None and config.models:
        raise UsageError(
            f"--prefix-cache {config.prefix_cache} keeps what runs of ours read; leave out --model {config.models[0]}"
        )
    for where in config.models:
        if where.startswith((".", "/", "~")) and not user_path(where).is_dir():
            raise UsageError(f"no folder {where!r} for --model; expected one with config.json and weights")
    resolve_device(config.device, "serve.device")
    if config.model_size is not None:
        from moe_core.inference.sized_model import TRAINED, check_fits_serving, is_trained

        if is_trained(config.model_size, config.use_moe):
            existing_run(TRAINED)
        else:
            check_fits_serving(
                config.model_size, config.use_moe, device=config.device, dtype=config.dtype, texts=config.slots
            )
