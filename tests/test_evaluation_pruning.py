"""Pruning curves: orders by hand, experts that are known to be useless or needed, and what is said of them."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_core.data.document import Document
from moe_core.data.tokens import TokenDataset
from moe_core.errors import RunError, UsageError
from moe_core.evaluation.expert_ranking import ExpertRanking, LayerRanking, random_ranking, ranking_by_scores
from moe_core.evaluation.pruning import plan_curves, pruning_curves, rankings_of
from moe_core.evaluation.pruning_text import PruningText, split_by_source, text_of_run
from moe_core.figures.pruning import pruning_figure, top_k_figure
from moe_core.inference.expert_outputs import expert_saliency
from moe_core.inference.open import language_model
from moe_core.routing import Intervention, intervene
from moe_core.routing.measures.pruning import (
    PruningCurves,
    PruningPair,
    PruningPoint,
    TopKPoint,
    pruning_verdict,
    reach,
    top_k_verdict,
)
from moe_core.runs import RunFolder
from moe_core.runs.analysis import AnalysisOf
from moe_core.runs.checkpoint import LoadedRun, load_run
from moe_core.runs.pruning_file import KeptCurves, read_curves, write_curves


@pytest.fixture(scope="module")
def loaded(trained_root: Path) -> LoadedRun:
    return load_run("tiny", trained_root)


def small_text(loaded: LoadedRun) -> PruningText:
    """The run's own, few tokens of it."""
    text = text_of_run(loaded)
    return PruningText(text.tuning.select(200, seed=0), text.scored.select(300, seed=0), text.name)


def test_the_least_needed_goes_first_by_hand() -> None:
    scores = pd.DataFrame(
        {"layer": [1, 1, 1, 0, 0, 0], "expert": [0, 1, 2, 0, 1, 2], "score": [3.0, 1.0, 2.0, 5.0, np.nan, 5.0]}
    )
    ranking = ranking_by_scores("reap", scores, top_k=1)
    assert ranking.layers == (LayerRanking(0, (1, 0, 2), (None, 5.0, 5.0)), LayerRanking(1, (1, 2, 0), (1.0, 2.0, 3.0)))
    assert ranking.removed(0) == ()
    assert ranking.removed(1) == ((0, 1), (1, 1))
    assert ranking.removed(2) == ((0, 1), (0, 0), (1, 1), (1, 2))
    with pytest.raises(UsageError, match="3 of 3 experts cannot be taken out of each layer: a token is sent to 1"):
        ranking.removed(3)
    with pytest.raises(UsageError, match="numbers of ranked experts differ"):
        ranking_by_scores("load", scores.iloc[:-1], top_k=1)


@given(st.integers(2, 40), st.integers(1, 4), st.integers(0, 5), st.data())
def test_any_order_takes_experts_one_after_the_other(experts: int, layers: int, seed: int, data: st.DataObject) -> None:
    top_k = data.draw(st.integers(1, experts))
    ranking = random_ranking(range(layers), experts, top_k, seed)
    assert ranking == random_ranking(range(layers), experts, top_k, seed)
    before: set[tuple[int, int]] = set()
    for count in range(experts - top_k + 1):
        gone = ranking.removed(count)
        assert len(gone) == len(set(gone)) == count * layers
        assert before <= set(gone)
        before = set(gone)
        assert all(experts - sum(layer == own for own, _ in gone) >= top_k for layer in range(layers))


@torch.inference_mode()
def test_removing_one_after_the_other_and_at_once_are_the_same(loaded: LoadedRun) -> None:
    """Nested interventions, an expert each, against one of all of them: the same choice, the same logits."""
    model = loaded.model
    ids = torch.randint(0, 50, (2, 24), generator=torch.Generator().manual_seed(0))
    gone = random_ranking(model.config.moe_layers, 4, model.config.top_k, 3).removed(2)
    with intervene(model, ablate=gone, mode="reroute"):
        at_once = model(ids)
    by_layer = [[one for one in gone if one[0] == layer] for layer in model.config.moe_layers]
    first, second = ([own[place] for own in by_layer] for place in (0, 1))
    with intervene(model, ablate=first, mode="reroute"), intervene(model, ablate=second, mode="reroute"):
        in_order = model(ids)
    for one, other in zip(at_once.router_outputs, in_order.router_outputs, strict=True):
        assert (one.router_indices.sort(dim=1).values == other.router_indices.sort(dim=1).values).all()
    torch.testing.assert_close(at_once.logits, in_order.logits, rtol=0, atol=1e-4)


