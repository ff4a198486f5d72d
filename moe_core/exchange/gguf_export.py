"""A run as one GGUF file, which llama.cpp loads and writes the same greedy text with. Needs the library gguf."""

from __future__ import annotations

import importlib.util
import json
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from moe_core.config import ModelConfig
from moe_core.errors import UsageError
from moe_core.exchange.gguf_architectures import Architecture, architecture_of, to_gguf_tensors
from moe_core.exchange.layouts import Family
from moe_core.exchange.targets import fit_to_family, target_family
from moe_core.files import TEMPORARY_PREFIX, fsync
from moe_core.model.rope import rope_base
from moe_core.runs.files import translate_os_errors

if TYPE_CHECKING:
    from gguf import GGUFWriter

    from moe_core.data.tokenizer import Tokenizer
    from moe_core.runs.checkpoint import LoadedRun

GgufWeights = Literal["f32", "q8_0"]
Q8_0_BLOCK = 32
"""Numbers that share a scale in Q8_0; a row must be a multiple of it."""
KEPT_EXACT = ("ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "exp_probs_b.bias", "norm.weight")
"""Ends of the names of tensors that stay float32: routers and norms are small, and llama.cpp keeps them so too."""
SPLITS_AS_GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


@dataclass(frozen=True)
class ExportedGguf:
    """What was written."""

    family: Family
    architecture: str
    """llama.cpp's name of it, such as qwen3moe."""
    path: Path
    weights: GgufWeights
    parameters: int
    """Numbers in the file's tensors."""
    bytes: int
    """Size of the file."""
    left_exact: int
    """Matrices that stay float32 in a q8_0 file because their rows are no multiple of 32 numbers; 0 for f32."""
    context: int
    """Tokens the model sees at once."""


def export_gguf(loaded: LoadedRun, target: Path, weights: GgufWeights = "f32") -> ExportedGguf:
    """Write the run's weights and tokenizer to the file `target`, which must not exist; it appears whole or not at all.

    Raises UsageError where the library gguf is missing, where no architecture of llama.cpp equals the model, or the
    name is taken; RunError on a full disk.
    """
    check_gguf()
    if target.exists():
        raise UsageError(f"--to {str(target)!r} exists already; choose another, or remove it")
    family = target_family(loaded.config.model)
    architecture = architecture_of(loaded.config.model, family)
    config, state = fit_to_family(loaded.config.model, loaded.model.state_dict(), family)
    tensors = to_gguf_tensors(state, config, family, architecture)
    # Positions beyond the trained length were never learned: the file must say where they end.
    context = min(config.max_seq_len, loaded.config.training.seq_len)

    from gguf import GGUFWriter

    writer = GGUFWriter(None, architecture.name)
    writer.add_name(loaded.run.name)
    _add_model(writer, config, architecture, context)
    _add_tokenizer(writer, loaded.tokenizer)
    left_exact = _add_tensors(writer, tensors, weights)
    size = _write(writer, target)
    parameters = sum(tensor.numel() for tensor in tensors.values())
    return ExportedGguf(family, architecture.name, target, weights, parameters, size, left_exact, context)


def check_gguf() -> None:
    """Raise UsageError where the library gguf is not installed."""
    if importlib.util.find_spec("gguf") is None:
        raise UsageError(
            "a GGUF file needs the library gguf, which is not installed; python -m pip install -r "
            "requirements-low-precision.txt in a checkout, else pip install 'moescope[low-precision]'"
        )


def _add_model(writer: GGUFWriter, config: ModelConfig, architecture: Architecture, context: int) -> None:
    from gguf import ExpertGatingFuncType

    # llama and granitemoe read their experts' width under the name of a dense block's.
    one_width = architecture.name in ("llama", "granitemoe")
    writer.add_context_length(context)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.num_layers)
    writer.add_vocab_size(config.vocab_size)
    writer.add_feed_forward_length(config.expert_hidden_dim if one_width else config.dense_hidden_dim)
    writer.add_expert_feed_forward_length(config.expert_hidden_dim)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(rope_base(config, 1))
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_expert_count(config.num_experts)
    writer.add_expert_used_count(config.top_k)
    if config.shared_expert_hidden_dim:
        writer.add_expert_shared_feed_forward_length(config.shared_expert_hidden_dim)
    if architecture.name == "granitemoe":
        for add in (writer.add_logit_scale, writer.add_residual_scale, writer.add_embedding_scale):
            add(1.0)
        writer.add_attention_scale(config.head_dim**-0.5)
    if architecture.normalizes is None:
        writer.add_expert_shared_count(config.shared_expert_hidden_dim // config.expert_hidden_dim)
        writer.add_expert_weights_norm(config.router.normalize_scores and config.top_k > 1)
        writer.add_expert_weights_scale(1.0)
        writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)
        writer.add_leading_dense_block_count(config.num_layers - len(config.moe_layers))
        writer.add_nextn_predict_layers(0)


def _add_tokenizer(writer: GGUFWriter, tokenizer: Tokenizer) -> None:
    """Our vocabulary and merges. llama.cpp puts end-of-text before every text, as the model was trained."""
    from gguf import TokenType

    tree = json.loads(tokenizer.to_json())
    splits = tree["pre_tokenizer"] or {}
    if tree["normalizer"] is not None or splits != SPLITS_AS_GPT2 or tree["model"].get("ignore_merges"):
        raise UsageError(
            f"the run's tokenizer splits text otherwise than GPT-2's (pre_tokenizer {splits.get('type')}), which this "
            "GGUF export does not write; write --format huggingface instead"
        )
    tokens = sorted(tree["model"]["vocab"], key=tree["model"]["vocab"].get)
    end = tokenizer.end_of_text
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if number == end else TokenType.NORMAL for number in range(len(tokens))])
    merges = tree["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_pad_token_id(end)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)


def _add_tensors(writer: GGUFWriter, tensors: dict[str, Tensor], weights: GgufWeights) -> int:
    """How many matrices stay float32 because their rows do not fit Q8_0's blocks."""
    from gguf import GGMLQuantizationType, LlamaFileType, quantize

    left_exact = 0
    for name, tensor in tensors.items():
        array = tensor.numpy()
        if weights == "f32" or name.endswith(KEPT_EXACT):
            writer.add_tensor(name, array)
        elif array.shape[-1] % Q8_0_BLOCK:
            left_exact += 1
            writer.add_tensor(name, array)
        else:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(name, quantize(array, kind), raw_dtype=kind)
    writer.add_file_type(LlamaFileType.ALL_F32 if weights == "f32" else LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(2)
    return left_exact


def _write(writer: GGUFWriter, target: Path) -> int:
    """Write beside `target` and rename: the file is there as a whole or not at all. Its size in bytes."""
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    with translate_os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            try:
                writer.write_header_to_file(temporary)
                writer.write_kv_data_to_file()
                writer.write_tensors_to_file()
            finally:
                writer.close()
            fsync(temporary)
            temporary.replace(target)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        fsync(target.parent)
        return target.stat().st_size
