"""What is measured by changing a model, cached as in loaders.py: effects of experts, pruning curves, what they cost."""

# ruff: noqa: ARG001  (an argument that only belongs to a cache key is not used in the body)

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import streamlit as st

from app.loaders import EXAMPLE_TOKENS_PER_DOMAIN, Stamp, beginnings_of, language_model, loaded_run, stamp, weights_key
from moe_core.inference.subjects import ForeignModel, Live
from moe_core.once import Once
from moe_core.progress import Progress
from moe_core.routing.measured import Measured
from moe_core.runs import RunFolder

if TYPE_CHECKING:
    import pandas as pd

    from moe_core.data.tokens import TokenDataset
    from moe_core.evaluation.ablation import EffectsInMemory
    from moe_core.inference.protocol import LanguageModel
    from moe_core.inference.two_readings import Reading, Variant
    from moe_core.routing import Intervention
    from moe_core.routing.measures.keep_list import SaliencySums
    from moe_core.runs.context_file import KeptContext
    from moe_core.runs.pruning_file import KeptCurves


def expert_effect(subject: Live, intervention: Intervention, progress: Progress | None = None) -> pd.DataFrame:
    """What one intervention changes on the run's held-out text, or on ours for another model (see
    evaluation.effects.domain_effects); `progress` is called while it is measured the first time.

    An expert that is switched off is kept in the run's folder, as part of the map. Raises MoescopeError.
    """
    place = _effect_place(*weights_key(subject), f"{intervention.describe()} {intervention.mode}")
    return place.once(lambda: _measure_effect(subject, intervention, progress))


@st.cache_resource(max_entries=512, show_spinner=False)
def _effect_place(root: str, name: str, folder: str, changed: Stamp, what: str) -> Once[pd.DataFrame]:
    return Once()


def _measure_effect(subject: Live, intervention: Intervention, progress: Progress | None) -> pd.DataFrame:
    from moe_core.evaluation import ablation as measures

    if len(intervention.ablate) == 1 and not intervention.force:
        ((layer, expert),) = intervention.ablate
        return measures.ablation_map(
            loaded_run(subject) if isinstance(subject, RunFolder) else language_model(subject),
            None if isinstance(subject, RunFolder) else ablated_text(subject),
            mode=intervention.mode,
            layers=[layer],
            experts=[expert],
            run=subject if isinstance(subject, RunFolder) else None,
            memory=None if isinstance(subject, RunFolder) else memory(subject, intervention.mode),
            progress=progress,
        )
    effects = measures.token_effects(language_model(subject), ablated_text(subject), intervention, progress)
    return measures.domain_effects(effects)


def key_of(subject: Live) -> str:
    """Names the subject's present weights, for work that is done once for all browsers."""
    return repr(weights_key(subject))


def step_of(subject: Live) -> int:
    """The step of a run's newest checkpoint; 0 of a model that has none."""
    return loaded_run(subject).step if isinstance(subject, RunFolder) else 0


def ablated_text(subject: Live) -> TokenDataset:
    """What is read with and without each expert. Raises MoescopeError."""
    from moe_core.inference.held_out import ABLATED_TOKENS_PER_DOMAIN, held_out_text
    from moe_core.inference.scoring import as_dataset

    model = language_model(subject)
    if isinstance(subject, RunFolder):
        return held_out_text(subject, model.tokenizer, ABLATED_TOKENS_PER_DOMAIN)
    return as_dataset(model, beginnings_of(subject)).select(EXAMPLE_TOKENS_PER_DOMAIN, seed=0)


def seconds_of_expert(subject: Live) -> float:
    """About how long it takes to switch one expert off, as two readings of ablated_text; timed once."""
    from moe_core.evaluation.ablation import seconds_for_experts

    place = _seconds_place(*weights_key(subject))
    return place.once(lambda: seconds_for_experts(language_model(subject), ablated_text(subject), 1))


@st.cache_resource(max_entries=8, show_spinner=False)
def _seconds_place(root: str, name: str, folder: str, changed: Stamp) -> Once[float]:
    return Once()


def memory(model: ForeignModel, mode: str) -> EffectsInMemory:
    """Where the effects of switching its experts off are kept while the server runs."""
    return _memory(*weights_key(model), mode)


@st.cache_resource(max_entries=16, show_spinner=False)
def _memory(root: str, name: str, folder: str, changed: Stamp, mode: str) -> EffectsInMemory:
    from moe_core.evaluation.ablation import EffectsInMemory

    return EffectsInMemory()


def remembered_effects(model: ForeignModel, mode: str) -> pd.DataFrame | None:
    """What is known of them so far, as `ablation` gives it of a run."""
    frame = memory(model, mode).frame()
    frame.attrs["mode"] = mode
    return frame if len(frame) else None


@dataclass
class CurvesPlace:
    """Where the pruning curves of a model without a folder are kept."""

    kept: KeptCurves | None = None


@st.cache_resource(max_entries=8, show_spinner=False)
def _curves_place(root: str, name: str, folder: str, changed: Stamp) -> CurvesPlace:
    return CurvesPlace()


