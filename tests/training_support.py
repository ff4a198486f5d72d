"""What the tests of runs and training share: a tiny text, a tiny configuration, and ways to compare runs."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from moe_core.config import Config, validate_config
from moe_core.runs.folder import RunFolder

if TYPE_CHECKING:
    from moe_core.training.trainer import Trainer

WORDS = {
    "code": "def return import class self for in range print value index list",
    "law": "party agreement shall clause liability herein court term notice breach",
    "news": "today market city people weather match report season local story",
}
TINY_CONFIG: dict[str, Any] = {
    "model": {
        "vocab_size": 320,
        "dim": 32,
        "num_layers": 2,
        "num_heads": 2,
        "num_kv_heads": 1,
        "head_dim": 16,
        "num_experts": 4,
        "top_k": 2,
        "expert_hidden_dim": 32,
        "dense_hidden_dim": 64,
        "max_seq_len": 256,
    },
    "data": {"documents": 16},
    "training": {
        "steps": 40,
        "batch_size": 4,
        "seq_len": 32,
        "evaluation_interval": 20,
        "evaluation_tokens": 256,
        "probe_tokens": 256,
        "threads": 1,
    },
}
"""A configuration that trains in seconds."""
TIMES = ("tokens_per_second", "elapsed_seconds")


def write_corpus(path: Path) -> Path:
    """Three domains of 14 documents of 90 words; the same every time."""
    generator = random.Random(0)
    lines = [
        json.dumps(
            {"text": " ".join(generator.choices(words.split(), k=90)), "domain": domain, "source": f"{domain}/{number}"}
        )
        for domain, words in WORDS.items()
        for number in range(14)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def make_config(corpus: Path, **changes: Any) -> Config:
    """dim 32, 2 layers, 4 experts, 20 steps of 4 x 16 tokens; `changes` are dotted keys with __ for the dot."""
    tree: dict[str, Any] = {
        "model": {
            "vocab_size": 300,
            "dim": 32,
            "num_layers": 2,
            "num_heads": 2,
            "num_kv_heads": 1,
            "head_dim": 16,
            "num_experts": 4,
            "expert_hidden_dim": 24,
            "dense_hidden_dim": 32,
            "max_seq_len": 64,
            "router": {},
        },
        "data": {"path": str(corpus)},
        "training": {
            "steps": 20,
            "batch_size": 4,
            "seq_len": 16,
            "evaluation_interval": 10,
            "evaluation_tokens": 64,
            "probe_tokens": 64,
            "threads": 1,
        },
    }
    for dotted, value in changes.items():
        *sections, key = dotted.split("__")
        place = tree
        for section in sections:
            place = place[section]
        place[key] = value
    return validate_config(tree)


def begin_trainer(run: RunFolder, config: Config) -> Trainer:
    """A trainer of a new run at step 0."""
    from moe_core.data.prepare import prepare_data
    from moe_core.training.trainer import Trainer
    from moe_core.training.trainer_state import with_vocabulary

    data = prepare_data(config)
    config = with_vocabulary(config, data.tokenizer.vocab_size)
    run.create(config)
    return Trainer.begin(run, config, data, torch.device("cpu"))


def saved_and_restored(trainer: Trainer) -> Trainer:
    """The trainer that goes on from a checkpoint of this moment, in a process that has drawn other numbers."""
    trainer.save()
    torch.manual_seed(1234)
    return type(trainer).restore(trainer.run, trainer.config, trainer.data, trainer.device)


def tensor_hashes(run: RunFolder) -> dict[str, str]:
    """SHA-256 of the newest checkpoint's weights and of its optimizer and RNG state."""
    from moe_core.runs.checkpoint import find_checkpoint

    folder = find_checkpoint(run)
    names = ("model.safetensors", "trainer.safetensors")
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def timeless_metrics(run: RunFolder) -> list[dict[str, Any]]:
    """All metric lines without what the clock says."""
    return [{key: value for key, value in record.items() if key not in TIMES} for record in run.metric_records()]
