"""One validated tree of configuration: its sections, the presets, and how they are merged.

Names are imported when they are first asked for: `moe_core.config.presets` answers --help without pydantic.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moe_core.config.merging import load_config, parse_overrides, validate_config
    from moe_core.config.tree import Config, DataConfig, ModelConfig, TrainingConfig

_MODULE_OF = {
    "Config": "tree",
    "DataConfig": "tree",
    "ModelConfig": "tree",
    "TrainingConfig": "tree",
    "load_config": "merging",
    "parse_overrides": "merging",
    "validate_config": "merging",
}

__all__ = [
    "Config",
    "DataConfig",
    "ModelConfig",
    "TrainingConfig",
    "load_config",
    "parse_overrides",
    "validate_config",
]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
