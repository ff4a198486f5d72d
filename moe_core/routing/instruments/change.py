"""What is done to one expert, in words and as moe_core takes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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


@dataclass(frozen=True)
class Change:
    """One expert and what is done to it."""

    layer: int
    expert: int
    mode: str
    """A value of MODES."""

    @property
    def what(self) -> str:
        """As part of a sentence, such as "without expert 5 of layer 2"."""
        which = f"expert {self.expert} of layer {self.layer}"
        return {
            "zero": f"without {which}",
            "renormalise": f"without {which}, its weight given to the others",
            "reroute": f"without {which}, others chosen instead",
            FORCE: f"with {which} chosen for every token",
        }[self.mode]

    @property
    def intervention(self) -> Intervention:
        """The same for moe_core. Raises UsageError for a mode that is none."""
        from moe_core.routing import Intervention

        expert = ((self.layer, self.expert),)
        return Intervention(force=expert) if self.mode == FORCE else Intervention(ablate=expert, mode=self.mode)  # type: ignore[arg-type]
