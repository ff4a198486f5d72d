"""Data sets of the datasets library: from a folder, from its cache, and a clear word where neither has it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from moe_core.cli.main import main
from moe_core.data.document import Document
from moe_core.data.hub_datasets import read_dataset
from moe_core.data.shards.shard_reader import ShardFolder
from moe_core.errors import DataError, UsageError

datasets = pytest.importorskip("datasets", reason="needs the extra data")
TEXTS = [f"Speech {number} of the play, and what was said in it.\r\n" for number in range(40)]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def test_a_saved_folder_becomes_shards_and_its_text_lies_beside_them(tmp_path: Path) -> None:
    splits = {"train": TEXTS, "test": ["End.", " "]}
    saved = datasets.DatasetDict({name: datasets.Dataset.from_dict({"Text": texts}) for name, texts in splits.items()})
    saved.save_to_disk(tmp_path / "plays")
    found = list(read_dataset(str(tmp_path / "plays")))
    assert len(found) == 41
    assert found[0] == Document(TEXTS[0].replace("\r\n", "\n"), "plays", "plays:train:1", "train")
    assert found[-1] == Document("End.", "plays", "plays:test:1", "unseen")
    out = tmp_path / "out" / "shards"
    command = ["data", "prepare", "--dataset", str(tmp_path / "plays"), "--out", str(out), "--vocab-size", "300"]
    assert main(command) == 0
    assert len((tmp_path / "out" / "shards.jsonl").read_text().splitlines()) == 41
    assert ShardFolder(out).index.domains == ["plays"]
    assert main(["data", "verify", str(out)]) == 0
    assert main(command) == 2  # the text is there already, and nobody said to go on from it


def test_a_cached_name_is_read_without_a_network_and_tiny_shakespeare_has_one(tmp_path: Path) -> None:
    source = tmp_path / "tiny-shakespeare"
    source.mkdir()
    (source / "train.jsonl").write_text("".join(json.dumps({"Text": text}) + "\n" for text in TEXTS))
    datasets.load_dataset("json", data_files=str(source / "train.jsonl"), cache_dir=str(tmp_path / "made"))
    (made,) = (path.parent for path in (tmp_path / "made").rglob("dataset_info.json"))
    cached = tmp_path / "cache" / "Trelis___tiny-shakespeare" / "default" / "0.0.0" / made.name
    shutil.copytree(made, cached)
    info = json.loads((cached / "dataset_info.json").read_text())
    info |= {"config_name": "default", "dataset_name": "tiny-shakespeare"}
    (cached / "dataset_info.json").write_text(json.dumps(info))
    (cached / "json-train.arrow").rename(cached / "tiny-shakespeare-train.arrow")
    found = list(read_dataset("tiny-shakespeare"))
    assert [document.text for document in found] == [text.replace("\r\n", "\n") for text in TEXTS]
    assert {(document.domain, document.split) for document in found} == {("tiny-shakespeare", "train")}


def test_what_is_not_to_be_had_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=r"'Trelis/tiny-shakespeare' is not on this machine, and the Hub cannot be"):
        list(read_dataset("tiny-shakespeare"))
    datasets.Dataset.from_dict({"content": TEXTS}).save_to_disk(tmp_path / "other")
    with pytest.raises(DataError, match="no Text column in its columns; found 'content'"):
        list(read_dataset(str(tmp_path / "other")))
    (tmp_path / "file.jsonl").write_text("{}")
    with pytest.raises(UsageError, match="is a file; give it as the input itself"):
        list(read_dataset(str(tmp_path / "file.jsonl")))
    out = tmp_path / "out"
    assert main(["data", "prepare", "--dataset", "tiny-shakespeare", "--out", str(out)]) == 2
    assert main(["data", "prepare", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert "expected one of the two" in said
    assert said.count("\n") == 2
    assert not out.exists()
    assert not (tmp_path / "out.jsonl").exists()
