"""What an expert that is switched off leaves behind: nothing (zero), the same total weight on the token's other experts
(renormalise), or another choice of the router (reroute). Only the standard library is imported."""

from typing import Literal, get_args

Mode = Literal["zero", "renormalise", "reroute"]
MODES: tuple[Mode, ...] = get_args(Mode)
