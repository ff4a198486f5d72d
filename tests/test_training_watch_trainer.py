"""A real Trainer of the transformers library, watched: with recomputed layers, accumulated gradients and adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="Hugging Face models need requirements-huggingface.txt")
pytest.importorskip("accelerate", reason="the Trainer needs accelerate")
from huggingface_support import tiny_model, trained_tokenizer
from test_training_watch import counted
from transformers import Trainer, TrainingArguments

from moe_core.routing import capture
from moe_core.routing.instruments.find import find_routers
from moe_core.runs import RunFolder
from moe_core.training import MoescopeCallback, watch

# peft and the Trainer still use names that transformers is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
ROWS, LENGTH, PADDED = 24, 16, 5


@pytest.fixture(autouse=True)
def _reads_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_core.training.watching.READ_SHARE", np.inf)


def rows() -> list[dict[str, torch.Tensor]]:
    """Every other one with padding in front."""
    drawn = torch.Generator().manual_seed(0)
    found = []
    for number in range(ROWS):
        ids = torch.randint(1, 300, (LENGTH,), generator=drawn)
        mask = torch.ones_like(ids)
        mask[: PADDED * (number % 2)] = 0
        found.append({"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)})
    return found


def by_capture(model: Any) -> np.ndarray:
    """[L,E] what the routers choose for all rows, without padding."""
    ids, mask = (torch.stack([row[name] for row in rows()]) for name in ("input_ids", "attention_mask"))
    with capture(model.eval()) as recorder, torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
    trace = recorder.trace(token_ids=ids, attention_mask=mask)
    return np.stack([np.bincount(row.ravel(), minlength=trace.num_experts) for row in trace.router_indices])


def trainer(model: Any, folder: Path, **settings: Any) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        num_train_epochs=1,
        learning_rate=0.0,  # the weights stay, so that the order of the rows does not matter
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **settings,
    )
    data: Any = rows()
    callback = MoescopeCallback("theirs", every=4, root=folder)
    return Trainer(model, arguments, train_dataset=data, eval_dataset=data[:4], callbacks=[callback])


@pytest.mark.parametrize("kind", ["plain", "reentrant", "not reentrant", "adapters"])
def test_every_token_of_an_epoch_is_counted_once(kind: str, tmp_path: Path) -> None:
    model = tiny_model("qwen3_moe")
    expected = by_capture(model)
    settings: dict[str, Any] = {}
    if kind.endswith("reentrant"):
        settings = {
            "gradient_checkpointing": True,
            "gradient_checkpointing_kwargs": {"use_reentrant": kind == "reentrant"},
        }
    if kind == "adapters":
        peft = pytest.importorskip("peft", reason="adapters need peft")
        model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2))
        settings = {"gradient_checkpointing": True}
    trainer(model, tmp_path, **settings).train()
    run = RunFolder("theirs", tmp_path)
    assert np.array_equal(counted(run), expected)
    lines = run.metric_records("train")
    assert [line["step"] for line in lines] == [4, 6]
    assert all(4 < line["loss"] < 8 and line["learning_rate"] == 0.0 for line in lines)
    status = run.status()
    assert status is not None
    tokens = ROWS * LENGTH - ROWS // 2 * PADDED
    assert (status.state, status.step, status.steps, status.tokens) == ("finished", 6, 6, tokens)
    assert not any(router.module._forward_hooks for router in find_routers(model).values())
    if kind == "adapters":
        watched = run.watched()
        assert watched is not None
        assert 0 < watched.trained_parameters < watched.parameters / 10


def test_a_training_that_goes_on_from_a_checkpoint_goes_on_in_its_run(tmp_path: Path) -> None:
    first = trainer(tiny_model("qwen3_moe"), tmp_path)
    first.args.save_strategy, first.args.save_steps, first.args.max_steps = "steps", 3, 4
    first.train()
    run = RunFolder("theirs", tmp_path)
    assert [line["step"] for line in run.metric_records("train")] == [4]
    again = trainer(tiny_model("qwen3_moe"), tmp_path)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    assert [line["step"] for line in run.metric_records("train")] == [6]
    status = run.status()
    assert status is not None
    assert (status.step, status.state) == (6, "finished")


def test_counts_of_learning_weights_are_those_of_the_models_own_router_logits(tmp_path: Path) -> None:
    model = tiny_model("qwen3_moe").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    expected = np.zeros((2, 4), int)
    with watch(model, run="theirs", every=3, root=tmp_path):
        for row in rows():
            ids = row["input_ids"][None]
            out = model(input_ids=ids, labels=ids, output_router_logits=True)
            for layer, logits in enumerate(out.router_logits):
                chosen = logits.topk(2, dim=-1).indices.ravel().numpy()
                expected[layer] += np.bincount(chosen, minlength=4)
            out.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert np.array_equal(counted(RunFolder("theirs", tmp_path)), expected)


def test_a_probe_of_texts_shows_the_text_of_its_tokens(tmp_path: Path) -> None:
    model = tiny_model("qwen3_moe").train()
    probe = {"english": ["The café opened"], "german": ["Der Rest"]}
    with watch(model, run="theirs", root=tmp_path, probe=probe, tokenizer=trained_tokenizer("byte-level")):
        pass
    trace = RunFolder("theirs", tmp_path).probe(0)
    texts = [trace.token_text(place) for place in range(trace.num_tokens)]
    assert "".join(texts).replace("␣", " ") == "The café openedDer Rest"
    assert trace.domains == ["english", "german"]
