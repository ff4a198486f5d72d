"""The `model.rope` section: how rotary angles are stretched for texts longer than those that a model was trained on."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, model_validator

from moe_core.config.section import Section

RopeScheme = Literal["none", "linear", "ntk", "dynamic", "yarn", "llama3"]
ROPE_SCHEMES: tuple[RopeScheme, ...] = get_args(RopeScheme)


class RopeConfig(Section):
    """Rotary angles for long texts. model.rope_theta stays the base that the scheme starts from."""

    scheme: RopeScheme = "none"
    """none: the angles as they were trained. linear: every position divided by factor (position interpolation,
    arXiv:2306.15595). ntk: the base times factor^(d / (d - 2)), so that fast pairs stay and the slowest is divided by
    factor. dynamic: ntk by the length of the text itself, nothing up to original_length. yarn: fast pairs stay, slow
    ones are divided, a ramp between, and attention is scaled (arXiv:2309.00071). llama3: the same by wavelength
    (Llama 3.1)."""
    factor: float = Field(1.0, ge=1.0, le=1e4)
    """How many times original_length the texts may have. 1 changes nothing."""
    original_length: int | None = Field(None, ge=8, le=1_000_000)
    """Tokens of the texts that the unscaled angles were trained on; None = model.max_seq_len. Read by dynamic, yarn and
    llama3."""
    beta_fast: float = Field(32.0, gt=0.0, le=1e6)
    """yarn: a pair that turns more often than this within original_length keeps its angles."""
    beta_slow: float = Field(1.0, gt=0.0, le=1e6)
    """yarn: a pair that turns less often than this is divided by factor."""
    attention_factor: float | None = Field(None, gt=0.0, le=100.0)
    """yarn: what cosine and sine are multiplied by; None = 0.1 ln(factor) + 1."""
    low_freq_factor: float = Field(1.0, gt=0.0, le=1e6)
    """llama3: wavelengths above original_length / this are divided by factor."""
    high_freq_factor: float = Field(4.0, gt=0.0, le=1e6)
    """llama3: wavelengths below original_length / this stay."""

    @model_validator(mode="after")
    def _ordered(self) -> RopeConfig:
        for low, high in (("beta_slow", "beta_fast"), ("low_freq_factor", "high_freq_factor")):
            if getattr(self, low) >= getattr(self, high):
                raise ValueError(
                    f"model.rope.{low} = {getattr(self, low):g} is not below model.rope.{high} = "
                    f"{getattr(self, high):g}; lower {low} or raise {high}"
                )
        return self
