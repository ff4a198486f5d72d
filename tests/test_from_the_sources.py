"""docs/from-the-sources.md: every promise has a place and a test. tests/test_documents.py parses its commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from moe_core.config.serve import CONDOR_VARIABLES

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "from-the-sources.md").read_text(encoding="utf-8")
# Tables of promises; the tables of keys are held by the tests of what reads them.
TABLES = re.findall(r"^\| promise \|.*\n\|---.*\n((?:\| .*\n)+)", PAGE, re.MULTILINE)
ROWS = [[cell.strip() for cell in line.strip("|").split(" | ")] for table in TABLES for line in table.splitlines()]


def test_the_tables_are_found() -> None:
    assert len(ROWS) > 40
    assert PAGE.count("| promise | here | held by |") == len(re.findall("^## ", PAGE, re.MULTILINE))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_each_promise_has_a_place_and_a_test_that_exists(row: list[str]) -> None:
    promise, here, held_by = row
    assert promise
    assert here
    tests = held_by.split(", ")
    for name in tests:
        assert re.fullmatch(r"tests/([\w/]+/)?test_\w+\.py", name), name
        assert (ROOT / name).is_file(), name


def test_every_variable_of_condor_is_in_it() -> None:
    named = set(re.findall(r"CONDOR_[A-Z_]+", PAGE))
    assert named == set(CONDOR_VARIABLES)
