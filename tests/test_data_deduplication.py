"""Copies are found, exact and near, and the one that keeps an evaluation honest stays."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest

from moe_core.cli.main import main
from moe_core.data.deduplication import Copy, bands_of, find_copies, jaccard, shingles
from moe_core.errors import UsageError

datasketch = pytest.importorskip("datasketch", reason="needs the extra data")

WORDS = [f"{first}{second}" for first in "bcdfglmnprst" for second in ("ake", "orn", "ilt", "ush", "ead", "ont")]


def written(chance: random.Random, words: int) -> list[str]:
    return chance.choices(WORDS, k=words)


def changed(words: list[str], share: float, chance: random.Random) -> list[str]:
    """Words replaced, left out or put in, each with a third of the chance."""
    result: list[str] = []
    for word in words:
        if chance.random() >= share:
            result.append(word)
        else:
            result += chance.choice([[], ["other"], [word, "more"]])
    return result


def true_jaccard(left: str, right: str) -> float:
    """By sets of strings, as the definition says."""
    sets = []
    for text in (left, right):
        words = re.findall(r"\w+|[^\w\s]", text.lower())
        sets.append({tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_planted_near_copies_are_found_and_none_below_the_threshold() -> None:
    chance = random.Random(7)
    originals = [written(chance, chance.randint(40, 200)) for _ in range(600)]
    copies = [changed(words, chance.choice([0.01, 0.03, 0.05, 0.08, 0.12]), chance) for words in originals]
    texts = [" ".join(words) for words in (*originals, *copies)]
    similar = [true_jaccard(texts[i], texts[600 + i]) for i in range(600)]
    planted = {600 + i for i, similarity in enumerate(similar) if similarity >= 0.7}
    below = {600 + i for i, similarity in enumerate(similar) if similarity < 0.7}
    close = {600 + i for i, similarity in enumerate(similar) if 0.7 <= similarity < 0.75}
    assert len(planted) > 250
    assert len(below) > 100
    assert len(close) > 30
    found = find_copies((text, "train") for text in texts)
    by_number = {copy.document: copy for copy in found}
    assert len(planted & by_number.keys()) >= 0.95 * len(planted)
    assert len(close & by_number.keys()) >= 0.9 * len(close)
    assert not below & by_number.keys()
    assert by_number.keys() <= planted
    for copy in found:
        assert copy.kept == copy.document - 600
        assert copy.similarity == pytest.approx(similar[copy.kept], abs=1e-9)
        assert copy.exact == (texts[copy.document] == texts[copy.kept])


def test_the_held_out_copy_goes_whatever_the_order_and_a_chain_is_not_removed_whole() -> None:
    base = written(random.Random(1), 100)
    text = " ".join(base)
    near = " ".join([*base[:50], "different", *base[51:]])
    documents = [(text, "unseen"), (near, "validation"), (f" {text}\n", "train"), ("quite other words", "train")]
    assert find_copies(documents) == [
        Copy(0, 2, 1.0, exact=True),
        Copy(1, 2, true_jaccard(near, text), exact=False),
    ]
    assert find_copies(documents, exact_only=True) == [Copy(0, 2, 1.0, exact=True)]
    assert find_copies([*documents[:2], ("x", "")]) == [Copy(0, 1, true_jaccard(near, text), exact=False)]
    longer = written(random.Random(2), 140)
    chain = [" ".join(longer[12 * i : 12 * i + 100]) for i in range(4)]
    assert true_jaccard(chain[0], chain[1]) >= 0.7 > true_jaccard(chain[0], chain[2])
    assert true_jaccard(chain[1], chain[2]) >= 0.7
    assert [copy.document for copy in find_copies((text, "train") for text in chain)] == [1, 3]


@pytest.mark.parametrize("text", ["", "one", "one two", "  one\ttwo ", "- -", "東京都の天気", "ﬁne\u0301"])
def test_short_and_odd_texts_have_shingles(text: str) -> None:
    assert len(shingles(text)) >= 1
    assert jaccard(shingles(text), shingles(f" {text}  ")) == 1


def test_scripts_without_spaces_are_compared_by_character() -> None:
    text = "東京都は日本の首都であり、世界で最も人口の多い都市圏を形成している。" * 2 + "人口は約千四百万人である。"
    assert 0.8 < jaccard(shingles(text), shingles(text.replace("約千四百", "およそ千四百"))) < 1


def test_bands_give_a_pair_at_the_threshold_its_chance() -> None:
    for threshold in (0.3, 0.5, 0.7, 0.9, 0.99):
        bands, rows = bands_of(threshold)
        assert bands * rows <= 128
        assert 1 - (1 - threshold**rows) ** bands >= 0.98
    assert bands_of(0.7) == (25, 5)
    with pytest.raises(UsageError, match="too low to find"):
        bands_of(0.01)


def test_the_command_writes_what_stays_and_lists_what_went(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = written(random.Random(3), 60)
    near = " ".join([*base[:30], "different", *base[31:]])
    rows = [
        {"text": near, "domain": "a", "source": "s1", "split": "unseen"},
        {"text": " ".join(base), "domain": "a", "source": "s2", "split": "train"},
        {"text": "Short.", "domain": "b"},
        {"text": "Short. ", "domain": "c", "source": "7"},
    ]
    file = tmp_path / "in.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["data", "dedup", str(file), "--out", str(tmp_path / "x" / "out.jsonl"), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["documents"], figures["kept"], figures["exact_copies"], figures["near_copies"]) == (4, 2, 1, 1)
    kept = [json.loads(line) for line in (tmp_path / "x" / "out.jsonl").read_text().splitlines()]
    assert kept == [rows[1], {"text": "Short.", "domain": "b", "source": "in.jsonl:3"}]
    one, other = (json.loads(line) for line in (tmp_path / "x" / "out.removed.jsonl").read_text().splitlines())
    assert (one["document"], one["copy"], one["split"], one["kept"]["source"]) == (1, "near", "unseen", "s2")
    assert one["jaccard"] == pytest.approx(true_jaccard(near, " ".join(base)), abs=1e-6)
    assert (other["document"], other["copy"], other["jaccard"], other["kept"]["document"]) == (4, "exact", 1, 3)
    assert main(["data", "dedup", str(file), "--out", str(tmp_path / "f"), "--exact-only"]) == 0
    said = capsys.readouterr().out
    assert "3 of 4 documents in" in said
    assert "1 exact and 0 near copies" in said
    assert len((tmp_path / "f" / "documents.jsonl").read_text().splitlines()) == 3
    assert len((tmp_path / "f" / "removed.jsonl").read_text().splitlines()) == 1


def test_a_data_set_is_read_as_files_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    datasets.Dataset.from_dict({"text": ["One text.", "Two texts.", "One  text."]}).save_to_disk(tmp_path / "saved")
    arguments = ["data", "dedup", "--dataset", str(tmp_path / "saved"), "--out", str(tmp_path / "o"), "--exact-only"]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == 2
    assert [json.loads(line)["text"] for line in (tmp_path / "o" / "documents.jsonl").read_text().splitlines()] == [
        "One text.",
        "Two texts.",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dedup", "--out", "o"], "data dedup takes files or folders, or else --dataset NAME"),
        (["dedup", "a.jsonl", "--dataset", "b", "--out", "o"], "expected one of the two"),
        (["dedup", "missing.jsonl", "--out", "o"], "no data at 'missing.jsonl'"),
        (["dedup", "missing.jsonl", "--out", "o", "--threshold", "1.5"], "'1.5' is not a number above 0 and up to 1"),
        (["nonsense"], "unknown command 'nonsense' of data; expected synthetic, "),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "o").exists()
