"""docs/from-the-sources.md: every promise has a place and a test. tests/test_documents.py parses its commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from moe_core.cli import data, train
from moe_core.config import TrainingConfig
from moe_core.config.parallel import ParallelConfig
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


SETTINGS = re.findall(r"^\| setting there \|.*\n\|---.*\n((?:\| .*\n)+)", PAGE, re.MULTILINE)
"""Blues-01's document names these for memory and speed, in one process."""
NAMED_THERE = (
    "compile_mode", "dtype_policy", "cudnn_benchmark", "gradient_accumulation_steps", "pin_memory",
    "max_cached_batches", "prefetch_factor", "num_workers", "persistent_workers", "amp_bf16", "fp16",
    "activation_checkpointing", "--bf16", "--fp16", "--partition-activations", "--fast-mode", "--gradient-clipping",
    "--profile", "--trace-export", "--memory-profile", "--report-interval", "MemoryManager", "PerformanceTracker",
)  # fmt: skip


SPREAD = re.findall(r"^\| command there \|.*\n\|---.*\n((?:\| .*\n)+)", PAGE, re.MULTILINE)


def test_every_command_of_blues_01_for_data_and_processes_leads_to_one_that_exists() -> None:
    (table,) = SPREAD
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]
    there, here = (" ".join(row[column] for row in rows) for column in (0, 1))
    for name in ("data.py", "merge_data.py", "--weights", "--verify", "--zero-stage", "--offload-optimizer",
                 "--tensor-parallel-size", "--pipeline-parallel-size"):  # fmt: skip
        assert name in there, name
    assert set(re.findall(r"--parallel\.(\w+)", here)) <= set(ParallelConfig.model_fields)
    assert set(re.findall(r"data ([a-z]+) ", here)) <= set(data.SUBCOMMANDS)


def test_every_setting_of_blues_01_is_there_and_leads_to_one_that_exists() -> None:
    (table,) = SETTINGS
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]
    there = " ".join(row[0] for row in rows)
    assert [name for name in NAMED_THERE if name not in there] == []
    options = train.parser("").format_help()
    for _, here, _ in rows:
        for option in re.findall(r"--([\w.-]+)", here):
            section, _, key = option.partition(".")
            known = key in TrainingConfig.model_fields if section == "training" else f"--{option}" in options
            assert known, option
