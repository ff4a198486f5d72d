"""data prepare: the same text as training on the file, the same bytes however it was made, and places left alone."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from training_support import TINY_CONFIG

from moe_core.cli.main import main
from moe_core.config import Config, validate_config
from moe_core.data.prepare import prepare_data
from moe_core.data.shards import preparation
from moe_core.data.shards.preparation import prepare_shards
from moe_core.data.shards.shard_reader import ShardFolder
from moe_core.data.shards.unfinished import CODES, JOURNAL, LOCK
from moe_core.data.tokenizer import Tokenizer
from moe_core.errors import DataError, MoescopeError, UsageError
from moe_core.runs.folder import RunFolder
from moe_core.training.loop import train

VOCABULARY = 300


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three domains: plain text alone, rows of two formats with shared sources, rows without any."""
    folder = tmp_path_factory.mktemp("text") / "text"
    for domain in ("book", "law", "notes"):
        (folder / domain).mkdir(parents=True)
    words = ["the", "tenant", "shall", "pay", "nine", "euros", "€", "to", "a", "house", "by", "water", "on", "monday"]
    chooser = random.Random(0)
    sentences = [" ".join(chooser.choices(words, k=12)) for _ in range(900)]
    (folder / "book" / "one.txt").write_text("\r\n\r\n".join(s * 20 for s in sentences[:60]), encoding="utf-8")
    rows = [{"text": sentence, "source": f"s{i % 17}"} for i, sentence in enumerate(sentences[:300])]
    (folder / "law" / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    pq.write_table(pa.table({"text": sentences[200:400], "source": ["p"] * 200}), folder / "law" / "b.parquet")
    (folder / "notes" / "c.csv").write_text("Text\n" + "\n".join(sentences[300:]), encoding="utf-8")
    return folder


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "ENCODED_TOGETHER", 2_000)
    monkeypatch.setattr(preparation, "_REPORTED_TOGETHER", 50)


def config_of(path: Path) -> Config:
    model, training = {"vocab_size": VOCABULARY, "dim": 32}, {"batch_size": 4, "seq_len": 16}
    return validate_config({"model": model, "data": {"path": str(path)}, "training": training})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.usefixtures("small_pieces")
def test_a_prepared_folder_is_the_text_that_the_file_is(text: Path, tmp_path: Path) -> None:
    index = prepare_shards([text], tmp_path / "out", vocab_size=VOCABULARY, shard_tokens=5_000)
    assert len(index.of_split("train")) > 3
    file, folder = (prepare_data(config_of(path)) for path in (text, tmp_path / "out"))
    assert folder.tokenizer.to_json() == file.tokenizer.to_json()
    assert folder.domains == file.domains
    assert (folder.validation, folder.unseen) == (file.validation, file.unseen)
    assert any("part" in document.source for document in file.validation)
    np.testing.assert_array_equal(folder.token_counts, file.token_counts)
    assert len(folder.train) == len(file.train)
    whole = [one.train.windows(np.zeros(1, dtype=np.int64), len(file.train)) for one in (folder, file)]
    np.testing.assert_array_equal(*whole)
    assert not {JOURNAL, CODES, LOCK} & contents(tmp_path / "out").keys()


