"""Texts scored over HTTP as lm-evaluation-harness asks for it: the losses are those of `--evaluate`."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import httpx2
import pytest
from api_support import Served

from moe_core.data.document import Document
from moe_core.data.tokens import TokenDataset
from moe_core.evaluation.loss import evaluate_loss
from moe_core.inference.requests import prompt_ids

TEXTS = ("The tenant shall", "def f(x): x", "rain and wind")
"""Each fits the tiny run's window of 32 tokens with its begin of text and the token that lm-eval lets be written."""


def lm_eval_request(prompts: list[list[int]]) -> dict[str, Any]:
    """What lm-eval 0.4.13 sends to score texts (LocalCompletionsAPI._create_payload)."""
    return {
        "model": "tiny",
        "prompt": prompts,
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }


def bits_per_byte(nats: float, texts: tuple[str, ...] = TEXTS) -> float:
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)


def own_bits_per_byte(api: Served) -> float:
    model = api.scheduler.engine.model
    documents = [Document(text, "d", "s", "") for text in TEXTS]
    dataset = TokenDataset.build(documents, model.tokenizer, ["d"])
    return evaluate_loss(model.model, dataset, seq_len=model.context_window).bits_per_byte  # type: ignore[arg-type]


def test_lm_evals_request_gives_the_bits_per_byte_of_our_own_evaluation(api: Served) -> None:
    model = api.scheduler.engine.model
    prompts = [prompt_ids(model, text) for text in TEXTS]
    answer = httpx2.post(f"{api.address}/v1/completions", json=lm_eval_request(prompts), timeout=60)
    assert answer.status_code == 200, answer.text
    nats, greedy = 0.0, 0
    for choice, prompt in zip(answer.json()["choices"], prompts, strict=True):
        # As LocalCompletionsAPI.parse_logprobs does: what was written, always one token, is cut off.
        losses = choice["logprobs"]["token_logprobs"][1:-1]
        likeliest = choice["logprobs"]["top_logprobs"][1:-1]
        assert len(losses) == len(prompt) - 1
        nats -= sum(losses)
        greedy += sum(loss == max(top.values()) for loss, top in zip(losses, likeliest, strict=True))
    assert bits_per_byte(nats) == pytest.approx(own_bits_per_byte(api), abs=1e-4)
    assert greedy > 0


def test_a_token_is_always_written_even_where_the_model_ends_the_text(api: Served) -> None:
    """lm-eval cuts one token off, whatever it is; where none was written it would cut off one of the text."""
    model = api.scheduler.engine.model
    ended = 0
    for seed in range(40):
        asked = {**lm_eval_request([[0, 5]]), "temperature": 2, "seed": seed}
        found = httpx2.post(f"{api.address}/v1/completions", json=asked, timeout=60).json()
        names = found["choices"][0]["logprobs"]["tokens"]
        assert len(names) == 3
        ended += names[-1] == model.tokenizer.token_text(0)
    for seed in range(400):
        if ended:
            break
        asked = {"model": "tiny", "prompt": "x", "max_tokens": 20, "logprobs": 0, "seed": seed}
        found = httpx2.post(f"{api.address}/v1/completions", json=asked, timeout=60).json()
        choice = found["choices"][0]
        ended += choice["finish_reason"] == "stop"
        if choice["finish_reason"] == "stop":
            assert choice["logprobs"]["tokens"][-1] == "<|endoftext|>"
            assert found["usage"]["completion_tokens"] == len(choice["logprobs"]["tokens"])
            assert "<|endoftext|>" not in choice["text"]
    assert ended


def test_the_tokenizer_that_lm_eval_looks_for_is_the_models(api: Served) -> None:
    model = api.scheduler.engine.model
    info = httpx2.get(f"{api.address}/tokenizer_info").json()
    assert (info["bos_token"], info["eos_token"]) == ("<|endoftext|>", "<|endoftext|>")

    def tokenize(**asked: Any) -> list[int]:
        found = httpx2.post(f"{api.address}/tokenize", json=asked).json()
        assert (found["count"], found["max_model_len"]) == (len(found["tokens"]), 32)
        ids: list[int] = found["tokens"]
        return ids

    assert tokenize(prompt="The tenant", add_special_tokens=False) == model.tokenizer.encode("The tenant")
    assert tokenize(prompt="The tenant") == prompt_ids(model, "The tenant")
    assert tokenize(prompt=info["eos_token"], add_special_tokens=False) == [0], "its name alone stands for it"
    for text in ("<|endoftext|> ", "a <|endoftext|>"):
        assert 0 not in tokenize(prompt=text, add_special_tokens=False)
    assert 0 not in tokenize(prompt="<|endoftext|>")[1:]
    assert 0 not in tokenize(messages=[{"role": "user", "content": "<|endoftext|>"}])[1:]
    ids = prompt_ids(model, "The tenänt")
    assert httpx2.post(f"{api.address}/detokenize", json={"tokens": ids}).json() == {"prompt": "The tenänt"}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed (docs/evaluation.md)")
@pytest.mark.parametrize("backend", ["auto", None])
def test_lm_eval_itself_gives_the_same(backend: str | None, api: Served, tmp_path: Path) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    if backend is None:
        backend = "huggingface"
        transformers = pytest.importorskip("transformers", reason="transformers is missing: `make test` installs it")
        api.scheduler.engine.model.tokenizer.save(tmp_path / "tokenizer.json")  # type: ignore[attr-defined]
        fast = transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(tmp_path / "tokenizer.json"), bos_token="<|endoftext|>", eos_token="<|endoftext|>"
        )
        fast.save_pretrained(tmp_path)
    model = LocalCompletionsAPI(
        model="tiny",
        base_url=f"{api.address}/v1/completions",
        tokenizer_backend=backend,
        tokenizer=str(tmp_path) if backend == "huggingface" else None,
        max_length=32,
        num_concurrent=1,
        batch_size=2,
    )
    requests = [Instance("loglikelihood_rolling", {}, (text,), number) for number, text in enumerate(TEXTS)]
    found = model.loglikelihood_rolling(requests)
    assert bits_per_byte(-sum(found)) == pytest.approx(own_bits_per_byte(api), abs=1e-3)
