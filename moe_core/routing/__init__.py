"""Routing analysis, the heart of Moescope: capture -> RoutingTrace -> metrics -> baselines.

Names are imported when they are first asked for: whoever counts or lists runs needs neither pandas nor scipy nor torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moe_core.routing import baselines, metrics
    from moe_core.routing.instruments.capture import Recorder, capture
    from moe_core.routing.instruments.interventions import Intervention, intervene
    from moe_core.routing.trace.groups import Group
    from moe_core.routing.trace.joining import concatenate
    from moe_core.routing.trace.routing_counts import RoutingCounts
    from moe_core.routing.trace.trace import AnyRouting, AnyTrace, RoutingTrace, StoredTrace

_MODULE_OF = {
    "AnyRouting": "trace.trace",
    "AnyTrace": "trace.trace",
    "Group": "trace.groups",
    "Intervention": "instruments.interventions",
    "Recorder": "instruments.capture",
    "RoutingCounts": "trace.routing_counts",
    "RoutingTrace": "trace.trace",
    "StoredTrace": "trace.trace",
    "capture": "instruments.capture",
    "concatenate": "trace.joining",
    "intervene": "instruments.interventions",
}

__all__ = [
    "AnyRouting",
    "AnyTrace",
    "Group",
    "Intervention",
    "Recorder",
    "RoutingCounts",
    "RoutingTrace",
    "StoredTrace",
    "baselines",
    "capture",
    "concatenate",
    "intervene",
    "metrics",
]


def __getattr__(name: str) -> object:
    if name in ("baselines", "metrics"):
        return import_module(f"{__name__}.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
