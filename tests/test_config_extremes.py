"""What passes validation works: no number that a configuration may hold becomes NaN, infinity or an overflow later."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from routers_support import BASE
from training_support import make_config, write_corpus

from moe_core.config import Config, ModelConfig, TrainingConfig, validate_config
from moe_core.config.router import RouterConfig, RouterKind
from moe_core.config.section import Section
from moe_core.errors import UsageError
from moe_core.model.transformer import MoETransformer
from moe_core.runs.folder import RunFolder
from moe_core.training.batches import TensorBatch
from moe_core.training.gradient import batch_losses
from moe_core.training.loop import train

EXTREMES = [
    5e-324, 1e-300, 1e-45, 1e-38, 1e-30, 1e-12, 1e-6, 1e-3, 0.5, 0.999999, 1 - 2**-53, 1.0, 10.0, 256.0, 4096.0, 1e6,
    1e12, 1e38, 1e300, 1.7e308,
]  # fmt: skip
SIZES = {
    "vocab_size", "dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "max_seq_len", "num_experts", "top_k",
    "expert_hidden_dim", "shared_expert_hidden_dim", "dense_hidden_dim",
}  # fmt: skip
"""They cost memory, which is checked elsewhere (test_model_size.py)."""
KIND_OF: dict[str, RouterKind] = {
    "top_p": "top_p", "entropy_loss_coef": "top_p", "mean_experts": "expert_threshold",
    "threshold_decay": "expert_threshold", "pool_size": "document_pool", "bias_update_speed": "sigmoid",
}  # fmt: skip


def numbers_of(section: type[Section]) -> list[str]:
    def is_number(annotation: Any) -> bool:
        return bool({float, int} & {annotation, *get_args(annotation)})

    return [name for name, field in section.model_fields.items() if is_number(field.annotation) and name not in SIZES]


def config_or_none(tree: dict[str, Any], name: str) -> Config | None:
    """The configuration, or None where it is refused in one line that names the key."""
    try:
        return validate_config(tree)
    except UsageError as error:
        message = str(error)
    assert name in message
    assert "\n" not in message
    return None


@pytest.mark.parametrize(
    ("section", "name"),
    [*(("model", name) for name in numbers_of(ModelConfig)), *(("router", name) for name in numbers_of(RouterConfig))],
)
def test_every_number_that_a_model_may_have_gives_finite_losses_and_gradients(section: str, name: str) -> None:
    tried = 0
    for value in [*EXTREMES, 0, 1, 3, 10**9, 2**63, 10**30]:
        router: dict[str, Any] = {"kind": KIND_OF.get(name, "softmax")}
        model: dict[str, Any] = {**BASE, "max_seq_len": 2048, "router": router}
        (router if section == "router" else model)[name] = value
        config = config_or_none({"model": model}, name)
        if config is None:
            continue
        tried += 1
        torch.manual_seed(0)
        network = MoETransformer(config.model)
        ids = torch.from_numpy(np.random.default_rng(0).integers(1, 300, (1, 2048)).astype(np.int64))
        batch = TensorBatch(ids[:, :24], ids[:, 1:25])
        losses, routed = batch_losses(network.train(), batch, config.model.router)
        losses.total.backward()  # type: ignore[no-untyped-call]
        network.after_step([one.detach() for one in routed])
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        with torch.no_grad():
            far = network.eval()(ids).logits
        for tensor in (losses.total, far, *gradients, *network.buffers()):
            assert torch.isfinite(tensor).all(), (name, value)
    assert tried


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.capacity_factor", "1e300"),
        ("model.capacity_factor", "1.7e308"),
        ("model.capacity_factor", "1e38"),
        ("model.capacity_factor", "0"),
        ("model.rope_theta", "1e-300"),
        ("model.rope_theta", "5e-324"),
        ("model.rope_theta", "1e300"),
        ("model.rope_theta", "-1"),
        ("model.norm_eps", "1e-300"),
    ],
)
def test_a_number_out_of_range_is_one_line_with_key_and_range(key: str, value: str) -> None:
    section, name = key.split(".")
    with pytest.raises(UsageError, match=rf"{name}.*(less|greater) than or equal to|{name}.*greater than 0") as refusal:
        validate_config({section: {name: float(value)}})
    assert "\n" not in str(refusal.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in numbers_of(TrainingConfig) if name not in {"steps", "batch_size", "seq_len", "threads"}]
)
def test_every_number_that_training_may_have_trains(name: str, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl")
    field = TrainingConfig.model_fields[name]
    values: list[float] = (
        [1e-300, 1.0, 1e300] if float in {field.annotation, *get_args(field.annotation)} else [64, 10**30]
    )
    for number, value in enumerate(values):
        tree = make_config(corpus, training__steps=2, training__evaluation_interval=2).model_dump()
        tree["training"][name] = value
        config = config_or_none(tree, name)
        if config is None:
            continue
        run = RunFolder(f"r{number}", tmp_path)
        train(run, config)
        assert all(math.isfinite(loss) for loss in run.metrics("train")["loss"])
