"""Where a server is: the address that a user gave, checked; and which other address it may send us to."""

from __future__ import annotations

import ipaddress

import httpx2

from moe_core.errors import ServerError, UsageError

EXAMPLE = "http://127.0.0.1:8000"


def server_address(given: str) -> httpx2.URL:
    """The root of a server's paths. A slash or /v1 at its end is dropped, as clients of OpenAI's interface have it.

    Raises UsageError for what is no http or https address, and for one that carries a name or password: it would be
    shown in messages.
    """
    if "@" in given:
        raise UsageError(f"the server's address has a user name or password in it; expected one such as {EXAMPLE}")
    try:
        url = httpx2.URL(given.strip())
    except (httpx2.InvalidURL, UnicodeError, ValueError) as error:
        raise UsageError(f"server {given[:100]!r} is no address ({error}); expected one such as {EXAMPLE}") from None
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
        raise UsageError(f"server {given[:100]!r}; expected an http or https address such as {EXAMPLE}")
    return url.copy_with(path=url.path.rstrip("/").removesuffix("/v1") or "/")


def is_loopback(url: httpx2.URL) -> bool:
    """Whether it is on this machine, so that no proxy of the environment can lead there."""
    if url.host == "localhost" or url.host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(url.host).is_loopback
    except ValueError:
        return False


def redirected(url: httpx2.URL, location: str) -> httpx2.URL:
    """Where an answer of `url` sends us. Raises ServerError unless that is the same host, and no less protected."""
    try:
        target = url.join(location)
    except (httpx2.InvalidURL, UnicodeError, ValueError):
        raise ServerError(f"{url} redirects to {location[:100]!r}, which is no address; give another address") from None
    as_protected = (target.scheme, target.port) == (url.scheme, url.port) or (url.scheme, target.scheme) == (
        "http",
        "https",
    )
    if target.host != url.host or target.userinfo or not as_protected:
        raise ServerError(
            f"{url} redirects to {target.scheme}://{target.host}; only redirects within a host are followed: give "
            "that address if you trust it"
        )
    return target
