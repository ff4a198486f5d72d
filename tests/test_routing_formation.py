"""When experts became what they are: hand-computed, permuted, at chance, and refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_core.errors import TraceError
from moe_core.routing import RoutingTrace
from moe_core.routing.measures.formation import FORMED, formation, formed_at


def trace(indices_LTK: object, num_experts: int) -> RoutingTrace:
    indices = np.asarray(indices_LTK)
    T = indices.shape[1]
    return RoutingTrace.from_arrays(
        router_indices=indices,
        router_scores=(indices >= 0).astype(np.float32),
        num_experts=num_experts,
        token_ids=np.arange(T),
        document_ids=np.zeros(T, np.int32),
    )


def drawn(seed: int, tokens: int = 12, experts: int = 4, top_k: int = 2) -> RoutingTrace:
    generator = np.random.default_rng(seed)
    choices = [[generator.permutation(experts)[:top_k] for _ in range(tokens)] for _ in range(2)]
    return trace(choices, experts)


def test_kept_chance_and_agreement_of_four_tokens() -> None:
    # Expert 0 ends with tokens 0, 1; at step 10 it had tokens 0, 2, 3.
    early = trace([[[0], [1], [0], [0]]], 3)
    late = trace([[[0], [0], [1], [1]]], 3)
    frame = formation({10: early, 20: late}).set_index(["step", "expert"])
    assert frame.loc[(10, 0), "tokens"] == 3
    assert frame.loc[(10, 0), "kept"] == 1 / 2
    assert frame.loc[(10, 0), "chance"] == 3 / 4
    assert frame.loc[(10, 0), "agreement"] == (1 / 2 - 3 / 4) / (1 - 3 / 4)
    assert frame.loc[(10, 1), "kept"] == 0
    assert frame.loc[(20, 0), "agreement"] == 1
    assert np.isnan(frame.loc[(10, 2), "kept"])  # a dead expert has nothing to keep


def test_an_expert_is_formed_once_its_agreement_stays_up() -> None:
    frame = pd.DataFrame(
        {
            "step": [0, 10, 20, 30] * 3,
            "layer": 5,
            "expert": np.repeat([0, 1, 2], 4),
            "tokens": 7,
            "kept": [0.5] * 8 + [np.nan] * 4,
            "chance": 0.1,
            "agreement": [0.1, FORMED, 0.9, 1.0, 0.7, 0.6, 0.4, 1.0, *[np.nan] * 4],
        }
    )
    formed = formed_at(frame).set_index("expert")["step"]
    assert formed[0] == 10
    assert formed[1] == 30  # it was there before, and left again
    assert np.isnan(formed[2])


def test_unused_slots_are_nobodys_tokens() -> None:
    frame = formation({0: trace([[[0, -1], [-1, -1]]], 2), 1: trace([[[0, 1], [0, 1]]], 2)})
    assert list(frame["tokens"]) == [1, 0, 2, 2]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.permutations(range(4)))
def test_renaming_experts_renames_the_answer(seed: int, names: list[int]) -> None:
    early, late = drawn(seed), drawn(seed + 1)
    renamed = [trace(np.asarray(names)[t.router_indices], 4) for t in (early, late)]
    plain = formation({0: early, 1: late})
    other = formation({0: renamed[0], 1: renamed[1]})
    moved = plain.assign(expert=np.asarray(names)[plain["expert"]])
    moved = moved.sort_values(["step", "layer", "expert"], ignore_index=True)
    pd.testing.assert_frame_equal(moved, other)


def test_routing_that_has_nothing_to_do_with_the_last_agrees_as_by_chance() -> None:
    frame = formation({0: drawn(1, tokens=20_000), 1: drawn(2, tokens=20_000)})
    early = frame[frame["step"] == 0]["agreement"]
    assert early.abs().max() < 0.03


def test_an_expert_that_takes_every_token_has_no_chance_to_differ_from() -> None:
    everything = trace([[[0, 1]] * 3], 3)
    assert formation({0: everything, 1: everything})["agreement"].isna().all()
    assert formed_at(formation({0: everything, 1: everything}))["step"].tolist()[:2] == [0.0, 0.0]


def test_other_tokens_or_another_model_are_refused_in_one_line() -> None:
    late = drawn(1)
    with pytest.raises(TraceError, match="no snapshots"):
        formation({})
    with pytest.raises(TraceError, match="step 3 and of the last, 4, have 11 and 12 tokens"):
        formation({3: drawn(1, tokens=11), 4: late})
    with pytest.raises(TraceError, match="5 and 4 experts"):
        formation({3: drawn(1, experts=5), 4: late})
