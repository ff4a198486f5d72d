"""What the model expected in a prompt, and where it ended a text: for whoever scores texts over the engine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_inference_batch import foreign, own

from moe_core.inference.engine import EndToken, Engine, Finished, GeneratedToken, PromptRead, Request
from moe_core.inference.protocol import LanguageModel
from moe_core.inference.sampling import SamplingConfig
from moe_core.inference.scheduler import Scheduler

LONG = SamplingConfig(max_new_tokens=40, temperature=1.0, seed=5)
MODELS = [own("softmax"), foreign("qwen3_moe"), foreign("jamba")]


@pytest.mark.parametrize("model", MODELS, ids=["own", "qwen3_moe", "jamba"])
@pytest.mark.parametrize("piece", [1, 3, 256])
def test_a_prompt_that_is_scored_tells_the_losses_of_its_own_logits(piece: int, model: LanguageModel) -> None:
    token_ids = (5, 9, 2, 27, 31, 8, 8, 12)
    request = Request(token_ids, replace(LONG, max_new_tokens=1), likeliest=3, score_prompt=True)
    with Scheduler(Engine(model), piece=piece) as scheduler:
        (prompt, *_) = scheduler.start(request)
    assert isinstance(prompt, PromptRead)
    with torch.inference_mode():
        expected_SV = model.logits(torch.tensor([token_ids], device=model.device))[0, :-1].double().log_softmax(-1)
    np.testing.assert_allclose(prompt.losses, -expected_SV[range(7), token_ids[1:]].numpy(), atol=1e-5)
    top = expected_SV.topk(3)
    for place, likeliest in enumerate(prompt.likeliest):
        assert [token_id for token_id, _ in likeliest] == top.indices[place].tolist()
        np.testing.assert_allclose([logprob for _, logprob in likeliest], top.values[place].numpy(), atol=1e-5)
    (unasked, *_) = Engine(model).start(replace(request, score_prompt=False))
    assert isinstance(unasked, PromptRead)
    assert (unasked.losses, unasked.likeliest) == ((), ())


def test_a_thread_does_not_keep_a_prompt_from_being_scored() -> None:
    request = Request((5, 9, 2, 77), replace(LONG, max_new_tokens=2), thread="t", score_prompt=True)
    with Scheduler(Engine(own("softmax"))) as scheduler:
        first, second = (next(iter(list(scheduler.start(request)))) for _ in range(2))
    assert isinstance(first, PromptRead)
    assert isinstance(second, PromptRead)
    assert len(first.losses) == 3
    assert (second.losses, second.reused) == (first.losses, 0)


def test_the_token_that_ends_a_text_is_told_at_the_end() -> None:
    model = foreign("qwen3_moe")
    request = Request((5, 9), replace(LONG, max_new_tokens=1, temperature=0), likeliest=2)
    (_, token, _) = Engine(model).start(request)
    assert isinstance(token, GeneratedToken)
    ending = replace(model, end_ids=frozenset([token.token_id]))  # type: ignore[type-var]
    *_, last = Engine(ending).start(request)
    assert isinstance(last, Finished)
    assert last.reason == "end of text"
    assert last.end_token == EndToken(token.token_id, token.loss, token.likeliest)
