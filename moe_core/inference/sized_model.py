"""A model named by its size alone: random weights, to measure speed and memory; `demo` is a trained run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe_core.config import Config, load_config, validate_config
from moe_core.config.presets import PRESETS
from moe_core.errors import UsageError
from moe_core.inference.device import resolve_device, resolve_dtype
from moe_core.model import size
from moe_core.program import program
from moe_core.words import listed

if TYPE_CHECKING:
    from moe_core.inference.protocol import LanguageModel

TRAINED = "demo"
"""The size that comes with trained weights: the run of that name."""
BY_SUFFIX = ("7b", "40b")
"""Sizes that have a preset of their own for each of the two kinds, the mixture's ending in -moe."""


def is_trained(name: str, use_moe: bool | None) -> bool:
    """Whether a size stands for the shipped run, which is a mixture."""
    return name == TRAINED and use_moe is not False


def sized_config(name: str, use_moe: bool | None = None) -> Config:
    """The preset of that name as it is (None), as a mixture (True), or as the dense model whose token passes as many
    weights (False). Raises UsageError for a name that is no preset."""
    plain = name.removesuffix("-moe")
    if plain in BY_SUFFIX and use_moe is not None:
        name = f"{plain}-moe" if use_moe else plain
    config = load_config(name, environment={})
    if use_moe is False and config.model.moe_layers:
        dense = size.nearest_dense(config.model, size.active_parameters)
        return validate_config({**config.model_dump(), "model": dense.model_dump()})
    return config


def sized_name(name: str, use_moe: bool | None = None) -> str:
    """What a model of that size is called: "random-quick", "random-quick-dense", "random-7b-moe"."""
    kind = "" if sized_config(name, use_moe).model.moe_layers else "-dense"
    plain = name.removesuffix("-moe")
    if plain in BY_SUFFIX:
        kind = "" if kind else "-moe"
    return f"random-{plain}{kind}"


def check_fits_serving(
    name: str, use_moe: bool | None = None, *, device: str = "cpu", dtype: str = "auto", texts: int = 1
) -> None:
    """Raise UsageError, naming what would fit, where a model of that size and caches for `texts` texts at once need
    more than the memory of `device` (cpu, cuda; others are not known)."""
    place = resolve_device(device).type
    if place not in ("cpu", "cuda"):
        return
    present = size.memory_present(place)
    need = _bytes(name, use_moe, dtype, texts)
    if need <= present:
        return
    model, shown = sized_config(name, use_moe).model, sized_name(name, use_moe).removeprefix("random-")
    fitting = [other for other in PRESETS if _bytes(other, None, dtype, texts) <= present]
    narrower = _precision(dtype) == "float32" and _bytes(name, use_moe, "bfloat16", texts) <= present
    narrow = f", and {shown} with --dtype bfloat16" if narrower else ""
    raise UsageError(
        f"a model of size {shown} ({size.total_parameters(model):,} parameters) needs {size.gib(need)} in "
        f"{_precision(dtype)} to answer {texts} at once, {'the GPU' if place == 'cuda' else 'this machine'} has "
        f"{size.gib(present)}; what fits: {listed(fitting) if fitting else 'no preset'}{narrow}; "
        f"`{program()} presets` shows each one's needs"
    )


def random_model(
    name: str, use_moe: bool | None = None, *, device: str = "cpu", dtype: str = "auto", texts: int = 1
) -> LanguageModel:
    """A model of that size whose weights are drawn from seed 0. Its vocabulary is learned from documents of our own, so
    it is smaller than that of the preset.

    Raises UsageError where memory is missing, and for a device that this machine lacks.
    """
    from moe_core.data.tokenizer import Tokenizer
    from moe_core.inference.held_out import text_of_ours
    from moe_core.inference.own_model import OwnModel
    from moe_core.model.random_weights import random_transformer

    check_fits_serving(name, use_moe, device=device, dtype=dtype, texts=texts)
    model = sized_config(name, use_moe).model
    tokenizer = Tokenizer.train((document.text for document in text_of_ours()), model.vocab_size)
    model = model.model_copy(update={"vocab_size": tokenizer.vocab_size})
    network = random_transformer(model, device=resolve_device(device), dtype=resolve_dtype(dtype))
    return OwnModel(network, tokenizer, f"{sized_name(name, use_moe)}, not trained", model.max_seq_len)


def _precision(dtype: str) -> size.Precision:
    return "bfloat16" if dtype in ("bfloat16", "float16") else "float32"


def _bytes(name: str, use_moe: bool | None, dtype: str, texts: int) -> int:
    return size.serving_memory(sized_config(name, use_moe).model, _precision(dtype), texts).total
