"""Copy one of our models into a Hugging Face model of the same shape, name by name."""

from __future__ import annotations

import torch

from moe_core.model import MoETransformer


def load_into(hugging_face: torch.nn.Module, model: MoETransformer) -> None:
    """Overwrite every weight of `hugging_face` (Mixtral or Qwen3-MoE) with ours; fail if any name is left over."""
    state = {
        "model.embed_tokens.weight": model.embedding.weight,
        "lm_head.weight": model.embedding.weight,
        "model.norm.weight": model.norm.weight,
    }
    for i, block in enumerate(model.layers):
        ours, theirs = dict(block.named_parameters()), f"model.layers.{i}."
        for name, parameter in ours.items():
            if name.startswith("attention."):
                state[f"{theirs}self_attn.{name.removeprefix('attention.')}"] = parameter
            elif name.startswith("mlp."):
                state[theirs + name] = parameter
        state[f"{theirs}input_layernorm.weight"] = ours["attention_norm.weight"]
        state[f"{theirs}post_attention_layernorm.weight"] = ours["feed_forward_norm.weight"]
        if block.moe is not None:
            gate_up = torch.cat((ours["moe.experts.gate_proj"], ours["moe.experts.up_proj"]), dim=1)
            state[f"{theirs}mlp.gate.weight"] = ours["moe.router.weight"]
            state[f"{theirs}mlp.experts.gate_up_proj"] = gate_up
            state[f"{theirs}mlp.experts.down_proj"] = ours["moe.experts.down_proj"]
    hugging_face.load_state_dict({name: tensor.detach() for name, tensor in state.items()}, strict=True)


def router_indices(hugging_face: torch.nn.Module, token_ids: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Their logits, and what their routers chose, layer by layer."""
    chosen: list[torch.Tensor] = []
    handles = [
        module.register_forward_hook(lambda _module, _inputs, output: chosen.append(output[2]))
        for module in hugging_face.modules()
        if type(module).__name__.endswith("TopKRouter")
    ]
    with torch.no_grad():
        logits = hugging_face(token_ids).logits
    for handle in handles:
        handle.remove()
    return logits, chosen
