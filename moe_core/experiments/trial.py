"""One training of a comparison: trained, scored, its outcome kept, its weights let go."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from moe_core.data.prepare import PreparedData
from moe_core.data.splits import SCORED_TOKENS_PER_DOMAIN
from moe_core.data.tokens import TokenDataset
from moe_core.errors import RunError
from moe_core.evaluation.evaluate import evaluate_run
from moe_core.evaluation.loss import evaluate_loss
from moe_core.experiments.machine import environment
from moe_core.experiments.plan import Plan, Trial
from moe_core.json_values import json_safe
from moe_core.progress import Progress
from moe_core.runs.checkpoint import LoadedRun, load_run
from moe_core.runs.files import read_json_object, remove_folder, write_atomic
from moe_core.runs.folder import RunFolder
from moe_core.runs.metric_log import EvaluationLine
from moe_core.training.loop import TrainingResult, train
from moe_core.training.repeatability import repeatable


class TrialStopped(Exception):  # noqa: N818 - a request, not an error
    """Somebody asked to stop; what was learned is saved."""

    def __init__(self, signal: int | None = None) -> None:
        super().__init__(signal)
        self.signal = signal
        """The signal that asked, if one did."""


def run_folder(work: Path, trial: Trial) -> RunFolder:
    """Where the trial is trained."""
    return RunFolder(trial.name, work / "runs")


def read_outcome(work: Path, trial: Trial) -> dict[str, Any] | None:
    """What the trial came to, see run_trial; None while it is to be done. Raises RunError where it is damaged."""
    try:
        return read_json_object(work / "trials" / f"{trial.name}.json")
    except FileNotFoundError:
        return None


def run_trial(
    work: Path,
    plan: Plan,
    trial: Trial,
    data: PreparedData,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Train and score one trial, or go on where it was left, and keep its outcome.

    {arm, seed, factor, times, failed: why it has no figures or None, evaluation: see evaluate_run, curve: {split: [nats
    per token]} with step, fingerprint of the data, text_tokens: of the training text, environment: hardware and
    versions that trained}. One that chooses a learning rate on the tuning split has tuning_nats, nats per token there,
    instead of evaluation and curve. The checkpoint of the first scored seed stays, to be timed; others go. Raises
    TrialStopped.
    """
    run, config = run_folder(work, trial), plan.trial_config(trial)
    outcome: dict[str, Any] = {"arm": trial.arm, "seed": trial.seed, "factor": trial.factor, "times": trial.times}
    outcome |= {"failed": None, "fingerprint": data.fingerprint, "text_tokens": len(data.train)}
    outcome |= {"environment": asdict(environment(config.training.threads))}
    try:
        result: TrainingResult = train(run, config, resume=run.exists(), data=data, progress=progress, stop=stop)
        if result.state == "stopped":
            raise TrialStopped(result.signal)
        # As many threads as trained it: workers would fight for the processors, and sums differ in the last digit.
        with repeatable(config.training.threads, torch.device("cpu")):
            loaded = load_run(run.name, run.root)
            if plan.is_tuning(trial):
                outcome["tuning_nats"] = _tuning_nats(loaded, data)
            else:
                outcome |= {"evaluation": evaluate_run(loaded).to_json(), "curve": _curve(run)}
    except RunError as error:
        if "not finite" not in str(error):
            raise
        outcome["failed"] = str(error)
    path = work / "trials" / f"{trial.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(json_safe(outcome)) + "\n").encode())
    if trial.seed != plan.seeds[0] or trial.times != 1 or outcome["failed"]:
        remove_folder(run.path)
    return outcome


def _tuning_nats(loaded: LoadedRun, data: PreparedData) -> float:
    text = TokenDataset.build(data.tuning, data.tokenizer, data.domains).select(SCORED_TOKENS_PER_DOMAIN, seed=0)
    return evaluate_loss(loaded.model, text, seq_len=loaded.config.training.seq_len).nats_per_token


def _curve(run: RunFolder) -> dict[str, list[float]]:
    curve: dict[str, list[float]] = {"step": []}
    for line in run.metric_log().lines:
        if isinstance(line, EvaluationLine):
            if line.step not in curve["step"]:
                curve["step"].append(line.step)
            curve.setdefault(line.split, []).append(math.nan if line.nats_per_token is None else line.nats_per_token)
    return curve
