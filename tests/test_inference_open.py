"""The one way to open a model: which device it goes to, and when it is spread over several GPUs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moe_core.errors import UsageError
from moe_core.inference import open as opening
from moe_core.inference.open import language_model, open_huggingface, open_run
from moe_core.inference.own_model import OwnModel


def test_a_run_opens_as_its_language_model(trained_root: Path) -> None:
    model = open_run("tiny", trained_root, dtype="bfloat16")
    assert isinstance(model, OwnModel)
    assert model.name.startswith("run tiny, step")
    assert model.model.embedding.weight.dtype == torch.bfloat16
    assert language_model(model) is model
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="cuda"):
            open_run("tiny", trained_root, device="cuda")


@pytest.mark.parametrize(
    ("device", "gpus", "accelerate", "device_map"),
    [
        ("auto", 2, True, "auto"),
        ("auto", 1, True, {"": torch.device("cuda")}),
        ("cuda", 2, True, {"": torch.device("cuda")}),
        ("auto", 2, False, None),
        ("cpu", 2, True, None),
    ],
)
def test_only_a_model_left_to_auto_is_spread_and_accelerate_reads_it_where_it_belongs(
    monkeypatch: pytest.MonkeyPatch, device: str, gpus: int, accelerate: bool, device_map: object
) -> None:
    asked: dict[str, Any] = {}
    went: list[str] = []

    def load(where: str, **options: Any) -> SimpleNamespace:
        asked.update(options, where=where)
        return SimpleNamespace(model=SimpleNamespace(to=lambda place: went.append(place.type)))

    monkeypatch.setattr(opening, "load", load)
    monkeypatch.setattr(opening, "language_model", lambda loaded: loaded)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(opening.importlib.util, "find_spec", lambda _: object() if accelerate else None)
    open_huggingface("somewhere", device=device, trust_remote_code=True)
    assert asked == {
        "where": "somewhere", "device_map": device_map, "dtype": None, "trust_remote_code": True,
    }  # fmt: skip
    assert went == ([] if accelerate else ["cuda"])
