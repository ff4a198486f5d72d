"""moellama's config.hocon as keys of our own tree; docs/from-the-sources.md has the table.

Nothing is dropped in silence: a key without a counterpart becomes a note, one that moellama does not have is refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from moe_core.config.tree import Config, ModelConfig
from moe_core.errors import UsageError

SECTIONS = ("device", "inference", "paths", "evaluation")
"""Sections that moellama's file has and ours has not."""
KEYS = {
    "model": ("dropout", "shared_expert", "load_balancing_loss_coef"),
    "training": ("eval_steps", "dataset", "data_dir", "num_workers"),
}
"""Keys that moellama's sections have and ours of the same name have not."""
THREADS_LEFT_OVER = 2
"""Of all processors, with num_cpu_threads = -1."""


@dataclass
class Translation:
    """What a file of moellama's asks for, in our words."""

    tree: dict[str, Any] = field(default_factory=dict)
    """Sections of ours."""
    notes: list[str] = field(default_factory=list)
    """A sentence about each key that has no counterpart, or another meaning."""

    def set(self, dotted: str, value: Any) -> None:
        """Give one key of ours its value."""
        *sections, leaf = dotted.split(".")
        tree = self.tree
        for section in sections:
            tree = tree.setdefault(section, {})
        tree[leaf] = value


def is_moellama(tree: Mapping[str, Any]) -> bool:
    """Whether a file has a section or a key that only moellama's have."""
    return any(section in tree for section in SECTIONS) or any(
        key in tree[section] for section, keys in KEYS.items() if isinstance(tree.get(section), Mapping) for key in keys
    )


def translate(tree: Mapping[str, Any], base: Mapping[str, Any]) -> Translation:
    """A file of moellama's on top of `base`, the tree that it changes. Keys of our own tree may stand in it, too.

    Raises UsageError for a section or key that neither knows, and for values whose meaning needs the right type.
    """
    found = Translation()
    for section, values in tree.items():
        if not isinstance(values, Mapping):
            raise UsageError(
                f"config key {section!r} has value {_short(values)}; expected a section, {section} {{ ... }}"
            )
        for key, value in values.items():
            dotted = f"{section}.{key}"
            if dotted in RENAMED:
                found.set(RENAMED[dotted], value)
            elif dotted in UNKNOWN_HERE:
                found.notes.append(f"{dotted} = {_short(value)}: {UNKNOWN_HERE[dotted]}")
            elif dotted in MEANT:
                MEANT[dotted](value, found)
            elif section in Config.model_fields:
                found.set(dotted, value)  # one of ours, or refused by its name when the tree is validated
            else:
                known = sorted(name for name in (*RENAMED, *UNKNOWN_HERE, *MEANT) if name.startswith(f"{section}."))
                expected = (
                    f"expected one of {', '.join(known)}" if known else f"expected {', '.join(SECTIONS)}, or ours"
                )
                raise UsageError(f"unknown config key {dotted!r} (value {_short(value)}); {expected}")
    _fill_in(tree, base, found)
    return found


# ---- keys with another name ----

RENAMED = {
    "model.load_balancing_loss_coef": "model.router.load_balancing_loss_coef",
    "training.eval_steps": "training.evaluation_interval",
    "training.num_workers": "training.data_workers",
    "inference.max_new_tokens": "serve.max_tokens",
    "inference.temperature": "serve.temperature",
}

# ---- keys without a counterpart ----

UNKNOWN_HERE = {
    "model.dropout": "this model drops nothing but hidden units of experts, --model.expert_hidden_dropout",
    "training.data_dir": "read with training.dataset; nothing is downloaded",
    "inference.top_k": "given where text is written: generate --top-k, or the body of a request",
    "inference.top_p": "given where text is written: generate --top-p, or the body of a request",
    "paths.model_path": "runs lie in checkpoints/NAME, or below MOESCOPE_CHECKPOINTS",
    "paths.output_dir": "a run's files lie in checkpoints/NAME",
    "evaluation.enabled": "every run is scored at its end",
    "evaluation.enabled_benchmarks": "given where a run is scored: --evaluate --suite --tasks NAME",
    "evaluation.test_prompts": "given where text is written: generate --prompts-file FILE",
    "evaluation.report_path": "the report is checkpoints/NAME/report.md, that of the suite suite.md",
}

# ---- keys whose values mean something else here ----


def _shared_expert(value: Any, found: Translation) -> None:
    if _boolean("model.shared_expert", value):
        found.notes.append(
            "model.shared_expert = true: as wide as one of the others, --model.shared_expert_hidden_dim makes it wider"
        )
        found.set("model.shared_expert_hidden_dim", None)  # _fill_in knows the width
    else:
        found.set("model.shared_expert_hidden_dim", 0)