@pytest.mark.slow
@pytest.mark.usefixtures("small_pieces")
def test_workers_and_interruptions_leave_the_bytes_as_they_are(text: Path, tmp_path: Path) -> None:
    def prepare(out: str, progress: Callable[[str, int, int], None] | None = None, **how: int | bool) -> None:
        prepare_shards(
            [text], tmp_path / out, vocab_size=VOCABULARY, shard_tokens=3_000, progress=progress,
            workers=int(how.get("workers", 1)), resume=bool(how.get("resume", False)),
        )  # fmt: skip

    said: list[str] = []
    prepare("one", lambda stage, _done, _total: said.append(stage))
    expected = contents(tmp_path / "one")
    prepare("three", workers=3)
    assert contents(tmp_path / "three") == expected
    assert list(dict.fromkeys(said)) == ["reading", "training the tokenizer", "tokenising"]
    for number, last in enumerate(range(1, len(said) + 1, max(1, len(said) // 6))):
        left = [last]

        def stop(_stage: str, _done: int, _total: int, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt

        out = f"stopped {number}"
        with pytest.raises(KeyboardInterrupt):
            prepare(out, stop, workers=2)
        with pytest.raises(DataError, match="was not prepared to its end"):
            prepare_data(config_of(tmp_path / out))
        (tmp_path / out / "train-00099.bin").write_bytes(b"left open by a process that died")
        prepare(out, resume=True)
        assert contents(tmp_path / out) == expected


def test_a_large_text_gives_the_tokenizer_a_part_of_it(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "SAMPLED_BYTES", 9_000)
    index = prepare_shards([text], tmp_path / "out", vocab_size=VOCABULARY)
    assert 8_000 < int(index.notes["UTF-8 bytes the tokenizer was trained on"]) <= 9_000


def test_a_tokenizer_that_is_given_is_used(text: Path, tmp_path: Path) -> None:
    own = Tokenizer.train(["nine euros to the tenant " * 9], 270)
    own.save(tmp_path / "own.json")
    arguments = ["data", "prepare", str(text), "--out", str(tmp_path / "out"), "--json", str(tmp_path / "figures.json")]
    assert main([*arguments, "--tokenizer", str(tmp_path / "own.json")]) == 0
    folder = ShardFolder(tmp_path / "out")
    assert folder.tokenizer.to_json() == own.to_json()
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["splits"]["train"]["tokens"] == len(folder.stream())


def refusal(call: Callable[[], object], kind: type[MoescopeError] = UsageError) -> str:
    with pytest.raises(kind) as raised:
        call()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_what_is_there_is_left_alone(text: Path, tmp_path: Path) -> None:
    def prepare(out: str = "out", **how: int) -> Callable[[], object]:
        options = {"vocab_size": VOCABULARY, "seed": 0} | how
        return lambda: prepare_shards(
            [text], tmp_path / out, vocab_size=options["vocab_size"], seed=options["seed"], resume="resume" in how
        )

    assert "nothing unfinished" in refusal(prepare(resume=1))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    assert "not empty" in refusal(prepare("full"))
    with pytest.raises(KeyboardInterrupt):
        prepare_shards([text], tmp_path / "out", vocab_size=VOCABULARY, progress=_interrupt)
    journal = (tmp_path / "out" / JOURNAL).read_bytes()
    assert "add --resume" in refusal(prepare())
    assert "other seed;" in refusal(prepare(resume=1, seed=1))
    assert "other tokenizer;" in refusal(prepare(resume=1, vocab_size=301))
    prepare(resume=1)()
    assert "prepared already" in refusal(prepare())
    # Killed between the index and the last clearing up, and before anything was written.
    (tmp_path / "out" / JOURNAL).write_bytes(journal)
    before = contents(tmp_path / "out")
    prepare(resume=1)()
    assert contents(tmp_path / "out") == {name: one for name, one in before.items() if name != JOURNAL}
    for out, how in (("barely", {"resume": 1}), ("again", {})):
        (tmp_path / out).mkdir()
        (tmp_path / out / LOCK).touch()
        prepare(out, **how)()
        assert contents(tmp_path / out) == contents(tmp_path / "out")
    assert "prepared already" in refusal(prepare(resume=1))
    assert "third split" in refusal(lambda: prepare_data(config_of(tmp_path / "out"), tuning=True))


def _interrupt(_stage: str, _done: int, _total: int) -> None:
    raise KeyboardInterrupt


def test_a_run_from_the_folder_is_the_run_from_the_file(
    text: Path, tmp_path: Path, trained_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every line of the log but for the clock; then who has another tokenizer is refused by the folder's name."""
    vocab_size = TINY_CONFIG["model"]["vocab_size"]
    prepare_shards([text], tmp_path / "shards", vocab_size=vocab_size, shard_tokens=4_000)
    logs = []
    for name, path in (("file", text), ("folder", tmp_path / "shards")):
        config = validate_config(TINY_CONFIG | {"data": {"path": str(path)}})
        config = config.model_copy(update={"training": config.training.model_copy(update={"steps": 6})})
        train(RunFolder(name, tmp_path), config)
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        timing = ("sha256", "elapsed_seconds", "tokens_per_second", "seconds_per_step", "time")
        logs.append([{key: value for key, value in line.items() if key not in timing} for line in lines])
    assert logs[0] == logs[1]
    assert sum(line["kind"] == "train" for line in logs[0]) > 0
    monkeypatch.setenv("MOESCOPE_CHECKPOINTS", str(tmp_path))
    arguments = ["trace", "--run", "folder", "--data", str(tmp_path / "shards"), "--out", str(tmp_path / "a.parquet")]
    assert main(arguments) == 0
    monkeypatch.setenv("MOESCOPE_CHECKPOINTS", str(trained_root))
    assert main([*arguments[:2], "tiny", *arguments[3:]]) == 2
    assert "shards' was made with another tokenizer" in capsys.readouterr().err
