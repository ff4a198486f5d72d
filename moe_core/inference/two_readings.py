"""The same text through one model as it is and changed: another precision of its numbers, or weights of fewer bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from moe_core.data.tokens import TokenDataset
from moe_core.inference.open import open_huggingface, open_run
from moe_core.inference.protocol import LanguageModel, check_token_ids
from moe_core.inference.reread import Reread
from moe_core.inference.rounding import Rounded, Rounding, round_in_place
from moe_core.inference.subjects import Live
from moe_core.inference.tracing import TracedText, trace_dataset
from moe_core.progress import Progress, silent
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
    subject: Live, found: Reread, variant: Variant, *, device: str = "auto", progress: Progress = silent
) -> Reading:
    """Read the texts of a routing by a model that is opened for it; the trace is of the routing's own tokens. Raises
    MoescopeError, also for tokens that the model does not know."""
    model = _opened(subject, variant.dtype, device)
    check_token_ids(model, found.dataset.token_ids)
    reading = _read(model, found.dataset, variant, "reading", progress)
    text, own = reading.text, found.is_own
    trace = replace(text.trace.select(own), document_ids=found.routing.document_ids)
    return replace(reading, text=TracedText(trace, text.losses[own], text.ranks[own]))
