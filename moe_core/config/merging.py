"""Where configuration comes from. Order: preset defaults < `--config FILE` (HOCON) < environment < command line."""

from __future__ import annotations

import difflib
import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from moe_core.config.presets import PRESETS
from moe_core.config.tree import Config
from moe_core.errors import UsageError

ENVIRONMENT_PREFIX = "MOESCOPE_"
# Variables with our prefix that are not configuration keys.
ENVIRONMENT_OTHER = frozenset({"MOESCOPE_CHECKPOINTS", "MOESCOPE_DEBUG", "MOESCOPE_SPEEDRUN_TEXT"})


def load_config(
    base: str | Config = "default",
    *,
    file: str | Path | None = None,
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Config:
    """Merge base < HOCON file < environment < overrides and validate. `base` names a preset, or is a run's own config.

    `environment` defaults to os.environ; MOESCOPE_MODEL__NUM_EXPERTS=16 sets model.num_experts. `overrides` has dotted
    keys: {"model.num_experts": "16"}. Raises UsageError naming the key, the value and what was expected.
    """
    if isinstance(base, str) and base not in PRESETS:
        raise UsageError(f"unknown preset {base!r}; expected one of {', '.join(PRESETS)}")
    tree: dict[str, Any] = {}
    _merge_into(tree, PRESETS[base].tree if isinstance(base, str) else base.model_dump())
    if file is not None:
        _merge_into(tree, _read_hocon(Path(file)))
    for name, value in (os.environ if environment is None else environment).items():
        if name.startswith(ENVIRONMENT_PREFIX) and name not in ENVIRONMENT_OTHER:
            _merge_into(tree, _nested_dict(_environment_key(name), value))
    for dotted, value in (overrides or {}).items():
        _merge_into(tree, _nested_dict(dotted.split("."), value))
    return validate_config(tree)


def validate_config(tree: Mapping[str, Any]) -> Config:
    """Validate a nested mapping. Raises UsageError with one line about the first fault."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UsageError(_one_line(error)) from None


def parse_overrides(arguments: Sequence[str]) -> dict[str, str]:
    """Turn ["--model.num_experts", "16", "--data.seed=3"] into {"model.num_experts": "16", "data.seed": "3"}."""
    overrides: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or "." not in name:
            raise UsageError(
                f"unknown argument {argument!r}; see --help, or set a config key as --model.num_experts 16"
            )
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UsageError(f"config key {name!r} has no value; expected --{name} VALUE")
            value = rest.pop(0)
        overrides[name] = value
    return overrides


def _environment_key(name: str) -> list[str]:
    key = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
    if ".".join(key) not in _known_keys(Config):
        hint = _nearest_keys(".".join(key))
        raise UsageError(f"environment variable {name} is not a config key; {hint}, or unset it")
    return key


def _read_hocon(path: Path) -> dict[str, Any]:
    from pyhocon import ConfigFactory
    from pyhocon.exceptions import ConfigException
    from pyparsing import ParseBaseException

    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"no config file at {str(path)!r}; expected HOCON, e.g. model {{ num_experts = 8 }}") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read config file {str(path)!r}: {error}") from None
    if re.search(r"^\s*include\s+(required\s*\(\s*)?(url|package)\b", text, re.MULTILINE | re.IGNORECASE):
        raise UsageError(f'config file {str(path)!r} has an include url; expected a local file, include "base.conf"')
    try:
        with _missing_includes_fail():
            parsed = ConfigFactory.parse_string(text, basedir=str(path.parent))
    except (ConfigException, ParseBaseException, OSError, RecursionError) as error:
        summary = _shorten_to(" ".join(str(error).split()), 200)
        raise UsageError(f"config file {str(path)!r} is not valid HOCON: {summary}") from None
    if not isinstance(parsed, dict):
        raise UsageError(f"config file {str(path)!r} is a list; expected sections such as model {{ num_experts = 8 }}")
    return _as_dicts(parsed)


@contextmanager
def _missing_includes_fail() -> Iterator[None]:
    """pyhocon only logs that an included file is missing (through a deprecated call); make it an OSError."""

    def refuse(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            missing = Path(str(record.args[0] if isinstance(record.args, tuple) and record.args else ""))
            raise FileNotFoundError(f"included file {missing.name!r} does not exist or cannot be read")
        return True

    logger = logging.getLogger("pyhocon.config_parser")
    logger.addFilter(refuse)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.removeFilter(refuse)


def _as_dicts(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _as_dicts(value) if isinstance(value, Mapping) else value for key, value in tree.items()}


def _nested_dict(path: Sequence[str], value: Any) -> dict[str, Any]:
    for key in reversed(path):
        value = {key: value}
    return dict(value)


def _merge_into(base: dict[str, Any], update: Mapping[str, Any]) -> None:
    for key, value in update.items():
        if isinstance(value, Mapping):
            slot = base.get(key)
            if not isinstance(slot, dict):
                slot = base[key] = {}
            _merge_into(slot, value)
        else:
            base[key] = value


def _one_line(error: ValidationError) -> str:
    fault = error.errors()[0]
    key = ".".join(str(part) for part in fault["loc"])
    value = _shorten_to(repr(fault["input"]), 60)
    if fault["type"] == "extra_forbidden":
        return f"unknown config key {_shorten_to(key, 60)!r} (value {value}); {_nearest_keys(key)}"
    message = fault["msg"].removeprefix("Value error, ")
    if not key or fault["type"] == "value_error":
        return message
    return f"config key {key!r} has value {value}: {message[:1].lower()}{message[1:]}"


def _nearest_keys(key: str) -> str:
    """The key meant, if one of the same section is alike; else the keys of the section, or of all sections."""
    known = sorted([*_known_keys(Config), *Config.model_fields])
    section = f"{key.rpartition('.')[0]}."
    leaves = [name.removeprefix(section) for name in known if name.startswith(section)]
    near = difflib.get_close_matches(key.removeprefix(section) if leaves else key, leaves or known, n=1, cutoff=0.5)
    names = [f"{section if leaves else ''}{name}" for name in near or leaves or known]
    return f"did you mean {names[0]!r}?" if near else f"expected one of {', '.join(names)}"


def _shorten_to(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _known_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += _known_keys(field.annotation, f"{prefix}{name}.")
        else:
            keys.append(f"{prefix}{name}")
    return keys
