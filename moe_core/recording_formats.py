"""The table of formats of recorded routing that `convert` reads. A new one is a line here and its reader's file.

This file imports nothing heavy, for the command line reads it before it knows what it is asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

READERS = "moe_core.routing.recordings"


@dataclass(frozen=True)
class RecordingFormat:
    """One format, and the module that reads it.

    A module of answers (file kinds npy and json) has `is_answer(record)` and
    `answer_texts(record, where, name, options, given_ids)`; a module of files has `open_recording(path, options)` and,
    where other formats come in the same kind of file, `is_recording(path)`, which looks at the file's content.
    """

    name: str
    """As `--format` takes it."""
    title: str
    """What made the recording, for people."""
    file_kinds: tuple[str, ...]
    """The kinds of file it comes in, names of FILE_KINDS. With `auto`, the first format of a kind whose module says
    that a file is its own reads it; answers (npy, json) tell themselves which format they are."""
    reader: str
    """Full name of the module."""
    server: str = ""
    """The server that answers so, and how its answers are known, for messages."""
    holds: Literal["tokens", "counts"] = "tokens"
    """Routing token by token, which becomes a trace, or counts. A module of counts has, in place of `open_recording`,
    `open_counts(path, options, progress)`, which gives a RoutingCounts."""
    side_by_side: str = ""
    """How the files of the ranks are named that lie in one folder and are read together; empty where a recording is
    one file. The path that the module gets may then be a folder or a glob: rank_files.py says what it stands for."""


FILE_KINDS = {
    "npy": "a .npy array",
    "json": "JSON or a .npz file",
    "parquet": "a Parquet table",
    "torch": "a file of torch.save",
    "gguf": "a GGUF file",
    "pickle": "a pickle",
    "text": "text",
}
"""Kinds that a file's first bytes tell apart, in words."""
ANSWER_KINDS = ("npy", "json")
RECORDING_FORMATS = (
    RecordingFormat("vllm", "vLLM routed_experts", ANSWER_KINDS, f"{READERS}.vllm", "vLLM"),
    RecordingFormat(
        "sglang", "SGLang routed_experts", ANSWER_KINDS, f"{READERS}.sglang", "SGLang (meta_info or sglext)"
    ),
    RecordingFormat(
        "sglang-stat",
        "SGLang expert distribution recorder",
        ("torch",),
        f"{READERS}.sglang_buffer",
        holds="counts",
        side_by_side="expert_distribution_recorder_*.pt",
    ),
    RecordingFormat(
        "sglang-csv",
        "SGLang expert distribution",
        ("text",),
        f"{READERS}.sglang_csv",
        holds="counts",
        side_by_side="expert_distribution_rank*.csv",
    ),
    RecordingFormat("llama.cpp", "llama.cpp moe-trace", ("text",), f"{READERS}.llama_cpp"),
    RecordingFormat("imatrix", "llama.cpp importance matrix", ("gguf",), f"{READERS}.imatrix", holds="counts"),
    RecordingFormat("parquet", "Parquet table", ("parquet",), f"{READERS}.parquet_table"),
    RecordingFormat(
        "sglang-tokens",
        "SGLang expert distribution, per token",
        ("torch",),
        f"{READERS}.sglang_tokens",
        side_by_side="expert_distribution_recorder_*.pt",
    ),
    RecordingFormat(
        "megatron-trace",
        "Megatron-LM router trace",
        ("json",),
        f"{READERS}.megatron_trace",
        side_by_side="router_trace_rank*.jsonl",
    ),
    RecordingFormat(
        "megatron-counts",
        "Megatron-LM tokens per expert",
        ("json",),
        f"{READERS}.megatron_counts",
        holds="counts",
        side_by_side="rank*.jsonl",
    ),
    RecordingFormat(
        "reap", "REAP observations", ("torch",), f"{READERS}.reap", holds="counts", side_by_side="observations*.pt"
    ),
    RecordingFormat(
        "olmoe", "OLMoE expert counts", ("pickle",), f"{READERS}.olmoe", holds="counts", side_by_side="*.pkl"
    ),
    RecordingFormat("gpt-oss", "gpt-oss expert fingerprint", ("json",), f"{READERS}.gpt_oss", side_by_side="*.json"),
)
"""Answers that several formats recognize are read by the last of them; the first one reads those that none does."""
FORMAT_NAMES = ("auto", *(one.name for one in RECORDING_FORMATS))
"""What `--format` takes; auto goes by the file's name and content."""


def title_of(format_name: str) -> str:
    """What made a recording of this format, for people; of plain arrays if it is no format's name."""
    return next((one.title for one in RECORDING_FORMATS if one.name == format_name), "routed_experts array")
