"""--model, --device and --dtype: another model traced and continued from the command line, and what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_support import Run, assert_one_line
from generation_support import generate
from huggingface_support import TEXT, saved_model

from moe_core.data.document import Document
from moe_core.inference import tracing
from moe_core.inference.open import language_model
from moe_core.inference.sampling import SamplingConfig
from moe_core.inference.tracing import trace_documents
from moe_core.routing import RoutingTrace
from moe_core.routing.instruments.huggingface.loading import load
from moe_core.runs.checkpoint import load_run


@pytest.fixture
def run(cli: Run, trained_root: Path) -> Run:
    """`python main.py` with these arguments."""
    return partial(cli, trained_root)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_model(tmp_path_factory.mktemp("models") / "tiny-qwen", "qwen3_moe")


def test_a_model_in_a_folder_is_traced_into_a_file(run: Run, folder: Path, tmp_path: Path) -> None:
    texts = [{"text": TEXT[i : i + 70], "domain": "ab"[i % 2]} for i in range(6)]
    data, out = tmp_path / "texts.jsonl", tmp_path / "new" / "x.parquet"
    data.write_text("".join(json.dumps(text) + "\n" for text in texts))
    code, said, err = run("trace", "--model", str(folder), "--data", str(data), "--out", str(out), "--json")
    assert (code, err.count("error")) == (0, 0)
    figures = json.loads(said)
    assert (figures["run"], figures["model"], figures["router_logits"]) == (None, str(folder), True)
    assert (figures["device"], figures["dtype"], figures["documents"]) == ("cpu", "float32", 6)
    found = RoutingTrace.load(out)
    documents = [Document(text["text"], text["domain"], f"{i}", "") for i, text in enumerate(texts)]
    expected = trace_documents(load(folder), documents)
    np.testing.assert_array_equal(found.router_indices, expected.router_indices)
    np.testing.assert_array_equal(found.token_ids, expected.token_ids)
    assert (found.source, found.domains, found.layers) == ("model tiny-qwen", ["a", "b"], [1, 2])
    assert found.token_text(1) == expected.token_text(1)

    code, said, _ = run("plots", "--trace", str(out), "--out", str(tmp_path / "plots"), "--format", "csv")
    assert code == 0


def test_precision_and_size_are_said(run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "MAX_LOGITS_BYTES", 0)
    out = tmp_path / "x.parquet"
    options = ("--dtype", "bfloat16", "--device", "cpu", "--tokens-per-batch", "16")
    code, said, _ = run("trace", "--model", str(folder), "--text", "The café opened", "--out", str(out), *options)
    assert code == 0
    assert "of model tiny-qwen in" in said
    assert "Computed on cpu in bfloat16." in said
    assert "Without the routers' logits" in said
    assert RoutingTrace.load(out).router_logits is None


def test_a_run_in_half_precision_is_traced_as_such(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "x.parquet"
    code, said, _ = run("trace", "--run", "tiny", "--text", "The court", "--out", str(out), "--dtype", "bfloat16")
    assert code == 0
    assert "Computed on cpu in bfloat16." in said
    assert RoutingTrace.load(out).source.startswith("run tiny, step ")


def test_a_model_continues_a_text(run: Run, folder: Path) -> None:
    code, said, _ = run(
        *("generate", "--model", str(folder), "--prompt", "The café", "--max-new-tokens", "8"),
        *("--temperature", "0", "--ablate", "1:0", "--json"),
    )
    assert code == 0
    figures = json.loads(said)
    from moe_core.routing import Intervention

    sampling = SamplingConfig(max_new_tokens=8, temperature=0)
    expected = list(generate(load(folder), "The café", sampling, Intervention(ablate=((1, 0),))))
    assert figures["text"] == "".join(token.text for token in expected)
    assert [token["experts"] for token in figures["tokens"]] == [token.experts.tolist() for token in expected]


def test_without_a_tokenizer_ids_are_traced_and_shown(run: Run, folder: Path, tmp_path: Path) -> None:
    bare, out = tmp_path / "bare", str(tmp_path / "x.parquet")
    shutil.copytree(folder, bare)
    for path in bare.glob("tokenizer*"):
        path.unlink()
    code, _, _ = run("trace", "--model", str(bare), "--text", "17 4 256", "--out", out)
    assert code == 0
    trace = RoutingTrace.load(out)
    assert [trace.token_text(i) for i in range(3)] == ["#17", "#4", "#256"]
    code, _, err = run("trace", "--model", str(bare), "--text", "The court", "--out", out)
    assert code == 2
    assert_one_line(err, "'The' is no token id", "tokenizer.json")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--run", "tiny", "--model", "x"), ("not allowed with argument --run",)),
        ((), ("one of the arguments --run --model",)),
        (("--run", "tiny", "--trust-remote-code"), ("--trust-remote-code goes with --model",)),
        (("--run", "tiny", "--device", "tpu"), ("invalid choice: 'tpu'",)),
        (("--run", "tiny", "--dtype", "int8"), ("invalid choice: 'int8'",)),
        (("--run", "nope"), ("no run", "nope")),
    ],
)
@pytest.mark.parametrize("command", ["trace", "generate"])
def test_options_that_do_not_go_together_are_refused(
    run: Run, tmp_path: Path, command: str, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    rest = ("--text", "a", "--out", str(tmp_path / "x")) if command == "trace" else ("--prompt", "a")
    code, _, err = run(command, *arguments, *rest)
    assert code in (1, 2)
    assert_one_line(err, *words)


def test_a_batch_of_one_token_is_refused(run: Run, tmp_path: Path) -> None:
    out = str(tmp_path / "x")
    code, _, err = run("trace", "--run", "tiny", "--text", "a", "--out", out, "--tokens-per-batch", "1")
    assert code == 2
    assert_one_line(err, "--tokens-per-batch", "whole number from 2")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device that is asked for")
def test_a_device_that_is_not_there_is_refused(run: Run, tmp_path: Path) -> None:
    for command in (
        ("trace", "--run", "tiny", "--text", "a", "--out", str(tmp_path / "x")),
        ("generate", "--run", "tiny", "--prompt", "a"),
        ("ablate", "--run", "tiny"),
        ("--evaluate", "--run", "tiny"),
    ):
        code, _, err = run(*command, "--device", "cuda")
        assert code == 2
        assert_one_line(err, "device 'cuda' is not present on this machine; expected auto or one of: cpu")


def test_device_goes_with_evaluate(run: Run, trained_root: Path) -> None:
    code, _, err = run("--quick", "--run", "other", "--device", "cpu")
    assert code == 2
    assert_one_line(err, "--device cpu goes with --evaluate", "--training.device")
    assert not (trained_root / "other").exists()


def test_what_cannot_be_loaded_is_one_line(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = ("--text", "a", "--out", str(tmp_path / "x.parquet"))
    code, _, err = run("trace", "--model", str(tmp_path / "nowhere"), *out)
    assert code == 1
    assert_one_line(err, "nowhere")
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    code, _, err = run("trace", "--model", str(broken), *out)
    assert code == 1
    assert_one_line(err, "broken", "model.safetensors")
    monkeypatch.setitem(sys.modules, "transformers", None)
    code, _, err = run("trace", "--model", str(folder), *out)
    assert code == 2
    assert_one_line(err, "requirements-huggingface.txt")
    assert not (tmp_path / "x.parquet").exists()


def test_a_trace_of_a_run_is_the_one_in_memory(run: Run, trained_root: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "texts.jsonl", tmp_path / "x.parquet"
    loaded = load_run("tiny", trained_root)
    documents = loaded.run.held_out("unseen")
    rows = [{"text": one.text, "domain": one.domain, "source": one.source} for one in documents]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, said, _ = run("trace", "--run", "tiny", "--data", str(data), "--out", str(out))
    assert code == 0
    assert "Computed on cpu in float32." in said
    found, expected = RoutingTrace.load(out), trace_documents(language_model(loaded), documents)
    for name in ("router_indices", "router_scores", "token_ids", "source_ids", "domain_ids", "predicted_ids"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    assert found.vocabulary == expected.vocabulary
