"""The table of formats of recordings: light, whole, and all that a new format needs besides its reader."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_core.errors import TraceError
from moe_core.recording_formats import ANSWER_KINDS, FILE_KINDS, FORMAT_NAMES, RECORDING_FORMATS, RecordingFormat
from moe_core.routing import recordings
from moe_core.routing.recordings import detection, responses
from moe_core.routing.recordings.rank_files import rank_files
from moe_core.routing.recordings.vllm import answer_texts

CONVERSION = sys.modules[recordings.read.__module__]
EXPERTS_TLK = np.array([[[0, 1]], [[1, 2]], [[2, 3]]])


def test_the_table_imports_nothing_heavy() -> None:
    heavy = "('numpy', 'pyarrow', 'torch')"
    program = f"import sys, moe_core.recording_formats; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_format_has_the_reader_that_its_kinds_need() -> None:
    assert len(set(FORMAT_NAMES)) == len(FORMAT_NAMES)
    for one in RECORDING_FORMATS:
        assert set(one.file_kinds) <= set(FILE_KINDS)
        reader = importlib.import_module(one.reader)
        of_files = ("open_counts",) if one.holds == "counts" else ("open_recording",)
        needed = ("is_answer", "answer_texts") if one.file_kinds == ANSWER_KINDS else of_files
        assert all(callable(getattr(reader, name, None)) for name in needed), one.name


def test_no_reader_imports_what_opens_it() -> None:
    """The table names readers in strings, which the test of circles does not see."""
    for one in RECORDING_FORMATS:
        tree = ast.parse(Path(str(importlib.import_module(one.reader).__file__)).read_text(encoding="utf-8"))
        modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not modules & {CONVERSION.__name__, responses.__name__, "moe_core.routing.recordings"}, one.name


def new_reader(monkeypatch: pytest.MonkeyPatch, one: RecordingFormat, **functions: Any) -> None:
    """What a contributor adds: the module, and the line of the table."""
    module = types.ModuleType(one.reader)
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, one.reader, module)
    monkeypatch.setattr(detection, "RECORDING_FORMATS", (*RECORDING_FORMATS, one))
    monkeypatch.setattr(detection, "FORMAT_NAMES", (*FORMAT_NAMES, one.name))
    monkeypatch.setattr(responses, "ANSWER_FORMATS", [*responses.ANSWER_FORMATS, one])


@pytest.mark.parametrize("asked", ["auto", "other"])
def test_a_new_servers_answers_need_a_reader_and_a_line(
    asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_reader(
        monkeypatch,
        RecordingFormat("other", "Other routing", ANSWER_KINDS, "other_reader", "Other (other_routing)"),
        is_answer=lambda record: "other_routing" in record,
        answer_texts=lambda record, *rest: answer_texts({"routed_experts": record["other_routing"]}, *rest),
    )
    path = tmp_path / "answer.json"
    path.write_text(json.dumps({"other_routing": EXPERTS_TLK.tolist()}))
    found = recordings.convert(path, tmp_path / "x.parquet", format=asked)
    assert (found.format, found.tokens, found.top_k) == ("other", 3, 2)
    with pytest.raises(TraceError, match=r"holds answers of Other \(other_routing\); say --format other"):
        recordings.read(path, format="vllm")


def test_a_new_kind_of_text_needs_a_reader_and_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = tmp_path / "r.npy"
    np.save(saved, EXPERTS_TLK)
    opened: list[Path] = []

    def open_recording(path: Path, options: Any) -> Any:
        opened.append(path)
        return CONVERSION.open_recording(saved, "auto", options)

    one = RecordingFormat("log", "A log", ("text",), "log_reader")
    new_reader(monkeypatch, one, open_recording=open_recording)
    path = tmp_path / "experts.log"
    path.write_text("token 0: 0 1\n")
    assert recordings.read(path, format="log").num_tokens == 3
    assert opened == [path]


def test_files_of_ranks_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("rank10.jsonl", "rank2.jsonl", "rank2.bin"):
        (tmp_path / name).write_text("{}")
    by_rank = [tmp_path / "rank2.jsonl", tmp_path / "rank10.jsonl"]
    assert rank_files(tmp_path, "rank*.jsonl") == by_rank
    assert rank_files(tmp_path / "*.jsonl", "") == by_rank
    assert rank_files(tmp_path / "rank2.bin", "rank*.jsonl") == [tmp_path / "rank2.bin"]
    with pytest.raises(TraceError, match=r"no file 'layer\*' in the folder"):
        rank_files(tmp_path, "layer*")
    with pytest.raises(TraceError, match=r"no file at .*missing"):
        rank_files(tmp_path / "missing*", "")


def test_of_one_kind_of_file_the_reader_that_recognizes_the_content_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = RecordingFormat("other", "Other", ("json",), "other_reader", side_by_side="other*.jsonl")
    saved = tmp_path / "r.npy"
    np.save(saved, EXPERTS_TLK)
    new_reader(
        monkeypatch,
        one,
        is_recording=lambda path: "other" in path.read_text(),
        open_recording=lambda path, options: CONVERSION.open_recording(saved, "auto", options),  # noqa: ARG005
    )
    (tmp_path / "other1.jsonl").write_text('{"other": 1}')
    (tmp_path / "answer.json").write_text(json.dumps({"routed_experts": EXPERTS_TLK.tolist()}))
    for path in (tmp_path, tmp_path / "other*.jsonl", tmp_path / "other1.jsonl"):
        assert detection.format_at(path, "auto") == (one, "json")
        assert recordings.read(path).num_tokens == 3
    assert detection.format_at(tmp_path / "answer.json", "auto") == (None, "json")
    with pytest.raises(TraceError, match="stands for several files; expected one"):
        detection.format_at(tmp_path / "answer*", "auto")
    (tmp_path / "other1.jsonl").unlink()
    with pytest.raises(TraceError, match=r"no recording in the folder .* files of ranks: .*other\*\.jsonl"):
        detection.format_at(tmp_path, "auto")
