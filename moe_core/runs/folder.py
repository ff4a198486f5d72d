"""A run is a folder: what it was asked to do, how far it is, what it measured. places.py says where it lies.

checkpoints/<run>/
  config.json       the whole configuration tree
  watched.json      in its place, of a run that is watched in someone else's training loop (watched.py): the model
  status.json       RunStatus (status.py), replaced atomically
  metrics.jsonl     one JSON object a line (metric_log.py), only ever appended to
  probes/           step_000100.parquet: routing of the fixed probe set at that step
  held_out.parquet  the documents of both held-out splits (kept_text.py)
  corpus.json       domains, how often each vocabulary entry occurs in the training split, and the hash of the former
  weights/          checkpoints (checkpoint.py)
  analysis/         what switching experts off showed (analysis.py)
  evaluation.json   figures of the whole held-out text, with report.md, once the run was scored
  stop              exists while somebody asks the trainer to stop
  trainer.lock      held by the trainer; the operating system drops it when the process dies

Every JSON file and every line carries its checksum (checksum.py, decision 0018).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_core.config import Config, validate_config
from moe_core.data.splits import HELD_OUT_SPLITS
from moe_core.errors import MoescopeError, RunBusyError, RunError, TraceError, UsageError
from moe_core.files import remove_stale
from moe_core.json_values import json_safe
from moe_core.program import program
from moe_core.runs.checksum import KEY, is_verified, line_with_checksum, with_checksum
from moe_core.runs.evaluation import Evaluation, evaluation_from_json
from moe_core.runs.files import (
    check_ordinary,
    json_object,
    read_file,
    remove_folder,
    sha256_of,
    translate_os_errors,
    write_atomic,
)
from moe_core.runs.kept_text import Corpus, corpus_from_bytes, documents_to_bytes, read_documents
from moe_core.runs.lock import RunLock
from moe_core.runs.metric_log import Kind, MetricLog, parse_log, rewound
from moe_core.runs.names import checkpoints_root
from moe_core.runs.places import place_of
from moe_core.runs.status import RunStatus, State, status_from_bytes
from moe_core.runs.watched import FILE as WATCHED_FILE
from moe_core.runs.watched import WatchedModel, counts_of_lines, watched_from_bytes

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from moe_core.data.document import Document
    from moe_core.routing.trace.routing_counts import RoutingCounts
    from moe_core.routing.trace.trace import RoutingTrace

__all__ = ["LOCK_PATIENCE_SECONDS", "RunFolder", "RunStatus", "State"]
# A dashboard that asks "is it locked?" holds the lock for an instant; a trainer waits that long before it gives up.
LOCK_PATIENCE_SECONDS = 2.0


class RunFolder:
    """The folder of one run. Constructing it touches nothing; `name` is validated (UsageError)."""

    def __init__(self, name: str, root: str | Path | None = None) -> None:
        self.name = name
        self.root = checkpoints_root(root)
        self.place = place_of(name, root)
        self.path = self.place.written
        self.log_path = self.path / "train.log"
        self._stop_path = self.path / "stop"
        self._lock = RunLock(self.path / "trainer.lock")

    def __repr__(self) -> str:
        return f"RunFolder({self.name!r}, root={str(self.root)!r})"

    def exists(self) -> bool:
        """True once a trainer has created it (a log of a trainer that never started is not a run)."""
        marks = ("config.json", "watched.json", "status.json", "weights")
        return self.is_shipped() or any((self.path / name).exists() for name in marks)

    def is_shipped(self) -> bool:
        """True for a run that comes with Moescope: it is only read, and what is found out about it goes to `path`."""
        return self.place.is_shipped()

    @property
    def weights_path(self) -> Path:
        """The folder of the checkpoints (checkpoint.py)."""
        return self.place.find("weights")

    @property
    def metrics_path(self) -> Path:
        """The file of metric lines."""
        return self.place.find("metrics.jsonl")

    @property
    def evaluation_path(self) -> Path:
        """The file of the figures kept last."""
        return self.place.find("evaluation.json")

    def write_file(self, name: str, content: bytes) -> Path:
        """Keep a file in the run's folder, which is made where it is missing; returns its path. Raises RunError."""
        path = self.path / name
        with self.in_place():
            self.make_folder_of(path)
            write_atomic(path, content)
        return path

    def make_folder_of(self, path: Path) -> None:
        """Make the folder of a file in this run, and the run's own where it comes with Moescope. Raises RunError: a run
        that is gone is not made again."""
        self.check_in_place()
        if not self.path.is_dir() and not self.is_shipped():
            raise self._missing(path.name)
        with translate_os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """For whatever writes into the folder: raises RunError where check_in_place does, before it or because it went
        meanwhile; a refusal to write says so then too."""
        self.check_in_place()
        try:
            yield
        except (MoescopeError, OSError):
            self.check_in_place()
            raise

    def check_in_place(self) -> None:
        """Raise RunError when the folder that this object has locked no longer lies under its name."""
        if self._lock.is_lost():
            raise RunError(
                f"the folder of run {self.name!r} was removed, renamed or replaced while it was in use: stopped, and "
                "nothing more is written; a renamed folder is a run of its new name, continue it with --resume"
            )

    def _write(self, name: str, content: bytes) -> None:
        with self.in_place():
            write_atomic(self.path / name, content)

    def create(self, config: Config) -> None:
        """Start a new run. Raises UsageError if the name holds a checkpoint already, or a run that was watched; what a
        trainer left that died before its first checkpoint is cleared. The caller holds the lock."""
        if self.is_watched() or (self.weights_path.exists() and any(self.weights_path.glob("step-*"))):
            raise UsageError(
                f"run {self.name!r} exists already in {str(self.root)!r}; "
                "choose another --run NAME, or continue it with --resume"
            )
        self._clear()
        self.write_config(config)
        with translate_os_errors(self.weights_path):
            self.weights_path.mkdir(exist_ok=True)

    def create_watched(self, model: WatchedModel) -> None:
        """Start a run that is watched. Raises UsageError if there is a run of that name. The caller holds the lock."""
        if self.exists():
            raise UsageError(
                f"run {self.name!r} exists already in {str(self.root)!r}; choose another run=..., or go on with it by "
                "resume=True (a Trainer: from a checkpoint of its own)"
            )
        self._clear()
        self._write(WATCHED_FILE, model.to_bytes())

    def _clear(self) -> None:
        """Leave nothing of a run that never began."""
        with translate_os_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            remove_folder(self.path / "probes")
            (self.path / "probes").mkdir()
            for leftover in (
                "status.json",
                "metrics.jsonl",
                "held_out.parquet",
                "corpus.json",
                "evaluation.json",
                "report.md",
                "stop",
            ):
                (self.path / leftover).unlink(missing_ok=True)

    def is_watched(self) -> bool:
        """True for a run that was watched in someone else's training loop: it has no configuration and no model."""
        return self.place.find(WATCHED_FILE).exists()

    def watched(self) -> WatchedModel | None:
        """The model of a run that was watched; None for any other run. Raises RunError if the file is damaged."""
        content = self._read(WATCHED_FILE)
        return None if content is None else watched_from_bytes(content, self.place.find(WATCHED_FILE))[0]

    def moe_layers(self) -> list[int]:
        """Numbers of the layers that have routers, whoever trained the run; none of a dense model. Raises RunError."""
        watched = self.watched()
        return list(self.config().model.moe_layers) if watched is None else list(watched.layers)

    def write_config(self, config: Config) -> None:
        """Save the configuration tree."""
        self._write("config.json", with_checksum(json.loads(config.model_dump_json())))

    def config(self) -> Config:
        """The configuration the run was started with. Raises RunError if it is missing or no longer valid."""
        path = self.place.find("config.json")
        content = self._read("config.json")
        if content is None:
            if self.is_watched():
                raise RunError(
                    f"run {self.name!r} was watched in another training loop, so its model is not here: this takes a "
                    "run that was trained with Moescope, or the model as a folder of its own (--model DIR)"
                )
            raise self._missing("config.json")
        is_verified(content, str(path))
        tree = json_object(content, path)
        tree.pop(KEY, None)
        try:
            return validate_config(tree)
        except UsageError as error:
            raise RunError(f"{str(path)!r} is not a valid configuration: {error}") from None

    def status(self) -> RunStatus | None:
        """The last status, or None before the first. Raises RunError if the file is damaged."""
        content = self._read("status.json")
        return None if content is None else status_from_bytes(content, self.place.find("status.json"))[0]

    def write_status(self, status: RunStatus) -> None:
        """Replace the status atomically: a reader sees the old one or the new one."""
        self._write("status.json", status.to_bytes())

    def append_metrics(self, *records: Mapping[str, Any]) -> None:
        """Append a line for each and flush them. Numbers that are not finite become null."""
        content = b"".join(line_with_checksum(json_safe(record)) for record in records)
        with self.in_place(), translate_os_errors(self.metrics_path), self.metrics_path.open("ab", buffering=0) as file:
            start = file.tell()
            try:
                while content:  # a disk that fills up takes a part first and refuses the rest
                    content = content[file.write(content) :]
            except OSError:
                file.truncate(start)
                raise

    def counts(self) -> RoutingCounts | None:
        """What a watched run has counted, a step for each reading; None before the first, and of any other run."""
        watched = self.watched()
        return None if watched is None else counts_of_lines(self.metric_log().lines, watched, f"run {self.name}")

    def write_evaluation(self, evaluation: Evaluation) -> None:
        """Keep the figures of scoring the whole held-out text (moe_core.evaluation.evaluate)."""
        self.write_file("evaluation.json", with_checksum(evaluation.to_json()))

    def evaluation(self) -> Evaluation | None:
        """The figures kept last; None when the run was never scored. Their `step` says what was scored.

        Raises RunError naming the file and the field where it is no evaluation.
        """
        content = self._read("evaluation.json")
        return None if content is None else evaluation_from_json(content, str(self.evaluation_path))

    def unverified(self) -> list[str]:
        """The files of this run that carry no checksum: they are from before there were any. Raises RunError."""
        names = ("config.json", WATCHED_FILE, "status.json", "evaluation.json", "corpus.json")
        contents = {name: self._read(name) for name in names}
        found = [
            name
            for name, content in contents.items()
            if content is not None and not is_verified(content, str(self.place.find(name)))
        ]
        return found + (["metrics.jsonl"] if self.metric_log().unverified else [])

    def metric_log(self) -> MetricLog:
        """The metric lines, and how many were left out. Raises RunError when the file cannot be read at all."""
        return parse_log(self._read("metrics.jsonl") or b"")

    def metric_records(self, kind: Kind | None = None) -> list[dict[str, Any]]:
        """All metric lines, or those of one kind, oldest first, with the keys that each was written with."""
        lines = (line for line in self.metric_log().lines if kind is None or line.kind == kind)
        return [line.model_dump(exclude_unset=True, exclude={KEY}) for line in lines]

    def metrics(self, kind: Kind | None = None) -> pd.DataFrame:
        """The metric lines (all, or of one kind) as a table, one row a line; empty when there is none."""
        return self.metric_log().frame(kind)

    def rewind_metrics(self, step: int) -> None:
        """Drop the lines of later steps and a torn last line: a resumed trainer writes them anew."""
        self._write("metrics.jsonl", rewound(self._read("metrics.jsonl") or b"", step))
        for probe_step in self.probe_steps():
            if probe_step > step:
                self.probe_path(probe_step).unlink()

    def probe_steps(self) -> list[int]:
        """Steps whose probe routing is kept, ascending."""
        names = (path.stem.removeprefix("step_") for path in self.place.find("probes").glob("step_*.parquet"))
        return sorted(int(name) for name in names if name.isdecimal())

    def probe_path(self, step: int) -> Path:
        """File of the probe routing of `step`."""
        return self.place.find("probes") / f"step_{step:06d}.parquet"

    def probe(self, step: int) -> RoutingTrace:
        """The probe routing of `step`. Raises RunError or TraceError naming the file when it is damaged."""
        from moe_core.routing.trace.trace import RoutingTrace

        check_ordinary(self.probe_path(step))
        return RoutingTrace.load(self.probe_path(step))

    def write_probe(self, step: int, trace: RoutingTrace) -> None:
        """Keep the probe routing of `step`. Raises RunError when the disk refuses."""
        with self.in_place():
            try:
                trace.save(self.probe_path(step))
            except TraceError as error:  # which the operating system's refusal became
                if isinstance(error.__context__, OSError):
                    with translate_os_errors(self.probe_path(step)):
                        raise error.__context__ from None
                raise

    def write_held_out(
        self,
        validation: Sequence[Document],
        unseen: Sequence[Document],
        token_counts: np.ndarray,
        domains: Sequence[str],
    ) -> None:
        """Keep what evaluation needs later: held-out documents, token counts int[V] of the training split, domains."""
        self._write("held_out.parquet", documents_to_bytes(validation, unseen))
        digest = sha256_of(self.path / "held_out.parquet")
        self._write("corpus.json", Corpus(list(domains), [int(count) for count in token_counts], digest).to_bytes())

    def held_out(self, split: str) -> list[Document]:
        """The documents of "validation" or "unseen". Raises UsageError for another split, RunError when damaged."""
        if split not in HELD_OUT_SPLITS:
            raise UsageError(f"unknown split {split!r}; expected one of {', '.join(HELD_OUT_SPLITS)}")
        digest = self._corpus().held_out_sha256
        try:
            documents = read_documents(self.place.find("held_out.parquet"), digest)
        except FileNotFoundError:
            raise self._missing("held_out.parquet") from None
        return [document for document in documents if document.split == split]

    def token_counts(self) -> np.ndarray:
        """int64 [V]: occurrences of each vocabulary entry in the training split."""
        import numpy as np

        return np.asarray(self._corpus().token_counts, dtype=np.int64)

    def domains(self) -> tuple[str, ...]:
        """The run's domains; a token's domain id indexes them."""
        return tuple(self._corpus().domains)

    def request_stop(self) -> None:
        """Ask the trainer, which may be another process, to save and stop after its current step."""
        with translate_os_errors(self._stop_path):
            self._stop_path.touch()

    def stop_requested(self) -> bool:
        """True between request_stop and clear_stop."""
        return self._stop_path.exists()

    def clear_stop(self) -> None:
        """Forget a request to stop."""
        if self._lock.is_lost():
            return  # what lies there now is another run
        with translate_os_errors(self._stop_path):
            self._stop_path.unlink(missing_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for training. Raises RunBusyError when another trainer does, UsageError for a run that comes
        with Moescope. Dies with the process."""
        if self.is_shipped():
            raise UsageError(
                f"run {self.name!r} comes with Moescope and stays as it is; choose another --run NAME, or fine-tune it "
                f"as one: --run NAME --init-from {self.name}"
            )
        with translate_os_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                stack.enter_context(self._lock.held(LOCK_PATIENCE_SECONDS))
            except TimeoutError:
                status = self.status()
                process = f" by process {status.pid}" if status is not None and status.pid else ""
                raise RunBusyError(
                    f"run {self.name!r} is being trained{process}; wait for it, stop it first, or choose another "
                    "--run NAME"
                ) from None
            for folder in (self.path, *(self.path / name for name in ("probes", "weights", "analysis"))):
                remove_stale(folder)
            yield

    def is_locked(self) -> bool:
        """True while some living process (this one included) holds the lock."""
        return self._lock.is_taken()

    def _corpus(self) -> Corpus:
        content = self._read("corpus.json")
        if content is None:
            raise self._missing("corpus.json")
        return corpus_from_bytes(content, self.place.find("corpus.json"))[0]

    def _read(self, name: str) -> bytes | None:
        """A file of the run as it stands, None where there is none. Raises RunError."""
        try:
            return read_file(self.place.find(name))
        except FileNotFoundError:
            return None

    def _missing(self, name: str) -> RunError:
        if not self.path.is_dir():
            return RunError(
                f"no run {self.name!r} in {str(self.root)!r}; `{program()} runs` lists those there are, "
                f"`{program()} --quick --run {self.name}` trains one"
            )
        return RunError(
            f"run {self.name!r} has no {name}; restore {str(self.path / name)!r} from a copy, "
            "or delete the run's folder and train it again"
        )
