"""Run folders on disk: status, metrics, probes, held-out documents, checkpoints. Nothing else writes there."""

from moe_core.runs.folder import RunFolder, RunStatus
from moe_core.runs.listing import RunSummary, list_runs

__all__ = ["RunFolder", "RunStatus", "RunSummary", "list_runs"]
