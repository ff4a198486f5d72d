"""What can be typed into `moescope chat` besides messages."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from moe_core.errors import UsageError, shortened

if TYPE_CHECKING:
    from moe_core.inference.sampling import SamplingConfig

HELP = """\
params                     show how answers are written
params temperature 0.2     change it: max_new_tokens, temperature, top_k, top_p, seed, system (the rest of the line)
new                        begin a new conversation
help                       this
exit, quit, Ctrl+D         end; Ctrl+C stops an answer
Anything else is a message; so is a line that begins with a space."""
_ENDS = ("exit", "quit")
_WORDS = ("params", "new", "help", *_ENDS)


@dataclass
class Settings:
    """How answers are written."""

    sampling: SamplingConfig
    system: str
    """What the model is told before the first message; empty = nothing."""


def is_command(line: str) -> bool:
    """Whether it is one of the words above, alone on its line; params may be followed by a name and a value."""
    return not line[:1].isspace() and (line.strip() in _WORDS or line.split()[:1] == ["params"])


def obey(line: str, settings: Settings) -> str | None:
    """What is to be said; None: the conversation ends. Raises UsageError for a setting or value that there is not."""
    word, *rest = line.strip().split(None, 1)
    if word in _ENDS:
        return None
    if word == "help":
        return HELP
    if word == "new":
        return "a new conversation"
    if rest:
        name, _, value = rest[0].replace("=", " ", 1).partition(" ")
        _change(settings, name, value.strip())
    shown = {**asdict(settings.sampling), "system": settings.system}
    return "\n".join(f"{name:<16} {json.dumps(value, ensure_ascii=False)}" for name, value in shown.items())


def _change(settings: Settings, name: str, value: str) -> None:
    if name == "system":
        settings.system = value
        return
    numbers = asdict(settings.sampling)
    if name not in numbers:
        raise UsageError(
            f"there is no setting {shortened(name)}; expected {', '.join(numbers)} or system. A line that begins with "
            "a space is a message"
        )
    kind = type(numbers[name])
    try:
        settings.sampling = replace(settings.sampling, **{name: kind(value)})
    except ValueError:
        expected = "a whole number" if kind is int else "a number"
        raise UsageError(f"{name} = {shortened(value)}; expected {expected}, such as `params {name} 1`") from None
