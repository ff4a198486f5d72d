"""`moescope compare-serving`: what is measured of real models, the file, the verdict in words, and the Compare page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from app_support import Open
from cli_support import Run, assert_one_line

from moe_core.errors import DataError, RunError, UsageError
from moe_core.experiments import serving_result
from moe_core.experiments.serving import ServingPlan, measure_serving, requests_for, serve_clients, sized_model
from moe_core.experiments.serving_result import (
    HEADER,
    LoadTimes,
    ServedModel,
    ServingResult,
    find_serving,
    loss_words,
    read_serving,
    serving_rows,
    serving_verdict,
    sign_test,
    where_served,
    write_serving,
)
from moe_core.experiments.timing import Spread
from moe_core.figures.served_clients import serving_figure
from moe_core.inference.engine import Engine
from moe_core.inference.scheduler import Scheduler
from moe_core.model import size
from moe_core.runs import RunFolder, places

PLAN = ServingPlan(("router",), clients=(1, 3), prompt_tokens=8, answer_tokens=4, rounds=2, device="cpu")


@pytest.fixture(scope="module")
def measured() -> ServingResult:
    """A tiny size, really served."""
    return measure_serving(PLAN)


def test_both_kinds_are_served_and_a_token_passes_as_many_weights(measured: ServingResult) -> None:
    dense, moe = measured.models
    assert (dense.kind, moe.kind) == ("dense", "moe")
    assert dense.active_parameters == pytest.approx(moe.active_parameters, rel=0.01)
    assert moe.total_parameters > moe.active_parameters
    assert dense.total_parameters == dense.active_parameters
    assert {model.weights for model in measured.models} == {"random"}
    assert moe.held_out_nats is None
    for model in measured.models:
        assert model.weight_bytes == 4 * model.total_parameters
        assert [load.clients for load in model.loads] == [1, 3]
        for load in model.loads:
            assert 0 < load.tokens_per_second.low <= load.tokens_per_second.median <= load.tokens_per_second.high
            assert load.first_token_seconds.low > 0
            assert (load.times_dense is None) == (model.kind == "dense")
    assert measured.environment.processor
    rows = serving_rows(measured)
    assert len(rows) == 4
    assert all(len(row) == len(HEADER) for row in rows)
    assert "2 rounds" in where_served(measured)


def test_every_client_has_its_whole_answer_and_a_fault_of_one_is_told() -> None:
    model = sized_model("router", "moe", PLAN)
    requests = requests_for(model, 3, PLAN)
    assert len({request.prompt for request in requests}) == 3
    assert all(len(request.prompt) == 8 for request in requests)
    with Scheduler(Engine(model), slots=3, queue=0) as scheduler:
        load = serve_clients(scheduler, requests)
        assert load.tokens_per_second > 0
        assert scheduler.counts().written_tokens <= 12
        with pytest.raises(UsageError, match="outside the"):
            serve_clients(scheduler, [*requests[:1], replace(requests[1], prompt=(10**6,))])


def test_beside_the_trained_run_stands_a_dense_model_of_its_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "SHIPPED", Path(places.__file__).parent / "shipped")
    plan = ServingPlan(("demo",), clients=(1,), answer_tokens=2, rounds=1, device="cpu")
    dense, moe = sized_model("demo", "dense", plan), sized_model("demo", "moe", plan)
    assert dense.tokenizer.vocabulary() == moe.tokenizer.vocabulary()
    dense_result, moe_result = measure_serving(plan).models
    assert moe_result.active_parameters == pytest.approx(dense_result.active_parameters, rel=0.01)
    assert (dense_result.weights, moe_result.weights) == ("random", "run demo, step 350")
    scored = RunFolder("demo").evaluation()
    assert scored is not None
    assert moe_result.held_out_nats == scored.unseen.nats_per_token
    assert loss_words(dense_result) == "not trained"
    assert "bits a byte" in loss_words(moe_result)


def test_what_does_not_fit_into_memory_is_refused_with_what_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(size, "memory_present", lambda _="cpu": 2**30)
    with pytest.raises(UsageError, match=r"size 7b .* has 1\.0 GiB; what fits: .*quick"):
        ServingPlan(("quick", "7b"), device="cpu").check_memory()
    both = sum(size.serving_memory(sized_model("quick", kind, PLAN).model.config, "float32", 16).total
               for kind in ("dense", "moe"))  # fmt: skip
    monkeypatch.setattr(size, "memory_present", lambda _="cpu": both - 1)
    with pytest.raises(UsageError, match=r"together, .* --no-baseline"):
        ServingPlan(("quick",), device="cpu").check_memory()
    with pytest.raises(UsageError, match="neither the dense model nor the mixture"):
        ServingPlan(("quick",), ())


def test_a_file_is_read_as_it_was_written_and_a_changed_one_is_refused(measured: ServingResult, tmp_path: Path) -> None:
    path = tmp_path / "new" / "serving.json"
    write_serving(path, measured)
    assert read_serving(path) == measured
    (tmp_path / "new" / "other.json").write_text("{}")
    assert find_serving(tmp_path / "new") == {"serving": measured}
    changed = path.read_text().replace('"rounds": 2', '"rounds": 9')
    path.write_text(changed)
    with pytest.raises(RunError, match="was changed after it was written"):
        read_serving(path)
    with pytest.raises(RunError, match="is no result of compare-serving"):
        read_serving(tmp_path / "new" / "other.json")
    with pytest.raises(DataError, match="cannot read"):
        read_serving(tmp_path / "none.json")


def made(result: ServingResult, *cases: tuple[float, int]) -> ServingResult:
    """The result of 9 rounds, its mixture so many times as fast in so many of them."""
    spread = Spread(100.0, 90.0, 110.0)
    dense, moe = result.models
    loads = [LoadTimes(n + 1, spread, spread, Spread(t, t, t), faster) for n, (t, faster) in enumerate(cases)]
    models: list[ServedModel] = [dense, replace(moe, loads=tuple(loads))]
    return replace(result, rounds=9, models=tuple(models))


def test_the_verdict_is_told_of_all_numbers_at_once(measured: ServingResult) -> None:
    assert sign_test(9, 9) == sign_test(0, 9) == 2 / 2**9
    assert sign_test(8, 9) == 20 / 2**9
    assert sign_test(5, 10) == 1.0
    found = serving_verdict(made(measured, (1.5, 9), (0.5, 0), (1.1, 8)))
    assert found == (
        "router: against a dense model of equal active size, the mixture writes faster (1.50 times with 1 client), "
        "writes slower (0.50 times with 2 clients) and writes as fast, as far as these rounds can tell (1.10 times "
        "with 3 clients)."
    )
    assert "writes faster (1.10 times with 1 client)" in serving_verdict(made(measured, (1.1, 8)))
    assert "as far as these rounds can tell" in serving_verdict(measured)  # two rounds tell nothing
    alone = replace(measured, models=measured.models[:1])
    assert "nothing can be held against it" in serving_verdict(alone)
    assert serving_figure(measured).verdict == serving_verdict(measured)
    assert len(serving_figure(alone).frame) == 2


def test_the_command_measures_prints_and_keeps(cli: Run, trained_root: Path, tmp_path: Path) -> None:
    path = tmp_path / "serving.json"
    arguments = (
        "compare-serving",
        "--model-sizes",
        "router",
        "--clients",
        "2,1",
        "--answer-tokens",
        "3",
        "--rounds",
        "2",
    )
    code, out, err = cli(trained_root, *arguments, "--no-moe", "--cpu", "--output", str(path), "--json")
    assert code == 0
    assert json.loads(out)["models"] == read_serving(path).to_json()["models"]
    assert [load.clients for load in read_serving(path).models[0].loads] == [1, 2]
    assert "router, dense  random" in err
    for wrong, words in {
        ("--model-sizes", ","): "names no size",
        ("--model-sizes", "huge"): "huge",
        ("--clients", "0"): "--clients '0'; expected numbers from 1 to 256",
        ("--output", str(tmp_path)): "is not a file name",
        ("--no-moe", "--no-baseline"): "neither the dense model nor the mixture",
    }.items():
        code, _, err = cli(trained_root, "compare-serving", *wrong)
        assert code == 2
        assert_one_line(err, words)


def test_the_compare_page_shows_a_result_or_says_how_to_make_one(
    measured: ServingResult, dashboard: Open, trained_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_result, "OWN", tmp_path / "shelf")
    at = dashboard(trained_root, "compare", run="tiny", compare_kind="Serving")
    assert "compare-serving" in at.info[0].value
    write_serving(tmp_path / "elsewhere.json", measured)
    at.text_input(key="serving_file").set_value(str(tmp_path / "elsewhere.json")).run()
    assert not at.exception
    shown = "\n".join(str(part.value) for part in at.main.markdown).replace("\\", "")
    assert serving_verdict(measured) in shown
    assert len(at.get("vega_lite_chart")) == 1
    assert len(at.dataframe[0].value) == 4
    at.text_input(key="serving_file").set_value(str(tmp_path / "none.json")).run()
    assert "Cannot read" in at.error[0].value
    write_serving(tmp_path / "shelf" / "mine.json", measured)
    at.text_input(key="serving_file").set_value("").run()
    assert at.selectbox(key="serving").options == ["mine"]
    assert not at.info
    assert not at.error
    assert len(at.get("vega_lite_chart")) == 1
