"""`moescope dashboard`: the same as `streamlit run app`, wherever Moescope is installed."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path

from moe_core.cli.options import Parser, command
from moe_core.cli.output import Output
from moe_core.errors import UsageError

APP = Path(__file__).resolve().parents[2] / "app"


def parser() -> Parser:
    """Takes whatever comes: the options are Streamlit's, and after -- the dashboard's own."""
    found = command(
        "dashboard",
        "Open the dashboard in a browser, the same as `streamlit run app`; it serves this machine only. Options go to\n"
        "Streamlit; what follows -- goes to the dashboard, to open it on a file of routing (a trace, counts or a\n"
        "recording) or on a model of the transformers library.",
        "dashboard --server.port 8600",
        "dashboard -- --trace out/trace.parquet",
        "dashboard -- --trace imatrix.gguf",
        "dashboard -- --model ../some-moe --dtype bfloat16",
    )
    found.set_defaults(handler=dashboard, json=None, rest=[])
    return found


def dashboard(arguments: argparse.Namespace, output: Output) -> int:  # noqa: ARG001 - every handler has this signature
    """Become Streamlit's process: it ends as Streamlit does, and a signal reaches Streamlit itself."""
    if importlib.util.find_spec("streamlit") is None:
        raise UsageError("the dashboard needs streamlit, which is not installed; pip install streamlit")
    sys.stdout.flush()
    sys.stderr.flush()
    # -P: a file of the working folder that has the name of a library must not be taken for it.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "streamlit", "run", str(APP), *arguments.rest])
