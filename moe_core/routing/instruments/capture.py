"""Record what the routers of a live model choose, without changing its output by a bit.

Works on our models, on those of the transformers library, and on any torch module whose routers obey the router
contract: class attribute `is_moe_router = True`, and a forward that returns (router_logits [T,E], router_scores [T,K],
router_indices [T,K]). Choices and weights are taken as the model made them, never recomputed from logits. torch is
imported only once there is a model to look at, so that analysis of stored traces starts without it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moe_core.errors import TraceError
from moe_core.routing.instruments.contract import Call, Router, is_recomputing, never_compiled
from moe_core.routing.instruments.find import find_routers
from moe_core.routing.trace.arrays import HALF_MAX
from moe_core.routing.trace.joining import positions_within
from moe_core.routing.trace.trace import RoutingTrace
from moe_core.routing.trace.types import BoolArray

if TYPE_CHECKING:
    import torch


_INPUTS = ("input_ids", "inputs_embeds", "decoder_input_ids", "token_ids")


class _Call(NamedTuple):
    """One call of one router: compact copies on the model's device, [T,K], [T,K] and [T,E]."""

    indices: torch.Tensor
    scores: torch.Tensor
    logits: torch.Tensor | None
    num_experts: int


class Recorder:
    """Collects router outputs while its `capture` is open; afterwards `trace(...)` turns them into a RoutingTrace."""

    def __init__(self, routers: Mapping[int, Router], *, keep_logits: bool) -> None:
        self._thread: int | None = threading.get_ident()
        """Whose calls are recorded; None while paused."""
        self._keep_logits = keep_logits
        self._routers = dict(routers)
        self._calls: dict[int, list[_Call]] = {layer: [] for layer in routers}
        self._read: list[tuple[int, ...]] = []
        """Rows and columns of the token ids of each forward pass, as far as the model itself was called."""
        functions = {router.score_function for router in routers.values()}
        if len(functions) > 1:
            raise TraceError(f"routers use different score functions ({', '.join(sorted(functions))}); expected one")
        self._score_function: Any = functions.pop()
        self._varying_experts = any(router.varying_experts for router in routers.values())

    @property
    def layers(self) -> list[int]:
        """Layer numbers of the routers that are recorded, ascending."""
        return list(self._calls)

    @property
    def num_tokens(self) -> int:
        """Tokens recorded so far, padding included."""
        return sum(len(call.indices) for call in self._calls[self.layers[0]])

    def pause(self) -> None:
        """Record nothing until `restarted`."""
        self._thread = None

    @contextmanager
    def restarted(self) -> Iterator[None]:
        """Forget what was recorded, record what the calling thread does inside the block, then pause.

        For a text that is read token by token: the hooks stay, and a generator may hold the capture open over a yield,
        whoever continues it and whatever its consumer does with the same model meanwhile.
        """
        for calls in self._calls.values():
            calls.clear()
        self._read.clear()
        self._thread = threading.get_ident()
        try:
            yield
        finally:
            self.pause()

    def choices(self, num_tokens: int) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.float32]]:
        """router_indices and router_scores, [L,T,K], of everything recorded: `num_tokens` tokens. Raises TraceError as
        `trace` does."""
        self._check_calls()
        if self.num_tokens != num_tokens:
            raise TraceError(
                f"the routers were given {self.num_tokens} tokens; expected the {num_tokens} that were read"
            )
        return self._joined_calls("indices"), self._joined_calls("scores")

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
        """The trace of everything recorded so far, forward passes joined in their order along T.

        Per-token arguments cover all recorded tokens, padding included, as [T] or [B,S] (flattened row by row, as the
        model does). `keep`: bool, False drops a token. `attention_mask`, as the model got it: 0 drops a token, and
        positions count the others alone, whichever side is padded. Without `document_ids` each row of [B,S] token ids
        is one document. `vocabulary`: the printable text of each token id; only ids that occur are stored.
        Rows that were read piece by piece, as generate() does, are put together again if the ids come as [B,S]: without
        the last token, which the model wrote but never read.
        Raises TraceError if a router stayed silent, routers fired unequally often, or lengths do not fit.
        """
        self._check_calls()
        ids = np.atleast_1d(_to_numpy(token_ids))
        order = self._order(ids)
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
        return RoutingTrace.from_arrays(
            router_indices=self._joined_calls("indices")[:, recorded],
            router_scores=self._joined_calls("scores")[:, recorded],
            router_logits=self._joined_calls("logits")[:, recorded] if self._has_logits() else None,
            num_experts=self._calls[self.layers[0]][0].num_experts,
            token_ids=ids,
            document_ids=documents[kept],
            source_ids=None if source_ids is None else self._flat_values("source_ids", source_ids)[kept],
            positions=places[kept],
            domain_ids=None if domain_ids is None else self._flat_values("domain_ids", domain_ids)[kept],
            domains=domains,
            predicted_ids=guesses,
            layers=self.layers,
            score_function=self._score_function,
            varying_experts=self._varying_experts,
            source=source,
            vocabulary=None if vocabulary is None else _texts_of_ids(vocabulary, ids, guesses),
        )

    def _record(self, router: Router, call: Call) -> None:
        """Keep a compact copy of what one router chose; called by its hook, in any thread."""
        import torch

        # A cached model is shared between sessions: perhaps another one is using it.
        if threading.get_ident() != self._thread or is_recomputing():
            return

        # Some choices have to be computed from the output; nothing of that may be kept for a backward pass.
        with torch.no_grad():
            logits, scores, indices = router.read(call)
        keep = self._keep_logits and logits is not None
        self._calls[router.layer].append(
            _Call(
                # copy=True: the model may go on to change its tensors in place.
                indices.detach().to(torch.int16, copy=True),
                scores.detach().to(torch.float32, copy=True),
                _half_precision(logits.detach(), self._score_function) if keep and logits is not None else None,
                router.num_experts if logits is None else logits.shape[1],
            )
        )

    def _note_input(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Remember the shape of what the model is about to read; called by its hook, in any thread."""
        if threading.get_ident() == self._thread and not is_recomputing():
            given = next((kwargs[name] for name in _INPUTS if kwargs.get(name) is not None), args[0] if args else None)
            self._read.append(tuple(getattr(given, "shape", ()))[:2])

    def _order(self, ids: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """[T] where each token of the flattened ids stands among the recorded ones."""
        calls = next(iter(self._calls.values()))
        straight = np.arange(self.num_tokens)
        pieces = (
            self._read if [math.prod(shape) for shape in self._read] == [len(call.indices) for call in calls] else []
        )
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

    def _has_logits(self) -> bool:
        """Some models keep their logits to themselves."""
        return self._keep_logits and all(call.logits is not None for calls in self._calls.values() for call in calls)

    def _check_calls(self) -> None:
        fired = {layer: len(calls) for layer, calls in self._calls.items()}
        silent = [self._routers[layer].name for layer, count in fired.items() if not count]
        if silent:
            raise TraceError(
                f"router {silent[0]!r} stayed silent ({len(silent)} of {len(fired)} did); run the model inside "
                "`with capture(model)`, in the same thread, and not as a compiled or replaced module "
                "(torch.compiler.set_stance('force_eager') runs it uncompiled)"
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

    def _joined_calls(self, name: str) -> npt.NDArray[Any]:
        """[L,T,...] of one kind of output over all forward passes, on the host."""
        import torch

        return np.stack([torch.cat([getattr(c, name) for c in calls]).cpu().numpy() for calls in self._calls.values()])

    def _flat_values(self, name: str, values: npt.ArrayLike) -> npt.NDArray[Any]:
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
    nested, each records. What gradient checkpointing computes once more while it goes backward is recorded once: the
    first time. `keep_logits=False` leaves the logits out (E numbers per token and layer). In a generator open
    it around each step, or pause it at each yield: the consumer may continue it from another thread.
    Raises TraceError if the model has no routers, or one returns something else than the contract says.
    """
    routers = find_routers(model)
    recorder = Recorder(routers, keep_logits=keep_logits)
    handles: list[Any] = []
    try:
        handles.append(model.register_forward_pre_hook(never_compiled(_noting(recorder)), with_kwargs=True))
        for router in routers.values():
            handles += router.attach(never_compiled(_watch(recorder, router)))
        yield recorder
    finally:
        for handle in handles:
            handle.remove()


def _half_precision(logits_TE: torch.Tensor, score_function: str) -> torch.Tensor:
    """A float16 copy, as half_precision_logits makes one, on the model's device."""
    import torch

    wide = logits_TE.double() if logits_TE.dtype == torch.float64 else logits_TE.float()
    finite = wide.isfinite()
    if score_function == "softmax":
        largest = wide.masked_fill(~finite, -math.inf).amax(dim=-1, keepdim=True)
        wide = torch.where(largest > HALF_MAX, wide - largest, wide)
    return torch.where(finite, wide.clamp(-HALF_MAX, HALF_MAX), logits_TE).to(torch.float16)


def _noting(recorder: Recorder) -> Callable[..., None]:
    def note(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG001
        recorder._note_input(args, kwargs)

    return note


def _watch(recorder: Recorder, router: Router) -> Callable[[Call], None]:
    def watch(call: Call) -> None:
        # Returns None whatever happens: anything else would replace the router's output.
        recorder._record(router, call)

    return watch


def _texts_of_ids(
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
