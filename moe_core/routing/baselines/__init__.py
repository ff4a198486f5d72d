"""Is a measure more than chance? Each headline measure against its own null model, with a verdict in words."""

from moe_core.routing.baselines import findings
from moe_core.routing.baselines.domains import CLEARLY, ONE_DOMAIN, SLIGHTLY, domain_nmi
from moe_core.routing.baselines.findings import Finding
from moe_core.routing.baselines.significance import CHANCE, FEW_DOCUMENTS, SIGNIFICANCE, adjust

__all__ = [
    "CHANCE",
    "CLEARLY",
    "FEW_DOCUMENTS",
    "ONE_DOMAIN",
    "SIGNIFICANCE",
    "SLIGHTLY",
    "Finding",
    "adjust",
    "domain_nmi",
    "findings",
]
