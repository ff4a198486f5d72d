"""A trace's file that is none, or was changed: the command line and the dashboard say so in one line."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from app_support import Open, in_box, settled
from cli_support import Run, assert_one_line
from routing_support import random_trace

from moe_core.errors import TraceError
from moe_core.routing.opening import open_routing

Damage = Callable[[Path], object]


def bytes_of(change: Callable[[bytes], bytes]) -> Damage:
    return lambda path: path.write_bytes(change(path.read_bytes()))


def metadata(**changed: Any) -> Damage:
    """Other metadata; None takes the key out."""

    def damage(path: Path) -> None:
        table = pq.read_table(path)
        tree = json.loads(table.schema.metadata[b"moescope"]) | changed
        content = json.dumps({key: value for key, value in tree.items() if value is not None}).encode()
        pq.write_table(table.replace_schema_metadata({b"moescope": content}), path)

    return damage


def column(name: str, value: object, kind: pa.DataType | None = None) -> Damage:
    """One column holds this value throughout."""

    def damage(path: Path) -> None:
        table = pq.read_table(path)
        values = pa.array([value] * len(table), kind)
        pq.write_table(table.set_column(table.column_names.index(name), name, values), path)

    return damage


def table(change: Callable[[pa.Table], pa.Table]) -> Damage:
    return lambda path: pq.write_table(change(pq.read_table(path)), path)


def special(make: Callable[[Path], object]) -> Damage:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


DAMAGES: dict[str, Damage] = {
    "empty": bytes_of(lambda _: b""),
    "random": bytes_of(lambda _: random.Random(0).randbytes(9000)),
    "half": bytes_of(lambda whole: whole[: len(whole) // 2]),
    "JSON": bytes_of(lambda _: b"{}"),
    "marks alone": bytes_of(lambda _: b"PAR1PAR1"),
    "footer of 2 GiB": bytes_of(lambda whole: whole[:-8] + b"\xff\xff\xff\x7fPAR1"),
    "flipped bit": bytes_of(lambda whole: whole[:200] + bytes([whole[200] ^ 4]) + whole[201:]),
    "folder": special(Path.mkdir),
    "pipe": special(os.mkfifo),
    "circle of links": special(lambda path: path.symlink_to(path.name)),
    "metadata no JSON": table(lambda kept: kept.replace_schema_metadata({b"moescope": b"\xff["})),
    "metadata a list": table(lambda kept: kept.replace_schema_metadata({b"moescope": b"[1]"})),
    "metadata deep": table(lambda kept: kept.replace_schema_metadata({b"moescope": b"[" * 100_000})),
    "other format": metadata(format=2),
    "no experts": metadata(num_experts=None),
    "experts huge": metadata(num_experts=10**30),
    "experts a word": metadata(num_experts="4"),
    "fewer experts": metadata(num_experts=2, top_k=2),
    "larger top_k": metadata(top_k=3),
    "layers not finite": metadata(layers=[float("nan")]),
    "layers descending": metadata(layers=[1, 0]),
    "layer unknown": metadata(layers=[0, 7]),
    "domain missing": metadata(domains=["only"]),
    "vocabulary a list": metadata(vocabulary=[1]),
    "score function of two lines": metadata(score_function="x\ny"),
    "token ids as text": column("token_id", "x"),
    "token ids empty": column("token_id", None, pa.int32()),
    "token ids huge": column("token_id", 2**62),
    "position negative": column("position", -5),
    "domain beyond": column("domain_id", 30_000),
    "document a list": column("document_id", [1]),
    "document a time": column("document_id", 1, pa.timestamp("s")),
    "expert not finite": column("layer_0_expert_0", float("nan")),
    "expert beyond": column("layer_0_expert_0", 30_000),
    "score not finite": column("layer_0_score_0", float("nan")),
    "score as text": column("layer_0_score_0", "x"),
    "column missing": table(lambda kept: kept.drop_columns(["position"])),
    "no rows": table(lambda kept: kept.slice(0, 0)),
}


@pytest.fixture
def traces(tmp_path: Path) -> dict[str, Path]:
    """A damaged trace of each kind."""
    paths = {}
    for number, (name, damage) in enumerate(DAMAGES.items()):
        paths[name] = tmp_path / f"bad{number}.parquet"
        random_trace(2).save(paths[name])
        damage(paths[name])
    return paths


def test_plots_says_what_is_wrong_in_one_line(traces: dict[str, Path], cli: Run, tmp_path: Path) -> None:
    for name, path in traces.items():
        code, out, err = cli(tmp_path, "plots", "--trace", str(path), "--out", str(tmp_path / "out"), "--format", "csv")
        assert (name, code, out) == (name, 1, "")
        assert_one_line(err, path.name)
        assert len(err) < 600, name
    assert not (tmp_path / "out").exists()


def test_the_field_of_the_dashboard_says_so_too_and_goes_on(
    traces: dict[str, Path], dashboard: Open, tmp_path: Path
) -> None:
    good = tmp_path / "good.parquet"
    random_trace(2).save(good)
    (tmp_path / "runs").mkdir()
    at = dashboard(tmp_path / "runs", arguments=())
    for name, path in traces.items():
        at.text_input(key=in_box(at, "open_path")).set_value(str(path))
        at.button(key="open_button").click()
        settled(at)
        assert not at.exception, name
        # Damage to the columns is found by the page that reads them, after the file was opened.
        errors = [error.value.replace("\\", "") for error in (*at.sidebar.error, *at.main.error)]
        assert errors, name
        assert any(path.name in error for error in errors), (name, errors)
        assert not any("\n" in error or "bug" in error for error in errors), (name, errors)
    at.text_input(key=in_box(at, "open_path")).set_value(str(good))
    at.button(key="open_button").click()
    settled(at)
    assert at.title[0].value.replace("\\", "").startswith("What is trace good.parquet")


def test_without_its_metadata_it_is_a_table_of_tokens(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    random_trace(2).save(path)
    pq.write_table(pq.read_table(path).replace_schema_metadata({}), path)
    found = open_routing(path)
    assert (found.format, found.routing.num_tokens) == ("parquet", random_trace(2).num_tokens)


UNKNOWN_TYPE = b"\x7e"
"""As a footer writes the 63rd type of a column; there are eight."""
LOOKED_AT = 300
"""Bytes of the footer, among them the type of the first column of experts."""


def test_no_damage_to_a_byte_of_the_footer_ends_the_process(tmp_path: Path) -> None:
    """Arrow stops the whole process where it is asked about a column whose type is another than the schema's."""
    sound, path = tmp_path / "sound.parquet", tmp_path / "damaged.parquet"
    random_trace(2).save(sound)
    whole = sound.read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    opened = 0
    for place in range(footer, footer + LOOKED_AT):
        path.write_bytes(whole[:place] + UNKNOWN_TYPE + whole[place + 1 :])
        with suppress(TraceError):
            open_routing(path)
            opened += 1
    assert opened < LOOKED_AT
