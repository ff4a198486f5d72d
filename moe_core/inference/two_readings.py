"""The same text through one model as it is and changed: another precision of its numbers, or weights of fewer bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from moe_core.data.tokens import TokenDataset
from moe_core.errors import UsageError
from moe_core.inference.open import open_huggingface, open_run
from moe_core.inference.protocol import LanguageModel, check_token_ids
from moe_core.inference.rounding import Rounded, Rounding, round_in_place
from moe_core.inference.subjects import Live
from moe_core.inference.tracing import TracedText, trace_dataset
from moe_core.progress import Progress, silent
from moe_core.routing import RoutingTrace
from moe_core.runs import RunFolder


@dataclass(frozen=True)
class Variant:
    """One way to read: the precision of the numbers, and what is done to the weights."""

    dtype: str = "auto"
    """One of device.DTYPES."""
    rounding: Rounding | None = None

    @property
    def name(self) -> str:
        """Such as "bfloat16", "4 bits", "bfloat16, 4 bits"; "as saved" where nothing is changed."""
        parts = [*([] if self.dtype == "auto" else [self.dtype]), *([self.rounding.name] if self.rounding else [])]
        return ", ".join(parts) or "as saved"


@dataclass(frozen=True, eq=False)
class Reading:
    """What came of it."""

    variant: Variant
    dtype: str
    """In which it was really read, such as "float32"."""
    text: TracedText
    rounded: Rounded | None
    """None where no weight was rounded."""

    @property
    def name(self) -> str:
        """The precision, and the bits where they are fewer."""
        return self.dtype if self.variant.rounding is None else f"{self.dtype}, {self.variant.rounding.name}"


def read_twice(
    subject: Live,
    text: Callable[[LanguageModel], TokenDataset],
    first: Variant,
    second: Variant,
    *,
    device: str = "auto",
    progress: Progress = silent,
) -> tuple[Reading, Reading]:
    """Read the text that `text` makes for a model in two ways, one after the other.

    The model is opened for it and closed behind it: what others have open of it stays as it is. One is in memory at a
    time; where only the weights differ it is read once from disk, and they are rounded in place after the first
    reading. `device` is that of a run; a model of the transformers library has its own. `progress` has a stage for each
    step. Raises MoescopeError.
    """
    model = _opened(subject, first.dtype, device)
    dataset = text(model)
    one = _read(model, dataset, first, "reading once", progress)
    if first.rounding is not None or first.dtype != second.dtype:
        del model  # the next one needs its memory
        model = _opened(subject, second.dtype, device)
    return one, _read(model, dataset, second, "reading again", progress)


def _read(model: LanguageModel, dataset: TokenDataset, variant: Variant, stage: str, progress: Progress) -> Reading:
    found = None if variant.rounding is None else round_in_place(model.model, variant.rounding, progress)

    def reached(named: str, done: int, total: int) -> None:
        del named
        progress(stage, done, total)

    traced = trace_dataset(model, dataset, reached)
    return Reading(variant, str(next(model.model.parameters()).dtype).removeprefix("torch."), traced, found)


def _opened(subject: Live, dtype: str, device: str) -> LanguageModel:
    if isinstance(subject, RunFolder):
        return open_run(subject.name, subject.root, device=device, dtype=dtype)
    return open_huggingface(
        subject.where, device=subject.device, dtype=dtype, trust_remote_code=subject.trust_remote_code
    )


def read_tokens(
    subject: Live, routing: RoutingTrace, variant: Variant, *, device: str = "auto", progress: Progress = silent
) -> Reading:
    """Read the tokens of a routing, document by document, by a model that is opened for it. Raises MoescopeError."""
    model = _opened(subject, variant.dtype, device)
    return _read(model, _dataset(routing, model), variant, "reading", progress)


def _dataset(routing: RoutingTrace, model: LanguageModel) -> TokenDataset:
    """Raises UsageError for tokens that the model cannot read, or documents whose beginning is missing."""
    starts = np.append(True, np.diff(routing.document_ids) != 0)
    if (routing.positions[starts] != 0).any() or (np.diff(routing.positions)[~starts[1:]] != 1).any():
        raise UsageError(
            "the tokens of this routing cannot be read again: a document is not whole from its beginning on; expected "
            "a trace or a recording of whole texts"
        )
    check_token_ids(model, routing.token_ids)
    return TokenDataset(
        token_ids=routing.token_ids,
        document_ids=routing.document_ids,
        source_ids=routing.source_ids,
        domain_ids=routing.domain_ids,
        positions=routing.positions,
        domains=tuple(routing.domains),
        domain_bytes=np.zeros(len(routing.domains), np.int64),
    )
