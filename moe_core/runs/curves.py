"""How a training went, as curves: what its metric lines say of a quantity by step, by tokens and by time.

A curve has one point a step: of a step that was written twice, as lines of a run put together by hand may be, the last
line counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_core.runs.metric_log import BaselineLine, MetricLog

if TYPE_CHECKING:
    import pandas as pd

TRAIN = "train"
"""The split of what is measured on the text that is learned."""
LOSS = "loss"
LEARNING_RATE = "learning_rate"
LOAD_IMBALANCE = "load_imbalance"
SPEED = "tokens_per_second"
VALID_CODE = "correct_so_far"
QUANTITIES = (
    LOSS, LEARNING_RATE, "gradient_norm", "load_balancing_loss", "router_z_loss", SPEED, LOAD_IMBALANCE, "dead_experts",
    "dropped_fraction", VALID_CODE,
)  # fmt: skip
"""What may be drawn, in the order of the page. Load and dead experts are of the MoE layer where they are worst."""
RECORDED = QUANTITIES[:6]
"""Those that every training of ours records, and that a watched one has where its loop gives them."""
COLUMNS = ("quantity", "split", "step", "tokens", "seconds", "value")
_OF_LAYERS = (LOAD_IMBALANCE, "dead_experts")


@dataclass(frozen=True, eq=False)
class RunCurves:
    """One run's curves."""

    name: str
    points: pd.DataFrame
    """COLUMNS, by step within quantity and split. `tokens`: trained on by then; `seconds`: spent in the loop by then;
    both NaN where no line tells. `split` is "" where the quantity is not of a text."""
    is_watched: bool
    unigram_nats: float | None = None
    """Loss of guessing by token frequency on the unseen tokens that are scored while training."""
    uniform_nats: float | None = None
    """ln of the number of vocabulary entries."""
    seed: int | None = None
    """Of weights and of the order of the text; None where it is not known."""

    @property
    def quantities(self) -> tuple[str, ...]:
        """What it has at least one point of, in the order of QUANTITIES."""
        present = set(self.points["quantity"])
        return tuple(name for name in QUANTITIES if name in present)

    @property
    def missing(self) -> tuple[str, ...]:
        """What trainings record and this one, though it has steps, has not."""
        if not (self.points["split"] == TRAIN).any():
            return ()
        return tuple(name for name in RECORDED if name not in self.quantities)

    def curve(self, quantity: str, split: str | None = None) -> pd.DataFrame:
        """The points of a quantity, of one split or of all."""
        points = self.points[self.points["quantity"] == quantity]
        return points if split is None else points[points["split"] == split]


def run_curves(name: str, log: MetricLog, *, is_watched: bool = False, seed: int | None = None) -> RunCurves:
    """The curves of a run from its metric lines."""
    import pandas as pd

    train = _once_a_step(log.frame("train"), ["step"])
    parts = [_of_training(train, quantity, is_watched) for quantity in QUANTITIES if quantity in train]
    evaluations = log.frame("evaluation")
    if len(evaluations):
        scored = _once_a_step(evaluations, ["step", "split"])
        parts.append(
            pd.DataFrame(
                {"quantity": LOSS, "split": scored["split"], "step": scored["step"], "value": scored["nats_per_token"]}
            )
        )
    loads = log.frame("load")
    if len(loads):
        by_step = _once_a_step(loads, ["step", "layer"]).groupby("step", as_index=False)
        worst = by_step[list(_OF_LAYERS)].max()
        parts += [
            pd.DataFrame({"quantity": one, "split": "", "step": worst["step"], "value": worst[one]})
            for one in _OF_LAYERS
        ]
    texts = _once_a_step(log.frame("syntax"), ["step"])
    if len(texts):
        code = {"quantity": VALID_CODE, "split": "", "step": texts["step"], "value": texts[VALID_CODE]}
        parts.append(pd.DataFrame(code))
    nothing = pd.DataFrame(columns=["quantity", "split", "step", "value"])
    points = pd.concat(parts, ignore_index=True) if parts else nothing
    points = points.assign(value=pd.to_numeric(points["value"])).dropna(subset=["value"])
    for column, written in (("tokens", "tokens"), ("seconds", "elapsed_seconds")):
        points[column] = _along(points["step"], train, written)
    points = points[list(COLUMNS)].sort_values(["quantity", "split", "step"], kind="stable", ignore_index=True)
    baselines = [line for line in log.lines if isinstance(line, BaselineLine)]
    unigram = (baselines[-1].unigram_nats or {}).get("unseen") if baselines else None
    uniform = baselines[-1].uniform_nats if baselines else None
    return RunCurves(name, _without_what_never_happened(points), is_watched, unigram, uniform, seed)


def _once_a_step(lines: pd.DataFrame, key: list[str]) -> pd.DataFrame:
    if lines.empty:
        return lines
    return lines.drop_duplicates(key, keep="last").sort_values("step", kind="stable", ignore_index=True)


def _of_training(train: pd.DataFrame, quantity: str, is_watched: bool) -> pd.DataFrame:
    import pandas as pd

    value = train[quantity]
    if quantity == SPEED and not is_watched:
        value = _speed_between_lines(train)
    return pd.DataFrame({"quantity": quantity, "split": TRAIN, "step": train["step"], "value": value})


def _speed_between_lines(train: pd.DataFrame) -> pd.Series[Any]:
    """Our trainer writes the mean speed since its first step. Tokens over that mean are the seconds spent in steps, so
    their differences tell the speed between two lines, evaluations left out."""
    in_steps = train["tokens"] / train[SPEED]
    seconds = in_steps.diff().fillna(in_steps)
    tokens = train["tokens"].diff().fillna(train["tokens"])
    return (tokens / seconds).where(seconds > 0)


def _along(steps: pd.Series[Any], train: pd.DataFrame, column: str) -> np.ndarray:
    """What `column` of the train lines was at each step, in a straight line between them, from 0 at step 0; beyond the
    last line as fast as before it. NaN where no line tells."""
    known = train.dropna(subset=[column]) if column in train else train.head(0)
    if known.empty:
        return np.full(len(steps), np.nan)
    at = np.concatenate([[0.0], known["step"].to_numpy(float)])
    value = np.concatenate([[0.0], known[column].to_numpy(float)])
    wanted = steps.to_numpy(float)
    beyond = np.maximum(wanted - at[-1], 0.0) * value[-1] / max(at[-1], 1.0)
    return np.asarray(np.interp(wanted, at, value) + beyond)


def _without_what_never_happened(points: pd.DataFrame) -> pd.DataFrame:
    """Nothing dropped and no dead expert, all along: a flat line at 0 would tell no more than its absence."""
    rare = points["quantity"].isin(["dead_experts", "dropped_fraction"])
    happened = points.groupby("quantity")["value"].transform("max") > 0
    return points[~rare | happened].reset_index(drop=True)
