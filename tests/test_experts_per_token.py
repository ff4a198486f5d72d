"""How many experts tokens of each class take: by hand, against chance, in files, on the page and in the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from app_support import Open, shown

from moe_core.cli.main import main
from moe_core.errors import TraceError, UsageError
from moe_core.figures import run_figures
from moe_core.routing import RoutingTrace, baselines, metrics
from moe_core.routing.calibration import RANDOM, random_trace
from moe_core.routing.measures.against_chance import CHANCE
from moe_core.routing.measures.capability import VARYING_EXPERTS, capability
from moe_core.routing.measures.experts_per_token import (
    ALL_ALIKE,
    FINDING,
    experts_per_token_verdict,
    fixed_words,
    most_and_fewest,
)
from moe_core.routing.measures.registry import EXPERTS_PER_TOKEN
from moe_core.routing.measures.token_kinds import KIND, KINDS, kind_labelled
from moe_core.routing.trace import trace as trace_module
from tests.routing_support import trace_of


def letters(indices: list[list[int]], **facts: object) -> RoutingTrace:
    """Four tokens, the first two of label a, the others of b; expert 3 is null, as is a slot -1."""
    return trace_of(
        np.array(indices), num_experts=4, label_ids=[0, 0, 1, 1], labels=["a", "b"], labelling="letter",
        document_ids=[0, 1, 0, 1], **{"varying_experts": True, "null_experts": 1, **facts},
    )  # fmt: skip


def test_means_and_explained_variance_by_hand() -> None:
    """Numbers 2, 2 | 1, 0: means 2 and .5, mean 1.25; between 4 * .75^2 = 2.25, in all 2 * .5625 + .0625 + 1.5625."""
    trace = letters([[0, 1], [2, 0], [1, 3], [3, -1]])
    frame = metrics.experts_per_token(trace)
    assert list(frame["experts"]) == [2.0, 0.5]
    assert list(frame["tokens"]) == [2, 2]
    test = baselines.experts_per_token(trace, permutations=9)
    assert test["explained"][0] == pytest.approx(2.25 / 2.75)
    assert (test["spread"][0], test["mean"][0]) == (pytest.approx(0.75), pytest.approx(1.25))
    # Two sources, so without one of them the other stands for both: class means 2 and 1, then 2 and 0.
    low, high = frame["low"][1], frame["high"][1]
    assert (low, high) == (0.0, 2.0)
    types = metrics.experts_per_token_of_types(replace(trace, token_ids=np.arange(4, dtype=np.int32)), min_count=1)
    assert types[["token_id", "experts"]].to_numpy().tolist() == [[3, 0], [2, 1], [0, 2], [1, 2]]
    assert types["low"].isna().all()


def test_what_cannot_be_told_is_said() -> None:
    fixed = letters([[0, 1], [2, 0], [1, 3], [3, 0]], varying_experts=False, null_experts=0)
    assert fixed_words(fixed) == "Every token takes 2 experts in each layer: this router's number is fixed."
    with pytest.raises(UsageError, match=r"takes 2 experts.*top_p, or null experts"):
        metrics.experts_per_token(fixed)
    assert capability(EXPERTS_PER_TOKEN, fixed).needs == VARYING_EXPERTS
    alike = baselines.experts_per_token(letters([[0, 1], [2, 0], [1, 2], [2, 1]]), permutations=9)
    assert list(alike["verdict"]) == [ALL_ALIKE]
    assert experts_per_token_verdict(alike) == f"This {ALL_ALIKE}."
    few = baselines.experts_per_token(random_trace(0, documents=2), permutations=9, by="domain")
    assert few["verdict"].str.startswith("cannot be tested: too few documents").all()
    classes = baselines.experts_per_token_classes(random_trace(0, documents=2), permutations=9, by="domain")
    assert classes["uncertain"].all()
    one = replace(random_trace(0), domains=["a"], domain_ids=np.zeros(600, dtype=np.int16))
    assert (baselines.experts_per_token(one, by="domain")["verdict"] == "cannot be tested: one domain only").all()
    with pytest.raises(TraceError, match="has a label"):
        metrics.experts_per_token(replace(one, label_ids=None, labels=[], labelling=""), by="label")


def test_a_trace_on_disk_is_measured_as_one_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = random_trace(2, planted="experts_per_token", strength=1.0)
    trace.save(tmp_path / "x.parquet")
    monkeypatch.setattr(trace_module, "PART_TOKENS", 100)
    stored = RoutingTrace.open(tmp_path / "x.parquet")
    for by in ("label", "domain"):
        for measure in (baselines.experts_per_token, baselines.experts_per_token_classes):
            own, other = (measure(one, permutations=20, by=by) for one in (trace, stored))
            pd.testing.assert_frame_equal(own, other)
    pd.testing.assert_frame_equal(metrics.experts_per_token_of_types(trace), metrics.experts_per_token_of_types(stored))


def test_domains_that_skip_more_are_found_and_no_others() -> None:
    """Whole sources are dealt anew. 40 seeds of runs in unequal documents of no domain: at most 6 by chance."""
    kind = RANDOM["autocorrelated .8, unequal documents"]
    seeds = [random_trace(seed, **kind) for seed in range(40)]
    tests = [baselines.experts_per_token(trace, permutations=39, by="domain") for trace in seeds]
    assert sum((test["verdict"] != CHANCE).any() for test in tests) <= 6
    skips = replace(seeds[0], router_indices=seeds[0].router_indices.copy())
    indices = skips.router_indices.copy()
    indices[:, (skips.domain_ids == 1) & (np.arange(len(skips.domain_ids)) % 2 == 0), 1] = -1
    scores = np.where(indices < 0, 0.0, skips.router_scores).astype(np.float32)
    skips = replace(skips, router_indices=indices, router_scores=scores, varying_experts=True)
    test = baselines.experts_per_token(skips, by="domain")
    assert (test["verdict"] == FINDING.clearly).all()
    assert ((test["low"] <= test["explained"]) & (test["explained"] <= test["high"])).all()
    words = most_and_fewest(baselines.experts_per_token_classes(skips, by="domain"), 0)
    assert words.startswith("Fewest: domain 1 (")


def test_kinds_of_token_by_hand() -> None:
    pieces = ["<|endoftext|>", "Hel", "lo", " wor", "ld", "42", "\n", "The", " 3rd", ",", "n", "\\xE2", "(x", "y"]
    trace = trace_of(
        np.zeros((len(pieces), 1), dtype=int), num_experts=2, token_ids=np.arange(len(pieces)),
        document_ids=np.zeros(len(pieces), dtype=int), vocabulary=dict(enumerate(pieces)),
    )  # fmt: skip
    found = kind_labelled(trace)
    assert found.label_ids is not None
    begins, inside, number, sign, space, part, control = KINDS
    assert [found.labels[i] for i in found.label_ids] == [
        control, begins, inside, begins, inside, number, space, begins, begins, sign, begins, part, begins, inside,
    ]  # fmt: skip
    with pytest.raises(TraceError, match="tokenizer"):
        kind_labelled(replace(trace, vocabulary={}))


def skipping_trace() -> RoutingTrace:
    """Numbers and markup choose the null experts more."""
    texts = [" word", "ing", "7", ",", "<b>&", "\n"] * 2
    trace = random_trace(4, planted="experts_per_token", strength=2.0, documents=12)
    return replace(trace, vocabulary=dict(enumerate(texts)), label_ids=None, labels=[], labelling="")


def test_the_command_and_the_plots_say_who_skips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "x.parquet", tmp_path / "x.json"
    skipping_trace().save(path)
    assert main(["label", "--trace", str(path), "--kinds", "--json", str(out)]) == 0
    said = capsys.readouterr().out
    assert "How many experts a token takes follows its kind: layer " in said
    assert "Fewest experts of 12 token types (no test): " in said
    found = json.loads(out.read_text())["experts_per_token"]
    assert {row["class"] for row in found["classes"]} <= set(KINDS)
    assert len(found["layers"]) == 3
    names = [figure.name for figure in run_figures._experts_per_token(skipping_trace()).figures]
    assert names == ["experts_per_token_explained", *(f"experts_per_token_layer_{layer}" for layer in range(3))]
    assert main(["label", "--trace", str(path), "--kinds", "--syntax"]) == 2
    assert "give one of --syntax, --kinds and --labels" in capsys.readouterr().err


def test_the_page_shows_classes_and_tokens_or_one_line(tmp_path: Path, dashboard: Open) -> None:
    path = tmp_path / "x.parquet"
    skipping_trace().save(path)
    at = dashboard(tmp_path, "domains", ("--trace", str(path)), run="trace x.parquet", tokens_by=KIND)
    assert not at.exception
    text = shown(at)
    assert "How many experts does each kind of token take?" in text
    assert "follows its kind" in text
    assert any("<b>&" in frame.value.to_string() for frame in at.dataframe)
    replace(skipping_trace(), null_experts=0).save(path)
    at = dashboard(tmp_path, "domains", ("--trace", str(path)), run="trace x.parquet")
    assert "Every token takes 2 experts in each layer" in shown(at)
