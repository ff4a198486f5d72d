"""What the routers do with the same few documents at every evaluation: the film of experts specialising."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moe_core.data.tokens import TokenDataset
from moe_core.evaluation.loss import scored_windows
from moe_core.inference.scoring import likeliest, predictions
from moe_core.inference.tracing import trace_batches
from moe_core.routing import RoutingTrace, capture
from moe_core.routing.measures.decisions import router_entropy
from moe_core.routing.measures.domains import domain_cells, domain_nmi, preferred
from moe_core.routing.measures.load import expert_load, load_balance

# An expert counts as a domain's own once that domain's tokens choose it this many times as often as by even routing.
OWN_EXPERT_LIFT = 2.0

DomainExpert = tuple[int, int, str]
"""(layer, expert, domain)"""


@torch.no_grad()
def probe_routing(
    model: torch.nn.Module,
    dataset: TokenDataset,
    *,
    seq_len: int,
    vocabulary: Sequence[str],
    source: str,
) -> RoutingTrace:
    """Routing of every token of `dataset` whose successor is known, each document alone; evaluation mode."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    batches = list(scored_windows(dataset, seq_len))
    predicted_ids: list[NDArray[np.int32]] = []
    try:
        with capture(model) as recorder:
            for found in predictions(lambda ids_BS: model(ids_BS).logits, device, dataset, batches):
                predicted_ids.append(likeliest(found.logits).cpu().numpy())
    finally:
        model.train(was_training)
    return trace_batches(
        recorder,
        [(dataset, windows) for windows in batches],
        domains=dataset.domains,
        source=source,
        vocabulary=vocabulary,
        predicted_ids=predicted_ids,
    )


def compact(trace: RoutingTrace) -> RoutingTrace:
    """The trace as it is kept: without the logits, which take most of the room and whose entropy is in the metrics."""
    return replace(trace, router_logits=None)


def load_records(trace: RoutingTrace, step: int) -> list[dict[str, Any]]:
    """One "load" line for metrics.jsonl per MoE layer; domain_nmi is None where there is one domain only."""
    shares = expert_load(trace).groupby("layer")["share"].apply(list)
    balance = load_balance(trace)
    rows = zip(
        trace.layers,
        balance["load_imbalance"],
        balance["dead_experts"],
        router_entropy(trace)["router_entropy"],
        domain_nmi(trace)["nmi"],
        strict=True,
    )
    return [
        {
            "kind": "load",
            "step": step,
            "layer": layer,
            "expert_load": [float(share) for share in shares[layer]],
            "load_imbalance": float(imbalance),
            "dead_experts": int(dead),
            "router_entropy": float(entropy),
            "domain_nmi": float(nmi),
        }
        for layer, imbalance, dead, entropy, nmi in rows
    ]


def domain_experts(trace: RoutingTrace, known: Collection[DomainExpert]) -> list[tuple[DomainExpert, float]]:
    """Experts that a domain has come to own, with their lift, beyond those `known`.

    A domain owns an expert when its lift is at least OWN_EXPERT_LIFT and it prefers the expert surely, of all cells
    that there are (baselines.domain_cells). In the order of layer and expert, the domain of the largest lift first.
    """
    certain = preferred(domain_cells(trace))
    owned = certain[certain["lift"] >= OWN_EXPERT_LIFT]
    owned = owned.sort_values(["layer", "expert", "lift"], ascending=[True, True, False], kind="stable")
    found = [
        ((int(layer), int(expert), str(domain)), float(lift))
        for layer, expert, domain, lift in zip(
            owned["layer"], owned["expert"], owned["domain"], owned["lift"], strict=True
        )
    ]
    return [(owner, lift) for owner, lift in found if owner not in known]


def ownership_events(found: Sequence[tuple[DomainExpert, float]]) -> list[str]:
    """One sentence an expert, whatever number of domains have come to own it at once; in the order of `found`."""
    domains: dict[tuple[int, int], list[tuple[str, float]]] = {}
    for (layer, expert, domain), lift in found:
        domains.setdefault((layer, expert), []).append((domain, lift))
    return [
        f"expert {expert} in layer {layer} has become a {' and '.join(domain for domain, _ in owners)} expert: "
        + ", ".join(f"{domain} tokens choose it {lift:.1f} times their even share" for domain, lift in owners)
        for (layer, expert), owners in domains.items()
    ]
