"""What is done to one expert or several, in words and as moe_core takes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moe_core.words import count_of, listed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moe_core.routing import Intervention

FORCE = "force"
MODES = {
    "Switch it off": "zero",
    "Give its weight to the others": "renormalise",
    "Let the router choose again": "reroute",
    "Choose it for every token": FORCE,
}
"""What a page offers, in words that stand in its URL; the first three are the modes of Intervention.ablate."""
ABOUT = (
    "Switch it off: its tokens get nothing in its place. Give its weight to the others: their other experts count for "
    "more, as much as it did. Let the router choose again: the next best expert comes in. Choose it for every token: "
    "the opposite, all tokens of the layer pass through it."
)
MOST_NAMED = 6
"""More experts are counted, not named."""


def experts_named(experts: Sequence[tuple[int, int]]) -> str:
    """As "expert 5 of layer 2", "experts 5 and 6 of layer 2 and expert 1 of layer 3", "12 experts of 3 layers"."""
    layers = sorted({layer for layer, _ in experts})
    if len(experts) > MOST_NAMED:
        return f"{count_of(len(experts), 'expert')} of {count_of(len(layers), 'layer')}"
    parts = []
    for layer in layers:
        own = sorted(expert for at, expert in experts if at == layer)
        parts.append(f"expert{'s' if len(own) > 1 else ''} {listed([str(expert) for expert in own])} of layer {layer}")
    return listed(parts)


@dataclass(frozen=True)
class Change:
    """One expert, perhaps others with it, and what is done to them."""

    layer: int
    expert: int
    mode: str
    """A value of MODES."""
    also: tuple[tuple[int, int], ...] = ()
    """(layer, expert) of others that it is done to at once."""

    @property
    def experts(self) -> tuple[tuple[int, int], ...]:
        """(layer, expert) of all, each once, the one that was chosen first."""
        return tuple(dict.fromkeys(((self.layer, self.expert), *self.also)))

    @property
    def which(self) -> str:
        """See experts_named."""
        return experts_named(self.experts)

    @property
    def what(self) -> str:
        """As part of a sentence, such as "without expert 5 of layer 2"."""
        its = "its" if len(self.experts) == 1 else "their"
        return {
            "zero": f"without {self.which}",
            "renormalise": f"without {self.which}, {its} weight given to the others",
            "reroute": f"without {self.which}, others chosen instead",
            FORCE: f"with {self.which} chosen for every token",
        }[self.mode]

    @property
    def intervention(self) -> Intervention:
        """The same for moe_core. Raises UsageError for a mode that is none."""
        from moe_core.routing import Intervention

        experts = self.experts
        return Intervention(force=experts) if self.mode == FORCE else Intervention(ablate=experts, mode=self.mode)  # type: ignore[arg-type]
