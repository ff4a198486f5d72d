"""What a capture recorded, on its way from the device: choices as arrays, or a RoutingTrace."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_core.errors import TraceError
from moe_core.routing.instruments.host_copies import HostCopies
from moe_core.routing.trace.joining import positions_within
from moe_core.routing.trace.trace import RoutingTrace
from moe_core.routing.trace.types import BoolArray, Float16Array, Float32Array, Int16Array, ScoreFunction


@dataclass(frozen=True, eq=False)
class Recorded:
    """All tokens of some forward passes, joined in their order along T. Its methods wait for the device; another thread
    than the one that records may call them."""

    layers: list[int]
    """[L] ascending."""
    num_tokens: int
    """T, padding included."""
    num_experts: int
    score_function: ScoreFunction
    varying_experts: bool
    null_experts: int
    has_logits: bool
    passes: list[tuple[int, ...]]
    """Rows and columns of the token ids of each pass, as far as the model itself was called."""
    tokens_of_passes: list[int]
    copies: HostCopies
    """[L,T,K] indices, [L,T,K] scores and, with `has_logits`, [L,T,E] logits."""

    def choices(self, num_tokens: int) -> tuple[Int16Array, Float32Array]:
        """router_indices and router_scores, [L,T,K]. Raises TraceError unless they are of `num_tokens` tokens."""
        if self.num_tokens != num_tokens:
            raise TraceError(
                f"the routers were given {self.num_tokens} tokens; expected the {num_tokens} that were read"
            )
        indices_LTK, scores_LTK, *_ = self.copies.arrays()
        return indices_LTK, scores_LTK

    def logits(self) -> Float16Array | None:
        """router_logits, [L,T,E]; None where they were not kept, or the model keeps them to itself."""
        return self.copies.arrays()[2] if self.has_logits else None

    def trace(
        self,
        *,
        token_ids: npt.ArrayLike,
        document_ids: npt.ArrayLike | None = None,
        source_ids: npt.ArrayLike | None = None,
        positions: npt.ArrayLike | None = None,
        domain_ids: npt.ArrayLike | None = None,
        domains: Sequence[str] | None = None,
        predicted_ids: npt.ArrayLike | None = None,
        source: str = "",
        vocabulary: Sequence[str] | Mapping[int, str] | None = None,
        keep: npt.ArrayLike | None = None,
        attention_mask: npt.ArrayLike | None = None,
    ) -> RoutingTrace:
        """See Recorder.trace."""
        ids = np.atleast_1d(to_numpy(token_ids))
        order = self.order(ids)
        documents = (
            np.repeat(np.arange(len(ids)) if ids.ndim > 1 else 0, ids[0].size if ids.ndim > 1 else ids.size)
            if document_ids is None
            else self._flat_values("document_ids", document_ids)
        )
        ids = self._flat_values("token_ids", ids)
        kept = self._kept_tokens(keep, attention_mask)
        if positions is not None:
            places = self._flat_values("positions", positions)
        elif attention_mask is None:
            places = positions_within(documents)
        else:
            places = np.zeros_like(documents)
            places[kept] = positions_within(documents[kept])
        ids = ids[kept]
        recorded = order[kept]
        guesses = None if predicted_ids is None else self._flat_values("predicted_ids", predicted_ids)[kept]
        indices_LTK, scores_LTK = self.choices(self.num_tokens)
        logits_LTE = self.logits()
        return RoutingTrace.from_arrays(
            router_indices=indices_LTK[:, recorded],
            router_scores=scores_LTK[:, recorded],
            router_logits=None if logits_LTE is None else logits_LTE[:, recorded],
            num_experts=self.num_experts,
            token_ids=ids,
            document_ids=documents[kept],
            source_ids=None if source_ids is None else self._flat_values("source_ids", source_ids)[kept],
            positions=places[kept],
            domain_ids=None if domain_ids is None else self._flat_values("domain_ids", domain_ids)[kept],
            domains=domains,
            predicted_ids=guesses,
            layers=self.layers,
            score_function=self.score_function,
            varying_experts=self.varying_experts,
            null_experts=self.null_experts,
            source=source,
            vocabulary=None if vocabulary is None else texts_of_ids(vocabulary, ids, guesses),
        )

    def order(self, ids: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """[T] where each token of the flattened ids, or of any array of their shape, stands among the recorded ones."""
        straight = np.arange(self.num_tokens)
        pieces = self.passes if [math.prod(shape) for shape in self.passes] == self.tokens_of_passes else []
        rows = len(ids)
        if len(pieces) < 2 or ids.ndim != 2 or any(len(shape) != 2 or shape[0] != rows for shape in pieces):
            return straight
        if sum(shape[1] for shape in pieces) != ids.shape[1]:
            return straight
        ends = np.cumsum([math.prod(shape) for shape in pieces])[:-1]
        return np.hstack([piece.reshape(rows, -1) for piece in np.split(straight, ends)]).reshape(-1)

    def _kept_tokens(self, keep: npt.ArrayLike | None, attention_mask: npt.ArrayLike | None) -> BoolArray:
        if keep is not None and attention_mask is not None:
            raise TraceError("keep and attention_mask were both given; expected one of the two")
        if attention_mask is not None:
            mask: BoolArray = self._flat_values("attention_mask", attention_mask) != 0
            return mask
        kept: BoolArray = np.ones(self.num_tokens, bool) if keep is None else self._flat_values("keep", keep)
        if kept.dtype != np.bool_:
            raise TraceError(f"keep is {kept.dtype}; expected bool, False for padding")
        return kept

    def _flat_values(self, name: str, values: npt.ArrayLike) -> npt.NDArray[Any]:
        flat = to_numpy(values).reshape(-1)
        if flat.size != self.num_tokens:
            raise TraceError(f"{name} has {flat.size} entries; expected {self.num_tokens}, one for each routed token")
        return flat


def texts_of_ids(
    vocabulary: Sequence[str] | Mapping[int, str], ids: npt.NDArray[Any], guesses: npt.NDArray[Any] | None
) -> dict[int, str]:
    """Texts of the ids that occur. A model's output may be wider than its vocabulary: such a guess has no text."""
    texts = {int(i): vocabulary[int(i)] for i in np.unique(ids)}
    if guesses is not None:
        known = vocabulary if isinstance(vocabulary, Mapping) else range(len(vocabulary))
        texts |= {int(i): vocabulary[int(i)] for i in np.unique(guesses) if int(i) in known}
    return texts


def to_numpy(values: Any) -> npt.NDArray[Any]:
    """Of a tensor on any device, or of what numpy takes."""
    return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
