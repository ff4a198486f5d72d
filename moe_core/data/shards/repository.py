"""A git repository at one commit as shards: a document a file, and what an earlier folder has tokenised is taken over.

Everything that is written follows from the commit and the tokenizer: files in the order of their paths, the split of
each by its own path, shards cut between files. So a folder that was made from an earlier one is, byte for byte, the
folder that would be made anew, however many workers tokenise.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moe_core.data.document import Document
from moe_core.data.shards.preparation import Batch, encoded, one_core_each
from moe_core.data.shards.shard_index import ShardIndex, Split
from moe_core.data.shards.shard_reader import ShardFolder
from moe_core.data.shards.shard_writer import SHARD_TOKENS, ShardWriter
from moe_core.data.splits import ALL_SPLITS
from moe_core.data.tokenizer import Tokenizer
from moe_core.data.tokens import ENCODED_TOGETHER
from moe_core.errors import DataError, UsageError
from moe_core.progress import Progress, silent
from moe_core.runs.files import translate_os_errors

if TYPE_CHECKING:
    from dulwich.repo import Repo

LANGUAGE_OF_SUFFIX = {
    **dict.fromkeys((".py", ".pyi"), "python"),
    **dict.fromkeys((".js", ".mjs", ".cjs", ".jsx"), "javascript"),
    **dict.fromkeys((".ts", ".tsx"), "typescript"),
    **dict.fromkeys((".c", ".h"), "c"),
    **dict.fromkeys((".cc", ".cpp", ".hpp"), "c++"),
    **dict.fromkeys((".md", ".rst", ".txt"), "prose"),
    ".rs": "rust",
    ".go": "go",
    ".java": "java",
}
"""The domain of a file, by how its name ends; others are left out."""
MOST_BYTES = 2**20
"""Larger files are mostly data, and are left out."""
HELD_OUT_PART = 20
"""One file in so many is of each held-out split."""
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""A file that Git LFS keeps elsewhere begins so: it holds the file's checksum, no text."""
COMMIT = "commit"
"""The note of the index that names it."""


class _File(NamedTuple):
    """A file of the commit: tokens that are known already, or a document to tokenise."""

    split: Split
    domain: str
    path: str
    known: NDArray[np.unsignedinteger] | None
    text_bytes: int


@dataclass(frozen=True)
class RepositoryShards:
    """What was written, and how much of it was taken over."""

    index: ShardIndex
    commit: str
    files: int
    reused: int
    """Files whose tokens an earlier folder had."""
    left_out: dict[str, int]
    """Files by why they are not in it, in words; the commonest first."""


def shards_of_repository(
    repository: Path,
    out: Path,
    tokenizer: Tokenizer,
    *,
    revision: str = "HEAD",
    since: Path | None = None,
    workers: int = 1,
    shard_tokens: int = SHARD_TOKENS,
    progress: Progress = silent,
) -> RepositoryShards:
    """Write the files of a commit to `out`, which must be new or empty. `since`: an earlier folder of the repository.

    Raises UsageError for a place that is taken, what is no repository or commit, an earlier folder of another
    tokenizer, or without dulwich; DataError where a split would be empty; RunError when the disk refuses.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {str(out)!r} is not empty; expected a new or an empty folder")
    with open_repository(repository) as repo, one_core_each():
        commit = _commit(repo, revision)
        earlier = _Earlier(repo, since, tokenizer) if since is not None else None
        files = _Files(repo, commit, earlier)
        with translate_os_errors(out):
            out.mkdir(parents=True, exist_ok=True)
        with ShardWriter(out, tokenizer, shard_tokens=shard_tokens) as writer:
            domains: set[str] = set()
            for file, ids in _tokenised(files, tokenizer, workers):
                writer.add(file.split, file.domain, file.path, ids, file.text_bytes)
                domains |= {file.domain} if file.split == "train" else set()
                files.done += 1
                progress("tokenising", files.done, files.total)
                if writer.is_full:
                    writer.cut()
            writer.cut()
            missing = [split for split in ALL_SPLITS if not any(shard.split == split for shard in writer.shards)]
            if missing:
                raise DataError(
                    f"commit {commit[:12]} has {files.done} files of text, none for {missing[0]}; expected more files, "
                    "some hundred or so"
                )
            index = writer.finish(sorted(domains), {"made by": "data git", COMMIT: commit})
    return RepositoryShards(index, commit, files.done, files.reused, dict(files.left_out.most_common()))


class _Earlier:
    """The tokens of an earlier folder, by the id of the file's content."""

    def __init__(self, repo: Repo, path: Path, tokenizer: Tokenizer) -> None:
        folder = ShardFolder(path)
        commit = folder.index.notes.get(COMMIT)
        if not isinstance(commit, str):
            raise UsageError(
                f"--since {str(path)!r} was not made of a repository; expected a folder that data git wrote"
            )
        folder.check_tokenizer(tokenizer)
        blobs = dict(_tree(repo, _commit(repo, commit)))
        self._places: dict[bytes, tuple[NDArray[np.unsignedinteger], int, int, int]] = {}
        for shard in folder.index.shards:
            ids, table = folder.ids(shard), folder.documents(shard)
            columns = (table.column(name).to_pylist() for name in ("source", "start", "tokens", "bytes"))
            for name, start, tokens, size in zip(*columns, strict=True):
                if name in blobs:
                    self._places[blobs[name]] = (ids, start, tokens, size)

    def find(self, blob: bytes) -> tuple[NDArray[np.unsignedinteger], int] | None:
        """(ids, bytes of text) of the content; None where it is new."""
        found = self._places.get(blob)
        if found is None:
            return None
        ids, start, tokens, size = found
        return ids[start : start + tokens], size


