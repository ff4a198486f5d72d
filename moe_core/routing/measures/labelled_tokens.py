"""What experts know of a token's label, as its node type in a syntax tree, and which label prefers which expert.

A domain is of a whole text, a label of a single token. Null: choices turned round in every document, which keeps each
document's load, sets of experts and runs of equal choice, its length and its source; only the labels are others.
The frames are those of measures.domains, where `domain` is then the label.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from moe_core.routing.measures.against_chance import (
    Sampled,
    against_null,
    finding_of,
    interval_words,
    layers_verdict,
    tested,
)
from moe_core.routing.measures.context_independence import context_independence
from moe_core.routing.measures.domains import (
    domain_specialization,
    nmi_estimate_of_domains,
    nmi_of_counts,
    preferred,
)
from moe_core.routing.measures.measure import Bars, Plant, RandomRouting
from moe_core.routing.measures.term import Term
from moe_core.routing.measures.tokens import TOGETHER
from moe_core.routing.measures.used import extent_of_test, used
from moe_core.routing.statistics.multiple_comparisons import MIN_EXPECTED, SIGNIFICANCE, Pool, adjust
from moe_core.routing.statistics.permutation import (
    affordable_rotations,
    check_permutations,
    documents,
    rotated_parts,
    whole_and_sample,
)
from moe_core.routing.trace.blocks import block_counts
from moe_core.routing.trace.counts import domain_counts
from moe_core.routing.trace.kernels import add_grouped_counts
from moe_core.routing.trace.shares import entropy, mutual_information, ratio
from moe_core.routing.trace.trace import AnyTrace, RoutingTrace
from moe_core.routing.trace.types import Float64Array, Int64Array
from moe_core.words import number, percent


def label_nmi(trace: AnyTrace) -> pd.DataFrame:
    """How much one expert choice tells about the token's label.

    Columns: layer; nmi = I(expert; label) / H(label), 0 = nothing .. 1 = the label is certain; information_nats;
    label_entropy_nats. Tokens without a label are left out. Never 0 on finite data: hold it against
    baselines.label_nmi. Raises TraceError for a trace without labels.
    """
    counts_LME = domain_counts(trace.by_label())
    return pd.DataFrame(
        {
            "layer": trace.layers,
            "nmi": nmi_of_counts(counts_LME),
            "information_nats": mutual_information(counts_LME),
            "label_entropy_nats": entropy(counts_LME.sum(axis=-1)),
        }
    )


def label_specialization(trace: AnyTrace) -> pd.DataFrame:
    """How often the tokens of a label choose an expert: metrics.domain_specialization with `domain` = the label."""
    return domain_specialization(trace.by_label())


LABEL_FINDING = finding_of("knows the label of a token", "better")
# As for domains. Of node types most is the token itself: see context_independence of the same labels.
CLEAR_EFFECT = 0.02
ONE_LABEL = "cannot be tested: one label only"


def label_nmi_test(trace: AnyTrace, permutations: int = 200, seed: int = 0) -> pd.DataFrame:
    """metrics.label_nmi against choices made without looking at the label.

    Within every document the choices of the labelled tokens are turned round by a random distance: load, length, source
    and runs of equal choice stay as they are. What a document as a whole tells of its labels is in the null, too.
    Columns, one row per layer: layer, nmi; null_mean, null_p99, p_value, p_adjusted, effect; estimate = nmi without the
    bias of few tokens, with its interval low, high; tokens, documents and what else `used` says; labelling;
    beyond_token = I(expert; label | token id) / H(expert), what the label tells once the token itself is known, and
    beyond_token_chance, see context_independence (a description, no test); verdict. Of a large trace the p-value is of
    a sample of whole documents, all else of all tokens. Raises TraceError for a trace without labels.
    """
    check_permutations(permutations)
    labelled, sample = whole_and_sample(trace.by_label(), seed)
    null_PL = np.zeros((1 + permutations, trace.num_layers))
    for row, counts_PME in enumerate(_draws(sample, permutations, seed)):
        null_PL[:, row] = nmi_of_counts(counts_PME)
    beyond = context_independence(labelled)
    return tested(
        {"layer": trace.layers, "nmi": nmi_of_counts(domain_counts(labelled))},
        null_PL[1:],
        nmi_estimate_of_domains(labelled, block_counts(labelled), seed),
        finding=LABEL_FINDING,
        clear_effect=CLEAR_EFFECT,
        untestable=[ONE_LABEL if np.isnan(value) else "" for value in null_PL[0]],
        sampled=None if sample is labelled else Sampled(null_PL[0], _null_of_all(labelled, seed)),
        used=used(labelled, sample),
        labelling=trace.labelling,
        beyond_token=beyond["domain_beyond_token"],
        beyond_token_chance=beyond["domain_beyond_chance"],
    )


def label_cells(trace: AnyTrace, permutations: int = 200, seed: int = 0) -> pd.DataFrame:
    """metrics.label_specialization, each cell tested: does this label choose this expert other than its documents do?

    The columns of baselines.domain_cells, `domain` being the label; expected = mean share over rotations of the choices
    in every document; p_value, two-sided, by how many standard deviations of its own draws a cell is from their mean
    (see Pool), NaN where fewer than 5 tokens are expected. Raises TraceError for a trace without labels.
    """
    check_permutations(permutations)
    labelled, sample = whole_and_sample(trace.by_label(), seed)
    frame = domain_specialization(labelled).assign(**extent_of_test(labelled, sample), knows_sources=True)
    tokens_M1 = np.bincount(sample.domain_ids, minlength=len(sample.domains))[:, None]
    pool, expected = Pool(), list[Float64Array]()
    for counts_PME in _draws(sample, permutations, seed):
        mean_ME = counts_PME[1:].mean(axis=0)
        pool.add(counts_PME.reshape(1 + permutations, -1), (mean_ME >= MIN_EXPECTED).reshape(-1))
        expected.append(ratio(mean_ME, tokens_M1))
    p_values = pool.p_values()
    adjusted = adjust(p_values)
    return frame.assign(
        expected=np.concatenate(expected).reshape(-1),
        p_value=p_values,
        p_adjusted=adjusted,
        uncertain=~(adjusted <= SIGNIFICANCE),
    )


def _draws(sample: RoutingTrace, permutations: int, seed: int) -> Iterator[Int64Array]:
    """For each layer [1+P,M,E] assignments of each label's tokens to each expert: as observed, then rotated."""
    texts, shape = documents(sample), (1, len(sample.domains), sample.num_experts)
    labels_T = sample.domain_ids[texts.order].astype(np.int64)
    for indices_TK in sample.router_indices:
        ordered_TK, rng = indices_TK[texts.order], np.random.default_rng(seed)  # all layers share the rotations
        counts_PME = np.zeros((1 + permutations, *shape[1:]), dtype=np.int64)
        for draw, counts_ME in enumerate(counts_PME):
            moved_TK = ordered_TK[texts.rotation(rng)] if draw else ordered_TK
            add_grouped_counts(counts_ME[None], moved_TK[None], labels_T)
        yield counts_PME


