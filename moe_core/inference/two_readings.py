"""The same text through one model as it is and changed: another precision of its numbers, weights or a cache of fewer
bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from moe_core.data.tokens import TokenDataset
from moe_core.inference.cache_choice import CacheChoice
from moe_core.inference.open import open_huggingface, open_run, own_model
from moe_core.inference.protocol import LanguageModel, check_token_ids
from moe_core.inference.reading import places_read
from moe_core.inference.reread import Reread
from moe_core.inference.rounding import Rounded, Rounding, round_in_place
from moe_core.inference.subjects import Live
from moe_core.inference.token_by_token import Decoding, TokenByToken
from moe_core.inference.tracing import TracedText, trace_dataset
from moe_core.progress import Progress, silent
from moe_core.runs import RunFolder


@dataclass(frozen=True)
class Variant:
    """One way to read: the precision of the numbers, and what is done to the weights."""

    dtype: str = "auto"
    """One of device.DTYPES."""
    rounding: Rounding | None = None
    cache: CacheChoice | None = None
    """How keys and values are kept: then the text is read token by token. None: windows are read whole, without."""

    @property
    def name(self) -> str:
        """Such as "bfloat16", "4 bits", "bfloat16, 4 bits", "int4 cache"; "as saved" where nothing is changed."""
        parts = [self.dtype] if self.dtype != "auto" else []
        return ", ".join([*parts, *self.changes]) or "as saved"

    @property
    def changes(self) -> list[str]:
        """What is done beside the precision, in words."""
        return [one.name for one in (self.rounding, self.cache) if one is not None]


@dataclass(frozen=True, eq=False)
class Reading:
    """What came of it."""

    variant: Variant
    dtype: str
    """In which it was really read, such as "float32"."""
    text: TracedText
    rounded: Rounded | None
    """None where no weight was rounded."""
    decoding: Decoding | None = None
    """None where windows were read whole."""

    @property
    def name(self) -> str:
        """The precision, the bits where they are fewer, and how the cache was kept where one was."""
        return ", ".join([self.dtype, *self.variant.changes])


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
    reading. Where the second keeps its cache otherwise, the first keeps it whole, and both are read token by token.
    `device` is that of a run; a model of the transformers library has its own. `progress` has a stage for each step.
    Raises MoescopeError.
    """
    model = _opened(subject, first.dtype, device)
    dataset = text(model)
    if second.cache is not None and first.cache is None:
        first = replace(first, cache=CacheChoice())
    one = _read(model, dataset, first, "reading once", progress)
    if first.rounding is not None or first.dtype != second.dtype:
        del model  # the next one needs its memory
        model = _opened(subject, second.dtype, device)
    return one, _read(model, dataset, second, "reading again", progress)


def _read(model: LanguageModel, dataset: TokenDataset, variant: Variant, stage: str, progress: Progress) -> Reading:
    found = None if variant.rounding is None else round_in_place(model.model, variant.rounding, progress)

    decoding, reader = None, model
    if variant.cache is not None:
        places = places_read(model, dataset)

        def read(done: int) -> None:
            progress(stage, done, places)

        reader = TokenByToken.of_model(own_model(model, "a cache of another kind"), variant.cache, read)
        decoding = reader.decoding

    def reached(named: str, done: int, total: int) -> None:
        del named
        if decoding is None:
            progress(stage, done, total)

    traced = trace_dataset(reader, dataset, reached)
    dtype = str(next(model.model.parameters()).dtype).removeprefix("torch.")
    return Reading(variant, dtype, traced, found, decoding)


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
