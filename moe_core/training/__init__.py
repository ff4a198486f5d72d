"""Training: one visible loop (loop.py) and what it calls; and watching someone else's (watching.py).

from moe_core.training import watch
from moe_core.training import MoescopeCallback  # for the Trainer of the transformers library
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe_core.training.trainer_callback import MoescopeCallback
    from moe_core.training.watching import Watch, watch

__all__ = ["MoescopeCallback", "Watch", "watch"]
_PLACES = {"MoescopeCallback": "trainer_callback", "Watch": "watching", "watch": "watching"}


def __getattr__(name: str) -> Any:
    """Torch is imported only by who watches, transformers only by who watches its Trainer."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"moe_core.training.{_PLACES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise ModuleNotFoundError(
            f"{name} needs the transformers library and accelerate: pip install 'moescope[huggingface]'",
            name=error.name,
        ) from None
