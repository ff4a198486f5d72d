"""From a configuration to training tokens: deterministic, whole sources held out, too little text refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data_gen import DOMAINS
from moe_core.config import Config, load_config, validate_config
from moe_core.data.prepare import PreparedData, prepare_data
from moe_core.data.tokens import TokenDataset
from moe_core.errors import DataError, UsageError

REAL_TEXT = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "real_domains.jsonl"


def config_for(path: Path | None, **training: int) -> Config:
    return validate_config(
        {
            "model": {"vocab_size": 320, "dim": 32},
            "data": {"path": None if path is None else str(path), "documents": 12},
            "training": {"batch_size": 4, "seq_len": 16} | training,
        }
    )


def ids_of(data: PreparedData) -> np.ndarray:
    """The whole training text."""
    return data.train.windows(np.zeros(1, dtype=np.int64), len(data.train))[0]


def write_rows(path: Path, rows: int) -> Path:
    lines = [{"text": f"row {i} of a text about {i * i} things", "domain": "ab"[i % 2]} for i in range(rows)]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def test_synthetic_text_is_the_default_and_preparing_it_twice_gives_the_same() -> None:
    stages: list[str] = []
    data = prepare_data(config_for(None), progress=lambda stage, _done, _total: stages.append(stage))
    again = prepare_data(config_for(None))
    assert data.domains == DOMAINS
    assert data.fingerprint == again.fingerprint
    assert data.validation == again.validation
    np.testing.assert_array_equal(ids_of(data), ids_of(again))
    assert {document.split for document in data.validation} == {"validation"}
    assert {document.split for document in data.unseen} == {"unseen"}
    assert "tokenising" in stages


def test_token_counts_are_those_of_the_training_split(tmp_path: Path) -> None:
    data = prepare_data(config_for(write_rows(tmp_path / "a.jsonl", 60)))
    assert data.domains == ("a", "b")
    assert data.token_counts.sum() == len(data.train)
    assert len(data.token_counts) == data.tokenizer.vocab_size
    assert data.token_counts[data.tokenizer.end_of_text] == (ids_of(data) == data.tokenizer.end_of_text).sum()


def test_the_fingerprint_changes_with_the_text_and_with_the_split(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", 60)
    prints = {prepare_data(config_for(path)).fingerprint}
    other_seed = config_for(path).model_copy(update={"data": config_for(path).data.model_copy(update={"seed": 1})})
    prints.add(prepare_data(other_seed).fingerprint)
    prints.add(prepare_data(config_for(write_rows(path, 61))).fingerprint)
    assert len(prints) == 3


def test_a_corpus_smaller_than_one_batch_is_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", 12)
    with pytest.raises(DataError, match=r"expected at least one batch of .* = 4128: give more text") as caught:
        prepare_data(config_for(path, batch_size=32, seq_len=128))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl"])
def test_a_one_line_corpus_is_refused(tmp_path: Path, name: str) -> None:
    line = "Only one line of text here"
    content = {"a.txt": line, "a.csv": f"Text\n{line}", "a.jsonl": json.dumps({"text": line})}[name]
    (tmp_path / name).write_text(content + "\n")
    with pytest.raises(DataError, match="domain 'a' has 1 source; expected at least 3"):
        prepare_data(config_for(tmp_path / name))


def test_a_missing_path_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no data at"):
        prepare_data(config_for(tmp_path / "none.jsonl"))


@pytest.mark.skipif(not REAL_TEXT.is_file(), reason="the real corpus ../shared/data/real_domains.jsonl is not here")
def test_real_text_is_held_out_by_whole_sources_and_round_trips() -> None:
    data = prepare_data(load_config("quick", environment={}, overrides={"data.path": str(REAL_TEXT)}))
    assert data.domains == ("code", "finance", "general", "legal")
    assert data.tokenizer.vocab_size == 2048
    rows = [json.loads(line) for line in REAL_TEXT.read_text(encoding="utf-8").splitlines()]
    held_out = {split: {d.source for d in getattr(data, split)} for split in ("validation", "unseen")}
    assert not held_out["validation"] & held_out["unseen"]
    trained = {row["text"] for row in rows if row["source"] not in held_out["validation"] | held_out["unseen"]}
    total = {domain: sum(len(r["text"].encode()) for r in rows if r["domain"] == domain) for domain in data.domains}
    for split in ("validation", "unseen"):
        assert not trained & {document.text for document in getattr(data, split)}
        for domain in data.domains:
            held = sum(len(d.text.encode()) for d in getattr(data, split) if d.domain == domain)
            assert 0.06 <= held / total[domain] <= 0.10
    dataset = TokenDataset.build(data.validation, data.tokenizer, data.domains)
    start, end = (bound[0] for bound in dataset.document_bounds())
    assert data.tokenizer.decode(dataset.token_ids[start:end].tolist()) == data.validation[0].text


def test_a_tuning_split_of_synthetic_text_leaves_everything_else_as_it_is() -> None:
    data, tuned = prepare_data(config_for(None)), prepare_data(config_for(None), tuning=True)
    assert data.tuning == ()
    assert (tuned.validation, tuned.unseen) == (data.validation, data.unseen)
    np.testing.assert_array_equal(ids_of(tuned), ids_of(data))
    assert {document.domain for document in tuned.tuning} == set(DOMAINS)
    held_out = [*data.validation, *data.unseen]
    assert not {document.text for document in tuned.tuning} & {document.text for document in held_out}
    assert not {document.source for document in tuned.tuning} & {document.source for document in held_out}
    assert tuned.fingerprint != data.fingerprint  # a comparison must meet the same tuning text when it goes on


def test_a_tuning_split_of_own_text_comes_from_training_alone(tmp_path: Path) -> None:
    config = config_for(write_rows(tmp_path / "a.jsonl", 120))
    data, tuned = prepare_data(config), prepare_data(config, tuning=True)
    assert (tuned.validation, tuned.unseen) == (data.validation, data.unseen)
    documents = [int((ids_of(one) == one.tokenizer.end_of_text).sum()) for one in (data, tuned)]
    assert documents[1] == documents[0] - len(tuned.tuning)
    assert 0 < len(tuned.tuning) <= 12


def test_a_comparison_of_text_with_three_sources_is_refused_in_a_line(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "text" / "a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "text" / "a" / f"{number}.txt").write_text(f"text {number} of words and words\n\n" * 40)
    prepare_data(config_for(tmp_path / "text"))
    with pytest.raises(DataError, match="no source to spare for choosing learning rates"):
        prepare_data(config_for(tmp_path / "text"), tuning=True)
