"""Many files counted side by side: one table whoever counts, names of sources, damage, workers that are killed."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_core.cli.counts import passed_over
from moe_core.errors import MoescopeError, TraceError, UsageError
from moe_core.routing.trace.counting import regrouped
from moe_core.routing.trace.groups import Group
from moe_core.routing.trace.routing_counts import RoutingCounts
from moe_core.routing.workers import adding, count_files, crew
from moe_core.routing.workers.adding import Adder, LeftOut
from moe_core.routing.workers.count_files import CountedFiles
from moe_core.routing.workers.found_files import find_files
from moe_core.routing.workers.one_file import Fault, Job
from moe_core.routing.workers.processes import Processes
from tests import workers_support
from tests.cli_support import assert_one_line
from tests.routing_support import random_trace

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("weights", "pairs")
NAMES = ("a.parquet", "b.parquet", "below/a.parquet")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three traces of one model, one of them in a folder below."""
    root = tmp_path / "traces"
    for seed, name in enumerate(NAMES):
        random_trace(seed, T=40 + seed).save(root / name)
    return root


@pytest.fixture
def spawning(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test of a page leaves the dashboard as main module, which every spawned process would run."""
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))


def counted(*paths: Path | str, **options: object) -> CountedFiles:
    """In this process."""
    return count_files.count_files(list(paths), **({"workers": 1} | options))  # type: ignore[arg-type]


def expected(by: str = "source") -> RoutingCounts:
    """The sum of the folder's traces, one after the other."""
    total = None
    for seed, name in enumerate(NAMES):
        counts = random_trace(seed, T=40 + seed).counts(by, EXTRAS)  # type: ignore[arg-type]
        groups = [Group(g.domain, g.source and f"{name}:{g.source}") for g in counts.groups]
        counts = replace(counts, groups=groups)
        total = counts if total is None else total + counts
    assert total is not None
    return total


def content(counts: RoutingCounts, path: Path) -> bytes:
    """Its file, to the last bit."""
    counts.save(path)
    return path.read_bytes()


def test_sources_are_named_after_their_file(folder: Path) -> None:
    found = counted(folder, extras=EXTRAS)
    assert found.files == NAMES
    assert found.counts == expected()
    assert found.counts.groups == expected().groups
    assert found.counts.groups[0] == Group("a", "a.parquet:0")
    assert found.counts.groups[-1].source == "below/a.parquet:3"
    assert found.counts.source == "3 files"
    assert counted(folder, by="domain", extras=EXTRAS).counts == expected("domain")
    assert counted(folder, by="all", extras=EXTRAS).counts == expected("all")


def test_the_same_sources_are_counted_together_where_that_is_said(folder: Path) -> None:
    parts = [random_trace(seed, T=40 + seed).counts() for seed in range(3)]
    assert counted(folder, same_sources=True).counts == parts[0] + parts[1] + parts[2]


def test_one_file_gives_what_its_trace_gives(folder: Path) -> None:
    found = counted(folder / "a.parquet", extras=EXTRAS)
    assert found.counts == random_trace(0, T=40).counts(extras=EXTRAS)
    assert found.files == ("a.parquet",)


@pytest.mark.slow
@pytest.mark.usefixtures("spawning")
def test_processes_count_as_one_does(folder: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    alone = content(counted(folder, extras=EXTRAS).counts, tmp_path / "1.parquet")
    found = count_files.count_files(folder, extras=EXTRAS, workers=2, progress=lambda *what: told.append(what))
    assert content(found.counts, tmp_path / "2.parquet") == alone
    assert found.workers == 2
    assert ("looking at files", 3, 3) in told
    assert told[-1] == ("counting tokens (3 of 3 files)", 123, 123)


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(6)), least=st.sampled_from([1, 300, 2**20]), lost=st.none() | st.integers(0, 5))
def test_the_order_in_which_files_are_finished_changes_no_bit(order: list[int], least: int, lost: int | None) -> None:
    parts = [random_trace(seed, T=30).counts("domain", EXTRAS) for seed in range(6)]
    jobs = [Job(Path(f"{n}.parquet"), f"{n}.parquet", False, "domain", EXTRAS, False, "") for n in range(6)]
    adder, left = Adder(jobs), LeftOut(skip_damaged=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adding, "LEAST_NUMBERS", least)
        for number in order:
            adder.take(number, None if number == lost else parts[number])
        total = adder.total(left)
    kept = [part for number, part in enumerate(parts) if number != lost]
    whole = kept[0]
    for part in kept[1:]:
        whole = whole + part
    assert total == whole
    assert np.array_equal(total.extras["weights"], whole.extras["weights"])
    assert adder.names == [f"{n}.parquet" for n in range(6) if n != lost]