def test_an_expert_that_puts_out_nothing_goes_first_and_costs_nothing(trained_root: Path) -> None:
    """Of each layer expert 2 is emptied: REAP and effect put it first. A token that had chosen it gets another one
    instead, so that only the way of taking it out that leaves its place empty costs exactly nothing."""
    loaded = load_run("tiny", trained_root)
    with torch.no_grad():
        for layer in loaded.model.config.moe_layers:
            loaded.model.layers[layer].moe.experts.down_proj[2].zero_()  # type: ignore[union-attr]
    text = small_text(loaded)
    model = language_model(loaded)
    (reap,) = rankings_of(model, text.tuning, plan_curves(model, ["reap"]))
    assert [one.experts[0] for one in reap.layers] == [2, 2]
    assert [one.scores[0] for one in reap.layers] in ([0.0, 0.0], [None, None], [0.0, None], [None, 0.0])
    ids = torch.from_numpy(text.scored.token_ids[None, :24].astype(np.int64))
    with torch.inference_mode():
        before = loaded.model(ids).logits
        with intervene(loaded.model, ablate=reap.removed(1), mode="zero"):
            torch.testing.assert_close(loaded.model(ids).logits, before)


def test_curves_of_a_run_are_of_other_text_than_the_orders_and_are_kept(loaded: LoadedRun, tmp_path: Path) -> None:
    text = text_of_run(loaded)
    documents = [
        {tuple(one.token_ids[one.document_ids == number]) for number in set(one.document_ids)}
        for one in (text.tuning, text.scored)
    ]
    assert not documents[0] & documents[1]

    model, small = language_model(loaded), small_text(loaded)
    plan = plan_curves(model, orders=2)
    assert plan.by == ("reap", "load", "effect", "random")
    assert plan.removed == (1, 2)  # of 4 experts, 2 for each token
    assert plan.top_ks == (1, 2, 3, 4)
    assert plan.readings == 1 + 2 * (3 + 2) + 4
    seen: list[tuple[str, int, int]] = []
    kept = pruning_curves(loaded, small, plan=plan, progress=lambda *at: seen.append(at))
    assert seen[-1][1] == seen[-1][2]
    curves = kept.curves
    assert {(point.by, point.removed) for point in curves.points} == {(by, n) for by in plan.by for n in (1, 2)}
    assert len(curves.pairs) == 2 * 6
    own = next(point for point in curves.top_k_points if point.top_k == model.top_k and point.domain == "all")
    assert own.delta_nats == pytest.approx(0.0, abs=1e-6)

    # The figure itself, by the long way: the mean over the tokens of one curve's point.
    (by_load,) = rankings_of(model, small.tuning, plan_curves(model, ["load"]))
    gone = Intervention(ablate=by_load.removed(1), mode="reroute")
    from moe_core.evaluation.effects import token_effects

    effects = token_effects(loaded, small.scored, gone)
    point = next(point for point in curves.at("load") if point.removed == 1)
    assert point.delta_nats == pytest.approx(np.nanmean(effects.delta), abs=1e-5)
    load = expert_saliency(loaded, small.tuning)
    for one in by_load.layers:
        counts = load[load["layer"] == one.layer].set_index("expert")["tokens"]
        assert list(counts[list(one.experts)]) == sorted(counts)

    run = RunFolder("tiny", tmp_path)
    run.path.mkdir(parents=True)
    assert read_curves(run) is None
    write_curves(run, kept)
    again = read_curves(run)
    assert again is not None
    assert again == replace(kept, curves=again.curves)
    pd.testing.assert_frame_equal(again.curves.frame(), curves.frame())
    (path,) = (run.path / "analysis").glob("pruning_*.json")
    path.write_text('{"of": 3}')
    with pytest.raises(RunError, match=r"holds no pruning curves .*; delete it"):
        read_curves(run)


def test_work_that_is_stopped_leaves_nothing(loaded: LoadedRun) -> None:
    class StoppedError(Exception):
        pass

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "reading with fewer experts" and done * 2 > total:
            raise StoppedError

    with pytest.raises(StoppedError):
        pruning_curves(loaded, small_text(loaded), plan=plan_curves(language_model(loaded), ["load"]), progress=stop)
    ids = torch.zeros(1, 4, dtype=torch.int64)
    with torch.inference_mode():
        assert torch.isfinite(loaded.model(ids).logits).all()
    assert not any(module._forward_hooks for module in loaded.model.modules())


