"""What is asked of a model that reads and writes text, whoever made it: a run of ours or a model of another library.

Types only. open.py makes such a model, own_model.py and huggingface.py are the two kinds there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from moe_core.data.tokenizer import TextTokenizer
from moe_core.errors import UsageError
from moe_core.inference.chat_template import ChatTemplate
from moe_core.inference.sampling import SamplingConfig


class Loaded(Protocol):
    """A model in eval mode with its tokenizer, as moe_core.runs.checkpoint.LoadedRun and
    moe_core.routing.instruments.huggingface.loading.HuggingFaceModel are; the former has a configuration, too."""

    @property
    def model(self) -> torch.nn.Module: ...
    @property
    def tokenizer(self) -> Any: ...


class ReadTokens(NamedTuple):
    """What is known after S tokens were read."""

    logits: torch.Tensor
    """[V] for the token after the last one read."""
    experts: npt.NDArray[np.int16]
    """[S, L, K] of the tokens read; -1 = unused slot."""
    scores: npt.NDArray[np.float32]
    """[S, L, K] their combine weights."""
    cache: Any
    """To read on from; None of texts that are read together, which share one."""
    all_logits: torch.Tensor | None = None
    """[S, V] for the token after each one read, where they were asked for."""
    drawn: tuple[int, float] | None = None
    """The next token and its loss, where the device has drawn it; `logits` are then those of the device, until the
    next pass."""


class Draw(NamedTuple):
    """How the token behind the one that is read is to be drawn."""

    sampling: SamplingConfig
    uniform: Callable[[], float]
    """The text's next random number in [0, 1); asked for only by who draws."""


class JoinedTexts(Protocol):
    """Several texts, each with a cache of its own length, that are read on together, one token of each in a pass."""

    def add(self, cache: Any) -> None:
        """Put a text that was read alone behind the others; its cache must not be used again."""

    def take(self, row: int) -> Any:
        """Take a text out, to be read on from alone: its cache. The texts behind it move up."""

    def read(self, token_ids: Sequence[int], draws: Sequence[Draw] = ()) -> list[ReadTokens]:
        """Append a token to each text. With `draws`, one for each, the device may draw the next ones."""

    def close(self) -> None:
        """No text is left that anybody wants."""


class Reader(Protocol):
    """Reads texts piece by piece, each with a cache of its own. Texts that do not share a pass are not mixed."""

    def read(self, token_ids: Sequence[int], cache: Any, *, all_logits: bool = False) -> ReadTokens:
        """Append token ids to those in a cache (None = to none), which must not be used again. Both together are at
        most `context_window` tokens."""

    @property
    def joins_from(self) -> int:
        """How many texts, under no intervention, are better read on joined than alone: 2, or 1 if one is, too."""

    def join(self, *, changed: bool = False) -> JoinedTexts:
        """None so far. Only for a model whose `reads_apart` is empty, as the two below. `changed`: they are read under
        an intervention."""

    def cut(self, cache: Any, length: int) -> Any:
        """A cache of the first `length` tokens, at least one, or None where it has forgotten what they need; the given
        one must not be used again."""

    def nbytes(self, cache: Any) -> int:
        """Bytes of memory that a cache takes."""


class LanguageModel(Protocol):
    """A model in eval mode that predicts the next token, and what has to be known of it. V: width of its logits."""

    @property
    def model(self) -> torch.nn.Module:
        """The module that capture and intervene take."""

    @property
    def tokenizer(self) -> TextTokenizer: ...

    @property
    def chat_template(self) -> ChatTemplate | None:
        """How its tokenizer writes a conversation; None of a base model."""

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
    def null_experts(self) -> int:
        """How many of them, the last ones, compute nothing."""

    @property
    def top_k(self) -> int:
        """K, experts a token is sent to."""

    @property
    def active_parameters(self) -> int:
        """Weights that a token passes."""

    @property
    def device(self) -> torch.device:
        """The device on which token ids are expected."""

    def logits(self, token_ids_BS: torch.Tensor) -> torch.Tensor:
        """int64 [B, S] -> [B, S, V]; each sequence alone, from its beginning."""

    @property
    def mixes_texts(self) -> bool:
        """Whether a token's experts depend on the texts that are read beside its own, and on padding."""

    @property
    def reads_apart(self) -> str:
        """Why each of its texts needs passes of its own, and a text's beginning one whole pass: "model x keeps ...".

        Empty where texts of unequal length can be read on together, piece by piece, and cut back.
        """

    def reading(self) -> AbstractContextManager[Reader]:
        """Open for as long as texts are read piece by piece; what watches the routers is then put there once.

        Each call of what it yields may come from another thread. Nothing else that the model reads meanwhile, in this
        thread or another one, is disturbed or mixed in.
        """


def check_token_ids(model: LanguageModel, token_ids: npt.ArrayLike) -> None:
    """Raise UsageError for an id the model cannot read; an accelerator would abort the whole program."""
    ids = np.asarray(token_ids)
    wrong = ids[(ids < 0) | (ids >= model.vocab_size)]
    if wrong.size:
        raise UsageError(
            f"token id {int(wrong.max())} is outside the {model.vocab_size:,} ids that {model.name} reads; "
            "expected the tokenizer that was made for it"
        )
