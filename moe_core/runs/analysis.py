"""Findings about a run after its training, kept beside it under checkpoints/<run>/analysis/.

  ablation_zero_1f0c….jsonl   effects of switching experts off: a line that says of what, then a line an expert
  saliency.parquet …          tables, with their checksum; of what they are stands in the schema's metadata

Every file names the checkpoint (a hash of its weights), the step and the text it was made from. Reading needs no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from moe_core.ablation_modes import MODES
from moe_core.data.windows import OVERLAPPING_WINDOWS, WINDOW_RULE
from moe_core.errors import RunError
from moe_core.json_values import json_safe
from moe_core.program import program
from moe_core.runs.checksum import is_verified_line, line_with_checksum
from moe_core.runs.files import read_file, translate_os_errors, write_atomic
from moe_core.runs.metric_log import Figure
from moe_core.table_checksum import is_verified_table, table_with_checksum

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from moe_core.runs.folder import RunFolder

HELD_OUT_TEXT = "held-out text"
"""Name of the text that is read where nobody brought another: what pages and figures show."""
EFFECT_COLUMNS = ("layer", "expert", "domain", "tokens", "affected", "delta_nats", "low", "high", "kl")
HEADS = "heads"
"""In place of a mode: attention heads were masked. Their rows are kept as experts' are, the head in place of one."""
Table = Literal["saliency", "similarity", "importance", "correlations"]
TABLES_OF_A_MODE: tuple[Table, ...] = ("importance", "correlations")
_METADATA_KEY = b"moescope.analysis"
_WHOLE_COLUMNS: dict[Table, tuple[str, ...]] = {
    "saliency": ("layer", "expert", "tokens"),
    "similarity": ("layer", "expert_i", "expert_j"),
    "importance": ("layer", "expert"),
    "correlations": ("n",),
}
_TEXT_COLUMNS = ("measure", "verdict")
_FIGURE_COLUMNS: dict[Table, tuple[str, ...]] = {
    "saliency": ("reap", "ean", "gate_mass"),
    "similarity": ("gate_cosine", "weight_cosine", "output_cka"),
    "importance": ("delta_nats", "low", "high", "load", "specialization", "vocabulary", "confidence", "reap", "ean"),
    "correlations": ("rho", "low", "high", "p_value", "p_adjusted", "rho_pooled"),
}


@dataclass(frozen=True)
class AnalysisOf:
    """Identity of an analysis. Two analyses with the same identity are interchangeable."""

    __pydantic_config__ = ConfigDict(strict=True)

    checkpoint: str
    """SHA-256 of the weights file."""
    step: int
    text: str
    """For people: HELD_OUT_TEXT, or where the text came from."""
    fingerprint: str
    """Hash of the token ids, documents and domains that were read."""
    tokens: int
    mode: str = ""
    """How experts were switched off; "" where none was."""
    windows: str = OVERLAPPING_WINDOWS
    """The rule by which long documents were cut; what names none was made by the older one."""

    @property
    def key(self) -> str:
        """Names the file: twelve hexadecimal digits of everything that decides the numbers."""
        identity = [self.checkpoint, self.fingerprint, self.mode, self.windows]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]


