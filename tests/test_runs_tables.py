"""The tables under a run's analysis/: no change goes unnoticed, and none is taken for another's."""

from __future__ import annotations

import random
import shutil
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moe_core.errors import RunError
from moe_core.runs import RunFolder
from moe_core.runs.analysis import (
    EFFECT_COLUMNS,
    HELD_OUT_TEXT,
    AblationJournal,
    AnalysisOf,
    Table,
    read_table,
    write_table,
)

OLD = Path(__file__).parent / "fixtures" / "old" / "runs"
TABLES: tuple[Table, ...] = ("saliency", "similarity", "importance", "correlations")


def identity(checkpoint: str = "a", mode: str = "") -> AnalysisOf:
    return AnalysisOf(checkpoint, 40, HELD_OUT_TEXT, "text", 100, mode)


def keep_analysis(run: RunFolder, checkpoint: str = "a", mode: str = "zero") -> None:
    """The journal of one expert, and the four tables of an old run."""
    row = dict.fromkeys(EFFECT_COLUMNS, 0.5) | {"layer": 0, "expert": 0, "domain": "x", "tokens": 5, "affected": 2}
    AblationJournal(run, identity(checkpoint, mode)).append([row])
    for name in TABLES:
        frame = read_table(RunFolder("old", OLD), name)
        assert frame is not None
        of_mode = mode if name in ("importance", "correlations") else ""
        write_table(run, name, frame, identity(checkpoint, of_mode))


@pytest.fixture
def run(own_root: Path) -> RunFolder:
    run = RunFolder("tiny", own_root)
    keep_analysis(run)
    return run


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_read_as_it_was_written(name: Table, run: RunFolder) -> None:
    frame, old = read_table(run, name), read_table(RunFolder("old", OLD), name)
    assert frame is not None
    pd.testing.assert_frame_equal(frame, old, check_flags=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", TABLES)
def test_no_flipped_bit_of_a_table_goes_unnoticed(name: Table, run: RunFolder) -> None:
    path, chance = run.path / "analysis" / f"{name}.parquet", random.Random(14)
    whole = path.read_bytes()
    places = [*range(len(whole) - 900, len(whole)), *(chance.randrange(len(whole)) for _ in range(100))]
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= 1 << chance.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(RunError, match=r"is damaged; delete it|made for another"):
            read_table(run, name)


@pytest.mark.parametrize(("there", "taken"), list(permutations(TABLES, 2)))
def test_a_table_in_the_place_of_another_is_told_apart(there: Table, taken: Table, run: RunFolder) -> None:
    for source in (run.path, OLD / "old"):
        shutil.copy(source / "analysis" / f"{taken}.parquet", run.path / "analysis" / "kept")
        (run.path / "analysis" / "kept").replace(run.path / "analysis" / f"{there}.parquet")
        with pytest.raises(RunError, match=r"is damaged; delete it|made for another run, table or mode"):
            read_table(run, there)
        keep_analysis(run)


def test_a_table_of_another_run_or_mode_is_told_apart(run: RunFolder) -> None:
    other = RunFolder("other", run.root)
    shutil.copytree(run.path, other.path)
    shutil.rmtree(other.path / "analysis")
    keep_analysis(other, "b")
    folder = run.path / "analysis"
    for name in TABLES:
        shutil.copy(other.path / "analysis" / f"{name}.parquet", folder)
        with pytest.raises(RunError, match="another run"):
            read_table(run, name)
    keep_analysis(run, mode="mean")
    shutil.copy(folder / "importance_mean.parquet", folder / "importance.parquet")
    with pytest.raises(RunError, match="another run, table or mode"):
        read_table(run, "importance")


@pytest.mark.parametrize("name", TABLES)
def test_an_old_table_of_other_columns_is_refused(name: Table, run: RunFolder) -> None:
    path = run.path / "analysis" / f"{name}.parquet"
    kept = pq.read_table(OLD / "old" / "analysis" / path.name)
    for place, column in enumerate(kept.column_names):
        texts = pa.array([["x"]] * len(kept))
        for table in (
            kept.drop_columns([column]),
            kept.set_column(place, column, texts),
            kept.append_column(column, texts),
        ):
            pq.write_table(table, path)
            with pytest.raises(RunError, match="is damaged; delete it"):
                read_table(run, name)


def test_huge_and_strange_metadata_of_a_table_is_refused(run: RunFolder) -> None:
    path = run.path / "analysis" / "saliency.parquet"
    kept = pq.read_table(OLD / "old" / "analysis" / path.name)
    for said in (b"", b"null", b"[1]", b"{}", b"NaN", b"[" * 100_000, b'{"step": 1e300}', b"\xff", b'"x"'):
        pq.write_table(kept.replace_schema_metadata({b"moescope.analysis": said}), path)
        with pytest.raises(RunError, match="is damaged; delete it"):
            read_table(run, "saliency")
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(RunError, match="is damaged; delete it"):
        read_table(run, "saliency")
