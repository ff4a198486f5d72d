"""Numbers and words for people: one rounding rule, the same in Python and in the browser's JavaScript."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_core.words import (
    count_of,
    duration,
    fixed,
    layers_named,
    number,
    ordinal,
    parts_of_all,
    percent,
    points,
    sentence,
    short_count,
    signed,
    signed_two_digits,
    two_digits,
)

WORDS_JS = Path(__file__).resolve().parent.parent / "app" / "components" / "words.js"
NODE = shutil.which("node")


def test_numbers_below_each_other_keep_both_digits() -> None:
    """0.6 stood above 0.69, and 0.1 above 0.13."""
    assert [two_digits(x) for x in (0.6, 0.69, 0.1, 0.059, 0.0999, 0.99999, 0.00072)] == [
        *("0.60", "0.69", "0.10", "0.059", "0.10", "1.0", "0.00072"),
    ]
    assert [two_digits(x) for x in (0, 1, 1.25, 12.5, 1234.5)] == ["0", "1.0", "1.3", "13", "1,235"]
    assert [signed_two_digits(x) for x in (0.03, -0.5, 0.0, 2, float("nan"))] == ["+0.030", "−0.50", "0", "+2.0", ""]


@given(st.floats(-1e6, 1e6))
def test_two_digits_say_the_number_that_number_says(value: float) -> None:
    assert float(two_digits(value).replace(",", "")) == float(number(value).replace(",", ""))


def test_a_tie_goes_away_from_zero() -> None:
    assert [percent(x) for x in (0.165, 0.155, 0.0025, 0.0095)] == ["17 %", "16 %", "0.3 %", "1 %"]
    assert [fixed(x, 2) for x in (0.125, -0.125, 1.005)] == ["0.13", "-0.13", "1.00"], (
        "1.005 is a little less than that"
    )
    assert [number(x) for x in (10.5, -10.5, 1.25, 0.125, 0.99999)] == ["11", "-11", "1.3", "0.13", "1"]
    assert number(float("inf")) == "inf"


def test_signs_are_typeset_and_nothing_has_none() -> None:
    assert [signed(x) for x in (0.123, -0.03, 0.0, float("nan"))] == ["+0.12", "−0.03", "0", ""]
    assert [signed(x, 3) for x in (0.0125, -0.03, 0.0)] == ["+0.013", "−0.030", "+0.000"]
    assert [points(x) for x in (-0.031, 0.0001, -0.0001, 0.5, np.nan)] == [
        "−3.1 points", "+0.0 points", "+0.0 points", "+50 points", "unknown",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (130, "2 min 10 s"), (3900, "1 h 05 min"), (-1, "0 s")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_words() -> None:
    assert [count_of(1, "token"), count_of(2000, "token"), count_of(0, "seed")] == [
        "1 token",
        "2,000 tokens",
        "0 seeds",
    ]
    assert [sentence(x) for x in ("it fails", "Why?", " see `x`")] == ["It fails.", "Why?", "See `x`"]
    assert [layers_named([3, 3]), layers_named(range(8))] == ["layer 3", "layers 0, 1, 2, 3 and 4 more"]
    assert [short_count(x) for x in (999, 27_300_000, 999_600)] == ["999", "27.3M", "1000k"]


def test_the_parts_of_all_add_up_to_100() -> None:
    assert parts_of_all([1, 1, 1]) == ["34 %", "33 %", "33 %"]
    assert parts_of_all([165, 165, 670]) == ["17 %", "16 %", "67 %"]
    assert parts_of_all([1, 999, 0]) == ["under 1 %", "100 %", "0 %"]
    assert parts_of_all([1] * 16)[:9] == ["6.3 %"] * 8 + ["6.2 %"]
    assert parts_of_all([0, 0]) == ["0 %", "0 %"]


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=64).filter(any))
def test_each_part_is_its_share_to_a_point(counts: list[int]) -> None:
    parts = [0.0 if part.startswith("under") else float(part.removesuffix(" %")) for part in parts_of_all(counts)]
    assert sum(parts) == pytest.approx(100)
    point = 0.1 if max(counts) < 0.095 * sum(counts) else 1
    for count, part in zip(counts, parts, strict=True):
        assert abs(100 * count / sum(counts) - part) < point + 1e-9


@given(st.floats(-1e25, 1e25))
def test_every_number_is_written(value: float) -> None:
    text = number(value)
    assert "e" not in text
    assert abs(float(text.replace(",", "")) - value) <= max(5e-5, 0.051 * abs(value))


@pytest.mark.skipif(NODE is None, reason="needs node, which runs the browser's functions")
def test_a_share_reads_the_same_in_python_and_in_javascript() -> None:
    generator = np.random.default_rng(0)
    values = [
        *(part / whole for whole in (8, 200, 255, 400, 1000, 1024) for part in range(whole + 1)),
        *generator.random(2000), *generator.normal(0, 3, 2000), *(10.0 ** generator.uniform(-6, 9, 1000)),
        *(part / 8 for part in range(-200, 200)), 0.00005, 0.001, 0.0095, 9.95, 9.96, 999.5, 1234.5, -1234567.5,
    ]  # fmt: skip
    written = in_javascript(list(map(float, values)), "[percent(x), number(x), signed(x)]")
    assert len(written) == len(values) > 7000
    differing = [(x, js) for x, js in zip(values, written, strict=True) if js != [percent(x), number(x), signed(x)]]
    assert differing == []


@pytest.mark.skipif(NODE is None, reason="needs node, which runs the browser's functions")
def test_the_parts_of_all_read_the_same_in_python_and_in_javascript() -> None:
    generator = np.random.default_rng(0)
    lists = [generator.integers(0, most, size).tolist() for most in (2, 3, 20, 900) for size in (1, 4, 8, 16, 128)]
    lists += [generator.multinomial(total, [1 / 8] * 8).tolist() for total in (7, 200, 480, 600) for _ in range(20)]
    assert in_javascript(lists, "partsOfAll(x)") == [parts_of_all(counts) for counts in lists]


def in_javascript(values: list[Any], expression: str) -> list[Any]:
    """`expression` of each value x, by the browser's functions."""
    script = WORDS_JS.read_text(encoding="utf-8") + (
        "const values = JSON.parse(require('fs').readFileSync(0, 'utf-8'));"
        f"console.log(JSON.stringify(values.map((x) => {expression})));"
    )
    done = subprocess.run(
        [str(NODE), "-e", script], input=json.dumps(values), capture_output=True, text=True, check=True
    )
    written: list[Any] = json.loads(done.stdout)
    return written


def test_places_end_as_they_are_spoken() -> None:
    assert [ordinal(n) for n in (1, 2, 3, 4, 11, 12, 13, 21, 113, 122)] == [
        "1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "113th", "122nd",
    ]  # fmt: skip
