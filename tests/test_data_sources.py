"""Every file format the user may bring, and every way it can be broken: one line that names file, place and remedy."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_core.data import text_blocks
from moe_core.data.document import Document
from moe_core.data.sources import SECTION_CHARACTERS, read_documents, sections
from moe_core.errors import DataError, MoescopeError, UsageError

Write = Callable[[str, str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write_file


def refusal(path: Path, kind: type[MoescopeError] = DataError) -> str:
    with pytest.raises(kind) as caught:
        read_documents(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path.name) in message
    return message


def test_jsonl_keeps_domain_and_source_and_fills_in_what_is_missing(write: Write) -> None:
    path = write(
        "notes.jsonl",
        '{"text": "one", "domain": "law", "source": "a"}\n\n{"text": "two", "domain": null}\n{"text": " "}\n'
        '{"text": "three\\u2028line", "source": 7}',
    )
    assert read_documents(path) == [
        Document("one", "law", "a", ""),
        Document("two", "notes", "notes.jsonl:3", ""),
        Document("three\u2028line", "notes", "7", ""),
    ]


def test_csv_finds_text_whatever_its_case_and_keeps_quoted_commas_and_line_ends(write: Write) -> None:
    path = write("mail.csv", '\ufeffTEXT,Domain\r\n"a, ""b""\r\nc",x\r\nplain,\r\n')
    assert read_documents(path) == [
        Document('a, "b"\nc', "x", "mail.csv:1", ""),
        Document("plain", "mail", "mail.csv:2", ""),
    ]


def test_a_csv_field_may_be_longer_than_pythons_own_limit(write: Write) -> None:
    text = "word " * 60_000
    (document,) = read_documents(write("long.csv", f'Text\n"{text}"\n'))
    assert document.text == text


def test_parquet_reads_plain_and_dictionary_strings(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    domains = pa.array(["x", None]).dictionary_encode()
    pq.write_table(pa.table({"id": [1, 2], "Text": ["one", "two"], "domain": domains}), path)
    assert read_documents(path) == [
        Document("one", "x", "table.parquet:1", ""),
        Document("two", "table", "table.parquet:2", ""),
    ]


def test_plain_text_becomes_sections_whose_contiguous_parts_are_sources(write: Write) -> None:
    paragraphs = [f"{i:03d} " + "x" * 1500 for i in range(30)]
    documents = read_documents(write("book.txt", "\r\n\r\n".join(paragraphs)))
    assert [document.text for document in documents] == paragraphs
    assert {document.domain for document in documents} == {"book"}
    sources = [document.source for document in documents]
    assert len(set(sources)) == 12
    assert len([i for i in range(1, 30) if sources[i] != sources[i - 1]]) == 11, "parts must be contiguous"


def test_a_folder_makes_its_subfolders_domains_and_its_files_sources(write: Write, tmp_path: Path) -> None:
    write("set/code/deep/a.py", "def f():\n\n    return 1\n")
    write("set/code/b.md", "b")
    write("set/code/empty.py", "")
    write("set/code/.hidden", b"\xff")
    write("set/code/__pycache__/x.pyc", b"\xff")
    write("set/law/rows.jsonl", '{"text": "one", "domain": "other", "source": "act 1"}\n{"text": "two"}\n')
    assert read_documents(tmp_path / "set") == [
        Document("b", "code", "code/b.md part 1 of 1", ""),
        Document("def f():\n\n    return 1\n", "code", "code/deep/a.py part 1 of 1", ""),
        Document("one", "law", "act 1", ""),
        Document("two", "law", "law/rows.jsonl:2", ""),
    ]


def test_three_files_of_plain_text_stay_whole_sources(write: Write, tmp_path: Path) -> None:
    for name in "abc":
        write(f"set/d/{name}.txt", "\n\n".join(["y" * 1900] * 3))
    documents = read_documents(tmp_path / "set")
    assert [document.source for document in documents] == ["d/a.txt"] * 3 + ["d/b.txt"] * 3 + ["d/c.txt"] * 3


def test_a_file_name_that_is_not_utf8_still_gives_names_that_are(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/set/d"
    os.makedirs(folder)  # noqa: PTH103  (pathlib has no byte paths)
    with open(folder + b"/\xff.txt", "wb") as file:  # noqa: PTH123
        file.write(b"text")
    (document,) = read_documents(tmp_path / "set")
    assert document.source.encode().startswith("d/\ufffd.txt".encode())


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt", "a.parquet"])
def test_an_empty_file_is_refused(write: Write, name: str) -> None:
    assert "is empty (0 bytes)" in refusal(write(name, b""))


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.txt", " \n\n \n"), ("a.jsonl", '{"text": " "}\n'), ("a.csv", "Text\n"), ("a.txt", "\ufeff")],
)
def test_a_file_without_any_text_is_refused(write: Write, name: str, content: str) -> None:
    assert "holds no text" in refusal(write(name, content))


def test_a_missing_text_column_names_the_columns_that_are_there(write: Write, tmp_path: Path) -> None:
    assert "no Text column in line 1; found 'Body;Domain'" in refusal(write("a.csv", "Body;Domain\nx;y\n"))
    assert "no Text column in line 2; found 'body', 'id'" in refusal(
        write("a.jsonl", '{"text": "x"}\n{"body": "x", "id": 1}\n')
    )
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({f"c{i}": [1] for i in range(10)}), path)
    assert "found 'c0', 'c1', 'c2', 'c3', 'c4', 'c5', 'c6', 'c7' and 2 more" in refusal(path)


def test_invalid_utf8_is_named_by_byte_offset_and_line(write: Write) -> None:
    assert "byte 0xFF at offset 5, line 2" in refusal(write("a.txt", b"ab\ncd\xff"))
    assert "byte 0xFF at offset 8, line 2" in refusal(write("b.txt", b"\xef\xbb\xbfab\ncd\xff"))
    assert "byte 0xE2 at offset 1, line 1" in refusal(write("c.jsonl", b"{\xe2"))
    assert "byte 0xFF at offset 0, line 1" in refusal(write("d.csv", "Text\nx".encode("utf-16")))


def test_invalid_utf8_in_parquet_is_named_by_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    broken = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\2\0\0\0\4\0\0\0"), pa.py_buffer(b"okx\xff"))
    pq.write_table(pa.table({"text": broken}), path)
    assert "row 2 is not valid UTF-8" in refusal(path)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"text": "x"', "line 2 is not valid JSON"),
        ('["x"]', "line 2 is a list"),
        ('{"text": 3}', "line 2 has a text that is a number"),
        ('{"text": null}', "line 2 has a text that is null"),
        ('{"text": "x", "domain": ["y"]}', "line 2 has a domain that is a list"),
        ('{"text": "x", "source": true}', "line 2 has a source that is a boolean"),
        ('{"text": "x\\u0000"}', "line 2 holds a NUL character"),
        ('{"text": "x\\ud800"}', "line 2 holds the lone surrogate U+D800"),
        ('{"text": "x", "id": ' + "9" * 5000 + "}", "line 2 is not valid JSON"),
        ("[" * 100_000, "line 2 is not valid JSON"),
    ],
)
def test_a_bad_jsonl_line_is_named(write: Write, line: str, expected: str) -> None:
    assert expected in refusal(write("a.jsonl", '{"text": "fine"}\n' + line + "\n"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("Text,Domain\nx,y\nx,y,z\n", "row 2 (line 3) has 3 fields; expected 2"),
        ('Text\n"x\n', "is not valid CSV (unexpected end of data)"),
        ('Text\n"x"y\n', "line 2 is not valid CSV"),
        ("Text\nx\0\n", "row 1 (line 2) holds a NUL character"),
    ],
)
def test_a_bad_csv_row_is_named(write: Write, content: str, expected: str) -> None:
    assert expected in refusal(write("a.csv", content))


def test_parquet_that_is_damaged_or_holds_no_strings_is_refused(write: Write, tmp_path: Path) -> None:
    assert "not a readable Parquet file" in refusal(write("a.parquet", b"PAR1 nonsense"))
    path = tmp_path / "b.parquet"
    pq.write_table(pa.table({"text": pa.array(["x", None])}), path)
    assert "row 2 has a text that is null" in refusal(path)


def test_nul_in_plain_text_is_named_by_line(write: Write) -> None:
    assert "line 2 holds a NUL character" in refusal(write("a.txt", "x\ny\0"))


def test_what_is_not_there_or_not_of_a_known_kind_is_refused(write: Write, tmp_path: Path) -> None:
    assert "no data at" in refusal(tmp_path / "nothing.jsonl", UsageError)
    assert "expected a .jsonl, .parquet, .csv or .txt file" in refusal(write("a.docx", "x"))
    os.mkfifo(tmp_path / "pipe.txt")
    assert "not a regular file" in refusal(tmp_path / "pipe.txt")


def test_a_folder_that_does_not_sort_by_domain_is_refused(write: Write, tmp_path: Path) -> None:
    write("flat/a.txt", "x")
    assert "has no subfolders" in refusal(tmp_path / "flat")
    write("mixed/d/a.txt", "x")
    write("mixed/stray.txt", "x")
    with pytest.raises(DataError, match=r"stray.txt' lies beside the domain folders"):
        read_documents(tmp_path / "mixed")
    write("hollow/d/a.txt", "x")
    write("hollow/e/a.txt", "")
    with pytest.raises(DataError, match="hollow/e' holds no text"):
        read_documents(tmp_path / "hollow")


@settings(deadline=None)
@given(st.text(alphabet=st.sampled_from("ab \n\t"), max_size=200))
def test_sections_keep_every_paragraph_in_order(text: str) -> None:
    paragraphs = [line.rstrip() for line in text.split("\n") if line.strip()]
    assert [
        line.rstrip() for section in sections(text.split("\n")) for line in section.split("\n") if line.strip()
    ] == paragraphs


@settings(deadline=None)
@given(st.lists(st.integers(1, 3 * SECTION_CHARACTERS), min_size=1, max_size=30))
def test_sections_are_joined_up_to_the_limit_and_no_further(lengths: list[int]) -> None:
    found = list(sections("\n\n".join("x" * length for length in lengths).split("\n")))
    assert all(len(section) <= SECTION_CHARACTERS or "\n\n" not in section for section in found)
    firsts = [section.split("\n\n")[0] for section in found]
    assert all(
        len(before) + 2 + len(first) > SECTION_CHARACTERS for before, first in zip(found, firsts[1:], strict=False)
    )


@settings(deadline=None)
@given(st.lists(st.text(min_size=1).filter(lambda text: bool(text.strip()) and "\0" not in text), min_size=1))
def test_any_text_survives_jsonl_but_for_its_line_ends(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    expected = [text.replace("\r\n", "\n").replace("\r", "\n") for text in texts]
    assert [document.text for document in read_documents(path)] == expected


def _without_permission(monkeypatch: pytest.MonkeyPatch, locked: Path) -> None:
    """Let the system refuse to list a folder, as it does for another user's; root would be let in."""
    scandir = os.scandir

    def refuse(path: str | Path = ".") -> object:
        if Path(path) == locked:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)


