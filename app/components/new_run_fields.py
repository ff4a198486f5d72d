"""Any field of the configuration, for a new run: chosen by its key, changed in a box of its kind."""

from __future__ import annotations

from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import streamlit as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from app import state
from app.components.page import plain
from moe_core.config import Config

# Boxes of their own on the form set these.
_ELSEWHERE = ("data.path", "data.seed", "training.seed", "training.init_from", "model.router.kind",
              "model.router.balancing")  # fmt: skip


def changed_fields(config: Config, preset: str) -> list[str]:
    """Draw the choice of fields, and a box for each chosen one that holds the value of `config`, which `preset`
    names. Returns what the changes add to the trainer's command line."""
    fields = {key: field for key, field in all_fields(Config).items() if key not in _ELSEWHERE}
    chosen: Sequence[str] = st.multiselect(
        "More: any field of a run", list(fields), key=state.NEW_FIELDS, placeholder="such as training.steps",
        help="Every key of the configuration; the same as on the command line.",
    )  # fmt: skip
    given = []
    for key in chosen:
        usual = str(_value(config, key)).removesuffix(".0")
        value = str(_box(key, fields[key], usual, f"{state.NEW_FIELDS}_{preset}_{key}")).strip()
        if value != usual:
            given.append(f"--{key}={value or 'none'}")
    return given


def all_fields(section: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    """Every field of the tree by its dotted key, in the order of the configuration."""
    found: dict[str, FieldInfo] = {}
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found |= all_fields(inner, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = field
    return found


def _value(config: Config, key: str) -> Any:
    part: Any = config
    for name in key.split("."):
        part = getattr(part, name)
    return part


def _box(key: str, field: FieldInfo, usual: str, widget: str) -> Any:
    """A box for the field's kind. What it holds is checked with the whole configuration, not here."""
    about = plain(" ".join((field.description or "").split()))
    kinds = _kinds(field.annotation)
    if choices := [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]:
        place = choices.index(usual) if usual in choices else None
        return st.selectbox(key, choices, index=place, key=widget, help=about)
    if bool in kinds:
        return st.toggle(key, usual == "True", key=widget, help=about)
    return st.text_input(key, usual, key=widget, help=about)


def _kinds(annotation: Any) -> list[Any]:
    """The types of a field, "or nothing" left out."""
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return [part for part in parts if part is not NoneType]
