"""A repository as shards: what is made from an earlier commit is, byte for byte, what is made anew."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from cli_support import Run
from dulwich import porcelain

from moe_core.data.shards.repository import shards_of_repository
from moe_core.data.shards.shard_reader import ShardFolder, held_out_documents
from moe_core.data.tokenizer import Tokenizer
from moe_core.errors import DataError, UsageError

SUFFIXES = (".py", ".js", ".rs", ".md", ".bin")
TOKENIZER = Tokenizer.train(["def f(x):\n    return x + 1\n", "let x = 1; fn main() {}"], 300)


def text_of(rng: random.Random) -> bytes:
    return "".join(rng.choice(("def f():\n", "x = 1\n", "let é = 2;\r\n", "  fn()\n")) for _ in range(20)).encode()


def commit(folder: Path, message: str) -> str:
    """A commit of all that is in the folder now."""
    with porcelain.open_repo_closing(str(folder)) as repo:
        staged = repo.get_worktree()
        there = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*") if path.is_file()}
        there = {name for name in there if not name.startswith(".git")}
        known = {name.decode() for name in repo.open_index()}
        staged.stage(sorted(there | known))
        sha = staged.commit(message.encode(), author=b"a <a@b>", committer=b"a <a@b>")
    return str(sha.decode())


@pytest.fixture
def repository(tmp_path: Path) -> tuple[Path, list[str]]:
    """Four commits that change, add, remove and move files."""
    folder, rng = tmp_path / "repo", random.Random(0)
    (folder / "src").mkdir(parents=True)
    porcelain.init(str(folder)).close()
    for number in range(90):
        (folder / "src" / f"{number}{SUFFIXES[number % 5]}").write_bytes(text_of(rng))
    (folder / "src" / "none.py").write_bytes(b"\xff\xfe")  # no UTF-8
    commits = [commit(folder, "first")]
    for turn in range(3):
        changed, moved, gone = rng.sample(sorted((folder / "src").iterdir()), 3)
        changed.write_bytes(text_of(rng))
        moved.rename(folder / "src" / f"moved-{turn}{moved.suffix}")
        gone.unlink()
        (folder / "src" / f"new-{turn}.py").write_bytes(text_of(rng))
        commits.append(commit(folder, f"turn {turn}"))
    return folder, commits


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_made_from_an_earlier_commit_is_byte_for_byte_made_anew(
    repository: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, commits = repository
    since = None
    for number, sha in enumerate(commits):
        anew, grown = tmp_path / f"anew-{number}", tmp_path / f"grown-{number}"
        whole = shards_of_repository(folder, anew, TOKENIZER, revision=sha, shard_tokens=900)
        found = shards_of_repository(folder, grown, TOKENIZER, revision=sha, since=since, workers=3, shard_tokens=900)
        assert content(anew) == content(grown)
        assert (whole.reused, found.files) == (0, whole.files)
        if since is not None:
            assert whole.files - 3 <= found.reused < whole.files
        since = grown
    assert len(whole.index.shards) > 3
    assert whole.index.domains == ["javascript", "prose", "python", "rust"]
    last = ShardFolder(grown)
    assert last.index.notes["commit"] == commits[-1]
    for document in held_out_documents(last, "validation"):
        assert document.text.encode() == (folder / document.source).read_bytes().replace(b"\r\n", b"\n")
    # From the newest commit back to the first: the direction does not matter.
    back = tmp_path / "back"
    shards_of_repository(folder, back, TOKENIZER, revision=commits[0], since=grown, shard_tokens=900)
    assert content(back) == content(tmp_path / "anew-0")


def test_what_cannot_be_is_said_in_one_line(repository: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, _ = repository
    out = tmp_path / "out"
    shards_of_repository(folder, out, TOKENIZER)
    other = Tokenizer.train(["abc"], 260)
    with pytest.raises(UsageError, match="is not empty"):
        shards_of_repository(folder, out, TOKENIZER)
    with pytest.raises(UsageError, match="no git repository"):
        shards_of_repository(out, tmp_path / "a", TOKENIZER)
    with pytest.raises(UsageError, match="tokenizer"):
        shards_of_repository(folder, tmp_path / "b", other, since=out)
    with pytest.raises(UsageError, match="no commit 'nothing'"):
        shards_of_repository(folder, tmp_path / "c", TOKENIZER, revision="nothing")
    few = tmp_path / "few"
    few.mkdir()
    porcelain.init(str(few)).close()
    (few / "a.py").write_text("x = 1\n")
    commit(few, "one")
    with pytest.raises(DataError, match="expected more files"):
        shards_of_repository(few, tmp_path / "d", TOKENIZER)


def test_what_is_left_out_is_counted_by_why(repository: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, _ = repository
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    for name, content in {"p": pointer, "big": b"#" * (2**20 + 1), "zero": b"a\0b", "empty": b""}.items():
        (folder / f"{name}.py").write_bytes(content)
    (folder / "link.py").symlink_to("src/0.py")
    commit(folder, "odd files")
    found = shards_of_repository(folder, tmp_path / "out", TOKENIZER)
    assert found.left_out.pop("of no known language") > 10
    assert found.left_out == {
        "kept elsewhere by Git LFS": 1, "larger than 1 MiB": 1, "binary": 1, "empty": 1, "links or submodules": 1,
        "not UTF-8": 1,
    }  # fmt: skip


def test_a_missing_repository_is_named_before_a_tokenizer_is_asked_for(
    cli: Run, trained_root: Path, tmp_path: Path
) -> None:
    for rest in ([], ["--tokenizer", "nothing"], ["--since", str(tmp_path / "none")]):
        code, _, err = cli(trained_root, "data", "git", str(tmp_path), "--out", str(tmp_path / "out"), *rest)
        assert code == 2
        assert "is no git repository; expected a folder with one" in err


def test_the_command(cli: Run, trained_root: Path, repository: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, commits = repository
    first, second = tmp_path / "1", tmp_path / "2"
    words = ["data", "git", str(folder), "--revision", commits[0], "--out", str(first)]
    assert "expected --tokenizer" in cli(trained_root, *words)[2]
    code, out, _ = cli(trained_root, *words, "--tokenizer", "tiny")
    assert code == 0
    assert "72 files, 0 taken over. Left out: 19; 18 of no known language; 1 not UTF-8." in out
    code, out, _ = cli(trained_root, "data", "git", str(folder), "--since", str(first), "--out", str(second))
    assert code == 0
    assert "taken over" in out
    assert cli(trained_root, "data", "verify", str(second))[0] == 0