def _null_of_all(labelled: AnyTrace, seed: int) -> Float64Array:
    """[L] mean nmi over a few rotations of all tokens."""
    L, M, E = labelled.num_layers, len(labelled.domains), labelled.num_experts
    rotations = affordable_rotations(labelled, L * labelled.top_k, L * M * E, TOGETHER)
    counts_PLME = np.zeros((rotations, L, M, E), dtype=np.int64)
    for part, texts, places in rotated_parts(labelled, rotations, seed):
        labels_T = part.domain_ids[texts.order].astype(np.int64)
        for counts_LME, place_T in zip(counts_PLME, places, strict=True):
            add_grouped_counts(counts_LME, part.router_indices[:, texts.order[place_T]], labels_T)
    mean_L: Float64Array = nmi_of_counts(counts_PLME).mean(axis=0)
    return mean_L


def label_verdict(test: pd.DataFrame) -> str:
    """Do experts know a token's label, and how much of that is the token itself? From baselines.label_nmi."""
    what = str(test["labelling"].iloc[0]) if len(test) else "label"

    def size(row: pd.Series[Any]) -> str:
        return (
            f"NMI {interval_words(row, number)}; as counted {number(row['nmi'])} against {number(row['null_mean'])} "
            "when choices are turned round in their documents"
        )

    return layers_verdict(
        test,
        LABEL_FINDING,
        size,
        clear=f"Experts know a token's {what}",
        slight=f"Experts know a token's {what} only slightly better than chance",
    )


def beyond_token_words(test: pd.DataFrame) -> str:
    """What the label tells once the token is known, in the layer where that is most; "" where it is not known."""
    known = test[test["beyond_token"].notna()]
    if known.empty:
        return ""
    best = known.iloc[int((known["beyond_token"] - known["beyond_token_chance"]).argmax())]
    return (
        f"Once the token itself is known, its {best['labelling']} explains another {percent(best['beyond_token'])} of "
        f"the choice in layer {int(best['layer'])}, {percent(best['beyond_token_chance'])} by chance (no test)."
    )


def labels_with_most(cells: pd.DataFrame, most: int) -> list[str]:
    """The labels of the surest preferences and then those of most tokens, at most so many, in the order of tokens."""
    tokens = cells.groupby("domain", sort=False)["domain_tokens"].first().sort_values(ascending=False, kind="stable")
    surest = list(dict.fromkeys(preferred(cells)["domain"]))
    chosen = set([*surest, *tokens.index][:most]) if len(surest) >= most else {*surest, *tokens.index[:most]}
    return [str(name) for name in tokens.index if name in chosen][:most]


TERMS = (
    Term(
        "label of a token",
        "What is known of a single token, as its node type in the syntax tree; a domain is of a whole text.",
    ),
    Term(
        "null of labels",
        "Choices turned round within every document: load, length, source and runs stay; the labels are others.",
        "choices rotated within documents",
    ),
)


def _bar_sentence(row: Any) -> str:
    return (
        f"Layer {row.layer}: one expert choice carries {interval_words(row, percent)} of what there is to know about "
        f"the token's {row.labelling}; as counted {percent(row.nmi)}, {against_null(row)}: {row.verdict}."
    )


BARS = Bars(
    figure="label_nmi",
    title="What experts know of labels",
    axis="NMI of expert and label (0 = tells nothing, 1 = tells the label)",
    sentence=_bar_sentence,
)

LABELS = 4
"""Labels of random routing in calibration: a token's type modulo this."""


def _plant_labels(routing: RandomRouting) -> None:
    """Label l prefers expert l."""
    T = routing.logits.shape[1]
    routing.logits[:, np.arange(T), routing.token_ids % LABELS] += routing.strength


def _planted_cells_found(cells: pd.DataFrame) -> bool:
    planted = cells[cells["domain"] == "label " + cells["expert"].astype(str)]
    return bool((~planted["uncertain"] & (planted["share"] > planted["expected"])).all())


NMI_PLANT, CELLS_PLANT = Plant(_plant_labels), Plant(_plant_labels, _planted_cells_found)
