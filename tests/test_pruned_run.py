"""A run that was cut to fewer experts computes what the masked one computes, and is a run like any other."""

from __future__ import annotations

import json
import shutil
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


def test_the_command_writes_a_run_that_opens_and_a_list_that_makes_it_again(
    trained_root: Path, tmp_path: Path, cli: Callable[..., tuple[int, str, str]]
) -> None:
    shutil.copytree(trained_root / "tiny", tmp_path / "tiny")
    keep = tmp_path / "keep.json"
    code, out, err = cli(tmp_path, "prune", "--run", "tiny", "--keep", "3", "--as", "tiny-3", "--list", str(keep))
    assert code == 0, err
    assert "surely" in out or "cannot be told" in out
    assert "Logits differ from those of the masked run by at most" in out
    assert "times as fast" in out
    pruned, whole = load_run("tiny-3", tmp_path), load_run("tiny", tmp_path)
    assert pruned.config.model.num_experts == 3
    assert pruned.run.held_out("unseen") == whole.run.held_out("unseen")
    status = pruned.run.status()
    assert status is not None
    assert "pruned from run tiny" in status.message
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".tmp-")]

    code, out, err = cli(tmp_path, "prune", "--run", "tiny", "--keep-list", str(keep), "--as", "again", "--json")
    assert code == 0, err
    figures = json.loads(out)
    kept = {
        str(layer): [one["expert"] for one in figures["list"]["experts"] if one["layer"] == layer and one["keep"]]
        for layer in whole.config.model.moe_layers
    }
    for name, tensor in load_run("again", tmp_path).model.state_dict().items():
        assert torch.equal(tensor, pruned.model.state_dict()[name]), name
        if ".experts." in name or "router.weight" in name:
            assert torch.equal(tensor, whole.model.state_dict()[name][kept[name.split(".")[1]]])
    assert set(figures["curves"]["points"][0]) >= {"by", "delta_nats", "low", "high"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--keep", "3"), "give one of --run NAME"),
        (("x.parquet", "--keep", "3", "--as", "y"), "needs --run NAME"),
        (("--run", "tiny", "--keep", "3", "--as", "tiny"), "is a run already"),
        (("--run", "tiny", "--keep", "4", "--as", "y"), "keeps all experts"),
        (("--run", "tiny", "--keep", "3", "--domain", "poetry"), "no text of domain 'poetry'"),
        (("--run", "tiny", "--keep-list", "none.json", "--as", "y"), "cannot read --keep-list"),
        (("x.parquet", "--keep", "3", "--by", "reap"), "needs the model"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    arguments: tuple[str, ...], said: str, trained_root: Path, cli: Callable[..., tuple[int, str, str]]
) -> None:
    code, _, err = cli(trained_root, "prune", *arguments)
    assert code == 2
    assert said in err
    assert "Traceback" not in err
