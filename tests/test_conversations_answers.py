"""Answers are written in the background, kept as they come, stopped, compared, and say what went wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moe_core.conversations import answers as module
from moe_core.conversations.answer_verdict import answer_verdict, busiest_by_chance, busiest_verdict, independent_tokens
from moe_core.conversations.answers import Answers, fitted_prompt
from moe_core.conversations.database import FILE
from moe_core.conversations.store import Conversations
from moe_core.conversations.thread_files import json_of, markdown_of
from moe_core.conversations.threads import Answer, Message, Settings, WrittenTokens
from moe_core.errors import NoSpaceError, RunError, UsageError
from moe_core.inference.chat_format import Message as Said
from moe_core.inference.chat_format import chat_prompt
from moe_core.inference.engine import Engine, Request
from moe_core.inference.model_pool import ModelPool, ModelSource
from moe_core.inference.open import open_run
from moe_core.inference.own_model import OwnModel
from moe_core.inference.sampling import SamplingConfig
from moe_core.routing.instruments.change import Change

SOON = 120.0
WINDOW = 256
TINY = Settings("tiny", max_new_tokens=40, seed=3)
FOREVER = Settings("tiny", max_new_tokens=1_000_000, temperature=0)


def wide(trained_root: Path) -> OwnModel:
    """The tiny run with a window that a few messages fit."""
    model = open_run("tiny", trained_root)
    assert isinstance(model, OwnModel)
    return replace(model, context_window=WINDOW)


@pytest.fixture(scope="module")
def pool(trained_root: Path) -> Iterator[ModelPool]:
    with ModelPool({"tiny": ModelSource(lambda: wide(trained_root))}) as pool:
        yield pool


@pytest.fixture
def kept(tmp_path: Path) -> Conversations:
    return Conversations(tmp_path / FILE)


@pytest.fixture
def answers(kept: Conversations, pool: ModelPool, monkeypatch: pytest.MonkeyPatch) -> Iterator[Answers]:
    monkeypatch.setattr(module, "KEEP_SECONDS", 0.02)
    made = Answers(kept, pool)
    yield made
    made.close()


def last(kept: Conversations, thread: str) -> Message:
    conversation = kept.conversation(thread)
    assert conversation is not None
    return conversation.messages[-1]


def facts(message: Message) -> Answer:
    assert message.answer is not None
    return message.answer


def test_an_answer_is_what_the_engine_writes_for_the_same_messages(
    kept: Conversations, answers: Answers, trained_root: Path
) -> None:
    thread = kept.new_thread(TINY)
    answers.ask(kept.say(thread, "The court", None), TINY)
    answers.wait(SOON)
    first = last(kept, thread)
    answers.ask(kept.say(thread, "and then", first.id), TINY)
    answers.wait(SOON)

    model = wide(trained_root)
    said = [Said("user", "The court"), Said("assistant", first.text), Said("user", "and then")]
    prompt = chat_prompt(model, said)
    request = Request(prompt.token_ids, SamplingConfig(40, seed=3), stop=prompt.stop)
    expected = Engine(model).start(request).result()
    found = last(kept, thread)
    assert (found.text, facts(found).ending) == (expected.text, expected.reason)
    tokens = kept.tokens(found.id)
    assert tokens is not None
    assert tokens.token_ids.tolist() == [token.token_id for token in expected.tokens]
    assert np.array_equal(tokens.experts, np.stack([token.experts for token in expected.tokens]))
    assert np.abs(tokens.weights - np.stack([token.scores for token in expected.tokens])).max() < 1e-3
    assert np.abs(tokens.losses - [token.loss for token in expected.tokens]).max() < 1e-3
    assert b"".join(tokens.pieces) == b"".join(model.tokenizer.token_bytes(i) for i in tokens.token_ids.tolist())
    answer = facts(found)
    assert answer.prompt_tokens == len(prompt.token_ids)
    assert answer.writer is not None
    assert (answer.writer.name, answer.writer.layers, answer.writer.answers) == ("run tiny, step 40", (0, 1), False)
    assert answer.first_seconds > 0


def test_whoever_looks_sees_it_grow_and_can_stop_it(kept: Conversations, answers: Answers) -> None:
    thread = kept.new_thread(FOREVER)
    message = answers.ask(kept.say(thread, "The court", None), FOREVER)
    other = Conversations(kept.path)  # as another process has it
    seen = [0]
    while len(seen) < 4:
        count = facts(last(other, thread)).tokens
        seen += [count] if count > seen[-1] else []
    assert facts(last(other, thread)).ending is None
    other.want_stop(message)
    answers.wait(SOON)
    stopped = last(kept, thread)
    assert facts(stopped).ending == "cancelled"
    assert facts(stopped).tokens >= seen[-1]
    tokens = kept.tokens(message)
    assert tokens is not None
    assert len(tokens.token_ids) == facts(stopped).tokens


def test_an_answer_goes_on_without_who_asked_and_ends_unfinished_with_the_program(
    kept: Conversations, answers: Answers
) -> None:
    thread = kept.new_thread(FOREVER)
    question = kept.say(thread, "The court", None)
    asker = threading.Thread(target=answers.ask, args=(question, FOREVER))
    asker.start()
    asker.join()
    while not facts(last(kept, thread)).tokens:
        pass
    answers.close()
    assert facts(last(kept, thread)).ending == "interrupted"
    assert last(kept, thread).text


def test_a_deleted_thread_is_written_no_further_and_leaves_nothing_in_memory(
    kept: Conversations, answers: Answers, pool: ModelPool
) -> None:
    thread = kept.new_thread(FOREVER)
    answers.ask(kept.say(thread, "The court", None), FOREVER)
    while not facts(last(kept, thread)).tokens:
        pass
    answers.delete(thread)
    answers.wait(SOON)
    assert kept.conversation(thread) is None
    scheduler = pool.scheduler("tiny")
    assert scheduler.counts().running == 0
    assert scheduler.engine.kept.take(Request("x", thread=thread)) is None


def test_without_an_expert_the_first_answer_stays_and_the_other_stands_beside(
    kept: Conversations, answers: Answers
) -> None:
    thread = kept.new_thread(TINY)
    question = kept.say(thread, "The court", None)
    message = answers.ask(question, TINY)
    answers.wait(SOON)
    answers.ask(question, TINY, Change(1, 2, "zero"), message)
    answers.ask(question, TINY, Change(1, 3, "reroute"), message)
    answers.wait(SOON)
    shown = last(kept, thread)
    assert shown.id == message
    assert [facts(one).change for one in shown.compared] == [Change(1, 2, "zero"), Change(1, 3, "reroute")]
    for one, expert in zip(shown.compared, (2, 3), strict=True):
        tokens = kept.tokens(one.id)
        assert tokens is not None
        assert not (tokens.experts[:, 1] == expert).any()
    plain = kept.tokens(message)
    assert plain is not None
    assert (plain.experts[:, 1] == 2).any()


@pytest.mark.parametrize(
    ("text", "settings", "says"),
    [
        ("y " * 30_000, TINY, f"{WINDOW} at once (its context window)"),
        ("text", Settings("nobody"), "'nobody'"),
    ],
)
def test_what_goes_wrong_is_told_in_the_answer_and_the_message_is_kept(
    kept: Conversations, answers: Answers, text: str, settings: Settings, says: str
) -> None:
    thread = kept.new_thread(settings)
    answers.ask(kept.say(thread, text, None), settings)
    answers.wait(SOON)
    failed = facts(last(kept, thread))
    assert failed.ending == "failed"
    assert says in failed.error
    assert "\n" not in failed.error
    conversation = kept.conversation(thread)
    assert conversation is not None
    assert conversation.messages[0].text == text


def test_settings_out_of_range_are_refused_before_anything_is_kept(kept: Conversations, answers: Answers) -> None:
    thread = kept.new_thread(TINY)
    question = kept.say(thread, "text", None)
    with pytest.raises(UsageError, match="temperature = nan"):
        answers.ask(question, Settings("tiny", temperature=float("nan")))
    assert last(kept, thread).id == question


def test_a_full_disk_for_a_moment_loses_nothing(
    kept: Conversations, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, refused = kept.add, []

    def full_at_first(*arguments: object) -> bool:
        if len(refused) < 3:
            refused.append(arguments)
            raise NoSpaceError("the disk is full")
        return add(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(kept, "add", full_at_first)
    thread = kept.new_thread(FOREVER)
    message = answers.ask(kept.say(thread, "The court", None), FOREVER)
    while facts(last(kept, thread)).tokens < 5:
        pass
    answers.stop(message)
    answers.wait(SOON)
    tokens = kept.tokens(message)
    assert tokens is not None
    assert len(tokens.token_ids) == facts(last(kept, thread)).tokens
    assert len(refused) == 3


def test_a_long_thread_loses_its_beginning_and_turns_are_joined(kept: Conversations, trained_root: Path) -> None:
    model = wide(trained_root)
    thread = kept.new_thread(TINY)
    parent = None
    for number in range(40):
        parent = kept.say(thread, f"message {number} " + "word " * 10, parent)
        if number % 2:
            parent = kept.begin_answer(parent, TINY)
            kept.add(parent, f"answer {number}", None, module.Progress())
    assert parent is not None
    path = kept.path_to(parent)[:-1]
    prompt, left_out = fitted_prompt(model, path, Settings("tiny", system="Be brief."))
    assert len(prompt.token_ids) <= WINDOW // 2
    text = b"".join(model.tokenizer.token_bytes(i) for i in prompt.token_ids[1:]).decode()
    assert text.startswith("System: Be brief.\nUser: message")
    assert "message 38" in text
    assert "message 39" in text
    assert "message 0 " not in text
    assert text.count("User:") == text.count("Assistant:")
    assert 0 < left_out < len(path)
    with pytest.raises(RunError, match="no message"):
        fitted_prompt(model, [], TINY)


def test_a_thread_is_exported_word_for_word(kept: Conversations, answers: Answers) -> None:
    thread = kept.new_thread(TINY, "# A `name`")
    hostile = "<script>alert(1)</script>\n```\n# no heading\n````\n![x](http://e.example/x)"
    question = kept.say(thread, hostile, None)
    message = answers.ask(question, TINY)
    answers.wait(SOON)
    answers.ask(question, TINY, Change(1, 2, "zero"), message)
    answers.wait(SOON)
    conversation = kept.conversation(thread)
    assert conversation is not None
    markdown = markdown_of(conversation)
    assert f"`````text\n{hostile}\n`````" in markdown
    assert markdown.startswith("# \\# A \\`name\\`")
    assert "### The same run tiny, step 40 without expert 2 of layer 1" in markdown
    found = json.loads(json_of(conversation, kept))
    assert [one["role"] for one in found["messages"]] == ["user", "assistant"]
    assert found["messages"][0]["text"] == hostile
    answer = found["messages"][1]
    assert answer["answer"]["settings"]["seed"] == 3
    assert np.shape(answer["tokens"]["experts"]) == (answer["answer"]["tokens"], 2, 2)
    assert answer["compared"][0]["answer"]["change"] == "without expert 2 of layer 1"


def tokens_with(first: list[int], num_experts: int = 8) -> WrittenTokens:
    """One layer, two slots, of which the second has the larger weight."""
    S = len(first)
    experts = np.stack([(np.array(first) + 1) % num_experts, first], axis=1)[:, None].astype(np.int16)
    weights = np.tile(np.array([0.3, 0.7], np.float32), (S, 1, 1))
    return WrittenTokens(np.zeros(S, np.int32), (b"",) * S, experts, weights, np.zeros(S, np.float32))


def test_the_verdict_holds_the_busiest_expert_against_the_busiest_by_chance() -> None:
    random = np.random.default_rng(0)
    even = random.integers(0, 8, 400).tolist()
    assert "no expert wrote more than chance explains" in busiest_verdict(tokens_with(even), 0, 4, 8)
    often = np.where(random.random(400) < 0.3, 5, random.integers(0, 8, 400)).tolist()
    verdict = busiest_verdict(tokens_with(often), 0, 4, 8)
    assert verdict.startswith("In layer 4 expert 5 wrote most: first choice of 3")
    assert "cannot be told" in busiest_verdict(tokens_with(often[:29]), 0, 4, 8)
    # The same number of tokens in runs of 50 tell as much as 8 of them.
    runs = np.repeat(random.integers(0, 8, 8), 50).tolist()
    assert "cannot be told" in busiest_verdict(tokens_with(runs), 0, 4, 8)
    silent = tokens_with([0] * 50)
    nothing = WrittenTokens(silent.token_ids, silent.pieces, silent.experts * 0 - 1, silent.weights * 0, silent.losses)
    assert busiest_verdict(nothing, 0, 4, 8) == "No token of it went through an expert of layer 4."


def test_chance_and_independence_are_what_they_are_called() -> None:
    limit = busiest_by_chance(100, 8)
    draws = np.random.default_rng(7).multinomial(100, np.full(8, 1 / 8), size=4000).max(axis=1) / 100
    assert 0.985 < (draws <= limit).mean() <= 1
    random = np.random.default_rng(1)
    assert independent_tokens(random.random(2000) < 0.3) > 1300
    assert independent_tokens(np.repeat(random.random(200) < 0.3, 10)) < 400
    assert independent_tokens(np.ones(50, np.bool_)) == 50
    assert busiest_by_chance(60, 1) == 1


def test_the_sentence_says_what_is_known(kept: Conversations, answers: Answers) -> None:
    thread = kept.new_thread(TINY)
    message = answers.ask(kept.say(thread, "The court", None), TINY)
    answers.wait(SOON)
    answer, tokens = facts(last(kept, thread)), kept.tokens(message)
    assert answer_verdict(answer, tokens, 1).startswith(f"Run tiny, step 40 wrote {answer.tokens} tokens at ")
    assert "layer 1" in answer_verdict(answer, tokens, 1)
    assert "layer" not in answer_verdict(answer, tokens, 7)
