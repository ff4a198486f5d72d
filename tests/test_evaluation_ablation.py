"""The causal map against the plain way: another model without the expert, every token read anew."""

from __future__ import annotations

import copy
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_core.config import ModelConfig
from moe_core.data.document import Document
from moe_core.data.tokens import TokenDataset
from moe_core.data.windows import OVERLAPPING_WINDOWS, WINDOW_RULE
from moe_core.errors import RunError, UsageError
from moe_core.evaluation import ablation, analysis
from moe_core.evaluation.ablation import ablation_map, domain_effects, read_ablation_map, token_effects
from moe_core.evaluation.effects import SourceBootstrap
from moe_core.inference.held_out import held_out_text
from moe_core.inference.partial_forward import moe_step, through
from moe_core.inference.tracing import trace_dataset
from moe_core.model.transformer import MoETransformer
from moe_core.routing import Intervention, capture
from moe_core.routing.trace.counts import domain_counts
from moe_core.runs.analysis import EFFECT_COLUMNS, AblationJournal, read_table
from moe_core.runs.checkpoint import LoadedRun, load_run
from moe_core.runs.folder import RunFolder

MODES = ("zero", "renormalise", "reroute")


@pytest.fixture(scope="module")
def loaded(trained_root: Path) -> LoadedRun:
    return load_run("tiny", trained_root)


@pytest.fixture(scope="module")
def text(loaded: LoadedRun) -> TokenDataset:
    """Documents of more than one window each, of four domains."""
    return held_out_text(loaded.run, loaded.tokenizer, 300)


@pytest.fixture
def run(trained_root: Path, tmp_path: Path) -> RunFolder:
    """The run in a folder of one's own."""
    shutil.copytree(trained_root / "tiny", tmp_path / "tiny")
    return RunFolder("tiny", tmp_path)


def without_expert(loaded: LoadedRun, layer: int, expert: int) -> SimpleNamespace:
    """The same model with the expert's last matrix at zero: whatever it reads, it adds nothing."""
    model = copy.deepcopy(loaded.model)
    model.layers[layer].moe.experts.down_proj[expert] = 0.0  # type: ignore[union-attr]
    return SimpleNamespace(model=model, tokenizer=loaded.tokenizer, config=loaded.config)


# ---- one intervention, token by token ----


@pytest.mark.parametrize("expert", [(0, 1), (1, 3)])
def test_ablating_to_zero_is_a_model_whose_expert_has_zero_weights(
    expert: tuple[int, int], loaded: LoadedRun, text: TokenDataset
) -> None:
    effects = token_effects(loaded, text, Intervention(ablate=(expert,)))
    naive = trace_dataset(without_expert(loaded, *expert), text)
    np.testing.assert_allclose(effects.losses_after, naive.losses, atol=2e-5)
    unchanged = trace_dataset(loaded, text)
    np.testing.assert_array_equal(effects.losses_before, unchanged.losses)
    np.testing.assert_array_equal(effects.trace.router_indices, unchanged.trace.router_indices)
    np.testing.assert_array_equal(np.isnan(effects.delta), text.positions == 0)
    assert np.nanmax(np.abs(effects.delta)) > 0.01


def test_kl_is_that_of_the_two_predictions(loaded: LoadedRun) -> None:
    documents = [Document("The tenant shall pay.", "legal", "a", "")]
    effects = token_effects(loaded, documents, Intervention(ablate=((0, 0), (0, 2))))
    ids = torch.from_numpy(effects.trace.token_ids.astype(np.int64))[None]
    changed = without_expert(loaded, 0, 0)
    changed = without_expert(changed, 0, 2)  # type: ignore[arg-type]
    with torch.inference_mode():
        log_p, log_q = (model(ids).logits[0].double().log_softmax(-1) for model in (loaded.model, changed.model))
    kl = torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    np.testing.assert_allclose(effects.kl[1:], kl[:-1], atol=1e-5)
    assert kl.max() > 1e-3


