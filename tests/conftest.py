"""Shared fixtures: one thread per test process, no network, and one really trained tiny run."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

from moe_core.config import Config, validate_config

_CACHE = tempfile.TemporaryDirectory(prefix="moescope-tests-")
os.environ["MOESCOPE_CACHE"] = _CACHE.name  # what tests open is not remembered in the user's own folder
torch.set_num_threads(1)
# No property depends on how fast the machine is; pytest's own timeout ends what hangs.
settings.register_profile("any_speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any_speed")


@pytest.fixture(scope="session")
def tiny_config() -> Config:
    """A configuration that trains in seconds."""
    from training_support import TINY_CONFIG

    return validate_config(TINY_CONFIG)


@pytest.fixture(scope="session")
def trained_root(tmp_path_factory: pytest.TempPathFactory, tiny_config: Config) -> Iterator[Path]:
    """A checkpoints folder with the run "tiny", really trained for 40 steps. Read only: copy it to change it."""
    from moe_core.runs.folder import RunFolder
    from moe_core.training.loop import train

    root = tmp_path_factory.mktemp("checkpoints")
    train(RunFolder("tiny", root), tiny_config)
    yield root
    kept = [path.name for path in (root / "tiny" / "analysis").glob("ablation*")]
    assert not kept, f"a test kept {kept} in the run that all tests share; it has to copy the run"


@pytest.fixture(scope="session")
def api(trained_root: Path) -> Iterator[Any]:
    """The API over the run "tiny", see api_support.Served. What it counts only grows."""
    from api_support import serving_api

    with serving_api(trained_root) as served:
        yield served


@pytest.fixture(scope="session")
def large_trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace as a real model's is: 12,000 tokens, 48 layers, 128 experts, 8 for each token, with text and domains."""
    from bench.made_traces import LARGE_MODEL, write_trace

    path = tmp_path_factory.mktemp("large") / "large.parquet"
    write_trace(path, LARGE_MODEL)
    return path


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No MOESCOPE_ or CONDOR_ variable of the developer's shell reaches a test."""
    for name in list(os.environ):
        if name.startswith(("MOESCOPE_", "CONDOR_")) and name != "MOESCOPE_CACHE":
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _no_event_loop(request: pytest.FixtureRequest) -> Iterator[None]:
    """Playwright keeps a loop that counts as running in the thread that all tests of a process run in, from its first
    test to the end. Others, which may run a loop of their own, are not to see it."""
    if request.node.get_closest_marker("browser"):
        yield
        return
    loop = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    yield
    asyncio._set_running_loop(loop)


@pytest.fixture(autouse=True)
def _no_shipped_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A root holds what the test put there. Tests of the demo name its folder, or start a process of their own."""
    from moe_core.runs import places

    monkeypatch.setattr(places, "SHIPPED", Path(__file__).parent / "no_shipped_runs")


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """Connections beyond this machine fail at once, so that a test which needs the network cannot pass here."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            host = str(address[0]) if isinstance(address, tuple) else str(address)
            if not (host.startswith("127.") or host in ("::1", "localhost")):
                raise OSError(f"a test tried to reach {host!r}; tests use no network")
        connect(self, address)  # type: ignore[arg-type]

    patch = pytest.MonkeyPatch()
    patch.setattr(socket.socket, "connect", guarded)
    yield
    patch.undo()


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Open the dashboard: see app_support.opening."""
    from app_support import opening

    with opening(monkeypatch) as opened:
        yield opened


@pytest.fixture
def own_root(trained_root: Path, tmp_path: Path) -> Path:
    """A copy of the trained run that a test may change."""
    copy = tmp_path / "checkpoints"
    shutil.copytree(trained_root, copy)
    return copy


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl+C reaches what the test starts: where tests run in the background it is ignored, by their children too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in this process, on a checkpoints folder: (exit code, stdout, stderr)."""
    import main

    def run(root: Path, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setenv("MOESCOPE_CHECKPOINTS", str(root))
        code = main.main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Moescope as its wheel is installed: see wheel_support.Installed."""
    from wheel_support import install

    return install(tmp_path_factory.mktemp("installed"))


@pytest.fixture
def paced(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Lets schedulers draw as many tokens as it is told, and no more until the test ends."""
    from moe_core.inference import sampling

    allowed, draw = threading.Semaphore(0), sampling.sample

    def waiting(*given: Any) -> int:
        allowed.acquire()
        return draw(*given)

    monkeypatch.setattr("moe_core.inference.row.sample", waiting)
    yield lambda count: allowed.release(count)
    allowed.release(1_000_000)
