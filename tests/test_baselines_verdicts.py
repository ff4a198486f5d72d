"""Sentences: the size, the chance level and the certainty are in them, and chance is called chance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from routing_support import trace_of

from moe_core.routing import baselines
from moe_core.routing.measures.against_chance import NOTHING_THERE
from moe_core.routing.measures.causes import ablation_verdict, importance_verdict, text_loss_verdict
from moe_core.routing.measures.coactivation import COACTIVATION_FINDING, coactivation_verdict
from moe_core.routing.measures.comparison import diff_verdict
from moe_core.routing.measures.experts import expert_sentence, layer_verdict
from moe_core.routing.measures.flow import FLOW_FINDING, flow_verdict, strongest_flow
from moe_core.routing.measures.glossary import GLOSSARY
from moe_core.routing.measures.movers import movers_verdict
from moe_core.routing.measures.persistence import PERSISTENCE_FINDING, persistence_verdict
from moe_core.routing.measures.saturation import saturation_verdict
from moe_core.routing.measures.vocabulary import VOCABULARY_FINDING, vocabulary_verdict


def frame_of(measure: str, *rows: tuple[int, float, float, float, str], **columns: Any) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["layer", measure, "null_mean", "p_adjusted", "verdict"])
    estimate = frame[measure] - 0.01
    interval = {"estimate": estimate, "low": estimate - 0.02, "high": estimate + 0.02}
    return frame.assign(effect=frame[measure] - frame["null_mean"], **interval, **columns)


def test_persistence_in_words() -> None:
    clear = (2, 0.41, 0.22, 1 / 201, PERSISTENCE_FINDING.clearly)
    chance = (0, 0.2, 0.2, 0.6, baselines.CHANCE)
    assert persistence_verdict(frame_of("first", chance, clear)) == (
        "Neighbouring tokens keep the same first expert more often than chance: layer 2 most, 40 % (95 % interval "
        "38 % to 42 %) of neighbours against 22 % in shuffled documents (p < 0.005); layer 0 not "
        "distinguishable from chance."
    )
    assert persistence_verdict(frame_of("first", chance)) == NOTHING_THERE
    slight = (1, 0.23, 0.22, 0.01, PERSISTENCE_FINDING.slightly)
    assert "only slightly more often than chance: 22 % (95 % interval" in persistence_verdict(frame_of("first", slight))
    few = frame_of("first", (1, np.nan, np.nan, np.nan, baselines.FEW_DOCUMENTS))
    assert persistence_verdict(few) == "This cannot be tested: too few documents."
    assert persistence_verdict(few.iloc[:0]).startswith("There is nothing to test")


def test_coactivation_in_words() -> None:
    frame = frame_of("strength", (1, 0.24, 0.06, 1 / 201, COACTIVATION_FINDING.clearly))
    sentence = (
        "Some experts are chosen together more than chance: 24 % of the pairs are others than chance would choose, "
        "against 6 % by chance (p < 0.005)."
    )
    assert coactivation_verdict(frame) == sentence
    pairs = pd.DataFrame(
        {
            "layer": [1, 1, 0],
            "expert_i": [3, 0, 0],
            "expert_j": [5, 1, 2],
            "tokens": [240, 4, 999],
            "expected": [100.0, 1.0, 1.0],
            "lift_over_chance": [2.4, 4.0, 999.0],
            "uncertain": [False, True, False],
        }
    )
    assert coactivation_verdict(frame, pairs) == (
        f"{sentence} Strongest: experts 3 and 5 of layer 1, 2.4 times as often as chance."
    )
    assert coactivation_verdict(frame, pairs.assign(uncertain=True)) == sentence


def test_vocabulary_and_flow_in_words() -> None:
    frame = frame_of("score", (0, 0.78, 0.55, 1 / 201, VOCABULARY_FINDING.clearly), which="predicted")
    assert vocabulary_verdict(frame) == (
        "Expert choice specialises by predicted token: the favourite expert of a predicted token takes 77 % "
        "(95 % interval 75 % to 79 %) of its occurrences; as counted 78 % against 55 % by chance (p < 0.005)."
    )
    rows = [(0, 0.2, 0.01, 1 / 201, FLOW_FINDING.clearly), (1, 0.01, 0.01, 0.4, baselines.CHANCE)]
    assert flow_verdict(frame_of("nmi", *rows, next_layer=[1, 3])) == (
        "A token's expert in one layer tells about its expert in the next: layers 0 to 1 most, NMI 0.19 (95 % "
        "interval 0.17 to 0.21); as counted 0.2 against 0.01 by chance (p < 0.005); layer 1 "
        "not distinguishable from chance."
    )


def test_saturation_in_words() -> None:
    frame = pd.DataFrame(
        {
            "step": [0, 50, 100, 0, 50, 100],
            "layer": [0, 0, 0, 1, 1, 1],
            "top_k": [0.3, 0.9, 1.0, 0.3, 0.5, 1.0],
            "chance_top_k": 0.25,
        }
    )
    assert saturation_verdict(frame) == (
        "Still changing at the last snapshot, step 100, in layer 1; at step 0 a token had 30 % of its final experts "
        "(25 % by chance)."
    )
    assert saturation_verdict(frame[frame["layer"] == 0]).startswith("Settled from step 50 of 100: ")
    assert saturation_verdict(frame[frame["step"] == 0]).startswith("One snapshot only")


def test_diff_and_movers_in_words() -> None:
    diff = pd.DataFrame(
        {
            "layer": [0, 1],
            "tokens": 2016,
            "flip_rate": [0.1, 0.34],
            "first_flip_rate": [0.05, 0.2],
            "jaccard": [0.9, 0.7],
            "margin_flipped": [0.02, 0.03],
            "margin_kept": [0.2, 0.21],
            "low": [0.08, 0.3],
            "high": [0.12, 0.38],
        }
    )
    assert diff_verdict(diff) == (
        "Different: layer 1 most, 34 % of 2,016 tokens choose other experts (95 % interval 30 % to 38 %), 20 % another "
        "first one; the router's margin was 0.03 where the choice changed, 0.21 where it stayed."
    )
    assert diff_verdict(diff.assign(flip_rate=0.0)).startswith("The same: not one of 2,016 tokens")
    movers = pd.DataFrame(
        {
            "layer": [1, 0],
            "expert": [3, 2],
            "domain": ["legal", "all"],
            "share_a": [0.12, 0.2],
            "share_b": [0.31, 0.21],
            "change": [0.19, 0.01],
            "low": [0.15, -0.01],
            "high": [0.22, 0.03],
            "uncertain": [False, True],
        }
    )
    assert movers_verdict(movers) == (
        "1 of 2 shares surely changed. Most: expert 3 of layer 1, from 12 % to 31 % of legal tokens "
        "(+19 points, 95 % interval +15 points to +22 points)."
    )
    assert movers_verdict(movers.assign(uncertain=True)).startswith("Not distinguishable from chance")


def effects_frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "layer": [2, 2, 2, 3],
            "expert": [5, 5, 5, 0],
            "domain": ["all", "legal", "code", "all"],
            "delta_nats": [0.12, 0.3, 0.001, 0.002],
            "low": [0.1, 0.2, -0.1, -0.01],
            "high": [0.14, 0.4, 0.1, 0.01],
            "uncertain": [False, False, True, True],
        }
    )


def test_ablation_and_importance_in_words() -> None:
    effects = effects_frame()
    one = (
        "Without expert 5 of layer 2 the loss rises by 0.12 nats per token (95 % interval +0.1 to +0.14); "
        "most on legal text, +0.3."
    )
    assert ablation_verdict(effects[effects["layer"] == 2]) == one
    assert ablation_verdict(effects) == (
        f"1 of 2 experts surely cost something when switched off, 0.01 nats or more by estimate. {one}"
    )
    nothing = ablation_verdict(effects[effects["layer"] == 3])
    assert nothing == (
        "Without expert 0 of layer 3 the loss on all text is not distinguishable from what it was (95 % interval −0.01 "
        "to +0.01)."
    )
    assert ablation_verdict(effects.assign(uncertain=True)) == (
        "Not distinguishable from chance: whether the loss changes without any one of 2 experts cannot be told."
    )
    assert "too little to matter" in ablation_verdict(effects.iloc[:1].assign(delta_nats=0.001))
    correlations = pd.DataFrame(
        {
            "measure": ["load", "reap"],
            "rho": [0.2, 0.62],
            "low": [-0.1, 0.4],
            "high": [0.5, 0.8],
            "p_adjusted": [0.3, 0.01],
            "n": 32,
        }
    )
    assert importance_verdict(correlations) == (
        "REAP score predicts which experts matter: rank correlation 0.62 over 32 experts (95 % interval 0.40 to 0.80, "
        "0 by chance); load not distinguishable from chance."
    )
    assert importance_verdict(correlations.assign(rho=0.3)).startswith("REAP score predicts only weakly")
    assert importance_verdict(correlations.assign(p_adjusted=0.3)).startswith("Not distinguishable")
    assert importance_verdict(correlations.assign(rho=np.nan)).startswith("Too few experts")


def test_one_text_in_words() -> None:
    # Tokens 1 and 3 come after one that had chosen the expert; the first is predicted by nothing.
    delta = np.array([np.nan, 0.4, 0.1, 0.2, -0.1], np.float32)
    chosen = np.array([True, False, True, False, False])
    assert text_loss_verdict(delta, chosen) == (
        "This text's loss changes by +0.15 nats per token: +0.3 for the 2 tokens after one that had chosen it, 0 for "
        "the other 2."
    )
    assert "0 for the 2 tokens after one that had not chosen it" in text_loss_verdict(delta, chosen, forced=True)


def test_the_leading_expert_and_the_strongest_flow_in_words() -> None:
    trace = trace_of([[[0, 1], [0, 2], [1, 0], [-1, -1]], [[-1, -1]] * 4], num_experts=4, layers=[2, 5])
    assert layer_verdict(trace, 2) == (
        "Layer 2: expert 0 is the first choice of 67 % of 3 tokens and takes 50 % of all choices (even share 25 %); "
        "2 of 4 experts are somebody's first choice."
    )
    assert layer_verdict(trace, 5) == "Layer 5: no token is routed."
    flow = pd.DataFrame(
        {
            "layer": 0, "next_layer": 1, "expert": [0, 0, 1], "next_expert": [0, 1, 1], "tokens": [90, 10, 50],
            "probability": [0.9, 0.1, 0.5], "lift": [1.5, 0.25, 2.0],
        }
    )  # fmt: skip
    # Beyond chance: 90 - 60 = 30 tokens, and 50 - 25 = 25.
    assert strongest_flow(flow) == (
        "Most beyond chance goes from expert 0 of layer 0 to expert 0 of layer 1: 90 % of its tokens, 1.5 times that "
        "expert's share."
    )
    assert strongest_flow(flow.assign(lift=1.0)).startswith("No expert's tokens go to any expert")


def test_one_expert_in_words() -> None:
    load = pd.DataFrame({"layer": [2] * 8, "expert": range(8), "share": [0.18] * 8})
    cells = pd.DataFrame(
        {
            "layer": 2,
            "expert": 5,
            "domain": ["legal", "code", "finance"],
            "share": [0.53, 0.12, 0.3],
            "expected": [0.3, 0.3, 0.4],
            "lift": [2.1, 0.5, 1.2],
            "lift_low": [1.9, 0.4, 1.1],
            "uncertain": False,
        }
    )
    tokens = pd.DataFrame({"text": [" shall"], "share": [0.9], "lift": [4.5]})
    assert expert_sentence(2, 5, load=load, cells=cells, tokens=tokens, effects=effects_frame()) == (
        "Expert 5 of layer 2 takes 18 % of the layer's choices (13 % when even); specialises in legal text (2.1 times "
        "its even share); takes 90 % of the token ' shall' (4.5 times its usual share); switching it off costs 0.12 "
        "nats per token (95 % interval 0.1 to 0.14)."
    )
    assert "no domain distinguishably" in expert_sentence(2, 5, cells=cells.assign(uncertain=True))
    # Finance takes it more than evenly, but less than text of any domain does.
    assert "no domain distinguishably" in expert_sentence(2, 5, cells=cells[cells["domain"] == "finance"])
    assert expert_sentence(0, 1, load=load) == "Expert 1 of layer 0 has not been measured yet."


def test_every_new_measure_has_its_term() -> None:
    needed = [
        "vocabulary specialization", "persistence", "co-activation", "co-activation strength", "lift over chance",
        "cross-layer flow", "saturation", "flip rate", "Jaccard", "mover", "matched experts", "ablation", "zero",
        "renormalise", "reroute", "force", "causal effect", "KL", "REAP", "EAN", "CKA", "gate cosine",
        "rank correlation", "token share", "domain beyond token", "null of co-activation", "Benjamini-Hochberg",
    ]  # fmt: skip
    assert not [name for name in needed if name not in GLOSSARY]
