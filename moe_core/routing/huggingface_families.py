"""What the families of the transformers library do differently; docs/families.md lists them all.

Most routers return (router_logits [T,E], weights [T,K], indices [T,K]) and their experts are called with just these
tensors. The table FORMS holds the others, by the class of the module that is watched.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any, cast, get_args

from moe_core.errors import TraceError
from moe_core.routing.routers import Call, ChangedOutput, Choice, Form, Router, contract_triple
from moe_core.routing.types import ScoreFunction

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from moe_core.routing.choices import Stage

ARGUMENTS = (("top_k_index", "top_k_weights"), ("router_indices", "routing_weights"))
"""Names of the choice among the arguments of experts modules."""


class TripleForm(Form):
    """The library's usual router: logits, weights, indices; experts(states, indices, weights) cannot take index -1."""

    experts_take = ("indices", "scores")
    needs_valid_indices = True
    logits_item = 0
    """Which item of the output holds the logits."""

    def choose_refused(self, router: Router) -> str | None:  # noqa: ARG002
        return None

    def read(self, router: Router, call: Call) -> Choice:
        logits, scores, indices = contract_triple(router, call.output)
        return checked(router, logits.log() if _are_probabilities(logits) else logits, scores, indices)

    def choose(
        self, router: Router, call: Call, logits: Tensor, top_k: int, forced: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        from moe_core.routing.huggingface_replay import chosen_again

        reported = call.output[self.logits_item]
        probabilities = _are_probabilities(reported)
        absent = (logits == -float("inf")).all(dim=0).nonzero().flatten().tolist()
        choice = chosen_again(
            router,
            call,
            reported,
            logits.softmax(dim=-1) if probabilities else logits.to(reported.dtype),
            top_k,
            absent,
            forced,
            read=lambda again: self.read_again(router, again, top_k),
        )
        return choice.scores, choice.indices

    def read_again(self, router: Router, call: Call, top_k: int) -> Choice:
        """`read`, of a call with another top_k and with logits of -inf."""
        return self.read(replace(router, top_k=top_k), call)


class ArgumentForm(TripleForm):
    """No router module returns the choice: what the experts are called with is taken."""


class DbrxForm(TripleForm):
    """The router returns logits alone; its block chooses in `route_tokens_to_experts`."""


class Llama4Form(TripleForm):
    """(scores [T,E], logits [T,E]): sigmoid of the chosen logits, 0 elsewhere; the weight scales the expert's input."""

    logits_item = 1

    def read(self, router: Router, call: Call) -> Choice:
        scores_TE, logits = _items(router, call.output, 2)
        scores, indices = scores_TE.topk(_known(router, "top_k"), dim=-1)
        return checked(router, logits, scores, indices)

    def write(self, router: Router, call: Call, stage: Stage) -> Any:  # noqa: ARG002
        scores_TE = call.output[0].new_zeros(call.output[0].shape)
        return ChangedOutput.of((scores_TE.scatter(1, stage.indices, stage.scores), call.output[1]), stage.recorded)


class SwitchForm(TripleForm):
    """(mask [B,S,E], probability [B,S,1], logits [B,S,E]): one expert or, where it is full, none."""

    needs_valid_indices = False

    def read(self, router: Router, call: Call) -> Choice:
        mask, probability, logits = (item.flatten(0, -2) for item in _items(router, call.output, 3))
        routed = mask.bool().any(dim=-1, keepdim=True)
        indices = mask.argmax(dim=-1, keepdim=True).masked_fill(~routed, -1)
        return checked(router, logits, probability.masked_fill(~routed, 0.0), indices)


class ZayaForm(TripleForm):
    """One class more than there are experts: a token that chooses it skips them, told as expert 0 with weight 0."""

    def read(self, router: Router, call: Call) -> Choice:
        logits, scores, indices = contract_triple(router, call.output)
        return checked(router, logits[:, :-1], scores, indices.masked_fill(scores == 0, -1))


class JetMoeForm(TripleForm):
    """(slots sorted by expert [T*K], their tokens, their weights, slots per expert [E], logits [T,E])."""

    logits_item = 4

    def read(self, router: Router, call: Call) -> Choice:
        import torch

        order, _, weights, sizes, logits = _items(router, call.output, 5)
        K = _known(router, "top_k")
        experts = torch.arange(len(sizes), device=order.device).repeat_interleave(
            torch.tensor(sizes, device=order.device)
        )
        indices = torch.empty_like(order).scatter(0, order, experts)
        scores = torch.empty_like(weights).scatter(0, order, weights)
        return checked(router, logits, scores.view(-1, K), indices.view(-1, K))


class DogeForm(TripleForm):
    pass


FORMS: dict[str, Callable[[], Form]] = {
    "Llama4Router": Llama4Form,
    "SwitchTransformersTop1Router": SwitchForm,
    "ZayaRouter": ZayaForm,
    "JetMoeTopKGating": JetMoeForm,
}
_SCORE_SETTINGS = ("expert_selection_fn", "scoring_func", "score_function", "moe_router_score_function")
NOT_ROUTERS = ("JetMoeAttention",)
NOT_CAPTURED: dict[str, str] = {}


def score_function_of(module: torch.nn.Module, config: Any) -> ScoreFunction:
    """What turns a router's logits into weights: what its code names; where that leaves it open, its configuration."""
    try:
        source = inspect.getsource(type(module))
    except (OSError, TypeError):  # no source at hand
        source = ""
    named = [name for name in ("softmax", "sigmoid") if name in source]
    if named == ["sigmoid"]:
        return "sigmoid"
    if named == ["softmax"]:
        return "softmax"
    for place, name in product((module, config), _SCORE_SETTINGS):
        value = getattr(place, name, None)
        if value in get_args(ScoreFunction):
            return cast("ScoreFunction", value)
    return "softmax"


def checked(router: Router, logits: Tensor | None, scores: Tensor, indices: Tensor) -> Choice:
    """A Choice of the right shapes. Raises TraceError for any other."""
    T = len(scores)
    E = router.num_experts if logits is None or isinstance(router.num_experts, int) else logits.shape[-1]
    K = router.top_k if isinstance(router.top_k, int) else scores.shape[-1]
    shapes = [None if x is None else list(x.shape) for x in (logits, scores, indices)]
    if shapes not in ([[T, E], [T, K], [T, K]], [None, [T, K], [T, K]]) or indices.is_floating_point():
        raise TraceError(
            f"{router.described} gave logits {shapes[0]}, scores {shapes[1]}, indices {shapes[2]} ({indices.dtype}); "
            f"expected [T,{E}], [T,{K}] and whole numbers [T,{K}]; this family cannot be captured exactly"
        )
    return Choice(logits, scores, indices)


def _are_probabilities(values: Tensor) -> bool:
    """Some families give probabilities where the others give logits: rows that sum to 1."""
    if values.dim() != 2 or not len(values):
        return False
    sums = values.detach().float().sum(dim=-1)
    return bool((values >= 0).all()) and bool(((sums - 1).abs() < 1e-2).all())


def _items(router: Router, output: Any, count: int) -> tuple[Any, ...]:
    if not isinstance(output, tuple) or len(output) < count:
        raise TraceError(f"{router.described} returned {type(output).__name__}; expected {count} tensors")
    return output[:count]


def _known(router: Router, name: str) -> int:
    value = getattr(router, name)
    if not isinstance(value, int):
        raise TraceError(f"{router.described} does not say its {name}; it cannot be captured exactly")
    return value