def test_a_part_costs_the_same_however_many_wait_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    part, asked, count_numbers = random_trace(0, T=6).counts("domain"), [], adding._numbers
    monkeypatch.setattr(adding, "_numbers", lambda one: asked.append(one) or count_numbers(one))
    adder = Adder([Job(Path(f"{n}"), f"{n}", False, "domain", (), False, "") for n in range(50)])
    for number in range(50):
        adder.take(number, part)
    assert adder.total(LeftOut(False)).num_tokens == 300
    assert len(asked) <= 3 * 50  # once a part, and the sum so far; not all that wait, again and again


def test_no_file_is_begun_while_too_many_counts_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    part = random_trace(0).counts()
    jobs = [Job(Path(f"{n}"), f"{n}", False, "source", (), False, "") for n in range(3)]
    monkeypatch.setattr(adding, "MAX_NUMBERS", part.tokens_per_expert.size)
    adder = Adder(jobs)
    assert adder.has_room()
    adder.take(1, part)
    assert not adder.has_room()
    adder.take(0, part)
    assert adder.has_room()


def test_counts_and_recordings_are_added_where_they_are_named(folder: Path, tmp_path: Path) -> None:
    whole = expected()
    whole.save(folder / "all.counts.parquet")
    pd.DataFrame({"text": ["a"]}).to_parquet(folder / "text.parquet")
    found = counted(folder, extras=EXTRAS)
    assert found.counts == whole
    assert found.passed_over == {"all.counts.parquet": "counts", "text.parquet": "foreign"}
    lines = passed_over(found.passed_over)
    assert lines[0].startswith(
        "1 file of counts in the folder not counted (all.counts.parquet): they may be of the same"
    )
    assert lines[1].startswith("1 file that is no trace of ours in the folder not counted (text.parquet)")
    twice = counted(f"{folder}/all*", folder / "b.parquet", by="domain", extras=EXTRAS)
    assert twice.counts == expected("domain") + random_trace(1, T=41).counts("domain", EXTRAS)
    assert counted(folder / "all.counts.parquet", by="all").counts == regrouped(whole, "all").without(*EXTRAS)
    np.save(tmp_path / "r.npy", np.arange(40).reshape(10, 2, 2) % 4)
    recorded = counted(tmp_path / "r.npy", by="all").counts
    assert (recorded.num_tokens, recorded.layers, recorded.num_experts) == (10, [0, 1], 4)


def test_files_of_ranks_are_not_added_up_as_if_each_were_whole(tmp_path: Path) -> None:
    """Each has the experts of its rank alone, or what all ranks saw."""
    for rank in range(2):
        (tmp_path / f"expert_distribution_rank{rank}_timestamp1.csv").write_text(
            "layer_id,expert_id,count\n0,0,3\n0,1,2\n"
        )
    with pytest.raises(UsageError, match=r"rank0.* is of SGLang.*, whose files of ranks are read side by side"):
        counted(f"{tmp_path}/*.csv")
    assert counted(tmp_path / "expert_distribution_rank0_timestamp1.csv").counts.num_experts == 2


def test_the_file_to_be_written_is_not_counted(folder: Path) -> None:
    target = folder / "all.counts.parquet"
    first = counted(folder, out=target)
    first.counts.save(target)
    again = counted(folder, out=target)
    assert again.counts == first.counts
    assert again.passed_over == {}
    with pytest.raises(UsageError, match="is one of the files to count"):
        counted(target, out=target)


def test_a_trace_of_the_folder_is_not_written_over(folder: Path) -> None:
    for place in (folder, f"{folder}/*.parquet"):
        with pytest.raises(UsageError, match="is one of the files to count"):
            counted(place, out=folder / "a.parquet")


def test_a_file_that_is_named_twice_is_counted_once(folder: Path) -> None:
    (folder / "link.parquet").symlink_to(folder / "a.parquet")
    names = [one.name for one in find_files([folder, folder / "a.parquet", f"{folder}/b*"])]
    assert len(names) == 3
    assert sorted(names) == names


def test_a_damaged_file_stops_or_is_left_out(folder: Path) -> None:
    damaged = folder / "damaged.parquet"
    damaged.write_bytes((folder / "a.parquet").read_bytes()[:-40])
    with pytest.raises(TraceError, match=r"damaged\.parquet") as error:
        counted(folder)
    assert "\n" not in str(error.value)
    found = counted(folder, extras=EXTRAS, skip_damaged=True)
    assert found.counts == expected()
    assert list(found.damaged) == ["damaged.parquet"]
    assert found.counts.notes == ("1 damaged file left out: damaged.parquet",)
    with pytest.raises(TraceError, match="all files are damaged; the first: "):
        counted(damaged, skip_damaged=True)


