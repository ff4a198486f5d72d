"""The same text through one model at two precisions: how much of its routing depends on the numbers' width."""

from __future__ import annotations

from collections.abc import Sequence

from moe_core.data.document import Document
from moe_core.inference.held_out import trace_held_out
from moe_core.inference.open import open_huggingface, open_run
from moe_core.inference.subjects import Live
from moe_core.inference.tracing import trace_documents
from moe_core.progress import Progress, silent
from moe_core.routing import RoutingTrace
from moe_core.runs import RunFolder


def traces_in_precisions(
    subject: Live,
    precisions: Sequence[str],
    documents: Sequence[Document] = (),
    *,
    tokens_per_domain: int | None = None,
    progress: Progress = silent,
) -> list[RoutingTrace]:
    """A trace for each precision of device.DTYPES, of the same tokens: the held-out text of a run of ours, else of
    `documents`, at most `tokens_per_domain` of each domain.

    One model is in memory at a time. `progress` has a stage for each precision. Raises MoescopeError where the model
    cannot be opened or there is no text.
    """
    traces = []
    for precision in precisions:

        def reached(stage: str, done: int, total: int, name: str = precision) -> None:
            del stage
            progress(f"reading in {name}", done, total)

        if isinstance(subject, RunFolder):
            model = open_run(subject.name, subject.root, dtype=precision)
            traces.append(trace_held_out(model, subject, reached))
        else:
            model = open_huggingface(
                subject.where, device=subject.device, dtype=precision, trust_remote_code=subject.trust_remote_code
            )
            traces.append(trace_documents(model, documents, progress=reached, tokens_per_domain=tokens_per_domain))
        del model  # the next one needs its memory
    return traces
