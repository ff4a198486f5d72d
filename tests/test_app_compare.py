"""The Compare page: two steps, two runs with their experts matched, two texts; and what cannot be compared."""

from __future__ import annotations

import base64
import copy
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from app_support import SOON, Open, numbers, payloads, shown, text_of, work_of_a_rerun
from streamlit.testing.v1 import AppTest
from training_support import TINY_CONFIG

from app.loaders import loaded_run
from moe_core.config import validate_config
from moe_core.figures.sides import Side, compare, domains_figure, one_text, relation, side_by_side, texts_of_both
from moe_core.inference import measuring_job
from moe_core.inference.open import open_run
from moe_core.inference.rounding import missing_library
from moe_core.routing import RoutingTrace, baselines, metrics
from moe_core.routing.measured import Measured
from moe_core.routing.measures.comparison import diff_verdict
from moe_core.routing.token_arrays import TokenArrays, aligned
from moe_core.runs import RunFolder
from moe_core.runs.places import SHIPPED
from moe_core.training.loop import train


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, trained_root: Path) -> Path:
    """The tiny run, another seed of it on the same text, and one of another shape on other text."""
    folder = tmp_path_factory.mktemp("compare")
    shutil.copytree(trained_root / "tiny", folder / "tiny")
    for name, changes in {
        "reseeded": {"training": {"seed": 7}},
        "wider": {"model": {"num_experts": 6}, "data": {"seed": 5}},
    }.items():
        config: dict[str, dict[str, Any]] = copy.deepcopy(TINY_CONFIG)
        for section, values in changes.items():
            config[section] |= values
        config["training"] |= {"steps": 4, "evaluation_interval": 4}
        train(RunFolder(name, folder), validate_config(config))
    return folder


@pytest.fixture
def open_page(dashboard: Open, root: Path) -> Open:
    return partial(dashboard, root, "compare", run="tiny")


def answer_of(at: AppTest) -> str:
    return str(at.main.markdown[0].value).replace("\\", "")


def ended(at: AppTest) -> None:
    """Wait for what is measured in the background, and draw the page again."""
    for job in list(measuring_job._jobs.values()):
        assert job.wait(SOON)
    at.run()
    assert not at.exception
    assert not at.main.error


def probe(root: Path, run: str, step: int) -> RoutingTrace:
    return RoutingTrace.load(RunFolder(run, root).probe_path(step))


def charts(at: AppTest) -> int:
    return len(at.get("vega_lite_chart"))


def test_without_a_choice_the_first_snapshot_is_held_against_the_last(open_page: Open, root: Path) -> None:
    at = open_page()
    assert at.title[0].value == "What is different?"
    diff = metrics.routing_diff(probe(root, "tiny", 0), probe(root, "tiny", 40))
    assert answer_of(at) == f"A is tiny, step 0, B is tiny, step 40. {diff_verdict(diff)}"
    assert charts(at) == 8  # agreement, margins, movers, two maps of each side, flips
    assert "Whether the flips are ties cannot be told" in shown(at) or "the flipped choice had been the" in shown(at)
    first, second = payloads(at)
    assert first["tokens"] == second["tokens"]
    assert first["marks"] == second["marks"]
    assert not at.info
    work = work_of_a_rerun(at)
    assert work["forward"] == 0
    assert work["calls"] < 600_000


def test_another_step_is_chosen_in_the_side_bar(open_page: Open) -> None:
    at = open_page(compare="step 20")
    assert answer_of(at).startswith("A is tiny, step 20, B is tiny, step 40. Different")


def test_experts_of_a_run_with_another_seed_are_matched(open_page: Open) -> None:
    at = open_page(compare="reseeded")
    (remark,) = at.info
    assert "the number of an expert means nothing" in remark.value
    assert "Matched experts share" in remark.value
    assert len(at.dataframe) == 1
    assert len(at.dataframe[0].value) == 2 * 4
    assert len(payloads(at)) == 2


