"""Routing analysis, the heart of Moescope: capture -> RoutingTrace -> metrics -> baselines."""

from moe_core.routing import baselines, metrics
from moe_core.routing.instruments.capture import Recorder, capture
from moe_core.routing.instruments.interventions import Intervention, intervene
from moe_core.routing.trace.groups import Group
from moe_core.routing.trace.joining import concatenate
from moe_core.routing.trace.routing_counts import RoutingCounts
from moe_core.routing.trace.trace import AnyRouting, AnyTrace, RoutingTrace, StoredTrace

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
