"""One process of a training in several, for tests: trains the runs that a JSON file names, one after another.

    python ranks_worker.py CASES.json

A case is {"run", "root", "config", "resume"}; what goes wrong is written beside it as <run>.error by the first process.
"""

from __future__ import annotations

import json
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
        try:
            config = validate_config(case["config"])
            if case["resume"]:
                config = load_config(run.config(), environment={}, overrides=case["resume"])
            train(run, config, resume=bool(case["resume"]))
        except MoescopeError as error:
            if distributed.get_rank() == 0:
                (Path(case["root"]) / f"{case['run']}.error").write_text(str(error), encoding="utf-8")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
