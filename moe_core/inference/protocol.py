"""One face for every model that reads and writes text: a run of ours, or a model of the transformers library.

    lm = language_model(load_run("demo"))            # or: language_model(huggingface.load(path))
    trace_text(lm, "The tenant shall"), generate(lm, "The tenant shall")

Everything in this folder takes either what was loaded or its language model. Making a language model of someone else's
reads its tokenizer and one token, which takes up to seconds: make it once and hand it on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from moe_core.data.tokenizer import TextTokenizer, Tokenizer
from moe_core.errors import UsageError

if TYPE_CHECKING:
    from moe_core.config import Config
    from moe_core.model.transformer import MoETransformer


class Loaded(Protocol):
    """A model in eval mode with its tokenizer, as moe_core.runs.checkpoint.LoadedRun and
    moe_core.routing.instruments.huggingface.load.HuggingFaceModel are; the former has a configuration, too."""

    @property
    def model(self) -> torch.nn.Module: ...
    @property
    def tokenizer(self) -> Any: ...


class ReadTokens(NamedTuple):
    """What is known after tokens were read."""

    logits: torch.Tensor
    """[V] for the token after the last one read."""
    experts: npt.NDArray[np.int16]
    """[L, K] of the last token read; -1 = unused slot."""
    scores: npt.NDArray[np.float32]
    """[L, K] combine weights of the last token read."""
    cache: Any
    """To read on from; see LanguageModel.read."""


class LanguageModel(Protocol):
    """A model in eval mode that predicts the next token, and what has to be known of it. V: width of its logits."""

    @property
    def model(self) -> torch.nn.Module:
        """What capture and intervene take."""

    @property
    def tokenizer(self) -> TextTokenizer: ...

    @property
    def name(self) -> str:
        """For people, such as "run demo, step 350"."""

    @property
    def context_window(self) -> int:
        """Tokens the model should see at once, at most."""

    @property
    def vocab_size(self) -> int:
        """V: token ids it can read and predict run from 0 to V - 1."""

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens with which it ends a text."""

    @property
    def moe_layers(self) -> Sequence[int]:
        """[L] numbers of the layers with experts, ascending."""

    @property
    def num_experts(self) -> int:
        """E, in each of them."""

    @property
    def top_k(self) -> int:
        """K, experts a token is sent to."""

    @property
    def device(self) -> torch.device:
        """Where token ids are expected."""

    def logits(self, token_ids_BS: torch.Tensor) -> torch.Tensor:
        """int64 [B, S] -> [B, S, V]; each sequence alone, from its beginning."""

    def read(self, token_ids: Sequence[int], cache: Any) -> ReadTokens:
        """Append tokens to those in `cache` (None = to none), which must not be used again.

        Both together are at most `context_window` tokens.
        """


@dataclass(frozen=True)
class OwnModel:
    """A model of ours."""

    model: MoETransformer
    tokenizer: Tokenizer
    name: str
    context_window: int

    @classmethod
    def of(cls, loaded: Any) -> OwnModel:
        """Of a LoadedRun, or anything with model, tokenizer and config.

        The window is the length the model was trained on, as far as its RoPE tables reach: angles beyond it were never
        learned. With windows that overlap by half, a 2-layer model trained at 64 tokens lost 0.02 nats per token more
        at windows of 128 than at 64, and 0.13 more at 512.
        """
        config: Config = loaded.config
        # A model that is still in training has no run of its own yet.
        run = getattr(loaded, "run", None)
        name = f"run {run.name}, step {getattr(loaded, 'step', 0)}" if run is not None else "model in memory"
        window = min(loaded.model.config.max_seq_len, config.training.seq_len)
        return cls(loaded.model, loaded.tokenizer, name, window)

    @property
    def vocab_size(self) -> int:
        return self.model.config.vocab_size

    @property
    def end_ids(self) -> frozenset[int]:
        return frozenset([self.tokenizer.end_of_text])

    @property
    def moe_layers(self) -> Sequence[int]:
        return self.model.config.moe_layers

    @property
    def num_experts(self) -> int:
        return self.model.config.num_experts

    @property
    def top_k(self) -> int:
        return self.model.config.top_k

    @property
    def device(self) -> torch.device:
        return self.model.embedding.weight.device

    def logits(self, token_ids_BS: torch.Tensor) -> torch.Tensor:
        """See LanguageModel."""
        logits_BSV: torch.Tensor = self.model(token_ids_BS).logits
        return logits_BSV

    def read(self, token_ids: Sequence[int], cache: Any) -> ReadTokens:
        """See LanguageModel."""
        from moe_core.model.kv_cache import KVCache

        if cache is None:
            weight = self.model.embedding.weight
            cache = KVCache(self.model.config, 1, self.context_window, weight.dtype, weight.device)
        output = self.model(torch.tensor([token_ids], device=self.device), cache=cache)
        # The same that capture records, without its checks for each token.
        routed = output.router_outputs
        none = torch.zeros(0, self.top_k)  # of a dense model
        experts = torch.stack([layer.router_indices[-1] for layer in routed]) if routed else none
        scores = torch.stack([layer.router_scores[-1] for layer in routed]) if routed else none
        return ReadTokens(
            logits=output.logits[0, -1],
            experts=experts.to(torch.int16).cpu().numpy(),
            scores=scores.float().cpu().numpy(),
            cache=cache,
        )


def language_model(loaded: Loaded | LanguageModel) -> LanguageModel:
    """The language model of what was loaded; one that is one already is given back.

    Raises UsageError or TraceError, in one line, for a model that does not continue text or cannot be captured.
    """
    from moe_core.inference.huggingface import HuggingFaceLanguageModel
    from moe_core.model.transformer import MoETransformer

    if isinstance(loaded, OwnModel | HuggingFaceLanguageModel):
        return loaded
    return OwnModel.of(loaded) if isinstance(loaded.model, MoETransformer) else HuggingFaceLanguageModel.of(loaded)


def own_model(loaded: Loaded | LanguageModel, what: str) -> OwnModel:
    """The same, for `what` looks between the layers of our own model. Raises UsageError for another one."""
    found = language_model(loaded)
    if not isinstance(found, OwnModel):
        raise UsageError(
            f"{what} needs the experts of a run of our own; {found.name} is another kind of model: measure the change "
            "of its loss with token_effects or ablation_map"
        )
    return found


def context_window(loaded: Loaded | LanguageModel) -> int:
    """Tokens the model should see at once, at most."""
    return language_model(loaded).context_window


def check_token_ids(model: LanguageModel, token_ids: npt.ArrayLike) -> None:
    """Raise UsageError for an id the model cannot read; an accelerator would abort the whole program."""
    ids = np.asarray(token_ids)
    if ids.size and (largest := int(ids.max())) >= model.vocab_size:
        raise UsageError(
            f"token id {largest} is outside the {model.vocab_size:,} ids that {model.name} reads; "
            "expected the tokenizer that was made for it"
        )
