"""Everything that a plan asks for, in order, by itself: it may be killed at any moment and goes on where it was."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from moe_core.data.prepare import prepare_data
from moe_core.errors import MoescopeError, RunBusyError, RunError, UsageError
from moe_core.experiments.plan import Plan, Trial
from moe_core.experiments.trial import TrialStopped, read_outcome, run_folder, run_trial
from moe_core.progress import Progress, silent
from moe_core.runs.files import read_json_object, write_atomic

POLL_SECONDS = 1.0
STAGE = "training steps"
STOP = "stop"
"""A file of this name in the folder stops its workers."""

Outcomes = dict[Trial, dict[str, Any]]


def run_trials(
    work: Path,
    plan: Plan,
    *,
    resume: bool = False,
    workers: int = 1,
    progress: Progress = silent,
    budget_done: Callable[[dict[str, float], Outcomes], None] | None = None,
) -> tuple[dict[str, float], Outcomes]:
    """Train and score every trial of the plan that has no outcome yet, in `workers` processes side by side.

    First those that choose each arm's learning rate, then the scored ones, budget by budget. Returns the factor chosen
    for each arm and all outcomes; `budget_done` gets them so far after each budget that another one follows. Losses do
    not depend on `workers`. Raises UsageError when the folder holds a comparison and `resume`
    is False, RunError when it holds another one, RunBusyError when another process works on it, TrialStopped when
    somebody asks to stop: then nothing that was learned is lost.
    """
    work.mkdir(parents=True, exist_ok=True)
    with _locked(work):
        _keep_plan(work, plan, resume)
        (work / STOP).unlink(missing_ok=True)
        meter = _Meter(work, plan, progress)
        tuning = _run_all(work, plan, plan.tuning_trials(), workers, meter)
        chosen = choose_factors(plan, tuning)
        outcomes = tuning
        for budget in plan.budgets:
            if outcomes is not tuning and budget_done is not None:
                budget_done(chosen, outcomes)
            scored = _run_all(work, plan, plan.scored_trials(chosen, budget), workers, meter)
            outcomes = outcomes | scored
            _check_outcomes(work, outcomes, scored)
    return chosen, outcomes


def _check_outcomes(work: Path, outcomes: Outcomes, scored: Outcomes) -> None:
    """Raise RunError for outcomes of two texts, and where a scored training failed."""
    if len({outcome["fingerprint"] for outcome in outcomes.values()}) > 1:
        raise RunError(
            f"the text was changed while this comparison was stopped, and results of two texts do not belong together; "
            f"delete {str(work)!r} and begin again"
        )
    failed = next((outcome for outcome in scored.values() if outcome["failed"]), None)
    if failed is not None:
        raise RunError(
            f"arm {failed['arm']!r} with seed {failed['seed']} has no loss to compare: {failed['failed']}; begin again "
            "with a lower training.learning_rate in --config FILE and another --out DIR"
        )


def choose_factors(plan: Plan, outcomes: Outcomes) -> dict[str, float]:
    """For each arm the factor with the lowest mean loss over the tuning seeds, on the tuning split or (plans from
    before there was one) on unseen text; 1 where none was tried.

    Raises RunError when no factor left an arm with a finite loss.
    """
    if not outcomes:
        return {arm.name: 1.0 for arm in plan.arms}
    chosen = {}
    for arm in plan.arms:
        losses = {
            factor: sum(tuning_loss(one) for at, one in outcomes.items() if (at.arm, at.factor) == (arm.name, factor))
            for factor in plan.factors
        }
        best = min(losses, key=losses.__getitem__)
        if losses[best] == math.inf:
            raise RunError(f"no learning rate of {list(plan.factors)} times the configured one suits {arm.label!r}")
        chosen[arm.name] = best
    return chosen


def stored_plan(work: Path) -> Plan | None:
    """The plan that the folder was begun with; None if there is none. Raises RunError where it is damaged."""
    try:
        return Plan.from_json(read_json_object(work / "plan.json"))
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise RunError(
            f"{str(work / 'plan.json')!r} is damaged or of another version ({error}); delete {str(work)!r} first"
        ) from None


def tuning_loss(outcome: Mapping[str, Any]) -> float:
    """Nats per token by which a learning rate is chosen; infinite where the training failed."""
    if outcome["failed"]:
        return math.inf
    nats = outcome["tuning_nats"] if "tuning_nats" in outcome else outcome["evaluation"]["unseen"]["nats_per_token"]
    return math.inf if nats is None else float(nats)


def _keep_plan(work: Path, plan: Plan, resume: bool) -> None:
    stored = stored_plan(work)
    if stored is None:
        write_atomic(work / "plan.json", (json.dumps(plan.as_json(), indent=1) + "\n").encode())
    elif not resume:
        raise UsageError(
            f"{str(work)!r} holds this comparison already; continue it with --resume, or choose another --out DIR"
        )
    elif stored != plan:
        raise RunError(
            f"{str(work)!r} was begun with other seeds, text or configuration, and results of two plans do not belong "
            "together; resume it with the same options, or choose another --out DIR"
        )


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    try:
        with FileLock(work / "lock", timeout=0, fallback_to_soft=False):
            yield
    except Timeout:
        raise RunBusyError(
            f"another process works on {str(work)!r}; wait for it, or choose another --out DIR"
        ) from None


class _Meter:
    """How far the whole plan is, in training steps; the steps of a dearer arm count for more."""

    def __init__(self, work: Path, plan: Plan, progress: Progress) -> None:
        self._work, self._plan, self._progress = work, plan, progress
        untuned = {arm.name: 1.0 for arm in plan.arms}
        scored = [trial for budget in plan.budgets for trial in plan.scored_trials(untuned, budget)]
        trials = [*plan.tuning_trials(), *scored]
        self._all = sum(plan.work(trial) for trial in trials)
        self._steps = sum(plan.trial_config(trial).training.steps for trial in trials)
        self._done = 0.0

    def kept(self, trial: Trial) -> None:
        """Count a trial finished earlier, silently: what is shown first is where the time left is reckoned from."""
        self._done += self._plan.work(trial)

    def finished(self, trial: Trial) -> None:
        """Count a trial as a whole."""
        self.kept(trial)
        self.show({})

    def show(self, running: dict[Trial, float]) -> None:
        """`running`: the part of each trial that is done."""
        done = self._done + sum(part * self._plan.work(trial) for trial, part in running.items())
        self._progress(STAGE, round(done / self._all * self._steps), self._steps)

    def look(self, trials: Sequence[Trial]) -> None:
        """Show trials that other processes train."""
        parts = {}
        for trial in trials:
            try:
                status = run_folder(self._work, trial).status()
            except (MoescopeError, OSError):  # just being replaced, or removed as it is finished
                status = None
            parts[trial] = status.step / status.steps if status is not None and status.steps else 0.0
        self.show(parts)


def _run_all(work: Path, plan: Plan, trials: Sequence[Trial], workers: int, meter: _Meter) -> Outcomes:
    outcomes: Outcomes = {}
    todo = []
    for trial in trials:
        found = read_outcome(work, trial)
        if found is None:
            todo.append(trial)
        else:
            outcomes[trial] = found
            meter.kept(trial)
    if todo:
        outcomes |= (_here if workers == 1 else _side_by_side(workers))(work, plan, todo, meter)
    return {trial: outcomes[trial] for trial in trials}


def _here(work: Path, plan: Plan, todo: Sequence[Trial], meter: _Meter) -> Outcomes:
    data = prepare_data(plan.config, tuning=plan.tuning_split)
    outcomes: Outcomes = {}
    for trial in todo:

        def report(stage: str, done: int, total: int, trial: Trial = trial) -> None:
            if stage == "training":
                meter.show({trial: done / total})

        outcomes[trial] = run_trial(work, plan, trial, data, report)
        meter.finished(trial)
    return outcomes


def _side_by_side(workers: int) -> Callable[[Path, Plan, Sequence[Trial], _Meter], Outcomes]:
    def run(work: Path, plan: Plan, todo: Sequence[Trial], meter: _Meter) -> Outcomes:
        outcomes: Outcomes = {}
        # Spawned: a process forked after torch computed may hang.
        with ProcessPoolExecutor(
            workers, mp_context=get_context("spawn"), initializer=_begin_worker, initargs=(work, plan, os.getpid())
        ) as pool:
            waiting: dict[Future[dict[str, Any]], Trial] = {pool.submit(_in_worker, trial): trial for trial in todo}
            try:
                while waiting:
                    done, _ = wait(waiting, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
                    for future in done:
                        trial = waiting.pop(future)
                        outcomes[trial] = future.result()
                        meter.finished(trial)
                    meter.look([trial for future, trial in waiting.items() if future.running()])
            except BrokenProcessPool:
                raise RunError(
                    "a training process was killed, most likely for want of memory; go on with --resume and fewer "
                    "--workers"
                ) from None
            except BaseException:
                # Trials on their way to a worker cannot be cancelled; the file stops them and those that run.
                (work / STOP).touch()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return outcomes

    return run


_worker: dict[str, Any] = {}
"""What a worker process keeps between trials."""


def _begin_worker(work: Path, plan: Plan, parent: int) -> None:
    from moe_core.training.repeatability import keep_freed_memory

    keep_freed_memory()
    _worker.update(work=work, plan=plan, parent=parent)


def _in_worker(trial: Trial) -> dict[str, Any]:
    if "data" not in _worker:
        _worker["data"] = prepare_data(_worker["plan"].config, tuning=_worker["plan"].tuning_split)
    work, plan, parent = (_worker[key] for key in ("work", "plan", "parent"))

    def stop() -> bool:  # a worker whose parent was killed must not go on alone
        return bool(os.getppid() != parent or (work / STOP).exists())

    if stop():
        raise TrialStopped
    return run_trial(work, plan, trial, _worker["data"], stop=stop)
