"""What engines make of a file of placement, said again by hand: SGLang 0.5.23 and TensorRT-LLM 1.x."""

from __future__ import annotations

import json
import re
from pathlib import Path

from moe_core.routing.calibration import random_trace


def read_as_sglang(text: str, *, num_experts: int, redundant: int, ep_size: int, hidden_layers: int) -> list[list[int]]:
    """The rows of --init-expert-location FILE.json by layer, as SGLang makes its expert location metadata of them."""
    data = json.loads(text)
    assert list(data) == ["physical_to_logical_map"], "every further key becomes an argument that is not known"
    rows = data["physical_to_logical_map"]
    slots = num_experts + redundant
    assert slots % ep_size == 0
    assert len(rows) == hidden_layers, "a layer looks its row up by its number"
    for row in rows:
        assert len(row) == slots, "rows become one tensor, with a column for each physical expert"
        assert set(row) == set(range(num_experts)), "an expert without a slot could not be reached"
    return rows  # type: ignore[no-any-return]


def read_as_tensorrt_llm(text: str, *, num_experts: int, ep_size: int, moe_layers: list[int]) -> dict[int, list[int]]:
    """initial_global_assignments of moe_load_balancer.yaml, as MoeLoadBalancerConfig and the MoE module check them."""
    found: dict[str, int] = {}
    assignments: dict[int, list[int]] = {}
    for line in text.splitlines():
        if match := re.fullmatch(r"  (\d+): (\[[\d, ]+\])", line):
            assert list(found) == ["num_slots"]
            assignments[int(match[1])] = json.loads(match[2])
        elif line != "initial_global_assignments:":
            name, _, value = line.partition(": ")
            found[name] = int(value)
    assert set(found) == {"num_slots", "layer_updates_per_iter"}, "the model of the file knows no further key"
    assert found["num_slots"] >= num_experts
    assert found["num_slots"] % ep_size == 0
    for layer in moe_layers:  # a layer that is missing is a KeyError
        assert len(assignments[layer]) == found["num_slots"]
        assert set(assignments[layer]) == set(range(num_experts))
    return assignments


def write_files(folder: Path) -> Path:
    """x.parquet and x.counts.parquet: a skewed router, two layers, 40 documents."""
    trace = random_trace(0, skew=1.0, documents=40, layers=2)
    trace.save(folder / "x.parquet")
    trace.counts().save(folder / "x.counts.parquet")
    return folder
