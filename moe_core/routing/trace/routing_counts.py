"""RoutingCounts: what routing adds up to, without single tokens. Two of them over different tokens add up.

What an engine's counter, a trainer's log or a pass over a huge text keeps is of this kind; a trace gives it with
`trace.counts()`. Measures that are made of counts take a RoutingCounts wherever they take a trace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from moe_core.errors import TraceError
from moe_core.routing.trace.arrays import floats, integers, some
from moe_core.routing.trace.groups import Group, Unit, check_number
from moe_core.routing.trace.types import Float64Array, Int64Array


@dataclass(frozen=True, eq=False)
class RoutingCounts:
    """Assignments of tokens to experts, summed. Immutable; checked at construction, `TraceError` says what is wrong.

    Axis letters: S steps, L MoE layers, G groups, E experts. Use `from_arrays` unless every array is at hand as below.
    """

    tokens_per_expert: Int64Array
    """[S,L,G,E] how often an expert was chosen; a token counts once for each slot that it uses."""
    tokens: Int64Array
    """[S,G] tokens of each group."""
    steps: list[int]
    """[S] ascending numbers of what was counted apart: training steps, forward passes; [0] where nothing was."""
    layers: list[int]
    """[L] layer numbers in the model, ascending."""
    groups: list[Group]
    """[G] each once."""
    domains: list[str]
    """Names of the domains, in the order of their colours; a domain may be without tokens."""
    num_experts: int
    """E, the same in every layer."""
    top_k: int
    """K, slots per token; 1 where `unit` is "choice"."""
    unit: Unit = "token"
    """ "choice": the source says neither its number of tokens nor K. Each choice then counts as a token of one slot and
    `varying_experts` is True, as nothing is known of dropped ones."""
    varying_experts: bool = False
    """Whether some tokens have fewer than K experts by the router's rule: an unused slot is then no dropped one."""
    null_experts: int = 0
    """See RoutingTrace.null_experts."""
    extras: Mapping[str, Float64Array] = field(default_factory=dict)
    """Further sums over all steps and groups, [L,E] or [L,E,E], by name: "weights" (combine weights), "pairs" (tokens
    that chose both experts, symmetric; its diagonal are the counts), and what a source has besides."""
    source: str = ""
    """Where the counts came from, for people."""
    notes: tuple[str, ...] = ()
    """What a reader must know, a sentence each."""

    def __post_init__(self) -> None:
        S, L, G, E = len(self.steps), len(self.layers), len(self.groups), self.num_experts
        check_number(S, L, G, E)
        _check_names(self)
        for name, shape in (("tokens_per_expert", (S, L, G, E)), ("tokens", (S, G))):
            object.__setattr__(self, name, _checked(name, getattr(self, name), np.int64, shape))
        extras = {}
        for name, values in self.extras.items():
            axes = (L, E) if values.ndim == 2 else (L, E, E)
            extras[name] = _checked(f"extra {name!r}", values, np.float64, axes)
        object.__setattr__(self, "extras", extras)
        if not self.tokens.any():
            raise TraceError("these counts are of no tokens; count some text")
        _check_slots(self)

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.layers)

    @property
    def num_tokens(self) -> int:
        """T, all steps and groups together; choices of the busiest layer where `unit` says so."""
        return int(self.tokens.sum())

    @property
    def knows_sources(self) -> bool:
        """Are sources told apart? Without them nothing says how much independent text there is."""
        return all(group.source is not None for group in self.groups)

    def count_sources(self) -> int:
        """How many sources there are; where they are not told apart, one for each domain."""
        return len({group.source or (group.domain,) for group in self.groups})

    def count_documents(self) -> int:
        """As `count_sources`: counts do not tell the documents of a source apart."""
        return self.count_sources()

    def layer_position(self, layer: int) -> int:
        """Place of layer number `layer` on the L axis. Raises TraceError for a layer without a router."""
        if layer not in self.layers:
            raise TraceError(f"layer {layer} is not in these counts; expected one of {some(self.layers)}")
        return self.layers.index(layer)

    def by_label(self) -> NoReturn:
        """As `parts`."""
        self.parts()

    def parts(self, *_: object) -> NoReturn:
        """Raises TraceError: a measure that goes through the tokens of a trace was given counts."""
        raise TraceError("counts keep no single tokens; this measure takes a trace of the text, token by token")

    sample = parts

    def at(self, step: int) -> RoutingCounts:
        """One step of them, without extras, which are of all steps. Raises TraceError for a step that is not there."""
        if step not in self.steps:
            raise TraceError(f"step {step} is not in these counts; expected one of {some(self.steps)}")
        place = slice(self.steps.index(step), self.steps.index(step) + 1)
        return replace(
            self, tokens_per_expert=self.tokens_per_expert[place], tokens=self.tokens[place], steps=[step], extras={}
        )

    def joined(self, most: int) -> RoutingCounts:
        """The same in at most so many steps: neighbours together, under the number of the last of them."""
        starts = np.unique(np.arange(most) * len(self.steps) // most)
        if len(starts) == len(self.steps):
            return self
        return replace(
            self,
            tokens_per_expert=np.add.reduceat(self.tokens_per_expert, starts, axis=0),
            tokens=np.add.reduceat(self.tokens, starts, axis=0),
            steps=[self.steps[end - 1] for end in (*starts[1:], len(self.steps))],
        )

    def total(self) -> RoutingCounts:
        """All steps as one, number 0."""
        return replace(self.joined(1), steps=[0])

    def of_domain(self, domain: str) -> RoutingCounts:
        """The tokens of one domain, without extras, which are of all. Raises TraceError for one that is not there."""
        own = [group.domain == domain for group in self.groups]
        if not any(own):
            raise TraceError(f"domain {domain!r} is not in these counts; expected one of {some(self.domains)}")
        return replace(
            self,
            tokens_per_expert=self.tokens_per_expert[:, :, own],
            tokens=self.tokens[:, own],
            groups=[group for group in self.groups if group.domain == domain],
            domains=[domain],
            extras={},
        )

    def of_layers(self, layers: Sequence[int]) -> RoutingCounts:
        """These layers alone. Raises TraceError for one without a router."""
        places = [self.layer_position(layer) for layer in layers]
        extras = {name: values[places] for name, values in self.extras.items()}
        counts = self.tokens_per_expert[:, places]
        return replace(self, tokens_per_expert=counts, layers=list(layers), extras=extras)

    def without(self, *extras: str) -> RoutingCounts:
        """The same without these extras, to add it to counts that lack them."""
        return replace(self, extras={name: values for name, values in self.extras.items() if name not in extras})

    def __add__(self, other: RoutingCounts) -> RoutingCounts:
        """The counts of both, which must be of different tokens of one model: see sum_of."""
        if not isinstance(other, RoutingCounts):
            return NotImplemented
        return RoutingCounts.sum_of([self, other])

    def __radd__(self, start: object) -> RoutingCounts:
        """0 + counts, with which Python's sum() of several begins."""
        return self if type(start) is int and start == 0 else NotImplemented

    @staticmethod
    def sum_of(counts: Sequence[RoutingCounts]) -> RoutingCounts:
        """Counts of different tokens of one model, added up in this order, of which the extras' last bits depend.

        Steps are joined by their number and groups by source and domain; the order is that of the first, then what is
        new. Raises TraceError where layers, experts, K, unit or the names of extras differ.
        """
        if not counts:
            raise TraceError("no counts to add up; expected at least one")
        first = counts[0]
        for other in counts[1:]:
            check_addable(first, other)
        steps = sorted({step for one in counts for step in one.steps})
        groups = list(dict.fromkeys(group for one in counts for group in one.groups))
        check_number(len(steps), first.num_layers, len(groups), first.num_experts)
        numbers = np.zeros((len(steps), first.num_layers, len(groups), first.num_experts), dtype=np.int64)
        tokens = np.zeros((len(steps), len(groups)), dtype=np.int64)
        extras = {name: np.array(values) for name, values in first.extras.items()}
        place = {group: g for g, group in enumerate(groups)}
        for one in counts:
            at_S = np.searchsorted(steps, one.steps)
            at_G = np.array([place[group] for group in one.groups])
            numbers[np.ix_(at_S, np.arange(one.num_layers), at_G)] += one.tokens_per_expert
            tokens[np.ix_(at_S, at_G)] += one.tokens
        for one in counts[1:]:
            for name, total in extras.items():
                total += one.extras[name]
        return replace(
            first,
            tokens_per_expert=numbers,
            tokens=tokens,
            steps=steps,
            groups=groups,
            domains=list(dict.fromkeys(name for one in counts for name in one.domains)),
            extras=extras,
            source=", ".join(dict.fromkeys(one.source for one in counts if one.source)),
            notes=tuple(dict.fromkeys(note for one in counts for note in one.notes)),
        )

    def __eq__(self, other: object) -> bool:
        """Do both say the same of the same steps, layers and groups, in whatever order?"""
        if not isinstance(other, RoutingCounts):
            return NotImplemented
        same = ("steps", "layers", "num_experts", "top_k", "unit", "varying_experts", "null_experts")
        if any(getattr(self, name) != getattr(other, name) for name in same):
            return False
        if set(self.groups) != set(other.groups) or set(self.extras) != set(other.extras):
            return False
        order = [other.groups.index(group) for group in self.groups]
        return (
            np.array_equal(self.tokens_per_expert, other.tokens_per_expert[:, :, order])
            and np.array_equal(self.tokens, other.tokens[:, order])
            and all(np.array_equal(values, other.extras[name]) for name, values in self.extras.items())
        )

    __hash__ = None  # type: ignore[assignment]

    def save(self, path: str | Path) -> None:
        """Write one Parquet file (see counts_file.py for its columns). Raises TraceError if it cannot be written."""
        from moe_core.routing.trace.counts_file import write_counts

        write_counts(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> RoutingCounts:
        """Read a file written by `save`. Raises TraceError if it is missing, damaged or no counts."""
        from moe_core.routing.trace.counts_file import read_counts

        return read_counts(Path(path), cls)

    @classmethod
    def from_arrays(
        cls,
        tokens_per_expert: npt.ArrayLike,
        *,
        top_k: int | None = None,
        tokens: npt.ArrayLike | None = None,
        steps: Sequence[int] | None = None,
        layers: Sequence[int] | None = None,
        groups: Sequence[Group] | None = None,
        domains: Sequence[str] | None = None,
        varying_experts: bool = False,
        extras: Mapping[str, npt.ArrayLike] | None = None,
        source: str = "",
        notes: Sequence[str] = (),
    ) -> RoutingCounts:
        """Build counts from anything array-like.

        `tokens_per_expert` is [L,E], [S,L,E] or [S,L,G,E]; `tokens` a number, [S] or [S,G]. Where one of `top_k` and
        `tokens` is known the other follows from the layer with most choices, which is taken to have dropped none. With
        neither, unit is "choice". Left out: `steps` = 0..S-1, `layers` = 0..L-1, `groups` = one, `domains` = those of
        the groups.
        """
        counts = integers("tokens_per_expert", tokens_per_expert, np.int64)
        if counts.ndim not in (2, 3, 4):
            raise TraceError(f"tokens_per_expert has {counts.ndim} axes; expected [L,E], [S,L,E] or [S,L,G,E]")
        counts = counts.reshape((1,) * (counts.ndim == 2) + counts.shape)
        counts = counts[:, :, None] if counts.ndim == 3 else counts
        S, L, G, E = counts.shape
        busiest_SG = counts.sum(axis=3).max(axis=1, initial=0)
        if tokens is not None:
            given = integers("tokens", tokens, np.int64)
            tokens_SG = np.broadcast_to(given[..., None] if given.ndim == 1 else given, (S, G)).copy()
        else:
            tokens_SG = -(-busiest_SG // (top_k or 1))
        K = top_k or (max(1, -(-int(busiest_SG.sum()) // max(int(tokens_SG.sum()), 1))) if tokens is not None else 1)
        unit: Unit = "choice" if top_k is None and tokens is None else "token"
        own = [Group()] * G if groups is None and G == 1 else list(groups or [])
        return cls(
            tokens_per_expert=counts,
            tokens=tokens_SG,
            steps=list(range(S)) if steps is None else [int(step) for step in steps],
            layers=list(range(L)) if layers is None else [int(layer) for layer in layers],
            groups=own,
            domains=list(dict.fromkeys(group.domain for group in own)) if domains is None else list(domains),
            num_experts=E,
            top_k=K,
            unit=unit,
            varying_experts=varying_experts or unit == "choice",
            extras={name: floats(name, values, np.float64) for name, values in (extras or {}).items()},
            source=source,
            notes=tuple(notes),
        )


def _check_names(counts: RoutingCounts) -> None:
    for name, numbers in (("steps", counts.steps), ("layers", counts.layers)):
        if sorted(set(numbers)) != numbers or (numbers and numbers[0] < 0):
            raise TraceError(f"{name} is {some(numbers)}; expected ascending numbers from 0 on, each once")
    if len(set(counts.groups)) != len(counts.groups):
        twice = next(group for group in counts.groups if counts.groups.count(group) > 1)
        raise TraceError(f"group {twice.source!r} of domain {twice.domain!r} is there twice; expected each group once")
    unknown = {group.domain for group in counts.groups} - set(counts.domains)
    if unknown or len(set(counts.domains)) != len(counts.domains):
        raise TraceError(f"domains is {some(counts.domains)}; expected the domain of every group, each name once")
    if counts.unit == "choice" and (counts.top_k != 1 or not counts.varying_experts):
        raise TraceError(f"top_k is {counts.top_k}; expected 1, and varying_experts, as the unit is a choice")
    if not 1 <= counts.top_k <= counts.num_experts:
        raise TraceError(f"top_k is {counts.top_k}; expected 1 to {counts.num_experts}, the number of experts")


def _checked(
    name: str, values: npt.NDArray[np.generic], dtype: type, shape: tuple[int, ...]
) -> npt.NDArray[np.generic]:
    """A read-only view of an array of this type and shape, without negative values."""
    if values.dtype != dtype or values.shape != shape:
        expected = f"{np.dtype(dtype)} {list(shape)}"
        raise TraceError(f"{name} is {values.dtype} {list(values.shape)}; expected {expected}, see from_arrays")
    if dtype is np.int64 and values.size and values.min() < 0:
        raise TraceError(f"{name} holds {int(values.min())}; expected counts of 0 or more")
    if dtype is np.float64 and not np.isfinite(values).all():
        raise TraceError(f"{name} holds values that are not finite; expected sums")
    view = values.view()
    view.flags.writeable = False
    return view


def _check_slots(counts: RoutingCounts) -> None:
    """No expert can be chosen by more tokens than there are, and no token can have more than K."""
    most_SLG = counts.tokens_per_expert.sum(axis=3)
    room_SG = counts.tokens * counts.top_k
    over = np.argwhere(most_SLG > room_SG[:, None])
    single = np.argwhere(counts.tokens_per_expert.max(axis=3) > counts.tokens[:, None])
    for place in (*over[:1], *single[:1]):
        s, layer, g = place.tolist()
        raise TraceError(
            f"step {counts.steps[s]}, layer {counts.layers[layer]}: {int(most_SLG[s, layer, g]):,} choices of "
            f"{int(counts.tokens[s, g]):,} tokens, {int(counts.tokens_per_expert[s, layer, g].max()):,} of one expert; "
            f"expected at most {counts.top_k} a token, and each expert once"
        )


def check_addable(first: RoutingCounts, second: RoutingCounts) -> None:
    """Raises TraceError naming the first thing in which they differ."""
    for name in ("layers", "num_experts", "top_k", "unit", "varying_experts", "null_experts"):
        one, other = getattr(first, name), getattr(second, name)
        if one != other:
            shown = (some(one), some(other)) if isinstance(one, list) else (one, other)
            raise TraceError(f"{name} is {shown[0]} here and {shown[1]} there; only counts of one model add up")
    if set(first.extras) != set(second.extras):
        only = sorted({*first.extras} ^ {*second.extras})
        raise TraceError(f"extra {only[0]!r} is in one of the counts only; leave it out with without({only[0]!r})")
