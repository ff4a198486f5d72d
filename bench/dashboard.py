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

from bench.made_traces import LARGE_MODEL, write_trace
from bench.processes import ROOT
from bench.results import Goal, Result
from bench.suite import Scale
from moe_core.errors import MoescopeError
from moe_core.runs.places import SHIPPED

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

RUN, LARGE = "demo", "48 layers x 128 experts"
PAGES = (
    "overview",
    "tokens",
    "domains",
    "experts",
    "flow",
    "generation",
    "chat",
    "interventions",
    "training",
    "time",
    "compare",
)
SMOKE_PAGES = ("overview",)
START_SECONDS, PAGE_SECONDS = 120.0, 240.0
MAX_FIGURE_MB = 2.0
"""Megabytes of one message: what a figure may weigh."""
MAX_FIRST_PICTURE = 5.0
"""Seconds from asking a server that has just started to the first picture."""
MAX_FIRST_VISIT = 4.0
"""Seconds until a page that no one has opened before is whole."""
MAX_GROWTH_MIB = 10.0
"""MiB that PAGE_CHANGES may add to the memory of the server: what the allocator's rounding alone explains."""
PAGE_CHANGES, ROUNDS_BEFORE = 200, 3
"""Changes whose memory is watched, after so many rounds through all pages that fill what is cached."""
IDLE_SECONDS = {RUN: 0.7, LARGE: 1.5}
"""Seconds from a click to a page at rest, once each page was opened."""
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
_LAYER = "[data-testid=stSidebar] button[role=radio]:not([aria-checked=true])"
_LAYER_LIST = "[data-testid=stSidebar] input[aria-label*=Layer]"  # where there are too many for buttons
_LINK = "[data-testid=stSidebarNavLink]"


def run(scale: Scale) -> list[Result]:
    """Rows for a cold start, the first picture, and on a run and on a trace of a large model for every page its first
    opening, a click, what it sent, a return to it, and the memory that many returns take."""
    missing = what_is_missing()
    if missing:
        return [Result("dashboard", float("nan"), "s", note=f"not measured: {missing}")]
    rounds = 1 if scale.smoke else min(scale.rounds, 3)
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
                    of_run = _rows_of_subject(server, browser, RUN, f"run={RUN}", scale)
        large: list[Result] = []
        if not scale.smoke:
            path = Path(folder) / "large.parquet"
            write_trace(path, LARGE_MODEL)
            with serving(Path(folder), "--trace", str(path)) as server, browsing() as browser:
                large = _rows_of_subject(server, browser, LARGE, "", scale)
    note = f"median of {rounds}"
    return [
        Result("cold start, process to health answer", float(np.median(starts)), "s", note=note),
        Result(
            "first picture of the first page after it",
            float(np.median(pictures)),
            "s",
            goal=Goal(MAX_FIRST_PICTURE, at_most=True),
            note=note,
        ),
        *of_run,
        *large,
    ]


def _rows_of_subject(server: Server, browser: Browser, subject: str, query: str, scale: Scale) -> list[Result]:
    pages = SMOKE_PAGES if scale.smoke else PAGES
    what = f"run {RUN}" if subject == RUN else subject
    rows = rows_of(visit_all(browser, server.url, pages, scale, query), what, idle=IDLE_SECONDS[subject])
    if scale.smoke:
        return rows
    with tab(browser) as page:
        page.goto(f"{server.url}/?{query}")
        _messages(page)
        for _ in range(ROUNDS_BEFORE):
            _through_all(page)
        took: dict[str, list[float]] = {}
        before = resident_mib(server.pid)
        rounds = PAGE_CHANGES // len(PAGES)
        for number in range(rounds):
            scale.progress("changing pages", number, rounds)
            for name, seconds in _through_all(page).items():
                took.setdefault(name, []).append(seconds)
        growth = resident_mib(server.pid) - before
    goal, note = Goal(IDLE_SECONDS[subject], at_most=True), f"median of {rounds}"
    return [
        *rows,
        *(
            Result(f"{name} of {what}, from another page", float(np.median(seconds)), "s", goal=goal, note=note)
            for name, seconds in took.items()
        ),
        Result(
            f"{what}: growth of the server's memory over {PAGE_CHANGES} page changes",
            growth,
            "MiB",
            goal=Goal(MAX_GROWTH_MIB, at_most=True),
            note=f"from {before:,.0f} MiB",
        ),
    ]


def _through_all(page: Page) -> dict[str, float]:
    """Seconds from the click on each page's link to its last message, in the order of the side bar."""
    took = {}
    for link in page.locator(_LINK).all():
        name = str(link.get_attribute("href")).rpartition("/")[2].partition("?")[0] or PAGES[0]
        _listen_from_click(page)
        link.click()
        took[name] = _seconds_since_click(page)
    return took


def _listen_from_click(page: Page) -> None:
    """Forget what has come so far. The browser's own clock notes the next click, where it happens."""
    page.evaluate(
        """() => {
          window.arrived = [];
          window.clicked = undefined;
          addEventListener("click", () => { window.clicked ??= performance.now(); }, {capture: true, once: true});
        }"""
    )


def _seconds_since_click(page: Page) -> float:
    return (_messages(page)[-1][0] - float(page.evaluate("window.clicked"))) / 1000


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


def rows_of(visits: Sequence[Visit], subject: str, idle: float | None = None) -> list[Result]:
    """Four rows a page: opening, rerun after a click, payload, largest message.

    With `idle`, the seconds from a click to a page at rest, openings and clicks have goals.
    """
    at_first, on_click = (
        None if idle is None else Goal(seconds, at_most=True) for seconds in (MAX_FIRST_VISIT, idle or 0.0)
    )
    found = []
    for visit in visits:
        name, note = f"{visit.page} of {subject}", "shows an error" if visit.error else ""
        found.append(Result(f"{name}, first opening", visit.opened, "s", goal=at_first, note=note))
        if visit.rerun == visit.rerun:
            case = f"{name}, rerun after a click on another layer"
            found.append(Result(case, visit.rerun, "s", goal=on_click, note=note))
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
    return _memory_mib(pid, "VmHWM:")


def resident_mib(pid: int) -> float:
    """Memory (resident set) that process `pid` holds now, in MiB; NaN where the system does not say."""
    return _memory_mib(pid, "VmRSS:")


def _memory_mib(pid: int, field: str) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return float("nan")
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(field)), float("nan"))


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
    _listen_from_click(page)
    if _choose_another_layer(page):
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


def _choose_another_layer(page: Page) -> bool:
    """Choose the first layer of the side bar that is not chosen; false where there is none."""
    if not _shows(page, f"{_LAYER}, {_LAYER_LIST}"):
        return False
    if page.locator(_LAYER).count():
        page.locator(_LAYER).first.click()
        return True
    page.locator(_LAYER_LIST).first.focus()
    page.keyboard.press("ArrowDown")  # opens the list
    _listen_from_click(page)
    page.locator("[role=option]:not([aria-selected=true])").first.click()
    return True


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
