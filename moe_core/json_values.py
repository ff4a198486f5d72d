"""What JSON cannot hold, made into what it can."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]
"""An object as JSON has it, just before it is written or just after it was read."""


def json_safe(value: Any) -> Any:
    """`value` with numbers that JSON lacks (NaN, infinity) as None and with keys as text, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    return value
