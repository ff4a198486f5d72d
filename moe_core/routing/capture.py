"""Record what the routers of a live model choose, without changing its output by a bit.

Works on our models, on those of the transformers library, and on any torch module whose routers obey the router
contract: class attribute `is_moe_router = True`, and a forward that returns (router_logits [T,E], router_scores [T,K],
router_indices [T,K]). Choices and weights are taken as the model made them, never recomputed from logits. torch is
imported only once there is a model to look at, so that analysis of stored traces starts without it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moe_core.errors import TraceError
from moe_core.routing.routers import Call, Router, find_routers
from moe_core.routing.trace import RoutingTrace, positions_within
from moe_core.routing.types import BoolArray

if TYPE_CHECKING:
    import torch


class _Call(NamedTuple):
    """One call of one router: compact copies on the model's device, [T,K], [T,K] and [T,E]."""

    indices: torch.Tensor
    scores: torch.Tensor
    logits: torch.Tensor | None
    num_experts: int


class Recorder:
    """Collects router outputs while its `capture` is open; afterwards `trace(...)` turns them into a RoutingTrace."""

    def __init__(self, routers: Mapping[int, Router], *, keep_logits: bool) -> None:
        self._thread = threading.get_ident()
        self._keep_logits = keep_logits
        self._routers = dict(routers)
        self._calls: dict[int, list[_Call]] = {layer: [] for layer in routers}
        functions = {router.score_function for router in routers.values()}
        if len(functions) > 1:
            raise TraceError(f"routers use different score functions ({', '.join(sorted(functions))}); expected one")
        self._score_function: Any = functions.pop()

    @property
    def layers(self) -> list[int]:
        """Layer numbers of the routers that are recorded, ascending."""
        return list(self._calls)

    @property
    def num_tokens(self) -> int:
        """Tokens recorded so far, padding included."""
        return sum(len(call.indices) for call in self._calls[self.layers[0]])

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
    ) -> RoutingTrace:
        """The trace of everything recorded so far, forward passes joined in their order along T.

        Per-token arguments cover all recorded tokens, padding included, as [T] or [B,S] (flattened row by row, as the
        model does). `keep`: bool, False drops a token (padding). Without `document_ids` each row of [B,S] token ids is
        one document. `vocabulary`: the printable text of each token id; only ids that occur are stored.
        Raises TraceError if a router stayed silent, routers fired unequally often, or lengths do not fit.
        """
        self._check_calls()
        ids = np.atleast_1d(_to_numpy(token_ids))
        documents = (
            np.repeat(np.arange(len(ids)) if ids.ndim > 1 else 0, ids[0].size if ids.ndim > 1 else ids.size)
            if document_ids is None
            else self._flat("document_ids", document_ids)
        )
        ids = self._flat("token_ids", ids)
        places = positions_within(documents) if positions is None else self._flat("positions", positions)
        kept: BoolArray = np.ones(len(ids), bool) if keep is None else self._flat("keep", keep)
        if kept.dtype != np.bool_:
            raise TraceError(f"keep is {kept.dtype}; expected bool, False for padding")
        ids = ids[kept]
        guesses = None if predicted_ids is None else self._flat("predicted_ids", predicted_ids)[kept]
        return RoutingTrace.from_arrays(
            router_indices=self._joined("indices")[:, kept],
            router_scores=self._joined("scores")[:, kept],
            router_logits=self._joined("logits")[:, kept] if self._keep_logits else None,
            num_experts=self._calls[self.layers[0]][0].num_experts,
            token_ids=ids,
            document_ids=documents[kept],
            source_ids=None if source_ids is None else self._flat("source_ids", source_ids)[kept],
            positions=places[kept],
            domain_ids=None if domain_ids is None else self._flat("domain_ids", domain_ids)[kept],
            domains=domains,
            predicted_ids=guesses,
            layers=self.layers,
            score_function=self._score_function,
            source=source,
            vocabulary=None if vocabulary is None else _texts(vocabulary, ids, guesses),
        )

    def _record(self, router: Router, call: Call) -> None:
        """Keep a compact copy of what one router chose; called by its hook, in any thread."""
        if threading.get_ident() != self._thread:
            return  # a cached model is shared between sessions: another one is using it
        import torch

        logits, scores, indices = router.read(call)
        keep = self._keep_logits and logits is not None
        self._calls[router.layer].append(
            _Call(
                # copy=True: the model may go on to change its tensors in place.
                indices.detach().to(torch.int16, copy=True),
                scores.detach().to(torch.float32, copy=True),
                logits.detach().to(torch.float16, copy=True) if keep and logits is not None else None,
                router.num_experts if logits is None else logits.shape[1],
            )
        )

    def _check_calls(self) -> None:
        fired = {layer: len(calls) for layer, calls in self._calls.items()}
        silent = [self._routers[layer].name for layer, count in fired.items() if not count]
        if silent:
            raise TraceError(
                f"router {silent[0]!r} stayed silent ({len(silent)} of {len(fired)} did); run the model inside "
                "`with capture(model)`, in the same thread, and not as a compiled or replaced module"
            )
        if len(set(fired.values())) > 1:
            counts = ", ".join(f"layer {layer}: {count}" for layer, count in fired.items())
            raise TraceError(f"routers fired a different number of times ({counts}); expected whole forward passes")
        for number, calls in enumerate(zip(*self._calls.values(), strict=True)):
            shapes = {(*call.indices.shape, call.num_experts) for call in calls}
            if len(shapes) > 1:
                raise TraceError(
                    f"in forward pass {number} the routers differ in [T,K,E]: {sorted(shapes)}; "
                    "expected the same tokens, slots and experts in every layer"
                )

    def _joined(self, name: str) -> npt.NDArray[Any]:
        """[L,T,...] of one kind of output over all forward passes, on the host."""
        import torch

        return np.stack([torch.cat([getattr(c, name) for c in calls]).cpu().numpy() for calls in self._calls.values()])

    def _flat(self, name: str, values: npt.ArrayLike) -> npt.NDArray[Any]:
        flat = _to_numpy(values).reshape(-1)
        if flat.size != self.num_tokens:
            raise TraceError(f"{name} has {flat.size} entries; expected {self.num_tokens}, one for each routed token")
        return flat


