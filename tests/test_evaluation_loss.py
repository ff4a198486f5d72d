"""Loss over documents and the unigram baseline, against numbers worked out by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from moe_core.config import ModelConfig
from moe_core.data.tokens import TokenDataset
from moe_core.evaluation.loss import count_text_tokens, evaluate_loss, unigram_nats
from moe_core.model.transformer import MoETransformer

END = 4
# Three documents over a vocabulary of 0..3 and end-of-text = 4; "a" has 6 bytes of text, "b" has 4.
DOCUMENTS = ([END, 0, 1, 0], [END, 2], [END, 3, 3])


def dataset(documents: tuple[list[int], ...] = DOCUMENTS, domain_ids: tuple[int, ...] = (0, 0, 1)) -> TokenDataset:
    return TokenDataset(
        token_ids=np.concatenate([np.array(ids, dtype=np.int32) for ids in documents]),
        document_ids=np.repeat(np.arange(len(documents), dtype=np.int32), [len(ids) for ids in documents]),
        source_ids=np.repeat(np.arange(len(documents), dtype=np.int32), [len(ids) for ids in documents]),
        domain_ids=np.repeat(np.array(domain_ids, dtype=np.int16), [len(ids) for ids in documents]),
        positions=np.concatenate([np.arange(len(ids), dtype=np.int32) for ids in documents]),
        domains=("a", "b"),
        domain_bytes=np.array([6, 4], dtype=np.int64),
    )


class FixedModel(nn.Module):
    """Predicts token v with probability `p_V[v]` whatever came before: every loss can be read off by hand."""

    def __init__(self, p_V: list[float]) -> None:
        super().__init__()
        self.log_p_V = nn.Parameter(torch.tensor(p_V).log())
        self.modes: list[bool] = []

    def forward(self, token_ids: torch.Tensor) -> SimpleNamespace:
        self.modes.append(self.training)
        return SimpleNamespace(logits=self.log_p_V.expand(*token_ids.shape, -1))


def test_loss_perplexity_bits_and_domains_equal_the_hand_computed_values() -> None:
    # Text tokens: 0, 1, 0 | 2 | 3, 3 with probabilities 1/2, 1/4, 1/2 | 1/8 | 1/16, 1/16:
    # 1 + 2 + 1 + 3 = 7 bits in domain a (4 tokens), 8 bits in domain b (2 tokens).
    report = evaluate_loss(FixedModel([1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 16]), dataset(), seq_len=8)  # type: ignore[arg-type]
    assert report.tokens == 6
    assert report.nats_per_token == pytest.approx(15 / 6 * math.log(2))
    assert report.perplexity == pytest.approx(2 ** (15 / 6))
    assert report.bits_per_byte == pytest.approx(15 / 10)
    assert report.by_domain == pytest.approx({"a": 7 / 4 * math.log(2), "b": 4 * math.log(2)})


def test_a_domain_without_text_is_left_out_rather_than_scored_as_zero() -> None:
    report = evaluate_loss(FixedModel([0.2] * 5), dataset(domain_ids=(0, 0, 0)), seq_len=8)  # type: ignore[arg-type]
    assert set(report.by_domain) == {"a"}
    assert report.nats_per_token == pytest.approx(math.log(5))


def test_the_model_is_scored_in_evaluation_mode_and_its_mode_put_back() -> None:
    model = FixedModel([0.2] * 5).train()
    evaluate_loss(model, dataset(), seq_len=8)  # type: ignore[arg-type]
    assert model.training
    assert not any(model.modes)


def test_a_dataset_without_text_is_an_error_not_a_nan() -> None:
    empty = dataset(documents=([END], [END]), domain_ids=(0, 1))
    with pytest.raises(ValueError, match="no text token"):
        evaluate_loss(FixedModel([0.2] * 5), empty, seq_len=8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no text token"):
        unigram_nats(np.ones(5), empty)


def test_unigram_is_add_one_smoothed_and_does_not_score_end_of_text() -> None:
    # Training counts 3, 1, 0, 0, 0 over V = 5: p = 4/9, 2/9, 1/9, 1/9, 1/9; text tokens 0, 1, 0, 2, 3, 3.
    expected = -(2 * math.log(4 / 9) + math.log(2 / 9) + 3 * math.log(1 / 9)) / 6
    assert unigram_nats(np.array([3, 1, 0, 0, 0]), dataset()) == pytest.approx(expected)
    assert unigram_nats(np.zeros(5), dataset()) == pytest.approx(math.log(5))  # no data: uniform


@pytest.fixture(scope="module")
def model() -> MoETransformer:
    torch.manual_seed(0)
    return MoETransformer(
        ModelConfig(
            vocab_size=300,
            dim=32,
            num_layers=2,
            num_heads=2,
            num_kv_heads=1,
            head_dim=16,
            max_seq_len=64,
            num_experts=4,
            expert_hidden_dim=16,
        )
    )


def real_dataset() -> TokenDataset:
    random = np.random.default_rng(1)
    lengths = (5, 17, 40, 2, 33, 9)
    documents = tuple([299, *random.integers(0, 299, n).tolist()] for n in lengths)
    return dataset(documents, domain_ids=(0, 1, 0, 1, 0, 1))


def test_the_loss_of_a_real_model_does_not_depend_on_the_batch_size(model: MoETransformer) -> None:
    """Padding and batch neighbours must not leak into a document's loss."""
    data = real_dataset()
    one = evaluate_loss(model, data, seq_len=64, batch_size=1)
    many = evaluate_loss(model, data, seq_len=64, batch_size=8)
    assert one.tokens == many.tokens == count_text_tokens(data) == 106
    assert one.nats_per_token == pytest.approx(many.nats_per_token, rel=1e-5)
    assert one.by_domain == pytest.approx(many.by_domain, rel=1e-5)


def test_the_loss_of_a_real_model_equals_one_document_at_a_time_by_hand(model: MoETransformer) -> None:
    data = real_dataset()
    nats = 0.0
    model.eval()
    for document in range(6):
        ids = torch.from_numpy(data.token_ids[data.document_ids == document].astype(np.int64))
        with torch.no_grad():
            log_p_SV = model(ids[None, :-1]).logits[0].log_softmax(-1)
        nats -= log_p_SV[torch.arange(len(ids) - 1), ids[1:]].sum().item()
    assert evaluate_loss(model, data, seq_len=64).nats_per_token == pytest.approx(nats / 106, rel=1e-5)


def test_long_documents_are_scored_in_chunks_and_progress_reaches_the_end(model: MoETransformer) -> None:
    seen: list[tuple[str, int, int]] = []
    report = evaluate_loss(model, real_dataset(), seq_len=8, batch_size=4, progress=lambda *call: seen.append(call))
    assert report.tokens == 106
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert seen[-1] == ("scoring", 106, 106)
