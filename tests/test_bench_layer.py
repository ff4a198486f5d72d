"""The layer and model benchmarks: every other way computes the same, and every promised row is there."""

from __future__ import annotations

import pytest
import torch

from bench import foreign_models, moe_layer, observing, precision, references, whole_model
from bench.references import EqualProducts, StackedLoop, affordable_rounds, with_experts
from bench.suite import Scale

SMOKE = Scale(smoke=True, rounds=1)


@pytest.mark.slow
def test_a_layer_row_for_every_size_pass_and_other_way() -> None:
    rows = moe_layer.run(SMOKE)
    others = [moe_layer.LOOP, moe_layer.MODULES, moe_layer.EAGER, moe_layer.GROUPED, moe_layer.PRODUCTS]
    assert [row.against for row in rows] == others * 4
    assert {row.case for row in rows} == {
        f"{what}, 4 experts, {tokens} tokens" for what in ("forward", "forward+backward") for tokens in (1, 8)
    }
    assert all(row.ratio is not None and row.value > 0 and row.goal is None for row in rows)


def test_what_is_not_measured_without_transformers_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (references, moe_layer, whole_model):
        monkeypatch.setattr(module, "HAS_TRANSFORMERS", False)
    monkeypatch.setattr(moe_layer, "measure", lambda *_: [])
    for case in ("prefill_rows", "training_rows", "decoding_rows"):
        monkeypatch.setattr(whole_model, case, lambda *_: [])
    for rows in (moe_layer.run(SMOKE), whole_model.run(SMOKE)):
        (missing,) = rows
        assert missing.value != missing.value
        assert "requirements-huggingface.txt" in missing.note
    built = [*moe_layer.build_ways(4, 16, 32), *whole_model.build(4, smoke=True, loop=True)]
    assert not any("Mixtral" in name for name in built)


def test_a_layer_that_computes_something_else_is_found() -> None:
    ways = moe_layer.build_ways(4, 16, 32)
    x_TD, d_out_TD = torch.randn(8, 16, requires_grad=True), torch.randn(8, 16)
    moe_layer.check_equal(ways, x_TD, d_out_TD)
    with torch.no_grad():
        next(ways[moe_layer.LOOP].module[1].parameters())[0, 0, 0] += 1.0  # type: ignore[index]
    with pytest.raises(AssertionError, match="naive loop and ours differ"):
        moe_layer.check_equal(ways, x_TD, d_out_TD)


def test_every_goal_belongs_to_a_row_that_is_measured() -> None:
    others = {moe_layer.LOOP, moe_layer.EAGER, moe_layer.PRODUCTS}
    assert {name for *_, name in moe_layer.GOALS} <= others
    assert all(E in moe_layer.EXPERTS and T in moe_layer.TOKENS for E, T, *_ in moe_layer.GOALS)


@pytest.mark.slow
def test_whole_models_agree_and_have_their_rows() -> None:
    rows = whole_model.run(SMOKE)
    mixtures = [whole_model.EAGER, whole_model.GROUPED]
    dense = [whole_model.ACTIVE, whole_model.TOTAL]
    plain, training = [*mixtures, *dense], [*mixtures, whole_model.LOOP, *dense]
    assert [row.against for row in rows] == [*plain, *plain, *training, *plain, *plain]
    assert all(row.ratio is not None for row in rows)


def test_dense_models_have_the_sizes_they_are_named_for() -> None:
    sides = whole_model.build(8, smoke=True)
    ours = sides[whole_model.OURS]
    total, active = (sides[name] for name in (whole_model.TOTAL, whole_model.ACTIVE))
    assert sum(p.numel() for p in total.parameters()) == pytest.approx(
        sum(p.numel() for p in ours.parameters()), rel=0.01
    )
    assert active.flops_per_token(256) == pytest.approx(ours.flops_per_token(256), rel=0.01)
    assert not total.config.moe_layers
    assert not active.config.moe_layers


def test_a_decoder_can_go_on_from_its_prompt_again_and_again() -> None:
    sides = whole_model.build(4, smoke=True)
    prompt, new = torch.randint(300, (2, 5)), torch.randint(300, (3, 2, 1))
    for model in sides.values():
        decoder = whole_model.Decoder(model, prompt, 3)
        first = decoder.decode(new)
        assert torch.equal(decoder.decode(new), first)
        whole = whole_model.prefill(model, torch.cat([prompt, new[:, :, 0].t()], dim=1))
        torch.testing.assert_close(first.transpose(0, 1), whole[:, 5:], atol=1e-4, rtol=1e-4)


def test_the_copy_with_the_naive_loop_leaves_the_model_alone() -> None:
    ours = whole_model.build(4, smoke=True)[whole_model.OURS]
    copied = with_experts(ours, StackedLoop)
    token_ids = torch.randint(300, (1, 6))
    torch.testing.assert_close(whole_model.prefill(copied, token_ids), whole_model.prefill(ours, token_ids))
    assert not any(isinstance(module, StackedLoop) for module in ours.modules())


def test_capture_and_streaming_have_rows_and_write_the_same_tokens() -> None:
    rows = observing.run(SMOKE)
    assert [row.against for row in rows] == [observing.OFF, "", observing.BARE]
    assert 0 < rows[1].value < 100


def test_looking_at_someone_elses_model_has_rows_and_writes_what_generate_writes() -> None:
    rows = foreign_models.run(SMOKE)
    assert [row.against for row in rows] == [
        foreign_models.READING, foreign_models.GENERATE, foreign_models.OFF, "",
    ]  # fmt: skip
    assert 0 < rows[3].value < 100


def test_equal_products_do_the_operations_of_the_experts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    rows, dim, hidden = 6, 4, 5
    products = EqualProducts(rows, dim, hidden)
    with FlopCounterMode(display=False) as counter:
        products.forward()
    assert counter.get_total_flops() == 3 * 2 * rows * dim * hidden
    with FlopCounterMode(display=False) as counter:
        products.forward_backward()
    assert counter.get_total_flops() == 3 * 3 * 2 * rows * dim * hidden


def test_rounds_are_as_many_as_time_allows() -> None:
    assert affordable_rounds({"quick": lambda: None}, 7, 1.0) == 7
    assert affordable_rounds({"slow": lambda: sum(range(100_000))}, 7, 0.0) == 2


def test_bfloat16_is_held_against_float32_in_each_task_and_refused_where_it_computes_something_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = precision.run(SMOKE)
    assert [(row.case.split(",")[0].split()[0], row.case.rsplit(", ", 1)[1]) for row in rows] == [
        ("gradient", precision.AUTOCAST),
        ("prefill", precision.AUTOCAST),
        ("prefill", precision.WEIGHTS),
        ("decoding", precision.WEIGHTS),
    ]
    assert all(row.against == precision.FLOAT32 and row.ratio is not None and row.ratio.median > 0 for row in rows)
    monkeypatch.setattr(precision, "TOLERANCE", 0.0)
    with pytest.raises(AssertionError, match="bfloat16 autocast and float32 differ"):
        precision.run(SMOKE)
