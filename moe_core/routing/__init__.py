"""Routing analysis, the heart of Moescope: capture -> RoutingTrace -> metrics -> baselines.."""

from moe_core.routing import baselines, metrics
from moe_core.routing.capture import Recorder, capture
from moe_core.routing.trace import RoutingTrace, concatenate

__all__ = ["Recorder", "RoutingTrace", "baselines", "capture", "concatenate", "metrics"]