@pytest.mark.parametrize("locked", ["d", "d/deep"])
def test_a_folder_without_permission_is_no_empty_one(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, locked: str
) -> None:
    for domain in "de":
        for number in range(3):
            write(f"{domain}/deep/{number}.txt", f"text {domain} {number}")
    assert len(read_documents(tmp_path)) == 6
    _without_permission(monkeypatch, tmp_path / locked)
    assert refusal(tmp_path) == f"cannot read {str(tmp_path / locked)!r}: Permission denied"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_the_system_itself_refuses_a_folder(write: Write, tmp_path: Path) -> None:
    write("d/deep/1.txt", "text")
    (tmp_path / "d" / "deep").chmod(0)
    try:
        assert "deep': Permission denied" in refusal(tmp_path)
    finally:
        (tmp_path / "d" / "deep").chmod(0o700)


@pytest.mark.parametrize("name", ["text", "Domain", "SOURCE"])
def test_a_column_that_is_there_twice_is_refused(name: str, write: Write, tmp_path: Path) -> None:
    names = [column for column in ("text", "domain", "source") if column != name.lower()] + [name, name]
    table = pa.Table.from_arrays([pa.array(["a", "b"])] * 4, names=names)
    pq.write_table(table, tmp_path / "twice.parquet")
    assert f"has 2 columns {name!r} in its schema" in refusal(tmp_path / "twice.parquet")
    assert f"has 2 columns {name!r} in line 1" in refusal(write("twice.csv", ",".join(names) + "\na,b,c,d\n"))


def test_two_columns_that_differ_in_case_are_told_apart_by_the_exact_one(write: Write) -> None:
    (document,) = read_documents(write("case.csv", "Text,text\nshouted,said\n"))
    assert document.text == "said"
    assert "has 2 columns 'Text'" in refusal(write("case.csv", "Text,TEXT\nshouted,said\n"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "\ufeffone\r\n\r\ntwo é€\r\rthree\n \nfour"),
        ("a.csv", 'Text,Domain\r\n"x\r\ny ""€""",a\r\nlast,b'),
        ("a.jsonl", '{"text": "é\\n"}\r\n\n{"text": "€", "domain": "d"}\n'),
        ("b.txt", b"ok\r\nline 2 \xe2\x82\xff"),
        ("c.txt", "ok\r\n\r\nno\0"),
    ],
)
def test_where_a_block_ends_changes_nothing(
    name: str, content: str | bytes, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(name, content)

    def outcome() -> object:
        try:
            return read_documents(path)
        except DataError as error:
            return str(error)

    whole = outcome()
    for size in range(4, 20):
        monkeypatch.setattr(text_blocks, "BLOCK_BYTES", size)
        assert outcome() == whole, size