class AblationJournal:
    """The effects of switching experts off, one expert after the other; what is written survives a kill.

    Several processes may write at once: each line is one write to the end of the file, and an expert that was done
    twice counts once.
    """

    def __init__(self, run: RunFolder, of: AnalysisOf) -> None:
        self._of = of
        self._run = run
        self._name = f"analysis/ablation_{of.mode}_{of.key}.jsonl"
        self._place = run.place
        self._path = run.path / self._name

    def read(self) -> dict[tuple[int, int], list[dict[str, Any]]]:
        """Rows (EFFECT_COLUMNS, one a domain) of each expert that is done, by (layer, expert)."""
        return _read_journal(self._place.find(self._name))[1]

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep the rows of one expert. Raises RunError when the disk refuses; what was there is then untouched."""
        content = line_with_checksum(json_safe({"rows": rows})).decode()
        self._run.make_folder_of(self._path)
        with translate_os_errors(self._path):
            if (begun := self._place.find(self._name)) != self._path and begun.exists():
                write_atomic(self._path, begun.read_bytes())  # what comes with Moescope is gone on with in a copy
            if not self._path.exists():
                content = line_with_checksum({"of": asdict(self._of)}).decode() + content
            with self._path.open("a+b", buffering=0) as file:
                start = file.seek(0, os.SEEK_END)
                if start and os.pread(file.fileno(), 1, start - 1) != b"\n":
                    content = "\n" + content  # ends the half line that a killed writer left
                if file.write(content.encode()) < len(content):
                    with suppress(OSError):
                        file.truncate(start)
                    raise RunError(f"no space left to write {str(self._path)!r}; free some disk space and try again")
                os.fsync(file.fileno())


def read_ablation_map(run: RunFolder, mode: str = "zero", text: str = HELD_OUT_TEXT) -> pd.DataFrame | None:
    """The known effects of switching each expert off: EFFECT_COLUMNS and `uncertain`, as ablation_map gives them.

    The newest step with any effects counts, and there what was measured by today's window rule; its experts may not all
    be done yet. None if nothing was computed. `frame.attrs` holds the fields of AnalysisOf.
    """
    found = []
    for path in run.place.matching("analysis", f"ablation_{mode}_*.jsonl"):
        of, experts = _read_journal(path)
        if of is not None and of.text == text and experts:
            found.append((of.step, of.windows == WINDOW_RULE, path.stat().st_mtime, of, experts))
    if not found:
        return None
    *_, of, experts = max(found, key=lambda entry: entry[:3])
    return effects_frame([row for rows in experts.values() for row in rows], of)


def effects_frame(rows: Sequence[Mapping[str, Any]], of: AnalysisOf | None = None) -> pd.DataFrame:
    """Rows of EFFECT_COLUMNS as a table in the order of layers and experts, with `uncertain` = 0 is in the interval,
    or there is none."""
    import pandas as pd

    frame = pd.DataFrame(rows, columns=list(EFFECT_COLUMNS))
    numbers = dict.fromkeys(("delta_nats", "low", "high", "kl"), float)
    frame = frame.astype(numbers).sort_values(["layer", "expert"], kind="stable", ignore_index=True)
    frame["uncertain"] = ~((frame["low"] > 0) | (frame["high"] < 0))
    frame.attrs.update(asdict(of) if of is not None else {})
    return frame


def heads_frame(rows: Sequence[Mapping[str, Any]], of: AnalysisOf | None = None) -> pd.DataFrame:
    """effects_frame of rows of heads, with `head` in place of `expert` and without `affected`."""
    frame = effects_frame(rows, of)
    return frame.rename(columns={"expert": "head"}).drop(columns="affected")


def read_head_effects(run: RunFolder, text: str = HELD_OUT_TEXT) -> pd.DataFrame | None:
    """What is known of masking attention heads, of the newest step; None if nothing was computed."""
    frame = read_ablation_map(run, HEADS, text)
    return None if frame is None else frame.rename(columns={"expert": "head"}).drop(columns="affected")


def write_table(run: RunFolder, name: Table, frame: pd.DataFrame, of: AnalysisOf) -> None:
    """Keep one table, replacing an older one of the same mode. Raises RunError when the disk refuses."""
    import pyarrow as pa

    table = pa.Table.from_pandas(frame, preserve_index=False)
    table = table.replace_schema_metadata({_METADATA_KEY: json.dumps({"table": name, **asdict(of)}).encode()})
    run.write_file(_table_name(name, of.mode), table_with_checksum(table))


def read_table(run: RunFolder, name: Table, mode: str = "zero") -> pd.DataFrame | None:
    """A table as it was written, the fields of AnalysisOf in `frame.attrs`; None where there is none.

    `mode`: of switching experts off, where the table depends on it (importance, correlations).
    Raises RunError when it is damaged, or was put in the place of another.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    mode = mode if name in TABLES_OF_A_MODE else ""
    path = run.place.find(_table_name(name, mode))
    try:
        content = read_file(path)
        verified = is_verified_table(content)
        table = pq.read_table(pa.BufferReader(content), page_checksum_verification=True)
        record = json.loads(table.schema.metadata[_METADATA_KEY])
        of = _analysis_of(record)
        if verified != ("table" in record):
            raise ValueError("its checksum is gone")
        _check_columns(table, name)
        frame: pd.DataFrame = table.to_pandas()
    except FileNotFoundError:
        return None
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, MemoryError):
        raise RunError(f"{str(path)!r} is damaged; delete it, `{program()} ablate` makes it again") from None
    elsewhere = verified and (record["table"] != name or not _is_of_run(run, of))  # older ones do not tell
    if elsewhere or of.mode != mode:
        raise RunError(
            f"{str(path)!r} was made for another run, table or mode (step {of.step}, {of.mode or 'no mode'}); "
            f"delete it, `{program()} ablate` makes it again"
        )
    frame.attrs.update(asdict(of))
    return frame


