"""Damage to one run is that run's alone: one line names the file, no bit flips unnoticed, and the others are listed."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_core.errors import MoescopeError
from moe_core.runs import RunFolder, list_runs
from moe_core.runs.metric_log import parse_log
from moe_core.runs.record import read_run

FILES = ("config.json", "status.json", "metrics.jsonl", "corpus.json", "held_out.parquet", "probes/step_000020.parquet")
CONTENTS = (
    b"", b"null\n", b"[1]\n", b"{}\n", b"NaN\n", b"[" * 200_000, random.Random(0).randbytes(5000),
    b'{"state": "weird"}', b'{"state": "running", "updated_at": 1e300}', b'{"kind": "train"}\n',
    b'{"domains": 1, "token_counts": "x"}',
)  # fmt: skip
SPECIAL: dict[str, Callable[[Path], object]] = {
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
    "circle of links": lambda path: path.symlink_to(path.name),
    "gigabyte": lambda path: (path.touch(), os.truncate(path, 10**9)),
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


def refusal(root: Path) -> str | None:
    """Read all of the run "tiny"; what was said against it, or None."""
    run = RunFolder("tiny", root)
    try:
        record = read_run(run)
        run.held_out("unseen")
        run.token_counts()
    except MoescopeError as error:
        return str(error)
    return " ".join(record.notes) or None


def check_alone(root: Path) -> None:
    said = refusal(root)
    assert said is None or "\n" not in said
    runs = {run.name: run for run in list_runs(root)}
    assert set(runs) == {"good", "tiny"}
    assert runs["good"].error is None
    assert runs["good"].state == "finished"


@pytest.fixture
def root(own_root: Path) -> Path:
    shutil.copytree(own_root / "tiny", own_root / "good")
    return own_root


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_other_content_harms_its_run_alone(name: str, root: Path) -> None:
    for content in CONTENTS:
        (root / "tiny" / name).write_bytes(content)
        check_alone(root)


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_ordinary_file_is_never_waited_for(name: str, kind: str, root: Path) -> None:
    (root / "tiny" / name).unlink()
    SPECIAL[kind](root / "tiny" / name)
    check_alone(root)


@pytest.mark.parametrize("name", FILES[:5])
def test_no_flipped_bit_goes_unnoticed(name: str, root: Path) -> None:
    path, chance = root / "tiny" / name, random.Random(14)
    whole = path.read_bytes()
    assert refusal(root) is None
    for _ in range(8):
        changed = bytearray(whole)
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
        path.write_bytes(changed)
        assert refusal(root) is not None


@given(st.lists(st.dictionaries(st.sampled_from(["kind", "step", "loss", "split", "layer"]), JSON), max_size=4))
def test_any_json_is_a_line_or_is_counted(trees: list[dict[str, object]]) -> None:
    import json

    log = parse_log("".join(json.dumps(tree) + "\n" for tree in trees).encode())
    assert len(log.lines) + log.bad == len(trees)
