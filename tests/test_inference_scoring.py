"""Nats and ranks of tokens: by hand, with ties, and in parts."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from moe_core.data.tokens import TokenDataset
from moe_core.data.windows import window_batches
from moe_core.evaluation.ablation import ablation_map
from moe_core.evaluation.effects import token_effects
from moe_core.evaluation.loss import evaluate_loss
from moe_core.evaluation.tasks import encode_pair, likelihoods
from moe_core.evaluation.tasks.scored_tokens import score_tokens
from moe_core.inference import scoring
from moe_core.inference.open import language_model
from moe_core.inference.scoring import predictions, token_nats, token_ranks
from moe_core.inference.tracing import trace_dataset
from moe_core.routing import Intervention
from moe_core.runs.checkpoint import load_run


def test_nats_and_ranks_by_hand() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log().repeat(4, 1)
    targets = torch.arange(4)
    assert token_nats(logits, targets).tolist() == pytest.approx([math.log(n) for n in (2, 4, 8, 8)])
    assert token_ranks(logits, targets).tolist() == [1, 2, 3, 4], "of equally likely tokens the lower id comes first"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rank_one_is_what_greedy_decoding_writes(dtype: torch.dtype) -> None:
    """Coarse logits, so that ties are many: exactly one token of each row is of rank 1, the first of the largest."""
    logits = torch.randint(0, 4, (50, 9), generator=torch.Generator().manual_seed(0)).to(dtype)
    ranks = torch.stack([token_ranks(logits, torch.full((50,), token)) for token in range(9)], dim=1)
    assert ranks.sort(dim=1).values.tolist() == [list(range(1, 10))] * 50
    firsts = [row.index(max(row)) for row in logits.tolist()]
    assert (ranks == 1).int().argmax(dim=1).tolist() == firsts


def test_a_text_is_scored_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.arange(30, dtype=np.int32) % 11
    zeros = np.zeros(30, dtype=np.int32)
    dataset = TokenDataset(ids, zeros, zeros, zeros.astype(np.int16), np.arange(30, dtype=np.int32), ("a",), zeros[:1])
    table = torch.randn(11, 11, generator=torch.Generator().manual_seed(1))

    def read() -> tuple[np.ndarray, np.ndarray]:
        windows = window_batches(dataset, 8, every_token=False)
        (found,) = predictions(lambda ids_BS: table[ids_BS], torch.device("cpu"), dataset, windows)
        assert found.windows.targets.tolist() == list(range(1, 30))
        return found.nats(), found.ranks()

    nats, ranks = read()
    log_p = table.log_softmax(-1)[ids[:-1].tolist()]
    assert nats.tolist() == pytest.approx([-float(log_p[at, target]) for at, target in enumerate(ids[1:])], rel=1e-5)
    monkeypatch.setattr(scoring, "_MAX_SCORED", 22)
    in_parts = read()
    np.testing.assert_array_equal(in_parts[0], nats)
    np.testing.assert_array_equal(in_parts[1], ranks)


def test_a_text_has_one_loss_whoever_asks(trained_root: Path) -> None:
    """--evaluate, the suite, traces, interventions, the causal map and likelihoods, on documents of several windows."""
    loaded = load_run("tiny", trained_root)
    model, tokenizer = language_model(loaded), loaded.tokenizer
    size = model.context_window
    long = [document for split in ("validation", "unseen") for document in loaded.run.held_out(split)]
    documents = [document for document in long if len(tokenizer.encode(document.text)) > 2 * size][:4]
    assert len(documents) == 4
    dataset = TokenDataset.build(documents, tokenizer, loaded.run.domains())
    text_T = dataset.positions > 0
    losses = trace_dataset(loaded, dataset).losses.astype(np.float64)[text_T]
    evaluated = evaluate_loss(loaded.model, dataset, seq_len=loaded.config.training.seq_len)
    assert evaluated.tokens == len(losses)
    assert evaluated.nats_per_token == pytest.approx(losses.mean(), rel=1e-6)
    scored = score_tokens(model, dataset, seq_len=loaded.config.training.seq_len)
    assert np.sort(scored.nats) == pytest.approx(np.sort(losses), rel=1e-4)
    effects = token_effects(loaded, dataset, Intervention(ablate=((0, 1),)))
    np.testing.assert_allclose(effects.losses_before[text_T], losses, rtol=1e-4)
    (row,) = ablation_map(loaded, dataset, layers=[0], experts=[1]).query("domain == 'all'").to_dict("records")
    assert row["delta_nats"] == pytest.approx(effects.delta[text_T].astype(np.float64).mean(), abs=1e-5)
    found = likelihoods(model, [encode_pair(model, "", document.text) for document in documents])
    assert -sum(one.log_probability for one in found) == pytest.approx(losses.sum(), rel=1e-5)


def test_the_processor_finds_the_ranks_and_likeliest_tokens_that_an_accelerator_finds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Numpy's way and torch's, on logits with many ties, of which some are NaN or infinite."""
    random = torch.Generator().manual_seed(0)
    logits_NV = torch.randint(-3, 4, (200, 17), generator=random).float()
    logits_NV[::7, 3], logits_NV[::5, 11], logits_NV[3::11, 5] = -torch.inf, torch.inf, torch.nan
    targets_N = torch.randint(17, (200,), generator=random)
    found = [scoring.token_ranks(logits_NV, targets_N), scoring.likeliest(logits_NV[None])]
    monkeypatch.setattr(scoring, "_numpy_logits", lambda _: None)
    for ours, wanted in zip(
        found, [scoring.token_ranks(logits_NV, targets_N), scoring.likeliest(logits_NV[None])], strict=True
    ):
        assert (ours.dtype, ours.shape) == (wanted.dtype, wanted.shape)
        assert torch.equal(ours, wanted)
