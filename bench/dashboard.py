"""How long the dashboard lets one wait, and how much it sends: a server of its own, looked at by a real browser.

Times are those of the browser: from asking for a page, or from a click, to the last message of the page's script. A
figure goes to the browser in one message, so the largest message bounds the largest figure.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.processes import ROOT
from bench.results import Goal, Result
from bench.suite import Scale
from moe_core.errors import MoescopeError
from moe_core.runs.places import SHIPPED

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

RUN = "demo"
PAGES = (
    "overview",
    "tokens",
    "domains",
    "experts",
    "flow",
    "generation",
    "interventions",
    "training",
    "time",
    "compare",
)
SMOKE_PAGES = ("overview",)
START_SECONDS, PAGE_SECONDS = 120.0, 240.0
MAX_FIGURE_MB = 2.0
"""Megabytes of one message: what a figure may weigh."""
_QUIET_MS = 400  # so long nothing has come: the page's script is through
_ARGUMENTS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--no-first-run"]
# The browser's own clock at every message of the server, with its size.
_LISTEN = """(() => {
  const Plain = window.WebSocket;
  window.arrived = [];
  window.WebSocket = class extends Plain {
    constructor(...given) {
      super(...given);
      this.addEventListener("message", (event) => window.arrived.push(
        [performance.now(), event.data.byteLength ?? event.data.size ?? event.data.length]));
    }
  };
})();"""
_DONE = f"""() => window.arrived.length && document.querySelector("[data-test-script-state=notRunning]")
  && performance.now() - window.arrived[window.arrived.length - 1][0] > {_QUIET_MS}"""
_PICTURE = "[data-testid=stVegaLiteChart] canvas, [data-testid=stVegaLiteChart] svg, [data-testid=stPlotlyChart] svg"
_LAYER = "[data-testid=stSidebar] button[role=radio]"


def run(scale: Scale) -> list[Result]:
    """Rows for a cold start, the first picture, and for every page its opening, a click and what it sent."""
    missing = what_is_missing()
    if missing:
        return [Result("dashboard", float("nan"), "s", note=f"not measured: {missing}")]
    rounds, pages = (1, SMOKE_PAGES) if scale.smoke else (min(scale.rounds, 3), PAGES)
    with tempfile.TemporaryDirectory() as folder:
        # A copy, as a page may keep what it measured in the run's folder.
        shutil.copytree(SHIPPED / RUN, Path(folder) / RUN)
        starts, pictures = [], []
        for number in range(rounds):
            scale.progress("starting the dashboard", number, rounds)
            with serving(Path(folder)) as server, browsing() as browser:
                starts.append(server.start_seconds)
                with tab(browser) as page:
                    pictures.append(_first_picture(page, server.url))
                if number == rounds - 1:
                    visits = visit_all(browser, server.url, pages, scale, f"run={RUN}")
    note = f"median of {rounds}"
    return [
        Result("cold start, process to health answer", float(np.median(starts)), "s", note=note),
        Result("first picture of the first page after it", float(np.median(pictures)), "s", note=note),
        *rows_of(visits, f"run {RUN}"),
    ]


@dataclass(frozen=True)
class Visit:
    """A browser's measurements of one page."""

    page: str
    opened: float
    """Seconds from asking for the address to the last message, as the first visitor."""
    rerun: float
    """Seconds from a click on another layer to the last message; NaN where there is no layer to click."""
    sent: int
    """Bytes of all messages of the opening."""
    largest: int
    """Bytes of the largest message, of the opening or after the click."""
    error: str
    """The first error box on the page, or ""."""


def rows_of(visits: Sequence[Visit], subject: str) -> list[Result]:
    """Four rows a page: opening, rerun after a click, payload, largest message."""
    found = []
    for visit in visits:
        name, note = f"{visit.page} of {subject}", "shows an error" if visit.error else ""
        found.append(Result(f"{name}, first opening", visit.opened, "s", note=note))
        if visit.rerun == visit.rerun:
            found.append(Result(f"{name}, rerun after a click on another layer", visit.rerun, "s", note=note))
        found.append(Result(f"{name}, sent to the browser", visit.sent / 1e6, "MB", note=note))
        goal = Goal(MAX_FIGURE_MB, at_most=True)
        largest = float("nan") if visit.error else visit.largest / 1e6  # an error box is small
        found.append(Result(f"{name}, largest figure sent", largest, "MB", goal=goal, note=note))
    return found


