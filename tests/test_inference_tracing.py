"""Every token traced once, in order, with the loss and rank that the model itself would report."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from moe_core.config import Config, validate_config
from moe_core.data.document import Document
from moe_core.data.token_stream import TokensInMemory, training_batch
from moe_core.data.tokenizer import Tokenizer
from moe_core.data.tokens import TokenDataset
from moe_core.errors import DataError, UsageError
from moe_core.inference import held_out, tracing
from moe_core.inference.open import context_window
from moe_core.inference.tracing import trace_documents, trace_text
from moe_core.model.transformer import MoETransformer
from moe_core.routing import RoutingTrace
from moe_core.runs.checkpoint import load_run
from moe_core.runs.folder import RunFolder
from moe_core.training.probe import probe_routing

TEXT = "The café opened at nine. Der Rest ist Schweigen; 日本 waits.\n" * 3


@dataclass(frozen=True)
class Loaded:
    model: MoETransformer
    tokenizer: Tokenizer
    config: Config


@cache
def tiny_loaded() -> Loaded:
    """A model with a dense and two MoE layers, trained for some steps on TEXT, so that it has opinions."""
    tokenizer = Tokenizer.train([TEXT], 300)
    config = validate_config(
        {
            "model": {
                "vocab_size": tokenizer.vocab_size,
                "dim": 32,
                "num_layers": 3,
                "first_dense_layers": 1,
                "num_heads": 2,
                "num_kv_heads": 1,
                "head_dim": 16,
                "num_experts": 4,
                "expert_hidden_dim": 32,
                "dense_hidden_dim": 32,
                "max_seq_len": 64,
            },
            "training": {"seq_len": 16},
        }
    )
    torch.manual_seed(0)
    model = MoETransformer(config.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    dataset = TokenDataset.build([Document(TEXT, "text", "text", "train")], tokenizer, ["text"])
    for step in range(40):
        batch = training_batch(TokensInMemory(dataset.token_ids), step, batch_size=8, seq_len=16, seed=0)
        logits_BSV = model(torch.from_numpy(batch.token_ids)).logits
        torch.nn.functional.cross_entropy(logits_BSV.mT, torch.from_numpy(batch.targets)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return Loaded(model.eval(), tokenizer, config)


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return tiny_loaded()


def test_a_text_within_the_window_has_the_losses_ranks_and_routing_of_one_plain_forward_pass(loaded: Loaded) -> None:
    traced = trace_text(loaded, "The café", domain="notes")
    ids = [loaded.tokenizer.end_of_text, *loaded.tokenizer.encode("The café")]
    assert len(ids) <= context_window(loaded)
    with torch.inference_mode():
        output = loaded.model(torch.tensor([ids]))
    log_p_SV = output.logits[0].log_softmax(-1)
    assert traced.trace.token_ids.tolist() == ids
    assert traced.trace.domains == ["notes"]
    assert traced.trace.layers == [1, 2]
    assert traced.trace.positions.tolist() == list(range(len(ids)))
    assert traced.trace.source_ids.tolist() == [0] * len(ids)
    assert traced.trace.predicted_ids is not None
    assert traced.trace.predicted_ids.tolist() == log_p_SV.argmax(dim=-1).tolist()
    assert np.isnan(traced.losses[0])
    assert traced.ranks[0] == 0
    for i in range(1, len(ids)):
        assert traced.losses[i] == pytest.approx(-log_p_SV[i - 1, ids[i]].item(), rel=1e-5)
        order = log_p_SV[i - 1].argsort(descending=True).tolist()
        assert traced.ranks[i] == 1 + order.index(ids[i])
    for layer, routed in enumerate(output.router_outputs):
        np.testing.assert_array_equal(traced.trace.router_indices[layer], routed.router_indices.numpy())
        np.testing.assert_array_equal(traced.trace.router_scores[layer], routed.router_scores.numpy())


def test_a_long_text_is_traced_once_a_token_in_windows_that_begin_anew(loaded: Loaded) -> None:
    traced = trace_text(loaded, TEXT)
    ids = [loaded.tokenizer.end_of_text, *loaded.tokenizer.encode(TEXT)]
    size, last = context_window(loaded), len(ids) - 1
    assert len(ids) > 3 * size
    assert traced.trace.token_ids.tolist() == ids
    assert traced.trace.positions.tolist() == list(range(len(ids)))
    assert np.isfinite(traced.losses[1:]).all()
    assert traced.trace.predicted_ids is not None
    for i in range(len(ids)):
        # Whole windows one after the other; the last one reaches back to be whole. The last token predicts nothing
        # and is read behind as many tokens as fit.
        start = last + 1 - size if i == last else min(i // size * size, last - size)
        with torch.inference_mode():
            output = loaded.model(torch.tensor([ids[start : start + size]]))
        if i < last:
            loss = -output.logits[0, i - start].log_softmax(-1)[ids[i + 1]].item()
            assert traced.losses[i + 1] == pytest.approx(loss, rel=1e-4)
        assert traced.trace.predicted_ids[i] == output.logits[0, i - start].argmax()
        chosen = set(output.router_outputs[-1].router_indices[i - start].tolist())
        assert set(traced.trace.router_indices[-1, i].tolist()) == chosen


def test_documents_keep_their_ids_domains_and_order_whatever_their_lengths(loaded: Loaded) -> None:
    # Sources 0, 1 and 2, the same names in both domains.
    documents = [Document(TEXT[: 7 * i + 1], "ab"[i % 2], str(i // 4), "") for i in range(9)]
    calls: list[tuple[int, int]] = []
    trace = trace_documents(loaded, documents, progress=lambda _stage, done, total: calls.append((done, total)))
    encoded = [[loaded.tokenizer.end_of_text, *loaded.tokenizer.encode(document.text)] for document in documents]
    assert trace.token_ids.tolist() == [i for ids in encoded for i in ids]
    assert trace.document_ids.tolist() == [n for n, ids in enumerate(encoded) for _ in ids]
    assert trace.domain_ids.tolist() == [n % 2 for n, ids in enumerate(encoded) for _ in ids]
    assert trace.source_ids.tolist() == [n // 4 * 2 + n % 2 for n, ids in enumerate(encoded) for _ in ids]
    assert trace.domains == ["a", "b"]
    assert calls[-1] == (trace.num_tokens, trace.num_tokens)
    for n in (0, 4, 8):
        alone = trace_text(loaded, documents[n].text).trace
        np.testing.assert_array_equal(alone.router_indices, trace.router_indices[:, trace.document_ids == n])


def test_tokens_per_domain_bounds_every_domain(loaded: Loaded) -> None:
    documents = [Document(TEXT, "ab"[i % 2], str(i), "") for i in range(6)]
    trace = trace_documents(loaded, documents, tokens_per_domain=40)
    assert np.bincount(trace.domain_ids).tolist() == [40, 40]


def test_a_large_trace_goes_without_logits(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    small = trace_text(loaded, TEXT).trace
    assert small.router_logits is not None
    monkeypatch.setattr(tracing, "MAX_LOGITS_BYTES", small.router_logits.nbytes)
    assert trace_text(loaded, TEXT).trace.router_logits is not None
    monkeypatch.setattr(tracing, "MAX_LOGITS_BYTES", small.router_logits.nbytes - 1)
    large = trace_text(loaded, TEXT).trace
    assert large.router_logits is None
    np.testing.assert_array_equal(large.router_scores, small.router_scores)


def test_tokens_are_shown_with_their_text(loaded: Loaded) -> None:
    trace = trace_text(loaded, "The <img onerror=x>").trace
    assert trace.token_text(0) == "<|endoftext|>"
    assert "".join(trace.token_text(i) for i in range(1, trace.num_tokens)) == "The <img onerror=x>"


def test_a_checkpoint_on_disk_can_be_traced_and_names_itself(trained_root: Path) -> None:
    run = load_run("tiny", trained_root)
    documents = run.run.held_out("unseen")
    trace = trace_documents(run, documents, tokens_per_domain=100)
    assert trace.source == f"run tiny, step {run.step}"
    assert trace.domains == list(dict.fromkeys(document.domain for document in documents))
    assert np.bincount(trace.domain_ids).tolist() == [100] * 4


def test_of_held_out_documents_the_beginnings_are_traced_in_both_splits(trained_root: Path) -> None:
    run, loaded = RunFolder("tiny", trained_root), load_run("tiny", trained_root)
    documents = run.held_out("validation") + run.held_out("unseen")
    trace = held_out.trace_held_out(loaded, run)
    assert set(trace.domains) == set(run.domains())
    assert np.bincount(trace.domain_ids).max() <= held_out.TRACED_TOKENS_PER_DOMAIN
    first = int(trace.document_ids[0])
    text = "".join(trace.token_text(i) for i in np.flatnonzero(trace.document_ids == first)[1:])
    assert held_out.beginnings(documents)[first].text.startswith(text)
    assert all(len(document.text) <= 600 for document in held_out.beginnings(documents))
    # More than the validation documents: those of the other split are read too.
    assert trace.document_ids.max() >= len(run.held_out("validation"))


def test_a_probe_keeps_sources_and_what_the_model_predicted(trained_root: Path) -> None:
    run = load_run("tiny", trained_root)
    documents = run.run.held_out("unseen")
    dataset = TokenDataset.build(documents, run.tokenizer, run.run.domains()).select(60, seed=0)
    trace = probe_routing(run.model, dataset, seq_len=32, vocabulary=run.tokenizer.vocabulary(), source="x")
    assert trace.predicted_ids is not None
    for document in np.unique(dataset.document_ids):
        own = trace.document_ids == document
        ids = trace.token_ids[own]
        assert len(ids) < 32
        with torch.inference_mode():
            logits = run.model(torch.from_numpy(ids.astype(np.int64))[None]).logits
        assert trace.predicted_ids[own].tolist() == logits[0].argmax(dim=-1).tolist()
        sources = dataset.source_ids[dataset.document_ids == document]
        assert set(trace.source_ids[own].tolist()) == set(sources.tolist())
    stored = sorted((trained_root / "tiny" / "probes").glob("*.parquet"))
    assert all(RoutingTrace.load(path).predicted_ids is not None for path in stored)
    assert stored


def test_nothing_to_trace_is_refused(loaded: Loaded) -> None:
    with pytest.raises(UsageError, match="no text to trace"):
        trace_text(loaded, "")
    with pytest.raises(DataError, match="lone surrogate"):
        trace_text(loaded, "\ud800")
    with pytest.raises(UsageError, match="nothing to trace"):
        trace_documents(loaded, [])
    with pytest.raises(UsageError, match="tokens_per_domain = 1"):
        trace_documents(loaded, [Document("x", "a", "", "")], tokens_per_domain=1)
