"""The `model.attention` section: how far back each layer looks, and whether a head may look at nothing."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from moe_core.config.section import Section

LayerReach = Literal["local", "global"]


class AttentionConfig(Section):
    """Windows of attention, and sinks. Without a window every layer looks at everything before it."""

    window: int | None = Field(None, ge=1, le=1_000_000)
    """Tokens that a token of a local layer looks at, itself the last of them (Mistral's sliding window,
    arXiv:2310.06825; transformers' sliding_window). Over L such layers a token is reached by what stands up to
    L * (window - 1) tokens before it. None = no layer is local."""
    pattern: tuple[LayerReach, ...] = Field(("local",), min_length=1, max_length=1_000)
    """Which layers are local, bottom first, repeated up to the top: local,local,local,local,local,global is Gemma 3's
    five to one."""
    first_tokens: int = Field(0, ge=0, le=1_000_000)
    """So many tokens at the beginning of a text stay in sight of local layers however far away they are: StreamingLLM's
    attention sinks, arXiv:2309.17453, which keeps 4."""

    sinks: bool = False
    """Give every query head a learned logit, 0 at first, that takes part in each softmax and stands for no token: a
    head that has nothing to look at need not look at something (gpt-oss, arXiv:2508.10925)."""

    @field_validator("pattern", mode="before")
    @classmethod
    def _pattern_in_words(cls, value: object) -> object:
        """A command line and an environment give "local,global"."""
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _of_a_window(self) -> AttentionConfig:
        if self.window is None and (self.pattern != ("local",) or self.first_tokens):
            raise ValueError(
                f"model.attention.pattern = {','.join(self.pattern)} and first_tokens = {self.first_tokens} are of "
                "local layers; set model.attention.window, too"
            )
        if "local" not in self.pattern:
            raise ValueError(
                f"model.attention.pattern = {','.join(self.pattern)} has no local layer; leave out pattern and window"
            )
        return self

    def sees(self, layer: int) -> int | None:
        """Tokens that a layer looks at, the first ones of a text among them; None = all."""
        if self.window is None or self.pattern[layer % len(self.pattern)] == "global":
            return None
        return self.window + self.first_tokens
