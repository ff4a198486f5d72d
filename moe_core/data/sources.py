"""Text as documents: generated, or the user's own.

The user's text comes from a .jsonl, .parquet, .csv or .txt file, or a folder whose subfolders are domains. What every
format shares:

- Text is UTF-8. A byte-order mark at the start of a file is dropped; CRLF and lone CR become LF.
- NUL characters and lone surrogates are refused with the place where they stand: they mean a binary file, or text in
  another encoding, and no model should learn them.
- Rows whose text is only white space carry nothing and are left out.
- A missing domain is the file's stem; a missing source makes the row a source of its own.
- A source is the unit that the splits never part. Each file of plain text is one source, cut into sections.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from data_gen import SPLITS, generate_corpus
from moe_core.data import rows
from moe_core.data.document import Document
from moe_core.data.text_blocks import clean_blocks, lines_of
from moe_core.errors import DataError, UsageError
from moe_core.progress import Progress

EXPECTED = "a .jsonl, .parquet, .csv or .txt file, or a folder whose subfolders are domains"
SECTION_CHARACTERS = 2_000
"""Plain text is cut at blank lines into sections of about this many characters; a longer paragraph stays whole."""
PLAIN_TEXT_PARTS = 12
"""Plain text that makes a domain alone is cut into this many contiguous parts, each a source of about 8 %."""
MIN_SOURCES = 3
"""A domain needs one source for training, one for validation and one for the unseen split."""


def generated_documents(
    documents: int,
    *,
    seed: int = 0,
    overlap: float = 0.25,
    splits: Sequence[str] = SPLITS,
    progress: Progress | None = None,
) -> list[Document]:
    """The synthetic text of four domains as documents, each with its split; see data_gen.generate_corpus."""
    rows_written = generate_corpus(documents, seed=seed, overlap=overlap, splits=splits, progress=progress)
    return [Document(*row) for row in rows_written]


@dataclass(frozen=True)
class _File:
    path: Path
    name: str
    """Names the file in sources: relative to the folder that was given."""
    domain: str
    """Domain of rows that name none."""
    in_folder: bool
    """The folder decides the domain, whatever the rows say."""

    @property
    def is_plain_text(self) -> bool:
        return self.path.suffix.lower() not in rows.READERS


class TextFiles:
    """The documents under some paths, which can be read again and again, one after the other.

    Raises UsageError if nothing is there, DataError (one line naming file and row) if it cannot be read.
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        self._shown = ", ".join(repr(str(path)) for path in paths)
        with _readable(self._shown):
            self._files = [file for path in paths for file in _files_of(Path(path))]
        self.plain_sources = {file.name for file in self._files if file.is_plain_text}
        """Names of the files of plain text, which are their sources."""

    @property
    def paths(self) -> list[Path]:
        """The files, in order."""
        return [file.path for file in self._files]

    def __iter__(self) -> Iterator[Document]:
        """Documents in file order (folders: sorted by name), with the split that their row names or ""."""
        found = False
        with _readable(self._shown):
            for file in self._files:
                for document in _documents_of_sections(file) if file.is_plain_text else _documents_of_rows(file):
                    found = True
                    yield document
        if not found:
            raise DataError(f"{self._shown} holds no text; expected {EXPECTED}")


def read_documents(path: str | Path) -> list[Document]:
    """All documents under `path`, see TextFiles; plain text that makes a domain alone has parts of it as sources."""
    files = TextFiles([path])
    counter = PartCounter(files.plain_sources)
    documents = [counter.seen(document) for document in files]
    return list(counter.parts().named(documents))


