"""Training: one visible loop (loop.py) and what it calls; and watching someone else's (watching.py).

from moe_core.training import watch
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe_core.training.watching import Watch, watch

__all__ = ["Watch", "watch"]


def __getattr__(name: str) -> Any:
    """Torch is imported only by who watches."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from moe_core.training import watching

    return getattr(watching, name)
