"""The palettes keep their promises: contrast on both pages, distance between colours, also with colour-blind eyes."""

from __future__ import annotations

import itertools
import tomllib
from pathlib import Path

import numpy as np
import pytest
from colour_support import blend

from moe_core.figures.palette import (
    BAR,
    DARK_PAGE,
    DARK_TEXT,
    DOMAIN_COLOURS,
    EXPERT_COLOURS,
    HEAT,
    LAYER_SHADES,
    LIFT_COLOURS,
    LIFT_STOPS,
    LIFT_WHITE_ABOVE,
    LIFT_WHITE_BELOW,
    LIGHT_PAGE,
    LIGHT_TEXT,
    NEUTRAL,
    RUN_COLOURS,
    SPLIT_COLOURS,
    TOKEN_STRENGTH,
    contrast_ratio,
    domain_colour,
    expert_colour,
    ink_on,
    run_colours,
)

CONFIG = Path(__file__).resolve().parent.parent / "app" / ".streamlit" / "config.toml"

# Machado, Oliveira and Fernandes 2009, severity 1.0, for linear RGB.
VISION = {
    "typical": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
LAYERS = (*LAYER_SHADES, blend(*LAYER_SHADES, 0.5))
ALL = (*EXPERT_COLOURS, *DOMAIN_COLOURS, *SPLIT_COLOURS.values(), *RUN_COLOURS, *LAYERS, BAR, HEAT, NEUTRAL)
PAGES = ((LIGHT_PAGE, LIGHT_TEXT), (DARK_PAGE, DARK_TEXT))


def oklab(colours: tuple[str, ...], vision: str = "typical") -> np.ndarray:
    """OKLab (Ottosson 2020) times 100 of "#rrggbb" as seen with `vision`; a distance of 2 is just noticeable."""
    srgb = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in colours])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.asarray(VISION[vision]).T, 0, 1)
    cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    opponent = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return 100 * np.cbrt(seen @ cones.T) @ opponent.T


def closest(first: np.ndarray, second: np.ndarray | None = None) -> float:
    distances = np.linalg.norm(first[:, None] - (first if second is None else second)[None], axis=-1)
    if second is None:
        distances[np.diag_indices(len(first))] = np.inf
    return float(distances.min())


def test_oklab_of_known_colours() -> None:
    assert oklab(("#ffffff",))[0] == pytest.approx([100, 0, 0], abs=0.01)
    assert oklab(("#ff0000",))[0] == pytest.approx([62.80, 22.49, 12.58], abs=0.02)
    # A grey stays the same grey for everyone: the rows of the matrices sum to 1.
    for vision in VISION:
        assert oklab(("#777777",), vision)[0] == pytest.approx(oklab(("#777777",))[0], abs=0.05)


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("palette", [EXPERT_COLOURS, DOMAIN_COLOURS, RUN_COLOURS, tuple(SPLIT_COLOURS.values())])
def test_colours_of_a_palette_stay_apart(palette: tuple[str, ...], vision: str) -> None:
    assert closest(oklab(palette, vision)) > (13 if vision == "typical" else 7)


def test_a_domain_is_not_taken_for_an_expert() -> None:
    assert closest(oklab(DOMAIN_COLOURS), oklab(EXPERT_COLOURS)) > 7
    assert closest(oklab(tuple(SPLIT_COLOURS.values())), oklab((*EXPERT_COLOURS, *DOMAIN_COLOURS))) > 7
    known = (*EXPERT_COLOURS, *DOMAIN_COLOURS, *SPLIT_COLOURS.values())
    assert closest(oklab(RUN_COLOURS), oklab(known)) > 7
    chroma = [np.hypot(*lab[1:]) for lab in (*oklab(DOMAIN_COLOURS), *oklab(EXPERT_COLOURS))]
    assert max(chroma[: len(DOMAIN_COLOURS)]) < np.median(chroma[len(DOMAIN_COLOURS) :])


@pytest.mark.parametrize("colour", ALL)
def test_every_colour_shows_on_both_pages(colour: str) -> None:
    assert contrast_ratio(colour, LIGHT_PAGE) >= 3
    assert contrast_ratio(colour, DARK_PAGE) >= 3
    assert contrast_ratio(colour, ink_on(colour)) >= 4.5


