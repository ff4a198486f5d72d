"""A trace written as it comes: the same file as of the whole, in bounded memory, and nothing half-written left."""

from __future__ import annotations

import resource
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routing_support import random_experts, random_trace, trace_of

from moe_core.errors import TraceError
from moe_core.routing import RoutingTrace, concatenate
from moe_core.routing.trace import parquet
from moe_core.routing.trace.parquet import TraceWriter

ARRAYS = (
    "router_indices",
    "router_scores",
    "router_logits",
    "token_ids",
    "document_ids",
    "source_ids",
    "positions",
    "domain_ids",
    "predicted_ids",
)
FACTS = ("layers", "num_experts", "domains", "score_function", "varying_experts", "source", "vocabulary")


def assert_same(found: RoutingTrace, expected: RoutingTrace) -> None:
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    for name in FACTS:
        assert getattr(found, name) == getattr(expected, name), name


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8), group=st.integers(1, 40), logits=st.booleans())
def test_parts_of_any_size_become_the_file_of_the_joined_trace(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], group: int, logits: bool
) -> None:
    path = tmp_path_factory.mktemp("trace") / "x.parquet"
    parts = []
    for number, length in enumerate(lengths):
        rng = np.random.default_rng(number)
        token_ids = rng.integers(0, 9, length)
        parts.append(
            trace_of(
                random_experts(rng, (2, length), 3, 4),
                num_experts=4,
                token_ids=token_ids,
                document_ids=np.full(length, number),
                domains=[f"domain {number % 3}"],
                router_logits=rng.normal(size=(2, length, 4)) if logits else None,
                predicted_ids=rng.integers(0, 9, length),
                vocabulary={i: f"<{i}>" for i in range(9)},
                source=f"run {number % 2}",
            )
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "ROW_GROUP_TOKENS", group)
        with TraceWriter(path) as writer:
            for part in parts:
                writer.write(part)
    whole = concatenate(parts)
    occurring = {*whole.token_ids.tolist(), *whole.predicted_ids.tolist()}  # type: ignore[union-attr]
    assert_same(RoutingTrace.load(path), replace(whole, vocabulary={i: f"<{i}>" for i in occurring}))
    assert writer.tokens == sum(lengths)
    groups = pq.ParquetFile(path).metadata
    sizes = [groups.row_group(i).num_rows for i in range(groups.num_row_groups)]
    assert sizes == [group] * (sum(lengths) // group) + [sum(lengths) % group] * bool(sum(lengths) % group)


def test_wide_tokens_make_small_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = random_trace(0)
    table = parquet._to_table(trace, trace.domain_ids, trace.domains)
    per_token = table.drop_columns(["domain", "token_text"]).nbytes // trace.num_tokens
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 7 * per_token)
    trace.save(tmp_path / "x.parquet")
    assert pq.ParquetFile(tmp_path / "x.parquet").metadata.row_group(0).num_rows == 7
    assert_same(RoutingTrace.load(tmp_path / "x.parquet"), trace)


def test_memory_holds_a_row_group_however_long_the_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 parts of 2,000 tokens would be 32 MB of arrays; what is held stays below a fifth of it."""
    monkeypatch.setattr(parquet, "ROW_GROUP_TOKENS", 8_000)
    rng = np.random.default_rng(0)
    part = trace_of(random_experts(rng, (4, 2_000), 3, 8), num_experts=8, token_ids=rng.integers(0, 500, 2_000))
    before, most = pa.total_allocated_bytes(), 0
    tracemalloc.start()
    try:
        with TraceWriter(tmp_path / "x.parquet") as writer:
            for _ in range(200):
                writer.write(part)
                most = max(most, pa.total_allocated_bytes() - before)
        most += tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert RoutingTrace.open(tmp_path / "x.parquet").num_tokens == 400_000
    assert most < 400_000 * 4 * 3 * 6 / 5


def test_an_exception_leaves_the_older_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    random_trace(0).save(path)
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), TraceWriter(path) as writer:  # noqa: PT012
        writer.write(random_trace(1))
        raise KeyboardInterrupt
    with pytest.raises(OSError, match="a fault of the caller"), TraceWriter(path):
        raise OSError("a fault of the caller")
    with pytest.raises(TraceError, match="nothing was recorded"), TraceWriter(path):
        pass
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": [4, 9]}, r"the part after token 2 has layers = \[4, 9\], the first \[0, 1\]"),
        ({"vocabulary": {5: "x"}}, "token 5 is 'the' in one part and 'x' in another"),
        ({"predicted_ids": [1, 1]}, "some traces have predicted_ids"),
        ({"router_logits": np.zeros((2, 2, 4))}, "some traces have router_logits"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    facts = {"num_experts": 4, "token_ids": [5, 5], "vocabulary": {5: "the"}}
    experts = np.zeros((2, 2, 1), dtype=int)
    with pytest.raises(TraceError, match=message), TraceWriter(tmp_path / "x.parquet") as writer:  # noqa: PT012
        writer.write(trace_of(experts, **facts))  # type: ignore[arg-type]
        writer.write(trace_of(experts, **{**facts, **changes}))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


FULL_DISK = """
import resource, signal, sys
import numpy as np
from moe_core.errors import TraceError
from moe_core.routing import RoutingTrace
from moe_core.routing.trace.parquet import TraceWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
rng = np.random.default_rng(0)
try:
    with TraceWriter(sys.argv[1]) as writer:
        for _ in range(40):
            writer.write(RoutingTrace.from_arrays(
                router_indices=np.argsort(rng.random((4, 5_000, 8)))[..., :2], router_scores=rng.random((4, 5_000, 2)),
                num_experts=8, token_ids=rng.integers(0, 500, 5_000)))
except TraceError as error:
    print(error)
"""


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", FULL_DISK, str(tmp_path / "x.parquet")], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("cannot write trace")
    assert "free space or choose another path" in ended.stdout
    assert ended.stdout.count("\n") == 1
    assert ended.stderr == ""
    assert not list(tmp_path.iterdir())