def test_what_cannot_be_done_is_refused_with_the_reason(loaded: LoadedRun) -> None:
    model = language_model(loaded)
    with pytest.raises(UsageError, match="3 of 4 experts cannot be taken out of each layer: a token is sent to 2"):
        plan_curves(model, removed=[3])
    with pytest.raises(UsageError, match="orders = 1"):
        plan_curves(model, orders=1)
    with pytest.raises(UsageError, match="'size' is unknown; expected some of reap, load, effect, random"):
        plan_curves(model, ["size"])  # type: ignore[list-item]
    one = [Document("The court may order the tenant to pay.", "legal", "a", "")]
    with pytest.raises(UsageError, match="is of one source; expected two or more"):
        split_by_source(loaded, one, "a file")


def test_the_halves_of_a_text_share_no_source(loaded: LoadedRun) -> None:
    documents = [Document(f"Text {i} of source {i % 5}.", "legal", f"s{i % 5}", "") for i in range(20)]
    text = split_by_source(loaded, documents, "a file")
    assert len(set(text.tuning.source_ids)) == 2
    assert len(set(text.scored.source_ids)) == 3
    assert len(set(text.tuning.document_ids)) + len(set(text.scored.document_ids)) == 20


def test_a_source_of_several_domains_is_in_one_half_alone(loaded: LoadedRun) -> None:
    documents = [Document(f"{kind} text {i}.", kind, f"s{i}", "") for kind in ("legal", "code") for i in range(9)]
    sourceless = [Document(f"{kind} note.", kind, "", "") for kind in ("legal", "code")]
    text = split_by_source(loaded, [*documents, *sourceless], "a file")
    halves = [
        {int(re.search(r"\d+", document)[0]) for document in texts_of(loaded, half) if "note" not in document}  # type: ignore[index]
        for half in (text.tuning, text.scored)
    ]
    assert not halves[0] & halves[1]
    assert halves[0] | halves[1] == set(range(9))
    assert abs(len(halves[0]) - len(halves[1])) <= 1


def texts_of(loaded: LoadedRun, dataset: TokenDataset) -> list[str]:
    tokens = [dataset.token_ids[dataset.document_ids == number] for number in np.unique(dataset.document_ids)]
    return [loaded.tokenizer.decode(ids.tolist()) for ids in tokens]


def test_many_experts_are_planned_in_few_points() -> None:
    from types import SimpleNamespace

    large = SimpleNamespace(moe_layers=range(48), num_experts=128, null_experts=0, top_k=8, name="large")
    plan = plan_curves(large)  # type: ignore[arg-type]
    assert plan.by == ("reap", "load", "random")
    assert (plan.removed[0], plan.removed[-1], len(plan.removed)) == (1, 120, 12)
    assert plan.top_ks == (1, 2, 4, 6, 7, 8, 9, 10, 16, 32, 64, 128)
    assert plan_curves(large, ["effect"]).by == ("effect",)  # type: ignore[arg-type]


def curves_of(
    points: dict[str, list[float]], *, half: float = 0.01, told: bool = True, top_k: dict[int, float] | None = None
) -> PruningCurves:
    """8 experts, 2 for each token; a curve's changes of loss with 1, 2, ... experts gone."""
    made = [
        PruningPoint(by, n, "all", 100, delta, delta - half, delta + half, delta, delta)
        for by, changes in points.items()
        for n, delta in enumerate(changes, start=1)
    ]
    names = list(points)
    p = 0.001 if told else 0.5
    pairs = [
        PruningPair(one, other, n + 1, 0.0, 0.0, 0.0, p, p)
        for place, one in enumerate(names)
        for other in names[place + 1 :]
        for n in range(len(points[one]))
    ]
    tops = [TopKPoint(k, "all", 100, delta, delta - half, delta + half) for k, delta in (top_k or {}).items()]
    return PruningCurves((0, 1), 8, 2, 3, 2.0, tuple(made), tuple(pairs), tuple(tops))


