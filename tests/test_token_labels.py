"""Labels of tokens: node types by syntax and labels of a user's own; in files, on the page, and what experts know."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from app_support import Open, shown

from moe_core.cli.main import main
from moe_core.data import syntax
from moe_core.data.syntax import WHITE_SPACE, node_types
from moe_core.errors import TraceError, UsageError
from moe_core.inference.token_labels import languages_of, syntax_labelled, with_labels
from moe_core.routing import RoutingTrace, baselines, concatenate, metrics
from moe_core.routing.calibration import random_trace
from moe_core.routing.trace import trace as trace_module
from tests.routing_support import trace_of

CODE = "def f(x: int) -> str:\n    # café\n    return x + 1\n"
PIECES = [
    "def", " f", "(", "x", ":", " int", ")", " ->", " str", ":", "\n    ", "# caf", "é", "\n    return", " x", " +",
    " 1", "\n",
]  # fmt: skip
TYPES = [
    "function_definition", "identifier", "parameters", "identifier", "typed_parameter", "identifier", "parameters",
    "function_definition", "identifier", "function_definition", WHITE_SPACE, "comment", "comment", "return_statement",
    "identifier", "binary_operator", "integer", WHITE_SPACE,
]  # fmt: skip


def code_trace(documents: int = 2, experts: int = 3) -> RoutingTrace:
    """CODE in every document after a control token, and one document of prose."""
    texts = ["<|endoftext|>", *PIECES]
    ids = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    T = len(texts)
    return trace_of(
        np.random.default_rng(0).integers(0, experts, ((documents + 1) * T, 1)),
        num_experts=experts,
        token_ids=[ids[text] for text in texts] * (documents + 1),
        document_ids=np.repeat(np.arange(documents + 1), T),
        domain_ids=np.repeat([0] * documents + [1], T),
        domains=["code", "legal"],
        vocabulary={number: text for text, number in ids.items()},
    )


def test_a_token_stands_in_the_smallest_named_node_behind_its_white_space() -> None:
    assert "".join(PIECES) == CODE
    assert node_types([piece.encode() for piece in PIECES], "python") == TYPES
    halves = [b"# caf", b"\xc3", b"\xa9", b"\n"]  # a token may be part of a character
    assert node_types(halves, "python") == ["comment", "comment", "comment", WHITE_SPACE]
    assert node_types([b"def", b" ???"], "python") == ["ERROR", "ERROR"]  # broken code is read, too
    assert node_types([b"let", b" a", b" =", b" 1"], "javascript") == [
        "lexical_declaration", "identifier", "variable_declarator", "number",
    ]  # fmt: skip
    assert node_types([b"fn", b" a", b"()", b" {}"], "rust")[:2] == ["function_item", "identifier"]


def test_crlf_a_byte_order_mark_and_tabs_belong_to_no_word() -> None:
    assert node_types([b"if", b" x", b":\r\n", b"\ty", b" =", b" 1\r\n"], "python") == [
        "if_statement", "identifier", "if_statement", "identifier", "assignment", "integer",
    ]  # fmt: skip
    whole = node_types([b"\xef\xbb\xbf  import", b" os", b"\r\n"], "python")
    assert whole == ["import_statement", "identifier", WHITE_SPACE]
    parts = node_types([b"\xef", b"\xbb\xbf", b"import", b" os"], "python")
    assert parts == [WHITE_SPACE, WHITE_SPACE, "import_statement", "identifier"]


def test_code_nested_deeply_is_labelled_in_one_walk() -> None:
    """A search from the root for each token took two minutes here: time by depth times tokens."""
    deep = node_types([b"("] * 50_000 + [b")"] * 50_000, "python")
    assert deep.count("parenthesized_expression") == 99_998
    assert deep.count("tuple") == 2
    assert set(node_types([b"fn a(){"] * 20_000, "rust")) <= {"ERROR", "function_item", "block", "source_file"}


def test_labels_that_are_hardly_kinds_are_refused() -> None:
    trace = trace_of(np.zeros((5000, 1), dtype=int), num_experts=2)
    with pytest.raises(UsageError, match="'id' has 5,000 different labels; expected at most 4,096"):
        with_labels(trace, np.array([str(place) for place in range(5000)], dtype=object), "id")


def test_only_code_is_labelled_and_a_document_only_up_to_its_first_gap() -> None:
    trace = code_trace()
    found = syntax_labelled(trace, languages_of(trace.domains))
    assert found.label_ids is not None
    names = [found.labels[i] if i >= 0 else None for i in found.label_ids]
    assert names == [*[None, *TYPES] * 2, *[None] * (1 + len(TYPES))]
    gap = trace.select(np.arange(trace.num_tokens) != 3)
    labelled = syntax_labelled(gap, {"code": "python"}).label_ids
    assert labelled is not None
    assert (labelled[3 : len(TYPES)] == -1).all()
    with pytest.raises(TraceError, match="has no text"):
        syntax_labelled(replace(trace, vocabulary={}), {"code": "python"})
    assert languages_of(["a", "b"], ["b=rust"]) == {"b": "rust"}
    assert languages_of(["a"], ["rust"]) == {"a": "rust"}
    for domains, said, words in (
        (["legal"], [], "legal=python"), (["a"], ["b=rust"], "no domain 'b'"), (["a"], ["cobol"], "python, javascript"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            languages_of(domains, said)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(syntax.LANGUAGES, "zig", "tree_sitter_not_there")
    with pytest.raises(UsageError, match=r"tree_sitter_not_there.*requirements-code\.txt"):
        syntax.parser_of("zig")


def test_labels_are_kept_in_files_parts_and_joins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = random_trace(1)
    trace = replace(trace, label_ids=np.where(trace.token_ids % 5 == 0, -1, trace.label_ids).astype(np.int16))
    path = tmp_path / "x.parquet"
    trace.save(path)
    again = RoutingTrace.load(path)
    assert (again.labels, again.labelling) == (trace.labels, trace.labelling)
    np.testing.assert_array_equal(again.label_ids, trace.label_ids)
    written = pd.read_parquet(path)
    assert written["label"].isna().sum() == (trace.label_ids == -1).sum()
    # A trace that stays on disk is measured part by part, as one in memory is.
    monkeypatch.setattr(trace_module, "PART_TOKENS", 100)
    stored = RoutingTrace.open(path)
    assert sum(part.num_tokens for part in stored.by_label().parts()) == stored.by_label().num_tokens
    for measure in (baselines.label_nmi, baselines.label_cells):
        pd.testing.assert_frame_equal(measure(stored, permutations=20), measure(trace, permutations=20))
    other = replace(trace, labels=["label 3", "label 0", "label 1", "label 2"])
    joined = concatenate([trace, other])
    assert joined.labels == trace.labels
    assert joined.label_ids is not None
    np.testing.assert_array_equal(joined.label_ids[trace.num_tokens :] == 3, trace.label_ids == 0)
    for wrong in ({"label_ids": None}, {"labelling": ""}, {"labels": ["a"]}, {"labels": ["a", "a", "b", "c"]}):
        with pytest.raises(TraceError, match="label"):
            replace(trace, **wrong)  # type: ignore[arg-type]
    with pytest.raises(TraceError, match="has a label"):
        baselines.label_nmi(replace(trace, label_ids=None, labels=[], labelling=""))


def test_nmi_of_labels_by_hand_and_a_renamed_expert_changes_nothing() -> None:
    """Two labels, two experts: all of label a goes to expert 0, half of label b: I = H(1/4) - 1/2 H(1/2)."""
    trace = trace_of(
        np.array([[0], [0], [0], [1]]), num_experts=2, label_ids=[0, 0, 1, 1], labels=["a", "b"], labelling="letter"
    )
    nats = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25)) - 0.5 * np.log(2)
    frame = metrics.label_nmi(trace)
    assert frame["nmi"][0] == pytest.approx(nats / np.log(2))
    assert list(metrics.label_specialization(trace)["share"]) == [1.0, 0.0, 0.5, 0.5]
    big = random_trace(3, planted="label_nmi", strength=1.0)
    renamed = replace(big, router_indices=np.where(big.router_indices < 0, -1, 7 - big.router_indices).astype(np.int16))
    np.testing.assert_allclose(metrics.label_nmi(big)["nmi"], metrics.label_nmi(renamed)["nmi"])
    test = baselines.label_nmi(big, permutations=99)
    assert (test["verdict"] == "knows the label of a token clearly better than chance").all()


def test_the_command_labels_by_syntax_and_by_a_file_of_the_users(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "x.parquet", tmp_path / "out.parquet"
    trace = code_trace(6)
    trace.save(path)
    assert main(["label", "--trace", str(path), "--syntax", "--out", str(out), "--json", str(tmp_path / "x.json")]) == 0
    said = capsys.readouterr().out
    assert "108 tokens of 6 documents with one of 9 labels: node type." in said
    assert "code: 108 tokens read as python, 0 % of them where its grammar can read nothing.\n" in said
    assert "Not labelled, as no language is said for them: legal." in said
    figures = json.loads((tmp_path / "x.json").read_text())
    assert (figures["labelling"], figures["tokens_and_unread"]) == ("node type", {"code": [108, 0]})
    assert main(["label", "--trace", str(path), "--syntax", "code=rust"]) == 0
    assert re.search(
        r"read as rust, \d\d % of them where its grammar can read nothing; is it rust\?", capsys.readouterr().out
    )
    np.testing.assert_array_equal(
        RoutingTrace.load(out).label_ids, syntax_labelled(trace, {"code": "python"}).label_ids
    )
    tags = ["x" if i % 3 else None for i in range(trace.num_tokens)]
    pd.DataFrame({"tag": tags}).to_csv(tmp_path / "tags.csv", index=False)
    words = ["--labels", str(tmp_path / "tags.csv"), "--column", "tag", "--name", "part of speech"]
    assert main(["label", "--trace", str(path), *words]) == 0
    assert "with one of 1 label: part of speech." in capsys.readouterr().out
    assert main(["label", "--trace", str(path), "--column", "token_text"]) == 0  # a column of the trace itself
    for arguments, expected in (
        (["--trace", str(path)], "one of --syntax, --kinds and --labels"),
        (["--run", "x", "--column", "a"], "of a --trace"),
        (["--trace", str(path), "--column", "nope"], "no column 'nope'"),
    ):
        capsys.readouterr()
        assert main(["label", *arguments]) > 0
        assert expected in capsys.readouterr().err


def test_domains_tells_tokens_apart_by_node_type_and_by_labels_of_a_trace(
    own_root: Path, tmp_path: Path, dashboard: Open
) -> None:
    at = dashboard(own_root, "domains", layer="1")
    at.segmented_control(key="tokens_by").set_value("node type").run()
    assert not at.exception
    assert "a token's node type" in shown(at) or "Not distinguishable from chance" in shown(at)
    assert len(at.get("vega_lite_chart")) == 2
    path = tmp_path / "labelled.parquet"
    trace = random_trace(2, planted="label_cells")
    with_labels(trace, np.array([f"<b>{i % 4}*" for i in trace.token_ids], dtype=object), "tag").save(path)
    at = dashboard(own_root, "domains", ("--trace", str(path)), run="trace labelled.parquet", tokens_by="tag")
    assert "Experts know a token's tag" in shown(at)
    assert next(iter(at.dataframe[0].value.columns)) == "tag"
    # The trace has no code, so that node types are not offered.
    assert at.segmented_control(key="tokens_by").options == ["domain", "tag"]
