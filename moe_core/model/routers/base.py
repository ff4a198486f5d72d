"""What all routers share: the contract, their logits, and what is dropped while training.

Axes: B sequences of S tokens, T = B * S, D model width, E experts, K slots, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from moe_core.config.router import RouterConfig, RouterFacts
from moe_core.errors import UsageError
from moe_core.model.all_tokens import ALL_HERE, AllTokens
from moe_core.model.token_cache import TokenCache

NO_NOTES: Mapping[str, Tensor] = {}


class RouterOutput(NamedTuple):
    """What a router decided: the three tensors of the router contract, then notes by name.

    The notes are an item like the others, a plain dict of tensors, so that whatever maps over a module's output (a
    change of precision or device, torch's tree_map, type(output)(*items)) keeps them. A note that a router has no
    reason to make is absent.
    """

    router_logits: Tensor
    """float32 [T, E], before the softmax or sigmoid, noise included."""
    router_scores: Tensor
    """float32 [T, K], weights of the chosen experts, largest first; 0 in an unused slot."""
    router_indices: Tensor
    """int64 [T, K], chosen experts, different within a token; -1 = unused slot."""
    notes: Mapping[str, Tensor] = NO_NOTES
    """The properties below, by their names, as far as they were noted."""

    @property
    def eligible(self) -> Tensor | None:
        """bool [T, E], experts the token could choose from; None = all."""
        return self.notes.get("eligible")

    @property
    def present(self) -> Tensor | None:
        """bool [T, E], the same for all tokens: experts that training has not taken away; None = all."""
        return self.notes.get("present")

    @property
    def load_probability(self) -> Tensor | None:
        """float32 [T, E], probability that the token visits the expert if its noise is drawn again; None = no noise."""
        return self.notes.get("load_probability")

    @property
    def wanted_indices(self) -> Tensor:
        """int64 [T, K], what the rule chose before anything was taken away while training: experts or their slots by
        dropout, slots by capacity. What a rule itself leaves unused (top_p, thresholds) was not wanted. Balancing
        counts these: what was taken away from an overloaded expert is overload still."""
        return self.notes.get("wanted_indices", self.router_indices)

    @property
    def wanted_scores(self) -> Tensor:
        """float32 [T, K], the weights of `wanted_indices`."""
        return self.notes.get("wanted_scores", self.router_scores)

    def noting(
        self,
        *,
        eligible: Tensor | None = None,
        present: Tensor | None = None,
        load_probability: Tensor | None = None,
        wanted_indices: Tensor | None = None,
        wanted_scores: Tensor | None = None,
    ) -> RouterOutput:
        """The same decision with these notes beside those it has."""
        given = {
            "eligible": eligible,
            "present": present,
            "load_probability": load_probability,
            "wanted_indices": wanted_indices,
            "wanted_scores": wanted_scores,
        }
        made = {name: note for name, note in given.items() if note is not None}
        return self._replace(notes={**self.notes, **made})

    def detach(self) -> RouterOutput:
        """The same decision without its gradients."""
        notes = {name: note.detach() for name, note in self.notes.items()}
        return RouterOutput(
            self.router_logits.detach(), self.router_scores.detach(), self.router_indices.detach(), notes
        )

    @staticmethod
    def concatenate(parts: Sequence[RouterOutput]) -> RouterOutput:
        """The decisions of one router for the tokens of all `parts`, which note the same."""
        return RouterOutput(
            torch.cat([part.router_logits for part in parts]),
            torch.cat([part.router_scores for part in parts]),
            torch.cat([part.router_indices for part in parts]),
            {name: torch.cat([part.notes[name] for part in parts]) for name in parts[0].notes},
        )


class RouterContext(NamedTuple):
    """What a router whose choice depends on token ids is told beside the tokens' states."""

    token_ids: Tensor
    """int64 [B, S], in the order of the states, sequence after sequence."""
    cache: TokenCache | None
    """The cache of the tokens before these; None = each sequence starts here."""


class RouterShape(NamedTuple):
    """Sizes a router is built for."""

    dim: int
    num_experts: int
    """E, null experts among them."""
    top_k: int
    capacity_factor: float | None = None
    """See ModelConfig.capacity_factor."""
    vocab_size: int = 0
    """V; only a router that knows token ids asks."""
    loses_experts: bool = False
    """Whether training takes experts away, see ModelConfig.removed_experts."""