def test_models_of_another_shape_are_only_shown_side_by_side(open_page: Open) -> None:
    at = open_page(compare="wider")
    assert "never expert 3 with expert 3" in at.info[0].value
    assert "A has 2 layers of 4 experts, B 2 of 6" in at.info[0].value
    assert charts(at) == 4
    assert len(payloads(at)) == 2
    assert not at.dataframe


def test_two_texts(open_page: Open) -> None:
    at = open_page(compare_kind="Two texts", text_b="code")
    assert answer_of(at).startswith("A is finance text, B is code text. ")
    assert charts(at) == 3
    at.segmented_control(key="text_a").select("code").run()
    assert answer_of(at).startswith("A is code text, B is code text. The same: ")
    at.segmented_control(key="text_a").select("Your own text").run()
    assert "from one source" in at.info[0].value
    at.text_area(key="text_a_typed").set_value("").run()
    assert not at.exception
    assert "type or paste some" in at.info[0].value


def test_two_texts_stand_side_by_side_with_their_common_tokens_marked(open_page: Open) -> None:
    at = open_page(compare_kind="Two texts", text_a="Your own text", text_b="Your own text")
    at.text_area(key="text_a_typed").set_value("the court ordered the bank").run()
    at.text_area(key="text_b_typed").set_value("the court ordered the bank").run()
    assert not at.exception
    assert "The same text in both" in shown(at)
    same, twin = payloads(at)
    assert same["tokens"] == twin["tokens"]
    assert not numbers(same["marks"], "u1").any()
    at.text_area(key="text_b_typed").set_value("so the court ordered the bank").run()
    first, second = payloads(at)
    text = shown(at)
    assert "tokens are the same in both, in order" in text
    assert numbers(first["marks"], "u1").sum() == numbers(second["marks"], "u1").sum()


def test_ones_own_text_goes_through_both_runs(open_page: Open) -> None:
    at = open_page(compare="reseeded", compare_text="Your own text")
    at.text_area(key="compare_typed").set_value("the bank repaid the loan").run()
    assert not at.exception
    first, second = payloads(at)
    assert text_of(first) == text_of(second) == "the bank repaid the loan"
    assert numbers(first["marks"], "u1").any()  # other weights choose otherwise somewhere
    at = open_page(compare="wider", compare_text="Your own text")
    assert not at.exception
    assert len(payloads(at)) == 2
    assert "cannot be told from each other by number" in shown(at)


def test_two_precisions_agree_in_one_number(open_page: Open) -> None:
    at = open_page(compare_kind="Two precisions")
    assert not at.metric
    at.button(key="precisions_start").click().run()
    ended(at)
    assert answer_of(at).startswith("A is tiny in float32, B is tiny in bfloat16. ")
    assert [metric.label for metric in at.metric] == ["Identical choices", "Identical first choices"]
    assert float(str(at.metric[0].value).split()[0].replace("over", "99.9")) > 80
    assert "choices" in shown(at)
    again = open_page(compare_kind="Two precisions")
    assert again.metric[0].value == at.metric[0].value
    assert "precisions_start" not in {button.key for button in again.main.button}


@pytest.mark.skipif(missing_library(), reason="needs the extra low-precision")
def test_a_run_is_held_against_itself_at_fewer_bits(open_page: Open, root: Path) -> None:
    at = open_page(compare_kind="Two precisions", precision="2 bits")
    assert at.segmented_control(key="precision").options == [
        "bfloat16",
        "float16",
        "8 bits",
        "4 bits",
        "3 bits",
        "2 bits",
        "int8 cache",
        "int4 cache",
        "int2 cache",
        "sinks:64 cache",
        "heavy:64 cache",
    ]
    button = at.button(key="precisions_start")
    assert button.label == "Read it in 2 bits"
    button.click().run()
    ended(at)
    assert answer_of(at).startswith("A is tiny in float32, B is tiny in float32, 2 bits. Different")
    text = shown(at)
    assert "What does it cost?" in text
    assert "were rounded to 2 bits in groups of 32 along the input" in text
    assert next(iter(at.dataframe[0].value["group"])) == "all"
    assert charts(at) == 8
    before, kept = open_run("tiny", root), loaded_run(RunFolder("tiny", root))
    for name, value in before.model.state_dict().items():  # neither the file nor what other pages have open
        assert torch.equal(value, kept.model.state_dict()[name])
    at.segmented_control(key="precision").select("8 bits").run()
    assert at.button(key="precisions_start").label == "Read it in 8 bits"
    again = open_page(compare_kind="Two precisions", precision="2 bits")
    assert "What does it cost?" in shown(again)