def _device(value: Any, found: Translation) -> None:
    found.set("training.device", value)
    found.set("serve.device", value)


def _threads(value: Any, found: Translation) -> None:
    number = _whole("device.num_cpu_threads", value)
    if number < -1:
        raise UsageError(
            f"config key 'device.num_cpu_threads' has value {number}; expected -1 (all but {THREADS_LEFT_OVER}, at "
            "least one), 0 (torch's own choice) or a number of threads"
        )
    found.set("training.threads", number if number >= 0 else max(1, (os.cpu_count() or 1) - THREADS_LEFT_OVER))


def _gpus(value: Any, found: Translation) -> None:
    numbers = value if isinstance(value, list) else [value]
    if any(isinstance(number, bool) or not isinstance(number, int) or number < 0 for number in numbers):
        raise UsageError(
            f"config key 'device.gpu_ids' has value {_short(value)}; expected numbers of GPUs such as [0, 1]"
        )
    if numbers not in ([], [0]):
        visible = ",".join(map(str, numbers))
        start = f"torchrun --nproc-per-node {len(numbers)} -- main.py ... --parallel.data {len(numbers)}"
        several = f"CUDA_VISIBLE_DEVICES={visible} {start}" if len(numbers) > 1 else f"CUDA_VISIBLE_DEVICES={visible}"
        found.notes.append(f"device.gpu_ids = {_short(value)}: which GPUs are seen is said at the start: {several}")


def _data_parallel(value: Any, found: Translation) -> None:
    if _boolean("device.use_data_parallel", value):
        found.notes.append(
            "device.use_data_parallel = true: several processes are started by torchrun --nproc-per-node N -- main.py "
            "... --parallel.data N"
        )


def _metal(value: Any, found: Translation) -> None:
    if _boolean("device.use_mps", value):
        _device("mps", found)


def _epochs(value: Any, found: Translation) -> None:
    found.set("training.epochs", value)
    found.set("training.time_budget_seconds", None)  # a preset's would cut them


def _learning_rate(value: Any, found: Translation) -> None:
    found.set("training.learning_rate", value)
    found.set("training.optimizer", "adamw")  # its one rate is AdamW's; Muon's is another


def _dataset(value: Any, found: Translation) -> None:
    if not isinstance(value, str) or not value:
        raise UsageError(f"config key 'training.dataset' has value {_short(value)}; expected a name such as 'my_data'")
    found.set("data.path", value)  # _fill_in knows the folder


MEANT: dict[str, Callable[[Any, Translation], None]] = {
    "model.shared_expert": _shared_expert,
    "device.type": _device,
    "device.num_cpu_threads": _threads,
    "device.gpu_ids": _gpus,
    "device.use_data_parallel": _data_parallel,
    "device.use_mps": _metal,
    "training.use_data_parallel": _data_parallel,
    "training.epochs": _epochs,
    "training.learning_rate": _learning_rate,
    "training.dataset": _dataset,
}


def _fill_in(tree: Mapping[str, Any], base: Mapping[str, Any], found: Translation) -> None:
    """What follows from several keys, or from what the file changes."""
    theirs, model = tree.get("model", {}), found.tree.get("model", {})
    before = {**ModelConfig().model_dump(), **base.get("model", {}), **{key: model[key] for key in model}}
    if "num_heads" in theirs or "dim" in theirs:
        dim, heads = _whole("model.dim", before["dim"]), _whole("model.num_heads", before["num_heads"])
        if heads < 1 or dim % heads:
            raise UsageError(
                f"config key 'model.dim' has value {dim}; expected a multiple of model.num_heads = {heads}"
            )
        model.setdefault("head_dim", dim // heads)
        model.setdefault("num_kv_heads", heads)
    if model.get("shared_expert_hidden_dim", 0) is None:
        model["shared_expert_hidden_dim"] = before["expert_hidden_dim"]
    if "dataset" in tree.get("training", {}):
        name = found.tree["data"]["path"]
        path = f"{tree['training'].get('data_dir', 'dataset')}/{name}"
        found.set("data.path", path)
        found.notes.append(
            f"training.dataset = {name}: read from {path}, which must be there (or give --data); `data prepare "
            f"--dataset {name} --out FOLDER` makes one of a data set of the datasets library"
        )


def _whole(key: str, value: Any) -> int:
    try:
        number = int(str(value))
    except ValueError:
        raise UsageError(f"config key {key!r} has value {_short(value)}; expected a whole number") from None
    return number


def _boolean(key: str, value: Any) -> bool:
    words = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False}
    found = words.get(str(value).lower())
    if found is None:
        raise UsageError(f"config key {key!r} has value {_short(value)}; expected true or false")
    return found


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