def what_is_missing() -> str:
    """The reason why the dashboard cannot be measured, or ""."""
    if not (ROOT / "app").is_dir():
        return "the dashboard's files are not beside the library"
    for module in ("streamlit", "playwright"):
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed"
    return "" if _chromium() is not None else "Chromium is missing"


@dataclass(frozen=True)
class Server:
    """A dashboard in a process of its own."""

    url: str
    start_seconds: float
    """Seconds from the start of the process to its first healthy answer."""
    pid: int

    def peak_mib(self) -> float:
        """Most memory the process has held so far, MiB; NaN where the system does not say."""
        return peak_mib(self.pid)


def peak_mib(pid: int) -> float:
    """Most memory (resident set) process `pid` has held so far, in MiB; NaN where the system does not say."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return float("nan")
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), float("nan"))


@contextmanager
def serving(checkpoints: Path, *arguments: str) -> Iterator[Server]:
    """The dashboard on these runs, as `streamlit run app -- ARGUMENTS`. Raises MoescopeError if it does not start."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "streamlit", "run", "app", "--server.headless=true", f"--server.port={port}"]
    start = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--", *arguments],
        cwd=ROOT,
        env={**os.environ, "MOESCOPE_CHECKPOINTS": str(checkpoints)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://localhost:{port}"
        while not _healthy(url):
            if process.poll() is not None:
                raise MoescopeError(f"the dashboard ended with exit code {process.returncode} before it answered")
            if time.perf_counter() - start > START_SECONDS:
                raise MoescopeError(f"the dashboard did not answer within {START_SECONDS:.0f} s")
            time.sleep(0.02)
        yield Server(url, time.perf_counter() - start, process.pid)
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def browsing() -> Iterator[Browser]:
    """Debian's Chromium, headless."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_chromium(), args=_ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def tab(browser: Browser) -> Iterator[Page]:
    """A tab with a fresh profile that notes when messages of the server arrive and how large they are."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    context.add_init_script(_LISTEN)
    context.set_default_timeout(PAGE_SECONDS * 1000)
    try:
        yield context.new_page()
    finally:
        context.close()


def visit_all(browser: Browser, url: str, pages: Sequence[str], scale: Scale, query: str = "") -> list[Visit]:
    """Open each page in a fresh tab, then click on another layer."""
    found = []
    for number, name in enumerate(pages):
        scale.progress("opening pages", number, len(pages))
        with tab(browser) as page:
            found.append(_visit_page(page, url, name, query))
    return found


def _visit_page(page: Page, url: str, name: str, query: str) -> Visit:
    address = f"{url}/{'' if name == PAGES[0] else name}"
    page.goto(f"{address}?{query}" if query else address)
    opening = _messages(page)
    rerun, after = float("nan"), []
    if _shows(page, _LAYER):
        # Times of the page's own clock: the click is noted where it happens.
        page.evaluate(
            "window.arrived = []; addEventListener('click', () => window.clicked ??= performance.now(), true)"
        )
        page.locator(_LAYER).first.click()
        after = _messages(page)
        rerun = (after[-1][0] - float(page.evaluate("window.clicked"))) / 1000
    boxes = page.locator("[data-testid=stException], [data-testid=stAlertContentError]")
    return Visit(
        page=name,
        opened=opening[-1][0] / 1000,
        rerun=rerun,
        sent=int(sum(size for _, size in opening)),
        largest=int(max(size for _, size in [*opening, *after])),
        error=" ".join(boxes.first.inner_text().split())[:120] if boxes.count() else "",
    )


def _shows(page: Page, selector: str) -> bool:
    """Whether the page shows it, now or as soon as it has drawn what it was sent."""
    from playwright.sync_api import TimeoutError as TooLate

    try:
        page.locator(selector).first.wait_for(timeout=3000)
    except TooLate:
        return False
    return True


def _messages(page: Page) -> list[tuple[float, float]]:
    """(milliseconds since the page was asked for, bytes) of each message, once the page's script is through."""
    page.wait_for_function(_DONE)
    return [(float(when), float(size)) for when, size in page.evaluate("window.arrived")]


def _first_picture(page: Page, url: str) -> float:
    start = time.perf_counter()
    page.goto(f"{url}/?run={RUN}")
    page.locator(_PICTURE).first.wait_for()
    return time.perf_counter() - start


def _chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser")


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/_stcore/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
