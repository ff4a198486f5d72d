"""Everything about cause that a run can be asked at once: the causal map, and whether anything observed predicts it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import pandas as pd

from moe_core.ablation_modes import Mode
from moe_core.data.document import Document
from moe_core.data.tokens import TokenDataset
from moe_core.evaluation.ablation import ablation_map, analysis_of
from moe_core.evaluation.importance import importance, measures, rank_correlations
from moe_core.inference.expert_outputs import expert_saliency, expert_similarity
from moe_core.inference.held_out import ABLATED_TOKENS_PER_DOMAIN, held_out_text
from moe_core.inference.scoring import as_dataset
from moe_core.inference.tracing import trace_dataset
from moe_core.progress import Progress
from moe_core.runs.analysis import HELD_OUT_TEXT, AnalysisOf, Table, read_table, write_table

if TYPE_CHECKING:
    from moe_core.runs.checkpoint import LoadedRun


@dataclass(frozen=True, eq=False)
class RunAnalysis:
    """What was found; `importance`, `correlations`, `similarity` see the functions of these names."""

    of: AnalysisOf
    effects: pd.DataFrame
    """See ablation_map: every expert."""
    similarity: pd.DataFrame
    importance: pd.DataFrame
    correlations: pd.DataFrame


def analyse_run(
    loaded: LoadedRun,
    documents: Sequence[Document] | TokenDataset | None = None,
    *,
    mode: Mode = "zero",
    text: str = "other text",
    progress: Progress | None = None,
) -> RunAnalysis:
    """Switch off every expert in turn, weigh and compare the experts' outputs, and set the one against the other.

    `documents`, `mode`, `text`: as for ablation_map. Effects are kept in the run's folder whatever the text, tables
    where it is the held-out text; what is kept of the same weights and text is not computed again.
    Raises RunError when the held-out text is missing or the disk refuses.
    """
    if documents is None:
        dataset = held_out_text(loaded.run, loaded.tokenizer, ABLATED_TOKENS_PER_DOMAIN)
    else:
        dataset = as_dataset(loaded, documents)
    name = HELD_OUT_TEXT if documents is None else text
    effects = ablation_map(loaded, dataset, mode=mode, run=loaded.run, text=name, progress=progress)
    of = analysis_of(loaded, dataset, name)
    saliency = _kept_or_computed(loaded, of, "saliency", lambda: expert_saliency(loaded, dataset, progress))
    similarity = _kept_or_computed(
        loaded, of, "similarity", lambda: expert_similarity(loaded, dataset, progress=progress)
    )

    def joined() -> pd.DataFrame:
        return importance(effects, measures(trace_dataset(loaded, dataset, progress).trace, saliency))

    of_mode = replace(of, mode=mode)
    importances = _kept_or_computed(loaded, of_mode, "importance", joined)
    correlations = _kept_or_computed(loaded, of_mode, "correlations", lambda: rank_correlations(importances))
    return RunAnalysis(of_mode, effects, similarity, importances, correlations)


def _kept_or_computed(
    loaded: LoadedRun, of: AnalysisOf, name: Table, compute: Callable[[], pd.DataFrame]
) -> pd.DataFrame:
    """The table kept in the run's folder where it is of the same, else computed and, for the held-out text, kept."""
    kept = read_table(loaded.run, name, of.mode)
    if kept is not None and kept.attrs == asdict(of):
        return kept
    frame = compute()
    if of.text == HELD_OUT_TEXT:
        write_table(loaded.run, name, frame, of)
    return frame
