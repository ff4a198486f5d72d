"""What `moescope serve` listens at, answers with and writes down, and what Condor's document calls the same."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from moe_core.config.presets import PRESETS
from moe_core.config.section import Section


class ServeConfig(Section):
    """The server of the API. A run's configuration does not keep it: it says nothing about the model."""

    host: str = Field("127.0.0.1", min_length=1, max_length=253)
    """Address or name to listen at. Any other than this machine's own (127.0.0.1, ::1, localhost) asks for a key."""
    port: int = Field(8001, ge=0, le=65_535)
    """Port to listen at; 0 = any that is free, and the first line says which."""
    runs: tuple[str, ...] = ()
    """Names of runs to serve; as one word, names with commas between them. Nothing at all to serve means run `demo`."""
    models: tuple[str, ...] = ()
    """Folders, or names, of models of the transformers library to serve; as one word, with commas between them."""
    model_size: str | None = Field(None, min_length=1)
    """A preset's name. `demo` is the trained run that Moescope brings along; any other is a model of that size with
    random weights, which writes noise and serves to measure speed and memory."""
    use_moe: bool | None = None
    """Whether the model of model_size has experts. None = as its preset says; 7b and 40b are dense."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto = cuda if present, else cpu."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the weights. auto = as they were saved, float32 for runs and random weights."""
    slots: int = Field(8, ge=1, le=1_024)
    """Requests that one model answers together."""
    queue: int = Field(32, ge=0, le=100_000)
    """Requests that may wait for one model; one more is answered with 429."""
    open_models: int = Field(2, ge=1, le=1_024)
    """Models in memory at once; the one that was asked last of all makes room."""
    max_tokens: int = Field(2048, ge=1, le=1_000_000)
    """Most tokens of one answer; a chat that asks for no number gets as many at most."""
    temperature: float = Field(0.7, ge=0.0, le=2.0)
    """Of a request that names none; 0 = always the likeliest token."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"
    """Least urgency of what is logged. Text of prompts and answers is logged at none."""
    log_dir: str | None = Field(None, min_length=1)
    """Folder for serve.log, which starts anew at 10 MB and keeps 5 older ones. None = standard error alone."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that a request may call this server by, "*.example.org" for all below one. None = those of this machine
    where only it can reach the server, else any."""
    prefix_cache: str | None = Field(None, min_length=1)
    """Folder that keeps keys and values of beginnings of prompts, a gigabyte at most, for all processes that serve.
    None = what threads have read is kept in memory alone."""
    drain_seconds: float = Field(60.0, ge=0.0, le=86_400.0)
    """How long the answers under way may take after SIGTERM before they are cut off."""

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host.lower() == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:  # a name
            return False

    @field_validator("runs", "models", "allowed_hosts", mode="before")
    @classmethod
    def _words_between_commas(cls, value: Any) -> Any:
        return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper_case(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @field_validator("model_size")
    @classmethod
    def _is_a_preset(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and value not in PRESETS:
            raise ValueError(
                f"serve.{info.field_name} = {value[:60]!r} is no preset; expected one of {', '.join(PRESETS)}"
            )
        return value


CONDOR_VARIABLES: Mapping[str, str] = MappingProxyType(
    {
        "CONDOR_MODEL_SIZE": "model_size",
        "CONDOR_USE_MOE": "use_moe",
        "CONDOR_PORT": "port",
        "CONDOR_HOST": "host",
        "CONDOR_MAX_LENGTH": "max_tokens",
        "CONDOR_TEMPERATURE": "temperature",
        "CONDOR_LOG_LEVEL": "log_level",
        "CONDOR_LOG_DIR": "log_dir",
    }
)
"""The variables of Condor's document, and the keys of the section that they set."""
