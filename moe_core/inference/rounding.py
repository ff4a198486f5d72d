"""A model's weights rounded to few bits and back: what a quantisation does to its routing, without a special engine.

Round to nearest, per group of neighbouring weights along the input dimension, asymmetric: a group's least and largest
weight (and 0) are kept, 2^bits - 1 equal steps between them, with an integer zero point. That is the baseline that GPTQ
(2210.17323) and AWQ (2306.00978) are held against; torchao's primitives compute it. Weights alone are rounded, and the
model computes in the precision it has: activations, the routers' own weights, norms and biases stay as they are.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from moe_core.errors import UsageError
from moe_core.progress import Progress, silent
from moe_core.quiet_torchao import quiet_torchao
from moe_core.words import fixed, percent

if TYPE_CHECKING:
    from torch import Tensor, nn

# torch is imported late: `agree --help` lists these.
What = Literal["experts", "all"]
WHAT: tuple[What, ...] = get_args(What)
FEWEST_BITS, MOST_BITS = 2, 16
GROUP_SIZE = 32
"""As in llama.cpp's Q4_0 and Q8_0; GPTQ and AWQ use 128 as a rule."""
_CHUNK_WEIGHTS = 2**22
"""Rounded at a time, in float32: bounds the memory beside the model's."""
_GATE = re.compile(r"(?:^|[._])(?:gate|router)$")
"""Names of what chooses or weighs experts: router, gate, shared_expert_gate; never gate_proj."""
_TRANSPOSED = ("Llama4TextExperts",)
"""Experts whose matrices are [E, input, output] and do not say so."""


@dataclass(frozen=True)
class Rounding:
    """How the weights are rounded."""

    bits: int
    """2 to 16 of each weight; a group has a scale and a zero point beside them."""
    group_size: int = GROUP_SIZE
    """Weights along the input dimension with one scale; the last group of a row may be shorter."""
    what: What = "all"
    """experts: the routed experts' matrices alone; all: also those of attention, shared experts, dense blocks and the
    head (with the embedding where both are one matrix)."""

    def __post_init__(self) -> None:
        if not FEWEST_BITS <= self.bits <= MOST_BITS:
            raise UsageError(f"{self.bits} bits; expected {FEWEST_BITS} to {MOST_BITS}, such as 8 or 4")
        if self.group_size < 1:
            raise UsageError(f"groups of {self.group_size} weights; expected 1 or more, such as {GROUP_SIZE}")

    @property
    def name(self) -> str:
        """Such as "4 bits", "4 bits in experts"."""
        return f"{self.bits} bits{' in experts' if self.what == 'experts' else ''}"


@dataclass(frozen=True)
class Rounded:
    """What was rounded, and by how much it is off."""

    weights: int
    """How many."""
    of: int
    """Of so many in the model."""
    tensors: int
    error: float
    """Root of the mean squared error over that of the mean squared weight: 0 = as before."""

    def describe(self, rounding: Rounding) -> str:
        """What was done, for people."""
        return (
            f"{fixed(100 * self.weights / self.of, 1)} % of {self.of:,} weights ({rounding.what}) were rounded to "
            f"{rounding.bits} bits in groups of {rounding.group_size} along the input, asymmetric, to nearest: they "
            f"are off by {percent(self.error)} of their size. Routers, norms and biases are as they were."
        )


class Matrix(NamedTuple):
    """A parameter that is rounded."""

    name: str
    parameter: Tensor
    is_transposed: bool
    """Whether its input dimension is the last but one, instead of the last."""


def round_in_place(model: nn.Module, rounding: Rounding, progress: Progress = silent) -> Rounded:
    """Round the weights of a model that nobody else uses. Its answers change from now on.

    Raises UsageError without torchao, and for a model whose experts are not matrices that can be rounded.
    """
    import torch

    primitives()  # refused before anything is changed
    found = matrices(model, rounding.what)
    total = sum(one.parameter.numel() for one in found)
    squares, errors, done = 0.0, 0.0, 0
    for one in found:
        for rows in _row_chunks(one):
            before = rows.to(torch.float32)
            after = rounded(before, rounding)
            errors += float((after - before).square().sum(dtype=torch.float64))
            squares += float(before.square().sum(dtype=torch.float64))
            with torch.no_grad():
                rows.copy_(after)
            done += rows.numel()
            progress(f"rounding to {rounding.bits} bits", done, total)
    whole = sum(parameter.numel() for parameter in model.parameters())
    return Rounded(total, whole, len(found), (errors / squares) ** 0.5 if squares else 0.0)


def rounded(weights: Tensor, rounding: Rounding) -> Tensor:
    """float32 [..., D], the groups along D: what is left of the weights. Not in place."""
    import torch

    width = weights.shape[-1]
    whole = width - width % rounding.group_size
    parts = []
    for start, end, group in ((0, whole, rounding.group_size), (whole, width, width - whole)):
        if end > start:
            part = weights[..., start:end].contiguous()
            parts.append(_rounded_groups(part, (*[1] * (part.dim() - 1), group), rounding.bits))
    return torch.cat(parts, dim=-1)