def test_an_intervention_that_does_nothing_has_no_effect_at_all(loaded: LoadedRun, text: TokenDataset) -> None:
    effects = token_effects(loaded, text, Intervention())
    frame = domain_effects(effects)
    assert (frame["delta_nats"] == 0).all()
    assert (frame[["low", "high"]] == 0).all(axis=None)
    assert frame["uncertain"].all()
    assert frame["kl"].abs().max() < 1e-6


def test_there_must_be_something_to_score(loaded: LoadedRun) -> None:
    for documents in ([], [Document("", "legal", "a", "")]):
        with pytest.raises(UsageError, match="no token to score"):
            token_effects(loaded, documents, Intervention())


# ---- the map ----


@pytest.mark.parametrize("mode", MODES)
def test_the_map_is_the_mean_of_the_tokens_effects(
    mode: str, loaded: LoadedRun, text: TokenDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moe_core.data.windows.TOKENS_PER_BATCH", 200)  # several batches of unequal length
    frame = ablation_map(loaded, text, mode=mode)  # type: ignore[arg-type]
    assert list(frame.columns) == [*EFFECT_COLUMNS, "uncertain"]
    assert len(frame) == 2 * 4 * (1 + 4)
    for (layer, expert), own in frame.groupby(["layer", "expert"]):
        effects = token_effects(loaded, text, Intervention(ablate=((layer, expert),), mode=mode))  # type: ignore[arg-type]
        expected = domain_effects(effects)
        assert list(own["domain"]) == list(expected["domain"]) == ["all", *loaded.run.domains()]
        np.testing.assert_array_equal(own["tokens"], expected["tokens"])
        for column in ("delta_nats", "low", "high", "kl"):
            np.testing.assert_allclose(own[column], expected[column], atol=3e-6, err_msg=f"{layer}:{expert} {column}")
        counts_M = domain_counts(effects.trace)[effects.trace.layer_position(layer)][:, expert]
        assert own["affected"].tolist() == [counts_M.sum(), *counts_M]
        total, parts = own.iloc[0], own.iloc[1:]
        assert total["delta_nats"] == pytest.approx(np.average(parts["delta_nats"], weights=parts["tokens"]))


def test_going_layer_by_layer_is_the_models_own_forward_pass(loaded: LoadedRun, text: TokenDataset) -> None:
    ids, model = torch.from_numpy(text.token_ids[:60].astype(np.int64)).view(2, 30), loaded.model
    with torch.inference_mode(), capture(model) as recorder:
        expected = model(ids)
        x = model.embedding(ids)
        first = moe_step(model, x, 0)
        top = model.norm(through(model, first.after, 1, 2))
    assert torch.equal(torch.nn.functional.linear(top, model.embedding.weight), expected.logits)
    assert torch.equal(first.routed.router_indices, expected.router_outputs[0].router_indices)
    assert recorder.num_tokens == 120


def test_dense_layers_and_shared_experts_lie_between(loaded: LoadedRun) -> None:
    tree = loaded.config.model.model_dump() | {"num_layers": 4, "moe_every": 2, "shared_expert_hidden_dim": 16}
    torch.manual_seed(0)
    config = ModelConfig(**tree)
    model = MoETransformer(config).eval().requires_grad_(False)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4.0)  # so that single experts matter in a model that never learned
    strange = LoadedRun(loaded.run, loaded.config, model, loaded.tokenizer, 0)
    documents = [Document(f"{word} " * 30, "x", word, "") for word in ("tax", "def", "the")]
    frame = ablation_map(strange, documents, experts=[2])
    assert sorted(set(frame["layer"])) == list(config.moe_layers)
    assert len(config.moe_layers) == 2
    for layer, own in frame.groupby("layer"):
        expected = domain_effects(token_effects(strange, documents, Intervention(ablate=((layer, 2),))))
        np.testing.assert_allclose(own["delta_nats"], expected["delta_nats"], atol=1e-5)
        assert own["kl"].iloc[0] > 1e-3


