"""A folder with a Hugging Face model, looked at before the library reads it: damage and sizes beyond measure are named.

The library builds a model as config.json says before it reads a weight, so a layer count of a million would go on
without end. The headers of the weights say how many tensors there are and how large each is; no model has more layers
than tensors, nor more experts than its largest tensor is long.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_core.errors import ModelError

LARGEST_CONFIG = 16 * 2**20
"""Bytes of config.json and other small files; real ones have some thousands, an index of weights a few million."""
LARGEST_TOKENIZER = 512 * 2**20
HARMLESS_LAYERS, HARMLESS_EXPERTS = 200, 512
"""So many are built in no time, whether the weights have them or not: parts that were left out keep their defaults."""
LARGEST_CONTEXT = 2**24
"""Positions; some families make tables of them. The longest contexts that were published have 10 million."""
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_LAYERS = re.compile(r"(^|_)(n|num)_(hidden_|decoder_|encoder_|transformer_)?(layers?|blocks)$|^depth$")
_EXPERTS = re.compile(r"(^|_)(n|num)_(\w+_)?experts$|^moe_num_experts$|^expert_num$")
_CONTEXT = re.compile(
    r"^max_position_embeddings$|^n_positions$|^max_seq_len$|^max_sequence_length$|^seq_length$|^n_ctx$"
)
_POSITIVE = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size", "num_experts_per_tok")


@dataclass(frozen=True)
class _Weights:
    """What the headers say."""

    tensors: int
    longest: int
    """The largest dimension of any tensor."""


def check_folder(folder: Path) -> None:
    """Raise ModelError for a folder whose files are missing, cut off, beyond measure, or pickles."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder.name} has no config.json; expected the folder of a Hugging Face model")
    for path in sorted(folder.glob("*.json")):
        _check_size(path)
    shards = sorted(folder.glob("*.safetensors"))
    pickles = sorted(path for pattern in _PICKLES for path in folder.glob(pattern))
    if not shards and pickles:
        raise ModelError(
            f"the weights of {folder.name} are a pickle ({pickles[0].name}), which can run code when it is opened; if "
            "you trust it, convert it: AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW)"
        )
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        listed = _read_object(index).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
            raise ModelError(f"{folder.name}/{index.name} is damaged; copy it again")
        if absent := sorted(set(listed.values()) - {path.name for path in shards}):
            raise ModelError(f"{folder.name} lacks {len(absent)} of its files of weights, such as {absent[0][:60]!r}")
    if not shards:
        raise ModelError(f"{folder.name} has no weights; expected *.safetensors beside config.json")
    _check_counts(folder / "config.json", _headers_of(shards, folder))


def _check_size(path: Path) -> None:
    if not path.is_file():
        raise ModelError(f"{path.parent.name}/{path.name} is no ordinary file; copy it again")
    limit = LARGEST_TOKENIZER if path.name in ("tokenizer.json", "vocab.json") else LARGEST_CONFIG
    if path.stat().st_size > limit:
        raise ModelError(
            f"{path.parent.name}/{path.name} has {path.stat().st_size:,} bytes; expected at most {limit:,}"
        )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"cannot read {path.parent.name}/{path.name}: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise ModelError(f"{path.parent.name}/{path.name} is damaged: it is not valid JSON; copy it again") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path.parent.name}/{path.name} is damaged: expected a JSON object; copy it again")
    return value


def _headers_of(shards: list[Path], folder: Path) -> _Weights:
    from safetensors import SafetensorError, safe_open

    tensors, longest = 0, 0
    for shard in shards:
        if not shard.is_file():
            raise ModelError(f"{folder.name}/{shard.name} is no ordinary file; copy it again")
        try:
            with safe_open(shard, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    tensors += 1
                    longest = max(longest, *file.get_slice(name).get_shape(), 1)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{folder.name}/{shard.name} is damaged or cut off ({error}); copy it again") from error
    return _Weights(tensors, longest)


def _check_counts(path: Path, weights: _Weights) -> None:
    most = (
        (
            _LAYERS,
            max(weights.tensors, HARMLESS_LAYERS),
            f"its weights are {weights.tensors:,} tensors, and no model has more layers",
        ),
        (
            _EXPERTS,
            max(weights.longest, weights.tensors, HARMLESS_EXPERTS),
            f"its longest tensor has {weights.longest:,} rows or columns, and no model has more experts",
        ),
        (_CONTEXT, LARGEST_CONTEXT, f"expected at most {LARGEST_CONTEXT:,} positions"),
    )
    for key, value in _entries_of(_read_object(path)):
        if key in _POSITIVE and isinstance(value, bool | int | float | str) and not _is_positive_integer(value):
            raise ModelError(
                f"{path.parent.name}/config.json has {key} = {_shortened(value)}; expected a whole number of at least "
                "1: copy it again"
            )
        for pattern, limit, reason in most:
            if isinstance(value, int | float) and value > limit and pattern.search(key):
                raise ModelError(
                    f"{path.parent.name}/config.json has {key} = {_shortened(value)}; {reason}: copy it again"
                )


def _is_positive_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _shortened(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}" if abs(value) < 10**15 else "a huge number"
    return repr(value)[:40]


def _entries_of(tree: dict[str, Any]) -> Iterator[tuple[str, object]]:
    """All keys with their values, also those of parts such as text_config."""
    waiting = [tree]
    while waiting:
        for key, value in waiting.pop().items():
            if isinstance(value, dict):
                waiting.append(value)
            else:
                yield key, value