class Router(nn.Module):
    """logits = W x (+ noise while training), then `choose`, in float32; then, while training, drops.

    NOTE: what a router keeps beside its weights (biases, thresholds) is a float32 buffer whatever the model's dtype:
    rounded to bfloat16, biases of 6.8 that differ by .1 are the same, and other experts are chosen.

    A subclass names the facts of its kind and has a rule of its own: `choose` if logits are all it looks at, `decide`
    if it looks at the context too, else `route`. One whose facts say reads_context is given a RouterContext.
    """

    is_moe_router = True
    facts: RouterFacts
    """The facts of its kind."""
    weight: nn.Parameter | None
    removed: Tensor | None
    """bool [E], experts that training took away; None where it takes none."""
    all_tokens: AllTokens = ALL_HERE
    """Who knows of the tokens that other processes of the training see; after_step asks."""

    def __init__(self, shape: RouterShape, config: RouterConfig | None = None) -> None:
        super().__init__()
        self.num_experts = shape.num_experts
        self.null_experts = 0
        self.top_k = shape.top_k
        self.capacity_factor = shape.capacity_factor
        self.config = config or RouterConfig()
        # The contract asks for these; whoever finds a router need not know our facts.
        self.score_function = self.facts.score_function
        self.varying_experts = self.facts.varying_experts
        self.cannot_choose = self.facts.cannot_choose
        # Plain attributes: a single token's routing takes microseconds, and a look into the section is one of them.
        self.normalize_scores = self.config.normalize_scores
        self.noise_std = self.config.noise_std
        self.expert_dropout = self.config.expert_dropout
        self.reads_context = self.facts.reads_context
        self.weight = nn.Parameter(torch.empty(shape.num_experts, shape.dim))
        gone_E = torch.zeros(shape.num_experts, dtype=torch.bool) if shape.loses_experts else None
        self.register_buffer("removed", gone_E)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Router:
        """As torch.nn.Module, for .to(), .half() and the like: buffers move with it, but stay float32."""
        before = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in before.items():
            moved = self._buffers[name]
            if buffer.is_floating_point() and moved is not None and moved.dtype != torch.float32:
                self._buffers[name] = buffer.to(moved.device, torch.float32)
        return self

    def forward(self, x_TD: Tensor, context: RouterContext | None = None) -> RouterOutput:
        """Route T tokens: x_TD [T, D] -> RouterOutput. Raises UsageError if it needs a context and has none."""
        if context is None and self.reads_context:
            raise UsageError(f"a {self.config.kind} router was called with no token ids; call the whole model")
        # Autocast would round the logits to bfloat16, where a tie between experts is common.
        with torch.autocast(x_TD.device.type, enabled=False):
            routed = self.route(x_TD, context)
        if self.removed is not None:
            routed = routed.noting(present=(~self.removed).expand_as(routed.router_logits))
        return self._drop_slots(routed) if self.training else routed

    def route(self, x_TD: Tensor, context: RouterContext | None) -> RouterOutput:
        """Every step before slots are dropped."""
        return self.decide_among_present(self.logits(x_TD), context)

    def decide_among_present(self, logits_TE: Tensor, context: RouterContext | None) -> RouterOutput:
        """The decision from logits [T, E], without the experts that expert dropout leaves out of this step; what it
        would be with them is noted as wanted."""
        wanted = self.decide(logits_TE, context)
        present_TE = self.present(logits_TE)
        if present_TE is logits_TE:
            return wanted
        left = self.decide(present_TE, context)._replace(router_logits=logits_TE)
        return left.noting(wanted_indices=wanted.router_indices, wanted_scores=wanted.router_scores)

    def decide(self, logits_TE: Tensor, context: RouterContext | None) -> RouterOutput:  # noqa: ARG002 - some read it
        """The decision from logits [T, E]; -inf = an expert that is not to be chosen."""
        return RouterOutput(logits_TE, *self.choose(logits_TE, self.top_k))

    def logits(self, x_TD: Tensor) -> Tensor:
        """float32 [T, E]"""
        weight = self.weight
        assert weight is not None
        logits_TE = nn.functional.linear(x_TD.to(weight.dtype), weight).float()
        if self.noise_std > 0 and self.training:
            logits_TE = logits_TE + self.noise_std * torch.randn_like(logits_TE)
        return logits_TE if self.removed is None else logits_TE.masked_fill(self.removed, -math.inf)

    def choose(self, logits_TE: Tensor, top_k: int, forced: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """The rule for given logits [T, E] and 1 <= top_k <= E: scores [T, top_k] and indices [T, top_k].

        Interventions choose again with it. Weights are divided by their sum if the router was built to do so, whatever
        `top_k` is asked for: the experts were trained at that scale. An expert of logit -inf comes after all others.
        `forced` experts, at most top_k, have the largest logits; they are chosen whatever else the rule says.
        """
        raise NotImplementedError

    def prepare(self, token_counts_V: Tensor, document_start: int) -> None:
        """Learn, once before training, how often each token id occurs in the training text and which id begins a
        document. What a router keeps of this is a buffer, so that checkpoints have it."""

    def after_step(self, routed: RouterOutput) -> None:
        """Learn what was decided in a training step; biases and thresholds move here."""

    @torch.no_grad()
    def after_step_unless(self, skipped: Tensor, routed: RouterOutput) -> None:
        """after_step, but all stays as it is where the scalar `skipped` is True; the host is not told which."""
        before = {name: buffer.clone() for name, buffer in self.named_buffers() if buffer.is_floating_point()}
        self.after_step(routed)
        for name, kept in before.items():
            buffer = self.get_buffer(name)
            buffer.copy_(torch.where(skipped, kept, buffer))

    def present(self, logits_TE: Tensor) -> Tensor:
        """The logits, -inf for experts that expert dropout leaves out of this training step."""
        if self.expert_dropout == 0 or not self.training:
            return logits_TE
        drawn_E = torch.rand(self.num_experts, device=logits_TE.device)
        absent_E = drawn_E < self.expert_dropout
        absent_E.scatter_(0, drawn_E.topk(self.top_k).indices, False)
        return logits_TE.masked_fill(absent_E, -math.inf)

    def _drop_slots(self, routed: RouterOutput) -> RouterOutput:
        """Slots beyond capacity, and of dropped outputs, become -1 with score 0; what was wanted is noted."""
        scores_TK, indices_TK = routed.router_scores, routed.router_indices
        gone_TK = None
        if self.capacity_factor is not None:
            gone_TK = self._beyond_capacity(indices_TK, self.capacity_factor)
        if self.config.expert_output_dropout > 0:
            masked_TK = torch.rand_like(scores_TK) < self.config.expert_output_dropout
            gone_TK = masked_TK if gone_TK is None else gone_TK | masked_TK
        if gone_TK is None:
            return routed
        left = routed._replace(
            router_scores=scores_TK.masked_fill(gone_TK, 0.0), router_indices=indices_TK.masked_fill(gone_TK, -1)
        )
        return left.noting(wanted_indices=routed.wanted_indices, wanted_scores=routed.wanted_scores)

    def _beyond_capacity(self, indices_TK: Tensor, factor: float) -> Tensor:
        """bool [T, K], whether the token comes after the first ceil(factor * T * K / E) that chose the expert."""
        T, K = indices_TK.shape
        # Column 0 counts unused slots.
        chosen_TE = torch.zeros(T, self.num_experts + 1, dtype=torch.int64, device=indices_TK.device)
        rank_TE = chosen_TE.scatter_(1, indices_TK + 1, 1).cumsum(dim=0)
        return rank_TE.gather(1, indices_TK + 1) > math.ceil(factor * T * K / self.num_experts)


def by_logit(logits_TE: Tensor) -> Tensor:
    """int64 [T, E], experts by descending logit; among equals the smaller index comes first.

    Probabilities would not do: they underflow to equal zeros when one logit towers above the rest.
    """
    return logits_TE.detach().sort(dim=-1, descending=True, stable=True).indices


def fill_slots(wanted_TE: Tensor, values_TE: Tensor, top_k: int) -> Tensor:
    """int64 [T, top_k]: the wanted experts by descending value, then -1; the smaller index first among equals."""
    ranked = values_TE.detach().masked_fill(~wanted_TE, -math.inf).sort(dim=-1, descending=True, stable=True)
    wanted_TK = wanted_TE.gather(-1, ranked.indices[:, :top_k])
    return ranked.indices[:, :top_k].masked_fill(~wanted_TK, -1)


def tokens_per_expert(indices_TK: Tensor, num_experts: int) -> Tensor:
    """int64 [E] from indices [T, K]; unused slots count for nobody.

    Not by bincount, which asks an accelerator for the largest index, so that the host waits for all work before it.
    """
    slots_N = indices_TK.flatten() + 1
    counts = torch.zeros(num_experts + 1, dtype=torch.int64, device=slots_N.device)
    return counts.scatter_add_(0, slots_N, torch.ones_like(slots_N))[1:]


def read_slots(values_TE: Tensor, indices_TK: Tensor) -> Tensor:
    """[T, K] the chosen experts' values; 0 in unused slots."""
    return values_TE.gather(-1, indices_TK.clamp(min=0)).masked_fill(indices_TK < 0, 0.0)