def _rounded_groups(weights: Tensor, block: tuple[int, ...], bits: int) -> Tensor:
    import torch

    library, most = primitives(), 2**bits - 1
    # int32 holds any number of bits: the limits say how many there are.
    scale, zero = library.choose_qparams_affine(
        weights, library.MappingType.ASYMMETRIC, block, torch.int32, 0, most, scale_dtype=torch.float32
    )
    whole = library.quantize_affine(weights, block, scale, zero, torch.int32, 0, most)
    back: Tensor = library.dequantize_affine(
        whole, block, scale, zero, torch.int32, 0, most, output_dtype=torch.float32
    )
    return back


def matrices(model: nn.Module, what: What) -> list[Matrix]:
    """What is rounded, each parameter once. Raises UsageError where a layer's experts are no matrices."""
    from torch import nn

    from moe_core.routing.instruments.find import find_routers

    routers = find_routers(model)
    places: dict[str, nn.Module] = dict(model.named_modules())
    inside: list[str] = []
    found: dict[int, Matrix] = {}
    for layer, router in routers.items():
        name = _experts_name(places, router.name)
        own = list(_stacked(name, places[name])) if name is not None else []
        if name is None or not own:
            raise UsageError(
                f"the experts of layer {layer} cannot be rounded: {type(model).__name__} does not keep them as "
                "matrices [experts, output, input]; expected a run, or a family that does, such as mixtral, qwen3_moe, "
                "olmoe, gpt_oss or deepseek_v3"
            )
        inside.append(f"{name}.")
        found |= {id(one.parameter): one for one in own}
    if what == "all":
        chooses = tuple(f"{router.name}." for router in routers.values() if router.name + "." not in inside)
        for name, module in places.items():
            is_apart = f"{name}.".startswith((*inside, *chooses)) or _GATE.search(name) is not None
            if isinstance(module, nn.Linear) and not is_apart:
                found.setdefault(id(module.weight), Matrix(f"{name}.weight", module.weight, False))
        if isinstance(head := getattr(model, "head", None), nn.Parameter):  # ours: the embedding, transposed
            found.setdefault(id(head), Matrix("embedding.weight", head, False))
    if coded := next((one for one in found.values() if not one.parameter.is_floating_point()), None):
        raise UsageError(
            f"{coded.name} holds {str(coded.parameter.dtype).removeprefix('torch.')}: this model is quantised already; "
            "expected weights in float32, bfloat16 or float16"
        )
    return list(found.values())


def _experts_name(places: dict[str, nn.Module], router: str) -> str | None:
    """The module with the experts that a router, or the block around it, has beside it."""
    block = router.rpartition(".")[0]
    if router.endswith("experts"):  # the experts module itself is watched
        return router
    return f"{block}.experts" if f"{block}.experts" in places else None


def _stacked(name: str, experts: nn.Module) -> Iterator[Matrix]:
    """Its parameters [E, ., .], and the weights of single experts' layers."""
    from torch import nn

    turned = bool(getattr(experts, "is_transposed", type(experts).__name__ in _TRANSPOSED))
    for own, parameter in experts.named_parameters():
        holder = experts.get_submodule(own.rpartition(".")[0])
        if parameter.dim() == 3:
            yield Matrix(f"{name}.{own}", parameter, turned)
        elif isinstance(holder, nn.Linear) and own.endswith("weight"):
            yield Matrix(f"{name}.{own}", parameter, False)


def _row_chunks(one: Matrix) -> Iterator[Tensor]:
    """Views [..., D] of the parameter, D its input dimension, each of bounded size: some experts, or rows of one."""
    values = one.parameter.detach()
    values = values.transpose(-1, -2) if one.is_transposed else values
    together = _CHUNK_WEIGHTS // max(1, values[0].numel()) if values.dim() == 3 else 0
    if together > 1:
        yield from (values[start : start + together] for start in range(0, len(values), together))
        return
    for matrix in values if values.dim() == 3 else (values,):
        rows = max(1, _CHUNK_WEIGHTS // max(1, matrix.shape[-1]))
        yield from matrix.split(rows)


def missing_library() -> bool:
    """Whether torchao is not installed; it is not imported to say so."""
    return importlib.util.find_spec("torchao") is None


def check_library() -> None:
    """Raises UsageError where the extra is missing."""
    if missing_library():
        raise UsageError(
            "rounding weights needs torchao, which is not installed; python -m pip install -r "
            "requirements-low-precision.txt in a checkout, else pip install 'moescope[low-precision]'"
        )


@functools.cache
def primitives() -> Any:
    """torchao's quantisation primitives, imported when they are first asked for, which takes two seconds."""
    check_library()
    with quiet_torchao():
        from torchao.quantization import quant_primitives
    return quant_primitives
