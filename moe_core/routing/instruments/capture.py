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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from moe_core.errors import TraceError
from moe_core.routing.instruments.contract import Call, Router, changed_choice, is_recomputing, never_compiled
from moe_core.routing.instruments.find import find_routers
from moe_core.routing.instruments.host_copies import HostCopies
from moe_core.routing.instruments.recorded import Recorded
from moe_core.routing.trace.arrays import HALF_MAX
from moe_core.routing.trace.trace import RoutingTrace
from moe_core.routing.trace.types import Float32Array, Int16Array

if TYPE_CHECKING:
    import torch


_INPUTS = ("input_ids", "inputs_embeds", "decoder_input_ids", "token_ids")


@dataclass
class _Call:
    """One call of one router, on the model's device: copies as they come, [T,K], [T,K] and [T,E]. Once the router is
    called again they are int16, float32 and float16."""

    indices: torch.Tensor
    scores: torch.Tensor
    logits: torch.Tensor | None
    num_experts: int
    are_reported: bool
    """Whether the logits are as the router reports them, see Form.true_logits; an intervention's are not."""
    is_compact: bool = False


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
        self._null_experts = max(router.null_experts for router in routers.values())

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

    def recorded(self) -> Recorded:
        """Everything recorded so far, on its way to the host: the device is not waited for. Raises TraceError as
        `trace` does."""
        self._check_calls()
        first = self._calls[self.layers[0]]
        has_logits = self._has_logits()
        tensors = self._joined_calls(has_logits)
        return Recorded(
            layers=self.layers,
            num_tokens=self.num_tokens,
            num_experts=first[0].num_experts,
            score_function=self._score_function,
            varying_experts=self._varying_experts,
            null_experts=self._null_experts,
            has_logits=has_logits,
            passes=list(self._read),
            tokens_of_passes=[len(call.indices) for call in first],
            copies=HostCopies(tensors),
        )

    def choices(self, num_tokens: int) -> tuple[Int16Array, Float32Array]:
        """router_indices and router_scores, [L,T,K], of everything recorded: `num_tokens` tokens. Raises TraceError as
        `trace` does."""
        return self.recorded().choices(num_tokens)

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
        return self.recorded().trace(
            token_ids=token_ids,
            document_ids=document_ids,
            source_ids=source_ids,
            positions=positions,
            domain_ids=domain_ids,
            domains=domains,
            predicted_ids=predicted_ids,
            source=source,
            vocabulary=vocabulary,
            keep=keep,
            attention_mask=attention_mask,
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
            calls = self._calls[router.layer]
            if calls:
                self._compact(router, calls[-1])
            # Copies: the model may go on to change its tensors in place. All else waits until the pass is over.
            calls.append(
                _Call(
                    indices.clone(),
                    scores.clone(),
                    logits.clone() if self._keep_logits and logits is not None else None,
                    router.num_experts if logits is None else logits.shape[1],
                    are_reported=changed_choice(call) is None,
                )
            )

    def _compact(self, router: Router, call: _Call) -> None:
        import torch

        if not call.is_compact:
            call.indices, call.scores = call.indices.to(torch.int16), call.scores.to(torch.float32)
            if call.logits is not None:
                logits = router.form.true_logits(call.logits) if call.are_reported else call.logits
                call.logits = _half_precision(logits, self._score_function)
            call.is_compact = True

    def _note_input(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Remember the shape of what the model is about to read; called by its hook, in any thread."""
        if threading.get_ident() == self._thread and not is_recomputing():
            given = next((kwargs[name] for name in _INPUTS if kwargs.get(name) is not None), args[0] if args else None)
            self._read.append(tuple(getattr(given, "shape", ()))[:2])

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

    def _joined_calls(self, has_logits: bool) -> list[torch.Tensor]:
        """[L,T,K] indices, [L,T,K] scores and perhaps [L,T,E] logits of all forward passes, on one device."""
        import torch

        device = self._calls[self.layers[0]][0].indices.device  # the layers of a large model lie on several

        def joined(name: str, dtype: torch.dtype) -> torch.Tensor:
            layers = [[getattr(call, name) for call in calls] for calls in self._calls.values()]
            whole = [calls[0] if len(calls) == 1 else torch.cat(calls) for calls in layers]
            return torch.stack([layer.to(device, non_blocking=True) for layer in whole]).to(dtype)

        with torch.no_grad(), torch.autocast(device.type, enabled=False):  # whose stack refuses dtypes
            if has_logits:
                for layer, calls in self._calls.items():
                    self._compact(self._routers[layer], calls[-1])
            kinds = [("indices", torch.int16), ("scores", torch.float32)]
            return [joined(*kind) for kind in [*kinds, *([("logits", torch.float16)] if has_logits else [])]]


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
    for router in routers.values():
        router.form.waits = False  # what is reported is made logits once a pass is over, see _compact_logits
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
