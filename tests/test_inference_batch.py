"""Requests answered together get what they get alone: tokens, experts, and losses but for rounding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from routers_support import CAUSAL, model_with
from test_inference_tracing import tiny_loaded

from moe_core.errors import RunError
from moe_core.inference import sampling, small_passes
from moe_core.inference.batch import Batch
from moe_core.inference.engine import Engine, Event, Finished, GeneratedToken, PromptRead, Request
from moe_core.inference.kept_prefixes import KeptPrefixes
from moe_core.inference.mailbox import Mailbox
from moe_core.inference.own_model import OwnModel
from moe_core.inference.protocol import LanguageModel, ReadTokens
from moe_core.inference.row import Row
from moe_core.inference.sampling import SamplingConfig
from moe_core.inference.scheduler import Scheduler
from moe_core.routing import Intervention
from moe_core.routing.instruments import changed_choices

WINDOW = 20


@cache
def own(variant: str) -> LanguageModel:
    """A small model with this kind of router and a window that texts leave."""
    return OwnModel(model_with(variant), tiny_loaded().tokenizer, variant, WINDOW)


@cache
def foreign(family: str) -> LanguageModel:
    """A tiny model of a family of the transformers library, with ids for text."""
    pytest.importorskip("transformers", reason="transformers is missing: `make test` installs it")
    from bench.family_configs import tiny_model
    from moe_core.inference.open import language_model

    found = language_model(_Loaded(tiny_model(family), family))
    return replace(found, context_window=WINDOW)  # type: ignore[type-var]


@dataclass(frozen=True)
class _Loaded:
    model: torch.nn.Module
    name: str
    tokenizer: Any = None


def events_alone(model: LanguageModel, request: Request) -> list[Event]:
    return list(Engine(model).start(request))


def sent(mailbox: Mailbox) -> list[Event]:
    found = []
    while (event := mailbox.pop()) is not None:
        found.append(event)
    return found


def same(found: list[Event], expected: list[Event]) -> None:
    """Everything equal, numbers but for rounding."""
    assert [type(event) for event in found] == [type(event) for event in expected]
    for mine, theirs in zip(found, expected, strict=True):
        if isinstance(mine, Finished):
            assert mine == theirs
            continue
        assert isinstance(mine, PromptRead | GeneratedToken)
        assert isinstance(theirs, type(mine))
        np.testing.assert_array_equal(mine.experts, theirs.experts)
        np.testing.assert_allclose(mine.scores, theirs.scores, atol=1e-5)
        if isinstance(mine, GeneratedToken) and isinstance(theirs, GeneratedToken):
            assert (mine.token_id, mine.text) == (theirs.token_id, theirs.text)
            assert mine.loss == pytest.approx(theirs.loss, abs=1e-5)
        elif isinstance(mine, PromptRead) and isinstance(theirs, PromptRead):
            assert mine.token_ids == theirs.token_ids


CHANGES = [None, None, Intervention(ablate=((1, 0),)), Intervention(ablate=((1, 0),), mode="renormalise")]
RANDOM_REQUESTS = st.builds(
    Request,
    prompt=st.lists(st.integers(1, 90), min_size=1, max_size=2 * WINDOW).map(tuple),
    sampling=st.builds(
        SamplingConfig,
        max_new_tokens=st.integers(1, 2 * WINDOW),
        temperature=st.sampled_from([0.0, 0.7, 1.5]),
        top_k=st.sampled_from([0, 5]),
        seed=st.integers(0, 2**40),
    ),
    stop=st.sampled_from([(), ("e",), ("7", "12")]),
    intervention=st.sampled_from(CHANGES),
)
TIMETABLES = st.lists(
    st.tuples(st.integers(0, 25), RANDOM_REQUESTS, st.one_of(st.none(), st.integers(1, 30))), min_size=2, max_size=5
)
"""In which step a request joins, and in which it is cancelled, if it is."""


def answered_together(
    model: LanguageModel, timetable: list[tuple[int, Request, int | None]], piece: int
) -> list[list[Event]]:
    rows = [Engine(model).row(request, Mailbox()) for _, request, _ in timetable]
    with Batch(model, piece=piece) as batch:
        for step in range(1_000):
            for row, (joins, _, leaves) in zip(rows, timetable, strict=True):
                if joins == step:
                    batch.add(row)
                if leaves is not None and step == joins + leaves:
                    row.cancelled.set()
            for row in batch.step():
                row.tell_end()
            if all(row.ended is not None for row in rows):
                return [sent(row.mailbox) for row in rows]
    raise AssertionError("it did not end")


def check(model: LanguageModel, timetable: list[tuple[int, Request, int | None]], piece: int) -> None:
    found = answered_together(model, timetable, piece)
    for mine, (_, request, _) in zip(found, timetable, strict=True):
        expected = events_alone(model, request)
        last = mine[-1]
        assert isinstance(last, Finished)
        if last.reason == "cancelled":
            same(mine[:-1], expected[: len(mine) - 1])
        else:
            same(mine, expected)


@pytest.mark.parametrize("variant", CAUSAL)
@given(timetable=TIMETABLES, piece=st.integers(1, 30))
@settings(max_examples=4, derandomize=True)
def test_requests_that_join_and_leave_at_random_get_what_they_get_alone(
    variant: str, timetable: list[tuple[int, Request, int | None]], piece: int
) -> None:
    """Prompts beyond the window, texts that leave it, stop strings and interventions among them."""
    if variant.startswith("hash"):  # whose experts are given
        timetable = [(joins, replace(request, intervention=None), leaves) for joins, request, leaves in timetable]
    check(own(variant), timetable, piece)


TOGETHER = ("qwen3_moe", "olmoe", "deepseek_v3", "dbrx", "granitemoe")
TURNS = {"mixtral": "SlidingWindow", "gpt_oss": "SlidingWindow", "jamba": "Linear", "qwen3_next": "Linear"}


@pytest.mark.parametrize("family", [*TOGETHER, *TURNS])
@given(timetable=TIMETABLES, piece=st.integers(1, 30))
@settings(max_examples=3, derandomize=True)
def test_other_families_too_together_or_in_turns(
    family: str, timetable: list[tuple[int, Request, int | None]], piece: int
) -> None:
    model = foreign(family)
    assert (TURNS.get(family, "") in model.reads_apart) if family in TURNS else not model.reads_apart
    check(model, timetable, piece)


# ---- what shares a pass ----


@contextmanager
def passes(model: LanguageModel) -> Iterator[list[int]]:
    """Rows of each forward pass."""
    found: list[int] = []
    handle = model.model.register_forward_pre_hook(
        lambda _, args, kwargs: found.append(len(args[0] if args else kwargs["input_ids"])), with_kwargs=True
    )
    try:
        yield found
    finally:
        handle.remove()


def long(prompt: tuple[int, ...] = (1, 2, 3), tokens: int = 8, **more: Any) -> Request:
    return Request(prompt, SamplingConfig(max_new_tokens=tokens, temperature=1.5, seed=4), **more)


def run(model: LanguageModel, requests: list[Request], **options: Any) -> list[Row]:
    rows = [Engine(model).row(request, Mailbox()) for request in requests]
    with Batch(model, **options) as batch:
        for row in rows:
            batch.add(row)
        while len(batch):
            for row in batch.step():
                row.tell_end()
    return rows


def test_texts_being_written_share_a_pass_unless_their_interventions_differ() -> None:
    model = own("softmax")
    with passes(model) as rows:
        run(model, [long(), long((4, 5)), long((6,))])
    # A prompt a step: the first text has gone two tokens further when the last joins.
    assert sorted(rows, reverse=True) == [3] * 6 + [2] * 2 + [1] * (3 + 2)
    change = Intervention(ablate=((1, 0),))
    with passes(model) as rows:
        run(model, [long(), long((4, 5)), long((6,), intervention=change), long((7,), intervention=change)])
    assert max(rows) == 2
    with passes(model) as rows:
        run(model, [long(), long((4, 5), intervention=Intervention())])
    assert max(rows) == 2, "an intervention that changes nothing is none"


def test_a_family_that_cannot_share_says_why_and_takes_turns() -> None:
    model = foreign("jamba")
    assert model.reads_apart == (
        "model jamba keeps more than keys and values of what it has read (LinearAttentionLayer), which cannot be put "
        "together; its requests take turns"
    )
    with passes(model) as rows:
        run(model, [long(), long((4, 5))], piece=1)
    assert set(rows) == {1}
    assert len(rows) == 2 + 2 * 8, "a prompt is read at once, where a state does not go on from pieces"


def test_a_long_prompt_does_not_hold_up_the_others() -> None:
    model = own("softmax")
    first, second, third = (Engine(model).row(long(prompt), Mailbox()) for prompt in ((1,), tuple(range(1, 17)), (2,)))
    with Batch(model, piece=4) as batch:
        batch.add(first)
        batch.step()
        batch.add(second)
        batch.add(third)
        written = []
        for _ in range(8):
            batch.step()
            written.append((first.written, second.written, third.written))
    # 4 pieces of the long prompt in steps 1, 3, 4 and 5; the short one had its turn in step 2.
    assert written == [(1, 0, 0), (2, 0, 0), (3, 0, 1), (4, 0, 2), (5, 0, 3), (6, 1, 4), (7, 2, 5), (8, 3, 6)]


def test_every_kind_of_intervention_at_once_is_each_by_itself() -> None:
    """Some give a token another number of slots."""
    model = own("softmax")
    changes = [
        None,
        Intervention(top_k=1),
        Intervention(force=((2, 4),)),
        Intervention(temperature=3.0, top_k=4),
        Intervention(ablate=((0, 1), (2, 3)), mode="reroute"),
    ]
    requests = [long((1 + i, 2), tokens=30, intervention=change) for change in changes for i in range(2)]
    for row, request in zip(run(model, requests), requests, strict=True):
        same(sent(row.mailbox), events_alone(model, request))


# ---- faults ----


def test_a_request_whose_draw_fails_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = own("softmax")

    def failing(logits_V: torch.Tensor, config: SamplingConfig, random: torch.Generator) -> int:
        if config.seed == 99:
            raise RunError("the model's output is not finite")
        return draw(logits_V, config, random)

    draw = sampling.sample
    expected = events_alone(model, long((4, 5)))
    monkeypatch.setattr("moe_core.inference.row.sample", failing)
    bad = replace(long(), sampling=SamplingConfig(max_new_tokens=8, seed=99))
    found = run(model, [bad, long((4, 5))])
    same(sent(found[1].mailbox), expected)
    with pytest.raises(RunError, match="not finite"):
        sent(found[0].mailbox)


def test_an_intervention_that_fails_hurts_only_its_own_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is possible when the request comes, and fails in the pass after some tokens."""
    model = own("softmax")
    expected = events_alone(model, long())
    real, seen = changed_choices.stages_of, []

    def failing(*given: Any) -> Any:
        seen.append(given)
        if len(seen) > 6:
            raise RunError("an expert is gone")
        return real(*given)

    monkeypatch.setattr(changed_choices, "stages_of", failing)
    found = run(model, [long(), long((4, 5), intervention=CHANGES[2]), long((6,), intervention=CHANGES[2])])
    same(sent(found[0].mailbox), expected)
    for row in found[1:]:
        assert row.written > 0
        with pytest.raises(RunError, match="an expert is gone"):
            sent(row.mailbox)


