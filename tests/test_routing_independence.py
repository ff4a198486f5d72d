"""Windows of one text that pass as independent documents are noticed, and said wherever a verdict leans on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from app_support import Open, shown
from hypothesis import given
from hypothesis import strategies as st

from moe_core.cli.main import main
from moe_core.figures.run_figures import sections_of_trace
from moe_core.routing import RoutingTrace, baselines, capture
from moe_core.routing.baselines import independence_note
from tests.routing_support import trace_of

REMEDY = "pass source_ids=..."


def windows(seed: int = 0, *, texts: int = 4, length: int = 512, window: int = 32, **fields: Any) -> RoutingTrace:
    """Each text has a taste of its own, whatever its domain, and is cut into windows."""
    rng = np.random.default_rng(seed)
    T = texts * length
    text_T = np.arange(T) // length
    logits = rng.gumbel(size=(2, T, 8)) + rng.normal(size=(2, texts, 8))[:, text_T]
    fields = {"document_ids": np.arange(T) // window, "domain_ids": text_T % 2, "domains": ["a", "b"]} | fields
    return trace_of(np.argsort(-logits, axis=-1)[..., :2], num_experts=8, **fields)


def test_windows_give_a_false_verdict_which_the_note_explains_and_sources_mend() -> None:
    """What the note is for: the text has nothing to do with the domain, and yet domains seem known, "clearly"."""
    text_T = np.arange(4 * 512) // 512
    false = sum(set(baselines.domain_nmi(windows(seed))["verdict"]) == {baselines.CLEARLY} for seed in range(10))
    assert false >= 9
    note = independence_note(windows())
    assert note.startswith("All 64 documents are of exactly 32 tokens, each its own source")
    assert REMEDY in note
    known = windows(source_ids=text_T)
    assert independence_note(known) == ""
    assert set(baselines.domain_nmi(known)["verdict"]) == {baselines.FEW_DOCUMENTS}


def test_last_windows_may_be_shorter_and_texts_of_their_own_lengths_are_left_alone() -> None:
    ends = np.cumsum(np.tile([32, 32, 32, 32, 32, 32, 11], 20))
    trace = windows(texts=1, length=int(ends[-1]), document_ids=np.searchsorted(ends, np.arange(ends[-1]), "right"))
    assert independence_note(trace).startswith("86 % of 140 documents are of exactly 32 tokens")
    lengths = np.random.default_rng(0).integers(20, 60, 64)
    own = np.repeat(np.arange(64), lengths)
    assert independence_note(trace_of(np.zeros((own.size, 1), int), num_experts=2, document_ids=own)) == ""
    cut = np.repeat(np.arange(64), np.minimum(lengths, 40))  # half of them cut at a limit
    assert independence_note(trace_of(np.zeros((cut.size, 1), int), num_experts=2, document_ids=cut)) == ""


def test_tokens_without_documents_get_the_other_remedy() -> None:
    trace = trace_of(np.zeros((100, 1), int), num_experts=2)
    assert independence_note(trace).startswith("All 100 documents are of a single token")
    assert "pass document_ids=..." in independence_note(trace)


def test_a_captured_trace_has_the_note() -> None:
    import torch

    from moe_core.config import ModelConfig
    from moe_core.model.transformer import MoETransformer

    model = MoETransformer(
        ModelConfig(vocab_size=300, dim=16, num_layers=1, num_heads=2, num_kv_heads=1, num_experts=4)
    )
    ids = torch.arange(20 * 8).reshape(20, 8) % 32
    with capture(model) as recorder:
        model(ids)
    trace = recorder.trace(token_ids=ids.numpy(), document_ids=np.arange(160) // 8)
    assert "exactly 8 tokens" in independence_note(trace)
    sourced = recorder.trace(token_ids=ids.numpy(), document_ids=np.arange(160) // 8, source_ids=np.arange(160) // 80)
    assert independence_note(sourced) == ""


@given(st.integers(1, 40), st.integers(1, 5), st.booleans())
def test_a_file_says_the_same_as_the_trace(documents: int, length: int, sourced: bool) -> None:
    import tempfile

    own = np.repeat(np.arange(documents), length)
    fields = {"source_ids": own // 2} if sourced else {}
    trace = trace_of(np.zeros((own.size, 1), int), num_experts=2, document_ids=own, **fields)
    with tempfile.TemporaryDirectory() as folder:
        trace.save(Path(folder) / "x.parquet")
        assert independence_note(RoutingTrace.open(Path(folder) / "x.parquet")) == independence_note(trace)
    assert bool(independence_note(trace)) == (documents >= 16 and not sourced)


def test_every_section_of_plots_and_reports_says_it_once() -> None:
    trace = windows()
    for section in sections_of_trace(trace):
        assert section.figures[0].verdict.endswith(independence_note(trace))
        assert not any(REMEDY in figure.verdict for figure in section.figures[1:])
    known = windows(source_ids=np.arange(4 * 512) // 512)
    assert not any(REMEDY in figure.verdict for section in sections_of_trace(known) for figure in section.figures)


@pytest.mark.parametrize("page", ["overview", "domains", "experts", "flow"])
def test_every_page_with_such_a_verdict_says_it(page: str, tmp_path: Path, dashboard: Open) -> None:
    windows().save(tmp_path / "windows.parquet")
    at = dashboard(tmp_path, page, ("--trace", str(tmp_path / "windows.parquet")))
    assert [REMEDY in str(box.value).replace("\\", "") for box in at.warning] == [True]
    assert shown(at)


def test_converting_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pandas as pd

    T = 20 * 16
    rows = {"document_id": np.arange(T) // 16, "token_id": np.arange(T) % 9}
    rows |= {f"layer_0_expert_{slot}": (np.arange(T) + slot) % 4 for slot in range(2)}
    pd.DataFrame(rows).to_parquet(tmp_path / "table.parquet")
    arguments = ["convert", "--from", str(tmp_path / "table.parquet"), "--to", str(tmp_path / "x.parquet")]
    assert main([*arguments, "--num-experts", "4"]) == 0
    assert f"Note: {independence_note(RoutingTrace.load(tmp_path / 'x.parquet'))}" in capsys.readouterr().out
    assert main([*arguments, "--num-experts", "4", "--json"]) == 0
    assert REMEDY in json.loads(capsys.readouterr().out)["independence"]
