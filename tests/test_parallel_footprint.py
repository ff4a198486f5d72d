"""What a rank keeps and sends, by formula and by torch's own counts: hundreds of ranks that talk to nobody."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moe_core.config import load_config
from moe_core.config.parallel import ParallelConfig
from moe_core.training.parallel.footprint import cut_along_width, rank_memory, rank_traffic

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
# (preset, layout): every weight of the largest presets is cut as a training would cut it, on the meta device.
LAYOUTS = [
    ("7b-moe", {"shard": 8}),
    ("7b-moe", {"data": 2, "shard": 16, "expert": 2}),
    ("40b-moe", {"shard": 64}),
    ("40b-moe", {"shard": 64, "expert": 8}),
    ("40b-moe", {"data": 8, "shard": 8, "expert": 8}),
    ("7b-moe", {"shard": 4, "tensor": 2}),
]
COUNTED = [{"shard": 2}, {"data": 2, "shard": 2}, {"shard": 8}]
WORKER = """
import json, sys
import torch
from torch import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from moe_core.config import load_config
from moe_core.config.parallel import ParallelConfig
from moe_core.model.outline import outline
from moe_core.model.transformer import MoETransformer
from moe_core.training.parallel.mesh import mesh_of
from moe_core.training.parallel.wrap import SpreadModel, spread
from moe_core.training.shared_weights import local_part

class Sent(TorchDispatchMode):
    # Bytes that a ring would send: the arguments of each operation of torch.distributed.
    def __init__(self, ranks):
        super().__init__()
        self.ranks, self.bytes = ranks, {"gather": 0.0, "scatter": 0.0, "sum": 0.0}
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            name = func.name().split("::")[1]
            if name.startswith("_allgather_base"):
                self.bytes["gather"] += args[0].nbytes - args[1].nbytes
            elif name.startswith("_reduce_scatter_base"):
                self.bytes["scatter"] += args[1].nbytes - args[0].nbytes
            elif name.startswith("allreduce"):
                self.bytes["sum"] += sum(one.nbytes for one in args[0] if one.numel() > 64)  # statistics are no weights
        return func(*args, **(kwargs or {}))

found = []
for preset, sizes, counts in json.loads(sys.argv[1]):
    layout = ParallelConfig(**sizes)
    distributed.init_process_group("fake", rank=0, world_size=layout.processes, store=FakeStore())
    config = load_config(preset, environment={})
    model = MoETransformer(config.model) if counts else outline(config.model)
    mesh = mesh_of(layout, torch.device("cpu"))
    if not counts:
        spread(model, mesh)
        found.append(sum(local_part(one).numel() for one in model.parameters()))
    else:
        spread_model = SpreadModel(model, mesh, 0)
        with Sent(layout) as sent:
            states = spread_model.states(torch.randint(300, (1, 16))).states
            torch.nn.functional.linear(states, model.head).square().mean().backward()
            spread_model.finish_gradients()
        found.append(sent.bytes)
    distributed.destroy_process_group()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def counted() -> list[object]:
    """What torch says of every layout, in one process: [numbers of the first rank ..., bytes sent ...]."""
    cases = [(preset, sizes, False) for preset, sizes in LAYOUTS] + [("tiny", sizes, True) for sizes in COUNTED]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WORKER, json.dumps(cases)],
        cwd=ROOT, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[object] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("number", range(len(LAYOUTS)))
def test_weights_of_a_rank_are_those_that_torch_keeps(counted: list[object], number: int) -> None:
    preset, sizes = LAYOUTS[number]
    memory = rank_memory(load_config(preset, environment={}), ParallelConfig(**sizes))
    assert memory.weights == memory.gradients == memory.optimizer // 2 == 4 * counted[number]


@pytest.mark.parametrize("number", range(len(COUNTED)))
def test_what_a_rank_sends_is_what_torch_hands_over(counted: list[object], number: int) -> None:
    sent, layout = counted[len(LAYOUTS) + number], ParallelConfig(**COUNTED[number])
    config = load_config("tiny", environment={})
    traffic = rank_traffic(config, layout)
    assert isinstance(sent, dict)
    assert traffic.shard == pytest.approx(sent["gather"] + sent["scatter"], rel=0.02)  # norms are padded
    alike = layout.data * layout.expert
    assert traffic.data == pytest.approx(2 * (alike - 1) / alike * sent["sum"], rel=0.02)


def test_stacked_experts_are_cut_where_every_rank_keeps_a_part() -> None:
    assert not cut_along_width([16, 512, 256], 8), "two experts each"
    assert cut_along_width([8, 512, 256], 64)
    assert not cut_along_width([8, 511, 256], 64), "uneven parts are for the first axis only"
    assert not cut_along_width([4096, 4096], 64)


def test_tokens_travel_by_formula() -> None:
    config = load_config("tiny", environment={})
    model, training = config.model, config.training
    traffic = rank_traffic(config, ParallelConfig(expert=4))
    slots = training.batch_size // 4 * training.seq_len * model.top_k * len(model.moe_layers)
    assert traffic.expert == 4 * slots * model.dim * 4 * 3 // 4
    assert rank_traffic(config, ParallelConfig()).total == 0
    one = rank_memory(config, ParallelConfig())
    assert one.gathered == 0


def test_the_page_has_the_figures_of_the_command(tmp_path: Path, cli: Callable[..., tuple[int, str, str]]) -> None:
    target = tmp_path / "scale.json"
    code, out, err = cli(tmp_path, "scale", "--json", str(target))
    assert code == 0, err
    assert "none fits" in out
    known = {
        (one["preset"], one["gpus"], str(ParallelConfig(**one["layout"]))): one
        for one in json.loads(target.read_text())["layouts"]
    }
    rows = re.findall(r"^\| (\S+) \| (\d+) \| (.+?) \| ([\d.]+) \| ([\d.]+) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 10
    for preset, gpus, layout, keeps, sends in rows:
        one = known[preset, int(gpus), layout]
        assert float(keeps) == pytest.approx(one["memory_bytes"]["total"] / 2**30, abs=0.06)
        assert float(sends) == pytest.approx(one["sent_bytes"]["total"] / 2**30, abs=0.06)
    code, _, err = cli(tmp_path, "scale", "--preset", "7b")
    assert code != 0
    assert "expected a preset with experts" in err