def test_an_expert_that_nobody_chose_costs_exactly_nothing(loaded: LoadedRun) -> None:
    documents = [Document("a", "x", "1", ""), Document("b", "x", "2", "")]
    trace = trace_dataset(loaded, TokenDataset.build(documents, loaded.tokenizer, ["x"])).trace
    idle = sorted(set(range(4)) - set(trace.router_indices[0].ravel().tolist()))
    assert idle, "the text is too long for this test"
    frame = ablation_map(loaded, documents, layers=[0], experts=[idle[0]])
    assert (frame[["affected", "delta_nats", "kl", "low", "high"]] == 0).all(axis=None)
    assert frame["uncertain"].all()


def test_one_source_gives_no_interval(loaded: LoadedRun) -> None:
    documents = [Document("one two three four", "x", "book", ""), Document("five six seven", "x", "book", "")]
    frame = ablation_map(loaded, documents, layers=[1], experts=[0])
    assert frame[["low", "high"]].isna().all(axis=None)
    assert frame["uncertain"].all()
    assert frame["delta_nats"].notna().all()


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"layers": [7]}, "layer 7 has no experts"),
        ({"experts": [4]}, "no expert 4; expected 0 to 3"),
        ({"layers": [-1]}, "-1"),
        ({"mode": "half"}, "'half'"),
    ],
)
def test_what_the_model_does_not_have_is_refused_before_any_work(
    wanted: dict[str, object], words: str, loaded: LoadedRun, text: TokenDataset
) -> None:
    with pytest.raises(UsageError, match=words):
        ablation_map(loaded, text, **wanted)  # type: ignore[arg-type]


def test_damaged_weights_are_named_rather_than_measured(loaded: LoadedRun, text: TokenDataset) -> None:
    broken = copy.deepcopy(loaded.model)
    broken.norm.weight[0] = float("nan")
    run = LoadedRun(loaded.run, loaded.config, broken, loaded.tokenizer, loaded.step)
    with pytest.raises(RunError, match=r"run tiny, step \d+ is not finite"):
        ablation_map(run, text)


# ---- kept, resumed, cached ----


class KilledError(Exception):
    """Stands for whatever ends a process between two experts."""


def interrupt_after(experts: int) -> Callable[[str, int, int], None]:
    def progress(stage: str, done: int, total: int) -> None:  # noqa: ARG001 - as Progress
        if stage == ablation.STAGE and done == experts:
            raise KilledError

    return progress


def test_an_interrupted_map_goes_on_and_ends_the_same(loaded: LoadedRun, text: TokenDataset, run: RunFolder) -> None:
    whole = ablation_map(loaded, text)
    assert read_ablation_map(run) is None
    with pytest.raises(KilledError):
        ablation_map(loaded, text, run=run, text="held-out text", progress=interrupt_after(3))
    partial = read_ablation_map(run)
    assert partial is not None
    assert list(partial[["layer", "expert"]].drop_duplicates().itertuples(index=False)) == [(0, 0), (0, 1), (0, 2)]
    (path,) = (run.path / "analysis").iterdir()
    kept = path.read_bytes()
    path.write_bytes(kept + b'{"rows": [{"layer": 0, "expert": 3, "doma')  # killed in the middle of a line

    calls: list[tuple[int, int]] = []
    resumed = ablation_map(loaded, text, run=run, text="held-out text", progress=lambda _, *done: calls.append(done))
    assert (3, 8) in calls
    assert (0, 8) not in calls
    assert path.read_bytes().startswith(kept)
    pd.testing.assert_frame_equal(resumed, whole, rtol=0, atol=1e-6)
    again = read_ablation_map(run)
    assert again is not None
    pd.testing.assert_frame_equal(again, resumed)
    assert (again.attrs["step"], again.attrs["mode"], again.attrs["tokens"]) == (loaded.step, "zero", len(text))


