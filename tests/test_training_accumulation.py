"""A batch that passes in parts gives the step of the whole batch, but for what a router does with a whole batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_support import make_config, write_corpus

from moe_core.config import Config
from moe_core.data.prepare import PreparedData, prepare_data
from moe_core.data.token_stream import training_batch
from moe_core.errors import UsageError
from moe_core.model.losses import load_balancing_loss
from moe_core.model.transformer import MoETransformer
from moe_core.runs import RunFolder
from moe_core.training.batches import TensorBatch, tensor_batch
from moe_core.training.gradient import StepLosses, accumulate_gradient
from moe_core.training.loop import train

CPU = torch.device("cpu")
Gradient = tuple[StepLosses, list[torch.Tensor], list[torch.Tensor]]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "text.jsonl")


@pytest.fixture(scope="module")
def data(corpus: Path) -> PreparedData:
    return prepare_data(make_config(corpus))


def batch_of(data: PreparedData, config: Config) -> TensorBatch:
    batch = training_batch(data.train, 3, batch_size=config.training.batch_size, seq_len=16, seed=0)
    return tensor_batch(batch, CPU)


def gradient(data: PreparedData, config: Config) -> Gradient:
    """Losses, gradients and choices of one batch through a model of seed 0."""
    torch.manual_seed(0)
    model = MoETransformer(config.model).train()
    losses, routed = accumulate_gradient(model, batch_of(data, config), config, autocast=False)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert len(gradients) == len(list(model.parameters()))
    return losses, gradients, [layer.router_indices for layer in routed]


def accumulating(corpus: Path, parts: int, **changes: Any) -> Config:
    return make_config(corpus, training__batch_size=12, training__gradient_accumulation=parts, **changes)


@pytest.mark.parametrize("parts", [2, 3, 12])
def test_parts_give_the_gradient_of_the_whole_batch(parts: int, corpus: Path, data: PreparedData) -> None:
    unbalanced: dict[str, Any] = {"model__router": {"load_balancing_loss_coef": 0.0, "router_z_loss_coef": 0.1}}
    whole, in_parts = (gradient(data, accumulating(corpus, n, **unbalanced)) for n in (1, parts))
    for name in ("total", "language_model", "router_z", "dropped_fraction"):
        torch.testing.assert_close(getattr(in_parts[0], name), getattr(whole[0], name))
    for one, other in zip(in_parts[1], whole[1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
    for chosen, expected in zip(in_parts[2], whole[2], strict=True):
        assert torch.equal(chosen, expected), "token by token, in the order of the batch"


def test_balance_is_asked_of_each_part(corpus: Path, data: PreparedData) -> None:
    config = accumulating(corpus, 3, model__router={"load_balancing_loss_coef": 0.5})
    losses, _, _ = gradient(data, config)
    torch.manual_seed(0)
    model = MoETransformer(config.model).train()
    expected = [
        load_balancing_loss(layer.router_logits, layer.router_indices, 4)
        for part in batch_of(data, config).split(3)
        for layer in model(part.token_ids).router_outputs
    ]
    torch.testing.assert_close(losses.load_balancing, torch.stack(expected).mean().detach())
    assert losses.total > losses.language_model + 0.5 * 0.99
    whole = gradient(data, accumulating(corpus, 1, model__router={"load_balancing_loss_coef": 0.5}))[0]
    assert losses.load_balancing != whole.load_balancing
    torch.testing.assert_close(losses.load_balancing, whole.load_balancing, atol=0.1, rtol=0.0)


def test_a_run_in_parts_ends_where_the_whole_one_does(corpus: Path, tmp_path: Path) -> None:
    nats = [
        train(RunFolder(str(parts), tmp_path), accumulating(corpus, parts, training__steps=15)).unseen_nats
        for parts in (1, 3)
    ]
    assert nats[0] == pytest.approx(nats[1], abs=0.02)


def test_a_batch_splits_into_equal_parts_in_order(corpus: Path, data: PreparedData) -> None:
    batch = batch_of(data, accumulating(corpus, 1))
    (whole,) = batch.split(1)
    assert all(torch.equal(one, other) for one, other in zip(whole, batch, strict=True))
    parts = batch.split(4)
    assert [part.token_ids.shape for part in parts] == [(3, 16)] * 4
    for joined, column in zip(map(torch.cat, zip(*parts, strict=True)), batch, strict=True):
        assert torch.equal(joined, column)


def test_unequal_parts_are_refused_in_one_line(corpus: Path) -> None:
    with pytest.raises(UsageError, match=r"batch_size = 12 is not a multiple of .*gradient_accumulation = 5") as caught:
        accumulating(corpus, 5)
    assert "\n" not in str(caught.value)
