"""What a router promises, whichever library it is from: how its choice is watched, read and changed.

Ours and other modules that obey the router contract (`is_moe_router = True`, forward returns router_logits [T,E],
router_scores [T,K], router_indices [T,K]) are taken as they are. What a router notes beside its choice may follow as a
fourth item, a mapping from names to tensors; of these `eligible`, bool [T,E], says among which experts an intervention
makes a token choose again. Where the routers of a model are, `find` says.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from moe_core.errors import TraceError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from moe_core.routing.instruments.changed_choices import Stage

_LAYER = re.compile(r"(?:^|\.)(?:layers?|blocks?|h)\.(\d+)(?:\.|$)")


class Choice(NamedTuple):
    """What a router chose for T tokens."""

    logits: Tensor | None
    """[T, E]; None where the model keeps them to itself."""
    scores: Tensor
    """[T, K], 0 in an unused slot."""
    indices: Tensor
    """whole numbers [T, K]; -1 = unused slot."""


class Call(NamedTuple):
    """One call of the module that is watched."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any


class ChangedOutput(tuple[Any, ...]):
    """A module's output (or arguments) as an intervention changed it.

    The experts of other models cannot take index -1: such a slot keeps a valid index there, with score 0. `choice` says
    what to record.
    """

    choice: Choice

    @classmethod
    def of(cls, items: Sequence[Any], choice: Choice) -> ChangedOutput:
        """The tuple of `items`, recorded as `choice`."""
        changed = cls(items)
        changed.choice = choice
        return changed


class Hook:
    """A hook on a module that its copies do without: copy.deepcopy and pickle put an idle one in its place.

    Otherwise a model could not be saved whole while it is watched, and a copy of it would be watched too.
    """

    def __init__(self, act: Callable[..., Any]) -> None:
        self._act = act

    def __call__(self, *args: Any) -> Any:
        return self._act(*args)

    def __reduce__(self) -> tuple[type[Hook], tuple[Callable[..., None]]]:
        return Hook, (_do_nothing,)


def _do_nothing(*args: Any) -> None:
    """What an idle hook does."""


class Form:
    """How one kind of router is watched, read and changed. This one: a module that obeys the router contract."""

    experts_take = ("scores", "indices")
    """Order of the experts' arguments after the tokens' states."""
    needs_valid_indices = False
    """Can the experts not take index -1?"""
    waits = True
    """False: `read` leaves the logits as they are reported, so that no step waits for the device; see true_logits."""

    def choose_refused(self, router: Router) -> str | None:
        """Why the router cannot be made to choose again, after its name; None if it can. Ours say so themselves."""
        if reason := getattr(router.module, "cannot_choose", ""):
            return str(reason)
        if callable(getattr(router.module, "choose", None)):
            return None
        return f"({type(router.module).__name__}) has no method choose(logits_TE, top_k) to choose again"

    def write_refused(self, router: Router) -> str | None:  # noqa: ARG002 - other forms need the router
        """Why its choice cannot be changed at all; None if it can."""
        return None

    def attach(self, router: Router, watch: Callable[[Call], Any], *, first: bool) -> list[Any]:
        """Call `watch` after each choice, before the experts; what it returns, unless None, replaces the output."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:  # noqa: ARG001
            return watch(Call(args, kwargs, output))

        return [
            router.module.register_forward_hook(Hook(hook), prepend=first, with_kwargs=True),
            *(module.register_forward_hook(Hook(_refusal(router))) for module in router.silent),
        ]

    def read(self, router: Router, call: Call) -> Choice:
        """What was chosen. Raises TraceError if the output is not what this kind of router returns."""
        return _checked(router, call.output, router.num_experts, router.top_k)

    def true_logits(self, reported: Tensor) -> Tensor:
        """[T,E] logits of what is reported as such, without waiting for the device."""
        return reported

    def write(self, router: Router, call: Call, stage: Stage) -> Any:  # noqa: ARG002 - other forms need the router
        """The output that makes the experts follow `stage`."""
        items = (call.output[0], stage.scores, stage.indices, *call.output[3:])
        return ChangedOutput.of(items, stage.recorded)

    def choose(
        self,
        router: Router,
        call: Call,
        logits: Tensor,
        top_k: int,
        forced: Sequence[int],
    ) -> tuple[Tensor, Tensor]:
        """Scores and indices [T, top_k] by the router's own rule, from other logits [T, E]; -inf = not to be chosen."""
        import torch

        if (eligible := notes_of(call.output).get("eligible")) is not None:
            allowed = eligible.index_fill(1, torch.tensor(forced, dtype=torch.int64, device=logits.device), True)
            logits = logits.masked_fill(~allowed, -torch.inf)
        # Forced experts' logits lead already; a rule that looks at more than their order takes them as third argument.
        takes_forced = "forced" in inspect.signature(router.module.choose).parameters  # type: ignore[arg-type]
        scores, indices = router.module.choose(logits, top_k, *([forced] if takes_forced else []))  # type: ignore[operator]
        return scores, indices


