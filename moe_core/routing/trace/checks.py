"""What makes a RoutingTrace consistent: types, shapes and ranges of its arrays; errors name the value."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt

from moe_core.errors import TraceError
from moe_core.routing.trace.arrays import describe, some
from moe_core.routing.trace.types import ScoreFunction

if TYPE_CHECKING:
    from moe_core.routing.trace.trace import RoutingTrace

MAX_EXPERTS = 32_767  # int16
MAX_PAIR_BYTES = 2**28
"""Largest counts [L,E,E] of pairs of experts that a measure may make: more experts are refused before memory is taken.
Of 61 layers that is 741 experts, of 4 layers 2,896."""

# Name, dtype and axes of every array of a trace.
ARRAYS: tuple[tuple[str, type[np.generic], str], ...] = (
    ("router_indices", np.int16, "LTK"),
    ("router_scores", np.float32, "LTK"),
    ("router_logits", np.float16, "LTE"),
    ("token_ids", np.int32, "T"),
    ("document_ids", np.int32, "T"),
    ("source_ids", np.int32, "T"),
    ("positions", np.int32, "T"),
    ("domain_ids", np.int16, "T"),
    ("predicted_ids", np.int32, "T"),
    ("label_ids", np.int16, "T"),
)
OPTIONAL = ("router_logits", "predicted_ids", "label_ids")


def check_sizes(L: int, K: int, E: int) -> None:
    """Raise TraceError unless so many layers, slots and experts are possible and can be counted."""
    if not 1 <= E <= MAX_EXPERTS or K > E:
        raise TraceError(f"num_experts is {E} with {K} slots per token; expected {K} to {MAX_EXPERTS} experts")
    if 8 * L * E**2 > MAX_PAIR_BYTES:
        raise TraceError(
            f"num_experts is {E} in {L} layers: their pairs alone would be {8 * L * E**2 / 2**30:,.1f} GiB of counts; "
            f"expected {math.isqrt(MAX_PAIR_BYTES // (8 * L))} experts at most"
        )


def check_shapes(trace: RoutingTrace) -> None:
    """Raise TraceError unless all arrays fit together."""
    L, T, K = trace.router_indices.shape
    E = trace.num_experts
    if not (L and T and K):
        raise TraceError(f"router_indices is {describe(trace.router_indices)}: nothing was routed; expected [L,T,K]")
    check_sizes(L, K, E)
    if not 0 <= trace.null_experts < E:
        raise TraceError(
            f"null_experts is {trace.null_experts}; expected 0 to {E - 1}: they are some of the {E} experts"
        )
    sizes = {"L": L, "T": T, "K": K, "E": E}
    for name, _, axes in ARRAYS:
        value = getattr(trace, name)
        expected = tuple(sizes[axis] for axis in axes)
        if value is not None and value.shape != expected:
            raise TraceError(
                f"{name} has shape {list(value.shape)}; expected {list(expected)} = [{','.join(axes)}] "
                "to fit router_indices and num_experts"
            )
    if len(trace.layers) != L or sorted(set(trace.layers)) != trace.layers or trace.layers[0] < 0:
        raise TraceError(f"layers is {some(trace.layers)}; expected {L} ascending layer numbers, one per routed layer")
    if not trace.domains or len(set(trace.domains)) != len(trace.domains):
        raise TraceError(f"domains is {some(trace.domains)}; expected at least one name, each once")
    if len(set(trace.labels)) != len(trace.labels) or (trace.label_ids is None) != (not trace.labelling):
        raise TraceError(
            f"labels is {some(trace.labels)}, labelling {trace.labelling!r}; expected each label once, and a name of "
            "the labelling exactly where there are label_ids"
        )


def check_values(trace: RoutingTrace) -> None:
    """Raise TraceError unless every number is in its range."""
    indices, scores = trace.router_indices, trace.router_scores
    if trace.score_function not in get_args(ScoreFunction):
        raise TraceError(
            f"score_function is {trace.score_function!r}; expected one of {', '.join(get_args(ScoreFunction))}"
        )
    _check_range("router_indices", indices, -1, trace.num_experts - 1)
    _check_different(indices)
    _check_range("domain_ids", trace.domain_ids, 0, len(trace.domains) - 1)
    _check_range("token_ids", trace.token_ids, 0, np.iinfo(np.int32).max)
    _check_range("positions", trace.positions, 0, np.iinfo(np.int32).max)
    if trace.label_ids is not None:
        _check_range("label_ids", trace.label_ids, -1, len(trace.labels) - 1)
    if trace.predicted_ids is not None:
        _check_range("predicted_ids", trace.predicted_ids, 0, np.iinfo(np.int32).max)
    if not np.isfinite(scores).all():
        raise TraceError("router_scores holds NaN or infinity; expected finite numbers")
    logits = trace.router_logits
    if logits is not None and not (logits < np.inf).all():  # NaN is not smaller either
        raise TraceError(
            "router_logits holds NaN or +infinity; expected numbers, or -infinity for an expert that is masked"
        )
    if ((indices < 0) & (scores != 0)).any():
        raise TraceError("a slot with index -1 (unused) has a score other than 0; expected 0 there")


def _check_different(indices_LTK: npt.NDArray[np.int16]) -> None:
    """A router never chooses one expert twice: such a token was recorded wrongly, and would be a pair with itself."""
    for layer, indices_TK in enumerate(indices_LTK):
        slots_KT = np.ascontiguousarray(indices_TK.T)
        for slot in range(1, len(slots_KT)):
            twice_T = ((slots_KT[:slot] == slots_KT[slot]) & (slots_KT[slot] >= 0)).any(axis=0)
            if twice_T.any():
                t = int(twice_T.argmax())
                raise TraceError(
                    f"router_indices of token {t}, layer number {layer} of the trace: expert {slots_KT[slot, t]} "
                    "twice; expected different experts, -1 for a slot that is not used"
                )


def _check_range(name: str, values: npt.NDArray[np.integer[Any]], low: int, high: int) -> None:
    smallest, largest = int(values.min()), int(values.max())
    if smallest < low or largest > high:
        wrong = smallest if smallest < low else largest
        raise TraceError(f"{name} holds {wrong}; expected {low} to {high}")
