"""What experts know of domains and of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from moe_core.routing.baselines import CHANCE, CLEARLY, FEW_DOCUMENTS, ONE_DOMAIN, SLIGHTLY
from moe_core.routing.verdicts.words import count_of, layers_of, number, p_value, percent

NOTHING_THERE = "Not distinguishable from chance: do not read patterns into this map."


def domain_verdict(nmi: pd.DataFrame) -> str:
    """Do experts know a token's domain? From baselines.domain_nmi, all layers or the rows of one."""
    verdicts = set(nmi["verdict"])
    if ONE_DOMAIN in verdicts:
        return "All text is of one domain: whether experts know a token's domain cannot be tested."
    if FEW_DOCUMENTS in verdicts:
        documents = count_of(int(nmi["documents"].iloc[0]), "document")
        return f"Too few documents to tell ({documents}): trace more of each domain before reading this map."
    found = nmi[nmi["verdict"].isin([CLEARLY, SLIGHTLY])]
    if found.empty:
        return NOTHING_THERE
    best = found.iloc[int(found["effect"].argmax())]
    where = f"layer {int(best['layer'])} most, " if len(nmi) > 1 else ""
    size = (
        f"{where}NMI {number(best['nmi'])} against {number(best['null_mean'])} by chance "
        f"({p_value(best['p_adjusted'])})"
    )
    others = nmi[nmi["verdict"] == CHANCE]
    rest = f"; {layers_of(others)} not distinguishable from chance" if len(others) else ""
    if best["verdict"] == CLEARLY:
        return f"Experts know a token's domain: {size}{rest}."
    return f"Experts know a token's domain only slightly better than chance: {size}, too little to rely on{rest}."


def domain_cell(cell: Mapping[str, Any] | pd.Series[Any]) -> str:
    """One row of baselines.domain_cells as a sentence without a full stop, for tooltips and captions."""
    if pd.isna(cell["share"]):
        return f"no {cell['domain']} tokens in this trace"
    text = (
        f"expert {cell['expert']} takes {percent(cell['share'])} of {cell['domain']} tokens, "
        f"{number(cell['lift'])} times its even share"
    )
    if pd.isna(cell["lift_low"]):
        return f"{text}; of one source only, so uncertain" if cell["uncertain"] else text
    text += f", 95 % interval {number(cell['lift_low'])} to {number(cell['lift_high'])}"
    return f"{text}: uncertain" if cell["uncertain"] else text


def preferred(cells: pd.DataFrame) -> pd.DataFrame:
    """The rows of baselines.domain_cells that are preferences, the surest first.

    A preference is certain and goes beyond both the even share and what text of any domain gives the expert: a busy
    expert is above its even share everywhere, and may still be avoided by a domain.
    """
    beyond = (cells["lift"] > 1) & (cells["share"] > cells["expected"])
    found = cells[beyond & ~cells["uncertain"].astype(bool)]
    return found.sort_values("lift_low", ascending=False, kind="stable")


def strongest_expert(cells: pd.DataFrame) -> str:
    """The expert that a domain most surely prefers, from baselines.domain_cells."""
    certain = preferred(cells)
    if certain.empty:
        return "No single expert is surely preferred by any domain."
    best = certain.iloc[0]
    return f"Strongest: in layer {best['layer']}, {domain_cell(best)}."


def token_verdict(context: pd.DataFrame) -> str:
    """How much of the choice the token alone explains, and what its domain adds; from metrics.context_independence.

    Shares are of the choice's entropy; both are given beside what chance gives, which grows with rare tokens.
    """
    known = context[context["token_share"].notna()]
    if known.empty or not known["tokens"].iloc[0]:
        return "No token occurs often enough to say how much of the choice the token alone explains."
    best = known.iloc[int((known["token_share"] - known["token_chance"]).argmax())]
    where = f" in layer {int(best['layer'])}" if len(context) > 1 else ""
    text = (
        f"The token alone explains {percent(best['token_share'])} of the choice of expert{where} "
        f"({percent(best['token_chance'])} by chance), its domain {percent(best['domain_share'])}"
    )
    if pd.isna(best["domain_beyond_token"]):
        return f"{text}."
    return (
        f"{text}; what the domain adds to the token is {percent(best['domain_beyond_token'])} "
        f"({percent(best['domain_beyond_chance'])} by chance)."
    )
