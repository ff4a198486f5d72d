"""Routing recorded elsewhere: vLLM, SGLang, llama.cpp, or any Parquet table. Formats: docs/trace-format.md."""

from moe_core.routing.recordings.conversion import FORMATS, Imported, convert, read

__all__ = ["FORMATS", "Imported", "convert", "read"]
