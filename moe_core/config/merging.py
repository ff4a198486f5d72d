"""Where configuration comes from. Order: preset defaults < `--config FILE` (HOCON) < environment < command line."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from moe_core.config.hocon import HoconError, read_hocon
from moe_core.config.moellama import is_moellama, translate
from moe_core.config.presets import PRESETS
from moe_core.config.serve import CONDOR_VARIABLES, ServeConfig
from moe_core.config.tree import Config
from moe_core.errors import UsageError, first_fault

ENVIRONMENT_PREFIX = "MOESCOPE_"
# Variables with our prefix that are not configuration keys.
ENVIRONMENT_OTHER = frozenset(
    {"MOESCOPE_API_KEY", "MOESCOPE_CACHE", "MOESCOPE_CHECKPOINTS", "MOESCOPE_DEBUG", "MOESCOPE_SPEEDRUN_TEXT"}
)


def load_config(
    base: str | Config = "default",
    *,
    file: str | Path | None = None,
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    with_condor: bool = False,
    say: Callable[[str], None] | None = None,
) -> Config:
    """Merge base < HOCON file < environment < overrides and validate. `base` names a preset, or is a run's own config.

    `environment` defaults to os.environ; MOESCOPE_MODEL__NUM_EXPERTS=16 sets model.num_experts. `overrides` has dotted
    keys: {"model.num_experts": "16"}. `with_condor`: the environment's CONDOR_ variables set keys of `serve` too, just
    below our own. A file of moellama's is translated; `say` is told what has no counterpart.
    Raises UsageError naming the key, the value and what was expected.
    """
    if isinstance(base, str) and base not in PRESETS:
        raise UsageError(f"unknown preset {base!r}; expected one of {', '.join(PRESETS)}")
    tree: dict[str, Any] = {}
    _merge_into(tree, PRESETS[base].tree if isinstance(base, str) else base.model_dump())
    if file is not None:
        _merge_into(tree, _file_tree(Path(file), tree, say))
    given = os.environ if environment is None else environment
    if with_condor:
        _merge_into(tree, {"serve": _condor_keys(given)})
    for name, value in given.items():
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


def _condor_keys(environment: Mapping[str, str]) -> dict[str, str]:
    """What the variables of Condor's document set; an empty one sets nothing. A wrong value is told by its variable."""
    keys: dict[str, str] = {}
    for name, key in CONDOR_VARIABLES.items():
        if not (value := environment.get(name, "").strip()):
            continue
        try:
            ServeConfig.model_validate({key: value})
        except ValidationError as error:
            raise UsageError(
                f"environment variable {name} has value {value[:60]!r}: {first_fault(error).message}"
            ) from None
        keys[key] = value
    return keys


def _read_sections(path: Path) -> dict[str, Any]:
    try:
        tree = read_hocon(path)
    except FileNotFoundError:
        raise UsageError(f"no config file at {str(path)!r}; expected HOCON, e.g. model {{ num_experts = 8 }}") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read config file {str(path)!r}: {error}") from None
    except HoconError as error:
        raise UsageError(f"config file {str(path)!r} is not valid HOCON: {_shorten_to(str(error), 200)}") from None
    if not isinstance(tree, dict):
        raise UsageError(f"config file {str(path)!r} is a list; expected sections such as model {{ num_experts = 8 }}")
    return tree


def _file_tree(path: Path, base: Mapping[str, Any], say: Callable[[str], None] | None) -> Mapping[str, Any]:
    """The file's sections, of moellama's in our words."""
    sections = _read_sections(path)
    if not is_moellama(sections):
        return sections
    translation = translate(sections, base)
    if say is not None:
        for note in translation.notes:
            say(f"{path.name}: {note}")
    return translation.tree


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
    fault = first_fault(error)
    if fault.kind == "extra_forbidden":
        return f"unknown config key {_shorten_to(fault.key, 60)!r} (value {fault.value}); {_nearest_keys(fault.key)}"
    if not fault.key or fault.kind == "value_error":
        return fault.message
    return f"config key {fault.key!r} has value {fault.value}: {fault.message}"


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
