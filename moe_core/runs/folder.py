"""A run is a folder: what it was asked to do, how far it is, what it measured. places.py says where it lies.

checkpoints/<run>/
  config.json       the whole configuration tree
  status.json       RunStatus, replaced atomically
  metrics.jsonl     one JSON object a line, only ever appended to
  probes/           step_000100.parquet: routing of the fixed probe set at that step
  held_out.parquet  the documents of both held-out splits (text, domain, source, split)
  corpus.json       domains, and how often each vocabulary entry occurs in the training split
  weights/          checkpoints (checkpoint.py)
  analysis/         what switching experts off showed (analysis.py)
  evaluation.json   figures of the whole held-out text, with report.md, once the run was scored
  stop              exists while somebody asks the trainer to stop
  trainer.lock      held by the trainer; the operating system drops it when the process dies
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock, Timeout

from moe_core.config import Config, validate_config
from moe_core.data.splits import HELD_OUT_SPLITS
from moe_core.errors import RunBusyError, RunError, UsageError
from moe_core.json_values import json_safe
from moe_core.program import program
from moe_core.runs.evaluation import Evaluation, evaluation_from_json
from moe_core.runs.files import read_json_object, remove_folder, remove_stale, translate_os_errors, write_atomic
from moe_core.runs.names import checkpoints_root
from moe_core.runs.places import place_of

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from moe_core.data.document import Document

State = Literal["preparing", "running", "finished", "stopped", "failed"]
# A dashboard that asks "is it locked?" holds the lock for an instant; a trainer waits that long before it gives up.
LOCK_PATIENCE_SECONDS = 2.0


@dataclass(frozen=True)
class RunStatus:
    """How far a run is. Times in seconds; started_at and updated_at since 1970."""

    state: State
    step: int = 0
    steps: int = 0
    tokens: int = 0
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    elapsed_seconds: float = 0.0
    started_at: float = 0.0
    updated_at: float = 0.0
    pid: int = 0
    message: str = ""


class RunFolder:
    """The folder of one run. Constructing it touches nothing; `name` is validated (UsageError)."""

    def __init__(self, name: str, root: str | Path | None = None) -> None:
        self.name = name
        self.root = checkpoints_root(root)
        self.place = place_of(name, root)
        self.path = self.place.written
        self.log_path = self.path / "train.log"
        self._stop_path = self.path / "stop"
        self._lock_path = self.path / "trainer.lock"

    def __repr__(self) -> str:
        return f"RunFolder({self.name!r}, root={str(self.root)!r})"

    def exists(self) -> bool:
        """True once a trainer has created it (a log of a trainer that never started is not a run)."""
        marks = ("config.json", "status.json", "weights")
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
        with translate_os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
        return path

    def create(self, config: Config) -> None:
        """Start a new run. Raises UsageError if the name holds a checkpoint already; what a trainer left that died
        before its first checkpoint is cleared. The caller holds the lock."""
        if self.weights_path.exists() and any(self.weights_path.glob("step-*")):
            raise UsageError(
                f"run {self.name!r} exists already in {str(self.root)!r}; "
                "choose another --run NAME, or continue it with --resume"
            )
        with translate_os_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            remove_stale(self.path)
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
        self.write_config(config)

    def write_config(self, config: Config) -> None:
        """Save the configuration tree."""
        write_atomic(self.path / "config.json", config.model_dump_json(indent=2).encode())

    def config(self) -> Config:
        """The configuration the run was started with. Raises RunError if it is missing or no longer valid."""
        path = self.place.find("config.json")
        try:
            return validate_config(read_json_object(path))
        except FileNotFoundError:
            raise self._missing("config.json") from None
        except UsageError as error:
            raise RunError(f"{str(path)!r} is not a valid configuration: {error}") from None

    def status(self) -> RunStatus | None:
        """The last status, or None before the first. Raises RunError if the file is damaged."""
        path = self.place.find("status.json")
        try:
            tree = read_json_object(path)
        except FileNotFoundError:
            return None
        known = {field.name for field in fields(RunStatus)}
        try:
            status = RunStatus(**{key: value for key, value in tree.items() if key in known})
        except TypeError:
            raise RunError(f"{str(path)!r} has no state; delete the file, --resume writes a new one") from None
        numbers = (status.step, status.steps, status.tokens, status.updated_at, status.elapsed_seconds)
        if not isinstance(status.state, str) or not all(isinstance(number, int | float) for number in numbers):
            raise RunError(f"{str(path)!r} holds wrong types; delete the file, --resume writes a new one")
        return status

    def write_status(self, status: RunStatus) -> None:
        """Replace the status atomically: a reader sees the old one or the new one."""
        write_atomic(self.path / "status.json", json.dumps(json_safe(asdict(status))).encode())

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Append one line and flush it. Numbers that are not finite become null."""
        line = json.dumps(json_safe(record), separators=(",", ":"), allow_nan=False) + "\n"
        with translate_os_errors(self.metrics_path), self.metrics_path.open("ab", buffering=0) as file:
            content, start = line.encode(), file.tell()
            try:
                while content:  # a disk that fills up takes a part first and refuses the rest
                    content = content[file.write(content) :]
            except OSError:
                file.truncate(start)
                raise

    def write_evaluation(self, evaluation: Evaluation) -> None:
        """Keep the figures of scoring the whole held-out text (moe_core.evaluation.evaluate)."""
        content = json.dumps(evaluation.to_json(), indent=2, allow_nan=False) + "\n"
        self.write_file("evaluation.json", content.encode())

    def evaluation(self) -> Evaluation | None:
        """The figures kept last; None when the run was never scored. Their `step` says what was scored.

        Raises RunError naming the file and the field where it is no evaluation.
        """
        try:
            content = self.evaluation_path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            reason = error.strerror or error
            raise RunError(f"cannot read {str(self.evaluation_path)!r}: {reason}; check its permissions") from None
        return evaluation_from_json(content, str(self.evaluation_path))

    def metric_records(self, kind: str | None = None) -> list[dict[str, Any]]:
        """All metric lines, or those of one kind, oldest first; a torn last line is skipped.

        Raises RunError naming the line when another line is not a JSON object.
        """
        try:
            content = self.metrics_path.read_bytes()
        except FileNotFoundError:
            return []
        records = []
        for number, line in enumerate(content.split(b"\n")[:-1], start=1):
            try:
                record = json.loads(line)
                if record["kind"] == kind or kind is None:
                    records.append(record)
            except (ValueError, TypeError, KeyError):
                raise RunError(
                    f"{str(self.metrics_path)!r} line {number} is not a metrics record; delete that line to go on"
                ) from None
        return records

    def metrics(self, kind: str | None = None) -> pd.DataFrame:
        """The metric lines (all, or of one kind) as a table, one row a line; empty when there is none."""
        import pandas as pd

        return pd.DataFrame(self.metric_records(kind))

    def rewind_metrics(self, step: int) -> None:
        """Drop the lines of later steps and a torn last line: a resumed trainer writes them anew."""
        kept = [record for record in self.metric_records() if record.get("step", 0) <= step]
        lines = "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in kept)
        write_atomic(self.metrics_path, lines.encode())
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

    def write_held_out(
        self,
        validation: Sequence[Document],
        unseen: Sequence[Document],
        token_counts: np.ndarray,
        domains: Sequence[str],
    ) -> None:
        """Keep what evaluation needs later: held-out documents, token counts int[V] of the training split, domains."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        documents = [asdict(document) for document in (*validation, *unseen)]
        for document, split in zip(documents, ["validation"] * len(validation) + ["unseen"] * len(unseen), strict=True):
            document["split"] = split
        columns = {name: [document[name] for document in documents] for name in ("text", "domain", "source", "split")}
        buffer = pa.BufferOutputStream()
        pq.write_table(pa.table({name: pa.array(column, pa.string()) for name, column in columns.items()}), buffer,
                       compression="zstd")  # fmt: skip
        write_atomic(self.path / "held_out.parquet", buffer.getvalue().to_pybytes())
        corpus = {"domains": list(domains), "token_counts": [int(count) for count in token_counts]}
        write_atomic(self.path / "corpus.json", json.dumps(corpus).encode())

    def held_out(self, split: str) -> list[Document]:
        """The documents of "validation" or "unseen". Raises UsageError for another split, RunError when damaged."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        from moe_core.data.document import Document

        if split not in HELD_OUT_SPLITS:
            raise UsageError(f"unknown split {split!r}; expected one of {', '.join(HELD_OUT_SPLITS)}")
        path = self.place.find("held_out.parquet")
        try:
            rows = pq.read_table(pa.BufferReader(path.read_bytes())).to_pylist()
            return [Document(**row) for row in rows if row["split"] == split]
        except FileNotFoundError:
            raise self._missing("held_out.parquet") from None
        except (pa.ArrowException, OSError, TypeError, KeyError, ValueError):
            raise RunError(f"{str(path)!r} is damaged; restore it from a copy, or train the run again") from None

    def token_counts(self) -> np.ndarray:
        """int64 [V]: occurrences of each vocabulary entry in the training split."""
        import numpy as np

        return np.asarray(self._corpus()["token_counts"], dtype=np.int64)

    def domains(self) -> tuple[str, ...]:
        """The run's domains; a token's domain id indexes them."""
        return tuple(str(name) for name in self._corpus()["domains"])

    def request_stop(self) -> None:
        """Ask the trainer, which may be another process, to save and stop after its current step."""
        with translate_os_errors(self._stop_path):
            self._stop_path.touch()

    def stop_requested(self) -> bool:
        """True between request_stop and clear_stop."""
        return self._stop_path.exists()

    def clear_stop(self) -> None:
        """Forget a request to stop."""
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
        try:
            lock = self._file_lock(LOCK_PATIENCE_SECONDS).acquire()
        except Timeout:
            status = self.status()
            process = f" by process {status.pid}" if status is not None and status.pid else ""
            raise RunBusyError(
                f"run {self.name!r} is being trained{process}; wait for it, stop it first, or choose another --run NAME"
            ) from None
        except OSError as error:
            raise RunError(f"cannot lock {str(self._lock_path)!r}: {error.strerror or error}") from None
        with lock:
            yield

    def is_locked(self) -> bool:
        """True while some living process (this one included) holds the lock."""
        if not self._lock_path.exists():
            return False
        try:
            with self._file_lock(0).acquire():
                return False
        except Timeout:
            return True
        except OSError:
            return False  # a folder we may not write in: nobody trains there

    def _file_lock(self, timeout: float) -> FileLock:
        # A soft lock would outlive a killed trainer, so never fall back on one.
        return FileLock(self._lock_path, timeout=timeout, thread_local=False, fallback_to_soft=False)

    def _corpus(self) -> dict[str, Any]:
        path = self.place.find("corpus.json")
        try:
            corpus = read_json_object(path)
        except FileNotFoundError:
            raise self._missing("corpus.json") from None
        if not all(isinstance(corpus.get(key), list) for key in ("domains", "token_counts")):
            raise RunError(f"{str(path)!r} lacks its domains or token counts; restore it, or train the run again")
        return corpus

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
