"""Attention heads masked one by one: a masked head is one that is not there, measured as experts are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from app_support import Open, shown
from routers_support import BASE, tokens

from moe_core.config import ModelConfig
from moe_core.evaluation.heads import head_effects, without_head
from moe_core.evaluation.loss import evaluate_loss
from moe_core.figures.causes import heads_map_figure
from moe_core.inference.held_out import ABLATED_TOKENS_PER_DOMAIN, held_out_text
from moe_core.model import MoETransformer
from moe_core.runs.analysis import read_ablation_map, read_head_effects
from moe_core.runs.checkpoint import load_run

HEADS, WIDTH = 3, 8


@torch.no_grad()
def test_a_masked_head_is_a_model_without_it() -> None:
    """Against a model that has a head less in every layer, built without it."""
    sizes = {**BASE, "num_heads": HEADS, "num_kv_heads": HEADS, "head_dim": WIDTH}
    torch.manual_seed(0)
    whole = MoETransformer(ModelConfig.model_validate(sizes)).eval()
    for parameter in whole.parameters():
        if parameter.ndim > 1:
            parameter.mul_(6.0)
    smaller = MoETransformer(ModelConfig.model_validate({**sizes, "num_heads": 2, "num_kv_heads": 2})).eval()
    left = torch.tensor([at for at in range(HEADS * WIDTH) if not WIDTH <= at < 2 * WIDTH])
    state = {}
    for name, tensor in whole.state_dict().items():
        rows = any(part in name for part in ("q_proj", "k_proj", "v_proj"))
        state[name] = tensor[left] if rows else tensor[:, left] if "o_proj" in name else tensor
    smaller.load_state_dict(state)
    ids = tokens()
    before = whole(ids).logits
    with without_head(whole, 0, 1), without_head(whole, 1, 1), without_head(whole, 2, 1):
        masked = whole(ids).logits
    torch.testing.assert_close(masked, smaller(ids).logits, atol=1e-5, rtol=1e-5)
    assert (masked - before).abs().max() > 0.01
    assert torch.equal(whole(ids).logits, before)


@pytest.fixture
def own_run(trained_root: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained_root / "tiny", tmp_path / "tiny")
    return tmp_path


def test_each_head_is_measured_as_the_whole_model_without_it_would_be(own_run: Path) -> None:
    loaded = load_run("tiny", own_run)
    dataset = held_out_text(loaded.run, loaded.tokenizer, ABLATED_TOKENS_PER_DOMAIN)
    found = head_effects(loaded, dataset, keep=False)
    model = loaded.config.model
    assert len(found) == model.num_layers * model.num_heads * (1 + len(dataset.domains))
    layer, head = 1, 0
    losses = [evaluate_loss(loaded.model, dataset, seq_len=loaded.config.training.seq_len)]
    with without_head(loaded.model, layer, head):
        losses.append(evaluate_loss(loaded.model, dataset, seq_len=loaded.config.training.seq_len))
    own = found[(found["layer"] == layer) & (found["head"] == head)].set_index("domain")
    assert own["delta_nats"]["all"] == pytest.approx(losses[1].nats_per_token - losses[0].nats_per_token, abs=1e-5)
    for domain in dataset.domains:
        change = losses[1].by_domain[domain] - losses[0].by_domain[domain]
        assert own["delta_nats"][domain] == pytest.approx(change, abs=1e-5)
    assert (found["kl"] >= 0).all()
    assert (found["low"] <= found["delta_nats"]).all()
    assert not list(own_run.glob("tiny/analysis/*"))


def test_the_command_keeps_heads_and_the_page_shows_them_beside_experts(
    own_run: Path, cli: Callable[..., tuple[int, str, str]], tmp_path: Path, dashboard: Open
) -> None:
    at = dashboard(own_run, "interventions", run="tiny")
    assert "Mask each of 4 heads" in [button.label for button in at.button]
    code, out, error = cli(own_run, "ablate", "--run", "tiny", "--heads", "--json", str(tmp_path / "heads.json"))
    assert code == 0, error
    kept = read_head_effects(load_run("tiny", own_run).run)
    assert kept is not None
    said = json.loads((tmp_path / "heads.json").read_text())
    assert np.allclose([row["delta_nats"] for row in said["effects"]], kept["delta_nats"])
    experts = read_ablation_map(load_run("tiny", own_run).run)
    assert experts is not None
    assert len(experts) == len(kept) // 4  # the page measured one expert, and heads are none
    assert heads_map_figure(kept).verdict in " ".join(out.split())
    at = dashboard(own_run, "interventions", run="tiny")
    assert not at.exception
    assert "Without each attention head" in shown(at)
    assert "measure_heads" not in [button.key for button in at.button]
    for arguments, words in (
        (("--mode", "reroute"), "--mode reroute is of experts"),
        (("--curve",), "--curve and --heads"),
        (("--layer", "7"), "layer 7 is not in the model"),
    ):
        code, _, error = cli(own_run, "ablate", "--run", "tiny", "--heads", *arguments)
        assert code == 2
        assert words in error
