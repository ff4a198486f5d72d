"""Models by name: opened when asked for, closed for want of room, and never under a request that is being answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from test_inference_batch import own

from moe_core.errors import RunError, ShutDownError, UnknownModelError, UsageError
from moe_core.inference.engine import Completion, Engine, Request
from moe_core.inference.model_pool import ModelPool, ModelSource, RunSources
from moe_core.inference.sampling import SamplingConfig
from moe_core.inference.scheduler import Scheduler

GREEDY = SamplingConfig(max_new_tokens=8, temperature=0)


@dataclass
class Opening:
    """Sources that note what is opened."""

    opened: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    def source(self, name: str) -> ModelSource:
        def open_it() -> Any:
            self.opened.append(name)
            return own("softmax")

        return ModelSource(open_it, lambda: self.versions.get(name, ""))

    def pool(self, *names: str, **options: Any) -> ModelPool:
        return ModelPool({name: self.source(name) for name in names}, **options)


@pytest.fixture
def opening() -> Opening:
    return Opening()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """No token is drawn before it is set."""
    from moe_core.inference import sampling

    allowed = threading.Event()
    draw = sampling.sample

    def waiting(*given: Any) -> int:
        allowed.wait()
        return draw(*given)

    monkeypatch.setattr("moe_core.inference.row.sample", waiting)
    yield allowed
    allowed.set()


def in_thread(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()), daemon=True)
    thread.start()
    return thread, found


def wait_for_refusal(scheduler: Scheduler) -> bool:
    """Whether it takes no request, sooner or later."""
    try:
        while True:
            scheduler.start(Request((1,), GREEDY)).cancel()
    except ShutDownError:
        return True


def test_a_run_answers_as_its_engine_does_and_is_opened_once(trained_root: Path) -> None:
    sources = RunSources(trained_root)
    assert list(sources) == ["tiny"]
    assert len(sources) == 1
    with ModelPool(sources) as pool:
        assert pool.names() == ["tiny"]
        assert pool.opened("tiny") is None
        scheduler = pool.scheduler("tiny")
        assert pool.scheduler("tiny") is scheduler is pool.opened("tiny")
        assert pool.open_schedulers() == {"tiny": scheduler}
        found = scheduler.start(Request("the", GREEDY)).result()
        alone = Engine(sources["tiny"].open()).start(Request("the", GREEDY)).result()
        assert [token.token_id for token in found.tokens] == [token.token_id for token in alone.tokens]


def test_an_unknown_name_is_named_beside_those_there_are(opening: Opening) -> None:
    with opening.pool("a", "b") as pool:
        with pytest.raises(UnknownModelError, match="there is no model 'c'; expected one of 'a' and 'b'"):
            pool.scheduler("c")
        with pytest.raises(UnknownModelError):
            pool.opened("../a")
    with opening.pool() as none, pytest.raises(UnknownModelError, match="there is no model"):
        none.scheduler("a")
    with pytest.raises(UsageError, match="most_open = 0"):
        opening.pool("a", most_open=0)


def test_a_run_that_was_trained_on_is_opened_anew(opening: Opening) -> None:
    with opening.pool("a") as pool:
        first = pool.scheduler("a")
        opening.versions["a"] = "step 2"
        assert pool.opened("a") is None
        second = pool.scheduler("a")
        assert second is not first
        with pytest.raises(ShutDownError):
            first.start(Request((1,), GREEDY))
        assert len(second.start(Request((1,), GREEDY)).result().tokens) == 8
    assert opening.opened == ["a", "a"]


def test_the_least_recently_asked_of_those_that_answer_nothing_makes_room(
    opening: Opening, held: threading.Event
) -> None:
    with opening.pool("a", "b", "c", most_open=2) as pool:
        busy = pool.scheduler("a").start(Request((1,), GREEDY))
        pool.scheduler("b")
        pool.scheduler("c")  # b is idle, though a was asked before it
        assert list(pool.open_schedulers()) == ["a", "c"]
        held.set()
        assert busy.result().reason == "length"
        while pool.scheduler("a").counts().running:
            time.sleep(0.001)
        pool.scheduler("b")  # all are idle: c was asked before a
        assert list(pool.open_schedulers()) == ["a", "b"]


def test_where_all_models_answer_the_next_one_waits_for_the_end_of_an_answer(
    opening: Opening, held: threading.Event
) -> None:
    with opening.pool("a", "b", most_open=1) as pool:
        scheduler = pool.scheduler("a")
        answers = [in_thread(scheduler.start(Request((1, 2), GREEDY)).result) for _ in range(10)]
        thread, found = in_thread(lambda: pool.scheduler("b"))
        while pool.open_schedulers():
            time.sleep(0.001)
        assert wait_for_refusal(scheduler)
        assert opening.opened == ["a"]
        held.set()
        thread.join()
        for answered, completions in answers:
            answered.join()
            completion: Completion = completions[0]
            assert (len(completion.tokens), completion.reason) == (8, "length")
        assert opening.opened == ["a", "b"]
        assert found[0] is pool.scheduler("b")


def test_many_who_ask_at_once_open_a_model_once(opening: Opening) -> None:
    with opening.pool("a", "b") as pool:
        asked = [in_thread(lambda name=name: pool.scheduler(name)) for name in "ab" * 8]  # type: ignore[misc]
        for thread, _ in asked:
            thread.join()
        assert sorted(opening.opened) == ["a", "b"]
        assert len({id(found[0]) for _, found in asked}) == 2


def test_a_model_that_cannot_be_opened_harms_no_other(opening: Opening) -> None:
    def fails() -> Any:
        raise RunError("damaged")

    pool = ModelPool({"bad": ModelSource(fails), "good": opening.source("good")}, opened_first=["good", "bad"])
    with pool:
        assert not pool.is_ready
        with pytest.raises(RunError):
            pool.open_first()
        assert not pool.is_ready
        for _ in range(2):
            with pytest.raises(RunError):
                pool.scheduler("bad")
        assert len(pool.scheduler("good").start(Request((1,), GREEDY)).result().tokens) == 8


def test_it_is_ready_once_what_is_to_be_open_is_and_until_it_is_closed(opening: Opening, held: threading.Event) -> None:
    pool = opening.pool("a", "b", opened_first=["b"])
    assert not pool.is_ready
    pool.open_first()
    assert pool.is_ready
    assert opening.opened == ["b"]
    answer = pool.scheduler("b").start(Request((1,), GREEDY))
    thread, _ = in_thread(pool.close)
    while not pool.is_closing:
        time.sleep(0.001)
    assert not pool.is_ready
    with pytest.raises(ShutDownError):
        pool.scheduler("a")
    assert thread.is_alive()
    held.set()
    thread.join()
    assert answer.result().reason == "length"


def test_closed_without_patience_it_ends_what_is_under_way(opening: Opening, held: threading.Event) -> None:
    pool = opening.pool("a")
    answer = pool.scheduler("a").start(Request((1,), GREEDY))
    thread, _ = in_thread(lambda: pool.close(drain=True, seconds=0.01))
    while not pool.is_closing:
        time.sleep(0.001)
    time.sleep(0.05)
    held.set()
    thread.join()
    assert answer.result().reason in ("cancelled", "length")
    pool.close(drain=False)


def test_a_model_that_is_being_opened_when_the_pool_closes_is_not_kept() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> Any:
        begun.set()
        go_on.wait()
        return own("softmax")

    pool = ModelPool({"slow": ModelSource(slow)})
    found: list[Exception] = []

    def ask() -> None:
        try:
            pool.scheduler("slow")
        except ShutDownError as error:
            found.append(error)

    thread, _ = in_thread(ask)
    begun.wait()
    pool.close()
    go_on.set()
    thread.join()
    assert len(found) == 1
    assert not pool.open_schedulers()


def test_a_model_that_is_lent_takes_requests_until_it_is_given_back(opening: Opening) -> None:
    with opening.pool("a", "b", most_open=1) as pool:
        assert pool.lend("a") is None
        pool.scheduler("a")
        loan, again = pool.lend("a"), pool.lend("a")
        assert loan is not None
        assert again is not None
        thread, found = in_thread(lambda: pool.scheduler("b"))
        while pool.open_schedulers():
            time.sleep(0.001)
        assert len(loan.scheduler.start(Request((1,), GREEDY)).result().tokens) == 8
        again.give_back()
        again.give_back()
        assert len(loan.scheduler.start(Request((2,), GREEDY)).result().tokens) == 8
        assert opening.opened == ["a"]
        loan.give_back()
        thread.join()
        assert found[0] is pool.scheduler("b")
        assert wait_for_refusal(loan.scheduler)


def test_a_model_whose_borrower_asks_nothing_any_more_makes_room(
    opening: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moe_core.inference.model_pool.REST_SECONDS", 0.01)
    with opening.pool("a", "b", most_open=1) as pool:
        pool.scheduler("a")
        loan = pool.lend("a")
        assert loan is not None
        pool.scheduler("b")
        with pytest.raises(ShutDownError):
            loan.scheduler.start(Request((1,), GREEDY))
        loan.give_back()


def test_a_pool_that_closes_waits_for_what_is_lent_as_long_as_it_may(opening: Opening) -> None:
    pool = opening.pool("a")
    pool.scheduler("a")
    loan = pool.lend("a")
    assert loan is not None
    thread, _ = in_thread(pool.close)
    while not pool.is_closing:
        time.sleep(0.001)
    assert len(loan.scheduler.start(Request((1,), GREEDY)).result().tokens) == 8
    with pytest.raises(ShutDownError):
        pool.lend("a")
    assert thread.is_alive()
    pool.close(drain=True, seconds=0.01)
    with pytest.raises(ShutDownError):
        loan.scheduler.start(Request((1,), GREEDY))
    loan.give_back()
    thread.join()
