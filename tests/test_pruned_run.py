"""A run that was cut to fewer experts computes what the masked one computes, and is a run like any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from moe_core.config import Config, validate_config
from moe_core.errors import UsageError
from moe_core.exchange.pruned_run import check_kept, prune_model, refuse_router
from moe_core.routing import intervene
from moe_core.runs.checkpoint import load_run


def test_a_cut_run_has_the_rows_of_its_experts_and_the_logits_of_the_masked_one(trained_root: Path) -> None:
    loaded = load_run("tiny", trained_root)
    layers = loaded.config.model.moe_layers
    kept = {layer: [0, 2, 3] if layer % 2 else [1, 2, 3] for layer in layers}
    pruned = prune_model(loaded, kept)
    assert pruned.config.model.num_experts == 3
    for layer in layers:
        old, new = loaded.model.state_dict(), pruned.model.state_dict()
        for name in ("router.weight", "experts.gate_proj", "experts.up_proj", "experts.down_proj"):
            key = f"layers.{layer}.moe.{name}"
            assert torch.equal(new[key], old[key][kept[layer]])
    ids = torch.arange(40)[None] % loaded.config.model.vocab_size
    gone = [(layer, ({0, 1, 2, 3} - set(experts)).pop()) for layer, experts in kept.items()]
    with intervene(loaded.model, ablate=gone, mode="reroute"):
        masked = loaded.model(ids).logits
    assert not torch.allclose(masked, loaded.model(ids).logits, atol=1e-3), "masking must change something here"
    assert torch.allclose(pruned.model(ids).logits, masked, atol=1e-4)


@pytest.mark.parametrize(
    ("router", "reason"),
    [
        ({"kind": "hash"}, "goes by a table"),
        ({"kind": "expert_choice"}, "experts that choose tokens"),
        ({"kind": "document_pool"}, "pools of a fixed number"),
        ({"kind": "top_p"}, "stops at a share of all"),
        ({"kind": "softmax", "normalize_scores": False}, "by their share of all"),
        ({"kind": "softmax", "balancing": "bias"}, "adds its bias to shares"),
    ],
)
def test_a_router_that_would_choose_otherwise_is_refused_by_name(
    router: dict[str, object], reason: str, tiny_config: Config
) -> None:
    tree = tiny_config.model_dump()
    tree["model"]["router"] = router
    with pytest.raises(UsageError, match=f"{router['kind']} cannot be pruned exactly.*{reason}"):
        refuse_router(validate_config(tree).model)


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ({0: [0, 1]}, "layers"),
        ({0: [0, 1], 1: [0, 1, 2]}, "as many in each"),
        ({0: [0], 1: [1]}, "cannot be kept"),
        ({0: [1, 0], 1: [0, 1]}, "ascending"),
        ({0: [0, 4], 1: [0, 1]}, "0 to 3"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(kept: dict[int, list[int]], said: str, tiny_config: Config) -> None:
    assert tiny_config.model.moe_layers == (0, 1)
    with pytest.raises(UsageError, match=said):
        check_kept(kept, tiny_config.model)


def test_the_command_refuses_what_leaves_too_few(trained_root: Path, cli: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = cli(trained_root, "prune", "--run", "tiny", "--keep", "1", "--as", "tiny-1")
    assert code == 2
    assert "--keep 1 of 4 experts" in err
    assert not (trained_root / "tiny-1").exists()