def test_a_page_that_is_damaged_is_found_while_counting(folder: Path) -> None:
    path = folder / "b.parquet"
    bytes_of_file = bytearray(path.read_bytes())
    bytes_of_file[60:64] = bytes(255 - b for b in bytes_of_file[60:64])
    path.write_bytes(bytes_of_file)
    with pytest.raises(TraceError, match=r"b\.parquet"):
        counted(folder)
    found = counted(folder, skip_damaged=True)
    assert found.files == ("a.parquet", "below/a.parquet")


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (lambda root: random_trace(9, E=6).save(root / "z.parquet"), {}, "num_experts = 6"),
        (lambda root: random_trace(9, L=3).save(root / "z.parquet"), {}, r"z.parquet' has layers = \[0, 1, 2\] \(3\)"),
        (lambda _: None, {"extras": ("reap",)}, "extra 'reap' is not in .*a.parquet', which has weights, pairs"),
        (lambda _: None, {"by": "token"}, "by is 'token'; expected one of source, domain, all"),
        (lambda _: None, {"engine": "threads"}, "engine is 'threads'"),
        (lambda _: None, {"workers": 0}, "workers is 0; expected 1 or more"),
        (lambda _: None, {"address": "auto"}, "only engine 'ray' uses"),
    ],
)
def test_what_cannot_be_is_one_line(
    folder: Path, change: Callable[[Path], None], options: dict[str, object], words: str
) -> None:
    change(folder)
    with pytest.raises(MoescopeError, match=words):
        counted(folder, **options)


def test_nothing_to_count_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="in the folder"):
        counted(tmp_path)
    with pytest.raises(TraceError, match="no file at"):
        counted(tmp_path / "nowhere")
    pd.DataFrame({"text": ["a"]}).to_parquet(tmp_path / "text.parquet")
    with pytest.raises(TraceError, match="none of 1 Parquet file is a trace, such as"):
        counted(tmp_path)
    with pytest.raises(UsageError, match="no files to count"):
        count_files.count_files([])


def test_too_many_sources_are_refused_before_any_is_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(count_files, "MAX_NUMBERS", 100)
    told: list[str] = []
    with pytest.raises(TraceError, match=r"12 sources x 2 layers x 5 experts are more than 100 counts; .*--by domain"):
        counted(folder, progress=lambda stage, *_: told.append(stage))
    assert set(told) == {"looking at files"}
    assert counted(folder, by="domain").counts.num_tokens == 123
    assert counted(folder, same_sources=True).counts.num_tokens == 123


def test_a_bug_or_a_lack_of_memory_is_no_damage() -> None:
    left = LeftOut(skip_damaged=True)
    job = Job(Path("a"), "a", False, "all", (), False, "")
    with pytest.raises(UsageError, match="not enough memory"):
        left.take(job, Fault("not enough memory", "refused"))


# ---- workers ----


def nothing_heard(_: int) -> None:
    """Nobody watches."""


