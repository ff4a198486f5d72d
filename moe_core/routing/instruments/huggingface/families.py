"""What the families of the transformers library do differently; docs/families.md lists them all.

Most routers return (router_logits [T,E], weights [T,K], indices [T,K]) and their experts are called with just these
tensors. The table FORMS holds the others, by the class of the module that is watched.
"""

from __future__ import annotations

import copy
import inspect
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any, cast, get_args

from moe_core.errors import TraceError
from moe_core.routing.instruments.contract import Call, ChangedOutput, Choice, Form, Hook, Router, contract_triple
from moe_core.routing.trace.types import ScoreFunction

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from moe_core.routing.instruments.changed_choices import Stage

ARGUMENTS = (("top_k_index", "top_k_weights"), ("router_indices", "routing_weights"))
"""Names of the choice among the arguments of experts modules."""


class TripleForm(Form):
    """The library's usual router: logits, weights, indices; experts(states, indices, weights) cannot take index -1."""

    experts_take = ("indices", "scores")
    needs_valid_indices = True
    logits_item = 0
    """Which item of the output holds the logits."""

    def sizes(self, module: Any) -> tuple[int | None, int | None]:  # noqa: ARG002
        """E and K, where the usual attributes do not say them."""
        return None, None

    def choose_refused(self, router: Router) -> str | None:  # noqa: ARG002
        return None

    def read(self, router: Router, call: Call) -> Choice:
        logits, scores, indices = contract_triple(router, call.output)
        return checked(router, self.as_logits(logits), scores, indices)

    def choose(
        self, router: Router, call: Call, logits: Tensor, top_k: int, forced: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        import torch

        from moe_core.routing.instruments.huggingface.replay import chosen_again

        reported = call.output[self.logits_item]
        replacement = logits.to(reported.dtype)
        if self.are_probabilities(reported):
            # Back and forth would round, which matters where the logits are as they were.
            replacement = reported if torch.equal(logits, self.as_logits(reported)) else logits.softmax(dim=-1)
        absent = (logits == -math.inf).all(dim=0).nonzero().flatten().tolist()
        choice = chosen_again(
            router,
            call,
            reported,
            replacement,
            top_k,
            absent,
            forced,
            read=lambda again: self.read_again(router, again, top_k),
        )
        return choice.scores, choice.indices

    def read_again(self, router: Router, call: Call, top_k: int) -> Choice:
        """`read`, of a call with another top_k and with logits of -inf."""
        return self.read(replace(router, top_k=top_k), call)

    def as_logits(self, values: Tensor) -> Tensor:
        """[T,E]; of probabilities their logarithms, which are logits up to a constant, and finite."""
        return self._logarithms(values) if self.waits and self.are_probabilities(values) else values

    def true_logits(self, reported: Tensor) -> Tensor:
        import torch

        if len(reported) < 2:
            return reported
        return torch.where(self._look_like_probabilities(reported), self._logarithms(reported), reported)

    def are_probabilities(self, values: Tensor) -> bool:
        """Some releases of the library report probabilities as logits: rows that sum to 1, none below 0.

        Of one token alone this could be chance.
        """
        return values.dim() == 2 and len(values) >= 2 and bool(self._look_like_probabilities(values))

    def _look_like_probabilities(self, values: Tensor) -> Tensor:
        """bool [] on the device."""
        return (values >= 0).all() & ((values.detach().float().sum(dim=-1) - 1).abs() < 1e-2).all()

    def _logarithms(self, values: Tensor) -> Tensor:
        return values.clamp(min=_SMALLEST).log()


class GemmaForm(TripleForm):
    """Probabilities in the place of logits."""

    def are_probabilities(self, values: Tensor) -> bool:  # noqa: ARG002
        return True

    def true_logits(self, reported: Tensor) -> Tensor:
        return self._logarithms(reported)


class ArgumentForm(TripleForm):
    """No module returns the choice: the experts module is watched, and what it is called with is taken. No logits."""

    def attach(self, router: Router, watch: Callable[[Call], Any], *, first: bool) -> list[Any]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ARG001
            changed = watch(Call(args, kwargs, self.logits()))
            return None if changed is None else (changed, kwargs)

        return [router.module.register_forward_pre_hook(Hook(before), prepend=first, with_kwargs=True)]

    def logits(self) -> Tensor | None:
        """[T,E] of the call that is under way."""
        return None

    def read(self, router: Router, call: Call) -> Choice:
        if len(call.args) != 3:
            raise TraceError(f"{router.described} was called with {len(call.args)} arguments; expected 3")
        _, indices, scores = call.args
        return checked(router, call.output, scores, indices)

    def write(self, router: Router, call: Call, stage: Stage) -> Any:  # noqa: ARG002
        return ChangedOutput.of((call.args[0], stage.indices, stage.scores), stage.recorded)

    def choose_refused(self, router: Router) -> str | None:  # noqa: ARG002
        return "has no module that could choose again"


class DbrxForm(ArgumentForm):
    """The router returns logits alone; its block chooses in `route_tokens_to_experts` and calls the experts."""

    def __init__(self) -> None:
        self._latest = threading.local()

    def attach(self, router: Router, watch: Callable[[Call], Any], *, first: bool) -> list[Any]:
        def keep(module: nn.Module, args: tuple[Any, ...], logits: Tensor) -> None:  # noqa: ARG001
            self._latest.logits = logits

        assert router.block is not None
        handle = router.block.get_submodule("router").register_forward_hook(Hook(keep))
        return [handle, *super().attach(router, watch, first=first)]

    def logits(self) -> Tensor | None:
        return getattr(self._latest, "logits", None)

    def choose_refused(self, router: Router) -> str | None:  # noqa: ARG002
        return None

    def choose(
        self,
        router: Router,
        call: Call,  # noqa: ARG002
        logits: Tensor,
        top_k: int,
        forced: Sequence[int],  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        block: Any = copy.copy(router.block)
        block.top_k = top_k
        scores, indices = block.route_tokens_to_experts(logits)
        return scores, indices


class Llama4Form(TripleForm):
    """(scores [T,E], logits [T,E]): sigmoid of the chosen logits, 0 elsewhere; the weight scales the expert's input."""

    logits_item = 1

    def read(self, router: Router, call: Call) -> Choice:
        scores_TE, logits = _items(router, call.output, 2)
        scores, indices = scores_TE.topk(_known_size(router, "top_k"), dim=-1)
        return checked(router, logits, scores, indices)

    def write(self, router: Router, call: Call, stage: Stage) -> Any:  # noqa: ARG002
        scores_TE = call.output[0].new_zeros(call.output[0].shape)
        return ChangedOutput.of((scores_TE.scatter(1, stage.indices, stage.scores), call.output[1]), stage.recorded)


class SwitchForm(TripleForm):
    """(mask [B,S,E], probability [B,S,1], logits [B,S,E]): one expert or, where it is full, none."""

    needs_valid_indices = False
    logits_item = 2

    def sizes(self, module: Any) -> tuple[int | None, int | None]:
        return module.num_experts, 1

    def choose_refused(self, router: Router) -> str | None:  # noqa: ARG002
        return "gives each expert a limited number of tokens, so choices depend on each other"

    def read(self, router: Router, call: Call) -> Choice:
        mask, probability, logits = (item.flatten(0, -2) for item in _items(router, call.output, 3))
        routed = mask.bool().any(dim=-1, keepdim=True)
        indices = mask.argmax(dim=-1, keepdim=True).masked_fill(~routed, -1)
        return checked(router, logits, probability.masked_fill(~routed, 0.0), indices)

    def write(self, router: Router, call: Call, stage: Stage) -> Any:  # noqa: ARG002
        mask, probability, logits = call.output
        kept = (stage.indices >= 0).view_as(probability)
        return ChangedOutput.of((mask * kept, stage.scores.view_as(probability), logits), stage.recorded)


class ZayaForm(TripleForm):
    """One class more than there are experts: a token that chooses it skips them, told as expert 0 with weight 0."""

    def read(self, router: Router, call: Call) -> Choice:
        logits, scores, indices = contract_triple(router, call.output)
        return checked(router, logits[:, :-1], scores, indices.masked_fill(scores == 0, -1))

    def choose_refused(self, router: Router) -> str | None:  # noqa: ARG002
        return "may choose no expert at all, which has no logit here"


class HashForm(TripleForm):
    """DeepSeek-V4's first layers: the token's id says which experts; the logits only weigh them."""

    def choose_refused(self, router: Router) -> str | None:  # noqa: ARG002
        return "looks its experts up by the token, so it does not choose"


class InklingForm(TripleForm):
    """One item more: the weights of the shared experts, in one softmax with those of the chosen."""

    def choose_refused(self, router: Router) -> str | None:  # noqa: ARG002
        return "shares one softmax between the chosen and the shared experts, so it cannot choose again alone"


class JetMoeForm(TripleForm):
    """(slots sorted by expert [T*K], their tokens, their weights, slots per expert [E], logits [T,E])."""

    needs_valid_indices = True
    logits_item = 4

    def read(self, router: Router, call: Call) -> Choice:
        import torch

        order, _, weights, sizes, logits = _items(router, call.output, 5)
        K = order.numel() // len(logits)
        sizes_E = torch.tensor(sizes, device=order.device)
        experts = torch.arange(len(sizes), device=order.device).repeat_interleave(sizes_E)
        indices = torch.empty_like(order).scatter(0, order, experts)
        scores = torch.empty_like(weights).scatter(0, order, weights)
        return checked(router, logits, scores.view(-1, K), indices.view(-1, K))

    def write(self, router: Router, call: Call, stage: Stage) -> Any:  # noqa: ARG002
        import torch

        K, logits = stage.indices.shape[1], call.output[4]
        order = stage.indices.flatten().argsort(stable=True)
        sizes = torch.bincount(stage.indices.flatten(), minlength=logits.shape[1]).tolist()
        tokens = order.div(K, rounding_mode="trunc")
        return ChangedOutput.of((order, tokens, stage.scores.flatten()[order], sizes, logits), stage.recorded)


class DogeForm(TripleForm):
    """Product keys: a block with all experts in two tables. Its logits [2,T,n] are those of rows and columns of keys.

    The indices are those that were looked up, the weights the softmax of their logits, as in the block.
    """

    def __init__(self) -> None:
        self._latest = threading.local()

    def attach(self, router: Router, watch: Callable[[Call], Any], *, first: bool) -> list[Any]:
        def keep(module: nn.Module, args: tuple[Any, ...]) -> None:  # noqa: ARG001
            self._latest.indices = args[0]

        table = router.module.get_submodule("down_embed")
        return [table.register_forward_pre_hook(Hook(keep)), *super().attach(router, watch, first=first)]

    def write_refused(self, router: Router) -> str | None:  # noqa: ARG002
        return "choice and experts are one block, with nothing between them to change"

    def sizes(self, module: Any) -> tuple[int | None, int | None]:
        return module.num_keys**2, module.top_k

    def read(self, router: Router, call: Call) -> Choice:
        rows, columns = _items(router, call.output, 2)[1]
        logits = (rows.unsqueeze(-1) + columns.unsqueeze(-2)).flatten(1)
        indices = self._latest.indices
        scores = logits.gather(1, indices).softmax(dim=-1)
        if getattr(router.module, "norm_topk_prob", False):
            scores = scores / scores.sum(dim=-1, keepdim=True)
        return checked(router, logits, scores, indices)


FORMS: dict[str, Callable[[], TripleForm]] = {
    "DbrxExperts": DbrxForm,
    "DeepseekV4HashRouter": HashForm,
    "DiffusionGemmaTextRouter": GemmaForm,
    "DogeCDMoE": DogeForm,
    "Gemma4TextRouter": GemmaForm,
    "InklingTopkRouter": InklingForm,
    "JetMoeTopKGating": JetMoeForm,
    "Llama4Router": Llama4Form,
    "SwitchTransformersTop1Router": SwitchForm,
    "ZayaRouter": ZayaForm,
}
WATCHED = {"DbrxRouter": "{block}.experts", "Ernie4_5_VLMoeMoeBlock": "{name}.text_moe.gate"}
"""Where the module whose logits are recorded is not the one to watch."""
SILENT = {"Ernie4_5_VLMoeMoeTopKRouter": "{tower}.vision_moe.gate"}
"""A second router beside the watched one, for tokens that are not text; a call of it is an error."""
NOT_ROUTERS = ("JetMoeAttention", "JetMoeMoA")
"""Blocks and modules that route something else than tokens to feed-forward experts: here attention heads."""
NOT_CAPTURED = {
    "NllbMoeTop2Router": "transformers 5.23 sends every token to its experts 0 and 1, whatever the router of nllb_moe "
    "chose"
}
"""By class of the router: why nothing that could be recorded would be true."""

_SCORE_SETTINGS = ("expert_selection_fn", "scoring_func", "score_function", "moe_router_score_function")


def score_function_of(module: torch.nn.Module, config: Any) -> ScoreFunction:
    """What turns a router's logits into weights: what its code calls; where that leaves it open, its configuration."""
    forward, made = (inspect.unwrap(getattr(type(module), name)) for name in ("forward", "__init__"))
    called = {*forward.__code__.co_names, *(text for text in made.__code__.co_consts if isinstance(text, str))}
    named = [name for name in ("softmax", "sigmoid") if name in called]
    if len(named) == 1:
        return cast("ScoreFunction", named[0])
    for place, name in product((module, config), _SCORE_SETTINGS):
        value = getattr(place, name, None)
        if value in get_args(ScoreFunction):
            return cast("ScoreFunction", value)
    return "softmax"


_SMALLEST = 1e-30
"""Stands for a probability that underflowed to 0; smaller than any that decides something."""


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


def _items(router: Router, output: Any, count: int) -> tuple[Any, ...]:
    if not isinstance(output, tuple) or len(output) < count:
        raise TraceError(f"{router.described} returned {type(output).__name__}; expected {count} tensors")
    return output[:count]


def _known_size(router: Router, name: str) -> int:
    value = getattr(router, name)
    if not isinstance(value, int):
        raise TraceError(f"{router.described} does not say its {name}; it cannot be captured exactly")
    return value
