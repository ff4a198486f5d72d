"""Maps of experts: their orders and parts, what stands for many experts, and that no two texts of a map overlap."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

import altair as alt
import numpy as np
import pandas as pd
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from test_figures_charts import SCALE, drawn, make_trace, texts

from moe_core.figures import domains, expert_order, load, maps
from moe_core.figures.effects import with_outline
from moe_core.figures.expert_order import MAX_CELLS, MAX_SINGLE, MapView, expert_places, load_of_cells
from moe_core.figures.layout import MAX_COLUMNS
from moe_core.routing import baselines, metrics

SIZES = [(1, 2), (4, 8), (24, 32), (48, 128), (94, 256)]
CHARACTER, NARROW, LINE = 0.556, 0.278, 0.9
"""Of its size: the width of a digit and of a space or full stop (Arial's), and the height of a line's letters."""


def load_frame(layers: int, experts: int, seed: int = 0) -> pd.DataFrame:
    share = np.random.default_rng(seed).dirichlet(np.full(experts, 3.0), layers)
    return pd.DataFrame({"layer": np.repeat(range(layers), experts), "expert": np.tile(range(experts), layers),
                         "tokens": np.rint(1e4 * share).astype(int).ravel(), "share": share.ravel()})  # fmt: skip


def cells_frame(layers: int, experts: int) -> pd.DataFrame:
    """As baselines.domain_cells: expert e prefers domain e % 3 surely, every third of those none."""
    rng = np.random.default_rng(1)
    rows = [
        (layer, e, name, 1.5 + rng.random() if e % 3 == m else 0.5, e % 3 == 2 or e % 3 != m, int(rng.integers(1, 99)))
        for layer in range(layers)
        for m, name in enumerate(("legal", "code", "poems"))
        for e in range(experts)
    ]
    frame = pd.DataFrame(rows, columns=["layer", "expert", "domain", "lift", "uncertain", "tokens"])
    return frame.assign(share=frame["lift"] / experts, expected=1 / experts, lift_low=frame["lift"] - 0.1,
                        lift_high=frame["lift"] + 0.1)  # fmt: skip


def nmi_frame(layers: int) -> pd.DataFrame:
    one = {"nmi": 0.1, "estimate": 0.08, "low": 0.05, "high": 0.11, "null_mean": 0.02, "null_p99": 0.03,
           "effect": 0.08, "p_value": 0.01, "p_adjusted": 0.01, "verdict":
           domains.CLEARLY}  # fmt: skip
    return pd.DataFrame([{"layer": layer, **one} for layer in range(layers)])


def boxes(svg: str) -> list[tuple[float, float, float, float, str]]:
    """left, right, top, bottom and text of everything that can be read in a picture."""
    found = []

    def walk(element: ElementTree.Element, x: float, y: float, turned: bool) -> None:
        for shift in re.findall(r"translate\(([-\d.]+),\s*([-\d.]+)\)", element.get("transform", "")):
            x, y = x + float(shift[0]), y + float(shift[1])
        turned = turned or "rotate" in element.get("transform", "")
        if element.get("opacity") == "0":
            return
        if element.tag.endswith("}text") and not turned and (text := "".join(element.itertext())):
            size = float(element.get("font-size", "11px").removesuffix("px"))
            wide = size * sum(NARROW if character in " .,il" else CHARACTER for character in text)
            left = x - {"middle": wide / 2, "end": wide}.get(element.get("text-anchor", "start"), 0.0)
            found.append((left, left + wide, y - LINE * size, y, text))
        for child in element:
            walk(child, x, y, turned)

    walk(ElementTree.fromstring(svg), 0.0, 0.0, False)
    return found


def overlapping(svg: str) -> list[tuple[str, str]]:
    """Texts that lie over each other."""
    places = boxes(svg)
    left, right, top, bottom = np.array([box[:4] for box in places]).T
    over = (left[:, None] < right - 1) & (left < right[:, None] - 1) & (top[:, None] < bottom) & (top < bottom[:, None])
    return [(places[i][4], places[j][4]) for i, j in np.argwhere(np.triu(over, 1))]


@settings(max_examples=8, phases=[Phase.explicit, Phase.generate])
@given(st.integers(1, 94), st.integers(2, 256), st.integers(240, 1300), st.sampled_from(expert_order.ORDERS))
@example(1, 2, 240, "number")
@example(4, 8, 330, "preferred domain")
@example(24, 32, 1100, "load")
@example(48, 128, 640, "number")
@example(94, 256, 1300, "number")
@example(94, 256, 330, "load")
def test_no_two_texts_of_a_map_overlap(layers: int, experts: int, width: int, order: expert_order.Order) -> None:
    frame = load_frame(layers, experts)
    places = expert_places(frame, order, cells_frame(layers, experts))
    chart = load.expert_load_map(frame, view=MapView(order), places=places)
    chart.width = width
    svg = drawn(chart)
    assert overlapping(svg) == []
    assert all(left >= -1 and right <= width + 6 for left, right, *_, text in boxes(svg) if text in SCALE)


def test_overlapping_texts_would_be_found() -> None:
    chart = alt.Chart(pd.DataFrame({"x": [0, 1], "y": [0, 0]})).mark_text(text="long words").encode(x="x:Q", y="y:Q")
    assert ("long words", "long words") in overlapping(drawn(chart.properties(width=40, height=40)))


@pytest.mark.parametrize(("layers", "experts"), SIZES)
def test_one_function_draws_every_size(layers: int, experts: int) -> None:
    frame, cells, nmi = load_frame(layers, experts), cells_frame(layers, experts), nmi_frame(layers)
    columns = experts if experts <= MAX_SINGLE and layers * experts <= MAX_CELLS else MAX_COLUMNS
    for chart in (load.expert_load_map(frame), domains.preferred_domains_figure(cells, nmi).chart):
        data = chart.data
        assert MAX_CELLS >= len(data) == layers * columns
        assert {"layer", "expert", "sentence"} <= set(data)  # a click on any cell names an expert
        with alt.data_transformers.enable("default", max_rows=None):
            spec = chart.to_dict()
        assert len(json.dumps(spec)) < 2_000_000
        assert spec["height"] <= 900
        titles = [layer["encoding"]["x"]["title"] for layer in spec["layer"]]
        assert all(("a cell" in str(title)) == (columns < experts) for title in titles)


def test_a_cell_of_several_experts_is_the_one_furthest_from_even_and_says_so() -> None:
    frame = load_frame(2, 256)
    frame.loc[5, ["share", "tokens"]] = 0.0  # a dead expert is not averaged away
    data = load.expert_load_map(frame.astype({"tokens": int})).data
    cell = data[(data["layer"] == 0) & (data["column"] == 1)].iloc[0]
    assert cell["expert"] == 5
    assert cell["sentence"] == (
        "Layer 0, expert 5: 0 % of the layer's choices, 0 times its even share (0 choices). "
        "Of experts 4 to 7 it is the one furthest from its even share."
    )


def test_ranks_are_not_drawn_as_numbers_of_experts() -> None:
    """Numbers 0 to 63 stood below the columns of 128 ranked experts."""
    frame = metrics.expert_load(make_trace(layers=2, experts=128, top_k=4))
    places = expert_places(frame, "load")
    chart = load.expert_load_map(frame, view=MapView("load"), places=places)
    written = [text for text in texts(drawn(chart)) if text not in SCALE]
    assert [text for text in written if re.search(r"\d$", text)] == ["≤ 0.25", "≥ 4", "0"]  # layer 1 is in SCALE
    assert [text for text in written if re.match(r"\d+[a-z]+$", text)] == ["1st", "33rd", "65th", "96th", "128th"]
    busiest = frame[frame["layer"] == 1].sort_values("share", ascending=False, kind="stable")["expert"].iloc[0]
    first = chart.data[(chart.data["layer"] == 1) & (chart.data["column"] == 0)].iloc[0]
    assert first["expert"] == busiest
    assert first["sentence"].startswith(f"Layer 1, expert {busiest}: ")
    assert first["sentence"].endswith(" It is 1st of its layer by load.")


@pytest.mark.parametrize("order", expert_order.ORDERS)
def test_places_number_the_experts_of_each_layer_once(order: expert_order.Order) -> None:
    frame, cells = load_frame(3, 12), cells_frame(3, 12)
    places = expert_places(frame, order, cells)
    assert places.groupby("layer")["place"].apply(sorted).tolist() == [list(range(12))] * 3
    own = places[places["layer"] == 1].sort_values("place")["expert"].tolist()
    shares = frame[frame["layer"] == 1].set_index("expert")["share"]
    if order == "number":
        assert own == list(range(12))
    elif order == "load":
        assert own == list(shares.sort_values(ascending=False).index)
    else:
        assert [e % 3 for e in own] == [0] * 4 + [1] * 4 + [2] * 4  # legal, code, none
        lifts = cells[(cells["layer"] == 1) & (cells["domain"] == "legal")].set_index("expert")["lift"]
        assert np.all(np.diff(lifts[own[:4]]) <= 0)


def test_equal_experts_stand_by_number() -> None:
    frame = pd.DataFrame({"layer": 0, "expert": range(5), "share": [0.1, 0.3, 0.1, 0.3, 0.2]})
    assert expert_places(frame, "load")["expert"].tolist() == [1, 3, 4, 0, 2]


def test_a_part_of_a_map_has_its_layers_and_experts_only() -> None:
    frame = load_frame(94, 256)
    data = load.expert_load_map(frame, view=MapView(layers=(10, 12), places=(100, 131))).data
    assert sorted(set(data["layer"])) == [10, 11, 12]
    assert list(data["expert"]) == list(range(100, 132)) * 3  # each its own cell now
    places = expert_places(frame, "load")
    ranked = load.expert_load_map(frame, view=MapView("load", layers=(7, 7), places=(0, 3)), places=places)
    own = frame[frame["layer"] == 7].nlargest(4, "share")
    assert list(ranked.data["expert"]) == list(own["expert"])
    assert {"1st", "2nd", "3rd", "4th"} <= set(texts(drawn(ranked)))
    every = load.expert_load_map(load_frame(2, 4), view=MapView(layers=(70, 80), places=(90, 99))).data
    assert len(every) == 8  # a part that another model had is none of this one's


def test_the_domains_of_all_layers_at_once_say_what_is_sure() -> None:
    cells, nmi = cells_frame(3, 6), nmi_frame(3)
    nmi.loc[2, "verdict"] = baselines.CHANCE
    figure = domains.preferred_domains_figure(cells, nmi)
    data = figure.chart.data
    kinds = data[data["layer"] == 0].set_index("expert")["kind"]
    assert kinds.tolist() == ["legal", "code", domains.NONE] * 2
    assert set(data.loc[data["layer"] == 2, "kind"]) == {domains.NONE}  # the layer as a whole is chance
    assert figure.verdict == ("8 of 18 experts surely prefer a domain: 4 legal, 4 code; most in layer 0, 4 experts.")
    said = data[(data["layer"] == 0) & (data["expert"] == 2)]["sentence"].iloc[0]
    assert said == "Layer 0: expert 2 surely prefers no domain."
    scale = figure.chart.to_dict()["layer"][0]["encoding"]["color"]["scale"]
    assert scale["domain"] == ["legal", "code", "poems", domains.NONE]
    drawn(figure.chart)


@pytest.mark.parametrize("order", expert_order.ORDERS)
def test_columns_of_one_layer_have_the_numbers_of_their_experts(order: expert_order.Order) -> None:
    cells = cells_frame(2, 12)
    places = expert_places(load_of_cells(cells), order, cells)
    chart = domains.domain_map(cells, 1, MapView(order), places)
    x = chart.to_dict()["layer"][0]["encoding"]["x"]
    assert x["sort"] == places[places["layer"] == 1].sort_values("place")["expert"].tolist()
    assert x["title"].startswith("expert of layer 1")
    assert set(map(str, range(12))) <= set(texts(drawn(chart)))


def test_the_outline_finds_its_expert_in_every_order() -> None:
    frame = metrics.expert_load(make_trace())
    balance = metrics.load_balance(make_trace())
    places = expert_places(frame, "load")
    figure = load.load_map_figure(frame, balance, MapView("load"), places)
    outlined = with_outline(figure, 1, 5)
    place = places[(places["layer"] == 1) & (places["expert"] == 5)]["place"].iloc[0]
    assert outlined.chart.layer[-1].data["column"].tolist() == [place]
    part = load.load_map_figure(frame, balance, MapView(layers=(0, 0)))
    assert with_outline(part, 1, 5) is part


@pytest.mark.parametrize(
    ("lift", "written"),
    [
        (0.0, "0"),
        (0.004, "<0.01"),
        (0.6, "0.60"),
        (0.994, "0.99"),
        (0.996, "1.0"),
        (1.0, "1.0"),
        (1.27, "1.3"),
        (14.2, "14"),
    ],
)
def test_ratios_below_each_other_keep_their_digits(lift: float, written: str) -> None:
    assert maps._ratio(lift) == written
