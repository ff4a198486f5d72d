"""Measures of routing: one function each, from a RoutingTrace to a tidy DataFrame (one row per observation).

Symbols: T tokens, E experts, K slots per token (top_k), c_e assignments of expert e in a layer, f_e = c_e / sum c.
Whether a value differs from chance is answered in baselines. Where a value is undefined (no tokens) it is NaN.
"""

from moe_core.routing.measures.busiest import busiest_experts
from moe_core.routing.measures.caches import expert_cache
from moe_core.routing.measures.coactivation import coactivation
from moe_core.routing.measures.comparison import match_experts, rename_experts, routing_diff
from moe_core.routing.measures.context_independence import context_independence
from moe_core.routing.measures.decisions import router_entropy, token_entropy
from moe_core.routing.measures.domains import domain_divergence, domain_nmi, domain_specialization
from moe_core.routing.measures.experts_per_token import experts_per_token, experts_per_token_of_types
from moe_core.routing.measures.flow import layer_flow
from moe_core.routing.measures.formation import formation, formed_at
from moe_core.routing.measures.gpu_load import gpu_load
from moe_core.routing.measures.labelled_tokens import label_nmi, label_specialization
from moe_core.routing.measures.load import dropped_by_position, expert_load, load_balance, load_by_step
from moe_core.routing.measures.movers import routing_movers
from moe_core.routing.measures.persistence import persistence
from moe_core.routing.measures.saturation import saturation
from moe_core.routing.measures.vocabulary import token_experts, vocabulary_specialization

__all__ = [
    "busiest_experts",
    "coactivation",
    "context_independence",
    "domain_divergence",
    "domain_nmi",
    "domain_specialization",
    "dropped_by_position",
    "expert_cache",
    "expert_load",
    "experts_per_token",
    "experts_per_token_of_types",
    "formation",
    "formed_at",
    "gpu_load",
    "label_nmi",
    "label_specialization",
    "layer_flow",
    "load_balance",
    "load_by_step",
    "match_experts",
    "persistence",
    "rename_experts",
    "router_entropy",
    "routing_diff",
    "routing_movers",
    "saturation",
    "token_entropy",
    "token_experts",
    "vocabulary_specialization",
]
