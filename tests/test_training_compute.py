"""What a run says of how it computes is what torch does; the router's arithmetic is float32 under autocast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from app_support import Open, shown
from training_support import TINY_CONFIG

from moe_core.config import validate_config
from moe_core.errors import RunError
from moe_core.model import MoETransformer
from moe_core.runs.compute import Compute, read_compute
from moe_core.runs.folder import RunFolder
from moe_core.training.seen_compute import backend_name, seen_compute

CPU = torch.device("cpu")


def config_of(**router: Any) -> Any:
    return validate_config({**TINY_CONFIG, "model": {**TINY_CONFIG["model"], "router": router}})


@pytest.mark.parametrize("kind", ["softmax", "noisy", "sigmoid", "document_pool", "expert_choice"])
def test_the_router_is_float32_where_attention_is_rounded(kind: str) -> None:
    config, state = config_of(kind=kind), torch.get_rng_state()
    plain = seen_compute(config, CPU, autocast=False, rows=2, weights=torch.float32)
    assert plain == Compute("cpu", plain.attention_backend, "float32", "float32", "float32")
    rounded = seen_compute(config, CPU, autocast=True, rows=2, weights=torch.float32)
    assert (rounded.attention_dtype, rounded.router_dtype) == ("bfloat16", "float32")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("choice", [torch.nn.attention.SDPBackend.MATH, None])
def test_the_backend_is_the_one_whose_kernel_runs(choice: Any) -> None:
    query = torch.zeros(2, 2, 8, 16, requires_grad=True)
    allowed = [choice] if choice is not None else list(torch.nn.attention.SDPBackend.__members__.values())[1:4]
    with torch.nn.attention.sdpa_kernel(allowed):
        named = backend_name(torch._fused_sdp_choice(query, query, query, is_causal=True))
        with torch.autograd.profiler.profile() as profile:
            torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True)
        seen = seen_compute(config_of(), CPU, autocast=False, rows=2, weights=torch.float32)
    kernels = [event.name for event in profile.function_events if "_scaled_dot_product" in event.name]
    assert named in kernels[0]
    assert seen.attention_backend == named


def test_logits_of_a_whole_model_under_autocast_are_products_in_float32() -> None:
    torch.manual_seed(0)
    model = MoETransformer(config_of().model)
    states: list[torch.Tensor] = []
    for router in model.routers:
        router.register_forward_pre_hook(lambda _, given: states.append(given[0]))
    with torch.autocast("cpu", torch.bfloat16):
        found = model(torch.randint(300, (2, 16)))
    assert found.logits.dtype == torch.bfloat16
    for router, x_TD, routed in zip(model.routers, states, found.router_outputs, strict=True):
        assert router.weight is not None
        exact = torch.nn.functional.linear(x_TD.float(), router.weight)
        assert torch.equal(routed.router_logits, exact)
        assert not torch.equal(routed.router_logits, exact.bfloat16().float())
        assert routed.router_scores.dtype == torch.float32


def test_a_run_keeps_it_and_the_page_says_it(trained_root: Path, tmp_path: Path, dashboard: Open) -> None:
    kept = read_compute(RunFolder("tiny", trained_root))
    assert kept is not None
    assert kept.router_dtype == "float32"
    assert kept.sentence in shown(dashboard(trained_root, "training", run="tiny"))
    run = RunFolder("other", tmp_path)
    assert read_compute(run) is None
    run.path.mkdir()
    (run.path / "compute.json").write_text("{}")
    with pytest.raises(RunError, match=r"compute\.json"):
        read_compute(run)
