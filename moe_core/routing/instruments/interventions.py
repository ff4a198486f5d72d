"""Switch experts off, force them, or let the routers choose otherwise, and change nothing else.

Works on the same routers as capture. What an intervention changes, and what it leaves alone bit for bit:

1. After a router has chosen, scores and indices of the tokens concerned are replaced. `router_logits` stay what the
   router computed: they say what it wanted, scores and indices say what the experts got. Captures record that, whether
   opened inside or outside.
2. The experts first compute the choice as it was, then the tokens whose choice changed once more. A matrix product over
   another number of rows rounds differently, so a token that visits an expert which gained or lost other tokens would
   otherwise move in its last bit. This needs an experts module beside the router, as attribute `experts` of the same
   block, that is marked `is_moe_experts = True`, is called as experts(x_TD, scores_TK, indices_TK), treats each token
   on its own, and ignores index -1. Other models get step 1 alone.

So within a layer, tokens whose choice is unchanged keep their output exactly. Attention then carries the change of the
others to later tokens, and later layers route on what they receive. torch is imported only where there is a tensor.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from moe_core.ablation_modes import MODES, Mode
from moe_core.errors import TraceError, UsageError
from moe_core.routing.instruments.contract import Call, Router, never_compiled
from moe_core.routing.instruments.find import find_routers
from moe_core.routing.instruments.silence import SilenceWatch

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from moe_core.routing.instruments.changed_choices import Stage

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0


@dataclass(frozen=True)
class Intervention:
    """What to change. Experts are (layer, expert), both counted from 0, the layer over all layers of the model.

    Raises UsageError, naming the value, for anything that no model could do; `check` says whether one model can.
    """

    ablate: tuple[tuple[int, int], ...] = ()
    """Experts to switch off."""
    force: tuple[tuple[int, int], ...] = ()
    """Experts that every token visits: their logit is set to the token's largest, above which the next larger number
    decides a tie in their favour; then the router's own rule (SteerMoE, arXiv:2509.09660)."""
    mode: Mode = "zero"
    """What ablated experts leave behind. "zero": nothing, their slots become index -1 with score 0. "renormalise": the
    token's other scores grow to the former sum (all zero where it had no other). "reroute": tokens that chose one of
    them choose again, by the router's own rule, as if those experts were not there. Tokens that had not chosen them
    keep choice and weights to the bit: where weights are shares of all E experts, the ablated still count in theirs."""
    top_k: int | None = None
    """Experts per token, in every MoE layer; 1 to E. None = as the model has it."""
    temperature: float | None = None
    """The routers' logits are divided by it before they choose; above 1 weights grow alike. None = 1."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ablate", _experts("ablate", self.ablate))
        object.__setattr__(self, "force", _experts("force", self.force))
        if self.mode not in MODES:
            raise UsageError(f"mode = {self.mode!r} is unknown; expected one of {', '.join(MODES)}")
        if self.top_k is not None and (not _is_whole(self.top_k) or self.top_k < 1):
            raise UsageError(f"top_k = {self.top_k!r} is out of range; expected 1 to the number of experts")
        if self.temperature is not None and not MIN_TEMPERATURE <= self.temperature <= MAX_TEMPERATURE:
            raise UsageError(
                f"temperature = {self.temperature!r} is out of range; expected {MIN_TEMPERATURE} to {MAX_TEMPERATURE}"
            )
        _refuse_contradiction([self])

    @staticmethod
    def parse_experts(texts: Iterable[str]) -> tuple[tuple[int, int], ...]:
        """["2:5", "0:1"] -> ((2, 5), (0, 1)): layer and expert. Raises UsageError for anything else."""
        found = []
        for text in texts:
            match = re.fullmatch(r"([0-9]{1,6}):([0-9]{1,6})", text.strip())
            if not match:
                raise UsageError(f"{text[:40]!r} names no expert; expected LAYER:EXPERT, such as 2:5")
            found.append((int(match[1]), int(match[2])))
        return tuple(found)

    def check(self, model: torch.nn.Module) -> None:
        """Raise UsageError unless `model` has these layers and experts, and routers that can do it."""
        _check(find_routers(model), [self])

    def describe(self) -> str:
        """In one line, such as "ablate 2:5 (zero), force 1:3, top_k 1"; empty if it changes nothing."""
        parts = []
        if self.ablate:
            parts.append(f"ablate {_list_experts(self.ablate)} ({self.mode})")
        if self.force:
            parts.append(f"force {_list_experts(self.force)}")
        if self.top_k is not None:
            parts.append(f"top_k {self.top_k}")
        if self.temperature is not None:
            parts.append(f"router temperature {self.temperature:g}")
        return ", ".join(parts)

    def ablated_in(self, layer: int) -> list[int]:
        """Experts of this layer that are switched off."""
        return [expert for at, expert in self.ablate if at == layer]

    def forced_in(self, layer: int) -> list[int]:
        """Experts of this layer that every token visits."""
        return [expert for at, expert in self.force if at == layer]

    def _chooses_again(self) -> bool:
        rerouted = self.mode == "reroute" and bool(self.ablate)
        return rerouted or bool(self.force) or self.top_k is not None or self.temperature is not None

    def _touches_layer(self, layer: int) -> bool:
        everywhere = self.top_k is not None or self.temperature is not None
        return everywhere or any(layer == touched for touched, _ in (*self.ablate, *self.force))


@contextmanager
def intervene(
    model: torch.nn.Module,
    intervention: Intervention | None = None,
    *,
    ablate: Iterable[tuple[int, int]] = (),
    force: Iterable[tuple[int, int]] = (),
    mode: Mode = "zero",
    top_k: int | None = None,
    temperature: float | None = None,
) -> Iterator[Intervention]:
    """Change what this thread's calls of `model` do inside the block; give an Intervention or its fields.

        with intervene(model, ablate=[(2, 5)], mode="reroute"), capture(model) as recorder:
            model(token_ids)

    Other threads that use the same model see nothing; nothing is left behind, also after an exception. Nested blocks
    add up: temperatures, then forced experts, then the inner top_k, then ablations, each outer first; tokens that the
    inner one does not concern stay bit-identical to the outer one alone. The model must be in eval mode; gradients flow
    as through the model itself. In a generator open it around each step, not around a yield.
    Raises UsageError if the model lacks a layer or expert; if an expert is both forced and ablated; or if its routers
    have no `choose(logits_TE, top_k) -> (scores_TK, indices_TK)` where one is needed: for all but zero and renormalise.
    Raises TraceError, at the end of a forward pass, if a router that was to be changed stayed silent in it: in a
    compiled model, which no hook reaches, a layer that was skipped, or where another module took the router's place.
    A block without a forward pass is none.
    """
    named = Intervention(tuple(ablate), tuple(force), mode, top_k, temperature)
    if intervention is not None and named != Intervention():
        raise UsageError("an Intervention was given and fields of one beside it; expected one of the two")
    session = _Session(model, intervention or named)
    with session.opened():
        yield session.intervention


class _Thread(threading.local):
    def __init__(self) -> None:
        self.sessions: list[_Session] = []


_THREAD = _Thread()
"""The open interventions of each thread, outermost first. A cached model is shared between sessions, each in its own
thread: what one of them changes must not reach another."""


class _Told(NamedTuple):
    """What the experts of one layer are about to be called with."""

    stages: Sequence[Stage]
    scores: Tensor
    indices: Tensor


class _Session:
    """One open `intervene`. Of several nested ones only the innermost acts, for all of them together."""

    def __init__(self, model: torch.nn.Module, intervention: Intervention) -> None:
        routers: dict[int, Router] = find_routers(model)
        self.intervention = intervention
        self._sessions = _THREAD.sessions
        outer = [session.intervention for session in self._sessions if _shared(session.routers, routers)]
        _check(routers, [*outer, intervention])
        self.routers: dict[int, Router] = {
            layer: router for layer, router in routers.items() if intervention._touches_layer(layer)
        }
        self._told: dict[int, _Told] = {}
        """By layer, from the router's call to the end of the experts' call."""
        self._silence = SilenceWatch(model, self.routers, lambda: self._sessions is _THREAD.sessions)

    @contextmanager
    def opened(self) -> Iterator[None]:
        with ExitStack() as stack:
            for router in self.routers.values():
                # First of all hooks, so that a capture that is open already still sees what the experts receive.
                for handle in router.attach(never_compiled(self._watch(router)), first=True):
                    stack.callback(handle.remove)
                if router.experts is not None:
                    before, after = map(never_compiled, (self._before_experts(router), self._after_experts(router)))
                    stack.callback(router.experts.register_forward_pre_hook(before).remove)
                    stack.callback(router.experts.register_forward_hook(after).remove)
            for handle in self._silence.attach():
                stack.callback(handle.remove)
            self._sessions.append(self)
            stack.callback(self._sessions.remove, self)
            yield

    def _watch(self, router: Router) -> Callable[[Call], Any]:
        from moe_core.routing.instruments.changed_choices import stages_of

        def watch(call: Call) -> Any:
            active = [s for s in _THREAD.sessions if _shared(s.routers, {router.layer: router})]
            if self in active:
                self._silence.note_call(router.layer)
            if not active or active[-1] is not self:
                return None
            if router.module.training:
                raise UsageError(
                    f"{router.described} is in training mode, where noise and capacity change choices too; "
                    "call model.eval() before intervening"
                )
            # A pass that was broken off may have left something behind.
            self._told.pop(router.layer, None)
            stages = stages_of(router, call, [session.intervention for session in active])
            same_slots = stages[-1].indices.shape == stages[0].indices.shape
            if same_slots and not any(bool(stage.changed.any()) for stage in stages):
                return None
            output = router.form.write(router, call, stages[-1])
            if router.experts is not None:
                self._told[router.layer] = _Told(stages, stages[-1].scores, stages[-1].indices)
            return output

        return watch

    def _before_experts(self, router: Router) -> Callable[..., Any]:
        def hook(experts: torch.nn.Module, args: tuple[Any, ...]) -> object:  # noqa: ARG001 - torch's signature
            told = self._told.get(router.layer)
            if self._sessions is not _THREAD.sessions or told is None:
                return None
            order = router.form.experts_take
            given = [getattr(told, name) for name in order]
            if len(args) != 3 or args[1] is not given[0] or args[2] is not given[1]:
                raise TraceError(
                    f"the experts of layer {router.layer} were called with something else than their router gave; "
                    f"expected experts(x_TD, {order[0]}_TK, {order[1]}_TK) with its tensors"
                )
            # What comes before a stage that changes all tokens would be computed in vain.
            stages = told.stages
            first = max(number for number, stage in enumerate(stages) if not number or bool(stage.changed.all()))
            self._told[router.layer] = told._replace(stages=stages[first:])
            return (args[0], *(getattr(stages[first], name) for name in order))

        return hook

    def _after_experts(self, router: Router) -> Callable[..., Any]:
        def hook(experts: torch.nn.Module, args: tuple[Any, ...], output: Tensor) -> object:
            if self._sessions is not _THREAD.sessions:
                return None
            told = self._told.pop(router.layer, None)
            for stage in told.stages[1:] if told else ():
                rows = stage.changed.nonzero().flatten()
                if len(rows):
                    again: Tensor = experts.forward(
                        args[0][rows], *(getattr(stage, name)[rows] for name in router.form.experts_take)
                    )
                    output = output.index_copy(0, rows, again)
            return output

        return hook


def _check(routers: Mapping[int, Router], nested: Sequence[Intervention]) -> None:
    """Raise UsageError unless these routers can do what the interventions, outermost first, ask together."""
    for change in nested:
        for layer, expert in (*change.ablate, *change.force):
            if layer not in routers:
                known = ", ".join(map(str, routers))
                raise UsageError(f"layer {layer} has no experts; expected one of the MoE layers {known}")
            if not expert < _number(routers[layer], "num_experts"):
                last = _number(routers[layer], "num_experts") - 1
                raise UsageError(f"layer {layer} has no expert {expert}; expected 0 to {last}")
    _refuse_contradiction(nested)
    for layer, router in routers.items():
        here = [change for change in nested if change._touches_layer(layer)]
        if here and (reason := router.form.write_refused(router)):
            raise UsageError(f"{router.described} cannot be changed: {reason}")
        if any(change._chooses_again() for change in here):
            _check_choice(router, here)


def _check_choice(router: Router, nested: Sequence[Intervention]) -> None:
    layer = router.layer
    if reason := router.form.choose_refused(router):
        raise UsageError(f"{router.described} {reason}; use ablate with mode zero or renormalise")
    num_experts, top_k = (_number(router, number) for number in ("num_experts", "top_k"))
    for change in nested:
        top_k = change.top_k or top_k
    if top_k > num_experts:
        raise UsageError(f"top_k = {top_k} is more than layer {layer} has experts; expected 1 to {num_experts}")
    forced = {expert for change in nested for expert in change.forced_in(layer)}
    if len(forced) > top_k:
        raise UsageError(f"{len(forced)} experts of layer {layer} are forced; expected at most top_k = {top_k}")
    absent = {e for change in nested if change.mode == "reroute" for e in change.ablated_in(layer)}
    if len(absent) == num_experts:
        raise UsageError(
            f"all {num_experts} experts of layer {layer} are ablated, reroute has none left; use mode zero"
        )


def _refuse_contradiction(nested: Sequence[Intervention]) -> None:
    ablated = {expert for change in nested for expert in change.ablate}
    forced = {expert for change in nested for expert in change.force}
    if both := sorted(ablated & forced):
        raise UsageError(f"expert {_list_experts(both)} is both ablated and forced; choose one of the two")


def _number(router: Router, name: str) -> int:
    value = getattr(router, name)
    if not isinstance(value, int):
        raise UsageError(f"{router.described} has no whole number {name!r}; interventions need it to check experts")
    return value


def _experts(field: str, experts: Iterable[Any]) -> tuple[tuple[int, int], ...]:
    """Pairs of whole numbers, each once, in the order given."""
    found: dict[tuple[int, int], None] = {}
    for expert in experts:
        pair = tuple(expert) if isinstance(expert, Iterable) and not isinstance(expert, str) else ()
        if len(pair) != 2 or not all(_is_whole(number) and number >= 0 for number in pair):
            raise UsageError(f"{field} has {expert!r}; expected (layer, expert), two whole numbers from 0 up")
        found[int(pair[0]), int(pair[1])] = None
    return tuple(found)


def _is_whole(value: object) -> bool:
    """numpy's and pandas' integers too: experts are often taken from a DataFrame."""
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _shared(some: Mapping[int, Router], others: Mapping[int, Router]) -> bool:
    return any(layer in others and others[layer].module is router.module for layer, router in some.items())


def _list_experts(experts: Iterable[tuple[int, int]]) -> str:
    return ", ".join(f"{layer}:{expert}" for layer, expert in experts)
