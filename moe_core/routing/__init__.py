"""Routing analysis, the heart of Moescope: capture -> RoutingTrace -> metrics -> baselines."""

from moe_core.routing import baselines, metrics
from moe_core.routing.instruments.capture import Recorder, capture
from moe_core.routing.instruments.interventions import Intervention, intervene
from moe_core.routing.trace.joining import concatenate
from moe_core.routing.trace.trace import AnyTrace, RoutingTrace, StoredTrace

__all__ = [
    "AnyTrace",
    "Intervention",
    "Recorder",
    "RoutingTrace",
    "StoredTrace",
    "baselines",
    "capture",
    "concatenate",
    "intervene",
    "metrics",
]
