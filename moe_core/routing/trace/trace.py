"""RoutingTrace: which experts every token went to, in every MoE layer. The one thing all analysis starts from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt

from moe_core.errors import TraceError, UsageError
from moe_core.routing.trace.arrays import describe, floats, integers, layered, some
from moe_core.routing.trace.types import (
    BoolArray,
    Float16Array,
    Float32Array,
    Int16Array,
    Int32Array,
    Int64Array,
    ScoreFunction,
)

if TYPE_CHECKING:
    from moe_core.routing.trace.stored import StoredTrace

MAX_EXPERTS = 32_767  # int16


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
    """[L,T,E] pre-softmax scores of all experts, where they were kept."""
    predicted_ids: Int32Array | None = None
    """[T] the model's likeliest next token after this one (argmax of its logits), where it was kept."""
    score_function: ScoreFunction = "softmax"
    """How logits become probabilities over experts."""
    varying_experts: bool = False
    """Whether the router's rule gives some tokens fewer than K experts: an unused slot is then no dropped one."""
    source: str = ""
    """Where the trace came from, for people."""
    vocabulary: Mapping[int, str] = field(default_factory=dict)
    """Printable text of the token ids that occur; may be empty."""

    def __post_init__(self) -> None:
        for name, dtype, axes in _ARRAYS:
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            if not isinstance(value, np.ndarray) or value.dtype != dtype or value.ndim != len(axes):
                raise TraceError(
                    f"{name} is {describe(value)}; expected {np.dtype(dtype)} [{','.join(axes)}], see from_arrays"
                )
            view = value.view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)
        _check_shapes(self)
        _check_values(self)

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
            for name, _, axes in _ARRAYS
            if getattr(self, name) is not None
        }
        return replace(self, **arrays)

    def parts(self) -> Iterator[RoutingTrace]:
        """The trace in parts of whole documents: here one, itself. A StoredTrace has many; both are counted alike."""
        yield self

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

        return read_trace(Path(path))

    @staticmethod
    def open(path: str | Path) -> StoredTrace:
        """A file written by `save` for counting in bounded memory; raises TraceError as `load`."""
        from moe_core.routing.trace.stored import StoredTrace

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
        source: str = "",
        vocabulary: Mapping[int, str] | None = None,
    ) -> RoutingTrace:
        """Build a trace from anything array-like, whatever its integer or float type.

        router_indices and router_scores are [L,T,K], or [T,K] for one layer; router_logits [L,T,E] or [T,E].
        Left out: `domain_ids` = all 0, `domains` = ["all"], `layers` = 0..L-1, `positions` = count within the document,
        `source_ids` = document_ids.
        Without `document_ids` every token counts as a document of its own, that is, tokens are taken to be independent;
        for running text they are not, and significance is overstated: pass the documents where they are known.
        """
        tokens = integers("token_ids", token_ids, np.int32)
        indices = layered(integers("router_indices", router_indices, np.int16))
        scores = layered(floats("router_scores", router_scores, np.float32))
        logits = None if router_logits is None else layered(floats("router_logits", router_logits, np.float16))
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
            source=source,
            vocabulary=dict(vocabulary or {}),
        )


def concatenate(traces: Sequence[RoutingTrace]) -> RoutingTrace:
    """Join traces of one model along the token axis, in order.

    Domains are matched by name, vocabularies merged. Document and source ids are kept as they are: two traces that
    number different documents alike must be renumbered by the caller. Raises TraceError where the models differ.
    """
    if not traces:
        raise TraceError("no traces to concatenate; expected at least one")
    first = traces[0]
    domains = list(dict.fromkeys(name for trace in traces for name in trace.domains))
    vocabulary: dict[int, str] = {}
    for number, trace in enumerate(traces):
        check_joinable(first, trace, f"trace {number}")
        for token_id, text in trace.vocabulary.items():
            if vocabulary.setdefault(token_id, text) != text:
                raise TraceError(
                    f"token {token_id} is {vocabulary[token_id]!r} in one trace and {text!r} in another; "
                    "only traces with one tokenizer can be joined"
                )
    domain_ids = [
        np.array([domains.index(name) for name in trace.domains], dtype=np.int16)[trace.domain_ids] for trace in traces
    ]
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(trace, name) for trace in traces], axis=len(axes) // 2)
        for name, _, axes in _ARRAYS
        if getattr(first, name) is not None and name != "domain_ids"
    }
    return replace(
        first,
        **arrays,
        domain_ids=np.concatenate(domain_ids),
        domains=domains,
        vocabulary=vocabulary,
        source=", ".join(dict.fromkeys(trace.source for trace in traces if trace.source)),
    )


def check_joinable(first: RoutingTrace, other: RoutingTrace, name: str) -> None:
    """Raise TraceError, calling `other` by `name`, unless both are of one model and keep the same columns."""
    for fact in ("layers", "num_experts", "top_k", "score_function", "varying_experts"):
        if getattr(other, fact) != getattr(first, fact):
            raise TraceError(
                f"{name} has {fact} = {getattr(other, fact)}, the first {getattr(first, fact)}; "
                "only traces of one model can be joined"
            )
    if (other.router_logits is None) != (first.router_logits is None):
        raise TraceError("some traces have router_logits and some have not; capture all with the same keep_logits")
    if (other.predicted_ids is None) != (first.predicted_ids is None):
        raise TraceError("some traces have predicted_ids and some have not; keep them for all or for none")


