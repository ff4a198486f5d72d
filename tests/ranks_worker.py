"""One process of a training in several, for tests: trains the runs that a JSON file names, one after another.

    python ranks_worker.py CASES.json

A case is {"run", "root", "config", "resume", "stop_at", "copy_of"}: `resume` = keys to resume it with, null = a new
run; it stops before step `stop_at`; it begins as a copy of another run's folder. What goes wrong is written beside it
as <run>.error by the first process.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from pathlib import Path

from torch import distributed

from moe_core.config import load_config, validate_config
from moe_core.errors import MoescopeError
from moe_core.runs.folder import RunFolder
from moe_core.training.loop import train


def main() -> None:
    """Train every case in the processes that torchrun started."""
    distributed.init_process_group("gloo")
    for case in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        run = RunFolder(case["run"], case["root"])
        if case["copy_of"] and distributed.get_rank() == 0:
            shutil.copytree(run.root / case["copy_of"], run.path)
        distributed.barrier()
        asked = itertools.count()
        try:
            resuming = case["resume"] is not None and run.exists()
            config = validate_config(case["config"])
            if resuming:
                config = load_config(run.config(), environment={}, overrides=case["resume"])
            train(run, config, resume=resuming, stop=lambda: next(asked) == case["stop_at"])  # noqa: B023
        except MoescopeError as error:
            if distributed.get_rank() == 0:
                (run.root / f"{run.name}.error").write_text(str(error), encoding="utf-8")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
