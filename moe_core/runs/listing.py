"""The list of runs: a line each, broken ones included."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from moe_core.data.splits import HELD_OUT_SPLITS
from moe_core.errors import MoescopeError
from moe_core.runs.files import read_file
from moe_core.runs.folder import RunFolder
from moe_core.runs.lost_steps import LostSteps, lost_steps
from moe_core.runs.metric_log import BaselineLine, EvaluationLine, MetricLog, file_notes
from moe_core.runs.names import checkpoints_root
from moe_core.runs.places import run_names

# A new process needs this long at most to import torch and write its first status.
LAUNCH_PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class RunSummary:
    """One line of the list of runs. state may also be "scoring" (all steps are done, and its loss on the whole held-out
    text is being measured), "interrupted" (the trainer died) or "broken" (see error)."""

    name: str
    state: str
    step: int = 0
    steps: int = 0
    updated_at: float = 0.0
    validation_nats: float | None = None
    unseen_nats: float | None = None
    """Nats per token: of the whole split once the run was scored, until then of the part scored while training."""
    unigram_nats: float | None = None
    """Loss of guessing by token frequency on the same unseen tokens."""
    is_live: bool = False
    error: str | None = None
    bad_lines: int = 0
    """Lines of metrics.jsonl that are left out: they could not be read, or had been changed."""
    unverified: tuple[str, ...] = ()
    """Files that carry no checksum, as they are from before there were any."""
    is_watched: bool = False
    """Whether it was trained by someone else's loop: it has no checkpoint, and cannot be stopped or resumed here."""

    lost: LostSteps | None = None
    """What its time budget took from it."""

    @property
    def notes(self) -> list[str]:
        """What must be known about its files, a sentence each."""
        return file_notes(self.bad_lines, self.unverified)


def list_runs(root: str | Path | None = None) -> list[RunSummary]:
    """All runs, the last updated first. A broken one is listed with what is broken; the others are unaffected."""
    base = checkpoints_root(root)
    return sorted((_summarise(name, base) for name in run_names(base)), key=lambda run: (-run.updated_at, run.name))


def _summarise(name: str, root: Path) -> RunSummary:
    try:
        run = RunFolder(name, root)
        if not run.exists() and run.log_path.exists():
            return _summarise_unstarted(run)
        is_watched = run.watched() is not None
        config = None if is_watched else run.config()
        status = run.status()
        unverified = tuple(run.unverified()) if status is not None else ()
        is_live = run.is_locked()
        if status is None:
            state = "preparing" if is_live else "interrupted"
            return RunSummary(name, state, is_live=is_live, is_watched=is_watched)
        interrupted = status.state in ("preparing", "running") and not is_live
        scoring = status.state == "finished" and is_live  # a trainer writes another state as soon as it has the lock
        log = run.metric_log()
        nats = _last_nats(run, status.step, log)
        return RunSummary(
            name=name,
            state="interrupted" if interrupted else "scoring" if scoring else status.state,
            step=status.step,
            steps=status.steps,
            updated_at=status.updated_at,
            validation_nats=nats.get("validation"),
            unseen_nats=nats.get("unseen"),
            unigram_nats=nats.get("unigram"),
            is_live=is_live,
            bad_lines=log.bad,
            unverified=unverified,
            is_watched=is_watched,
            lost=None if config is None else lost_steps(name, config, status),
        )
    except (MoescopeError, OSError) as error:
        return RunSummary(name, "broken", error=" ".join(str(error).split()))


def _summarise_unstarted(run: RunFolder) -> RunSummary:
    """A folder with nothing but the log of a trainer that is about to start, or could not."""
    started_at = run.log_path.stat().st_mtime
    lines = read_file(run.log_path).decode("utf-8", "replace").strip().splitlines()
    if time.time() - started_at < LAUNCH_PATIENCE_SECONDS and not lines:
        return RunSummary(run.name, "preparing", updated_at=started_at)
    reason = lines[-1][-300:] if lines else "its log is empty; start it again"
    return RunSummary(run.name, "failed", updated_at=started_at, error=f"the trainer did not start: {reason}")


def _last_nats(run: RunFolder, step: int, log: MetricLog) -> dict[str, float | None]:
    """Nats per token of both held-out splits, and of guessing by frequency on the unseen one."""
    scored = run.evaluation()
    if scored is not None and scored.step == step:
        losses: dict[str, float | None] = {split: scored.split(split).nats_per_token for split in HELD_OUT_SPLITS}
        return {**losses, "unigram": scored.baselines.unigram_nats}
    last: dict[str, float | None] = {}
    for line in log.lines:
        if isinstance(line, EvaluationLine):
            last[line.split] = line.nats_per_token
        elif isinstance(line, BaselineLine):
            last["unigram"] = (line.unigram_nats or {}).get("unseen")
    return last