def test_a_pass_that_fails_for_several_is_made_for_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = own("softmax")
    expected = [events_alone(model, request) for request in (long(), long((4, 5)))]
    forward = type(model.model).forward
    failures = []

    def no_memory(self: Any, token_ids: torch.Tensor, **options: Any) -> Any:
        if len(token_ids) > 1:
            forward(self, token_ids, **options)  # what it has written into the cache is of no more use
            failures.append(len(token_ids))
            raise MemoryError
        return forward(self, token_ids, **options)

    monkeypatch.setattr(type(model.model), "forward", no_memory)
    found = run(model, [long(), long((4, 5))])
    assert failures == [2]
    for row, events in zip(found, expected, strict=True):
        same(sent(row.mailbox), events)


# ---- threads ----


@pytest.mark.parametrize("model", [own("softmax"), own("document_pool")], ids=["softmax", "document_pool"])
def test_a_thread_goes_on_from_what_it_has_read_and_its_routing_is_told_in_full(model: LanguageModel) -> None:
    engine = Engine(model)
    first = list(engine.start(long(tokens=5, thread="a")))
    begun = first[0]
    assert isinstance(begun, PromptRead)
    written = [event.token_id for event in first if isinstance(event, GeneratedToken)]
    assert begun.reused == 0
    prompt = (*begun.token_ids, *written, 7, 8)
    with passes(model) as rows:
        again = list(engine.start(long(prompt, thread="a")))
    assert isinstance(again[0], PromptRead)
    assert again[0].reused == 3 + 5
    same(again, events_alone(model, long(prompt)))
    assert len(rows) == 1 + 8, "the rest of the prompt, and the tokens"
    # Asked once more: what was written since is cut off, the prompt's last token is read anew.
    once_more = list(engine.start(long(prompt, thread="a")))
    assert isinstance(once_more[0], PromptRead)
    assert once_more[0].reused == len(prompt) - 1
    same(once_more, events_alone(model, long(prompt)))
    for other in (long(prompt), long(prompt, thread="b"), long(prompt, thread="a", intervention=CHANGES[2])):
        started = next(engine.start(other))
        assert isinstance(started, PromptRead)
        assert started.reused == 0


