"""Plain-word answers, computed from the frames of metrics and baselines; pages, reports and captions share them.

Every sentence says the size, the chance level and the certainty, and may say that there is nothing to see.
"""

from moe_core.routing.measures.causes import ablation_verdict, effects_verdict, importance_verdict, text_loss_verdict
from moe_core.routing.measures.experts import expert_sentence, layer_verdict
from moe_core.routing.measures.health import (
    DROPPED_LIMIT,
    IMBALANCE_LIMIT,
    UNDECIDED_ENTROPY,
    describe_model,
    routing_health,
)
from moe_core.routing.verdicts.associations import (
    coactivation_verdict,
    flow_verdict,
    persistence_verdict,
    strongest_flow,
    vocabulary_verdict,
)
from moe_core.routing.verdicts.changes import diff_verdict, movers_verdict, saturation_verdict
from moe_core.routing.verdicts.domains import (
    NOTHING_THERE,
    domain_cell,
    domain_verdict,
    preferred,
    strongest_expert,
    token_verdict,
)
from moe_core.routing.verdicts.words import number, p_value, percent, points, sentence, short_count, signed

__all__ = [
    "DROPPED_LIMIT",
    "IMBALANCE_LIMIT",
    "NOTHING_THERE",
    "UNDECIDED_ENTROPY",
    "ablation_verdict",
    "coactivation_verdict",
    "describe_model",
    "diff_verdict",
    "domain_cell",
    "domain_verdict",
    "effects_verdict",
    "expert_sentence",
    "flow_verdict",
    "importance_verdict",
    "layer_verdict",
    "movers_verdict",
    "number",
    "p_value",
    "percent",
    "persistence_verdict",
    "points",
    "preferred",
    "routing_health",
    "saturation_verdict",
    "sentence",
    "short_count",
    "signed",
    "strongest_expert",
    "strongest_flow",
    "text_loss_verdict",
    "token_verdict",
    "vocabulary_verdict",
]
