"""Requests of SGLang followed by the positions of their tokens: what is certain is joined, what is not begins anew."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_core.routing.recordings.sglang_requests import RunningRequests


def positions(*spans: tuple[int, int]) -> Any:
    return np.concatenate([np.arange(*span) for span in spans])


def test_prompts_and_their_answers_are_one_text() -> None:
    running = RunningRequests(0)
    assert running.extend(positions((0, 3), (0, 2)), [3, 2]).tolist() == [0, 0, 0, 1, 1]
    assert running.decode(np.array([3, 2])).tolist() == [0, 1]
    assert running.decode(np.array([4, 3])).tolist() == [0, 1]
    assert running.extend(positions((0, 4)), [4]).tolist() == [2] * 4
    assert running.decode(np.array([5, 4, 4])).tolist() == [0, 1, 2]
    assert running.decode(np.array([6, 5])).tolist()[0] == 0
    assert running.uncertain == 1  # of 1 and 2, both at 5, one has ended


def test_who_has_ended_follows_from_order_and_positions() -> None:
    running = RunningRequests(5)
    running.extend(positions((0, 3), (0, 7), (0, 3), (0, 9)), [3, 7, 3, 9])
    assert running.decode(np.array([3, 3, 9])).tolist() == [5, 7, 8]  # 6, at 7, has ended
    assert running.decode(np.array([4, 4, 10])).tolist() == [5, 7, 8]
    assert running.uncertain == 0
    assert running.decode(np.array([5, 11])).tolist() == [9, 8]  # the first or the third has ended
    assert running.uncertain == 1


def test_a_prompt_in_parts_goes_on_while_others_decode() -> None:
    running = RunningRequests(0)
    running.extend(positions((0, 4), (0, 6)), [4, 6])
    assert running.decode(np.array([4])).tolist() == [0]
    assert running.extend(positions((6, 9), (0, 2)), [3, 2]).tolist() == [1, 1, 1, 2, 2]
    assert running.decode(np.array([5, 9, 2])).tolist() == [0, 1, 2]


def test_a_cached_prefix_begins_a_text_where_it_ends() -> None:
    running = RunningRequests(0)
    running.extend(positions((0, 6)), [6])
    assert running.decode(np.array([6])).tolist() == [0]
    assert running.extend(positions((7, 9)), [2]).tolist() == [1, 1]


def test_padding_and_a_recording_that_begins_in_the_middle() -> None:
    running = RunningRequests(0)
    assert running.decode(np.array([17, 30, 0, 0])).tolist() == [0, 1, -1, -1]
    assert running.decode(np.array([18, 31, 0, 0])).tolist() == [0, 1, -1, -1]
    assert running.decode(np.array([19, 8, 32])).tolist() == [0, 2, 1]
    assert running.uncertain == 0


def test_a_mixed_pass_extends_and_decodes() -> None:
    running = RunningRequests(0)
    running.extend(positions((0, 3), (0, 5)), [3, 5])
    running.decode(np.array([3, 5]))
    mixed = running.mixed(np.concatenate([positions((0, 4)), [4, 6]]), [4, 1, 1])
    assert mixed.tolist() == [2, 2, 2, 2, 0, 1]
    assert running.decode(np.array([4, 5, 7])).tolist() == [2, 0, 1]
    assert running.mixed(np.array([0]), [1]).tolist() == [3]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_token_is_given_to_a_wrong_request(data: st.DataObject) -> None:
    """A scheduler as SGLang's: what is joined was one request, and where none ends nothing is cut."""
    running = RunningRequests(0)
    live: list[list[int]] = []  # number and next position of each running request
    owner: dict[int, int] = {}
    requests, ended = 0, False
    for _ in range(data.draw(st.integers(1, 12))):
        if data.draw(st.booleans()) or not live:
            lengths = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
            found = running.extend(positions(*((0, length) for length in lengths)), lengths)
            new = [[requests + number, length] for number, length in enumerate(lengths)]
            truth = np.repeat([number for number, _ in new], lengths)
            requests += len(new)
            live += new
        else:
            kept = [one for one in live if data.draw(st.integers(0, 9)) > 1]
            ended |= len(kept) < len(live)
            live = kept
            found = running.decode(np.array([place for _, place in live], dtype=np.int64))
            truth = np.array([number for number, _ in live])
            for one in live:
                one[1] += 1
        assert ended or found.tolist() == truth.tolist()
        for ours, theirs in zip(found.tolist(), truth.tolist(), strict=True):
            assert owner.setdefault(ours, theirs) == theirs
    assert ended or running.uncertain == 0
