"""Which families of the transformers library are captured exactly: `python -m bench.families`.

For every folder of transformers.models whose code knows router logits, a tiny random text model reads two short texts.
What capture says each token chose is held, index for index and weight for weight, against what the experts were called
with. The result is written to docs/families.md; tests/parity/test_families.py holds that page current.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bench.family_configs import VOCABULARY, families, text_model_class, tiny_model
from moe_core.errors import MoescopeError
from moe_core.routing.instruments.capture import capture
from moe_core.routing.instruments.contract import Router
from moe_core.routing.instruments.find import find_routers
from moe_core.routing.trace.trace import RoutingTrace

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PAGE = Path(__file__).resolve().parents[1] / "docs" / "families.md"

NOTES = {
    "dbrx": "The choice is read from the call of the experts.",
    "deepseek_v4": "All but ablation is refused in the first layers, which look their experts up by the token.",
    "diffusion_gemma": "Encoder's text model; the decoder is captured as a part of its own.",
    "doge": "Product keys: an expert's logit is the sum of two. In a full forward the library mixes the logits of "
    "different tokens, so that it differs from generation token by token.",
    "ernie4_5_vl_moe": "Text only: images have experts of their own.",
    "jetmoe": "Feed-forward experts; the experts of its attention are left out.",
    "llama4": "The weight scales what the expert reads, not what it says.",
    "longcat_flash": "The last experts are identities.",
    "qwen3_omni_moe": "The thinker; the talker is captured as a part of its own.",
    "switch_transformers": "Encoder and decoder are captured as parts. A token whose expert is full has none.",
    "zaya": "A token may skip the experts: -1.",
}


DENSE = "no experts in its text model"


@dataclass(frozen=True)
class Outcome:
    """The outcome for one family."""

    family: str
    model: str = ""
    """Class of the text model."""
    score_function: str = ""
    changes: str = ""
    """Interventions that it can do."""
    exact: bool = False
    reason: str = ""
    """Why it is not captured."""

    @property
    def dense(self) -> bool:
        """Has it no experts at all?"""
        return self.reason == DENSE


def check(family: str) -> Outcome:
    """Capture a tiny model of one family and hold it against what its experts received."""
    name = text_model_class(family).__name__
    try:
        model = tiny_model(family)
        routers = find_routers(model)
    except MoescopeError as error:
        return Outcome(family, name, reason=DENSE if "has no router" in str(error) else str(error))
    trace, exact = captured(model, routers)
    return Outcome(
        family, name, trace.score_function, _possible_changes(routers.values()), exact, "" if exact else "differs"
    )


def captured(model: torch.nn.Module, routers: dict[int, Router]) -> tuple[RoutingTrace, bool]:
    """The trace of two texts of 12 tokens, and whether it is what the experts were called with."""
    import torch

    tokens = torch.randint(3, VOCABULARY - 9, (2, 12), generator=torch.Generator().manual_seed(1))
    seen = {layer: Seen(router) for layer, router in routers.items()}
    try:
        with torch.no_grad(), capture(model) as recorder:
            model(input_ids=tokens)
    finally:
        for each in seen.values():
            each.remove()
    trace = recorder.trace(token_ids=tokens)
    pairs = zip(trace.layers, trace.router_indices, trace.router_scores, strict=True)
    agreeing = [layer for layer, indices, scores in pairs if seen[layer].agrees(indices, scores)]
    return trace, agreeing == list(routers)


class Seen:
    """The arguments of one router's experts, recorded by hooks of this file."""

    def __init__(self, router: Router) -> None:
        where, self._judge = _JUDGES.get(router.family, ("experts", _same_arguments))
        block: Any = router.module if router.family == "doge" else router.block  # a doge block is its own router
        self._block = block
        self._given: list[tuple[Any, ...]] = []
        self._around: list[tuple[Tensor, Tensor]] = []
        self._handles: list[Any] = [self._block.get_submodule(where).register_forward_pre_hook(self._note_input)]
        if self._judge is not _same_arguments:
            self._handles.append(self._block.register_forward_hook(self._note_output))

    def agrees(self, indices_TK: npt.NDArray[Any], scores_TK: npt.NDArray[Any]) -> bool:
        """Whether every slot equals what was seen; -1 = the token has no expert there."""
        import torch

        return self._judge(self, torch.from_numpy(indices_TK.astype(np.int64)), torch.from_numpy(scores_TK.copy()))

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _note_input(self, module: object, args: tuple[Any, ...]) -> None:  # noqa: ARG002 - torch's signature
        self._given.append(args)

    def _note_output(self, module: object, args: tuple[Any, ...], output: Any) -> None:  # noqa: ARG002
        self._around.append((args[0], output[0] if isinstance(output, tuple) else output))


def _same_arguments(seen: Seen, indices: Tensor, scores: Tensor) -> bool:
    """experts(states, indices, weights)"""
    import torch

    given_indices, given_scores = (torch.cat([args[item] for args in seen._given]) for item in (1, 2))
    used = indices >= 0
    return torch.equal(given_scores.float(), scores) and torch.equal(given_indices[used], indices[used])