def test_a_thread_of_another_family_goes_on_where_its_cache_can_be_cut() -> None:
    for family, spared in (("qwen3_moe", 7), ("jamba", 0)):
        model = foreign(family)
        engine = Engine(model)
        prompt = tuple(range(1, 9))
        engine.start(long(prompt, thread="a")).result()
        again = list(engine.start(long((*prompt[:7], 50, 51), thread="a")))
        assert isinstance(again[0], PromptRead)
        assert again[0].reused == spared
        same(again, events_alone(model, long((*prompt[:7], 50, 51))))


def test_rows_that_shared_a_cache_are_kept_each_by_itself() -> None:
    model = own("softmax")
    kept = KeptPrefixes(2**30)
    run(model, [long(tokens=6, thread="a"), long((4, 5), tokens=4, thread="b")], kept=kept)
    for prompt, thread in (((1, 2, 3, 9), "a"), ((4, 5, 9), "b")):
        found = run(model, [long(prompt, thread=thread)], kept=kept)[0]
        events = sent(found.mailbox)
        assert isinstance(events[0], PromptRead)
        assert events[0].reused == len(prompt) - 1
        same(events, events_alone(model, long(prompt)))


def test_kept_prefixes_stay_within_their_bound_and_the_least_recently_used_goes_first() -> None:
    model = own("softmax")
    engine = Engine(model)
    engine.start(long(thread="a")).result()
    one = engine.kept.nbytes
    small = Engine(model, kept_bytes=2 * one)
    for thread in ("a", "b", "a", "c"):
        small.start(long(thread=thread)).result()
    assert small.kept.nbytes == 2 * one
    reused = {}
    for thread in ("b", "a", "c"):
        event = next(small.start(long(thread=thread)))
        assert isinstance(event, PromptRead)
        reused[thread] = event.reused
    assert reused == {"b": 0, "a": 2, "c": 2}
    small.kept.forget("c")
    none = Engine(model, kept_bytes=0)
    none.start(long(thread="a")).result()
    assert none.kept.nbytes == 0