def test_the_verdict_says_how_far_and_whether_orders_can_be_told_apart() -> None:
    reap, load, chance = [0.0, 0.01, 0.05, 0.1], [0.01, 0.03, 0.1, 0.3], [0.1, 0.2, 0.4, 0.9]
    curves = curves_of({"reap": reap, "load": load, "random": chance})
    assert [reach(curves.at(by)) for by in curves.criteria] == [2, 1, 0]
    assert pruning_verdict(curves) == (
        "The loss surely stays within 0.02 nats by REAP down to 6 of 8 experts a layer; by load down to 7; at random "
        "with not even one fewer. With 4 of 8 left, the loss is lowest by REAP, +0.1 nats from what it was (95 % "
        "interval +0.09 to +0.11); by load (+0.3) and at random (+0.9) are surely higher."
    )
    alike = curves_of({"reap": reap, "load": load, "random": chance}, told=False)
    assert pruning_verdict(alike).endswith(
        "With 4 of 8 left, the orders cannot be told apart: by REAP (+0.1 nats), by load (+0.3 nats) and at random "
        "(+0.9 nats)."
    )
    # A rise that lies within, but not surely, is not counted; nor is a point beyond one that is out.
    wide = curves_of({"reap": [0.01, 0.01], "load": [0.03, 0.0]}, half=0.02)
    assert pruning_verdict(wide).startswith(
        "By none of these orders does the loss surely stay within 0.02 nats with one expert fewer in each layer of 8."
    )
    assert "cannot be told on text of one source" in pruning_verdict(curves_of({"reap": reap}, half=math.nan))


def test_at_random_means_by_any_random_order() -> None:
    """Their mean stays within the tolerance, one of them does not: who takes experts at random may have that one."""
    curves = curves_of({"random": [0.0, 0.005]})
    points = [replace(point, lowest=-0.02, highest=0.03 if point.removed == 2 else 0.01) for point in curves.points]
    assert reach(curves.at("random")) == 2
    assert reach(points) == 1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({1: 0.3, 2: 0.0, 3: 0.001, 8: 0.001},
         "With 1 the loss rises by 0.3 nats per token (95 % interval +0.29 to +0.31); more than 2 surely gains "
         "nothing."),
        # The best of six is 2.06 standard errors below nothing, as one of six often is.
        ({2: 0.0, 3: -0.0105, 4: 0.0, 5: 0.0, 6: 0.0, 7: 0.0, 8: 0.0},
         "Whether more than 2 gains anything cannot be told."),
        ({1: 0.001, 2: 0.0, 4: -0.1}, "With 1 the loss is not distinguishable from what it is (95 % interval −0.009 to "
                                      "+0.011); with 4 the loss falls by 0.1 nats per token"),
    ],
)  # fmt: skip
def test_top_k_in_words(changes: dict[int, float], expected: str) -> None:
    curves = curves_of({"reap": [0.0]}, top_k=changes)
    assert expected in top_k_verdict(curves)
    assert top_k_figure(curves).verdict == top_k_verdict(curves)
    assert top_k_figure(curves).chart.to_dict()
    assert top_k_figure(curves).name == "top_k"
    assert (
        top_k_figure(curves, "Recht §" * 50).name == f"top_k_{'recht__' * 5}recht"
    )  # a file name, also of odd domains


def test_the_figure_draws_every_order_and_the_band() -> None:
    figure = pruning_figure(curves_of({"reap": [0.0, 0.1], "random": [0.1, 0.2]}))
    drawn = figure.chart.to_dict()
    line = next(layer for layer in drawn["layer"] if layer["mark"]["type"] == "line")
    assert line["encoding"]["color"]["scale"]["domain"] == ["reap", "random"]
    assert drawn["layer"][0]["mark"]["type"] == "area"
    sentences = [row["sentence"] for rows in drawn["datasets"].values() for row in rows if "sentence" in row]
    assert (
        "Taken out by REAP, 7 of 8 experts left in each layer: the loss changes by 0 nats per token, 95 % interval "
        "−0.01 to +0.01."
    ) in sentences


def test_curves_of_an_older_step_give_way_to_newer_ones(tmp_path: Path) -> None:
    run = RunFolder("some", tmp_path)
    run.path.mkdir(parents=True)
    curves = curves_of({"reap": [0.0]})
    for step, at in ((200, 1.0), (100, 9.0), (200, 5.0)):
        of = AnalysisOf("c" * 64, step, "held-out text", f"{step}{at}", 100, "reroute")
        write_curves(run, KeptCurves(of, "t", 50, at, 1.0, curves))
    newest = read_curves(run)
    assert newest is not None
    assert (newest.of.step, newest.computed_at) == (200, 5.0)


def test_a_ranking_knows_its_model() -> None:
    ranking = ExpertRanking("random", (LayerRanking(3, (1, 0), (None, None)),), top_k=1, seed=0)
    assert ranking.num_experts == 2
    assert ranking.removed(1) == ((3, 1),)
