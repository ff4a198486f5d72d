"""Do the 95 % intervals hold the truth? `python -m moe_core.routing.coverage [--json] [--seeds 100]`.

Routing of documents that are alike inside, with a planted connection, drawn again and again.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import pandas as pd

from moe_core.routing.calibration import BY_LAYER, MEASURES, NULLS, SEEDS, random_trace


def coverage(name: str, seeds: int) -> float:
    """Part of the seeds, 0..1, whose 95 % interval holds the measure's mean over the seeds; documents alike."""
    traces = (random_trace(seed, skew=0.0, alike=0.5, planted=name, strength=1.0, layers=2) for seed in range(seeds))
    frames = [NULLS[name](trace, permutations=20).iloc[0] for trace in traces]
    mean = np.mean([frame[MEASURES[name].value] for frame in frames])
    return float(np.mean([frame["low"] <= mean <= frame["high"] for frame in frames]))


def main() -> None:
    """Print, for each baseline, the part of the seeds whose interval holds the truth."""
    parser = argparse.ArgumentParser(description="Do the 95 % intervals hold the truth?")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many random traces of each kind (default 100)")
    arguments = parser.parse_args()
    rows = [{"baseline": name, "coverage": round(coverage(name, arguments.seeds), 2)} for name in BY_LAYER]
    print(json.dumps(rows, indent=2) if arguments.json else pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
