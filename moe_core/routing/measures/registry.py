"""Every measure, once: the list that plots, pages, the report, the glossary, calibration and bench read."""

from __future__ import annotations

from moe_core.routing.measures import (
    agreement,
    causes,
    coactivation,
    comparison,
    decisions,
    domains,
    flip_accumulation,
    flip_margins,
    flow,
    formation,
    health,
    load,
    movers,
    persistence,
    pruning,
    saturation,
    vocabulary,
)
from moe_core.routing.measures import context_independence as context
from moe_core.routing.measures.measure import Measure

EXPERT_LOAD = Measure(
    name="expert_load",
    title="expert load",
    question="Which expert does how much of the work?",
    needs="counts",
    function=load.expert_load,
    value="share",
    terms=load.EXPERT_LOAD_TERMS,
)
LOAD_BALANCE = Measure(
    name="load_balance",
    title="load imbalance",
    question="Is the work shared evenly, and is an expert dead?",
    needs="counts",
    function=load.load_balance,
    value="load_imbalance",
    verdict=health.routing_health,
    terms=load.LOAD_BALANCE_TERMS,
)
LOAD_BY_STEP = Measure(
    name="load_by_step",
    title="load over time",
    question="How does the sharing of work change from step to step?",
    needs="counts",
    of="steps",
    function=load.load_by_step,
    value="share",
)
ROUTER_ENTROPY = Measure(
    name="router_entropy",
    title="router entropy",
    question="How decided is the router?",
    needs="tokens",
    function=decisions.router_entropy,
    value="router_entropy",
    terms=decisions.TERMS,
)
DROPPED_BY_POSITION = Measure(
    name="dropped_by_position",
    title="dropped tokens",
    question="Which tokens lose their slots?",
    needs="tokens",
    function=load.dropped_by_position,
    value="dropped_fraction",
    terms=load.DROPPED_TERMS,
)
DOMAIN_NMI = Measure(
    name="domain_nmi",
    title="NMI with the domain",
    question="Does the choice of expert tell the domain of a token?",
    needs="counts",
    domains=True,
    function=domains.domain_nmi,
    value="nmi",
    null=domains.domain_nmi_test,
    verdict=domains.domain_verdict,
    terms=domains.NMI_TERMS,
    bars=domains.NMI_BARS,
    plant=domains.NMI_PLANT,
)
DOMAIN_CELLS = Measure(
    name="domain_cells",
    title="experts of a domain",
    question="Which experts prefer which kind of text?",
    needs="counts",
    domains=True,
    function=domains.domain_specialization,
    value="share",
    null=domains.domain_cells,
    verdict=domains.strongest_expert,
    terms=domains.SPECIALIZATION_TERMS,
    plant=domains.CELLS_PLANT,
)
DOMAIN_DIVERGENCE = Measure(
    name="domain_divergence",
    title="difference of two domains",
    question="How differently do two domains use the experts?",
    needs="counts",
    domains=True,
    function=domains.domain_divergence,
    value="jsd",
    terms=domains.DIVERGENCE_TERMS,
)
VOCABULARY = Measure(
    name="vocabulary",
    title="token's favourite expert",
    question="Does a token go to the same expert every time?",
    needs="tokens",
    function=vocabulary.vocabulary_specialization,
    value="score",
    null=vocabulary.vocabulary_test,
    verdict=vocabulary.vocabulary_verdict,
    terms=vocabulary.TERMS,
    bars=vocabulary.BARS,
    plant=vocabulary.PLANT,
)
CONTEXT_INDEPENDENCE = Measure(
    name="context_independence",
    title="what the token alone explains",
    question="How much of the choice does the token alone explain?",
    needs="tokens",
    function=context.context_independence,
    value="token_share",
    null=context.context_independence,  # its chance is worked out, not drawn, and stands in its own frame
    verdict=context.token_verdict,
    terms=context.TERMS,
)
COACTIVATION = Measure(
    name="coactivation",
    title="teams",
    question="Are some experts chosen together more than chance?",
    needs="pairs",
    null_needs="tokens",
    function=coactivation.coactivation,
    value="strength",
    null=coactivation.coactivation_test,
    verdict=coactivation.coactivation_verdict,
    terms=coactivation.STRENGTH_TERMS,
    bars=coactivation.BARS,
    plant=coactivation.PLANT,
)
COACTIVATION_PAIRS = Measure(
    name="coactivation_pairs",
    title="pairs of experts",
    question="Which two experts are chosen together?",
    needs="pairs",
    null_needs="tokens",
    function=coactivation.coactivation,
    value="lift_over_chance",
    null=coactivation.coactivation_pairs,
    terms=coactivation.PAIR_TERMS,
    plant=coactivation.PAIRS_PLANT,
)
PERSISTENCE = Measure(
    name="persistence",
    title="same expert as token before",
    question="Does a token keep the expert of the token before it?",
    needs="tokens",
    function=persistence.persistence,
    value="first",
    null=persistence.persistence_test,
    verdict=persistence.persistence_verdict,
    terms=persistence.TERMS,
    bars=persistence.BARS,
    plant=persistence.PLANT,
)
LAYER_FLOW = Measure(
    name="layer_flow",
    title="NMI with next layer",
    question="Does the expert of one layer tell the expert of the next?",
    needs="tokens",
    function=flow.layer_flow,
    value="nmi",
    null=flow.layer_flow_test,
    verdict=flow.flow_verdict,
    terms=flow.TERMS,
    bars=flow.BARS,
    plant=flow.PLANT,
)
FORMATION = Measure(
    name="formation",
    title="formation of experts",
    question="When did each expert begin to take what it takes now?",
    needs="tokens",
    of="snapshots",
    function=formation.formation,
    value="agreement",
    terms=formation.TERMS,
)
SATURATION = Measure(
    name="saturation",
    title="saturation",
    question="Since when do tokens go where they go now?",
    needs="tokens",
    of="snapshots",
    function=saturation.saturation,
    value="top_k",
    verdict=saturation.saturation_verdict,
    terms=saturation.TERMS,
)
ROUTING_DIFF = Measure(
    name="routing_diff",
    title="tokens with other experts",
    question="Which tokens go elsewhere in another model or at another step?",
    needs="tokens",
    of="two traces",
    function=comparison.routing_diff,
    value="flip_rate",
    verdict=comparison.diff_verdict,
    terms=(
        *comparison.DIFF_TERMS,
        *agreement.AGREEMENT_TERMS,
        *flip_margins.MARGIN_TERMS,
        *flip_accumulation.ACCUMULATION_TERMS,
    ),
)
MATCH_EXPERTS = Measure(
    name="match_experts",
    title="matched experts",
    question="Which expert of one model is which of another?",
    needs="tokens",
    of="two traces",
    function=comparison.match_experts,
    value="overlap",
    terms=comparison.MATCH_TERMS,
)
ROUTING_MOVERS = Measure(
    name="routing_movers",
    title="experts that moved",
    question="Which experts changed what they take?",
    needs="counts",
    of="two traces",
    function=movers.routing_movers,
    value="change",
    verdict=movers.movers_verdict,
    terms=movers.TERMS,
)
ABLATION = Measure(
    name="ablation",
    title="loss without the expert",
    question="What is lost without an expert?",
    needs="model",
    function=None,
    value="delta_nats",
    verdict=causes.ablation_verdict,
    terms=(*causes.ABLATION_TERMS, *pruning.PRUNING_TERMS),
)
IMPORTANCE = Measure(
    name="importance",
    title="what predicts the loss without the expert",
    question="What tells beforehand what is lost without an expert?",
    needs="model",
    function=None,
    value="rho",
    verdict=causes.importance_verdict,
    terms=causes.IMPORTANCE_TERMS,
)

MEASURES: tuple[Measure, ...] = (
    EXPERT_LOAD,
    LOAD_BALANCE,
    LOAD_BY_STEP,
    ROUTER_ENTROPY,
    DROPPED_BY_POSITION,
    DOMAIN_NMI,
    DOMAIN_CELLS,
    DOMAIN_DIVERGENCE,
    VOCABULARY,
    CONTEXT_INDEPENDENCE,
    COACTIVATION,
    COACTIVATION_PAIRS,
    PERSISTENCE,
    LAYER_FLOW,
    FORMATION,
    SATURATION,
    ROUTING_DIFF,
    MATCH_EXPERTS,
    ROUTING_MOVERS,
    ABLATION,
    IMPORTANCE,
)
"""In the order a reader meets them; a test holds this list against the constants above."""
