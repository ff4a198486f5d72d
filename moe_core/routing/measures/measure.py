"""What the house knows of a measure: one record, read by plots, pages, report, glossary, calibration and bench."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from moe_core.routing.measures.term import Term
from moe_core.routing.trace.types import Float64Array, Int64Array

Needs = Literal["counts", "pairs", "tokens", "model"]
"""What a source must have kept: assignments per source, layer and expert; also which experts were chosen together; the
choices token by token; the weights."""
Source = Literal["trace", "steps", "two traces", "snapshots"]


@dataclass(frozen=True)
class Bars:
    """The figure of a measure against its null: one bar a layer, what chance reaches, the verdict."""

    figure: str
    """Name of the figure and of its files."""
    title: str
    axis: str
    """What the bars measure, with the range."""
    sentence: Callable[[Any], str]
    """A row of the null's frame in words, for who points at its bar."""
    row_title: str = "MoE layer"


@dataclass(frozen=True)
class RandomRouting:
    """Random logits to which calibration adds a connection. Axes: L layers, T tokens, E experts."""

    logits: Float64Array
    """[L,T,E] changed in place; a token chooses the largest."""
    document_ids: Int64Array
    """[T]"""
    domain_ids: Int64Array
    """[T]"""
    token_ids: Int64Array
    """[T]"""
    strength: float
    """What is added to the logit of an expert that the connection prefers."""
    rng: np.random.Generator


@dataclass(frozen=True)
class Plant:
    """A connection that the null must find: see routing.calibration."""

    add: Callable[[RandomRouting], None]
    found: Callable[[pd.DataFrame], bool] | None = None
    """Is it found in the null's frame of cells? None where the frame has a verdict a layer."""
    tolerant: bool = False
    """Does the null allow an excess too small to matter? Then its p-values are larger than even, never smaller."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One measure. Functions take a trace first and return tidy frames."""

    name: str
    """Unique; that of its null in `baselines` where it has one."""
    title: str
    """In a few words, as the heading of a table's column."""
    question: str
    """What it answers, in plain words."""
    needs: Needs
    null_needs: Needs | None = None
    """What its null needs, where that is more."""
    domains: bool = False
    """Does it need text of two domains or more?"""
    labels: bool = False
    """Does it need a label for each token?"""
    varying: bool = False
    """Does it need a router whose number of experts varies from token to token?"""
    of: Source = "trace"
    function: Callable[..., pd.DataFrame] | None
    """The measure itself; None where a model must be run: evaluation.ablation, evaluation.importance."""
    value: str
    """The column that holds it: of the null's frame where there is a null."""
    null: Callable[..., pd.DataFrame] | None = None
    """The measure with what chance gives. It takes `permutations` and `seed` where chance is drawn, see `plant`."""
    verdict: Callable[..., str] | None = None
    """The answer in a sentence, from the null's frame, or from the measure's where there is no null."""
    terms: tuple[Term, ...] = ()
    """Its lines of the glossary."""
    bars: Bars | None = None
    plant: Plant | None = None
    """How calibration checks the null."""
