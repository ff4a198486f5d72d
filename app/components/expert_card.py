"""The parts of one expert's card: its tokens, its contexts, its neighbours, and what it is worth."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from app import loaders, state
from app.components.concordance import filters, look_for, show_contexts, shown_token
from app.components.figure import explain, term_help
from app.components.page import INTERVENTIONS, answer, plain, prose
from moe_core.data.windows import window_words
from moe_core.figures.load import MAX_STEPS, loads_over_time
from moe_core.program import program
from moe_core.routing.measured import Measured
from moe_core.routing.measures.capability import TWO_EXPERTS, capability
from moe_core.routing.measures.causes import ablation_verdict
from moe_core.routing.measures.coactivation import coactivation_pairs, pairs_as_counted
from moe_core.routing.measures.load import load_by_step
from moe_core.routing.measures.registry import COACTIVATION_PAIRS
from moe_core.routing.measures.vocabulary import VOCABULARY_FINDING, token_experts, vocabulary_verdict
from moe_core.routing.trace.routing_counts import RoutingCounts

if TYPE_CHECKING:
    from moe_core.routing import AnyRouting
    from moe_core.runs import RunFolder
    from moe_core.runs.expert_names import ExpertNames

BUTTON_EXPERTS = 16
"""More experts than this do not fit side by side: they are picked from a list that can be searched."""
TOP_TOKENS = 30
NEIGHBOURS = "expert_neighbours"
_SIMILARITIES = {
    "gate_cosine": ("Router", "How alike the router's wish for both is: cosine of their rows, 1 = the same tokens."),
    "weight_cosine": ("Weights", "How alike their weights are: cosine, 0 = unrelated, 1 = copies."),
    "output_cka": (
        "Output",
        "How alike their outputs are on the same tokens: linear CKA, 1 = the same but turned.",
    ),
}
"""Columns of expert_similarity with their title and one line about them."""


def pick_expert(num_experts: int, default: int) -> int:
    """Which expert of the chosen layer; kept in the URL."""
    experts = state.preset_expert(state.EXPERT, num_experts, default)
    return state.remember_expert(state.present(
        st.segmented_control("Expert", experts, required=True, key=state.EXPERT, bind="query-params")
        if num_experts <= BUTTON_EXPERTS
        else st.selectbox("Expert", experts, index=None, required=True, key=state.EXPERT, bind="query-params")
    ))  # fmt: skip


def load_while_training(run: RunFolder | None, routing: AnyRouting) -> pd.DataFrame | None:
    """The loads that a run recorded, or those of counts of several steps; None where there is one step."""
    if run is not None:
        return loads_over_time(loaders.metrics(run, "load"))
    if isinstance(routing, RoutingCounts) and len(routing.steps) > 1:
        return load_by_step(routing.joined(MAX_STEPS))
    return None


def where_chosen(measured: Measured, layer: int, expert: int) -> str:
    """The contexts in which the expert is chosen, as wide as the page; returns the text that they are narrowed to."""
    st.markdown("#### Where it is chosen")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        wanted = look_for()
        filters(measured)
    show_contexts(measured, layer, expert, wanted)
    return wanted


def tokens_taken(measured: Measured, layer: int, expert: int, test: pd.DataFrame, wanted: str) -> None:
    """The tokens that the expert takes, those that hold `wanted`. `test`: baselines.vocabulary of the layer."""
    every = measured.get(token_experts, layer, expert)
    holding = every[[wanted.lower() in str(text).lower() for text in every["text"]]] if wanted else every
    tokens = holding.head(TOP_TOKENS)
    st.markdown("#### Its tokens")
    if tokens.empty:
        none = "None of the tokens that are its own has that in it."
        st.caption("No token occurs often enough here to be called its own." if every.empty else none)
    else:
        st.dataframe(
            pd.DataFrame(
                {
                    "token": [shown_token(text) for text in tokens["text"]],
                    "share": 100 * tokens["share"],
                    "tokens": tokens["tokens"],
                }
            ),
            hide_index=True,
            key="expert_tokens",
            height=36 * (min(len(tokens), 12) + 1),
            column_config={
                "token": st.column_config.TextColumn("Token", width=80),
                "share": st.column_config.NumberColumn(
                    "It takes", format="%.0f %%", width=72, help="Of all the token's occurrences."
                ),
                "tokens": st.column_config.NumberColumn(
                    "Of", format="%d", width=55, help="How often the token occurs."
                ),
            },
        )
        if not test["verdict"].isin(VOCABULARY_FINDING.both).any():
            st.caption(plain(vocabulary_verdict(test)))
        if len(holding) > len(tokens):
            st.caption(f"The first {len(tokens)} of {len(holding):,}.")
        explain(["vocabulary specialization", "lift"], key="expert_tokens_terms")


def neighbours(run: RunFolder | None, measured: Measured, layer: int, expert: int, names: ExpertNames) -> None:
    """Which experts it works with, and which are like it. Selecting one opens it."""
    st.markdown("#### Its neighbours")
    together = capability(COACTIVATION_PAIRS, measured.trace)
    if together.answer == "no":
        pairs = None
    else:
        pairs = measured.get(coactivation_pairs if together.answer == "yes" else pairs_as_counted)
    table = neighbour_table(pairs, loaders.analysis(run, "similarity") if run else None, layer, expert)
    if table.empty:
        st.caption(
            plain(f"Who it works with takes {together.needs}.")
            if together.needs != TWO_EXPERTS
            else "Tokens pass one expert of a layer only, and how alike the experts are was not measured yet."
        )
        return
    if any(given := [names.name(layer, int(other)) for other in table["expert"]]):
        table.insert(1, "name", given)
    chance = "chance"
    if together.answer == "as counted":
        chance, table = "even routing", table.drop(columns="certain")
    number = st.column_config.NumberColumn
    st.dataframe(
        table,
        hide_index=True,
        key=NEIGHBOURS,
        on_select=partial(_open_neighbour, layer, table["expert"]),
        selection_mode="single-row",
        height=36 * (min(len(table), 8) + 1),
        column_config={
            "expert": number("Expert", width="small"),
            "name": st.column_config.TextColumn("Name"),
            "together": number(
                f"Together, × {chance}", format="%.2f", help=f"Chosen by the same tokens; 1 = as by {chance}."
            ),
            "certain": st.column_config.CheckboxColumn("Surely", help="Surely more or less often than chance."),
            **{name: number(title, format="%.2f", help=line) for name, (title, line) in _SIMILARITIES.items()},
        },
    )
    terms = ["co-activation", "lift over chance", "gate cosine", "weight cosine", "CKA"]
    explain(terms[: None if "gate_cosine" in table else 2], key="expert_neighbours_terms")
    if together.answer == "as counted":
        st.caption(prose(f"As counted: whether a pair is more than chance takes {together.needs}."))


def neighbour_table(
    pairs: pd.DataFrame | None, similarity: pd.DataFrame | None, layer: int, expert: int
) -> pd.DataFrame:
    """The other experts of the layer, the most tied first. Columns: expert and, as far as known, together, certain,
    gate_cosine, weight_cosine, output_cka. Frames of baselines.coactivation_pairs and of expert_similarity."""
    parts = []
    for frame, names in (
        (pairs, {"lift_over_chance": "together", "uncertain": "uncertain"}),
        (similarity, {name: name for name in _SIMILARITIES}),
    ):
        if frame is not None:
            own = frame[(frame["layer"] == layer) & ((frame["expert_i"] == expert) | (frame["expert_j"] == expert))]
            other = own["expert_i"].where(own["expert_i"] != expert, own["expert_j"])
            part = own.assign(expert=other).rename(columns=names).drop_duplicates("expert").set_index("expert")
            parts.append(part[[*names.values()]])
    if not parts:
        return pd.DataFrame()
    table = pd.concat(parts, axis=1).drop(index=expert, errors="ignore").reset_index()
    if "uncertain" in table:
        table["certain"] = ~table.pop("uncertain").astype(bool)
        table.insert(2, "certain", table.pop("certain"))
    return table.sort_values(str(table.columns[1]), ascending=False, kind="stable", ignore_index=True)


def worth(run: RunFolder, effects: pd.DataFrame | None, layer: int, expert: int) -> None:
    """What the model loses without it, on each domain."""
    st.markdown("#### What it is worth")
    own = None if effects is None else effects[(effects["layer"] == layer) & (effects["expert"] == expert)]
    if own is None or own.empty:
        st.caption("Not measured yet. Switching off every expert once takes a minute or two:")
        st.code(f"{program()} ablate --run {run.name}", language=None)
    else:
        answer(ablation_verdict(own))
        st.dataframe(
            own[["domain", "delta_nats", "low", "high", "affected"]],
            hide_index=True,
            key="expert_worth",
            column_config={
                "domain": "Text",
                "delta_nats": st.column_config.NumberColumn(
                    "Change of loss, nats", format="%+.4f", help=term_help("loss")
                ),
                "low": st.column_config.NumberColumn("95 % from", format="%+.4f"),
                "high": st.column_config.NumberColumn("to", format="%+.4f"),
                "affected": st.column_config.NumberColumn("Its tokens", format="%d"),
            },
        )
        explain(["ablation", "causal effect", "interval"], key="expert_worth_terms")
        st.caption(
            plain(
                f"Measured at step {own.attrs['step']}, with the expert's output left out. "
                f"{window_words(rule=own.attrs['windows'])}"
            )
        )
    st.page_link(INTERVENTIONS, label="Switch it off and see what is written", icon=":material/switch_access_shortcut:")


def _open_neighbour(layer: int, experts: pd.Series[int]) -> None:
    selected: list[Any] = st.session_state[NEIGHBOURS].selection.rows
    if selected:
        state.open_expert(layer, int(experts.iloc[selected[0]]))
