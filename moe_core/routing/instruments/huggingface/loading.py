"""Load a mixture-of-experts model of the transformers library, so that capture and intervene work on it.

    loaded = load("path/to/model")
    with capture(loaded.model) as recorder:
        loaded.model(input_ids=token_ids)

transformers is an optional install and imported only here. Nothing is run that the model's folder brings along, unless
`trust_remote_code` says so, and weights are read from safetensors only: a pickle runs code when it is opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_core.errors import ModelError, MoescopeError, TraceError, UsageError
from moe_core.files import user_path
from moe_core.quiet_torchao import quiet_torchao
from moe_core.routing.instruments.huggingface.hub import must_stay_offline
from moe_core.routing.instruments.huggingface.model_folder import check_folder

if TYPE_CHECKING:
    import torch

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")

_SELECTION_BIASES = ("e_score_correction_bias", "expert_bias")
"""Names of what is added to scores for the choice alone."""


@dataclass(frozen=True)
class HuggingFaceModel:
    """A loaded model."""

    model: torch.nn.Module
    """In eval mode, where `device_map` says, else on the CPU."""
    tokenizer: Any
    """As the library makes it; None where the model brings none, so that texts must come as token ids."""
    name: str
    """Its folder's name, or its name on the hub."""


def load(
    path_or_name: str | Path,
    *,
    device_map: str | Mapping[str, Any] | None = None,
    dtype: torch.dtype | str | None = None,
    trust_remote_code: bool = False,
    quantization_config: Any = None,
) -> HuggingFaceModel:
    """A model from a folder, or by its name from the library's cache or the hub.

    `device_map` and `quantization_config` are passed on (they need the library's own extras, such as accelerate);
    `dtype` None = as its weights are stored; biases that only move the routers' choice are float32 in any case. Whether
    its routers can be captured is found out before weights are read.
    Raises UsageError if transformers is missing, ModelError for a model that is not there, damaged, of an unknown kind
    or with code or pickles of its own, TraceError for one without routers or that cannot be captured exactly.
    """
    transformers = _library()
    folder = user_path(path_or_name)
    local = folder.is_dir()
    if not local and (folder.exists() or str(path_or_name)[:1] in "./~" or len(folder.parts) > 2):
        raise ModelError(f"there is no model folder {str(path_or_name)!r}; expected one with config.json and weights")
    place = str(folder) if local else str(path_or_name)
    name = folder.resolve().name if local else place
    if local:
        check_folder(folder)
    with quiet_library(transformers), explained_errors(name, local):
        given = {"trust_remote_code": trust_remote_code, "local_files_only": local or must_stay_offline(place)}
        config = transformers.AutoConfig.from_pretrained(place, **given)
        model_class = _model_class(transformers, config, trust_remote_code)
        bare = _outline_with_routers(model_class, config, name, trust_remote_code)
        extra = {"device_map": device_map, "quantization_config": quantization_config}
        with _selection_biases_kept_whole(bare):
            model, report = model_class.from_pretrained(
                place,
                config=config,
                dtype="auto" if dtype is None else dtype,
                use_safetensors=True,
                output_loading_info=True,
                **given,
                **{key: value for key, value in extra.items() if value is not None},
            )
        tokenizer = _tokenizer(transformers, place, local, given)
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"the weights of {name} lack {len(missing)} of its parameters, such as {missing[0]!r}; they belong to "
            "another architecture or were not copied completely"
        )
    _check_vocabulary(model, tokenizer, name)
    return HuggingFaceModel(model.eval(), tokenizer, name)


def _library() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UsageError(
            "Hugging Face models need the transformers library; python -m pip install -r requirements-huggingface.txt"
        ) from error
    return transformers


def _model_class(transformers: Any, config: Any, trust_remote_code: bool) -> Any:
    """The library's class that continues text, else the nearest one it has for the configuration."""
    kinds = ("AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForSeq2SeqLM", "AutoModel")
    own_code = getattr(config, "auto_map", None) or {}
    for kind in kinds:
        known = type(config) in getattr(transformers, kind)._model_mapping
        if known or (trust_remote_code and kind in own_code):
            return getattr(transformers, kind)
    return transformers.AutoModelForCausalLM