@dataclass(frozen=True, eq=False)
class Router:
    """The router of one layer."""

    layer: int
    """Counted over all layers of the model, as its own module names do."""
    name: str
    """The watched module's name in the model."""
    module: torch.nn.Module
    num_experts: Any = None
    """E as far as known before a call; checked against what it returns."""
    top_k: Any = None
    score_function: str = "softmax"
    varying_experts: bool = False
    """See RoutingTrace.varying_experts."""
    null_experts: int = 0
    """See RoutingTrace.null_experts."""
    experts: torch.nn.Module | None = None
    """Called with the tokens' states, scores and indices, each token on its own; None if there is no such module."""
    block: torch.nn.Module | None = None
    """The module around the watched one."""
    silent: tuple[torch.nn.Module, ...] = ()
    """Routers for what is not text, beside this one; a call of them is an error."""
    family: str = ""
    """model_type of a transformers model, empty for ours."""
    form: Form = field(default_factory=Form)

    def attach(self, watch: Callable[[Call], Any], *, first: bool = False) -> list[Any]:
        """See Form.attach; the handles take the hooks off."""
        return self.form.attach(self, watch, first=first)

    def read(self, call: Call) -> Choice:
        """See Form.read."""
        return changed_choice(call) or self.form.read(self, call)

    @property
    def described(self) -> str:
        """For messages: the name, with its family where it is not one of ours."""
        return f"router {self.name!r}" + (f" of {self.family}" if self.family else "")


def changed_choice(call: Call) -> Choice | None:
    """What an intervention made of the choice; None where there is none, or it left it as it was."""
    return next((item.choice for item in (call.output, call.args) if isinstance(item, ChangedOutput)), None)


def is_recomputing() -> bool:
    """Whether autograd is computing gradients in this thread.

    A forward pass that runs then is a part computed once more whose activations were not kept (gradient checkpointing,
    with either value of use_reentrant): its tokens were routed before. torch.utils.checkpoint tells by the same number
    which backward pass it is in; there is no public name for it.
    """
    import torch

    return torch._C._current_graph_task_id() != -1


def never_compiled(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The hook as plain Python also where torch.compile is at work: it would trace thread checks and counters wrongly.

    Only a program that compiles has imported the compiler, which takes seconds; others get the hook as it is.
    """
    compiler = sys.modules.get("torch._dynamo")
    return hook if compiler is None else cast("Callable[..., Any]", compiler.disable(hook))


def layer_of(name: str) -> tuple[str, int]:
    """("model.layers", 3) of "model.layers.3.mlp.gate". Raises TraceError for a name without a layer number."""
    found = _LAYER.search(name)
    if not found:
        raise TraceError(f"router {name!r} has no layer number in its name; expected one like layers.3.moe.router")
    return name[: found.start(1) - 1], int(found[1])


def contract_triple(router: Router, output: object) -> tuple[Tensor, Tensor, Tensor]:
    """logits, scores and indices: the first three items of a router's output. Raises TraceError if they are not."""
    import torch

    if not isinstance(output, tuple) or len(output) < 3 or not all(isinstance(x, torch.Tensor) for x in output[:3]):
        raise TraceError(
            f"{router.described} returned {type(output).__name__}; expected three tensors: "
            "router_logits [T,E], router_scores [T,K], router_indices [T,K]"
        )
    logits, scores, indices = output[:3]
    return logits, scores, indices


def notes_of(output: object) -> Mapping[str, Tensor]:
    """What a router notes beside its choice: the item behind the contract's three, a mapping by name; else nothing."""
    fourth = output[3] if isinstance(output, tuple) and len(output) > 3 else None
    return fourth if isinstance(fourth, Mapping) else {}


def _refusal(router: Router) -> Callable[..., None]:
    def hook(module: nn.Module, args: object, output: object) -> None:  # noqa: ARG001 - torch's signature
        raise TraceError(
            f"{router.described} shares its layer with another one for images; only text can be captured exactly"
        )

    return hook


def _checked(router: Router, output: object, num_experts: Any, top_k: Any) -> Choice:
    logits, scores, indices = contract_triple(router, output)
    T = logits.shape[0] if logits.dim() else 0
    E = num_experts if isinstance(num_experts, int) else logits.shape[-1:].numel()
    K = top_k if isinstance(top_k, int) else indices.shape[-1:].numel()
    shapes = [list(x.shape) for x in (logits, scores, indices)]
    if shapes != [[T, E], [T, K], [T, K]] or indices.is_floating_point():
        raise TraceError(
            f"{router.described} returned logits {shapes[0]}, scores {shapes[1]}, indices {shapes[2]} "
            f"({indices.dtype}); expected [T,{E}], [T,{K}] and whole numbers [T,{K}]"
        )
    return Choice(logits, scores, indices)
