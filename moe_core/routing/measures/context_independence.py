"""What decides the choice of expert: the token alone, or its domain beyond that?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import special

from moe_core.routing.measures.chance import expected_xlogx
from moe_core.routing.measures.term import Term
from moe_core.routing.measures.tokens import layer_counts, place_in, tally, token_types
from moe_core.routing.measures.used import extent_of_test
from moe_core.routing.trace.shares import entropy, mutual_information, ratio
from moe_core.routing.trace.trace import AnyTrace, RoutingTrace
from moe_core.routing.trace.types import Int64Array
from moe_core.words import percent

SMALL_SHARE = 0.01
"""Part of the choice beyond chance that is not worth calling an explanation."""
NO_TEST = "This is a description, no test: its chance takes tokens to be independent."


def context_independence(trace: AnyTrace, min_count: int = 10) -> pd.DataFrame:
    """How much of the choice of expert the token id explains, and what the domain adds beyond it.

    With X the expert of an assignment, all of tokens whose type occurs at least `min_count` times (one that occurs once
    is explained by construction). Columns: layer;
    token_share = I(X; token) / H(X), 0..1, 1 = the router looks at the token only, not at its context (after OpenMoE,
    2402.01739, section 4.2);
    token_chance = what token_share would be on average if the same tokens were shuffled over the choices;
    domain_share = I(X; domain) / H(X), 0..1, the domain alone, in the same unit;
    domain_beyond_token = I(X; domain | token) / H(X), 0..1, what the domain adds once the token is known;
    domain_beyond_chance = its average if domains were shuffled among the tokens of each type;
    tokens (T counted), token_types; trace_tokens and so on, see used.extent_of_test. NaN where nothing is counted or
    one expert takes all.

    Both chances are expectations over all shuffles of tokens, worked out, not drawn (Vinh, Epps and Bailey 2010; a
    token's K choices stay together). They take tokens to be independent, which those of one document or of a run of one
    expert are not: this is a description without a test. A share above its chance is a size, no proof: for that see
    baselines.domain_nmi and baselines.vocabulary. Where slots are unused the chance is correct to first order.
    """
    cells = _TokenDomainCells.of(trace, min_count)
    P, rows = len(cells.tokens), []
    for layer, counts_PE in zip(trace.layers, layer_counts(trace, cells.label, P + 1), strict=True):
        nats = cells.nats(counts_PE[:P])
        H = entropy(counts_PE[:P].sum(axis=0))
        shares = (float(ratio(value, H)) for value in nats)
        rows.append((layer, *shares, int(cells.tokens.sum()), len(cells.first)))
    columns = ["token_share", "token_chance", "domain_share", "domain_beyond_token", "domain_beyond_chance"]
    return pd.DataFrame(rows, columns=["layer", *columns, "tokens", "token_types"]).assign(**extent_of_test(trace))


class _TokenDomainCells:
    """The pairs of a token type and a domain that occur together, by type. Axes: P pairs, V types, M domains."""

    def __init__(self, keys_P: Int64Array, tokens_P: Int64Array, domains: int) -> None:
        self._keys, self._domains = keys_P, domains
        self.tokens = tokens_P
        """[P] tokens of each pair."""
        self.domain = keys_P % domains
        """[P]"""
        self.first = np.flatnonzero(np.diff(keys_P // domains, prepend=-1))
        """[V] place of each type's first pair."""
        self.type = np.repeat(np.arange(len(self.first)), np.diff(self.first, append=len(keys_P)))
        """[P] type of each pair, 0..V-1."""

    @classmethod
    def of(cls, trace: AnyTrace, min_count: int) -> _TokenDomainCells:
        types, M = token_types(trace, "input", min_count), len(trace.domains)
        keys, tokens = tally(_token_domain_keys(trace, M))
        often = types.label(keys // M) < len(types.ids)
        return cls(keys[often], tokens[often], M)

    def label(self, part: RoutingTrace) -> Int64Array:
        """[T] place of each token's pair; P where its type is rare."""
        return place_in(self._keys, _keys_of_part(part, self._domains))

    def nats(self, counts_PE: Int64Array) -> tuple[float, float, float, float, float]:
        """Of one layer: I(X; token) and its chance, I(X; domain), I(X; domain | token) and its chance."""
        if not counts_PE.any():
            return (np.nan,) * 5
        counts_VE, tokens_V = np.add.reduceat(counts_PE, self.first), np.add.reduceat(self.tokens, self.first)
        counts_ME = np.stack([counts_PE[self.domain == m].sum(axis=0) for m in range(self._domains)])
        counts_E = counts_VE.sum(axis=0)
        of_token = float(mutual_information(counts_VE))
        everything = np.zeros(len(tokens_V), dtype=np.int64)
        return (
            of_token,
            _chance_information(counts_E[None], np.array([tokens_V.sum()]), tokens_V, everything),
            float(mutual_information(counts_ME)),
            max(float(mutual_information(counts_PE)) - of_token, 0.0),
            _chance_information(counts_VE, tokens_V, self.tokens, self.type),
        )


def _chance_information(
    chose_SE: Int64Array, tokens_S: Int64Array, drawn_G: Int64Array, stratum_G: Int64Array
) -> float:
    """I(X; group | stratum) in nats to expect if the groups were shuffled among the tokens of each of S strata."""
    chose_GE = chose_SE[stratum_G]
    population_GE = np.broadcast_to(tokens_S[stratum_G, None], chose_GE.shape)
    drawn_GE = np.broadcast_to(drawn_G[:, None], chose_GE.shape)
    some = chose_GE > 0
    joint = expected_xlogx(population_GE[some], chose_GE[some], drawn_GE[some]).sum()
    # Assignments of each group: K a token, on average fewer where slots are unused.
    used_S = chose_SE.sum(axis=1)
    used_G = drawn_G * (used_S / tokens_S)[stratum_G]
    nats = joint - _sum_of_xlogx(used_G) - _sum_of_xlogx(chose_SE) + _sum_of_xlogx(used_S)
    return max(float(nats / used_S.sum()), 0.0)


def _sum_of_xlogx(counts: npt.NDArray[np.number[Any]]) -> float:
    return float(special.xlogy(counts, counts).sum())


def _token_domain_keys(trace: AnyTrace, domains: int) -> Iterator[Int64Array]:
    return (_keys_of_part(part, domains) for part in trace.parts())


def _keys_of_part(part: RoutingTrace, domains: int) -> Int64Array:
    """[T] a number for each pair of token id and domain, ascending by id."""
    keys: Int64Array = part.token_ids.astype(np.int64) * domains + part.domain_ids
    return keys


def token_verdict(context: pd.DataFrame) -> str:
    """How much of the choice the token alone explains, and what its domain adds; from metrics.context_independence.

    Shares are of the choice's entropy; both are given beside what chance gives, which grows with rare tokens.
    """
    known = context[context["token_share"].notna()]
    if known.empty or not known["tokens"].iloc[0]:
        return "No token occurs often enough to say how much of the choice the token alone explains."
    best = known.iloc[int((known["token_share"] - known["token_chance"]).argmax())]
    if best["token_share"] - best["token_chance"] < SMALL_SHARE:
        where = f", layer {int(best['layer'])} most" if len(context) > 1 else ""
        return (
            f"The token alone explains no more of the choice of expert than it would by chance: "
            f"{percent(best['token_share'])} against {percent(best['token_chance'])}{where}. {NO_TEST}"
        )
    where = f" in layer {int(best['layer'])}" if len(context) > 1 else ""
    text = (
        f"The token alone explains {percent(best['token_share'])} of the choice of expert{where} "
        f"({percent(best['token_chance'])} by chance), its domain {percent(best['domain_share'])}"
    )
    if pd.isna(best["domain_beyond_token"]):
        return f"{text}. {NO_TEST}"
    return (
        f"{text}; what the domain adds to the token is {percent(best['domain_beyond_token'])} "
        f"({percent(best['domain_beyond_chance'])} by chance). {NO_TEST}"
    )


TERMS = (
    Term(
        "token share",
        "How much of the choice of expert the token alone explains, whatever its context, 0 to 1.",
        "I(expert; token id) / H(expert)",
        "its chance, which grows with rare tokens; no test: it takes tokens to be independent, and runs raise it",
        "after OpenMoE, 2402.01739, section 4.2",
    ),
    Term(
        "domain beyond token",
        "What a token's domain tells about its expert once the token itself is known, 0 to 1.",
        "I(expert; domain | token id) / H(expert)",
        "its chance, a little above 0; no test, since it takes tokens to be independent: runs raise it",
    ),
)