def _outline_with_routers(model_class: Any, config: Any, name: str, trust_remote_code: bool) -> torch.nn.Module:
    """The model without weights. Raises TraceError now, from the architecture alone, for one that could not be captured
    once it is loaded."""
    import torch

    from moe_core.routing.instruments.find import find_routers

    with torch.device("meta"):
        bare: torch.nn.Module = model_class.from_config(config, trust_remote_code=trust_remote_code)
    try:
        find_routers(bare)
    except TraceError as error:
        if "has no router" not in str(error):
            raise
        raise TraceError(
            f"{name} ({config.model_type}) has no router: it is a dense model, or its experts are of a kind that is "
            "not known here (docs/families.md lists those that are)"
        ) from error
    return bare


@contextmanager
def _selection_biases_kept_whole(bare: torch.nn.Module) -> Iterator[None]:
    """Let the library load these biases in float32, as it does by itself for most families.

    Rounded to half precision, biases that differ little are the same, and other experts are chosen (afmoe, kimi_linear,
    laguna, longcat_flash and minimax in transformers 5.23).
    """
    kind: Any = type(bare)
    own = {name.rpartition(".")[2] for name, _ in (*bare.named_parameters(), *bare.named_buffers())}
    before = getattr(kind, "_keep_in_fp32_modules_strict", None)
    kept = {*(before or ()), *(own & {*_SELECTION_BIASES})}
    if kept != {*(before or ())}:
        kind._keep_in_fp32_modules_strict = sorted(kept)
    try:
        yield
    finally:
        if getattr(kind, "_keep_in_fp32_modules_strict", None) is not before:
            kind._keep_in_fp32_modules_strict = before


def _tokenizer(transformers: Any, place: str, local: bool, given: Mapping[str, bool]) -> Any:
    """None where there is no tokenizer; one that is there but cannot be read is an error."""
    if local and not any((Path(place) / name).is_file() for name in _TOKENIZER_FILES):
        return None
    try:
        return transformers.AutoTokenizer.from_pretrained(place, **given)
    except OSError:
        if local:
            raise
        return None


def _check_vocabulary(model: Any, tokenizer: Any, name: str) -> None:
    embedding = model.get_input_embeddings()
    rows = getattr(embedding, "num_embeddings", None)
    if tokenizer is not None and isinstance(rows, int) and len(tokenizer) > rows:
        raise ModelError(
            f"the tokenizer of {name} has {len(tokenizer)} tokens, its model reads {rows}; they belong to two models"
        )


@contextmanager
def quiet_library(transformers: Any) -> Iterator[None]:
    """No progress bars and warnings of the library: what matters is raised."""
    before, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with quiet_torchao():  # the library imports it where it is installed
            yield
    finally:
        transformers.logging.set_verbosity(before)
        if bars:
            transformers.logging.enable_progress_bar()


@contextmanager
def explained_errors(name: str, local: bool) -> Iterator[None]:
    """The library's errors, which are pages long, in one line that says what to do.

    A configuration that is wrong fails wherever the library first uses it, with whatever error: all are the model's.
    """
    try:
        yield
    except MoescopeError:
        raise
    except Exception as error:
        text = " ".join(f"{'' if str(error) else type(error).__name__}{error}".split())
        if not isinstance(error, OSError | ValueError | RuntimeError | ImportError):
            # No check of the library caught it: it used a value as something that the value is not.
            text = f"{text[:200]} (a value of its config.json or its tokenizer's files is not what it should be)"
        raise ModelError(_explanation(name, local, text)) from error
    except BaseException as error:
        # A fault within the tokenizers library, which is written in Rust; it is no Exception.
        if type(error).__name__ != "PanicException":
            raise
        raise ModelError(_explanation(name, local, "its tokenizer.json is damaged")) from None


def _explanation(name: str, local: bool, text: str) -> str:
    if "trust_remote_code" in text:
        return (
            f"{name} brings its own code, which was not run; read it, and if you trust it give --trust-remote-code "
            "(trust_remote_code=True)"
        )
    if "does not recognize this architecture" in text or "Unrecognized model" in text:
        return f"{name} is of a kind that this transformers does not know; update it (requirements-huggingface.txt)"
    if "ccelerate" in text:
        return "device_map needs the accelerate library; python -m pip install accelerate, or leave device_map out"
    if not local and "not a valid model" not in text and ("offline" in text.lower() or "connect" in text.lower()):
        return f"{name} could not be read from the hub, which is not reachable any more; check this machine's network"
    if not local and "not a valid model" in text:
        return f"there is no folder {name!r}, and no model of this name in the cache or on the hub"
    if "size mismatch" in text or "mismatched" in text:
        return f"the weights of {name} have other shapes than its config.json says: {text[:160]}"
    return f"{name} could not be loaded: {text[:290]}"
