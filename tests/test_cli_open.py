"""`open`: what a file is and what it can answer, for people and for machines; and `plots` of any such file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from moe_core.routing import RoutingCounts
from tests.cli_support import Run, assert_one_line
from tests.routing_support import random_trace


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    trace = random_trace(0)
    trace.save(tmp_path / "x.parquet")
    trace.counts(extras=("pairs",)).save(tmp_path / "x.counts.parquet")
    RoutingCounts.from_arrays(np.full((2, 4), 5), notes=["an approximation"], source="an engine").save(
        tmp_path / "choices.parquet"
    )
    np.save(tmp_path / "array.npy", np.stack([np.arange(12) % 5, np.arange(1, 13) % 5], axis=1)[:, None])
    return {name: tmp_path / f"{name}" for name in ("x.parquet", "x.counts.parquet", "choices.parquet", "array.npy")}


@pytest.mark.parametrize(
    ("name", "holds", "format"),
    [("x.parquet", "tokens", "trace"), ("x.counts.parquet", "counts", "counts"), ("array.npy", "tokens", "array")],
)
def test_a_file_of_any_kind_is_opened(
    cli: Run, tmp_path: Path, files: dict[str, Path], name: str, holds: str, format: str
) -> None:
    code, out, _ = cli(tmp_path, "open", str(files[name]), "--json")
    assert code == 0
    told = json.loads(out)
    assert (told["holds"], told["format"]) == (holds, format)
    assert told["health"].endswith(".")
    assert told["extras"] == (["pairs"] if format == "counts" else [])
    answers = {question["measure"]: question["answer"] for question in told["questions"]}
    assert ("no weights were recorded: every score is 1/2" in told["notes"]) == (format == "array")
    assert answers["expert_load"] == "yes"
    assert answers["persistence"] == ("yes" if holds == "tokens" else "no")


def test_counts_of_choices_in_words(cli: Run, files: dict[str, Path], tmp_path: Path) -> None:
    code, out, _ = cli(tmp_path, "open", str(files["choices.parquet"]))
    assert code == 0
    assert "2 MoE layers of 4 experts. 20 choices." in out
    assert "Note: an approximation." in out
    assert "Further sums" not in out
    assert "cannot be told" in out
    (line,) = [line for line in out.splitlines() if line.startswith("Is the work shared evenly")]
    assert line.endswith("as counted   sources or steps that are told apart")


def test_plots_draw_counts_and_recordings(cli: Run, files: dict[str, Path], tmp_path: Path) -> None:
    for name, figure in (("x.counts.parquet", "expert_load_map.csv"), ("array.npy", "persistence.csv")):
        folder = tmp_path / f"{name}.plots"
        code, _, err = cli(tmp_path, "plots", "--trace", str(files[name]), "--out", str(folder), "--format", "csv")
        assert code == 0, err
        assert (folder / figure).is_file()


@pytest.mark.parametrize("content", [b"", b"hello", b"PAR1PAR1", b"{", b"\x00" * 64])
def test_what_is_no_routing_is_one_line(cli: Run, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.bin"
    path.write_bytes(content)
    code, _, err = cli(tmp_path, "open", str(path))
    assert code == 1
    assert_one_line(err, "odd.bin")


def test_an_empty_file_is_said_to_be_empty(cli: Run, tmp_path: Path) -> None:
    (tmp_path / "x.pt").touch()
    code, _, err = cli(tmp_path, "open", str(tmp_path / "x.pt"))
    assert code == 1
    assert_one_line(err, "x.pt", "is empty")


def test_a_missing_file_is_one_line(cli: Run, tmp_path: Path) -> None:
    code, _, err = cli(tmp_path, "open", str(tmp_path / "none.parquet"))
    assert code == 1
    assert_one_line(err, "none.parquet")