def test_no_hook_and_no_cache_is_left_when_the_last_row_has_gone() -> None:
    model = foreign("qwen3_moe")
    before = sum(len(part._forward_hooks) for part in model.model.modules())
    batch = Batch(model)
    rows = [Engine(model).row(request, Mailbox()) for request in (long(), long((4,)))]
    for row in rows:
        batch.add(row)
    batch.step()
    assert sum(len(part._forward_hooks) for part in model.model.modules()) > before
    for row in rows:
        row.cancelled.set()
    batch.step()
    assert len(batch) == 0
    assert sum(len(part._forward_hooks) for part in model.model.modules()) == before


def test_what_a_pass_has_read_is_told_to_who_counts() -> None:
    model = own("softmax")
    told: list[list[ReadTokens]] = []
    rows = run(model, [long(), long((4, 5))], watch=told.append)
    read = sum(len(each.experts) for found in told for each in found)
    assert read == sum(row.prompt_read + row.written for row in rows)


def test_a_small_pass_takes_one_thread_and_leaves_every_other_thread_what_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = own("softmax")
    monkeypatch.setattr(small_passes, "SMALL_PASS", 3 * model.active_parameters)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    passes: list[tuple[int, int]] = []
    watched = model.model.register_forward_hook(
        lambda _, given, __: passes.append((given[0].numel(), torch.get_num_threads()))
    )
    try:
        with Scheduler(Engine(model), slots=4) as scheduler:
            started = [scheduler.start(request) for request in (long(), long((4, 5)), long(tuple(range(1, 12))))]
            assert all(generation.result().tokens for generation in started)
        list(Engine(model).start(long()))
        assert torch.get_num_threads() == 2
    finally:
        watched.remove()
        torch.set_num_threads(before)
    assert {(tokens <= 3, count) for tokens, count in passes} == {(True, 1), (False, 2)}


def test_weights_that_a_token_passes_are_told_of_a_foreign_model_too() -> None:
    model = foreign("mixtral")
    weights = dict(model.model.named_parameters())
    experts = sum(weight.numel() for name, weight in weights.items() if ".experts." in name)
    everything = sum(weight.numel() for weight in weights.values())
    assert 0 < experts < everything
    assert model.active_parameters == everything - experts * (model.num_experts - model.top_k) // model.num_experts