def _same_mask(seen: Seen, indices: Tensor, scores: Tensor) -> bool:
    """Switch: experts(states, mask [T,1,E], weights [T,1])"""
    import torch

    ((_, mask, weights),) = seen._given
    given = torch.zeros(mask.shape[0], mask.shape[2]).masked_fill(mask[:, 0].bool(), 1.0) * weights
    told = torch.zeros_like(given)
    told[torch.arange(len(indices)), indices[:, 0].clamp(min=0)] = scores[:, 0]
    return torch.equal(given, told)


def _same_inputs(seen: Seen, indices: Tensor, scores: Tensor) -> bool:
    """Llama 4: experts(every token's state times its weight, for every expert [E * T, D])"""
    import torch

    ((given,),), ((states, _),) = seen._given, seen._around
    states = states.flatten(0, -2)
    weights = torch.zeros(len(given) // len(states), len(states))
    weights[indices.T, torch.arange(len(states))] = scores.T
    return torch.equal(given, (weights[..., None] * states).flatten(0, 1))


def _same_sorted(seen: Seen, indices: Tensor, scores: Tensor) -> bool:
    """JetMoE: input_linear(states of slots sorted by expert, slots per expert); weights from what comes out."""
    import torch

    ((given, sizes),), ((states, output),) = seen._given, seen._around
    block, states = seen._block, states.flatten(0, -2)
    tokens = (given[:, None] == states[None]).all(dim=-1).int().argmax(dim=1)
    experts = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    told = (indices + torch.arange(len(indices))[:, None] * len(sizes)).flatten()
    same = torch.equal(given, states[tokens]) and torch.equal((tokens * len(sizes) + experts).sort()[0], told.sort()[0])
    first, second = (block.input_linear.weight[indices], block.output_linear.weight[indices])
    gate, up = torch.einsum("tkfd,td->tkf", first, states).chunk(2, dim=-1)
    each = torch.einsum("tkdf,tkf->tkd", second, block.activation(gate) * up)
    made = (each * scores[..., None]).sum(1) + block.bias
    return same and torch.allclose(made, output.flatten(0, -2), rtol=1e-4, atol=1e-8)


def _same_lookup(seen: Seen, indices: Tensor, scores: Tensor) -> bool:
    """Doge: up_embed(indices); weights from what comes out."""
    import torch

    ((given,),), ((states, output),) = seen._given, seen._around
    block, states = seen._block, states.flatten(0, -2)
    shared = block.down_proj(block.act_fn(block.gate_proj(states)) * block.up_proj(states))
    wanted = torch.einsum("tkd,td->tk", block.down_embed.weight[indices], states)
    made = torch.einsum("tk,tkd->td", block.act_fn(wanted) * scores, block.up_embed.weight[indices])
    return torch.equal(given, indices) and torch.allclose(shared + made, output.flatten(0, -2), rtol=1e-4, atol=1e-8)


_JUDGES: dict[str, tuple[str, Callable[[Seen, Tensor, Tensor], bool]]] = {
    "switch_transformers": ("experts", _same_mask),
    "llama4_text": ("experts", _same_inputs),
    "jetmoe": ("input_linear", _same_sorted),
    "doge": ("up_embed", _same_lookup),
}
"""For each model_type: the part of the block whose call is read, and what it must say."""


def _possible_changes(routers: Iterable[Router]) -> str:
    kinds = set()
    for router in routers:
        if router.form.write_refused(router):
            kinds.add("none")
        elif router.form.choose_refused(router):
            kinds.add("zero, renormalise")
        else:
            kinds.add("all")
    return " / ".join(sorted(kinds))


_HEAD = """# Families of Hugging Face models

Written by `python -m bench.families` with transformers {version}.

Of {known} families whose code knows router logits, {moe} have experts, and **{exact} are captured exactly**: on a tiny
random model, what `capture` records equals what the experts were called with, index for index and weight for weight.

| family | text model | weights from | interventions | remarks |
|---|---|---|---|---|
"""


def page(outcomes: list[Outcome]) -> str:
    """docs/families.md as text."""
    import transformers

    exact = [outcome for outcome in outcomes if outcome.exact]
    missing = [outcome for outcome in outcomes if not outcome.exact]
    head = _HEAD.format(
        version=transformers.__version__,
        known=len(outcomes),
        moe=sum(not outcome.dense for outcome in outcomes),
        exact=len(exact),
    )
    rows = [f"| {o.family} | {o.model} | {o.score_function} | {o.changes} | {NOTES.get(o.family, '')} |" for o in exact]
    rest = ["", "The others:", "", *(f"- {o.family} ({o.model}): {o.reason}" for o in missing)]
    return head + "\n".join([*rows, *rest]) + "\n"


def main() -> int:
    """Check every family, write the page, and print what is not exact. 0 if it could be written."""
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    outcomes = [check(family) for family in families()]
    PAGE.write_text(page(outcomes), encoding="utf-8")
    print(f"{sum(o.exact for o in outcomes)} of {len(outcomes)} families are captured exactly; written to {PAGE}")
    for outcome in outcomes:
        if not outcome.exact:
            print(f"  {outcome.family}: {outcome.reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