class _Files:
    """The files of a commit in the order of their paths."""

    def __init__(self, repo: Repo, commit: str, earlier: _Earlier | None) -> None:
        self._repo, self._earlier = repo, earlier
        self.left_out = Counter[str]()
        self._tree = sorted(_tree(repo, commit, self.left_out))
        self.total, self.done, self.reused = len(self._tree), 0, 0

    def __iter__(self) -> Iterator[tuple[_File, str]]:
        """Each with its text; "" where its tokens are known."""
        for path, blob in self._tree:
            domain = LANGUAGE_OF_SUFFIX.get(PurePosixPath(path).suffix.lower())
            if domain is None:
                self.left_out["of no known language"] += 1
                continue
            known = self._earlier.find(blob) if self._earlier is not None else None
            if known is not None:
                self.reused += 1
                yield _File(_split(path), domain, path, *known), ""
            else:
                text, why_not = _text(self._repo, blob)
                if why_not:
                    self.left_out[why_not] += 1
                else:
                    yield _File(_split(path), domain, path, None, len(text.encode())), text


def _tokenised(files: _Files, tokenizer: Tokenizer, workers: int) -> Iterator[tuple[_File, NDArray[np.integer]]]:
    """Each file with its tokens, in order."""
    waiting: deque[list[_File]] = deque()

    def batches() -> Iterator[Batch]:
        own, documents, characters = list[_File](), list[Document](), 0
        for file, text in files:
            own.append(file)
            if file.known is None:
                documents.append(Document(text, file.domain, file.path, file.split))
                characters += len(text)
            if characters >= ENCODED_TOGETHER or len(own) >= 4096:
                waiting.append(own)
                yield Batch(documents, 0, 0)
                own, documents, characters = [], [], 0
        if own:
            waiting.append(own)
            yield Batch(documents, 0, 0)

    for _, ids, lengths in encoded(batches(), tokenizer, workers):
        ends = iter(np.cumsum(lengths))
        start = 0
        for file in waiting.popleft():
            if file.known is not None:
                yield file, file.known
            else:
                end = int(next(ends))
                yield file, ids[start:end]
                start = end


def _split(path: str) -> Split:
    """By the path alone: a file stays where it is, whatever comes and goes beside it."""
    number = int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest(), "big") % HELD_OUT_PART
    return ALL_SPLITS[number + 1] if number < len(ALL_SPLITS) - 1 else "train"


def _text(repo: Repo, blob: bytes) -> tuple[str, str]:
    """(the text of a file, why it has none)."""
    content: bytes = repo[blob].as_raw_string()
    if not content:
        return "", "empty"
    if len(content) > MOST_BYTES:
        return "", "larger than 1 MiB"
    if content.startswith(LFS_POINTER):
        return "", "kept elsewhere by Git LFS"
    try:
        text = content.decode().replace("\r\n", "\n")
    except UnicodeDecodeError:
        return "", "not UTF-8"
    return ("", "binary") if "\0" in text else (text, "")


def _tree(repo: Repo, commit: str, left_out: Counter[str] | None = None) -> Iterator[tuple[str, bytes]]:
    """(path, id of its content) of every ordinary file whose name is UTF-8; others are counted in `left_out`."""
    from dulwich.object_store import iter_tree_contents
    from dulwich.objectspec import parse_commit

    counted = Counter[str]() if left_out is None else left_out
    for entry in iter_tree_contents(repo.object_store, parse_commit(repo, commit.encode()).tree):
        if entry.mode & 0o170000 != 0o100000:
            counted["links or submodules"] += 1
            continue
        try:
            yield entry.path.decode(), entry.sha
        except UnicodeDecodeError:
            counted["named in bytes that are not UTF-8"] += 1


def open_repository(repository: Path) -> Repo:
    """To be closed. Raises UsageError for what is no repository, and without dulwich."""
    try:
        from dulwich.errors import NotGitRepository
        from dulwich.repo import Repo
    except ImportError:
        raise UsageError(
            "a repository needs the library dulwich; install it: pip install -r requirements-code.txt in a checkout, "
            "else pip install 'moescope[code]'"
        ) from None
    try:
        return Repo(str(repository))
    except (NotGitRepository, OSError):
        raise UsageError(f"{str(repository)!r} is no git repository; expected a folder with one") from None


def _commit(repo: Repo, revision: str) -> str:
    from dulwich.objectspec import parse_commit

    try:
        return str(parse_commit(repo, revision.encode()).id.decode())
    except (KeyError, ValueError):
        raise UsageError(f"the repository has no commit {revision!r}; expected a branch, a tag or a commit") from None
