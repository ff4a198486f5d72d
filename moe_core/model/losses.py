"""The auxiliary losses of the routers: pure functions of one layer, and their weighted sum over all layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from moe_core.config.router import RouterConfig
from moe_core.model.all_tokens import ALL_HERE, AllTokens
from moe_core.model.routers import RouterOutput, tokens_per_expert


class RoutingLosses(NamedTuple):
    """Scalars, means over the MoE layers."""

    total: Tensor
    """The weighted sum of all losses that the configuration asks for; it is added to the language-model loss."""
    load_balancing: Tensor
    """load_balancing_loss, reported whatever balancing is minimised, so that runs compare; 1 = perfect balance."""
    router_z: Tensor


class StepLoad:
    """Tokens that wanted each expert, by layer: of a micro-batch, and summed over those of one step (global-batch
    balancing). Those that other processes see count too.

    The loss of a micro-batch sees the load of the step up to and including itself, because each micro-batch has a
    backward pass of its own (arXiv:2501.11873, sec. 3, the buffer for gradient accumulation). A new step starts with a
    new object. A step of one micro-batch is the same with it and without.
    """

    def __init__(self, tokens: AllTokens = ALL_HERE) -> None:
        self.tokens = tokens
        self._counts: list[Tensor] = []

    def of(self, router_outputs: Sequence[RouterOutput]) -> list[Tensor]:
        """[E] of each layer, of this micro-batch alone."""
        counts = [tokens_per_expert(one.wanted_indices, one.router_logits.shape[-1]) for one in router_outputs]
        return list(self.tokens.add_up(torch.stack(counts))) if self.tokens.are_elsewhere else counts

    def add(self, router_outputs: Sequence[RouterOutput]) -> list[Tensor]:
        """[E] of each layer, this micro-batch included."""
        counts = self.of(router_outputs)
        self._counts = [old + new for old, new in zip(self._counts, counts, strict=True)] if self._counts else counts
        return self._counts


def routing_losses(
    router_outputs: Sequence[RouterOutput], config: RouterConfig, load: StepLoad | None = None
) -> RoutingLosses:
    """The losses of one micro-batch. `load`: the load of its step, for balancing global_batch; None = it is alone.

    All of them count what the routers wanted, not what capacity and dropout left of it: otherwise the pull would be
    weakest where the overload is worst, since what an overloaded expert had to drop would no longer be seen.
    """
    function = config.facts.score_function
    by = config.balances_by
    tokens = ALL_HERE if load is None else load.tokens
    counts: Sequence[Tensor | None] = [None] * len(router_outputs)
    if load is not None and by == "global_batch":
        counts = load.add(router_outputs)
    elif load is not None and tokens.are_elsewhere:
        counts = load.of(router_outputs)
    with torch.set_grad_enabled(torch.is_grad_enabled() and by in ("layer", "global_batch")):
        balancing = _mean_of_layers(
            load_balancing_loss(
                one.router_logits, one.wanted_indices, one.router_logits.shape[-1], function, counts_E, _present(one)
            )
            for one, counts_E in zip(router_outputs, counts, strict=True)
        )
    z = _mean_of_layers(router_z_loss(one.router_logits) for one in router_outputs)
    total = config.router_z_loss_coef * z
    if by in ("layer", "global_batch"):
        total = total + config.load_balancing_loss_coef * balancing
    elif by == "cv_squared":
        total = total + config.load_balancing_loss_coef * _mean_of_layers(
            variation_loss(one, tokens) for one in router_outputs
        )
    if "entropy_loss_coef" in config.facts.own_keys:
        total = total + config.entropy_loss_coef * _mean_of_layers(
            entropy_loss(one.router_logits) for one in router_outputs
        )
    return RoutingLosses(total, balancing, z)


def load_balancing_loss(
    router_logits: Tensor,
    router_indices: Tensor,
    num_experts: int,
    score_function: str = "softmax",
    counts_E: Tensor | None = None,
    present_E: Tensor | None = None,
) -> Tensor:
    """E * sum_e f_e * P_e (Switch, arXiv:2101.03961, eq. 4-6): 1 at perfectly even routing, at most E / K.

    It comes to E / K when all tokens want the same K experts and no other: a token's K slots hold K different experts,
    so that no f_e exceeds 1 / K. Where a rule leaves slots unused it may come to E.
    f_e is expert e's share of the used slots of `router_indices` [T, K] (-1 = unused), or of `counts_E`, the tokens per
    expert of more text than this; P_e the mean of its probability over the T tokens of `router_logits` [T, E]: the
    softmax, or the sigmoid divided by the token's sum of sigmoids (DeepSeek-V3, arXiv:2412.19437, eq. 18-20). The
    indices are those before capacity (eq. 5 counts the likeliest experts). The gradient flows through P alone. Float32
    scalar; 0 when no slot is used. `present_E`, bool: the experts that training has left; E is then how many they are,
    as if the others had never been. None = all.
    """
    counts_E = tokens_per_expert(router_indices, num_experts) if counts_E is None else counts_E
    share_E = counts_E.float() / counts_E.sum().clamp(min=1)
    probability_E = _probabilities(router_logits.float(), score_function).mean(dim=0)
    there = num_experts if present_E is None else present_E.sum()
    return there * torch.dot(share_E, probability_E)


def router_z_loss(router_logits: Tensor) -> Tensor:
    """Mean over tokens of logsumexp(logits)^2 (ST-MoE, arXiv:2202.08906, eq. 5): keeps logits small. Float32 scalar."""
    return router_logits.float().logsumexp(dim=-1).square().mean()


def variation_loss(routed: RouterOutput, tokens: AllTokens = ALL_HERE) -> Tensor:
    """CV(importance)^2 + CV(load)^2 (Shazeer et al., arXiv:1701.06538, eq. 6, 7 and 11). Float32 scalar; 0 = even.

    Importance: an expert's sum of the weights that tokens wanted to give it. Load: the tokens it can expect, through
    which a gradient flows only where the router drew noise of its own; elsewhere it is left out.
    """
    importance_E = torch.zeros(routed.router_logits.shape[-1], device=routed.router_scores.device)
    # Unused slots weigh 0, whoever gets that.
    importance_E = importance_E.index_add(
        0, routed.wanted_indices.clamp(min=0).flatten(), routed.wanted_scores.flatten().float()
    )
    loss = squared_variation(tokens.add_up_with_gradient(importance_E), _present(routed))
    if routed.load_probability is None:
        return loss
    return loss + squared_variation(tokens.add_up_with_gradient(routed.load_probability.sum(dim=0)), _present(routed))


def squared_variation(values_E: Tensor, present_E: Tensor | None = None) -> Tensor:
    """Variance / mean^2 of non-negative values, the variance with divisor E; 0 for zeros. `present_E`, bool: of these
    values alone."""
    if present_E is not None:
        values_E = values_E[present_E]
    return values_E.var(correction=0) / (values_E.mean().square() + 1e-10)


def entropy_loss(router_logits: Tensor) -> Tensor:
    """Mean over tokens of -sum_e p_e ln p_e, in nats (arXiv:2403.07652, eq. 6). Float32 scalar."""
    log_p_TE = router_logits.float().log_softmax(dim=-1)
    # p ln p goes to 0 with p; a logit of -inf would make it 0 times infinity.
    return -(log_p_TE.exp() * log_p_TE.clamp(min=torch.finfo(log_p_TE.dtype).min)).sum(dim=-1).mean()


def _present(routed: RouterOutput) -> Tensor | None:
    return None if routed.present is None else routed.present[0]


def _mean_of_layers(values: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean()


def _probabilities(logits_TE: Tensor, score_function: str) -> Tensor:
    """[T, E], each row sums to 1. Sigmoids are taken as logarithms: of very negative logits they underflow to 0."""
    return (logits_TE if score_function == "softmax" else nn.functional.logsigmoid(logits_TE)).softmax(dim=-1)
