"""Whether the extra `serve` is installed. Nothing of it is imported to say so."""

from __future__ import annotations

import importlib.util

LIBRARIES = ("fastapi", "uvicorn", "prometheus_client")


def missing_library() -> str | None:
    """The first of LIBRARIES that is not installed."""
    return next((name for name in LIBRARIES if importlib.util.find_spec(name) is None), None)
