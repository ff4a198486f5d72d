"""What the Chat page shares between all sessions: the conversations beside the runs, and the answers being written.

The API beside the pages asks the same models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from app import loaders
from moe_core.conversations.answers import Answers
from moe_core.conversations.database import conversations_path
from moe_core.conversations.store import Conversations
from moe_core.inference.subjects import OPENED, ForeignModel, Live
from moe_core.runs import RunFolder
from moe_core.runs.names import checkpoints_root
from moe_core.runs.places import run_names

if TYPE_CHECKING:
    from moe_core.inference.model_pool import ModelPool, ModelSource


def conversations() -> Conversations:
    """Those beside the runs that are shown."""
    return Conversations(conversations_path())


def answers() -> Answers:
    """Those that this server writes for them; they go on whoever looks."""
    return _answers(str(checkpoints_root().resolve()))


def model_pool() -> ModelPool:
    """The models that the side bar offers, each opened when it is first asked to write."""
    return _model_pool(str(checkpoints_root().resolve()))


@st.cache_resource(max_entries=8, show_spinner=False)
def _model_pool(root: str) -> ModelPool:
    from moe_core.inference.model_pool import ModelPool

    return ModelPool(OfferedModels(root))


@st.cache_resource(max_entries=8, show_spinner=False)
def _answers(root: str) -> Answers:
    return Answers(Conversations(conversations_path(root)), _model_pool(root))


def live_subject(name: str, root: str | Path | None = None) -> Live | None:
    """The run or model of this name that the side bar offers; None where it is gone or is neither."""
    opened = OPENED.find(name)
    if isinstance(opened, ForeignModel):
        return opened
    return RunFolder(name, root) if opened is None and name in run_names(root) else None


class OfferedModels(Mapping[str, "ModelSource"]):
    """The models that the side bar offers, as a pool takes them; each is in memory once, for all pages."""

    def __init__(self, root: str) -> None:
        self._root = root

    def __getitem__(self, name: str) -> ModelSource:
        from moe_core.inference.model_pool import ModelSource

        subject = live_subject(name, self._root)
        if subject is None:
            raise KeyError(name)
        return ModelSource(lambda: loaders.language_model(subject), lambda: repr(loaders.weights_key(subject)))

    def __iter__(self) -> Iterator[str]:
        yield from run_names(self._root)
        yield from (one.name for one in OPENED.all() if isinstance(one, ForeignModel))

    def __len__(self) -> int:
        return sum(1 for _ in self)
