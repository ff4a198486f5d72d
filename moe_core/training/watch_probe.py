"""A text that a watched model reads now and then, so that the routing of the same tokens can be followed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from moe_core.errors import UsageError
from moe_core.inference.foreign_tokenizer import ForeignTokenizer
from moe_core.routing import RoutingTrace, capture
from moe_core.training.compiling import uncompiled

Probe = Mapping[str, Sequence[str | Sequence[int]]]
"""Texts, or token ids, by their domain."""
MOST_TOKENS = 50_000


@dataclass(frozen=True, eq=False)
class ProbeText:
    """Documents as token ids, each with its domain."""

    documents: list[NDArray[np.int64]]
    domain_ids: list[int]
    """Of each document, an index into `domains`."""
    domains: list[str]
    tokenizer: Any = None
    """For the text of the tokens; None = their numbers are shown."""

    @classmethod
    def of(cls, probe: Probe, tokenizer: Any = None) -> ProbeText:
        """The probe as `watch` is given it. Raises UsageError for one that cannot be read."""
        documents: list[NDArray[np.int64]] = []
        domain_ids: list[int] = []
        for number, (domain, texts) in enumerate(probe.items()):
            for text in [texts] if isinstance(texts, str) else texts:
                documents.append(_token_ids(text, tokenizer, domain))
                domain_ids.append(number)
        found = cls(documents, domain_ids, [str(domain) for domain in probe], tokenizer)
        if not 0 < found.num_tokens <= MOST_TOKENS:
            raise UsageError(
                f"the probe text has {found.num_tokens:,} tokens; expected 1 to {MOST_TOKENS:,}, as the model reads it "
                "again and again"
            )
        return found

    @property
    def num_tokens(self) -> int:
        """Of all documents."""
        return sum(map(len, self.documents))

    def read(self, model: nn.Module, source: str) -> RoutingTrace:
        """Where its tokens go, each document alone, in evaluation mode; the model is left as it was. Without logits.

        Raises UsageError where the model cannot read it, TraceError where it cannot be captured.
        """
        device = next(model.parameters()).device
        predicted: list[NDArray[np.int64]] = []
        with _evaluating(model), capture(model, keep_logits=False) as recorder:
            for ids in self.documents:
                try:
                    output = model(torch.from_numpy(ids)[None].to(device))
                except (IndexError, RuntimeError, ValueError, TypeError) as error:
                    reason = " ".join(str(error).split())[:200]
                    kind = type(error).__name__
                    raise UsageError(f"the model cannot read the probe text ({kind}: {reason})") from None
                logits = getattr(output, "logits", None)
                if logits is not None and logits.shape[:2] == (1, len(ids)):
                    predicted.append(logits.argmax(dim=-1).cpu().numpy().ravel())
        token_ids = np.concatenate(self.documents)
        predicted_ids = np.concatenate(predicted) if len(predicted) == len(self.documents) else None
        lengths = list(map(len, self.documents))
        return recorder.trace(
            token_ids=token_ids,
            document_ids=np.repeat(np.arange(len(lengths)), lengths),
            domain_ids=np.repeat(self.domain_ids, lengths),
            domains=self.domains,
            predicted_ids=predicted_ids,
            source=source,
            vocabulary=self._texts_of([token_ids] if predicted_ids is None else [token_ids, predicted_ids]),
        )

    def _texts_of(self, token_ids: Sequence[NDArray[np.int64]]) -> dict[int, str] | None:
        """The printable text of each token that occurs."""
        if self.tokenizer is None:
            return None
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        known = self.tokenizer if backend is None else ForeignTokenizer(backend)
        text_of = getattr(known, "token_text", None) or (lambda i: known.decode([i]))
        return {int(i): str(text_of(int(i))) for i in np.unique(np.concatenate(token_ids))}


def _token_ids(text: str | Sequence[int], tokenizer: Any, domain: str) -> NDArray[np.int64]:
    if isinstance(text, str):
        if tokenizer is None:
            raise UsageError(f"the probe of {domain!r} is text; give tokenizer=..., or token ids in its place")
        encoded = tokenizer.encode(text)
        text = getattr(encoded, "ids", encoded)
    ids = np.asarray(text)
    if ids.ndim != 1 or not len(ids) or ids.dtype.kind not in "iu" or ids.min() < 0:
        shown = str(text)[:60]
        raise UsageError(f"a probe of {domain!r} is {shown!r}; expected text, or token ids in a row, of 1 or more")
    return ids.astype(np.int64)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, and nothing compiled, whose hooks would be left out; then all as it was."""
    modes = [(module, module.training) for module in model.modules()]
    with ExitStack() as stack:
        stack.enter_context(uncompiled())
        stack.enter_context(torch.no_grad())
        try:
            model.eval()
            yield
        finally:
            for module, mode in modes:
                module.training = mode
