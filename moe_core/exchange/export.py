"""A run as a checkpoint of transformers: config.json, model.safetensors, tokenizer. Needs no transformers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from moe_core.data.tokenizer import END_OF_TEXT
from moe_core.errors import UsageError
from moe_core.exchange.configs import to_huggingface
from moe_core.exchange.layouts import Family, to_checkpoint
from moe_core.exchange.targets import fit_to_family, target_family
from moe_core.runs.files import replace_folder, translate_os_errors

if TYPE_CHECKING:
    from moe_core.runs.checkpoint import LoadedRun


@dataclass(frozen=True)
class Exported:
    """What was written."""

    family: Family
    path: Path
    parameters: int
    """Numbers in model.safetensors. There are more than the run has if a rewriting added zeros, or the head stands
    beside the embedding."""
    context: int
    """Tokens the model sees at once (max_position_embeddings)."""


def export_run(loaded: LoadedRun, target: Path) -> Exported:
    """Write the run's weights and tokenizer to the folder `target`, which must be missing or empty.

    `AutoModelForCausalLM.from_pretrained(target)` then computes what our model computes. The folder appears whole or
    not at all. Raises UsageError when no family equals the model, or the folder is not free; RunError on a full disk.
    """
    family = target_family(loaded.config.model)
    check_free(target)
    config, state = fit_to_family(loaded.config.model, loaded.model.state_dict(), family)
    checkpoint = {name: tensor.float().cpu() for name, tensor in to_checkpoint(state, config, family).items()}
    # Positions beyond the trained length were never learned: the checkpoint must say where they end.
    context = min(config.max_seq_len, loaded.config.training.seq_len)
    end = loaded.tokenizer.end_of_text
    with translate_os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with replace_folder(target) as folder:
        save_file(checkpoint, folder / "model.safetensors", metadata={"format": "pt"})
        _write_json(folder / "config.json", to_huggingface(config, family, context=context, end_of_text=end))
        _write_json(folder / "generation_config.json", {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end})
        # safetensors makes its files readable by their owner alone, but a checkpoint is meant to be shared.
        (folder / "model.safetensors").chmod((folder / "config.json").stat().st_mode)
        loaded.tokenizer.save(folder / "tokenizer.json")
        _begin_with_end_of_text(folder / "tokenizer.json", end)
        _write_json(folder / "tokenizer_config.json", _tokenizer_config(context))
    return Exported(family, target, sum(tensor.numel() for tensor in checkpoint.values()), context)


def check_free(target: Path) -> None:
    """Raise UsageError unless `target` is missing or an empty folder."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(
            f"--to {str(target)!r} exists already and is not an empty folder; choose another, or remove it"
        )


def _tokenizer_config(context: int) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        # As in our tokenizer, text that looks like a control token is text.
        "split_special_tokens": True,
    }


def _begin_with_end_of_text(path: Path, end_of_text: int) -> None:
    """Every text is encoded with end-of-text before it, as the model was trained."""
    tree = json.loads(path.read_text(encoding="utf-8"))
    begin = {"SpecialToken": {"id": END_OF_TEXT, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    tree["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begin, first],
        "pair": [begin, first, begin, second],
        "special_tokens": {END_OF_TEXT: {"id": END_OF_TEXT, "ids": [end_of_text], "tokens": [END_OF_TEXT]}},
    }
    _write_json(path, tree)


def _write_json(path: Path, tree: dict[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
