"""The address that a server listens at, taken before anything slow is done."""

from __future__ import annotations

import errno
import socket

from moe_core.errors import UsageError

BACKLOG = 2048
Listener = socket.socket


def listening_socket(host: str, port: int) -> Listener:
    """A socket that listens; connections wait until somebody accepts them. Port 0 takes any that is free.

    Raises UsageError, in one line, for a port that is taken or not allowed and for a host that is not this machine's.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise UsageError(
            f"host {host!r} has no address; expected 127.0.0.1, 0.0.0.0 or another address of this machine"
        ) from None
    family, kind, protocol, _, address = sorted(found, key=lambda one: one[0] != socket.AF_INET)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise UsageError(_reason(host, port, error)) from None
    listener.set_inheritable(False)
    return listener


def url_of(listener: Listener) -> str:
    """Where it can be asked from this machine, http://127.0.0.1:8001."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _reason(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use; choose another with --port, or --port 0 for any that is free"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"port {port} is not allowed to this user; choose one from 1024 on with --port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"host {host!r} is no address of this machine; expected 127.0.0.1, 0.0.0.0 or one that it has"
    return f"cannot listen at {host}, port {port}: {error.strerror or error}"
