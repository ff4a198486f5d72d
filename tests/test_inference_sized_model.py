"""Models that are named by their size alone: their kind, their name, whether they fit, and that they write."""

from __future__ import annotations

import pytest
import torch

from moe_core.config import load_config
from moe_core.errors import UsageError
from moe_core.inference import sized_model
from moe_core.inference.engine import Engine, Request
from moe_core.inference.own_model import OwnModel
from moe_core.inference.sampling import SamplingConfig
from moe_core.inference.sized_model import check_fits_serving, is_trained, random_model, sized_config, sized_name
from moe_core.model import size
from moe_core.model.random_weights import random_transformer


@pytest.mark.parametrize(
    ("name", "use_moe", "preset", "called"),
    [
        ("7b", None, "7b", "random-7b"),
        ("7b", False, "7b", "random-7b"),
        ("7b", True, "7b-moe", "random-7b-moe"),
        ("7b-moe", None, "7b-moe", "random-7b-moe"),
        ("7b-moe", False, "7b", "random-7b"),
        ("40b", True, "40b-moe", "random-40b-moe"),
        ("quick", None, "quick", "random-quick"),
        ("quick", True, "quick", "random-quick"),
    ],
)
def test_a_size_is_a_preset(name: str, use_moe: bool | None, preset: str, called: str) -> None:
    assert sized_config(name, use_moe) == load_config(preset, environment={})
    assert sized_name(name, use_moe) == called


@pytest.mark.parametrize("name", ["quick", "blues", "blues-01"])
def test_without_experts_a_token_passes_as_many_weights(name: str) -> None:
    dense, mixture = sized_config(name, False).model, sized_config(name).model
    assert not dense.moe_layers
    assert size.active_parameters(dense) == pytest.approx(size.active_parameters(mixture), rel=0.01)
    assert sized_name(name, False) == f"random-{name}-dense"


def test_only_the_demo_is_trained() -> None:
    assert is_trained("demo", None)
    assert is_trained("demo", True)
    assert not is_trained("demo", False)
    assert not is_trained("quick", None)


def test_what_does_not_fit_is_refused_with_what_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(size, "memory_present", lambda _device: 2**34)
    with pytest.raises(UsageError) as caught:
        check_fits_serving("7b", texts=8)
    assert str(caught.value).startswith(
        "a model of size 7b (7,110,660,096 parameters) needs 30.5 GiB in float32 to answer 8 at once, this machine has "
        "16.0 GiB; what fits: default, quick, demo, tiny, small, medium, long, router, blues and blues-01, and 7b with "
        "--dtype bfloat16; "
    )
    check_fits_serving("7b", texts=8, dtype="bfloat16")
    with pytest.raises(UsageError, match=r"size 40b-moe .* what fits: default, .* blues-01 and 7b; `") as caught:
        check_fits_serving("40b", True, dtype="bfloat16")
    assert "\n" not in str(caught.value)


def test_a_random_model_is_the_same_each_time_and_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sized_model, "load_config", lambda _name, **_: small)
    small = load_config("tiny", environment={}, overrides={"model.vocab_size": "300"})
    first, again = random_model("tiny"), random_model("tiny", dtype="bfloat16")
    assert isinstance(first, OwnModel)
    assert isinstance(again, OwnModel)
    assert first.name == "random-tiny, not trained"
    assert first.context_window == 1024
    assert first.model.embedding.weight.shape[0] == first.tokenizer.vocab_size == 300
    assert again.model.embedding.weight.dtype == torch.bfloat16
    assert torch.equal(first.model.embedding.weight, random_model("tiny").model.state_dict()["embedding.weight"])
    assert first.model.embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert first.model.norm.weight.eq(1).all()
    dense = random_model("tiny", False)
    for model in (first, again, dense):
        written = Engine(model).start(Request("The tenant", SamplingConfig(max_new_tokens=5))).result()
        assert len(written.tokens) == 5
        assert written.tokens[0].experts.shape == ((2, 2) if model is not dense else (0, 2))


def test_drawing_leaves_the_callers_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    random_transformer(sized_config("tiny").model, device=torch.device("cpu"))
    assert torch.equal(torch.rand(2), expected)
