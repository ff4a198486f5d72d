"""What an expert that is switched off leaves behind: nothing (zero), the same total weight on the token's other experts
(renormalise), or another choice of the router (reroute); and in which order experts go. Only the standard library is
imported."""

from typing import Literal, get_args

Mode = Literal["zero", "renormalise", "reroute"]
MODES: tuple[Mode, ...] = get_args(Mode)

Criterion = Literal["reap", "load", "effect", "random"]
"""What an order goes by. "reap": router-weighted expert activation, the mean over an expert's tokens of its weight
times the size of its output (Lasby et al. 2025, arXiv:2510.13999); "load": how many tokens choose it; "effect": what
the loss rises by when it alone is gone and the router chooses again; "random": a shuffle, the chance level."""
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
