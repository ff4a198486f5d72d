"""Code as text that is measured: how much of what a training writes is valid, and how finely a tokenizer cuts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from app_support import Open, shown
from cli_support import Run

from moe_core.config import Config
from moe_core.data.document import Document
from moe_core.data.fertility import ALL, fertility_by_domain
from moe_core.data.tokenizer import Tokenizer
from moe_core.errors import DataError
from moe_core.figures.run_curves import quantity_figure
from moe_core.runs.curves import VALID_CODE, run_curves
from moe_core.runs.folder import RunFolder
from moe_core.training import written_texts
from moe_core.training.loop import train


def test_a_training_says_how_much_of_its_code_is_valid_and_is_else_the_same(
    tmp_path: Path, tiny_config: Config, trained_root: Path, monkeypatch: pytest.MonkeyPatch, dashboard: Open
) -> None:
    monkeypatch.setattr(written_texts, "SYNTAX_TOKENS", 12)
    training = tiny_config.training.model_copy(update={"syntax_samples": 3, "steps": 4, "evaluation_interval": 2})
    run = RunFolder("tiny", tmp_path)
    train(run, tiny_config.model_copy(update={"training": training}))
    assert '"syntax_samples": 3' in run.place.find("config.json").read_text()
    assert "syntax_samples" not in RunFolder("tiny", trained_root).place.find("config.json").read_text()
    lines = run.metric_log().frame("syntax")
    assert list(lines["step"]) == [0, 2, 4]
    assert (lines["samples"] == 3).all()
    assert (
        (lines["parses"] >= 0) & (lines["parses"] <= lines["correct_so_far"]) & (lines["correct_so_far"] <= 1)
    ).all()
    plain = RunFolder("plain", tmp_path)
    train(plain, tiny_config.model_copy(update={"training": training.model_copy(update={"syntax_samples": 0})}))
    losses = [one.metric_log().frame("evaluation")["nats_per_token"].to_list() for one in (run, plain)]
    assert losses[0] == losses[1]
    assert plain.metric_log().frame("syntax").empty
    figure = quantity_figure([run_curves("tiny", run.metric_log())], VALID_CODE, "step")
    assert figure is not None
    assert len(figure.frame) == 3
    at = dashboard(tmp_path, "time", run="tiny")
    assert "How much of the code it writes is valid?" in shown(at)
    assert "How much of the code it writes is valid?" not in shown(dashboard(tmp_path, "time", run="plain"))


def test_what_was_written_is_valid_only_where_a_line_of_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    class Run:
        lines: list[dict[str, object]] = []  # noqa: RUF012

        def append_metrics(self, line: dict[str, object]) -> None:
            self.lines.append(line)

    class Data:
        tokenizer = Tokenizer.train(["x = 1\n"], 257)
        validation = [Document("x = 1\ny = 2\n", "code", "", ""), *[Document("a = 1\nb", "python", "", "")] * 3]  # noqa: RUF012

    written = [("(", False), (" = 2\nif", False), (" =\nc = 3\nd", False), ("\n", True)]
    monkeypatch.setattr(written_texts, "_beginning", lambda text, _: text[:7])
    monkeypatch.setattr(written_texts, "_written", lambda *_: written)
    written_texts._write_code(Run(), None, Data(), 4, 0, 7)  # type: ignore[arg-type]
    assert Run.lines == [{"kind": "syntax", "step": 7, "samples": 4, "parses": 0.5, "correct_so_far": 0.5}]


def test_fertility_by_hand() -> None:
    tokenizer = Tokenizer.train(["aaaa aaaa aaaa"] * 3, 262)
    documents = [Document("aaaa aaaa", "a", "", ""), Document("aaaa", "a", "", ""), Document("öß", "b", "", "")]
    frame = fertility_by_domain(documents, tokenizer).set_index("domain")
    counts = [len(tokenizer.encode(document.text)) for document in documents]
    assert list(frame.index) == ["a", "b", ALL]
    assert frame["tokens"].to_list() == [counts[0] + counts[1], 4, sum(counts)]
    assert frame["bytes"].to_list() == [13, 4, 17]
    assert frame.loc["b", "bytes_per_token"] == 1
    assert frame.loc["b", "single_bytes"] == 1
    assert frame.loc["b", "tokens_per_word"] == 4
    assert np.isnan(frame.loc["b", "low"])  # one document
    assert frame.loc["b", "to_best"] == pytest.approx(13 / (counts[0] + counts[1]))
    assert frame.loc["b", "vocabulary"] == 3 / tokenizer.vocab_size  # two of its four bytes are one
    with pytest.raises(DataError, match="no text"):
        fertility_by_domain([Document("", "a", "", "")], tokenizer)


def test_the_command_takes_a_run_or_any_tokenizer(cli: Run, trained_root: Path, tmp_path: Path) -> None:
    assert "bytes/token" in cli(trained_root, "fertility", "--run", "tiny")[1]
    Tokenizer.train(["def f(): pass"], 300).save(tmp_path / "tokenizer.json")
    (tmp_path / "texts.jsonl").write_text('{"text": "fn main() {}", "domain": "rust"}\n')
    words = ["fertility", "--tokenizer", str(tmp_path / "tokenizer.json")]
    assert "rust" in cli(trained_root, *words, "--data", str(tmp_path / "texts.jsonl"))[1]
    assert "expected --data" in cli(trained_root, *words)[2]
