"""Errors meant for the user: one line that names the value, what was expected and what to do.

The command line prints the message and exits with `exit_code`; the dashboard shows it in a box. Anything that is
not a `MoescopeError` is a bug of ours.
"""


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


class ModelError(MoescopeError):
    """A Hugging Face model that is missing, damaged, of an unknown kind, or not safe to open."""
