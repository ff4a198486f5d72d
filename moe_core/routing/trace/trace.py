"""RoutingTrace: which experts every token went to, in every MoE layer. The one thing all analysis starts from.

StoredTrace is the same in a file that may be larger than memory: counted part by part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from moe_core.errors import TraceError
from moe_core.routing.trace.arrays import describe, floats, half_precision_logits, integers, layered, some
from moe_core.routing.trace.checks import ARRAYS, OPTIONAL, check_shapes, check_values
from moe_core.routing.trace.counting import By, counts_of
from moe_core.routing.trace.joining import count_distinct, positions_within, sample_parts
from moe_core.routing.trace.routing_counts import RoutingCounts
from moe_core.routing.trace.types import (
    BoolArray,
    Float16Array,
    Float32Array,
    Int16Array,
    Int32Array,
    Int64Array,
    ScoreFunction,
)

PART_TOKENS = 262_144
"""Tokens read at a time; a part ends at the last document border before this many."""
PART_BYTES = 2**26
"""Fewer tokens are read at a time where their arrays would take more than this: with logits of many experts."""
MAX_IN_MEMORY_BYTES = 2**28
"""Largest routing of one trace. A larger one is read part by part, and sampled to look at single tokens."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class RoutingTrace:
    """Routing decisions of T tokens in L MoE layers. Immutable: the arrays are read-only.

    Axis letters: L MoE layers, T tokens, K slots per token (top_k), E experts. A slot a token does not use (dropped for
    lack of capacity, skipped) holds index -1 and score 0. Every check is made at construction, so a RoutingTrace that
    exists is consistent; `TraceError` says what is not. Use `from_arrays` unless the dtypes are exactly as below.
    """

    router_indices: Int16Array
    """[L,T,K] chosen experts, -1 = unused slot. Slots are in the router's own order, which need not be by score."""
    router_scores: Float32Array
    """[L,T,K] combine weights as the model used them; they need not sum to 1."""
    token_ids: Int32Array
    """[T] vocabulary ids, >= 0."""
    document_ids: Int32Array
    """[T] the document a token is from: a text that was read on its own, from its first token on."""
    source_ids: Int32Array
    """[T] what the document was cut from (a book, a web site), else the document itself. Documents of one source are
    alike, tokens of two sources of one domain independent: every null model and interval goes by sources."""
    positions: Int32Array
    """[T] place of the token within its document, >= 0."""
    domain_ids: Int16Array
    """[T] index into `domains`."""
    domains: list[str]
    """Names of the domains, in the order of their ids; a domain may be without tokens."""
    layers: list[int]
    """[L] layer numbers in the model, ascending (dense layers have no entry)."""
    num_experts: int
    """E, the same in every layer."""
    router_logits: Float16Array | None = None
    """[L,T,E] pre-softmax scores of all experts, where they were kept; -inf = masked, probability 0. A row that reaches
    beyond 65,504, where float16 ends, is shifted or cut off so that its probabilities stay, see from_arrays."""
    predicted_ids: Int32Array | None = None
    """[T] the model's likeliest next token after this one (argmax of its logits), where it was kept."""
    score_function: ScoreFunction = "softmax"
    """How logits become probabilities over experts."""
    varying_experts: bool = False
    """Whether the router's rule gives some tokens fewer than K experts: an unused slot is then no dropped one."""
    null_experts: int = 0
    """How many of the E, the last ones, compute nothing: a slot that one of them has is work that the token skips."""
    source: str = ""
    """Where the trace came from, for people."""
    vocabulary: Mapping[int, str] = field(default_factory=dict)
    """Printable text of the token ids that occur; may be empty."""
    label_ids: Int16Array | None = None
    """[T] index into `labels`, -1 = the token has none; a label is of the token, where a domain is of its text."""
    labels: list[str] = field(default_factory=list)
    """Names of the labels, in the order of their ids."""
    labelling: str = ""
    """What the labels tell of a token, in the singular: "node type", "part of speech"."""

    def __post_init__(self) -> None:
        for name, dtype, axes in ARRAYS:
            value = getattr(self, name)
            if value is None and name in OPTIONAL:
                continue
            if not isinstance(value, np.ndarray) or value.dtype != dtype or value.ndim != len(axes):
                raise TraceError(
                    f"{name} is {describe(value)}; expected {np.dtype(dtype)} [{','.join(axes)}], see from_arrays"
                )
            view = value.view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)
        check_shapes(self)
        check_values(self)

    @property
    def top_k(self) -> int:
        """K, slots per token."""
        return int(self.router_indices.shape[2])

    @property
    def num_layers(self) -> int:
        """L, MoE layers in the trace."""
        return int(self.router_indices.shape[0])

    @property
    def num_tokens(self) -> int:
        """T."""
        return int(self.router_indices.shape[1])

    def layer_position(self, layer: int) -> int:
        """Place of layer number `layer` on the L axis. Raises TraceError for a layer without a router."""
        if layer not in self.layers:
            raise TraceError(f"layer {layer} is not in this trace; expected one of {some(self.layers)}")
        return self.layers.index(layer)

    def token_text(self, i: int) -> str:
        """Printable text of token i, or "#id" where the trace carries no vocabulary for it."""
        token_id = int(self.token_ids[i])
        return self.vocabulary.get(token_id, f"#{token_id}")

    def select(self, mask: npt.ArrayLike) -> RoutingTrace:
        """The trace of the tokens where mask [T] is True, order kept. Raises TraceError if none is left."""
        chosen: BoolArray = np.asarray(mask)
        if chosen.dtype != np.bool_ or chosen.shape != (self.num_tokens,):
            raise TraceError(f"mask is {describe(chosen)}; expected bool [{self.num_tokens}], one per token")
        arrays = {
            name: getattr(self, name)[:, chosen] if len(axes) == 3 else getattr(self, name)[chosen]
            for name, _, axes in ARRAYS
            if getattr(self, name) is not None
        }
        return replace(self, **arrays)

    def by_label(self) -> RoutingTrace:
        """The tokens that have a label, each with its label for a domain: what tells domains apart tells labels apart.

        Raises TraceError where no token has one.
        """
        if self.label_ids is None or not (self.label_ids >= 0).any():
            raise TraceError("no token of the trace has a label; expected a trace that `label` wrote")
        labelled = self.label_ids >= 0
        return replace(self.select(labelled), domain_ids=self.label_ids[labelled], domains=self.labels)

    def count_sources(self) -> int:
        """How many different source_ids there are."""
        return count_distinct(self.source_ids)

    def count_documents(self) -> int:
        """How many different document_ids there are."""
        return count_distinct(self.document_ids)

    def parts(self) -> Iterator[RoutingTrace]:
        """The trace in parts of whole documents: here one, itself. A StoredTrace has many; both are counted alike."""
        yield self

    def counts(self, by: By = "source", extras: Sequence[str] = ()) -> RoutingCounts:
        """The trace as counts that add up: see counting.counts_of."""
        return counts_of(self, by, extras)

    def sample(self, max_tokens: int, seed: int = 0) -> RoutingTrace:
        """Whole documents in a seeded order, as many as fit into `max_tokens`, kept in the order of the trace.

        The trace itself where it is no larger. If not even one fits, the beginning of one.
        """
        if self.num_tokens <= max_tokens:
            return self
        documents, sizes = np.unique(self.document_ids, return_counts=True)
        return sample_parts(self.parts(), documents, sizes, max_tokens, seed)

    def save(self, path: str | Path) -> None:
        """Write one Parquet file (see parquet.py for its columns). Raises TraceError if it cannot be written."""
        from moe_core.routing.trace.parquet import write_trace

        write_trace(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> RoutingTrace:
        """Read a file written by `save`. Raises TraceError if it is missing, damaged or no trace."""
        from moe_core.routing.trace.parquet import read_trace

        return read_trace(Path(path), cls.from_arrays)

    @staticmethod
    def open(path: str | Path) -> StoredTrace:
        """A file written by `save` for counting in bounded memory; raises TraceError as `load`."""
        return StoredTrace.open(path)

    @classmethod
    def from_arrays(
        cls,
        *,
        router_indices: npt.ArrayLike,
        router_scores: npt.ArrayLike,
        num_experts: int,
        token_ids: npt.ArrayLike,
        document_ids: npt.ArrayLike | None = None,
        source_ids: npt.ArrayLike | None = None,
        positions: npt.ArrayLike | None = None,
        domain_ids: npt.ArrayLike | None = None,
        domains: Sequence[str] | None = None,
        layers: Sequence[int] | None = None,
        router_logits: npt.ArrayLike | None = None,
        predicted_ids: npt.ArrayLike | None = None,
        score_function: ScoreFunction = "softmax",
        varying_experts: bool = False,
        null_experts: int = 0,
        source: str = "",
        vocabulary: Mapping[int, str] | None = None,
        label_ids: npt.ArrayLike | None = None,
        labels: Sequence[str] = (),
        labelling: str = "",
    ) -> RoutingTrace:
        """Build a trace from anything array-like, whatever its integer or float type.

        router_indices and router_scores are [L,T,K], or [T,K] for one layer; router_logits [L,T,E] or [T,E], of which
        a softmax's row beyond 65,504 is shifted so that its largest is 0, and other values are cut off there.
        Left out: `domain_ids` = all 0, `domains` = ["all"], `layers` = 0..L-1, `positions` = count within the document,
        `source_ids` = document_ids.
        Without `document_ids` every token counts as a document of its own, that is, tokens are taken to be independent;
        for running text they are not, and significance is overstated: pass the documents where they are known.
        Of a text that was cut into windows pass in `source_ids` which windows are of one text: without them every
        window counts as independent of the others. baselines.independence_note says where that looks to be so.
        """
        tokens = integers("token_ids", token_ids, np.int32)
        indices = layered(integers("router_indices", router_indices, np.int16))
        scores = layered(floats("router_scores", router_scores, np.float32))
        logits = (
            None
            if router_logits is None
            else layered(half_precision_logits("router_logits", router_logits, score_function))
        )
        count = np.arange(tokens.size, dtype=np.int32)
        documents = count if document_ids is None else integers("document_ids", document_ids, np.int32)
        if positions is None:
            places = count if document_ids is None else positions_within(documents)
        else:
            places = integers("positions", positions, np.int32)
        if domain_ids is None and domains is not None and len(domains) > 1:
            raise TraceError(f"{len(domains)} domains but no domain_ids; expected the domain of every token")
        return cls(
            router_indices=indices,
            router_scores=scores,
            token_ids=tokens,
            document_ids=documents,
            source_ids=documents if source_ids is None else integers("source_ids", source_ids, np.int32),
            positions=places,
            domain_ids=np.zeros_like(tokens, dtype=np.int16)
            if domain_ids is None
            else integers("domain_ids", domain_ids, np.int16),
            domains=["all"] if domains is None else list(domains),
            layers=list(range(indices.shape[0])) if layers is None else [int(layer) for layer in layers],
            num_experts=int(num_experts),
            router_logits=logits,
            predicted_ids=None if predicted_ids is None else integers("predicted_ids", predicted_ids, np.int32),
            score_function=score_function,
            varying_experts=varying_experts,
            null_experts=null_experts,
            source=source,
            vocabulary=dict(vocabulary or {}),
            label_ids=None if label_ids is None else integers("label_ids", label_ids, np.int16),
            labels=list(labels),
            labelling=labelling,
        )


@dataclass(frozen=True, eq=False)
class StoredTrace:
    """A file written by RoutingTrace.save, of which only a part at a time is in memory.

    The same facts as a RoutingTrace but no arrays: `parts()` yields those. Counts, and every measure made of counts,
    take either and give the same answer. Make it with RoutingTrace.open.
    """

    path: Path
    num_tokens: int
    """T."""
    layers: list[int]
    """[L] layer numbers in the model, ascending."""
    num_experts: int
    """E."""
    top_k: int
    """K."""
    domains: list[str]
    score_function: ScoreFunction
    varying_experts: bool
    null_experts: int
    source: str
    vocabulary: Mapping[int, str] = field(repr=False)
    labels: list[str] = field(default_factory=list)
    labelling: str = ""
    only_labelled: bool = False
    """Whether its parts are those of `by_label`."""
    _counted: dict[tuple[Any, ...], Any] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def open(cls, path: str | Path) -> StoredTrace:
        """Read what is not per token. Raises TraceError if the file is missing, damaged or no trace."""
        from moe_core.routing.trace.parquet import read_metadata

        metadata, num_tokens = read_metadata(Path(path))
        if not num_tokens:
            raise TraceError(f"trace {str(path)!r} has no tokens; trace some text again")
        names = (
            "layers",
            "num_experts",
            "top_k",
            "domains",
            "score_function",
            "varying_experts",
            "null_experts",
            "source",
            "vocabulary",
            "labels",
            "labelling",
        )
        return cls(path=Path(path), num_tokens=num_tokens, **{name: getattr(metadata, name) for name in names})

    @property
    def num_layers(self) -> int:
        """L, MoE layers in the trace."""
        return len(self.layers)

    def parts(self) -> Iterator[RoutingTrace]:
        """The trace in parts of whole documents, in order, each checked like any RoutingTrace.

        About PART_TOKENS tokens or PART_BYTES a part, two parts in memory at a time; a document longer than that is
        one part.
        Raises TraceError at a damaged part.
        """
        from moe_core.routing.trace.parquet import read_parts

        parts = read_parts(self.path, RoutingTrace.from_arrays, PART_TOKENS, PART_BYTES)
        if not self.only_labelled:
            return parts
        return (part.by_label() for part in parts if part.label_ids is not None and (part.label_ids >= 0).any())

    def by_label(self) -> StoredTrace:
        """As RoutingTrace.by_label, part by part."""
        tokens = int(self._ids("document_id", labelled=True)[1].sum()) if self.labelling else 0
        if not tokens:
            raise TraceError("no token of the trace has a label; expected a trace that `label` wrote")
        return replace(self, num_tokens=tokens, domains=self.labels, only_labelled=True)

    def _ids(self, column: str, *, labelled: bool) -> tuple[npt.NDArray[Any], Int64Array]:
        from moe_core.routing.trace.parquet import count_ids

        return count_ids(self.path, column, labelled=labelled)

    def once(self, key: tuple[Any, ...], count: Callable[[], T]) -> T:
        """What `count` returned when it was first called with this key: reading the file takes seconds, and several
        measures are made of the same counts or sample. For what is of bounded size; it is only read."""
        if key not in self._counted:
            self._counted[key] = count()
        found: T = self._counted[key]
        return found

    def count_sources(self) -> int:
        """How many different source_ids there are; only that column is read."""
        return self.once(("sources",), lambda: len(self._ids("source_id", labelled=self.only_labelled)[0]))

    def count_documents(self) -> int:
        """How many different document_ids there are; only that column is read."""
        return self.once(("documents",), lambda: len(self._ids("document_id", labelled=self.only_labelled)[0]))

    def counts(self, by: By = "source", extras: Sequence[str] = ()) -> RoutingCounts:
        """The file's trace as counts that add up: see counting.counts_of."""
        return counts_of(self, by, extras)

    def sample(self, max_tokens: int, seed: int = 0) -> RoutingTrace:
        """As RoutingTrace.sample: whole documents in a seeded order, as many as fit into `max_tokens`."""
        if self.num_tokens <= max_tokens:
            whole = RoutingTrace.load(self.path)
            return whole.by_label() if self.only_labelled else whole
        return self.once(("sample", max_tokens, seed), lambda: self._sample(max_tokens, seed))

    def _sample(self, max_tokens: int, seed: int) -> RoutingTrace:
        return sample_parts(self.parts(), *self._ids("document_id", labelled=self.only_labelled), max_tokens, seed)


AnyTrace = RoutingTrace | StoredTrace
"""What a measure that looks at tokens part by part takes."""
AnyRouting = AnyTrace | RoutingCounts
"""What every measure that is made of counts takes."""


def open_or_load(path: str | Path) -> AnyTrace:
    """The trace in the file: in memory, or on disk where it is too large for that. Raises TraceError."""
    stored = StoredTrace.open(path)
    slots, logits = 6 * stored.top_k, 2 * stored.num_experts  # bytes of a token in a layer; there may be no logits
    fits = stored.num_tokens * stored.num_layers * (slots + logits) <= MAX_IN_MEMORY_BYTES
    return RoutingTrace.load(path) if fits else stored
