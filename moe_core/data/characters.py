"""Characters that reach over several tokens: a token is bytes, and those of one character may lie in two to four."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class SharedToken:
    """A token that holds part of a character, beside whole characters perhaps."""

    whole: str
    """Its whole characters: what stands between the parts."""
    begun: str = ""
    """The character that begins at its end and is ended by a later token; "" where there is none."""
    reach: int = 0
    """Over how many tokens, this one included, `begun` reaches."""
    ended: str = ""
    """The character that an earlier token began and this one goes on with; "" where there is none."""
    rest: bytes = b""
    """Bytes at its end of which nothing becomes a character."""


def shared_characters(tokens: Sequence[bytes | None]) -> list[SharedToken | None]:
    """[T]: the tokens that share a character with their neighbours; None for all others, be they text or broken bytes.

    A character goes over no token that is None or empty, as those stand for the beginning of another text.
    """
    found: list[SharedToken | None] = [None] * len(tokens)
    for first, token in enumerate(tokens):
        start = _whole_and_rest(token) if token and found[first] is None else None
        if start is not None:
            _follow(tokens, first, *start, found)
    return found


def _follow(
    tokens: Sequence[bytes | None], place: int, whole: str, rest: bytes, found: list[SharedToken | None]
) -> None:
    """Go from character to character, from the token at `place` on, as long as each token begins what the next ends."""
    ended = ""
    while rest:
        reached = _end_of(tokens, place, rest)
        if reached is None:
            if ended:
                found[place] = SharedToken(whole, ended=ended, rest=rest)
            return
        last, character, after, next_rest = reached
        found[place] = SharedToken(whole, character, last - place + 1, ended)
        for middle in range(place + 1, last):
            found[middle] = SharedToken("", ended=character)
        found[last] = SharedToken(after, ended=character)
        place, whole, ended, rest = last, after, character, next_rest


def _end_of(tokens: Sequence[bytes | None], place: int, begun: bytes) -> tuple[int, str, str, bytes] | None:
    """The token that ends the character begun at `place`, the character, what whole ones follow it, and bytes after."""
    data = begun
    for last in range(place + 1, len(tokens)):
        token = tokens[last]
        if not token:
            return None
        data += token
        parts = _whole_and_rest(data)
        if parts is None:
            return None
        if parts[0]:
            return last, parts[0][0], parts[0][1:], parts[1]
    return None


def _whole_and_rest(data: bytes) -> tuple[str, bytes] | None:
    """`data` as characters and up to three bytes of one that is only begun; None where it is no UTF-8."""
    try:
        return data.decode(), b""
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":
            return None
        return data[: error.start].decode(), data[error.start :]
