"""A placement in the forms that engines read when they start. Text only; who calls writes it.

- SGLang 0.5: `--init-expert-location FILE.json`. An object with the one key physical_to_logical_map, a row for every
  hidden layer of the model, as the engine looks rows up by the layer's number; dense layers' rows are never used.
- TensorRT-LLM 1.x: moe_config.load_balancer, a YAML file with num_slots, initial_global_assignments by the layer's
  number for MoE layers alone, and layer_updates_per_iter, 0 = the placement stays.

vLLM 0.33 reads no file of placement: its balancer starts in order and learns while it serves (--enable-eplb).
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from moe_core.errors import UsageError
from moe_core.routing.placement.balancer import Placement


def sglang_json(placement: Placement, layers: Sequence[int], model_layers: int | None = None) -> str:
    """The content of a file for --init-expert-location, which must end in .json.

    `layers` [L]: numbers of the placement's layers in the model; `model_layers`: how many the model has, dense ones
    included, the last of `layers` + 1 where it is not said. Rows of layers that are not placed have experts in order.
    Raises UsageError where a layer lies beyond the model.
    """
    most = max(layers) + 1 if model_layers is None else model_layers
    if most <= max(layers):
        raise UsageError(
            f"the model has {most} layers, and layer {max(layers)} has experts; expected {max(layers) + 1} or more"
        )
    E, S = placement.fleet.num_experts, placement.fleet.slots
    rows = [[slot % E for slot in range(S)] for _ in range(most)]
    for layer, row in zip(layers, placement.physical_to_logical.tolist(), strict=True):
        rows[layer] = row
    return json.dumps({"physical_to_logical_map": rows}) + "\n"


def tensorrt_llm_yaml(placement: Placement, layers: Sequence[int]) -> str:
    """The content of moe_load_balancer.yaml. `layers` [L]: numbers of the placement's layers in the model."""
    lines = [f"num_slots: {placement.fleet.slots}", "initial_global_assignments:"]
    for layer, row in zip(layers, placement.physical_to_logical.tolist(), strict=True):
        lines.append(f"  {layer}: {json.dumps(row)}")
    return "\n".join([*lines, "layer_updates_per_iter: 0", ""])


def sglang_options(placement: Placement, file: str) -> str:
    """What to start SGLang with, so that it takes the file."""
    fleet = placement.fleet
    nodes = f" --nnodes {fleet.nodes}" if fleet.nodes > 1 else ""
    redundant = fleet.slots - fleet.num_experts
    return (
        f"--tp-size {fleet.gpus} --ep-size {fleet.gpus}{nodes} --ep-num-redundant-experts {redundant} "
        f"--init-expert-location {file}"
    )
