"""Every figure is drawn from real frames, says what the frame says, and survives hostile token text."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise

import altair as alt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_core.errors import UsageError
from moe_core.figures import domains, load, maps, tokens
from moe_core.figures.labels import spread
from moe_core.figures.layout import TITLE_CHARACTERS
from moe_core.figures.load import entropy_figure, loads_over_time
from moe_core.figures.measures import chance_bars, chance_figure
from moe_core.figures.palette import EXPERT_COLOURS, expert_colour
from moe_core.figures.run_curves import CURVE_POINTS, curve_table, loss_of_run_figure
from moe_core.figures.run_figures import sections_of_trace, spaced
from moe_core.figures.tokens import token_map_figure, token_path_figure
from moe_core.routing import RoutingTrace, baselines, metrics
from moe_core.routing.measures.registry import DOMAIN_NMI
from moe_core.runs.curves import RunCurves

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    ":red[x]",
    "$x$",
    "</script><script>alert(1)</script>",
    "\n",
    "\\xE2",
    "=1+1",
]


def make_trace(layers: int = 2, experts: int = 8, top_k: int = 2, seed: int = 0) -> RoutingTrace:
    rng = np.random.default_rng(seed)
    documents, length, names = 24, 30, ["finance", "legal"]
    T = documents * length
    document_ids = np.repeat(np.arange(documents), length)
    domain_ids = document_ids % 2
    logits = rng.normal(size=(layers, T, experts)) + 1.5 * rng.normal(size=(layers, 2, experts))[:, domain_ids]
    indices = np.argsort(-logits, axis=2)[..., :top_k]
    scores = np.exp(np.take_along_axis(logits, indices, 2))
    return RoutingTrace.from_arrays(
        router_indices=indices,
        router_scores=scores / scores.sum(2, keepdims=True),
        router_logits=logits,
        num_experts=experts,
        token_ids=np.arange(T) % len(HOSTILE),
        document_ids=document_ids,
        domain_ids=domain_ids,
        domains=names,
        vocabulary=dict(enumerate(HOSTILE)),
    )


@pytest.fixture(scope="module")
def trace() -> RoutingTrace:
    return make_trace()


def drawn(chart: alt.LayerChart) -> str:
    """The chart as SVG: Vega has parsed the specification, its data and every expression."""
    from moe_core.figures.picture_files import chart_bytes

    return chart_bytes(chart, "svg").decode()


SCALE = ("0.5", "1", "2")
"""What the scale of lifts itself says."""


def texts(svg: str) -> list[str]:
    """What is written in a picture, in the order in which it is drawn."""
    return re.findall(r"<text[^>]*>([^<]+)</text>", svg)


def test_load_map_shows_lift_over_the_even_share() -> None:
    frame = pd.DataFrame({"layer": [0, 0], "expert": [0, 1], "tokens": [30, 10], "share": [0.75, 0.25]})
    data = load.expert_load_map(frame).data
    assert list(data["lift"]) == [1.5, 0.5]
    assert list(data["label"]) == ["1.5", "0.50"]
    assert (
        data["sentence"][0] == "Layer 0, expert 0: 75 % of the layer's choices, 1.5 times its even share (30 choices)."
    )
    assert ">1.5<" in drawn(load.expert_load_map(frame))


@pytest.mark.parametrize(("layers", "experts", "shown"), [(4, 8, True), (24, 32, True), (48, 128, False)])
def test_a_map_has_its_numbers_only_where_they_fit(layers: int, experts: int, shown: bool) -> None:
    share = np.random.default_rng(0).dirichlet(np.full(experts, 3.0), layers)
    frame = pd.DataFrame({"layer": np.repeat(range(layers), experts), "expert": np.tile(range(experts), layers),
                          "tokens": 100, "share": share.ravel()})  # fmt: skip
    chart = load.expert_load_map(frame)
    numbers = {maps._ratio(lift) for lift in frame["share"] * experts} - {str(i) for i in range(200)}
    for width, fits in ((240, False), (1300, shown)):
        chart.width = width
        assert bool(numbers.difference(SCALE) & set(texts(drawn(chart)))) == fits, width


def test_lift_maps_share_one_scale(trace: RoutingTrace) -> None:
    frame = baselines.domain_cells(trace, permutations=20)
    scales = [
        json.dumps(chart.to_dict()["layer"][0]["encoding"]["color"]["scale"])
        for chart in (
            domains.domain_map(frame, 0),
            domains.domain_map(frame, 1),
            load.expert_load_map(metrics.expert_load(trace)),
        )
    ]
    assert len(set(scales)) == 1


def test_domain_map_fades_uncertain_cells_and_says_the_interval(trace: RoutingTrace) -> None:
    frame = baselines.domain_cells(trace, permutations=40)
    data = domains.domain_map(frame, 1).data
    expected = frame[frame["layer"] == 1]
    assert list(data["uncertain"]) == list(expected["uncertain"])
    assert data["sentence"].str.contains("95 % interval").all()
    assert data.loc[data["uncertain"], "sentence"].str.contains("uncertain").all()
    assert not data.loc[data["uncertain"], "on_dark"].any()
    with pytest.raises(UsageError, match="layer 7 has no domains"):
        domains.domain_map(frame, 7)


def test_nmi_bars_carry_their_null(trace: RoutingTrace) -> None:
    nmi = baselines.domain_nmi(trace, permutations=50)
    chart = chance_figure(DOMAIN_NMI, nmi).chart
    ticks = [layer for layer in chart.to_dict()["layer"] if layer["mark"]["type"] == "tick"]
    assert [layer["encoding"]["x"]["field"] for layer in ticks] == ["null_p99"]
    assert "by chance at most" in chart.data["sentence"][0]
    drawn(chart)
    one = nmi.assign(nmi=np.nan, null_p99=np.nan, verdict=baselines.ONE_DOMAIN)
    assert chance_figure(DOMAIN_NMI, one).chart.data["sentence"][0] == "Layer 0: cannot be tested: one domain only."


def test_load_over_time_colours_experts_or_the_few_unusual_ones() -> None:
    rng = np.random.default_rng(1)

    def records(experts: int) -> pd.DataFrame:
        shares = rng.dirichlet(np.full(experts, 5.0), size=3)
        return pd.DataFrame({"step": [0, 10, 20], "layer": 0, "expert_load": [list(row) for row in shares]})

    few = loads_over_time(records(4))
    assert list(few.columns) == ["step", "layer", "expert", "share"]
    assert few.groupby("step")["share"].sum().to_numpy() == pytest.approx(1)
    chart = load.expert_load_over_time(few, 0)
    assert chart.data["highlighted"].all()
    assert chart.to_dict()["layer"][1]["encoding"]["color"]["scale"]["range"] == list(EXPERT_COLOURS[:4])
    assert "expert 3" in drawn(chart)
    many = load.expert_load_over_time(loads_over_time(records(40)), 0).data
    assert many.loc[many["highlighted"], "expert"].nunique() == load.HIGHLIGHTED_LINES
    with pytest.raises(UsageError, match="no load of layer 5"):
        load.expert_load_over_time(few, 5)
    assert loads_over_time(pd.DataFrame()).empty


def run_of(points: list[tuple[int, str, float]], unigram: float | None) -> RunCurves:
    frame = pd.DataFrame(points, columns=["step", "split", "value"])
    frame = frame.assign(quantity="loss", tokens=100.0 * frame["step"], seconds=frame["step"] / 10)
    return RunCurves("mine", frame, is_watched=False, unigram_nats=unigram)


def test_loss_curves_average_the_training_loss_and_draw_the_baseline() -> None:
    losses = np.linspace(6, 3, 1000)
    held_out = [(500, "validation", 4.0), (1000, "validation", 3.0), (500, "unseen", 4.5), (1000, "unseen", 3.75)]
    train = [(step, "train", float(loss)) for step, loss in enumerate(losses, 1)]
    figure = loss_of_run_figure(run_of([*train, *held_out], 6.25))
    assert figure is not None
    assert (
        figure.verdict
        == "Loss on unseen text is 3.75 nats per token, 2.50 below guessing by token frequency; lower is better."
    )
    assert figure.frame.columns.tolist() == ["step", "series", "nats"]
    assert len(figure.frame) == 1004
    drawn_points = curve_table([run_of(train, None)], "loss", "step")
    assert len(drawn_points) == CURVE_POINTS
    assert (drawn_points["records"] == 5).all()
    assert drawn_points["value"].mean() == pytest.approx(losses.mean())
    svg = drawn(figure.chart)
    assert "guessing by token frequency 6.25" in svg
    assert "unseen 3.75" in svg
    assert loss_of_run_figure(run_of([], None)) is None


@pytest.mark.parametrize("width", [300, 640, 1000])
def test_names_of_curves_lie_inside_the_picture_and_apart(width: int) -> None:
    """At 640 points "validation 4.78" was cut at the right edge, on a phone half of it; below a low baseline the names
    of two curves ran into each other."""
    places = enumerate(("train", "validation", "unseen"))
    points = [(step, name, 5.6 - step / 25 - place / 50) for place, name in places for step in (0, 10, 20)]
    figure = loss_of_run_figure(run_of(points, 3.45))
    assert figure is not None
    chart = figure.chart
    assert isinstance(chart, alt.LayerChart)
    chart.width = width
    svg = drawn(chart)
    left = float(re.findall(r"translate\(([\d.]+),[\d.]+\)", svg)[0])  # the plot in the picture
    written = re.findall(r"<text[^>]*translate\(([\d.]+),\s?([\d.]+)\)[^>]*>([^<]+)<", svg)
    names = [found for found in written if re.match(r"(train|validation|unseen) \d", found[2])]
    assert [name.split()[0] for *_, name in names] == ["train", "validation", "unseen"]
    assert all(left + float(x) + len(name) * 6.1 <= width for x, _, name in names)
    heights = sorted(float(y) for _, y, _ in names)
    assert min(second - first for first, second in pairwise(heights)) >= 11
    assert [float(x) for x, _, name in written if name.startswith("guessing by")] >= [31 * 5.5]


def test_token_choices_sort_slots_by_weight_and_skip_unused_ones() -> None:
    trace = RoutingTrace.from_arrays(
        router_indices=[[[3, 1], [2, -1], [0, 1]]], router_scores=[[[0.25, 0.75], [1.0, 0.0], [0.5, 0.5]]],
        num_experts=4, token_ids=[5, 6, 7], vocabulary={5: "a", 6: "b", 7: "c"},
    )  # fmt: skip
    frame = tokens.token_choices(trace, 0, 2)
    assert frame.to_dict("list") == {
        "token": [0, 0, 1], "text": ["a", "a", "b"], "layer": [0, 0, 0], "slot": [0, 1, 0],
        "expert": [1, 3, 2], "weight": [0.75, 0.25, 1.0],
    }  # fmt: skip
    assert set(tokens.token_choices(trace, 99, 2)["token"]) == {1, 2}, "the window is moved into the trace"
    with pytest.raises(UsageError, match="count is 0"):
        tokens.token_choices(trace, 0, 0)


@pytest.mark.parametrize(("layers", "experts", "shown"), [(4, 8, True), (48, 128, False)])
def test_the_strip_of_tokens_has_numbers_only_where_they_fit(layers: int, experts: int, shown: bool) -> None:
    """3,072 numbers of three digits stood in cells of 13 by 15 points."""
    rng = np.random.default_rng(0)
    choices = pd.DataFrame({"token": np.tile(range(64), layers), "layer": np.repeat(range(layers), 64), "slot": 0,
                            "text": "a", "weight": 0.5, "expert": rng.integers(0, experts, layers * 64)})  # fmt: skip
    choices.loc[0, "expert"] = experts - 1
    written = texts(drawn(tokens.token_layer_map(choices)))
    assert (len(written) > layers * 64) == shown
    assert len(written) >= layers + 64


def test_token_figures_colour_by_expert_and_show_hostile_text_as_text(trace: RoutingTrace) -> None:
    choices = tokens.token_choices(trace, 10, 20)
    data = tokens.token_layer_map(choices).data
    assert len(data) == 2 * 20
    assert [expert_colour(e) for e in data["expert"]] == list(data["colour"])
    svg = drawn(tokens.token_layer_map(choices))
    assert "<img" not in svg
    assert "<script" not in svg
    path = tokens.token_path(tokens.token_choices(trace, 3, 1))
    assert len(path.data) == 2 * 2
    drawn(path)
    with pytest.raises(UsageError, match="a path is of one token"):
        tokens.token_path(choices)


def test_a_character_of_several_tokens_is_named_in_the_map(trace: RoutingTrace) -> None:
    choices = tokens.token_choices(trace, 10, 3)
    texts = dict(zip(sorted(set(choices["token"])), [r"\xE4\xBD", r"\xA0", r"\xFF"], strict=True))
    data = tokens.token_layer_map(choices.assign(text=choices["token"].map(texts))).data
    assert list(data["sentence"].str.extract("“(.*)”")[0][:3]) == ["你 (E4 BD)", "你 (A0)", r"\xFF"]


def test_an_entropy_of_the_chosen_experts_only_says_so(trace: RoutingTrace) -> None:
    entropy = metrics.router_entropy(trace)
    assert entropy_figure(entropy).verdict.endswith("of the maximum, where all experts are alike.")
    scores = metrics.router_entropy(replace(trace, router_logits=None))
    assert "over the chosen experts only" in entropy_figure(scores).verdict


def test_entropy_chart_says_its_basis(trace: RoutingTrace) -> None:
    chart = load.router_entropy_by_layer(metrics.router_entropy(trace))
    assert chart.data["sentence"].str.contains("over all experts").all()
    drawn(chart)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("the", "the"),
        (" of", " of"),
        ("\n", "↵"),
        ("\t", "⇥"),
        (" ", "␣"),
        ("     ", "5×␣"),
        ("\x00", "␀"),
        ("a\nb", "a↵b"),
    ],
)
def test_white_space_is_made_visible(text: str, shown: str) -> None:
    assert tokens.visible(text) == shown


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=12), st.floats(0.01, 5))
def test_spread_labels_keep_their_order_and_distance(values: list[float], gap: float) -> None:
    placed = spread(values, gap)
    order = sorted(range(len(values)), key=lambda i: values[i])
    assert all(placed[b] - placed[a] >= gap - 1e-9 for a, b in pairwise(order))
    assert spread([0.0, 10.0], 1.0) == [0.0, 10.0]


def test_figures_of_a_trace_have_names_titles_and_verdicts(trace: RoutingTrace) -> None:
    figures = {figure.name: figure for section in sections_of_trace(trace) for figure in section.figures}
    assert set(figures) == {
        *("expert_load_map", "router_entropy", "domain_nmi", "domain_map_layer_0", "domain_map_layer_1"),
        "preferred_domains",
        *("vocabulary", "context_independence", "vocabulary_layer_0", "vocabulary_layer_1"),
        *("coactivation", "coactivation_layer_0", "coactivation_layer_1"),
        *("persistence", "flow", "flow_sankey", "flow_map_layer_0"),
        *("expert_coverage", "expert_cache", "gpu_load"),
    }
    for figure in figures.values():
        assert figure.title
        assert figure.question.endswith("?")
        assert figure.verdict.endswith(".")
        assert len(figure.frame)
        if "svg" in figure.formats:
            drawn(figure.chart)


def test_a_trace_of_one_text_shows_its_tokens_instead_of_domains(trace: RoutingTrace) -> None:
    one = trace.select(trace.document_ids == 0)
    names = {figure.name for section in sections_of_trace(one) for figure in section.figures}
    assert "token_layer_map" in names
    assert "domain_nmi" not in names
    assert "Tokens 0 to 29 of 30" in token_map_figure(one).verdict
    assert token_path_figure(one, 0).verdict.startswith("Token 0 “<img src=x")
    with pytest.raises(UsageError, match="expected 0 to 29"):
        token_path_figure(one, 30)


def test_tokens_of_a_deep_model_are_drawn_in_the_layers_around_the_chosen_one() -> None:
    layers = list(range(1, 97, 2))  # 48 of them
    deep = RoutingTrace.from_arrays(
        router_indices=np.arange(48 * 30 * 2).reshape(48, 30, 2) % 128, router_scores=np.full((48, 30, 2), 0.5),
        num_experts=128, layers=layers, token_ids=np.zeros(30, int),
    )  # fmt: skip
    for layer, first, last in ((1, 1, 23), (41, 29, 51), (95, 73, 95)):
        strip, path = token_map_figure(deep, 0, layer), token_path_figure(deep, 3, layer)
        for figure in (strip, path):
            assert sorted(set(figure.frame["layer"])) == list(range(first, last + 1, 2))
            assert f"(layers {first} to {last} of 48, those around layer {layer})" in figure.verdict
    assert token_map_figure(deep).frame["layer"].nunique() == 48  # a file or a report has no chosen layer
    few = RoutingTrace.from_arrays(
        router_indices=np.zeros((4, 9, 1), int), router_scores=np.ones((4, 9, 1)), num_experts=8,
        token_ids=np.zeros(9, int),
    )  # fmt: skip
    assert token_map_figure(few, 0, 3).frame["layer"].nunique() == 4


def test_layers_of_deep_models_are_spaced_evenly() -> None:
    assert spaced([0, 1, 2]) == [0, 1, 2]
    chosen = spaced(list(range(48)))
    assert len(chosen) == 8
    assert chosen[0] == 0
    assert chosen[-1] == 47


def test_a_long_title_is_wrapped_so_that_a_phone_keeps_room_for_the_plot() -> None:
    """A chart holds its axes: a title wider than the page left a plot of no width at 420 points."""
    frame = pd.DataFrame({"layer": [0, 1], "nmi": 0.2, "null_p99": 0.1, "estimate": 0.15, "low": 0.1, "high": 0.2})
    short, long = (chance_bars(frame, "nmi", title=title, sentences=["a", "b"]) for title in ("x", "long words " * 9))
    titles = [layer["encoding"]["x"].get("title") for layer in long.to_dict()["layer"]]
    lines = next(title for title in titles if isinstance(title, list))
    assert len(lines) > 2
    assert max(len(line) for line in lines) <= TITLE_CHARACTERS
    assert long.to_dict()["height"] > short.to_dict()["height"]
