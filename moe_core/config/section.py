"""What all sections of the configuration tree have in common."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """Frozen, without unknown keys; the text below a field is its documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _words_for_nothing(cls, value: Any, info: ValidationInfo) -> Any:
        """Everything on the command line and in the environment is a word; "none" may also name a choice."""
        if not isinstance(value, str) or value.lower() not in ("none", "null"):
            return value
        annotation = cls.model_fields[info.field_name or ""].annotation
        choices = [word for part in (annotation, *get_args(annotation)) for word in get_args(part)]
        return value.lower() if value.lower() in choices else None

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic reads True as 1; somebody who writes `top_k = true` meant something else."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and bool not in (annotation, *get_args(annotation)):
            raise PydanticCustomError("boolean", "expected something other than a boolean")
        return value
