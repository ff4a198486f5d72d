"""What can be no path is refused in one line of sensible length, wherever a path may be named."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from app_support import SOON
from cli_support import Run, assert_one_line
from hypothesis import given
from hypothesis import strategies as st

from app.components.open_other import open_path
from moe_core.errors import MoescopeError, UsageError
from moe_core.files import user_path
from moe_core.inference.kept_files import Said
from moe_core.inference.opening_job import OpeningJob
from moe_core.inference.subjects import OPENED
from moe_core.runs import RunFolder, list_runs

LONG = 1_400
ODD = (
    "x" * 5000, "x" * 5000 + ".parquet", "/".join(["d" * 200] * 100), "~nosuchuser", "~nosuchuser/x.parquet", "a\0b",
    "a\0b.parquet", "loop", "first/x.parquet", "/dev/null", "/dev/zero", "pipe", "pipe.parquet", "folder", "../..", ".",
    "file/x", "a\udcff.parquet", "a\nb", "/dev/null/x", "folder.parquet",
)  # fmt: skip
COMMANDS = (
    ("plots", "--trace", "{}", "--out", "out"),
    ("generate", "--model", "{}", "--prompt", "a"),
    ("trace", "--model", "{}", "--text", "a", "--out", "t.parquet"),
    ("import", "--from", "{}", "--run", "again"),
    ("convert", "--from", "{}", "--to", "c.parquet"),
    ("--quick", "--data", "{}"),
    ("--quick", "--config", "{}"),
    ("--quick", "--init-from", "{}"),
    ("--evaluate", "--run", "{}"),
    ("slim", "--run", "{}"),
)


def refusal(call: Callable[[], object]) -> str | None:
    """What was said against it, or None."""
    try:
        call()
    except MoescopeError as error:
        return str(error)
    return None


def by_path(path: str) -> None:
    """As the box of the dashboard opens it."""
    opened = open_path(path, Said())
    if isinstance(opened, OpeningJob):
        assert opened.wait(SOON)
        if opened.error is not None:
            raise opened.error


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a circle of links, a pipe, a file and folders."""
    work = tmp_path / "some" / "work"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    Path("loop").symlink_to("loop")
    Path("first").symlink_to("second")
    Path("second").symlink_to("first")
    os.mkfifo("pipe")
    os.mkfifo("pipe.parquet")
    Path("file").write_text("x")
    Path("folder").mkdir()
    Path("folder.parquet").mkdir()
    return work


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: ascii(odd)[:30])
@pytest.mark.parametrize("opens", [OPENED.open_file, OPENED.open_model, by_path], ids=lambda opens: opens.__name__)
@pytest.mark.usefixtures("place")
def test_nothing_is_opened_and_one_line_says_why(opens: Callable[[str], object], odd: str) -> None:
    said = refusal(lambda: opens(odd))
    if said is None:
        assert opens == OPENED.open_model, "a model is looked for by its name, when it is needed"
        for opened in OPENED.all():
            OPENED.close(opened.name)
    else:
        assert "\n" not in said
        assert len(said) < LONG


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: ascii(odd)[:30])
def test_a_command_says_in_one_line_what_it_cannot_use(odd: str, place: Path, cli: Run) -> None:
    for command in COMMANDS:
        code, _, err = cli(place / "runs", *(part.format(odd) for part in command))
        assert code in (1, 2), command
        assert_one_line(err)
        assert len(err) < LONG, command


def test_a_run_whose_name_is_a_circle_of_links_is_refused_and_harms_no_other(own_root: Path) -> None:
    (own_root / "loop").symlink_to("loop")
    (own_root / "there").symlink_to("back")
    (own_root / "back").symlink_to("there")
    for name in ("loop", "there"):
        with pytest.raises(UsageError, match="cannot be used as a path") as caught:
            RunFolder(name, own_root)
        assert "\n" not in str(caught.value)
    assert [run.name for run in list_runs(own_root) if run.error is None] == ["tiny"]


@given(st.text(max_size=300))
def test_any_text_is_a_path_or_is_refused(text: str) -> None:
    assert "\n" not in (refusal(lambda: user_path(text)) or "")
