"""Is a measure more than chance? Each headline measure against its own null model, with a verdict in words.

What each null keeps, and what it breaks:

- domain_nmi, domain_cells: the choices of every source; which domain the source is of.
- label_nmi, label_cells: the choices of every document, in their order; which token has which label.
- experts_per_token: as label_nmi, or with domains as domain_nmi; how many experts which class takes.
- persistence: the first choices of every document; their order.
- coactivation, coactivation_pairs: how much each source differs from random choices with its documents' loads, runs and
  all; whether sources differ in the same way.
- vocabulary: the choices of every document, in their order; which token has which.
- layer_flow: the choices of every document in each layer, in their order; which belong to one token.

All take sources to be independent; `independence_note` says where documents look like windows of one text.

All are seeded. Intervals are by block bootstrap over sources (`bootstrap` for any other measure of counts).
"""

from moe_core.routing.measures.against_chance import CHANCE, FEW_DOCUMENTS, Finding
from moe_core.routing.measures.coactivation import coactivation_pairs
from moe_core.routing.measures.coactivation import coactivation_test as coactivation
from moe_core.routing.measures.domains import CLEARLY, ONE_DOMAIN, SLIGHTLY, domain_cells
from moe_core.routing.measures.domains import domain_nmi_test as domain_nmi
from moe_core.routing.measures.experts_per_token import experts_per_token_classes
from moe_core.routing.measures.experts_per_token import experts_per_token_test as experts_per_token
from moe_core.routing.measures.flow import layer_flow_test as layer_flow
from moe_core.routing.measures.labelled_tokens import label_cells
from moe_core.routing.measures.labelled_tokens import label_nmi_test as label_nmi
from moe_core.routing.measures.persistence import persistence_test as persistence
from moe_core.routing.measures.vocabulary import vocabulary_test as vocabulary
from moe_core.routing.statistics.bootstrap import bootstrap
from moe_core.routing.statistics.multiple_comparisons import SIGNIFICANCE, adjust
from moe_core.routing.statistics.permutation import MAX_NULL_TOKENS
from moe_core.routing.trace.independence import independence_note

__all__ = [
    "CHANCE",
    "CLEARLY",
    "FEW_DOCUMENTS",
    "MAX_NULL_TOKENS",
    "ONE_DOMAIN",
    "SIGNIFICANCE",
    "SLIGHTLY",
    "Finding",
    "adjust",
    "bootstrap",
    "coactivation",
    "coactivation_pairs",
    "domain_cells",
    "domain_nmi",
    "experts_per_token",
    "experts_per_token_classes",
    "independence_note",
    "label_cells",
    "label_nmi",
    "layer_flow",
    "persistence",
    "vocabulary",
]
