"""A checkpoint of transformers as a run of ours. Needs no transformers, and never reads pickle."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from moe_core.config import Config, ModelConfig, validate_config
from moe_core.data.prepare import PreparedData, prepare_data
from moe_core.data.tokenizer import Tokenizer
from moe_core.errors import RunError, UsageError
from moe_core.exchange.configs import from_huggingface
from moe_core.exchange.layouts import Family, from_checkpoint
from moe_core.model.size import check_fits_memory
from moe_core.model.transformer import MoETransformer
from moe_core.progress import Progress
from moe_core.runs.checkpoint import save_checkpoint
from moe_core.runs.files import read_json_object
from moe_core.runs.folder import RunFolder
from moe_core.training.observe import evaluate_splits, held_out_sets, log_baselines, log_event, observe_routing
from moe_core.training.trainer_state import TrainerState

LONGEST_CONTEXT = 1024
"""Longest context of an imported model, in tokens: caches and evaluations are as long as a run's context."""
SYNTHETIC_DOCUMENTS = 100
"""Documents of each synthetic domain in the training split, of which only the token counts are used."""


def import_checkpoint(
    source: Path, run: RunFolder, *, data: str | None = None, progress: Progress | None = None
) -> tuple[Config, Family]:
    """Make `run`, which must be new, a run at step 0 with the weights and the tokenizer of the checkpoint in `source`.

    Its held-out text, losses and probe come from `data` (a path as for training; None = the synthetic documents), so
    that pages and commands show it like a run that was trained here. training.init_from fine-tunes it.
    Raises UsageError for an architecture or option that our model does not have, for pickle, or a name that is taken;
    DataError for the text; RunError for a checkpoint that is damaged.
    """
    if not (source / "config.json").is_file():
        raise UsageError(f"--from {str(source)!r} has no config.json; expected the folder of a Hugging Face checkpoint")
    if run.path.resolve() == source.resolve():
        raise UsageError(f"--run {run.name!r} is the folder {str(source)!r} itself; choose another name for the run")
    tree = read_json_object(source / "config.json")
    model_config, family = from_huggingface(tree)
    check_fits_memory(model_config)
    tokenizer = _tokenizer(source / "tokenizer.json")
    if tokenizer.vocab_size != model_config.vocab_size:
        raise UsageError(
            f"the tokenizer in {str(source)!r} has {tokenizer.vocab_size} entries, the model has "
            f"{model_config.vocab_size}; expected as many of both: cut the embedding, or give the tokenizer that fits"
        )
    checkpoint = _weights(source)
    if not tree.get("tie_word_embeddings", False) and "lm_head.weight" not in checkpoint:
        raise RunError(
            f"the checkpoint in {str(source)!r} lacks lm_head.weight and its config.json does not tie it to the "
            "embedding (tie_word_embeddings = true); restore the checkpoint from a copy"
        )
    model = _model(from_checkpoint(checkpoint, model_config, family), model_config, source)
    config = validate_config(
        {
            "model": model_config.model_dump(),
            "data": {"path": data, "documents": SYNTHETIC_DOCUMENTS},
            # Nothing is trained here, so one sequence is enough text.
            "training": {"seq_len": min(model_config.max_seq_len, LONGEST_CONTEXT), "batch_size": 1},
        }
    )
    prepared = prepare_data(config, progress=progress, tokenizer=tokenizer)
    with run.lock():
        run.create(config)
        save_checkpoint(
            run, step=0, model=model, tokenizer=tokenizer, config=config, trainer_state=None, trainer_meta=None
        )
        _observe(
            run, config, model, prepared, f"imported from {source.resolve().name}, a {family} checkpoint", progress
        )
    return config, family


def _observe(
    run: RunFolder, config: Config, model: MoETransformer, data: PreparedData, message: str, progress: Progress | None
) -> None:
    """Write what a trainer writes at an evaluation, for the imported weights."""
    state = TrainerState(
        steps=0, asked_steps=0, fingerprint=data.fingerprint, autocast=False, started_at=time.time(), saved_step=0
    )
    seq_len, vocabulary = config.training.seq_len, data.tokenizer.vocabulary()
    held_out, probe = held_out_sets(data, config.training)
    run.write_held_out(data.validation, data.unseen, data.token_counts, data.domains)
    log_event(run, 0, message)
    log_baselines(run, data, held_out)
    evaluate_splits(run, model, held_out, state, seq_len=seq_len, progress=progress)
    observe_routing(run, model, probe, state, seq_len=seq_len, vocabulary=vocabulary, fine_tuning=True)
    run.write_status(state.status("finished", config, message))


def _model(state: dict[str, Tensor], config: ModelConfig, source: Path) -> MoETransformer:
    with torch.device("meta"):  # On the meta device: shapes are compared before memory is taken.
        model = MoETransformer(config)
    for name, expected in model.state_dict().items():
        if state[name].shape != expected.shape:
            raise RunError(
                f"the checkpoint in {str(source)!r} does not fit its config.json: what becomes {name!r} has shape "
                f"{list(state[name].shape)}, expected {list(expected.shape)}; restore it from a copy"
            )
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    return model.eval().requires_grad_(False)


def _weights(source: Path) -> dict[str, Tensor]:
    """All tensors of the checkpoint's safetensors files."""
    tensors: dict[str, Tensor] = {}
    for path in _shards(source):
        try:
            with safe_open(path, framework="pt") as file:
                tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except FileNotFoundError:
            raise RunError(
                f"the checkpoint lacks {str(path)!r}, which its index names; copy the missing file"
            ) from None
        except (SafetensorError, OSError) as error:
            reason = " ".join(str(error).split())
            raise RunError(
                f"{str(path)!r} is not a whole safetensors file ({reason}); copy or download it again"
            ) from None
    return tensors


def _shards(source: Path) -> Iterator[Path]:
    index = source / "model.safetensors.index.json"
    if (source / "model.safetensors").is_file():
        yield source / "model.safetensors"
    elif index.is_file():
        shards: Any = read_json_object(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise RunError(f"{str(index)!r} has no weight_map; copy or download it again")
        for name in sorted(set(shards.values())):
            if Path(name).name != name:
                raise RunError(f"{str(index)!r} names the file {name[:60]!r}; expected files of its own folder")
            yield source / name
    elif found := sorted(path.name for suffix in ("bin", "pt", "pth") for path in source.glob(f"*.{suffix}")):
        raise UsageError(
            f"the weights in {str(source)!r} are pickle ({found[0]}), which can run any code when read; expected "
            "model.safetensors: convert them where you trust them, with from_pretrained and save_pretrained"
        )
    else:
        raise UsageError(f"--from {str(source)!r} has no model.safetensors; expected a folder with weights")


def _tokenizer(path: Path) -> Tokenizer:
    """Their tokenizer without the steps that add, cut or pad tokens: other code puts end-of-text before our texts."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        tree |= dict.fromkeys(("post_processor", "truncation", "padding"))
        return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(tree)))
    except FileNotFoundError:
        raise UsageError(
            f"there is no {str(path)!r}; expected the tokenizer the model was trained with: copy it there"
        ) from None
    except RunError as error:
        raise UsageError(f"the tokenizer {str(path)!r} cannot be used: {error}") from None
    except Exception as error:  # tokenizers raises the bare Exception for every fault of the file
        reason = str(error).split("\n")[0]
        raise RunError(f"the tokenizer {str(path)!r} is damaged ({reason}); copy or download it again") from None
