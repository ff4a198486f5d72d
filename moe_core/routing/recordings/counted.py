"""Counts as a file has them, and what they become together with what the user knows besides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moe_core.errors import TraceError
from moe_core.routing.recordings.pieces import Integers, Options
from moe_core.routing.trace.groups import Group, check_number
from moe_core.routing.trace.routing_counts import RoutingCounts
from moe_core.routing.trace.types import BoolArray


@dataclass
class Counted:
    """What a recording counted. Shapes hold, values are whole numbers from 0 on."""

    path: Path
    title: str
    """What made it, for people."""
    counts: Integers
    """[S,L,G,E]."""
    steps: Sequence[int] = (0,)
    layers: Sequence[int] | None = None
    """[L] ascending numbers, where the file names them; None = it counts its layers from 0."""
    groups: Sequence[Group] = (Group(),)
    tokens: Integers | None = None
    """[S,G], where the file tells them."""
    top_k: int | None = None
    """K, where the file tells it."""
    uneven: bool = False
    """Whether layers have fewer choices than others for a reason that is no dropped token, which `notes` tell."""
    knows_experts: bool = True
    """Whether the E of `counts` is the model's; otherwise it is the largest id + 1."""
    extras: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    """[L,E] or [L,E,E] sums by name."""
    notes: list[str] = field(default_factory=list)

    def routing_counts(self, options: Options) -> RoutingCounts:
        """With the user's K, experts and layers. Raises TraceError naming the file and what does not fit."""
        try:
            return self._built(options)
        except TraceError as error:
            raise TraceError(f"{str(self.path)!r}: {error}") from None

    def _built(self, options: Options) -> RoutingCounts:
        if options.token_ids is not None:
            raise TraceError("these are counts, without single tokens; --token-ids has nothing to name")
        counts, extras = self._with_experts(options.num_experts)
        kept_L, layers = self._kept_layers(options)
        counts = counts if kept_L.all() else counts[:, kept_L]
        if not kept_L.any():
            raise TraceError("nothing was routed: every count is 0")
        top_k = self._top_k(options.top_k)
        built = RoutingCounts.from_arrays(
            counts,
            top_k=top_k,
            tokens=self.tokens,
            steps=self.steps,
            layers=layers,
            groups=self.groups,
            varying_experts=self.uneven,
            extras={name: values[kept_L] for name, values in extras.items()},
            source=f"{self.title}, {self.path.name}",
        )
        self._note_choices(built)
        return replace(built, notes=tuple(self.notes))

    def _top_k(self, wanted: int | None) -> int | None:
        if wanted is not None and self.top_k is not None and wanted != self.top_k:
            raise TraceError(f"it has {self.top_k} choices for a token; --top-k is {wanted}")
        return self.top_k if wanted is None else wanted

    def _with_experts(self, wanted: int | None) -> tuple[Integers, Mapping[str, npt.NDArray[np.float64]]]:
        """Counts and extras, with columns of 0 for experts that the file does not name as they had no token."""
        E = self.counts.shape[3]
        if wanted is None:
            if not self.knows_experts:
                self.notes.append(
                    f"the number of experts, {E}, is the largest id + 1: give --num-experts if the model has more"
                )
            return self.counts, self.extras
        if wanted < E or (wanted > E and self.knows_experts):
            raise TraceError(f"it counts {E} experts; --num-experts is {wanted}")
        check_number(len(self.steps), self.counts.shape[1], len(self.groups), wanted)
        room = wanted - E
        extras = {
            name: np.pad(values, [(0, 0)] + [(0, room)] * (values.ndim - 1)) for name, values in self.extras.items()
        }
        return np.pad(self.counts, [(0, 0)] * 3 + [(0, room)]), extras

    def _kept_layers(self, options: Options) -> tuple[BoolArray, list[int]]:
        """[L] which layers are routed and wanted, and the numbers of these."""
        L = self.counts.shape[1]
        numbers = list(range(L)) if self.layers is None else list(self.layers)
        routed_L: BoolArray = self.counts.sum(axis=(0, 2, 3)) > 0
        kept_L = routed_L.copy()
        wanted = options.layers
        if wanted is not None and len(wanted) == L and self.layers is None:
            numbers = list(wanted)
        elif wanted is not None:
            missing = [layer for layer in wanted if layer not in numbers]
            if missing:
                raise TraceError(f"--layers names layer {missing[0]}; it has layers {span(numbers)}")
            kept_L &= np.isin(numbers, wanted)
        dense = [number for number, routed in zip(numbers, routed_L.tolist(), strict=True) if not routed]
        if dense:
            self.notes.append(
                f"layers without a single choice are left out, as those without a router are: {span(dense)}"
            )
        return kept_L, [number for number, keep in zip(numbers, kept_L.tolist(), strict=True) if keep]

    def _note_choices(self, counts: RoutingCounts) -> None:
        """What is not whole between tokens, K and choices."""
        if counts.unit == "choice":
            self.notes.append(
                "neither the number of tokens nor K is in the file: the counts are of choices; --top-k gives K"
            )
            return
        if self.uneven:
            return
        choices_SLG = counts.tokens_per_expert.sum(axis=3)
        if self.tokens is None and (choices_SLG.max(axis=1) % counts.top_k).any():
            self.notes.append(
                f"the choices of the busiest layer are no multiple of K = {counts.top_k}: tokens were dropped, "
                "or K is another number"
            )
        fewer_L = (choices_SLG < counts.tokens[:, None] * counts.top_k).any(axis=(0, 2))
        if fewer_L.any():
            some = [layer for layer, fewer in zip(counts.layers, fewer_L.tolist(), strict=True) if fewer]
            self.notes.append(f"fewer choices than tokens x K in layers {span(some)}: dropped tokens, as a rule")


def span(numbers: Sequence[int]) -> str:
    """Numbers in words: "3", "0 to 2", "0, 2, 5"."""
    if len(numbers) > 2 and list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")


def note(notes: list[str], text: str) -> None:
    """Add a note once."""
    if text not in notes:
        notes.append(text)