def _is_of_run(run: RunFolder, of: AnalysisOf) -> bool:
    """True if the effects of the same weights and text are in the run, as they are measured before any table."""
    keys = {replace(of, mode=mode).key for mode in MODES}
    return any(path.stem.rsplit("_", 1)[-1] in keys for path in run.place.matching("analysis", "ablation_*.jsonl"))


def _check_columns(table: pa.Table, name: Table) -> None:
    """Raise ValueError unless it has the columns of such a table, numbers where numbers are due."""
    import pyarrow as pa

    whole, words = _WHOLE_COLUMNS[name], _TEXT_COLUMNS if name == "correlations" else ()
    needed = {*whole, *words, *_FIGURE_COLUMNS[name]}
    if len(set(table.column_names)) < table.num_columns or needed - set(table.column_names):
        raise ValueError("a column is missing or there twice")
    for field in table.schema:
        kind = field.type
        right = (
            pa.types.is_integer(kind)
            if field.name in whole
            else pa.types.is_string(kind) or pa.types.is_large_string(kind)
            if field.name in words
            else pa.types.is_floating(kind)
        )
        if not right or (field.name in (*whole, *words) and table[field.name].null_count):
            raise ValueError("a column is of another kind")


def _table_name(name: Table, mode: str) -> str:
    # The default mode needs no word.
    return f"analysis/{name}.parquet" if mode in ("", "zero") else f"analysis/{name}_{mode}.parquet"


def _analysis_of(record: Mapping[str, Any]) -> AnalysisOf:
    """As it was kept; what it does not know is left out. Raises ValueError where something is missing or wrong."""
    known = {field.name for field in fields(AnalysisOf)}
    return _readers()[0].validate_json(json.dumps({name: value for name, value in record.items() if name in known}))


@dataclass(frozen=True)
class _Effect:
    """One row of a journal: EFFECT_COLUMNS."""

    __pydantic_config__ = ConfigDict(strict=True, allow_inf_nan=False)

    layer: Annotated[int, Field(ge=0, le=100_000)]
    expert: Annotated[int, Field(ge=0, le=32_767)]
    domain: Annotated[str, Field(max_length=1000)]
    tokens: Annotated[int, Field(ge=0, le=2**62)]
    affected: Annotated[int, Field(ge=0, le=2**62)]
    delta_nats: Figure
    low: Figure
    high: Figure
    kl: Figure


def _read_journal(path: Path) -> tuple[AnalysisOf | None, dict[tuple[int, int], list[dict[str, Any]]]]:
    """The identity of a journal and its experts' rows. Half a line, which a killed writer leaves, does not count, nor
    does one that was changed: its expert is measured again."""
    of: AnalysisOf | None = None
    experts: dict[tuple[int, int], list[dict[str, Any]]] = {}
    try:
        lines = read_file(path).split(b"\n")
    except FileNotFoundError:
        return None, {}
    for line in lines:
        # Pydantic's errors are ValueErrors.
        with suppress(ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            is_verified_line(line)
            record = json.loads(line)
            if "of" in record:
                of = _analysis_of(record["of"])
            else:
                rows = [asdict(row) for row in _readers()[1].validate_json(json.dumps(record["rows"]))]
                experts[rows[0]["layer"], rows[0]["expert"]] = rows
    return of, experts


@cache
def _readers() -> tuple[TypeAdapter[AnalysisOf], TypeAdapter[list[_Effect]]]:
    return TypeAdapter(AnalysisOf), TypeAdapter(list[_Effect])
