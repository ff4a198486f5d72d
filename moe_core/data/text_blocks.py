"""Files of text read block by block, so that memory does not grow with the file."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from pathlib import Path

from moe_core.errors import DataError

BLOCK_BYTES = 2**20


def decoded_blocks(path: Path) -> Iterator[str]:
    """A file of UTF-8 without its byte-order mark. Raises DataError with byte offset and line where it is none."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = lines = 0  # of what the decoder was given before
    with path.open("rb") as file:
        content = file.read(BLOCK_BYTES)
        if not content:
            raise DataError(f"{str(path)!r} is empty (0 bytes); expected text")
        if content.startswith(codecs.BOM_UTF8):
            content, offset = content.removeprefix(codecs.BOM_UTF8), len(codecs.BOM_UTF8)
        while True:
            pending = len(decoder.getstate()[0])
            try:
                yield decoder.decode(content, final=not content)
            except UnicodeDecodeError as error:
                start = offset - pending + error.start
                line = lines + error.object.count(b"\n", 0, error.start) + 1
                raise DataError(
                    f"{str(path)!r} is not valid UTF-8: byte 0x{error.object[error.start]:02X} at offset {start}, "
                    f"line {line}; convert the file to UTF-8 (for example with iconv)"
                ) from None
            if not content:
                return
            offset += len(content)
            lines += content.count(b"\n")
            content = file.read(BLOCK_BYTES)


def clean_blocks(path: Path) -> Iterator[str]:
    """As decoded_blocks, with line ends as LF. Raises DataError with the line of a NUL."""
    lines = 1
    for block in _unix_newlines(decoded_blocks(path)):
        at = block.find("\0")
        if at >= 0:
            line = lines + block.count("\n", 0, at)
            raise DataError(
                f"{str(path)!r} line {line} holds a NUL character; expected text: remove it or convert the file"
            )
        lines += block.count("\n")
        yield block


def lines_of(blocks: Iterable[str]) -> Iterator[str]:
    """ "".join(blocks).split("\\n"), one by one."""
    begun: list[str] = []
    for block in blocks:
        first, *others = block.split("\n")
        begun.append(first)
        if others:
            yield "".join(begun)
            yield from others[:-1]
            begun = [others[-1]]
    yield "".join(begun)


def unix_lines(path: Path) -> Iterator[str]:
    """Lines that end with LF, whatever they end with in the file; the last one only if it does."""
    lines = lines_of(_unix_newlines(decoded_blocks(path)))
    before = next(lines)
    for line in lines:
        yield f"{before}\n"
        before = line
    if before:
        yield before


def _unix_newlines(blocks: Iterable[str]) -> Iterator[str]:
    held = ""  # a CR whose LF may follow
    for block in blocks:
        block = held + block
        held = "\r" if block.endswith("\r") else ""
        yield block.removesuffix(held).replace("\r\n", "\n").replace("\r", "\n")
    if held:
        yield "\n"