def curves_place(model: ForeignModel) -> CurvesPlace:
    """The place of a model's curves."""
    return _curves_place(*weights_key(model))


def curves(subject: Live) -> KeptCurves | None:
    """The pruning curves that were measured last; None before the first. Raises RunError where they are damaged."""
    if not isinstance(subject, RunFolder):
        return curves_place(subject).kept
    files = subject.place.matching("analysis", "pruning_*.json")
    return _curves(str(subject.root), subject.name, tuple(stamp(path) for path in files)) if files else None


@st.cache_resource(max_entries=8, show_spinner=False)
def _curves(root: str, name: str, changed: tuple[Stamp, ...]) -> KeptCurves | None:
    from moe_core.runs.pruning_file import read_curves

    return read_curves(RunFolder(name, root))


@dataclass(frozen=True, eq=False)
class ReadTwice:
    """A model's routing of one text as it is and changed."""

    readings: tuple[Reading, Reading]
    measured: tuple[Measured, Measured]


def read_twice_place(subject: Live, variant: Variant) -> Once[ReadTwice]:
    """Where both readings are kept: as the weights were saved, and so changed."""
    return _read_twice_place(*weights_key(subject), variant.name)


@st.cache_resource(max_entries=8, show_spinner=False)
def _read_twice_place(root: str, name: str, folder: str, changed: Stamp, variant: str) -> Once[ReadTwice]:
    return Once()


def read_both(subject: Live, variant: Variant, progress: Progress) -> ReadTwice:
    """Read what a run was not trained on, else our own text, twice; less of it where it is read token by token. The
    model is opened for it: what pages have open stays as it is. Raises MoescopeError."""
    from moe_core.inference.cache_choice import READ_SINGLY
    from moe_core.inference.two_readings import Variant, read_twice

    def text(model: LanguageModel) -> TokenDataset:
        from moe_core.inference.held_out import TRACED_TOKENS_PER_DOMAIN, held_out_text
        from moe_core.inference.scoring import as_dataset

        if isinstance(subject, RunFolder):
            limit = TRACED_TOKENS_PER_DOMAIN if variant.cache is None else READ_SINGLY
            return held_out_text(subject, model.tokenizer, limit, only_beginnings=True)
        return as_dataset(model, as_dataset(model, beginnings_of(subject)).select(EXAMPLE_TOKENS_PER_DOMAIN, seed=0))

    readings = read_twice(subject, text, Variant(), variant, progress=progress)
    first, second = (Measured(one.text.trace) for one in readings)
    return ReadTwice(readings, (first, second))


@dataclass
class SaliencyPlace:
    """Where what a model's experts put out is kept while the server runs; keep lists are made of it."""

    sums: SaliencySums | None = None
    domains: tuple[str, ...] = ()
    """Names of its strata."""


@st.cache_resource(max_entries=8, show_spinner=False)
def _saliency_place(root: str, name: str, folder: str, changed: Stamp) -> SaliencyPlace:
    return SaliencyPlace()


def saliency_place(subject: Live) -> SaliencyPlace:
    """The place of a model's present weights."""
    return _saliency_place(*weights_key(subject))


@dataclass(frozen=True)
class StatesOfHalves:
    """Embeddings of halves of a run's held-out documents, on a plane, and what they tell."""

    frame: pd.DataFrame
    """evaluation.half_states.plane"""
    domains: tuple[str, ...]
    verdict: str
    alignment: float
    uniformity: float


def states_place(run: RunFolder) -> Once[StatesOfHalves]:
    """Where what a run's present weights make of its held-out documents is kept."""
    return _states_place(*weights_key(run))


@st.cache_resource(max_entries=8, show_spinner=False)
def _states_place(root: str, name: str, folder: str, changed: Stamp) -> Once[StatesOfHalves]:
    return Once()


def read_states(run: RunFolder, progress: Progress) -> StatesOfHalves:
    """Read both halves of each held-out document. Raises MoescopeError."""
    from moe_core.evaluation.half_states import embed_halves, held_out_documents, plane, retrieval, retrieval_verdict

    loaded = loaded_run(run)
    states = embed_halves(loaded, held_out_documents(loaded), longest=64, progress=progress)
    found = retrieval(states)
    frame = plane(states, loaded.config.model.moe_layers)
    return StatesOfHalves(frame, states.domains, retrieval_verdict(found), found.alignment, found.uniformity)


def long_context(run: RunFolder, factor: float) -> KeptContext | None:
    """What was read beyond the trained length last at this factor; None before the first. Raises RunError where it is
    damaged."""
    files = run.place.matching("analysis", "context_*.json")
    return _long_context(str(run.root), run.name, factor, tuple(stamp(path) for path in files)) if files else None


@st.cache_resource(max_entries=8, show_spinner=False)
def _long_context(root: str, name: str, factor: float, changed: tuple[Stamp, ...]) -> KeptContext | None:
    from moe_core.runs.context_file import read_context

    return read_context(RunFolder(name, root), factor)
