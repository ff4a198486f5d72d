"""Asks a server that returns routed experts (vLLM, SGLang, our own) and writes the trace of what it answers."""

from moe_core.client.asking import Asked, Asking, trace_server
from moe_core.client.connection import Limits

__all__ = ["Asked", "Asking", "Limits", "trace_server"]
