"""Rows of unequal length in one cache: what each row gets alone, whoever joins, leaves and moves up."""

from __future__ import annotations

import pytest
import torch
from routers_support import CAUSAL, START, TOP_K, WINDOWED, model_with

from moe_core.errors import UsageError
from moe_core.model import KVCache, MoETransformer
from moe_core.model.joined_cache import JoinedCache


def alone(model: MoETransformer, length: int, seed: int) -> KVCache:
    ids = torch.randint(1, 300, (1, length), generator=torch.Generator().manual_seed(seed))
    cache = KVCache(model.config, 1, 32)
    model(ids, cache=cache)
    return cache


@pytest.mark.parametrize("variant", [*CAUSAL, *WINDOWED])
@torch.inference_mode()
def test_rows_that_join_and_leave_read_what_they_read_alone(variant: str) -> None:
    model = model_with(variant)
    lengths = [1, 9, 4]
    expected = [alone(model, length, length) for length in lengths]
    joined = JoinedCache(model.config, 4, 32)
    here: list[int] = []
    for step in range(8):
        if step in (0, 1, 3):
            row = (0, 1, 3).index(step)
            joined.add(alone(model, lengths[row], lengths[row]))
            here.append(row)
        if step == 5:
            expected[1] = joined.take(here.index(1))
            here.remove(1)
        ids = torch.tensor([[START if (step, row) == (2, 1) else 7 * step + row + 1] for row in here])
        found = model(ids, cache=joined)
        for place, row in enumerate(here):
            one = model(ids[place : place + 1], cache=expected[row])
            torch.testing.assert_close(found.logits[place], one.logits[0], rtol=0, atol=1e-5)
            for together, lone in zip(found.router_outputs, one.router_outputs, strict=True):
                indices = together.router_indices.view(len(here), TOP_K)
                assert indices[place].tolist() == lone.router_indices[0].tolist()
                torch.testing.assert_close(
                    together.router_scores.view(len(here), TOP_K)[place], lone.router_scores[0], rtol=0, atol=1e-5
                )
    # Its cache came out of the joined one; it may go into another.
    left = torch.tensor([[5]])
    again = JoinedCache(model.config, 1, 32)
    again.add(expected[1])
    torch.testing.assert_close(
        model(left, cache=again).logits, model(left, cache=expected[1]).logits, rtol=0, atol=1e-5
    )


@torch.inference_mode()
def test_what_an_earlier_row_left_in_its_place_reaches_nobody() -> None:
    """A value that is masked still takes part in the product: zero times NaN is NaN."""
    model = model_with("softmax")
    joined = JoinedCache(model.config, 2, 32)
    broken = alone(model, 20, 1)
    for values in broken.values:
        values.fill_(torch.nan)
    joined.add(broken)
    joined.take(0)
    joined.add(alone(model, 3, 2))
    joined.add(alone(model, 12, 3))
    assert model(torch.tensor([[4], [5]]), cache=joined).logits.isfinite().all()


@torch.inference_mode()
def test_a_joined_cache_refuses_what_it_has_no_room_for() -> None:
    model = model_with("softmax")
    joined = JoinedCache(model.config, 2, 8)
    joined.add(alone(model, 3, 1))
    joined.add(alone(model, 8, 1))
    with pytest.raises(UsageError, match="expected one token for each row"):
        model(torch.tensor([[1]]), cache=joined)
    with pytest.raises(UsageError, match="expected one token for each row"):
        model(torch.tensor([[1, 2], [1, 2]]), cache=joined)
    with pytest.raises(UsageError, match="a row of 8 tokens fills a cache of 8"):
        model(torch.tensor([[1], [2]]), cache=joined)