def sample_parts(
    parts: Iterable[RoutingTrace],
    documents_N: npt.NDArray[np.integer[Any]],
    sizes_N: Int64Array,
    max_tokens: int,
    seed: int,
) -> RoutingTrace:
    """Tokens of randomly chosen ones of the N documents, see RoutingTrace.sample; `sizes_N` are their tokens."""
    if max_tokens < 1:
        raise UsageError(f"max_tokens is {max_tokens}; expected 1 or more")
    order = np.random.default_rng(seed).permutation(len(documents_N))
    chosen, rest, smallest = [], max_tokens, int(sizes_N.min())
    for i in order:
        if rest < smallest:
            break  # of millions of documents most need not be looked at
        if sizes_N[i] <= rest:
            chosen.append(i)
            rest -= int(sizes_N[i])
    chosen_ids = documents_N[chosen or order[:1]]
    found, rest = [], max_tokens
    for part in parts:
        mask = np.isin(part.document_ids, chosen_ids)
        mask &= np.cumsum(mask) <= rest  # only cuts where not even one document fitted
        if mask.any():
            found.append(part.select(mask))
            rest -= found[-1].num_tokens
    return concatenate(found)


def positions_within(document_ids: Int32Array) -> Int32Array:
    """[T] how many earlier tokens are of the same document."""
    order = np.argsort(document_ids, kind="stable")
    ordered = document_ids[order]
    first = np.searchsorted(ordered, ordered, side="left")
    positions = np.empty(document_ids.size, dtype=np.int32)
    positions[order] = np.arange(document_ids.size) - first
    return positions


# Name, dtype and axes of every array of a trace.
_ARRAYS: tuple[tuple[str, type[np.generic], str], ...] = (
    ("router_indices", np.int16, "LTK"),
    ("router_scores", np.float32, "LTK"),
    ("router_logits", np.float16, "LTE"),
    ("token_ids", np.int32, "T"),
    ("document_ids", np.int32, "T"),
    ("source_ids", np.int32, "T"),
    ("positions", np.int32, "T"),
    ("domain_ids", np.int16, "T"),
    ("predicted_ids", np.int32, "T"),
)
_OPTIONAL = ("router_logits", "predicted_ids")


def _check_shapes(trace: RoutingTrace) -> None:
    L, T, K = trace.router_indices.shape
    E = trace.num_experts
    if not (L and T and K):
        raise TraceError(f"router_indices is {describe(trace.router_indices)}: nothing was routed; expected [L,T,K]")
    if not 1 <= E <= MAX_EXPERTS or K > E:
        raise TraceError(f"num_experts is {E} with {K} slots per token; expected {K} to {MAX_EXPERTS} experts")
    sizes = {"L": L, "T": T, "K": K, "E": E}
    for name, _, axes in _ARRAYS:
        value = getattr(trace, name)
        expected = tuple(sizes[axis] for axis in axes)
        if value is not None and value.shape != expected:
            raise TraceError(
                f"{name} has shape {list(value.shape)}; expected {list(expected)} = [{','.join(axes)}] "
                "to fit router_indices and num_experts"
            )
    if len(trace.layers) != L or sorted(set(trace.layers)) != trace.layers or trace.layers[0] < 0:
        raise TraceError(f"layers is {some(trace.layers)}; expected {L} ascending layer numbers, one per routed layer")
    if not trace.domains or len(set(trace.domains)) != len(trace.domains):
        raise TraceError(f"domains is {some(trace.domains)}; expected at least one name, each once")


def _check_values(trace: RoutingTrace) -> None:
    indices, scores = trace.router_indices, trace.router_scores
    if trace.score_function not in get_args(ScoreFunction):
        raise TraceError(
            f"score_function is {trace.score_function!r}; expected one of {', '.join(get_args(ScoreFunction))}"
        )
    _check_range("router_indices", indices, -1, trace.num_experts - 1)
    _check_range("domain_ids", trace.domain_ids, 0, len(trace.domains) - 1)
    _check_range("token_ids", trace.token_ids, 0, np.iinfo(np.int32).max)
    _check_range("positions", trace.positions, 0, np.iinfo(np.int32).max)
    if trace.predicted_ids is not None:
        _check_range("predicted_ids", trace.predicted_ids, 0, np.iinfo(np.int32).max)
    for name, values in (("router_scores", scores), ("router_logits", trace.router_logits)):
        if values is not None and not np.isfinite(values).all():
            raise TraceError(
                f"{name} holds NaN or infinity; expected finite numbers (float16 reaches 65504 for logits)"
            )
    if ((indices < 0) & (scores != 0)).any():
        raise TraceError("a slot with index -1 (unused) has a score other than 0; expected 0 there")


def _check_range(name: str, values: npt.NDArray[np.integer[Any]], low: int, high: int) -> None:
    smallest, largest = int(values.min()), int(values.max())
    if smallest < low or largest > high:
        wrong = smallest if smallest < low else largest
        raise TraceError(f"{name} holds {wrong}; expected {low} to {high}")