@pytest.mark.slow
@pytest.mark.usefixtures("spawning")
def test_a_killed_worker_is_replaced_and_its_item_repeated(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two", "three")]
    for place in folders:
        place.mkdir()
    for place in folders[1:]:
        (place / "begun").touch()
    heard: list[int] = []
    with Processes(2, items=3) as started:
        found = dict(started.run(workers_support.killed_once, folders, lambda: True, heard.append))
    assert sorted(found) == [0, 1, 2]
    assert os.getpid() not in found.values()
    assert len(set(found.values())) <= 3
    assert heard[-1] == 21


@pytest.mark.slow
@pytest.mark.usefixtures("spawning")
def test_an_item_that_no_worker_survives_is_named() -> None:
    words = rf"deadly: the process that worked on it was killed {crew.ATTEMPTS} times, most likely for want of memory"
    with Processes(1, items=2) as started:
        found = started.run(workers_support.killed_always, ["harmless", "deadly"], lambda: True, nothing_heard)
        assert next(found)[0] == 0
        with pytest.raises(TraceError, match=words):
            next(found)


def begun(folder: Path, out: Path) -> subprocess.Popen[str]:
    """The command with two workers, in a group of processes of its own, as a terminal starts it."""
    command = [sys.executable, "main.py", "counts", str(folder), "--out", str(out), "--workers", "2"]
    return subprocess.Popen(
        [*command, "--extras", *EXTRAS],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


@pytest.mark.slow
def test_the_command_lives_on_when_a_worker_is_killed(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "x.counts.parquet"
    process = begun(folder, out)
    os.kill(workers_support.workers_of(process.pid, 2)[0], signal.SIGKILL)
    said, complained = process.communicate(timeout=120)
    assert process.returncode == 0, complained
    assert "123 tokens of 3 files" in said
    assert out.read_bytes() == content(counted(folder, extras=EXTRAS).counts, tmp_path / "alone.parquet")


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    ("number", "code", "words"), [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGKILL, -signal.SIGKILL, None)]
)
def test_an_end_leaves_neither_workers_nor_half_a_file(
    number: signal.Signals, code: int, words: str | None, folder: Path, tmp_path: Path
) -> None:
    """Ctrl+C reaches every process of the group; kill -9 the command alone, and its workers end with it."""
    out = tmp_path / "out" / "x.counts.parquet"
    process = begun(folder, out)
    workers = workers_support.workers_of(process.pid, 2)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    _, complained = process.communicate(timeout=120)
    assert process.returncode == code
    assert words is None or complained == words
    assert workers_support.all_ended(workers)
    assert not out.parent.exists()


# ---- the command ----


def test_the_command_writes_counts_and_figures(
    folder: Path, tmp_path: Path, cli: Callable[..., tuple[int, str, str]]
) -> None:
    out, figures = tmp_path / "x.counts.parquet", tmp_path / "f.json"
    code, said, _ = cli(
        tmp_path,
        "counts",
        str(folder),
        "--out",
        str(out),
        "--workers",
        "1",
        "--extras",
        *EXTRAS,
        "--json",
        str(figures),
    )
    assert code == 0
    assert f"123 tokens of 3 files in {out}" in said
    assert RoutingCounts.load(out) == expected()
    told = json.loads(figures.read_text())
    assert told["files"] == list(NAMES)
    assert (told["tokens"], told["groups"], told["domains"], told["extras"]) == (123, 18, ["a", "b", "c"], list(EXTRAS))


def test_the_command_refuses_in_one_line(
    folder: Path, tmp_path: Path, cli: Callable[..., tuple[int, str, str]]
) -> None:
    (folder / "a.parquet").write_bytes(b"PAR1 and nothing else")
    out = str(tmp_path / "x.parquet")
    code, _, error = cli(tmp_path, "counts", str(folder), "--out", out, "--workers", "1")
    assert code == 1
    assert_one_line(error, "a.parquet", "damaged")
    code, _, error = cli(tmp_path, "counts", str(folder), "--out", out, "--address", "auto")
    assert code == 2
    assert_one_line(error, "--engine ray")
    assert not Path(out).exists()


# ---- Ray ----

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'moescope[ray]'"
)
ON_RAY = """
import json, sys
from pathlib import Path
from moe_core.routing.workers.count_files import count_files
from moe_core.routing.workers.ray_cluster import RayCluster
from tests.workers_support import killed_once, killed_always
from moe_core.errors import TraceError

folder, once, out = map(Path, sys.argv[1:])
stages = []
with RayCluster(2) as cluster:
    import ray
    addresses = [node["NodeManagerAddress"] for node in ray.nodes()]
    (number, _), = cluster.run(killed_once, [once], lambda: True, lambda _: None)
    try:
        list(cluster.run(killed_always, ["deadly"], lambda: True, lambda _: None))
    except TraceError as error:
        refused = str(error)
    found = count_files(
        folder, extras=("weights", "pairs"), workers=2, engine="ray", progress=lambda *what: stages.append(what)
    )
    found.counts.save(out)
    again = ray.is_initialized()  # the cluster was not count_files' own to end
print(json.dumps({"addresses": addresses, "number": number, "refused": refused, "told": stages[-1], "again": again}))
"""


@needs_ray
@pytest.mark.slow
def test_ray_counts_as_one_process_does_and_repeats_what_was_killed(folder: Path, tmp_path: Path) -> None:
    """A process of its own starts the cluster once: on loopback, for all that is to be seen of it."""
    once, out = tmp_path / "once", tmp_path / "ray.parquet"
    once.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-c", ON_RAY, str(folder), str(once), str(out)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["addresses"] == ["127.0.0.1"]
    assert (told["number"], told["again"]) == (0, True)
    assert told["refused"].startswith(f"deadly: the process that worked on it was killed {crew.ATTEMPTS} times")
    assert told["told"] == ["counting tokens (3 of 3 files)", 123, 123]
    assert out.read_bytes() == content(counted(folder, extras=EXTRAS).counts, tmp_path / "alone.parquet")


def test_without_ray_the_engine_says_how_to_get_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"engine 'ray' needs Ray: pip install 'moescope\[ray\]'"):
        counted(folder, engine="ray")


@needs_ray
@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_one_line(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "main.py", "counts", str(folder), "--out", str(tmp_path / "x.parquet")]
    done = subprocess.run(
        [*command, "--engine", "ray", "--address", "127.0.0.1:1"], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 1
    assert "no Ray cluster at '127.0.0.1:1'" in done.stderr.splitlines()[-1]
