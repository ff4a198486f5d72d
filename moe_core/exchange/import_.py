"""A checkpoint of transformers as a run of ours. Needs no transformers, and never reads pickle."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

import tokenizers
from torch import Tensor

from moe_core.config import Config, ModelConfig, validate_config
from moe_core.data.prepare import PreparedData, prepare_data
from moe_core.data.tokenizer import Tokenizer
from moe_core.errors import RunError, UsageError
from moe_core.exchange.configs import model_config_of
from moe_core.exchange.family_configs import FamilyConfig, read_family_config
from moe_core.exchange.layouts import HEAD, Family, from_checkpoint
from moe_core.exchange.refusing import refuse_key
from moe_core.exchange.weight_files import (
    LARGEST_TOKENIZER,
    TensorHeader,
    check_file_size,
    check_headers,
    open_weight_files,
    read_config_file,
    read_headers,
)
from moe_core.model.outline import outline
from moe_core.model.size import check_fits_memory
from moe_core.model.transformer import MoETransformer
from moe_core.progress import Progress
from moe_core.runs.checkpoint import save_checkpoint
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
    theirs, family = read_family_config(read_config_file(source / "config.json"))
    model_config = model_config_of(theirs, family)
    check_fits_memory(model_config)
    tokenizer = _tokenizer(source / "tokenizer.json")
    if tokenizer.vocab_size != model_config.vocab_size:
        raise UsageError(
            f"the tokenizer in {str(source)!r} has {tokenizer.vocab_size} entries, the model has "
            f"{model_config.vocab_size}; expected as many of both: cut the embedding, or give the tokenizer that fits"
        )
    model = read_model(source, theirs, model_config, family)
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
        observe_weights(
            run, config, model, prepared, f"imported from {source.resolve().name}, a {family} checkpoint", progress
        )
    return config, family


def read_model(source: Path, theirs: FamilyConfig, config: ModelConfig, family: Family) -> MoETransformer:
    """The model in `source`, whose config.json says `theirs` and which is our `config`, in evaluation mode.

    Raises RunError or UsageError, before weights are read, for files that do not hold just that model.
    """
    headers = read_headers(source)
    check_headers(headers, config, family, source)
    _check_biases(headers, theirs)
    if not theirs.tie_word_embeddings and HEAD not in headers:
        raise RunError(
            f"the checkpoint in {str(source)!r} lacks lm_head.weight and its config.json does not tie it to the "
            "embedding (tie_word_embeddings = true); restore the checkpoint from a copy"
        )
    return _model(from_checkpoint(_weights(source), config, family), config, source)


def observe_weights(
    run: RunFolder, config: Config, model: MoETransformer, data: PreparedData, message: str, progress: Progress | None
) -> None:
    """Write what a trainer writes at an evaluation, for weights that were not trained here."""
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


def _check_biases(headers: Mapping[str, TensorHeader], theirs: FamilyConfig) -> None:
    """Biases that config.json promises must be there; whether they are zero is seen when they are read."""
    for layer in range(theirs.num_hidden_layers if theirs.has_biases else 0):
        for projection in theirs.biased:
            name = f"model.layers.{layer}.self_attn.{projection}.bias"
            if name not in headers:
                raise refuse_key(str(theirs.bias_key), True, f"expected the tensor {name!r}, which is missing")


def _model(state: dict[str, Tensor], config: ModelConfig, source: Path) -> MoETransformer:
    model = outline(config)  # shapes are compared before memory is taken
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
    for _, file in open_weight_files(source):
        tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    return tensors


def _tokenizer(path: Path) -> Tokenizer:
    """Their tokenizer without the steps that add, cut or pad tokens: other code puts end-of-text before our texts."""
    if path.is_file():
        check_file_size(path, LARGEST_TOKENIZER)
    elif path.exists():
        raise RunError(f"the tokenizer {str(path)!r} is no ordinary file; copy or download it again")
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
