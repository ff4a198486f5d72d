"""Figures of what goes together, what changed and what matters: their numbers by hand, their limits, hostile tokens."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_core.errors import UsageError
from moe_core.figures import associations, changes, maps, sankey, vocabulary
from moe_core.figures.associations import (
    coactivation_figure,
    flow_map_figure,
)
from moe_core.figures.causes import (
    ablation_domains_figure,
    ablation_map_figure,
    correlations_figure,
    importance_figure,
    similarity_figure,
)
from moe_core.figures.changes import diff_figure, movers_figure, saturation_figure
from moe_core.figures.domains import context_figure
from moe_core.figures.experts import dropped_figure, expert_domains_figure, expert_history_figure
from moe_core.figures.figure import Figure, figure_bytes, slug
from moe_core.figures.layout import MAX_COLUMNS
from moe_core.figures.maps import CELL, nats_limit
from moe_core.figures.measures import chance_figure
from moe_core.figures.palette import LIFT_LIMIT, NEUTRAL, expert_colour
from moe_core.figures.sankey import flow_sankey_figure
from moe_core.figures.vocabulary import vocabulary_figure
from moe_core.routing import RoutingTrace, baselines, metrics
from moe_core.routing.measures import registry
from moe_core.routing.measures.against_chance import NOTHING_THERE
from moe_core.routing.measures.coactivation import COACTIVATION_FINDING
from moe_core.routing.measures.flow import FLOW_FINDING
from moe_core.routing.measures.persistence import PERSISTENCE_FINDING
from moe_core.routing.measures.vocabulary import VOCABULARY_FINDING
from moe_core.words import percent

HOSTILE = [
    "<b>bold</b>",
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\n",
    "\u202eabc",
    "x" * 500,
    "=1+1",
    ":red[x]",
    " the",
    "the",
]
BROWSER_BYTES = 2_000_000
"""What a chart may send to the browser at most."""


def svg(figure: Figure) -> str:
    """The figure drawn: Vega has parsed the specification, its data and every expression."""
    return figure_bytes(figure, "svg").decode()


def payload(figure: Figure) -> int:
    with alt.data_transformers.enable("default", max_rows=None):
        return len(figure.chart.to_json(indent=None))


def null_table(measure: str, values: list[float], finding: Any, **columns: Any) -> pd.DataFrame:
    """A table as baselines give it: all layers clearly above chance, or none where `finding` is None."""
    shares = np.asarray(values)
    return pd.DataFrame(
        {
            "layer": range(len(values)), measure: shares, "null_mean": 0.1, "null_p99": 0.15, "p_value": 0.005,
            "p_adjusted": 0.005, "effect": shares - 0.1, "estimate": shares, "low": shares - 0.05,
            "high": shares + 0.05,
            "verdict": baselines.CHANCE if finding is None else finding.clearly, **columns,
        }
    )  # fmt: skip


def ordered_pairs(tokens_EE: np.ndarray, layer: int = 0) -> pd.DataFrame:
    """metrics.coactivation of a symmetric table of pair counts, for top-2 routing."""
    i, j = np.nonzero(~np.eye(len(tokens_EE), dtype=bool))
    own, T = tokens_EE.sum(axis=1), tokens_EE.sum() / 2
    return pd.DataFrame(
        {
            "layer": layer, "expert_i": i, "expert_j": j, "tokens": tokens_EE[i, j],
            "probability": tokens_EE[i, j] / own[i], "lift": tokens_EE[i, j] * T / (own[i] * own[j]),
        }
    )  # fmt: skip


def against_null(pairs: pd.DataFrame) -> pd.DataFrame:
    """baselines.coactivation_pairs of the same pairs, each once, where chance expects what the loads suggest."""
    own = pairs[pairs["expert_i"] < pairs["expert_j"]]
    return own.assign(expected=own["tokens"] / own["lift"], lift_over_chance=own["lift"], uncertain=False)


def flow_of(tokens_LEE: np.ndarray) -> pd.DataFrame:
    """metrics.layer_flow of tables of slot pairs between neighbouring layers."""
    frames = []
    for layer, tokens_EE in enumerate(tokens_LEE):
        i, j = (axis.ravel() for axis in np.indices(tokens_EE.shape))
        probability = tokens_EE / tokens_EE.sum(axis=1, keepdims=True)
        share = tokens_EE.sum(axis=0) / tokens_EE.sum()
        frames.append(
            pd.DataFrame(
                {
                    "layer": layer, "next_layer": layer + 1, "expert": i, "next_expert": j, "tokens": tokens_EE[i, j],
                    "probability": probability[i, j], "lift": (probability / share)[i, j],
                }
            )
        )  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def effects_of(layers: int, experts: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        itertools.product(range(layers), range(experts), ["all", "code", "<i>legal"]),
        columns=["layer", "expert", "domain"],
    )
    delta = rng.normal(0.02, 0.05, len(frame))
    return frame.assign(tokens=100, affected=20, delta_nats=delta, low=delta - 0.02, high=delta + 0.02, kl=0.01,
                        uncertain=np.abs(delta) < 0.02)  # fmt: skip


# ---- together ----


def test_pairs_are_held_against_the_null_and_uncertain_ones_fade() -> None:
    counts = np.array([[0, 30, 10], [30, 0, 20], [10, 20, 0]])
    pairs = pd.DataFrame(
        {"layer": 0, "expert_i": [0, 0, 1], "expert_j": [1, 2, 2], "tokens": [30, 10, 20],
         "expected": [10.0, 20.0, 20.0], "lift_over_chance": [3.0, 0.5, 1.0], "uncertain": [False, False, True]}
    )  # fmt: skip
    data = coactivation_figure(
        ordered_pairs(counts), null_table("strength", [0.3], COACTIVATION_FINDING), 0, pairs
    ).chart.data.set_index(["expert_i", "expert_j"])
    assert (data.loc[(1, 0), "lift"], data.loc[(2, 0), "lift"]) == (3.0, 0.5)
    assert data.loc[(2, 1), "uncertain"]
    assert data.loc[(2, 1), "sentence"].endswith(": uncertain.")
    assert not data.loc[(0, 1), "uncertain"]


def test_nothing_there_is_said_and_an_unknown_layer_refused() -> None:
    frame = ordered_pairs(np.array([[0, 20, 20], [20, 0, 20], [20, 20, 0]]))
    figure = coactivation_figure(frame, null_table("strength", [0.1], None), 0, against_null(frame))
    assert figure.verdict == NOTHING_THERE
    with pytest.raises(UsageError, match=r"layer 7 has no pairs of experts; expected one of \[0\]"):
        coactivation_figure(frame, null_table("strength", [0.1], None), 7, against_null(frame))


def test_flow_cells_are_lifts_and_few_tokens_fade() -> None:
    tokens = np.array([[[90, 10, 0], [10, 90, 0], [50, 49, 1]]])
    figure = flow_map_figure(flow_of(tokens), null_table("nmi", [0.3], FLOW_FINDING, next_layer=1), 0)
    data = figure.chart.data.set_index(["expert", "next_expert"])
    assert data.loc[(0, 0), "lift"] == pytest.approx(0.9 / 0.5)
    # Of 100 tokens chance expects 1/3 for the last expert: too few for any cell of its column.
    assert data["uncertain"].to_dict() == {(i, j): j == 2 for i in range(3) for j in range(3)}
    assert data.loc[(0, 0), "sentence"] == (
        "90 % of the tokens of expert 0 (layer 0) go to expert 0 (layer 1), 1.8 times its share (90 choices)."
    )
    assert figure.name == "flow_map_layer_0"


@pytest.mark.parametrize(
    ("finding", "said"),
    [(FLOW_FINDING, "64 of 100, those with the strongest ties"), (None, "64 of 100, the first ones")],
)
def test_a_map_of_some_experts_claims_no_ties_where_none_is_certain(finding: Any, said: str) -> None:
    tokens = np.random.default_rng(0).poisson(50, (1, 100, 100))
    figure = flow_map_figure(flow_of(tokens), null_table("nmi", [0.3], finding, next_layer=1), 0)
    title = figure.chart.to_dict()["layer"][0]["encoding"]["x"]["title"]
    assert (title if isinstance(title, str) else " ".join(title)) == f"expert of layer 1 ({said})"


@pytest.mark.parametrize("seed", range(3))
def test_many_experts_keep_their_strongest_ties_within_the_browsers_limit(seed: int) -> None:
    E = 256
    rng = np.random.default_rng(seed)
    counts = np.triu(rng.poisson(20, (E, E)), 1)
    counts[3, 250] = 500
    frame = ordered_pairs(counts + counts.T)
    figure = coactivation_figure(
        frame, null_table("strength", [0.3] * 64, COACTIVATION_FINDING), 0, against_null(frame)
    )
    shown = figure.chart.data
    assert shown["expert_i"].nunique() == shown["expert_j"].nunique() == MAX_COLUMNS
    assert {3, 250} <= set(shown["expert_i"])
    assert payload(figure) < BROWSER_BYTES
    order = figure.chart.to_dict()["layer"][0]["encoding"]["x"]["sort"]
    assert abs(order.index(3) - order.index(250)) <= 1, "a team stands together"
    assert len(figure.frame) == E * (E - 1), "the table has all"


def test_bars_of_a_test_carry_chance_interval_and_words() -> None:
    cases = [
        (
            chance_figure(registry.PERSISTENCE, null_table("first", [0.3, 0.2], PERSISTENCE_FINDING)),
            "same first expert as the token before",
        ),
        (
            chance_figure(registry.COACTIVATION, null_table("strength", [0.3, 0.2], COACTIVATION_FINDING)),
            "of the pairs are others",
        ),
        (
            chance_figure(registry.LAYER_FLOW, null_table("nmi", [0.3, 0.2], FLOW_FINDING, next_layer=[1, 2])),
            "Layers 1 to 2",
        ),
        (
            chance_figure(registry.VOCABULARY, null_table("score", [0.3, 0.2], VOCABULARY_FINDING, which="input")),
            "favourite expert",
        ),
    ]
    for figure, words in cases:
        assert words in figure.chart.data["sentence"][1]
        assert "10 % by chance and at most 15 % in 99 of 100 (p < 0.01)" in figure.chart.data["sentence"][1]
        fields = json.dumps(figure.chart.to_dict()["layer"])
        assert all(f'"{field}"' in fields for field in ("null_p99", "low", "high"))
        assert ">0.30<" in svg(figure)
    many = null_table("first", [0.31] * 64, PERSISTENCE_FINDING)
    assert "0.31</text>" not in svg(chance_figure(registry.PERSISTENCE, many)), "numbers would overlap"


# ---- Sankey ----


def test_sankey_conserves_tokens_and_colours_experts() -> None:
    rng = np.random.default_rng(0)
    flow = flow_of(rng.integers(1, 50, (3, 4, 4)))
    figure = flow_sankey_figure(flow, null_table("nmi", [0.3] * 3, FLOW_FINDING, next_layer=[1, 2, 3]))
    node, link = figure.chart.data[0].node, figure.chart.data[0].link
    assert sum(link.value) == flow["tokens"].sum()
    assert list(node.label) == [str(expert) for _ in range(4) for expert in range(4)]
    assert list(node.color[:4]) == [expert_colour(expert) for expert in range(4)]
    source = [int(node.label[i]) for i in link.source]
    rgb = [re.match(r"rgba\((\d+),(\d+),(\d+)", colour).groups() for colour in link.color]  # type: ignore[union-attr]
    assert ["#" + "".join(f"{int(c):02x}" for c in colour) for colour in rgb] == [expert_colour(e) for e in source]
    assert figure.formats == ("html", "csv")
    with pytest.raises(UsageError, match=r"cannot be written as 'png'; expected one of html, csv"):
        figure_bytes(figure, "png")


def test_sankey_of_many_experts_merges_the_small_ones_without_losing_a_token() -> None:
    rng = np.random.default_rng(1)
    counts = rng.poisson(3, (5, 100, 100)) + 1
    counts[:, :11, :11] += 500  # eleven experts take most
    flow = flow_of(counts)
    figure = flow_sankey_figure(flow, null_table("nmi", [0.3] * 5, FLOW_FINDING, next_layer=range(1, 6)))
    node, link = figure.chart.data[0].node, figure.chart.data[0].link
    assert len(node.label) == 6 * sankey.MAX_SANKEY_EXPERTS
    assert list(node.label).count("others") == 6
    assert {colour for label, colour in zip(node.label, node.color, strict=True) if label == "others"} == {NEUTRAL}
    assert sum(link.value) == flow["tokens"].sum()
    assert len(figure.chart.to_json()) < BROWSER_BYTES


def test_sankey_of_evenly_loaded_experts_draws_the_strongest_streams_instead_of_others() -> None:
    """Of 128 experts, 117 were one grey node of nine tenths of the picture, and the names of the rest overlapped."""
    rng = np.random.default_rng(2)
    counts = rng.poisson(20, (5, 128, 128))
    counts[:, np.arange(4), np.arange(4) + 100] = 900
    flow = flow_of(counts)
    figure = flow_sankey_figure(flow, null_table("nmi", [0.3] * 5, FLOW_FINDING, next_layer=range(1, 6)))
    node, link = figure.chart.data[0].node, figure.chart.data[0].link
    assert "others" not in node.label
    ways = [(int(node.label[a]), int(node.label[b])) for a, b in zip(link.source, link.target, strict=True)]
    assert all(ways.count((i, i + 100)) == 5 for i in range(4))
    assert (
        max(np.bincount(np.unique(np.round(np.array(node.x) * 5), return_inverse=True)[1])) <= sankey.MAX_SANKEY_EXPERTS
    )
    part = sum(link.value) / counts.sum()
    assert figure.verdict.endswith(f"the strongest {len(ways)} streams between single experts, {percent(part)} of all.")
    room = sankey._HEIGHT - sankey._TOP - sankey._BOTTOM
    for column in np.unique(node.x):
        places = np.array(node.y)[np.array(node.x) == column] * room
        assert (np.diff(places) >= 14).all(), "a line of text is as high"
    assert len(figure.frame) == 5 * 128 * 128, "the table has all"


def test_sankey_draws_consecutive_layers_only() -> None:
    flow = flow_of(np.ones((9, 2, 2), dtype=int))
    test = null_table("nmi", [0.3] * 9, FLOW_FINDING, next_layer=range(1, 10))
    assert set(flow_sankey_figure(flow, test).frame["layer"]) == set(range(sankey.MAX_SANKEY_LAYERS - 1))
    assert set(flow_sankey_figure(flow, test, [7, 8, 9]).frame["layer"]) == {7, 8}
    with pytest.raises(UsageError, match=r"layers \[0, 2, 4\] are not consecutive"):
        flow_sankey_figure(flow, test, [0, 2, 4])
    for wrong in ([0], list(range(7)), [9, 10]):
        with pytest.raises(UsageError, match="cannot be drawn"):
            flow_sankey_figure(flow, test, wrong)


# ---- vocabulary ----


def words_of(texts: list[str]) -> pd.DataFrame:
    n = len(texts)
    return pd.DataFrame({"layer": 0, "token_id": range(n), "text": texts, "tokens": np.arange(n) * 10 + 20,
                         "expert": np.arange(n) % 4, "share": 0.9, "lift": 3.0})  # fmt: skip


@pytest.mark.slow
def test_hostile_tokens_are_shown_as_text() -> None:
    figure = vocabulary_figure(words_of(HOSTILE), null_table("score", [0.9], VOCABULARY_FINDING, which="input"), 0)
    drawn = svg(figure)
    for tag in ("<b>", "<script", "<img"):
        assert tag not in drawn
    assert "&lt;b&gt;bold&lt;/b&gt;" in drawn
    names = set(figure.chart.data["name"])
    assert {"↵", "␣the", "the", "⟨202E⟩abc", "=1+1"} <= names
    assert max(map(len, names)) <= vocabulary.MAX_TOKEN_CHARACTERS
    page = figure_bytes(figure, "html").decode()
    assert page.count("</script>") == 2
    assert "<img src=x" not in page
    assert "'=1+1" in figure_bytes(figure, "csv").decode()


def test_the_surest_tokens_are_drawn_and_those_that_look_alike_told_apart() -> None:
    frame = words_of(["a"] * 2 + [f"t{i}" for i in range(60)])
    frame["tokens"] = [1000, 1000, *[10] * 60]
    frame.loc[5, "share"] = 0.0
    data = vocabulary_figure(frame, null_table("score", [0.9], VOCABULARY_FINDING, which="next"), 0).chart.data
    assert len(data) == vocabulary.MAX_TOKENS
    assert {"a #0", "a #1"} <= set(data["name"])
    assert data["expert"].is_monotonic_increasing
    assert data["sentence"].str.contains("next token").all()
    with pytest.raises(UsageError, match="lower min_count or trace more text"):
        vocabulary_figure(frame, null_table("score", [0.9], VOCABULARY_FINDING, which="next"), 3)


def test_context_dots_stand_beside_their_chance() -> None:
    frame = pd.DataFrame({"layer": [0, 1], "token_share": [0.5, 0.4], "token_chance": [0.02, 0.02],
                          "domain_share": [0.06, 0.05], "domain_beyond_token": [0.04, np.nan],
                          "domain_beyond_chance": [0.01, np.nan], "tokens": 500, "token_types": 20})  # fmt: skip
    figure = context_figure(frame)
    assert len(figure.chart.data) == 5, "what is unknown is not drawn"
    assert figure.chart.data["sentence"][0] == (
        "Layer 0: the token alone explains 50 % of the choice of expert, 2 % by chance."
    )
    svg(figure)


# ---- change ----


def test_saturation_of_many_layers_names_the_extremes() -> None:
    steps = [0, 50, 100]
    frame = pd.DataFrame(
        [
            {"step": step, "layer": layer, "first": 0.5, "top_k": {0: 0.3, 50: 0.3 + layer / 100, 100: 1.0}[step],
             "chance_top_k": 0.25}
            for step, layer in itertools.product(steps, range(20))
        ]
    )  # fmt: skip
    figure = saturation_figure(frame)
    assert set(figure.chart.data.loc[figure.chart.data["highlighted"], "layer"]) == {0, 19}
    assert saturation_figure(frame[frame["layer"] < 4]).chart.data["highlighted"].all()
    drawn = svg(figure)
    assert "layer 19" in drawn
    assert "chance" in drawn


def test_diff_and_movers_say_how_many_and_how_surely() -> None:
    diff = pd.DataFrame({"layer": [0, 1], "tokens": 1000, "flip_rate": [0.2, 0.0], "first_flip_rate": [0.1, 0.0],
                         "jaccard": [0.9, 1.0], "jsd": 0.01, "margin_flipped": np.nan, "margin_kept": np.nan,
                         "low": [0.18, np.nan], "high": [0.22, np.nan]})  # fmt: skip
    figure = diff_figure(diff)
    assert figure.chart.data["sentence"][0].startswith(
        "Layer 0: 20 % of 1,000 tokens choose other experts (95 % interval 18 % to 22 %), 10 % another first one"
    )
    assert "interval" not in figure.chart.data["sentence"][1]
    svg(figure)
    change = np.linspace(-0.3, 0.29, 60)
    movers = pd.DataFrame({"layer": 0, "expert": range(60), "domain": "<i>" * 20, "share_a": 0.4,
                           "share_b": 0.4 + change, "change": change, "low": change - 0.1, "high": change + 0.1,
                           "p_adjusted": 0.01, "uncertain": np.abs(change) < 0.1})  # fmt: skip
    figure = movers_figure(movers)
    assert len(figure.chart.data) == changes.MAX_MOVERS
    assert figure.chart.data["change"].abs().is_monotonic_decreasing
    assert figure.chart.data["label"].iloc[0] == "−30 points"
    assert "<i>" not in svg(figure)
    empty = movers_figure(movers.head(0))
    assert "cannot be tested" in empty.verdict  # no row was
    svg(empty)


# ---- causes ----


@pytest.mark.parametrize(
    ("most", "limit"), [(0.0, 0.001), (0.0009, 0.001), (0.003, 0.005), (0.05, 0.05), (0.13, 0.2), (2.2, 5), (9, 10)]
)
def test_the_scale_of_nats_ends_at_1_2_or_5(most: float, limit: float) -> None:
    assert nats_limit(pd.Series([most, -most / 2, np.nan])) == pytest.approx(limit)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=50))
def test_the_scale_of_nats_holds_nearly_all(values: list[float]) -> None:
    series = pd.Series(values)
    assert (series.abs() <= nats_limit(series) * (1 + 1e-12)).mean() >= 0.98 or len(values) < 50


def test_ablation_maps_share_one_scale_fade_and_can_be_clicked() -> None:
    effects = effects_of(4, 8)
    figures = [ablation_map_figure(effects), ablation_domains_figure(effects, 2)]
    specs = [figure.chart.to_dict() for figure in figures]
    scales = {json.dumps(spec["layer"][0]["encoding"]["color"]["scale"]) for spec in specs}
    assert len(scales) == 1
    assert '"domain": [-0.2, -0.05, 0, 0.05, 0.2]' in scales.pop()
    for spec in specs:
        (selection,) = [parameter for parameter in spec["params"] if parameter["name"] == CELL]
        assert selection["select"]["fields"] == ["layer", "expert"]
    data = figures[0].chart.data
    assert list(data["uncertain"]) == list(effects.loc[effects["domain"] == "all", "uncertain"])
    assert data["sentence"].str.match(r"Without expert \d of layer \d the loss on all text changes by [+−]").all()
    assert [figure.name for figure in figures] == ["ablation_map", "ablation_domains_layer_2"]
    with pytest.raises(UsageError, match="no effect on all text is known"):
        ablation_map_figure(effects[effects["domain"] != "all"])


def test_another_mode_says_so_in_name_and_title() -> None:
    effects = effects_of(2, 4)
    effects.attrs["mode"] = "reroute"
    figure = ablation_map_figure(effects)
    assert (figure.name, figure.title) == ("ablation_map_reroute", "Without each expert: all text (reroute)")


def test_a_cell_of_a_large_causal_map_is_the_expert_with_the_largest_effect() -> None:
    effects = effects_of(64, 256)
    figure = ablation_map_figure(effects)
    data = figure.chart.data
    assert len(data) == 64 * MAX_COLUMNS
    everything = effects[effects["domain"] == "all"]
    for layer in (0, 63):
        own = everything[(everything["layer"] == layer) & (everything["expert"] < 4)]
        first = data[(data["layer"] == layer) & (data["column"] == 0)].iloc[0]
        most = own.loc[own["delta_nats"].abs().idxmax()]
        assert first["expert"] == most["expert"]  # a click chooses it
        assert first["nats"] == most["delta_nats"]
        assert first["sentence"].endswith(" Of experts 0 to 3 it is the one with the largest effect.")
    assert payload(figure) < BROWSER_BYTES


def importance_of(n: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    delta = rng.normal(size=n)
    return pd.DataFrame({"layer": np.arange(n) // 8, "expert": np.arange(n) % 8, "delta_nats": delta,
                         "low": delta - 0.1, "high": delta + 0.1, "load": rng.random(n), "reap": delta})  # fmt: skip


CORRELATIONS = pd.DataFrame(
    {"measure": ["load", "reap"], "rho": [np.nan, 0.9], "low": [np.nan, 0.8], "high": [np.nan, 0.95],
     "p_value": [np.nan, 0.001], "p_adjusted": [np.nan, 0.002], "n": [0, 40], "verdict": ["cannot be tested", "yes"]}
)  # fmt: skip


def test_importance_dots_become_a_grid_when_there_are_too_many() -> None:
    few = importance_figure(importance_of(40), CORRELATIONS, "reap")
    assert len(few.chart.data) == 40
    assert 0 < few.chart.data["named"].sum() <= 8
    assert any(parameter["name"] == CELL for parameter in few.chart.to_dict()["params"])
    svg(few)
    many = importance_figure(importance_of(16_384), CORRELATIONS, "reap")
    assert many.chart.data["experts"].sum() == 16_384
    assert payload(many) < BROWSER_BYTES
    svg(many)
    with pytest.raises(UsageError, match="unknown measure 'beauty'; expected one of load, reap"):
        importance_figure(importance_of(40), CORRELATIONS, "beauty")


def test_unknown_correlations_are_called_unknown() -> None:
    figure = correlations_figure(CORRELATIONS)
    assert list(figure.chart.data["label"]) == ["unknown", "0.90"]
    drawn = svg(figure)
    assert "REAP" in drawn
    assert "nan" not in drawn.lower()


def test_similarity_is_symmetric_whichever_half_is_given() -> None:
    half = pd.DataFrame({"layer": 0, "expert_i": [0, 0, 1], "expert_j": [1, 2, 2], "gate_cosine": [0.5, -0.5, 0.1],
                         "weight_cosine": 0.0, "output_cka": [0.9, 0.2, 0.1]})  # fmt: skip
    whole = pd.concat([half, half.rename(columns={"expert_i": "expert_j", "expert_j": "expert_i"})])
    for frame in (half, whole):
        figure = similarity_figure(frame, 0)
        value = figure.chart.data.set_index(["expert_i", "expert_j"])["value"]
        assert len(value) == 6
        assert value[1, 0] == value[0, 1] == 0.9
    assert figure.verdict.startswith("Most alike in layer 0: experts 0 and 1, similarity of outputs (linear CKA) 0.9")
    with pytest.raises(UsageError, match=r"layer 7 has no similarities; expected one of \[0\]"):
        similarity_figure(half, 7)


# ---- single experts, drops, and a real trace ----


@pytest.fixture(scope="module")
def trace() -> RoutingTrace:
    rng = np.random.default_rng(0)
    L, T, E = 3, 1200, 6
    domain = np.repeat(np.arange(40) % 2, 30)
    logits = rng.normal(size=(L, T, E)) + 1.5 * rng.normal(size=(L, 2, E))[:, domain]
    indices = np.argsort(-logits, axis=2)[..., :2]
    indices[:, ::50, 1] = -1
    scores = np.where(indices < 0, 0.0, 0.5)
    return RoutingTrace.from_arrays(
        router_indices=indices, router_scores=scores, num_experts=E, token_ids=np.arange(T) % len(HOSTILE),
        document_ids=np.repeat(np.arange(40), 30), domain_ids=domain, domains=["code", "<i>legal"],
        vocabulary=dict(enumerate(HOSTILE)),
    )  # fmt: skip


def test_every_figure_of_a_real_trace_is_drawn(trace: RoutingTrace) -> None:
    flow, pairs = metrics.layer_flow(trace), baselines.coactivation_pairs(trace, permutations=20)
    together = baselines.coactivation(trace, permutations=20)
    paths = baselines.layer_flow(trace, permutations=20)
    words = baselines.vocabulary(trace, permutations=20)
    figures = [
        coactivation_figure(metrics.coactivation(trace), together, 1, pairs),
        chance_figure(registry.COACTIVATION, together),
        flow_map_figure(flow, paths, 0),
        chance_figure(registry.LAYER_FLOW, paths),
        chance_figure(registry.PERSISTENCE, baselines.persistence(trace, permutations=20)),
        vocabulary_figure(metrics.vocabulary_specialization(trace), words, 2),
        chance_figure(registry.VOCABULARY, words),
        context_figure(metrics.context_independence(trace)),
        dropped_figure(metrics.dropped_by_position(trace)),
        expert_domains_figure(baselines.domain_cells(trace, permutations=20), 1, 3),
        saturation_figure(metrics.saturation({0: trace, 10: trace})),
        diff_figure(metrics.routing_diff(trace, trace)),
        movers_figure(metrics.routing_movers(trace, trace)),
    ]
    for figure in figures:
        assert re.fullmatch(r"[a-z0-9_]+", figure.name)
        assert figure.title
        assert figure.question.endswith("?")
        assert figure.verdict.endswith((".", "!"))
        drawn = svg(figure)
        assert "<i>" not in drawn
        assert "NaN" not in drawn, figure.name
    assert "dropped" in figures[8].verdict
    assert flow_sankey_figure(flow, paths).frame.equals(flow)


def test_nothing_dropped_is_said(trace: RoutingTrace) -> None:
    frame = metrics.dropped_by_position(trace).assign(dropped=0, dropped_fraction=0.0)
    assert dropped_figure(frame).verdict == "No slot was dropped: every token got all its experts."


def test_an_experts_history_is_its_own_line_before_grey_ones() -> None:
    loads = pd.DataFrame(
        [{"step": s, "layer": 0, "expert": e, "share": (e + 1) / 10} for s in (0, 10) for e in range(4)]
    )
    figure = expert_history_figure(loads, 0, 3)
    assert set(figure.chart.data.loc[figure.chart.data["highlighted"], "expert"]) == {3}
    assert figure.verdict == (
        "Expert 3 of layer 0 took 40 % of the choices at step 0 and takes 40 % at step 10, 1.6 times its even share."
    )
    assert list(figure.frame["share"]) == [0.4, 0.4]
    svg(figure)
    with pytest.raises(UsageError, match=r"expert 9 of layer 0 has no recorded load; layers are \[0\], experts 0 to 3"):
        expert_history_figure(loads, 0, 9)
    with pytest.raises(UsageError, match="the table is empty"):
        expert_history_figure(loads.head(0), 0, 0)


def test_scales_of_maps_are_the_palettes() -> None:
    frame = pd.DataFrame({"layer": [0], "expert": [0], "lift": [9.0], "sentence": ["s"]})
    chart = maps.lift_map(frame, x=alt.X("expert:O"), y=alt.Y("layer:O"))
    assert chart.data["shown"][0] == LIFT_LIMIT
    assert chart.data["label"][0] == "9.0"
    for build in (maps.share_map, maps.nats_map):
        extra = {"limit": 0.5, "title": "t"}
        data = build(frame.assign(value=0.5, nats=-0.5), x=alt.X("expert:O"), y=alt.Y("layer:O"), **extra).data
        assert data["on_dark"][0]
    assert [maps.signed_two_digits(x) for x in (0.123, -0.03, 0.0, float("nan"))] == ["+0.12", "−0.030", "0", ""]


def test_orders_of_few_experts_are_their_numbers() -> None:
    data = ordered_pairs(np.array([[0, 1, 9], [1, 0, 2], [9, 2, 0]]))
    assert associations._by_company(data) == [0, 1, 2]
    assert slug("Legal, “EU” law") == "legal___eu__law"