@contextmanager
def _readable(shown: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        name = repr(str(error.filename)) if error.filename else shown
        raise DataError(f"cannot read {name}: {error.strerror or error}") from None


def _files_of(path: Path) -> list[_File]:
    if path.is_dir():
        return _files_of_folder(path)
    if not path.exists():
        raise UsageError(f"no data at {str(path)!r}; expected {EXPECTED}")
    if not path.is_file():
        raise DataError(f"{str(path)!r} is not a regular file; expected {EXPECTED}")
    if path.suffix.lower() not in (*rows.READERS, ".txt"):
        raise DataError(f"{str(path)!r} has the ending {path.suffix!r}; expected {EXPECTED}")
    if path.stat().st_size == 0:
        raise DataError(f"{str(path)!r} is empty (0 bytes); expected {EXPECTED}")
    return [_File(path, _displayable_name(path.name), _displayable_name(path.stem), in_folder=False)]


def _files_of_folder(folder: Path) -> list[_File]:
    """Files of all subfolders at any depth, sorted. Hidden entries, __pycache__ and empty files are passed over."""
    visible = sorted(entry for entry in folder.iterdir() if not _is_passed_over(entry.name))
    if any(entry.name == "unfinished.json" for entry in visible):
        raise DataError(f"{str(folder)!r} was not prepared to its end; go on with `moescope data prepare ... --resume`")
    subfolders = [entry for entry in visible if entry.is_dir()]
    if not subfolders:
        raise DataError(f"folder {str(folder)!r} has no subfolders; expected one per domain with its files inside")
    if len(subfolders) < len(visible):
        stray = next(entry for entry in visible if not entry.is_dir())
        raise DataError(f"{str(stray)!r} lies beside the domain folders; move it into the folder of its domain")
    files: list[_File] = []
    for subfolder in subfolders:
        before = len(files)
        for path in _paths_below(subfolder):
            parts = path.relative_to(folder).parts
            if path.is_file() and path.stat().st_size and not any(_is_passed_over(part) for part in parts):
                files.append(
                    _File(path, _displayable_name("/".join(parts)), _displayable_name(subfolder.name), in_folder=True)
                )
        if len(files) == before:
            raise DataError(f"domain folder {str(subfolder)!r} holds no text; put files into it or remove it")
    return files


def _paths_below(folder: Path) -> list[Path]:
    """Files at any depth, sorted. Raises OSError for a folder that cannot be read, which Path.rglob passes over."""

    def refuse(error: OSError) -> None:
        raise error

    return sorted(Path(at) / name for at, _, names in os.walk(folder, onerror=refuse) for name in names)


def _is_passed_over(name: str) -> bool:
    return name.startswith(".") or name == "__pycache__"


def _displayable_name(name: str) -> str:
    """A file name as one line of valid text: names that are not UTF-8 would break every file that stores them."""
    return " ".join(name.encode("utf-8", "surrogateescape").decode("utf-8", "replace").split()) or "text"


def _documents_of_rows(file: _File) -> Iterator[Document]:
    """A row keeps its own source even in a folder, so that one source may be spread over several files."""
    for row in rows.READERS[file.path.suffix.lower()](file.path):
        if not row.text.strip():
            continue
        domain = file.domain if file.in_folder else (row.domain or file.domain)
        yield Document(row.text, domain, row.source or f"{file.name}:{row.number}", row.split or "")


def _documents_of_sections(file: _File) -> Iterator[Document]:
    for section in sections(lines_of(clean_blocks(file.path))):
        yield Document(section, file.domain, file.name, split="")


def sections(lines: Iterable[str]) -> Iterator[str]:
    """Cut at blank lines, then join neighbours up to SECTION_CHARACTERS. Nothing but blank lines is changed."""
    joined: list[str] = []
    length = 0
    for paragraph in _paragraphs(lines):
        if joined and length + 2 + len(paragraph) > SECTION_CHARACTERS:
            yield "\n\n".join(joined)
            joined, length = [], -2
        joined.append(paragraph)
        length += (2 if length else 0) + len(paragraph)
    if joined:
        yield "\n\n".join(joined)


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """What stands between blank lines, without what is blank itself. Lines at the very ends count as text."""
    remaining = iter(lines)
    paragraph = [next(remaining)]
    held: str | None = None  # a line of which it is not known yet whether it is the last one
    for line in remaining:
        if held is not None and not held.strip():
            if any(part.strip() for part in paragraph):
                yield "\n".join(paragraph)
            paragraph = []
        elif held is not None:
            paragraph.append(held)
        held = line
    if held is not None:
        paragraph.append(held)
    if any(part.strip() for part in paragraph):
        yield "\n".join(paragraph)


@dataclass(frozen=True)
class PlainTextParts:
    """Contiguous parts of plain text as sources, where it is a domain of fewer than MIN_SOURCES.

    Scattered parts would not do: a held-out section between two training sections would be half known already.
    """

    domains: Collection[str]
    """Those whose sources are parts."""
    totals: dict[str, int]
    """Documents of each of their sources."""

    def named(self, documents: Iterable[Document]) -> Iterator[Document]:
        """All documents, in their order, each of these domains with its part as source."""
        left = {source: self.parts_of(source) for source in self.totals}
        for document in documents:
            if document.domain in self.domains:
                document = replace(document, source=next(left[document.source]))
            yield document

    def parts_of(self, source: str) -> Iterator[str]:
        """For each document of a source, in order, the part that it is in."""
        total = self.totals[source]
        parts = min(total, PLAIN_TEXT_PARTS)
        return (f"{source} part {number * parts // total + 1} of {parts}" for number in range(total))


class PartCounter:
    """Finds PlainTextParts: only when every document was seen, it is known which domains these are."""

    def __init__(self, plain_sources: set[str]) -> None:
        self._plain = plain_sources
        self._counts: dict[str, dict[str, int] | None] = {}
        """Documents of each source of each domain; None for a domain that has enough sources, or others."""

    def seen(self, document: Document) -> Document:
        """Count a document, and give it back."""
        counts = self._counts.setdefault(document.domain, {})
        if counts is not None:
            counts[document.source] = counts.get(document.source, 0) + 1
            if len(counts) >= MIN_SOURCES or document.source not in self._plain:
                self._counts[document.domain] = None
        return document

    def parts(self) -> PlainTextParts:
        """What follows from all documents that were seen."""
        totals: Counter[str] = Counter()
        for counts in self._counts.values():
            totals.update(counts or {})
        domains = sorted(domain for domain, counts in self._counts.items() if counts is not None)
        return PlainTextParts(domains, dict(totals))
