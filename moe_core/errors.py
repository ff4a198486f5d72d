"""Errors meant for the user: one line that names the value, what was expected and what to do.

The command line prints the message and exits with `exit_code`; the dashboard shows it in a box. Anything that is
not a `MoescopeError` is a bug of ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError

_LONGEST = 60
_HUGE_BITS = 200


class MoescopeError(Exception):
    """Something went wrong that the user can mend. The message is one line."""

    exit_code = 1


class UsageError(MoescopeError):
    """A wrong argument, configuration key or value: nothing was started."""

    exit_code = 2


class DataError(MoescopeError):
    """Text that cannot be read or is too small to train on."""


class RunError(MoescopeError):
    """A run that is missing, damaged, or cannot be written."""


class NoSpaceError(RunError):
    """The disk is full."""


class RunBusyError(RunError):
    """Another process is training this run."""


class TraceError(MoescopeError):
    """A routing trace that is missing, damaged or inconsistent, or a router that could not be captured exactly."""


class UnknownModelError(UsageError):
    """A name that no model has."""


class QueueFullError(MoescopeError):
    """More requests wait for the model than are let in."""

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds
        """In how many seconds there may be room."""


class ShutDownError(MoescopeError):
    """The model takes no further request: it is being taken down."""


class ServerError(MoescopeError):
    """A server that is not there, is too slow, or answers otherwise than it should."""


class ModelError(MoescopeError):
    """A Hugging Face model that is missing, damaged, of an unknown kind, or not safe to open."""


@dataclass(frozen=True)
class Fault:
    """What pydantic found wrong first, in the pieces that a sentence of one line is made of."""

    key: str
    """Where it stands, "model.dim"; empty for the whole."""
    kind: str
    """Pydantic's name for it: "missing", "extra_forbidden", "value_error" for a check of ours."""
    message: str
    """What was expected: "input should be a valid integer"; words of our own checks are left as they are."""
    value: str
    """What stands there, as Python writes it, shortened."""

    @property
    def line(self) -> str:
        """Place and reason."""
        return f"{self.key or 'the file'}: {self.message}"


def first_fault(error: ValidationError) -> Fault:
    """The first fault that an error of pydantic names."""
    first = error.errors(include_url=False)[0]
    own = first["type"] == "value_error"
    message = first["msg"].removeprefix("Value error, ")
    return Fault(
        key=".".join(str(part) for part in first["loc"]),
        kind=first["type"],
        message=message if own else message[:1].lower() + message[1:],
        value=shortened(first["input"]),
    )


def shortened(value: Any) -> str:
    """How Python writes a value, on one line of at most 60 characters."""
    # A whole number of more than 4,300 digits has no repr.
    huge = isinstance(value, int) and value.bit_length() > _HUGE_BITS
    text = "a huge number" if huge else " ".join(repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
