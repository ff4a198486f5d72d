"""Where the figures of a watched training go besides its run folder: TensorBoard, Weights & Biases, trackio.

None of them is imported here: give `watch` what they made.

    watch(model, run="mine", log_to=[to_tensorboard(SummaryWriter("logs"))])
    watch(model, run="mine", log_to=[to_tracker(wandb.init(project="mine"))])    # trackio.init likewise

Anything that takes a step and a mapping of names to numbers will do. The names are those that Megatron-LM gives its
own: "moe/load_imbalance_layer_3" of a layer, "moe/load_imbalance" of all; and "moe/load_balancing_loss", "moe/z_loss"
where the loop records them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Tracker = Callable[[int, Mapping[str, float]], None]
"""Takes a step and its figures by name."""
_OF_LAYERS = ("load_imbalance", "max_violation", "router_entropy", "dead_experts", "dropped_fraction")
_RECORDED = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "gradient_norm": "train/grad_norm",
    "load_balancing_loss": "moe/load_balancing_loss",
    "router_z_loss": "moe/z_loss",
}


def to_tensorboard(writer: Any) -> Tracker:
    """Into a SummaryWriter of torch.utils.tensorboard."""

    def track(step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, step)

    return track


def to_tracker(run: Any) -> Tracker:
    """Into the run that wandb.init or trackio.init made, or any other with log(figures, step=...)."""

    def track(step: int, figures: Mapping[str, float]) -> None:
        run.log(dict(figures), step=step)

    return track


def tracked_figures(lines: Sequence[Mapping[str, Any]], recorded: Mapping[str, float]) -> dict[str, float]:
    """The figures of one reading by the names that trackers get: of its "load" lines, and what the loop recorded.

    Of all layers: the sum of dead_experts, the largest load_imbalance and max_violation (that - 1, 2408.15664), the
    mean of the others. What is not known is left out.
    """
    rows = [
        {**line, "max_violation": None if line["load_imbalance"] is None else line["load_imbalance"] - 1.0}
        for line in lines
    ]
    figures = {_RECORDED[name]: value for name, value in recorded.items()}
    for name in _OF_LAYERS:
        known = {row["layer"]: float(row[name]) for row in rows if row[name] is not None}
        if not known:
            continue
        values = np.array(list(known.values()))
        largest = name in ("load_imbalance", "max_violation")
        total = values.sum() if name == "dead_experts" else values.max() if largest else values.mean()
        figures[f"moe/{name}"] = float(total)
        figures |= {f"moe/{name}_layer_{layer}": value for layer, value in known.items()}
    return figures