def test_without_the_library_fewer_bits_are_not_offered(open_page: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.components.read_twice.missing_library", lambda: True)
    at = open_page(compare_kind="Two precisions", precision="4 bits")
    assert at.segmented_control(key="precision").options[:3] == ["bfloat16", "float16", "int8 cache"]
    assert "low-precision" in shown(at)


def test_a_run_is_held_against_itself_with_a_smaller_cache(dashboard: Open) -> None:
    at = dashboard(SHIPPED, "compare", run="demo", compare_kind="Two precisions", precision="int2 cache")
    assert "token by token as it would be written" in shown(at)
    at.button(key="precisions_start").click().run()
    ended(at)
    assert "B is demo in float32, int2 cache. Different" in answer_of(at)
    text = shown(at)
    assert "What does it cost?" in text
    assert "The first 64 tokens of a window look at nothing that was changed." in text
    metrics = {metric.label: metric.value for metric in at.metric}
    assert metrics["Keys and values of a window"] == "147,456 bytes"
    assert float(metrics["Tokens/s"].replace(",", "")) > 0
    assert list(at.dataframe[0].value["group"]) == ["all", "experts flipped in some layer", "experts the same in all"]
    at.segmented_control(key="precision").select("int4 cache").run()
    assert at.button(key="precisions_start").label == "Read it in int4 cache"


def test_tokens_are_aligned_where_they_are_the_same() -> None:
    own, other = aligned([b"a", b"b", b"c", b"d"], [b"x", b"a", b"c", b"d"])
    assert own.tolist() == [0, 2, 3]
    assert other.tolist() == [1, 2, 3]
    first, second = (
        TokenArrays(tokens, [4], 3, np.array([choices], np.int16), np.ones((1, 4, 2), np.float32))
        for tokens, choices in (
            ([b"a", b"b", b"c", b"d"], [[0, 1], [0, 1], [1, 2], [0, -1]]),
            ([b"x", b"a", b"c", b"d"], [[0, 1], [1, 0], [0, 2], [0, 1]]),
        )
    )
    pair = side_by_side(first, second, comparable=True)
    assert pair.first.marks is not None
    assert pair.second.marks is not None
    assert pair.first.marks.tolist() == [[False, False, True, True]]  # "a" has the same set, "c" and "d" others
    assert pair.second.marks.tolist() == [[False, False, True, True]]
    assert pair.words(4) == (
        "3 of 4 tokens are the same in both, in order; 2 of these go to other experts in layer 4 (dotted)."
    )
    assert side_by_side(first, second, comparable=False).first.marks is None
    nothing = side_by_side(first, replace(second, tokens=[b"w", b"x", b"y", b"z"]), comparable=True)
    assert "no token in common" in nothing.words(4)


def trace(choices: list[list[int]], experts: int, **more: Any) -> RoutingTrace:
    """One layer, one expert a token."""
    indices = np.array(choices)[..., None]
    return RoutingTrace.from_arrays(
        router_indices=indices, router_scores=(indices >= 0) * 1.0, num_experts=experts,
        token_ids=range(indices.shape[1]), document_ids=more.pop("document_ids", [0] * indices.shape[1]), **more,
    )  # fmt: skip


def side(name: str, routing: RoutingTrace) -> Side:
    return Side(name, Measured(routing))


def test_matched_experts_are_renumbered_by_hand() -> None:
    first = side("first", trace([[0, 0, 1, 1, 2, 2]], 3))
    second = side("second", trace([[2, 2, 0, 0, 1, 0]], 3))
    comparison = compare(first, second, one_model=False)
    assert comparison.experts == "matched"
    assert comparison.second.measured.trace.router_indices[0, :, 0].tolist() == [0, 0, 1, 1, 2, 1]
    assert "share 72 % of their tokens (about 20 % if" in relation(comparison)  # (1 + 2/3 + 1/2) / 3
    assert [comparison.own_number("B", 0, expert) for expert in range(3)] == [2, 0, 1]
    assert comparison.own_number("A", 0, 1) == 1


def test_unused_slots_stay_unused_and_logits_follow_their_experts() -> None:
    logits = np.arange(8, dtype=float).reshape(1, 4, 2)
    first = side("first", trace([[0, 0, 1, -1]], 2))
    second = side("second", trace([[1, 1, 0, -1]], 2, router_logits=logits))
    renamed = compare(first, second, one_model=False).second.measured.trace
    assert renamed.router_indices[0, :, 0].tolist() == [0, 0, 1, -1]
    assert renamed.router_logits is not None
    assert renamed.router_logits[0].tolist() == logits[0][:, ::-1].tolist()


def test_one_model_keeps_its_numbers_and_marks_what_differs() -> None:
    names = {i: f"w{i}" for i in range(4)}
    first = side("step 1", trace([[0, 0, 1, 1]], 2, vocabulary=names))
    second = side("step 2", trace([[0, 1, 1, 0]], 2, vocabulary=names))
    comparison = compare(first, second, one_model=True)
    assert comparison.experts == "same"
    pair = texts_of_both(comparison)
    left, right = pair.first, pair.second
    assert left.marks is not None
    assert left.marks.tolist() == [[False, True, False, True]]
    assert (left.indices[0, :, 0].tolist(), right.indices[0, :, 0].tolist()) == ([0, 0, 1, 1], [0, 1, 1, 0])


def test_other_tokens_of_separate_models_are_not_comparable() -> None:
    first = side("first", trace([[0, 1]], 2))
    second = side("second", replace(trace([[0, 1]], 2), token_ids=np.array([5, 6], np.int32)))
    comparison = compare(first, second, one_model=False)
    assert not comparison.comparable
    assert "their tokens differ" in relation(comparison)


def test_one_domain_has_no_map_and_a_missing_layer_the_nearest() -> None:
    routing = trace([[0, 1, 0, 1]], 2, domain_ids=[0, 0, 1, 1], domains=["a", "b"], document_ids=[0, 0, 1, 1])
    assert domains_figure(one_text(routing, "x"), 0) is None
    figure = domains_figure(routing, 9)
    assert figure is not None
    assert figure.name == "domain_map_layer_0"
    assert figure.frame.equals(baselines.domain_cells(routing))


def test_the_numbers_sent_are_the_probe_s(open_page: Open, root: Path) -> None:
    sent = payloads(open_page())[1]
    L, K = len(sent["layers"]), sent["top_k"]
    indices = np.frombuffer(base64.b64decode(sent["indices"]), "<i2").reshape(L, -1, K)
    routing = probe(root, "tiny", 40)
    count = int((routing.document_ids == routing.document_ids[0]).sum())
    own = np.sort(routing.router_indices[:, : min(count, 100)], axis=2)
    assert (np.sort(indices[:, : own.shape[1]], axis=2) == own).all()


def test_what_is_missing_is_said_as_text_whatever_a_file_is_called(root: Path, tmp_path: Path, dashboard: Open) -> None:
    path = tmp_path / "a [link](there).parquet"
    shutil.copy(RunFolder("tiny", root).probe_path(0), path)
    name = f"trace {path.name}"
    at = dashboard(tmp_path, "compare", ("--trace", str(path)), run=name, compare_kind="Runs, steps or traces")
    (box,) = at.main.info
    assert box.value.startswith(r"Trace a \[link\]\(there\).parquet is held against nothing yet")
