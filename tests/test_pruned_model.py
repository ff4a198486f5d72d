"""Models of the transformers library with fewer experts compute what the whole ones compute without them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_support import TEXT, tiny_config, tiny_model, trained_tokenizer
from transformers import AutoModelForCausalLM

from moe_core.errors import RunError, UsageError
from moe_core.exchange import pruned_model
from moe_core.exchange.pruned_model import prune_model, save_pruned_model
from moe_core.routing.instruments.find import find_routers

CASES = {
    "qwen3_moe": {"num_experts": 6},
    "mixtral": {"num_local_experts": 6},
    "olmoe": {"num_experts": 6, "norm_topk_prob": False},  # weights are shares of all experts
}


def passages() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, 300, (1, 40), generator=generator) for _ in range(2)]


def kept_of(model: Any) -> dict[int, list[int]]:
    return {layer: [0, 2, 3, 5] if layer % 2 else [1, 2, 4, 5] for layer in find_routers(model)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", CASES)
def test_a_cut_model_is_the_one_that_cannot_choose_the_others_and_opens_again(
    family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    tiny_model(family, **CASES[family]).to(dtype).save_pretrained(tmp_path / "whole")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=dtype).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pruned = prune_model(model, kept_of(model), 6, passages())
    assert pruned.difference < 1e-4 < pruned.tolerance
    assert pruned.tokens == 80
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name]), "the whole model stays as it is"
    save_pruned_model(pruned, tmp_path / "whole", tmp_path / "cut")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "cut", dtype=dtype).eval()
    assert {tensor.dtype for tensor in again.state_dict().values()} == {dtype}
    with torch.inference_mode():
        for ids in passages():
            assert torch.equal(again(input_ids=ids).logits, pruned.model(input_ids=ids).logits)
            assert not torch.allclose(again(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-2)


def test_wrong_rows_are_seen_and_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("mixtral", num_local_experts=6)
    kept = kept_of(model)
    right = pruned_model._cut
    monkeypatch.setattr(
        pruned_model, "_cut", lambda *given: right(given[0], given[1], {k: [0, 1, 2, 3] for k in kept}, given[3])
    )
    with pytest.raises(RunError, match=r"differs from the one that masks by .* nothing was written"):
        prune_model(model, kept, 6, passages())


def test_what_cannot_be_cut_is_refused_by_name(tmp_path: Path) -> None:
    model = tiny_model("mixtral", num_local_experts=6)
    with pytest.raises(UsageError, match="1 experts cannot be kept: a token is sent to 2"):
        prune_model(model, {layer: [0] for layer in range(3)}, 6, passages())
    with pytest.raises(UsageError, match="does not say its 7 experts"):
        prune_model(model, kept_of(model), 7, passages())
    model.config.n_group = 2
    with pytest.raises(UsageError, match=r"layer 0 would keep \[3, 1\] experts of its 2 groups"):
        prune_model(model, {layer: [0, 1, 2, 5] for layer in range(3)}, 6, passages())
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        save_pruned_model(pruned_model.PrunedModel(model, 0.0, 1.0, 1), tmp_path, tmp_path / "there")


def test_the_command_prunes_a_folder(tmp_path: Path, cli: Callable[..., tuple[int, str, str]]) -> None:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(tiny_config("qwen3_moe")).save_pretrained(tmp_path / "whole")
    trained_tokenizer("byte-level").save_pretrained(tmp_path / "whole")
    text = tmp_path / "text.jsonl"
    rows = [{"text": TEXT[at:], "domain": "a", "source": str(at)} for at in range(8)]
    text.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    whole, cut = str(tmp_path / "whole"), tmp_path / "cut"
    code, out, err = cli(
        tmp_path, "prune", "--model", whole, "--keep", "3", "--to", str(cut), "--data", str(text), "--json"
    )
    assert code == 0, err
    figures = json.loads(out)
    assert figures["largest_difference"] < 1e-4
    assert figures["parameters"][1] < figures["parameters"][0]
    assert figures["speed"][0]["times_faster"]["median"] > 0
    assert figures["loss"]["low"] <= figures["loss"]["change"] <= figures["loss"]["high"]
    assert AutoModelForCausalLM.from_pretrained(cut).config.num_experts == 3
    assert (cut / "tokenizer.json").is_file()
    code, _, err = cli(tmp_path, "prune", "--model", whole, "--keep", "3", "--to", str(cut))
    assert code == 2
    assert "exists already" in err