@contextmanager
def capture(model: torch.nn.Module, *, keep_logits: bool = True) -> Iterator[Recorder]:
    """Record every router call that this thread makes inside the block.

        with capture(model) as recorder:
            model(token_ids)
        trace = recorder.trace(token_ids=token_ids)

    The model's output stays bit-identical; the hooks come off in every case, also after an exception. Captures may be
    nested, each records. `keep_logits=False` leaves the logits out (E numbers per token and layer). In a generator open
    it around each step, not around a yield: the consumer may continue it from another thread.
    Raises TraceError if the model has no routers, or one returns something else than the contract says.
    """
    routers = find_routers(model)
    recorder = Recorder(routers, keep_logits=keep_logits)
    handles: list[Any] = []
    try:
        for router in routers.values():
            handles += router.attach(_watch(recorder, router))
        yield recorder
    finally:
        for handle in handles:
            handle.remove()


def _watch(recorder: Recorder, router: Router) -> Callable[[Call], None]:
    def watch(call: Call) -> None:
        # Returns None whatever happens: anything else would replace the router's output.
        recorder._record(router, call)

    return watch


def _texts(
    vocabulary: Sequence[str] | Mapping[int, str], ids: npt.NDArray[Any], guesses: npt.NDArray[Any] | None
) -> dict[int, str]:
    """Texts of the ids that occur. A model's output may be wider than its vocabulary: such a guess has no text."""
    texts = {int(i): vocabulary[int(i)] for i in np.unique(ids)}
    if guesses is not None:
        known = vocabulary if isinstance(vocabulary, Mapping) else range(len(vocabulary))
        texts |= {int(i): vocabulary[int(i)] for i in np.unique(guesses) if int(i) in known}
    return texts


def _to_numpy(values: Any) -> npt.NDArray[Any]:
    return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
