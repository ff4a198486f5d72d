"""The safetensors files of a checkpoint: what they hold is known from their headers, before weights are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from moe_core.config import ModelConfig
from moe_core.errors import RunError, UsageError
from moe_core.exchange.layouts import HEAD, Family, is_left_out, needed_names, to_checkpoint
from moe_core.model.outline import outline
from moe_core.runs.files import read_json_object

LARGEST_CONFIG = 16 * 2**20
"""Bytes of a config.json or an index of weights; real ones have some thousands to a few millions."""
LARGEST_TOKENIZER = 512 * 2**20
"""Bytes of a tokenizer.json; vocabularies of 262,144 entries with merges take 35 million."""
FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class TensorHeader:
    """What a file says of one tensor."""

    shape: tuple[int, ...]
    dtype: str
    """As safetensors writes it, such as BF16."""


def read_config_file(path: Path) -> dict[str, Any]:
    """A JSON object of at most LARGEST_CONFIG bytes. Raises RunError."""
    check_file_size(path, LARGEST_CONFIG)
    return read_json_object(path)


def check_file_size(path: Path, limit: int) -> None:
    """Raise RunError for a file that is larger than its kind ever is, before it is read."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise RunError(f"cannot read {str(path)!r}: {error.strerror or error}; check that it is there") from None
    if size > limit:
        raise RunError(f"{str(path)!r} has {size:,} bytes; expected at most {limit:,}: it is no {path.name}")


def read_headers(source: Path) -> dict[str, TensorHeader]:
    """Names, shapes and types of all tensors, without their numbers. Raises RunError for damaged files."""
    headers: dict[str, TensorHeader] = {}
    for path, file in open_weight_files(source):
        for name in file.keys():  # noqa: SIM118 - not a dict
            part = file.get_slice(name)
            headers[name] = TensorHeader(tuple(part.get_shape()), part.get_dtype())
            if headers[name].dtype not in FLOATS:
                raise RunError(
                    f"{str(path)!r} holds {name!r} as {headers[name].dtype}; expected floating-point weights "
                    f"({', '.join(FLOATS)}) that are not quantised"
                )
    return headers


def check_headers(headers: Mapping[str, TensorHeader], config: ModelConfig, family: Family, source: Path) -> None:
    """Raise RunError unless the files hold the tensors of `config` and no others, each in its shape."""
    # In the order of the layers: a configuration of a million tensors ends at the first that is not there.
    for name in needed_names(config, family):
        if name not in headers:
            raise RunError(
                f"the checkpoint lacks the tensor {name!r}, which a {family} model of its config.json has; "
                "restore the checkpoint from a copy"
            )
    with torch.device("meta"):  # what is put together from the outline stays without memory
        expected = to_checkpoint(outline(config).state_dict(), config, family)
    for name, header in headers.items():
        if name in expected and header.shape != tuple(expected[name].shape):
            raise RunError(
                f"the checkpoint in {str(source)!r} does not fit its config.json: {name!r} has shape "
                f"{list(header.shape)}, expected {list(expected[name].shape)}; restore it from a copy"
            )
    others = sorted(name for name in headers if name not in expected and name != HEAD and not is_left_out(name, config))
    if others:
        raise RunError(
            f"the checkpoint has {len(others)} tensor{'s' if len(others) > 1 else ''} that our model has no place for, "
            f"the first is {others[0]!r}; only plain {family} checkpoints can be imported"
        )


def open_weight_files(source: Path) -> Iterator[tuple[Path, Any]]:
    """The safetensors files in `source`, opened one after the other. Raises RunError for damaged or missing ones."""
    for path in _weight_paths(source):
        try:
            with safe_open(path, framework="pt") as file:
                yield path, file
        except FileNotFoundError:
            raise RunError(
                f"the checkpoint lacks {str(path)!r}, which its index names; copy the missing file"
            ) from None
        except (SafetensorError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise RunError(
                f"{str(path)!r} is not a whole safetensors file ({reason}); copy or download it again"
            ) from None


def _weight_paths(source: Path) -> Iterator[Path]:
    index = source / "model.safetensors.index.json"
    if (source / "model.safetensors").is_file():
        yield source / "model.safetensors"
    elif index.is_file():
        shards: Any = read_config_file(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise RunError(f"{str(index)!r} has no weight_map; copy or download it again")
        for name in sorted(set(shards.values())):
            if Path(name).name != name or "\0" in name:
                raise RunError(f"{str(index)!r} names the file {name[:60]!r}; expected files of its own folder")
            path = source / name
            if path.exists() and not path.is_file():  # a device or a pipe would be read without end
                raise RunError(f"{str(path)!r} is no ordinary file; copy or download it again")
            yield path
    elif found := sorted(path.name for suffix in ("bin", "pt", "pth") for path in source.glob(f"*.{suffix}")):
        raise UsageError(
            f"the weights in {str(source)!r} are pickle ({found[0]}), which can run any code when read; expected "
            "model.safetensors: convert them where you trust them, with from_pretrained and save_pretrained"
        )
    else:
        raise UsageError(f"--from {str(source)!r} has no model.safetensors; expected a folder with weights")
