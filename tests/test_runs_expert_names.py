"""Names of experts: what may be one, where they are kept, and that none is lost."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from moe_core.errors import RunError, UsageError
from moe_core.inference import named_experts
from moe_core.inference.named_experts import name_expert, names_path
from moe_core.inference.subjects import ForeignModel, RoutingFile
from moe_core.runs import RunFolder
from moe_core.runs.expert_names import MOST_CHARACTERS, NO_NAMES, checked_name, read_names, write_name
from moe_core.runs.places import RunPlace


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESCOPE_CACHE", str(tmp_path / "cache"))


def test_a_name_is_one_short_line_of_text_that_can_be_seen() -> None:
    assert checked_name("  currency \n amounts ") == "currency amounts"
    assert checked_name("<b>$x$ `code`</b> 你好") == "<b>$x$ `code`</b> 你好"
    with pytest.raises(UsageError, match=r"U\+202E"):
        checked_name("a\u202eb")
    with pytest.raises(UsageError, match=r"U\+0000"):
        checked_name("a\x00b")
    with pytest.raises(UsageError, match=f"has 41 characters; expected at most {MOST_CHARACTERS}"):
        checked_name("x" * 41)


def test_names_are_kept_changed_and_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    assert read_names(path) == (NO_NAMES, "")
    write_name(path, 2, 3, "currency amounts")
    write_name(path, 0, 1, "verbs")
    write_name(path, 2, 3, "amounts")
    names, wrong = read_names(path)
    assert wrong == ""
    assert names.by_expert == {(0, 1): "verbs", (2, 3): "amounts"}
    assert names.by_layer == {0: {1: "verbs"}, 2: {3: "amounts"}}
    assert (names.label(2, 3), names.label(2, 4)) == ("3 · amounts", "4")
    assert write_name(path, 0, 1, " ").by_expert == {(2, 3): "amounts"}
    with pytest.raises(UsageError):
        write_name(path, 0, 1, "\u200b")
    assert read_names(path)[0].by_expert == {(2, 3): "amounts"}


def test_names_given_at_once_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    begin = threading.Barrier(8)

    def give(expert: int) -> None:
        begin.wait()
        write_name(path, 0, expert, f"expert {expert}")

    threads = [threading.Thread(target=give, args=(expert,)) for expert in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_names(path)[0].by_layer == {0: {expert: f"expert {expert}" for expert in range(8)}}


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b'{"experts": [{"layer": 0, "expert": 1, "name": "a\\u202eb"}]}',
        b'{"experts": [{"layer": 0, "expert": -1, "name": "a"}]}',
        b'{"experts": [{"layer": 0, "expert": 1, "name": ""}]}',
    ],
)
def test_a_damaged_file_is_named_left_out_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "names.json"
    path.write_bytes(content)
    names, wrong = read_names(path)
    assert names == NO_NAMES
    assert str(path) in wrong
    assert write_name(path, 1, 1, "new").by_expert == {(1, 1): "new"}
    assert (tmp_path / "names.damaged-1.json").read_bytes() == content


def test_a_changed_file_is_noticed_and_one_written_by_hand_is_read(tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    write_name(path, 0, 1, "verbs")
    path.write_bytes(path.read_bytes().replace(b"verbs", b"nouns"))
    assert "was changed after it was written" in read_names(path)[1]
    path.write_text(json.dumps({"experts": [{"layer": 0, "expert": 1, "name": "by hand"}]}))
    assert read_names(path)[0].name(0, 1) == "by hand"


def test_names_lie_with_the_run_beside_a_file_or_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = tmp_path / "text.parquet"
    trace.write_bytes(b"PAR1 some routing")
    file = RoutingFile("trace text.parquet", trace)
    assert names_path(file) == tmp_path / "text.parquet.expert_names.json"
    recording = RoutingFile("counts x.gguf", tmp_path / "kept.parquet", "counts", "GGUF", tmp_path / "x.gguf")
    assert names_path(recording) == tmp_path / "x.gguf.expert_names.json"
    assert name_expert(file, 0, 1, "verbs") == read_names(names_path(file))[0]
    model = ForeignModel("model mixtral", "someone/mixtral")
    assert names_path(model).is_relative_to(tmp_path / "cache")
    can_write = os.access
    monkeypatch.setattr(named_experts.os, "access", lambda path, mode: path != tmp_path and can_write(path, mode))
    assert names_path(file) == tmp_path / "text.parquet.expert_names.json", "names that are there are read"
    names_path(file).unlink()
    kept = names_path(file)
    assert kept.is_relative_to(tmp_path / "cache")
    copy = tmp_path / "copy.parquet"
    copy.write_bytes(trace.read_bytes())
    assert names_path(RoutingFile("trace copy.parquet", copy)) == kept, "the same routing has the same names"
    copy.write_bytes(b"PAR1 other routing")
    assert names_path(RoutingFile("trace copy.parquet", copy)) != kept


def test_a_run_that_is_gone_gets_no_names(tmp_path: Path) -> None:
    with pytest.raises(RunError):
        name_expert(RunFolder("gone", tmp_path / "runs"), 0, 0, "verbs")
    assert not (tmp_path / "runs" / "gone").exists()
    shipped = RunFolder("given", tmp_path / "runs")
    (tmp_path / "shipped" / "given").mkdir(parents=True)
    shipped.place = RunPlace(shipped.path, tmp_path / "shipped" / "given")
    assert name_expert(shipped, 0, 0, "verbs").name(0, 0) == "verbs"
    assert (tmp_path / "runs" / "given" / "expert_names.json").is_file()
    assert shipped.is_shipped()
