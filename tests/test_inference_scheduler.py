"""Many requests in a thread of its own: nobody waits for a slow reader, nothing is lost, and every end is told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from test_inference_batch import events_alone, foreign, long, own, same

from moe_core.errors import QueueFullError, ShutDownError, UsageError
from moe_core.inference import sampling
from moe_core.inference.engine import Engine, Finished, GeneratedToken, PromptRead, TokensAsText
from moe_core.inference.mailbox import Mailbox
from moe_core.inference.scheduler import Scheduler
from moe_core.routing import Intervention

FOREVER = 1_000_000


@contextmanager
def scheduler_of(model: Any, **options: Any) -> Iterator[Scheduler]:
    scheduler = Scheduler(Engine(model), **options)
    try:
        yield scheduler
    finally:
        scheduler.close(drain=False)


@pytest.mark.parametrize("model", [own("softmax"), own("document_pool"), foreign("qwen3_moe"), foreign("jamba")])
def test_requests_of_many_threads_get_what_they_get_alone(model: Any) -> None:
    change = Intervention(ablate=((1, 0),))
    requests = [long((1 + i, 2), tokens=6 + i, intervention=change if i % 3 == 2 else None) for i in range(9)]
    found: dict[int, Any] = {}
    with scheduler_of(model, slots=4, queue=len(requests)) as scheduler:

        def ask(number: int) -> None:
            found[number] = list(scheduler.start(requests[number]))

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(requests))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        counts = scheduler.counts()
    for number, request in enumerate(requests):
        same(found[number], events_alone(model, request))
    events = [event for each in found.values() for event in each]
    prompts = [event for event in events if isinstance(event, PromptRead)]
    tokens = [event for event in events if isinstance(event, GeneratedToken)]
    assert (counts.accepted, counts.completed, counts.waiting, counts.running) == (9, 9, 0, 0)
    assert counts.prompt_tokens == sum(len(prompt.token_ids) for prompt in prompts)
    assert counts.written_tokens == len(tokens)
    expected = np.zeros((len(model.moe_layers), model.num_experts), np.int64)
    for experts in [*(row for prompt in prompts for row in prompt.experts), *(token.experts for token in tokens)]:
        for layer, chosen in enumerate(experts):
            np.add.at(expected[layer], chosen[chosen >= 0], 1)
    np.testing.assert_array_equal(counts.tokens_per_expert, expected)


def test_a_full_queue_says_when_to_come_again_and_takes_the_next_once_there_is_room(
    paced: Callable[[int], None],
) -> None:
    with scheduler_of(own("softmax"), slots=1, queue=1) as scheduler:
        first, second = scheduler.start(long(tokens=3)), scheduler.start(long((4,), tokens=3))
        with pytest.raises(QueueFullError, match="try again in 1 s") as refused:
            scheduler.start(long())
        assert refused.value.retry_after_seconds >= 1
        paced(6)
        assert len(first.result().tokens) == 3
        third = scheduler.start(long(tokens=2))
        paced(2)
        assert [len(each.result().tokens) for each in (second, third)] == [3, 2]
        assert (scheduler.counts().accepted, scheduler.counts().refused) == (3, 1)


def test_cancelling_ends_within_a_token_and_frees_the_slot(paced: Callable[[int], None]) -> None:
    with scheduler_of(own("softmax"), slots=1, queue=2) as scheduler:
        first = scheduler.start(long(tokens=FOREVER))
        queued, last = scheduler.start(long((4,), tokens=FOREVER)), scheduler.start(long((5,), tokens=1))
        paced(3)
        assert isinstance(next(first), PromptRead)
        assert all(isinstance(next(first), GeneratedToken) for _ in range(3))
        queued.cancel()
        first.cancel()
        paced(1 + 1)
        rest = list(first)
        assert sum(isinstance(event, GeneratedToken) for event in rest) <= 1
        assert isinstance(rest[-1], Finished)
        assert rest[-1].reason == "cancelled"
        assert [event.reason for event in queued if isinstance(event, Finished)] == ["cancelled"]
        assert len(last.result().tokens) == 1
        counts = scheduler.counts()
        assert (counts.cancelled, counts.completed) == (2, 1)
        assert counts.written_tokens <= 3 + 1 + 1


def test_a_reader_that_goes_away_cancels(paced: Callable[[int], None]) -> None:
    with scheduler_of(own("softmax"), slots=1) as scheduler:
        given_up = scheduler.start(long(tokens=FOREVER))
        next(given_up)
        given_up.close()
        forgotten = scheduler.start(long((4,), tokens=FOREVER))
        paced(2)
        next(forgotten)
        del forgotten
        paced(8)
        assert len(scheduler.start(long((5,), tokens=4)).result().tokens) == 4
        assert scheduler.counts().cancelled == 2


def test_a_slow_reader_holds_no_slot_and_loses_no_text() -> None:
    model = own("softmax")
    request = long(tokens=30)
    expected = events_alone(model, request)
    with scheduler_of(model, slots=1, room=5) as scheduler:
        slow = scheduler.start(request)
        assert len(scheduler.start(long((4,))).result().tokens) == 8, "the slow one's slot is free"
        events = list(slow)
        whole = list(scheduler.start(request, whole=True))
    same(whole, expected)
    late = [event for event in events if isinstance(event, TokensAsText)]
    assert len(events) == 5 + 1 + 1
    assert len(late) == 1
    same(events[:5], expected[:5])
    told = [event for event in expected if isinstance(event, GeneratedToken)]
    assert late[0].token_ids == tuple(token.token_id for token in told[4:])
    text = "".join(event.text for event in events if not isinstance(event, PromptRead))
    assert text == "".join(event.text for event in expected if not isinstance(event, PromptRead))


def test_a_reader_that_catches_up_gets_tokens_again() -> None:
    def token(number: int) -> GeneratedToken:
        return GeneratedToken(number, f"{number} ", np.zeros((1, 1), np.int16), np.zeros((1, 1), np.float32), 0.0)

    box = Mailbox(room=2)
    for number in range(5):
        box.put(token(number))
    assert isinstance(box.pop(), GeneratedToken)
    box.put(token(5))
    events = [box.pop(), box.pop()]
    assert isinstance(events[1], TokensAsText)
    assert events[1] == TokensAsText("2 3 4 5 ", (2, 3, 4, 5))
    box.put(token(6))
    box.put(Finished("length", ""))
    kinds = [type(box.pop()) for _ in range(3)]
    assert kinds == [GeneratedToken, Finished, type(None)]


def test_a_request_that_fails_hurts_no_other_and_the_thread_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model = own("softmax")
    draw = sampling.sample

    def failing(logits_V: Any, config: Any, random: Any) -> int:
        if config.max_new_tokens == 13:
            raise ZeroDivisionError
        return draw(logits_V, config, random)

    monkeypatch.setattr("moe_core.inference.row.sample", failing)
    with scheduler_of(model, slots=3) as scheduler:
        bad, good = scheduler.start(long(tokens=13)), scheduler.start(long((4,)))
        with pytest.raises(ZeroDivisionError):
            bad.result()
        same(list(good), events_alone(model, long((4,))))
        # A fault of the batch itself ends what runs, not what comes.
        with monkeypatch.context() as patch:
            patch.delattr("moe_core.inference.batch.Batch._read_a_prompt")
            with pytest.raises(AttributeError):
                scheduler.start(long()).result()
        same(list(scheduler.start(long((4,)))), events_alone(model, long((4,))))
        assert (scheduler.counts().failed, scheduler.counts().completed) == (2, 2)


def test_a_bad_request_is_refused_before_it_is_queued() -> None:
    with scheduler_of(own("softmax")) as scheduler:
        with pytest.raises(UsageError, match="outside the 300 ids"):
            scheduler.start(long((999,)))
        assert scheduler.counts().accepted == 0
    for wrong in ({"slots": 0}, {"queue": -1}, {"room": 0}, {"piece": 0}):
        with pytest.raises(UsageError, match=r"out of range; expected at least"):
            Scheduler(Engine(own("softmax")), **wrong)


def test_shutting_down_drains_what_was_let_in_and_lets_nobody_else_in() -> None:
    model = own("softmax")
    requests = [long((1 + i,), tokens=5) for i in range(5)]
    with Scheduler(Engine(model), slots=2) as scheduler:
        generations = [scheduler.start(request) for request in requests]
    with pytest.raises(ShutDownError, match="takes no further request"):
        scheduler.start(long())
    for generation, request in zip(generations, requests, strict=True):
        same(list(generation), events_alone(model, request))
    assert not scheduler._thread.is_alive()
    scheduler.close()


def test_shutting_down_at_once_tells_every_reader(paced: Callable[[int], None]) -> None:
    scheduler = Scheduler(Engine(own("softmax")), slots=1)
    generations = [scheduler.start(long((1 + i,), tokens=FOREVER)) for i in range(3)]
    closing = threading.Thread(target=scheduler.close, kwargs={"seconds": 0.01})
    closing.start()
    while closing.is_alive():
        paced(1)
        closing.join(0.01)
    assert [generation.result().reason for generation in generations] == ["cancelled"] * 3
    assert scheduler.counts().cancelled == 3


def test_those_who_came_first_are_answered_first_and_those_who_run_get_equally_much(
    paced: Callable[[int], None],
) -> None:
    with scheduler_of(own("softmax"), slots=2) as scheduler:
        generations = [scheduler.start(long((1 + i,), tokens=FOREVER)) for i in range(4)]
        paced(10)
        for generation in generations[:2]:
            assert [type(next(generation)) for _ in range(5)] == [PromptRead] + [GeneratedToken] * 4
        assert (scheduler.counts().running, scheduler.counts().waiting) == (2, 2)
        generations[0].cancel()
        paced(6)
        assert isinstance(next(generations[2]), PromptRead), "who waits longest has the free slot"
        assert scheduler.counts().waiting == 1
        for generation in generations:
            generation.cancel()
        paced(4)


def test_what_cannot_share_a_pass_is_said() -> None:
    with scheduler_of(own("softmax")) as ours, scheduler_of(foreign("gpt_oss")) as theirs:
        assert ours.takes_turns == ""
        assert "its requests take turns" in theirs.takes_turns
