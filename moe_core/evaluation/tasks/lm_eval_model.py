"""A model of ours as lm-evaluation-harness wants it, so that its tasks read what it cannot load. Needs lm-eval.

    import lm_eval
    lm_eval.simple_evaluate(MoescopeLM(language_model(load_run("demo"))), tasks=["arc_easy"])

Runs whose architecture the transformers library has can also be exported and scored there (docs/lm_eval); both ways
give the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import TemplateLM

from moe_core.errors import UsageError
from moe_core.evaluation.tasks.likelihood import Continuation, likelihoods
from moe_core.inference.engine import Engine, Request
from moe_core.inference.protocol import LanguageModel
from moe_core.inference.sampling import SamplingConfig
from moe_core.progress import Progress, silent

MAX_NEW_TOKENS = 256
"""The limit if the task names none, as in lm-eval's own models."""


class MoescopeLM(TemplateLM):  # type: ignore[misc]
    """Log-likelihoods and greedy text of a LanguageModel; every text begins with the end-of-text it was trained with.

    Raises UsageError for a model that has no such token: lm-eval scores a text from its first token on.
    """

    def __init__(self, model: LanguageModel, progress: Progress = silent) -> None:
        super().__init__()
        if model.tokenizer.end_of_text is None:
            raise UsageError(f"{model.name} has no token that begins a text; lm-eval needs one to score a first token")
        self._model, self._progress = model, progress
        self._begin: int = model.tokenizer.end_of_text

    @property
    def eot_token_id(self) -> int:
        """The token that stands before a text."""
        return self._begin

    @property
    def max_length(self) -> int:
        """Tokens the model should see at once."""
        return self._model.context_window

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:  # noqa: ARG002
        """Ids of the text and of nothing else; what begins it is put before it where it is scored."""
        return self._model.tokenizer.encode(string)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:  # noqa: ARG002
        """ln p of whole texts."""
        pairs = [Continuation([self._begin], self.tok_encode(request.args[0])) for request in requests]
        return [found.log_probability for found in likelihoods(self._model, pairs, self._progress)]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002
        """What greedy decoding writes, up to the first of the task's stops. Raises UsageError for sampling."""
        texts = []
        for number, request in enumerate(requests):
            self._progress("answering", number, len(requests))
            prompt, wanted = request.args
            if wanted.get("do_sample") or wanted.get("temperature"):
                raise UsageError("a task that samples its answers cannot be scored here; expected greedy decoding")
            stops = wanted.get("until") or []
            texts.append(
                self._write(prompt, [stops] if isinstance(stops, str) else stops, wanted.get("max_gen_toks"))
            )  # fmt: skip
        return texts

    def _write(self, prompt: str, stops: Sequence[str], most: int | None) -> str:
        sampling = SamplingConfig(max_new_tokens=most or MAX_NEW_TOKENS, temperature=0.0)
        request = Request(prompt, sampling, stop=tuple(stop for stop in stops if stop))
        return Engine(self._model).start(request).result().text

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = [
            Continuation(context if context[:1] == [self._begin] else [self._begin, *context], ids)
            for _, context, ids in requests
        ]
        return [(one.log_probability, one.greedy) for one in likelihoods(self._model, pairs, self._progress)]
