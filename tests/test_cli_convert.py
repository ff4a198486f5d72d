"""main.py convert: what it prints, what it writes, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

import main as command_line
from moe_core.cli.convert import layer_numbers, parser
from moe_core.errors import TraceError
from moe_core.routing import RoutingCounts, RoutingTrace, recordings


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Three layers, two slots, six experts; the first layer is dense."""
    x = np.argsort(np.random.default_rng(0).random((40, 3, 6)), axis=2)[:, :, :2]
    x[:, 0] = 0
    np.save(tmp_path / "r.npy", x.astype(np.uint8))
    np.save(tmp_path / "ids.npy", np.arange(40) % 3)
    return tmp_path


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A byte-level vocabulary of three tokens: "the", " cat", and the first byte of an emoji."""
    backend = tokenizers.Tokenizer(models.BPE(vocab={"the": 0, "Ġcat": 1, "ð": 2}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    (tmp_path / "model").mkdir()
    backend.save(str(tmp_path / "model" / "tokenizer.json"))
    return tmp_path / "model"


def test_a_recording_becomes_a_trace_with_text(
    recording: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = recording / "out" / "x.parquet"
    arguments = ["convert", "--from", str(recording / "r.npy"), "--to", str(out), "--tokenizer", str(tokenizer)]
    arguments += ["--token-ids", str(recording / "ids.npy"), "--json", str(recording / "f.json")]
    code = command_line.main(arguments)
    said = capsys.readouterr().out
    assert code == 0
    assert f"40 tokens of 1 text in {out}" in said
    assert "Note: layer 0 left out" in said
    assert "none: 1/2 each" in said
    trace = RoutingTrace.load(out)
    assert [trace.token_text(i) for i in range(3)] == ["the", " cat", "\\xF0"]
    figures = json.loads((recording / "f.json").read_text())
    assert (figures["tokens"], figures["layers"], figures["weights"], figures["token_ids"]) == (40, [1, 2], False, True)
    assert figures["source"] == trace.source


def test_json_alone_on_stdout(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["convert", "--from", str(recording / "r.npy"), "--to", str(recording / "x.parquet"), "--layers", "7-9"]
    assert command_line.main([*arguments, "--num-experts", "64", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["layers"], figures["num_experts"], figures["format"]) == ([8, 9], 64, "array")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--from", "missing.npy", "--to", "x.parquet"], 1, "no file at 'missing.npy'"),
        (["--from", "r.npy", "--to", "r.npy"], 2, "is the recording itself"),
        (["--from", "r.npy"], 2, "--to"),
        (["--from", "r.npy", "--to", "x.parquet", "--format", "csv"], 2, "invalid choice: 'csv'"),
        (["--from", "r.npy", "--to", "x.parquet", "--layers", "3-1"], 2, "'3-1' is no list of layers"),
        (["--from", "r.npy", "--to", "x.parquet", "--num-experts", "4"], 1, "expected an expert id from 0 to 3"),
        (["--from", "r.npy", "--to", "x.parquet", "--tokenizer", "nowhere"], 1, "no tokenizer at 'nowhere'"),
        (["--from", "r.npy", "--to", "x.parquet", "--tokenizer", "r.npy"], 1, "the tokenizer 'r.npy' is damaged"),
        (["--from", "r.npy", "--to", "/dev/null"], 2, "is a device or pipe"),
    ],
)
def test_what_is_refused_is_one_line(
    arguments: list[str],
    code: int,
    words: str,
    recording: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(recording)
    assert command_line.main(["convert", *arguments]) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert words in error
    assert not (recording / "x.parquet").exists()


def test_another_models_tokenizer_is_refused(
    recording: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(recording / "ids.npy", np.arange(40))
    arguments = ["convert", "--from", str(recording / "r.npy"), "--to", str(recording / "x.parquet")]
    arguments += ["--token-ids", str(recording / "ids.npy"), "--tokenizer", str(tokenizer)]
    assert command_line.main(arguments) == 1
    assert "token id 39 is not among the 3 of the tokenizer" in capsys.readouterr().err


def test_the_parser_knows_the_formats() -> None:
    for name in recordings.FORMATS:
        assert parser().parse_args(["--from", "x", "--to", "y.parquet", "--format", name]).format == name
    assert layer_numbers("3-5,9") == (3, 4, 5, 9)


IMATRIX = Path(__file__).parent / "fixtures" / "recordings" / "llama.cpp-imatrix.gguf"


def test_counts_become_counts_and_say_what_they_cannot_tell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.counts.parquet"
    arguments = ["convert", "--from", str(IMATRIX), "--to", str(out)]
    assert command_line.main(arguments) == 0
    said = capsys.readouterr().out
    assert f"Counts of 92,032 tokens in {out}" in said
    assert "imatrix  4       8        2      1      1        none" in said
    assert "Note: counts tell how evenly experts are used, and by what; of single tokens nothing is kept." in said
    assert f"open {out}" in said
    assert command_line.main([*arguments, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["holds"], figures["unit"], figures["top_k"], figures["notes"]) == ("counts", "token", 2, [])
    counts = RoutingCounts.load(out)
    assert (counts.num_tokens, counts.source) == (92_032, figures["source"])
    assert counts.tokens_per_expert.sum() == 4 * 2 * 92_032


def test_counts_refuse_what_names_tokens_and_python_says_where_they_open(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.counts.parquet"
    arguments = ["convert", "--from", str(IMATRIX), "--to", str(out), "--token-ids", str(tmp_path / "ids.npy")]
    assert command_line.main(arguments) == 1
    assert "these are counts, without single tokens" in capsys.readouterr().err
    assert not out.exists()
    with pytest.raises(TraceError, match="importance matrix, not tokens"):
        recordings.convert(IMATRIX, out)


def test_a_folder_of_ranks_becomes_one_file_of_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.counts.parquet"
    folder = IMATRIX.parent / "sglang-0.5.23"
    arguments = ["convert", "--from", str(folder), "--to", str(out), "--top-k", "2", "--layers", "1,3", "--json"]
    assert command_line.main(arguments) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["format"], figures["steps"], figures["tokens"], figures["layers"]) == (
        "sglang-stat",
        7,
        140,
        [1, 3],
    )
    assert command_line.main([*arguments[:-1], "--format", "sglang-csv"]) == 1
    assert "no file 'expert_distribution_rank*.csv' in the folder" in capsys.readouterr().err
