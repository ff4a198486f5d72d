"""Routing recorded elsewhere: vLLM, SGLang, llama.cpp, or any Parquet table. Formats: docs/trace-format.md."""

from moe_core.recording_formats import FORMAT_NAMES as FORMATS
from moe_core.routing.recordings.conversion import Imported, convert, read

__all__ = ["FORMATS", "Imported", "convert", "read"]