@pytest.mark.parametrize(("page", "text"), PAGES)
def test_text_on_a_token_stays_readable(page: str, text: str) -> None:
    for colour in (*EXPERT_COLOURS, *DOMAIN_COLOURS, HEAT, NEUTRAL):
        for strength in (0.1, 0.3, TOKEN_STRENGTH):
            assert contrast_ratio(text, blend(colour, page, strength)) >= 4.5, colour


@pytest.mark.parametrize(("page", "text"), PAGES)
def test_figures_in_a_lift_map_stay_readable(page: str, text: str) -> None:
    stops = [[float(x) for x in colour[5:-1].split(",")] for colour in LIFT_COLOURS]
    for log2_lift in np.linspace(-2, 2, 81):
        rgba = [np.interp(log2_lift, np.log2(LIFT_STOPS), [stop[i] for stop in stops]) for i in range(4)]
        solid = "#" + "".join(f"{round(value):02x}" for value in rgba[:3])
        ink = text if LIFT_WHITE_BELOW <= log2_lift <= LIFT_WHITE_ABOVE else "#ffffff"
        assert contrast_ratio(ink, blend(solid, page, rgba[3])) >= 3.6, log2_lift


@pytest.mark.parametrize("vision", VISION)
def test_more_and_less_than_chance_are_never_mixed_up(vision: str) -> None:
    ends = tuple(
        "#" + "".join(f"{int(x):02x}" for x in c[5:-1].split(",")[:3]) for c in (LIFT_COLOURS[0], LIFT_COLOURS[-1])
    )
    assert closest(oklab(ends, vision)) > 10


def test_contrast_of_known_pairs() -> None:
    assert contrast_ratio("#000000", "#ffffff") == pytest.approx(21)
    assert contrast_ratio("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
    assert blend("#ff0000", "#ffffff", 0.5) == "#ff8080"
    assert blend("#123456", "#ffffff", 0) == "#ffffff"


def test_colours_are_stable_and_repeat() -> None:
    assert [expert_colour(i) for i in range(10)] == list(EXPERT_COLOURS)
    assert expert_colour(257) == expert_colour(7)
    domains = [f"d{i}" for i in range(8)]
    assert domain_colour("d0", domains) == domain_colour("d6", domains) == DOMAIN_COLOURS[0]
    assert domain_colour("no such", domains) == NEUTRAL
    assert len({expert_colour(a) for a, _ in itertools.product(range(10), range(2))}) == 10


@pytest.mark.parametrize(("theme", "page", "text"), [("light", LIGHT_PAGE, LIGHT_TEXT), ("dark", DARK_PAGE, DARK_TEXT)])
def test_captions_and_what_is_chosen_can_be_read_in_both_themes(theme: str, page: str, text: str) -> None:
    settings = tomllib.loads(CONFIG.read_text(encoding="utf-8"))["theme"][theme]
    assert (settings["backgroundColor"], settings["textColor"]) == (page, text)
    for back in (page, settings["secondaryBackgroundColor"], settings["sidebar"]["backgroundColor"]):
        assert contrast_ratio(blend(text, back, 0.6), back) >= 4.5, "Streamlit writes captions with 60 % of the ink"
    primary = settings["primaryColor"]
    assert contrast_ratio(primary, blend(primary, page, 0.1)) >= 4.5, "a chosen segment"
    assert contrast_ratio(primary, page) >= 4.5, "the page's colour on a button, and the other way round"
    assert contrast_ratio(primary, "#ffffff") >= 3, "the tick of a chosen box"


def test_a_run_keeps_its_colour_whatever_is_drawn_beside_it() -> None:
    names = [f"run-{i}" for i in range(len(RUN_COLOURS))]
    alone = {name: run_colours([name])[name] for name in names}
    together = run_colours(names)
    assert len(set(together.values())) == len(names)
    for count in range(1, len(names)):
        assert run_colours(names[:count]).items() <= together.items()  # one more changes no colour
    assert len(set(alone.values())) > 1
    assert together[names[0]] == alone[names[0]]
