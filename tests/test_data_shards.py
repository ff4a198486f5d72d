"""A folder of shards: what is written comes back, a stream runs over the shards' ends, damage is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from moe_core.data.document import Document
from moe_core.data.shards.shard_index import INDEX, ShardIndex, Split, is_prepared
from moe_core.data.shards.shard_reader import ShardFolder, document_places, held_out_documents
from moe_core.data.shards.shard_writer import ShardWriter
from moe_core.data.token_stream import TokensInMemory, training_batch
from moe_core.data.tokenizer import Tokenizer
from moe_core.errors import DataError
from moe_core.runs.checksum import with_checksum

TEXTS = [f"{'€ é' * (i % 5)} text {i} of domain {'ab'[i % 2]}\n" * (1 + i % 7) for i in range(60)]
SPLIT_OF: list[Split] = [("train", "train", "validation", "unseen")[i // 2 % 4] for i in range(60)]
NO_SUM = "0" * 64


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 300)


def write(folder: Path, tokenizer: Tokenizer, cut_every: int) -> ShardIndex:
    """Every document of TEXTS; domains in turns, some sources shared."""
    folder.mkdir()
    writer = ShardWriter(folder, tokenizer)
    for number, (text, split) in enumerate(zip(TEXTS, SPLIT_OF, strict=True)):
        ids = np.array([tokenizer.end_of_text, *tokenizer.encode(text)])
        writer.add(split, "ab"[number % 2], f"s{number // 3}", ids, len(text.encode()))
        if number % cut_every == cut_every - 1:
            writer.cut()
    return writer.finish(["a", "b"], {"documents": len(TEXTS)})


def test_what_is_written_comes_back_from_any_number_of_shards(tokenizer: Tokenizer, tmp_path: Path) -> None:
    whole = [i for t, s in zip(TEXTS, SPLIT_OF, strict=True) if s == "train" for i in (0, *tokenizer.encode(t))]
    memory = TokensInMemory(np.array(whole, dtype=np.int32))
    for cut_every in (1, 7, 1000):
        index = write(tmp_path / str(cut_every), tokenizer, cut_every)
        folder = ShardFolder(tmp_path / str(cut_every))
        assert folder.index == index
        assert folder.tokenizer.to_json() == tokenizer.to_json()
        stream = folder.stream()
        assert len(stream) == index.tokens("train") == len(whole)
        assert folder.token_counts.tolist() == np.bincount(whole, minlength=tokenizer.vocab_size).tolist()
        for step in range(20):
            mine, theirs = (training_batch(one, step, batch_size=3, seq_len=32, seed=1) for one in (stream, memory))
            np.testing.assert_array_equal(mine.token_ids, theirs.token_ids)
            np.testing.assert_array_equal(mine.targets, theirs.targets)
        places = document_places(folder)
        begins = np.cumsum(places.tokens) - places.tokens
        assert places.starts.tolist() == begins.tolist() == np.flatnonzero(np.array(whole) == 0).tolist()
        trained = [i for i in range(len(TEXTS)) if SPLIT_OF[i] == "train"]
        sources = [("ab"[i % 2], f"s{i // 3}") for i in trained]
        assert len(set(zip(places.source_ids.tolist(), sources, strict=True))) == len(set(sources))
        for split in ("validation", "unseen"):
            expected = [
                Document(text, "ab"[i % 2], f"s{i // 3}", split)
                for i, text in enumerate(TEXTS) if SPLIT_OF[i] == split
            ]  # fmt: skip
            assert held_out_documents(folder, split) == expected


def test_held_out_text_that_is_large_is_drawn_from_every_domain(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write(tmp_path / "x", tokenizer, 20)
    folder = ShardFolder(tmp_path / "x")
    whole = held_out_documents(folder, "unseen")
    drawn = held_out_documents(folder, "unseen", bytes_per_domain=300)
    assert [document for document in whole if document in drawn] == drawn
    assert {document.domain for document in drawn} == {"a", "b"}
    for domain in "ab":
        assert 100 < sum(len(document.text.encode()) for document in drawn if document.domain == domain) <= 300
    assert len(held_out_documents(folder, "unseen", bytes_per_domain=1)) == 2


def test_going_on_from_closed_shards_writes_the_same_bytes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write(tmp_path / "whole", tokenizer, 20)
    (tmp_path / "parts").mkdir()
    writer = ShardWriter(tmp_path / "parts", tokenizer)
    for number, (text, split) in enumerate(zip(TEXTS, SPLIT_OF, strict=True)):
        ids = np.array([tokenizer.end_of_text, *tokenizer.encode(text)])
        writer.add(split, "ab"[number % 2], f"s{number // 3}", ids, len(text.encode()))
        if number % 20 == 19:
            writer.cut()
            assert not is_prepared(tmp_path / "parts")
            writer = ShardWriter(tmp_path / "parts", tokenizer, writer.shards, writer.token_counts)
    writer.finish(["a", "b"], {"documents": len(TEXTS)})
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == names
    for name in names:
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_large_vocabulary_takes_four_bytes(tmp_path: Path) -> None:
    class Large:
        vocab_size, end_of_text = 2**16, 0

        def to_json(self) -> str:
            return "{}"

    writer = ShardWriter(tmp_path, Large())  # type: ignore[arg-type]
    writer.add("train", "a", "s", np.array([0, 65_535, 3]), 3)
    (shard,) = writer.finish(["a"], {}).shards
    assert (shard.dtype, shard.bytes) == ("uint32", 12)
    assert (tmp_path / shard.file).read_bytes() == np.array([0, 65_535, 3], dtype="<u4").tobytes()


def read_all(path: Path) -> None:
    folder = ShardFolder(path)
    assert folder.token_counts.sum() == len(folder.stream())
    held_out_documents(folder, "unseen")


def test_what_is_not_whole_is_refused_by_name(tokenizer: Tokenizer, tmp_path: Path) -> None:
    def damaged(name: str, content: bytes | None, words: str) -> None:
        path = tmp_path / "x" / name
        before = path.read_bytes()
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(DataError, match=words) as raised:
            read_all(tmp_path / "x")
        assert "\n" not in str(raised.value)
        path.write_bytes(before)

    write(tmp_path / "x", tokenizer, 20)
    index = json.loads((tmp_path / "x" / INDEX).read_text())
    del index["sha256"]
    damaged("train-00001.bin", b"\0\0", r"train-00001\.bin' has 2 bytes; expected [\d,]+ as the index says")
    damaged("unseen-00000.bin", None, r"cannot read .*unseen-00000\.bin': No such file")
    damaged("unseen-00000.parquet", b"PAR1", r"unseen-00000\.parquet' is damaged: its SHA-256")
    damaged("tokenizer.json", b"{}", r"tokenizer\.json' is damaged")
    damaged("token_counts.bin", b"", r"token_counts\.bin' is damaged")
    damaged(INDEX, with_checksum(index | {"version": 2}), r"is not an index of shards of this version \(.*version")
    damaged(INDEX, json.dumps(index | {"sha256": NO_SUM}).encode(), r"was changed after it was written")
    index["shards"][0]["file"] = "../x.bin"
    damaged(INDEX, with_checksum(index), r"is not an index of shards of this version \(.*file")
    damaged(INDEX, None, r"no shards in .* it has no index.json; expected a folder")
