"""How a model of the transformers library visits its experts on an accelerator, by how many tokens it reads.

The library's grouped product serves many tokens. For a few, which is how text is written, its own `generate` takes the
weights of the chosen experts out and multiplies them one by one, "much more performant" there by its words; it changes
the model's configuration for that long. A model here may be read by several threads, so each pass decides for itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

BY_TOKENS = "moescope_by_tokens"
"""Under this name the library knows the way below."""


def visit_experts_by_tokens(model: Any) -> None:
    """Let a model that has the library's grouped product decide in each pass; leave any other as it is."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    if not hasattr(model, "get_experts_implementation"):
        return
    kinds: dict[str, str | None] = model.get_experts_implementation()
    if "grouped_mm" not in kinds.values():
        return
    ALL_EXPERTS_FUNCTIONS.register(BY_TOKENS, by_tokens)
    wanted = {key: BY_TOKENS if kind == "grouped_mm" else kind for key, kind in kinds.items()}
    model.set_experts_implementation(wanted)


def by_tokens(experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The experts' output [T, D], by whichever of the library's functions suits T tokens of K slots.

    The chosen experts' weights are copied only while these copies are no larger than the layer itself.
    """
    from transformers.integrations.moe import batched_mm_experts_forward, grouped_mm_experts_forward

    few = top_k_index.numel() <= experts.num_experts
    way: Any = batched_mm_experts_forward if few else grouped_mm_experts_forward
    found: Tensor = way(experts, hidden_states, top_k_index, top_k_weights)
    return found