def test_what_is_known_is_not_computed_again(
    loaded: LoadedRun, text: TokenDataset, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = ablation_map(loaded, text, layers=[1], experts=[2], run=run)
    monkeypatch.setattr(ablation, "_effects", lambda *_: pytest.fail("computed again"))
    pd.testing.assert_frame_equal(ablation_map(loaded, text, layers=[1], experts=[2], run=run), one)
    # Another mode, other text or other weights are something else.
    changed = without_expert(loaded, 0, 0)
    changed.step = loaded.step
    other = text.select(100, seed=0)
    for model, words, mode in ((loaded, text, "reroute"), (loaded, other, "zero"), (changed, text, "zero")):
        with pytest.raises(pytest.fail.Exception, match="computed again"):
            ablation_map(model, words, layers=[1], experts=[2], mode=mode, run=run)  # type: ignore[arg-type]


def test_the_map_of_the_held_out_text_is_the_one_that_is_shown(
    loaded: LoadedRun, text: TokenDataset, run: RunFolder
) -> None:
    ablation_map(loaded, text, layers=[0], experts=[0], run=run, text="my.txt")
    assert read_ablation_map(run) is None
    named = read_ablation_map(run, text="my.txt")
    assert named is not None
    own = LoadedRun(run, loaded.config, loaded.model, loaded.tokenizer, loaded.step)
    shown = ablation_map(own, layers=[0], experts=[1], run=run)
    pd.testing.assert_frame_equal(read_ablation_map(run), shown)
    later = LoadedRun(run, loaded.config, without_expert(loaded, 0, 3).model, loaded.tokenizer, loaded.step + 1)
    newest = ablation_map(later, layers=[0], experts=[1], run=run)
    pd.testing.assert_frame_equal(read_ablation_map(run), newest)


def test_what_an_older_window_rule_measured_is_shown_alone_and_never_joined(
    loaded: LoadedRun, text: TokenDataset, run: RunFolder
) -> None:
    frame = ablation_map(loaded, text, layers=[0], experts=[0, 1])
    rows = [own.drop(columns="uncertain").to_dict("records") for _, own in frame.groupby("expert")]
    today = ablation.analysis_of(loaded, text, "held-out text", "zero")
    older = replace(today, windows=OVERLAPPING_WINDOWS)
    AblationJournal(run, older).append(rows[0])
    shown = read_ablation_map(run)
    assert shown is not None
    assert shown.attrs["windows"] == OVERLAPPING_WINDOWS
    assert AblationJournal(run, today).read() == {}, "so it is measured again"
    AblationJournal(run, today).append(rows[1])
    later = time.time() + 60
    (path,) = (path for path in (run.path / "analysis").iterdir() if older.key in path.name)
    os.utime(path, (later, later))  # what is newer by the clock is not what counts
    shown = read_ablation_map(run)
    assert shown is not None
    assert shown.attrs["windows"] == WINDOW_RULE
    assert set(shown["expert"]) == {1}


def test_two_writers_count_an_expert_once(loaded: LoadedRun, text: TokenDataset, run: RunFolder) -> None:
    frame = ablation_map(loaded, text, layers=[0], experts=[0, 1])
    of = ablation.analysis_of(loaded, text, "held-out text", "zero")
    rows = [own.drop(columns="uncertain").to_dict("records") for _, own in frame.groupby("expert")]
    for journal, expert in (
        (AblationJournal(run, of), 0),
        (AblationJournal(run, of), 1),
        (AblationJournal(run, of), 0),
    ):
        journal.append(rows[expert])
    pd.testing.assert_frame_equal(read_ablation_map(run), frame)


def test_a_folder_that_cannot_be_written_is_one_line(loaded: LoadedRun, text: TokenDataset, run: RunFolder) -> None:
    (run.path / "analysis").write_text("in the way")
    with pytest.raises(RunError, match=r"cannot read .* Not a directory") as caught:
        ablation_map(loaded, text, layers=[0], experts=[0], run=run)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="resource limits as Linux has them")
@pytest.mark.parametrize("room", [0, 40])
def test_a_full_disk_leaves_what_was_kept(room: int, loaded: LoadedRun, text: TokenDataset, run: RunFolder) -> None:
    ablation_map(loaded, text, layers=[0], experts=[0], run=run, text="held-out text")
    (path,) = (run.path / "analysis").iterdir()
    kept = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(kept) + room, limits[1]))
    try:
        with pytest.raises(RunError, match="no space left"):
            ablation_map(loaded, text, layers=[0], experts=[1], run=run, text="held-out text")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == kept
    ablation_map(loaded, text, layers=[0], experts=[1], run=run, text="held-out text")
    frame = read_ablation_map(run)
    assert frame is not None
    assert set(frame["expert"]) == {0, 1}


