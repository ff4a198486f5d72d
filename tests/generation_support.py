"""Write on from a prompt as tests want it: the tokens alone."""

from __future__ import annotations

from collections.abc import Iterator

from moe_core.inference.engine import Engine, GeneratedToken, Request
from moe_core.inference.protocol import LanguageModel, Loaded
from moe_core.inference.sampling import SamplingConfig
from moe_core.routing import Intervention


def generate(
    loaded: Loaded | LanguageModel,
    prompt: str,
    sampling: SamplingConfig | None = None,
    intervention: Intervention | None = None,
) -> Iterator[GeneratedToken]:
    """Refuses at once what Engine.start refuses."""
    return Engine(loaded).start(Request(prompt, sampling or SamplingConfig(), intervention=intervention)).tokens()
