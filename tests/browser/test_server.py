"""What stands around every answer of the dashboard's server, the API's too: headers, and whom it answers at all."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from email.message import Message
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from moe_core.server.guarded_answers import HEADERS

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]


class Answer(NamedTuple):
    status: int
    headers: Message
    text: str


def ask(port: int, path: str, host: str, method: str = "GET", **headers: str) -> Answer:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request(method, path, headers={"Host": host, **headers})
        with connection.getresponse() as answer:
            text = "" if answer.status == 101 else answer.read().decode("utf-8", "replace")
            return Answer(answer.status, answer.headers, text)


def asset_of(port: int) -> str:
    """The first script that the page loads."""
    page = ask(port, "/", "localhost").text
    return "/" + page.split('src="./', 1)[1].split('"', 1)[0]


@pytest.mark.parametrize("host", ["localhost:{port}", "localhost", "127.0.0.1:{port}", "LOCALHOST", "[::1]:{port}"])
def test_every_answer_carries_the_headers(dashboard: Any, host: str) -> None:
    pages = ("/", "/tokens", "/no/such/page", asset_of(dashboard.port), "/_stcore/health", "/media/none.png")
    for path in (*pages, "/v1/models", "/v1/none", "/health"):
        for method in ("GET", "HEAD", "OPTIONS"):
            answer = ask(dashboard.port, path, host.format(port=dashboard.port), method)
            for name, value in HEADERS.items():
                assert answer.headers[name] == value, (method, path, answer.status)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8501", "localhost.evil.example", "10.0.0.1", "localhost@evil.example", "",
             "[::1", "localhost:port", "xn--lcalhost-4ib", "localhost/evil.example"],
)  # fmt: skip
def test_another_host_is_refused_with_its_name_and_the_remedy(dashboard: Any, host: str) -> None:
    for path in ("/", asset_of(dashboard.port), "/_stcore/host-config", "/_stcore/health", "/v1/models", "/health"):
        answer = ask(dashboard.port, path, host)
        assert answer.status == 400, path
        assert "expected one of localhost, 127.0.0.1, [::1]" in answer.text
        assert "--server.allowedHosts" in answer.text
        assert answer.headers["Content-Security-Policy"] == HEADERS["Content-Security-Policy"]


def test_the_websocket_of_another_host_or_page_is_refused(dashboard: Any) -> None:
    wanted = {
        "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }  # fmt: skip
    ours = f"localhost:{dashboard.port}"
    assert ask(dashboard.port, "/_stcore/stream", ours, **wanted, Origin=f"http://{ours}").status == 101
    assert ask(dashboard.port, "/_stcore/stream", "evil.example", **wanted, Origin="http://evil.example").status == 403
    assert ask(dashboard.port, "/_stcore/stream", ours, **wanted, Origin="http://evil.example").status == 403


@pytest.fixture
def other_site(dashboard: Any, tmp_path: Path) -> Iterator[str]:
    """A page of another origin that shows the dashboard in a frame, and a harmless page beside it."""
    (tmp_path / "trap.html").write_text(
        f'<p>a game</p><iframe id=ours src="{dashboard.url}/" width=800 height=600></iframe>'
        '<iframe id=other src="harmless.html"></iframe>'
    )
    (tmp_path / "harmless.html").write_text("<p>harmless</p>")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/trap.html"
    server.shutdown()
    server.server_close()


ASK = """url => fetch(url + "/v1/completions", {
    method: "POST", headers: {"Content-Type": "application/json"},
    body: JSON.stringify({model: "tiny", prompt: "The tenant", max_tokens: 4}),
}).then(answer => answer.json()).then(found => found.usage.completion_tokens, error => String(error))"""
"""What a script of a page gets that asks the API: the number of tokens, or why not."""


def test_another_site_cannot_show_the_dashboard_in_a_frame(dashboard: Any, other_site: str, page: Page) -> None:
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(other_site, wait_until="load")
    page.frame_locator("#other").get_by_text("harmless").wait_for()  # frames as such are shown
    frame = page.frames[1]
    assert frame.url.startswith("chrome-error:")
    assert any("frame-ancestors" in text for text in said)
    assert "Failed to fetch" in page.evaluate(ASK, dashboard.url)  # nor can its scripts ask the API
    page.goto(dashboard.url)  # and by itself it opens, websocket and all
    assert page.evaluate(ASK, dashboard.url) == 4
    page.wait_for_selector("h1")
    page.wait_for_selector("[data-testid=stVegaLiteChart] canvas, [data-testid=stVegaLiteChart] svg")


def test_only_this_machine_is_served_unless_asked(dashboard: Any) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", dashboard.port), timeout=5).close()