def test_everything_at_once_is_kept_and_read_back(loaded: LoadedRun, run: RunFolder) -> None:
    own = LoadedRun(run, loaded.config, loaded.model, loaded.tokenizer, loaded.step)
    found = analysis.analyse_run(own)
    for name in ("similarity", "importance", "correlations"):
        pd.testing.assert_frame_equal(read_table(run, name), getattr(found, name))  # type: ignore[arg-type]
    assert len(found.importance) == 8
    assert sum(path.stat().st_size for path in (run.path / "analysis").iterdir()) < 40_000
    # Other text leaves the kept tables alone.
    other = analysis.analyse_run(own, [Document("Some other words here.", d, d, "") for d in "ab"], text="words")
    assert other.importance["reap"].tolist() != found.importance["reap"].tolist()
    pd.testing.assert_frame_equal(read_table(run, "importance"), found.importance)
    (run.path / "analysis" / "saliency.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(RunError, match="damaged; delete it"):
        read_table(run, "saliency")


# ---- intervals ----


def bootstrap(sources: list[int], domains: list[int], names: tuple[str, ...] = ("a", "b")) -> SourceBootstrap:
    return SourceBootstrap(
        np.array(sources, dtype=np.int32), np.array(domains, dtype=np.int16), names, np.ones(len(sources), dtype=bool)
    )


def test_means_and_intervals_by_hand() -> None:
    delta = np.array([1, 1, 1, 4, 0, 2], dtype=np.float32)
    rows = bootstrap([0, 0, 0, 1, 2, 2], [0, 0, 0, 0, 1, 1]).means(delta, 2 * delta)
    total, a, b = rows
    assert [row["domain"] for row in rows] == ["all", "a", "b"]
    assert [row["tokens"] for row in rows] == [6, 4, 2]
    assert [row["delta_nats"] for row in rows] == pytest.approx([9 / 6, 7 / 4, 1])
    assert [row["kl"] for row in rows] == pytest.approx([18 / 6, 14 / 4, 2])
    # Two sources drawn twice: both the first (mean 1), both the second (mean 4), or one of each (7 / 4). The interval
    # reaches from 1 to 4, stretched around 7 / 4 by sqrt(2 / 1) t(1) / z = 1.414 x 12.706 / 1.960.
    stretch = 2**0.5 * 12.7062 / 1.95996
    assert (a["low"], a["high"]) == pytest.approx((1.75 - 0.75 * stretch, 1.75 + 2.25 * stretch), rel=1e-4)
    assert np.isnan(b["low"])
    assert np.isnan(b["high"])
    assert total["low"] < total["delta_nats"] < total["high"]


@settings(max_examples=40, deadline=None)
@given(st.floats(-3, 3), st.integers(2, 6))
def test_what_never_varies_is_certain(value: float, sources: int) -> None:
    tokens = [source for source in range(sources) for _ in range(source + 1)]
    delta = np.full(len(tokens), value, dtype=np.float32)
    for row in bootstrap(tokens, [0] * len(tokens), ("a",)).means(delta, delta):
        assert (row["low"], row["high"]) == pytest.approx((delta[0], delta[0]), abs=1e-6)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """8 sources whose tokens are alike: 95 % of 300 intervals hold the mean; counting tokens gives far fewer."""
    rng = np.random.default_rng(0)
    held = naive = 0
    sources = np.repeat(np.arange(8), 50)
    for _ in range(300):
        delta = (rng.normal(0, 1, 8)[sources] + rng.normal(0, 1, 400) + 0.5).astype(np.float32)
        row = bootstrap(sources.tolist(), [0] * 400, ("a",)).means(delta, delta)[0]
        held += row["low"] <= 0.5 <= row["high"]
        naive += abs(delta.mean() - 0.5) <= 1.96 * delta.std() / 20
    assert 300 * 0.90 <= held <= 300 * 0.99
    assert naive < 300 * 0.6
