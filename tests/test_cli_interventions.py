"""The command line of `generate` under an intervention, as its users run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cli_support import Run

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def run(cli: Run, trained_root: Path) -> Run:
    """`python main.py generate` with more arguments."""
    return partial(cli, trained_root, "generate", "--run", "tiny", "--prompt", "The ")


def generated(run: Run, *arguments: str) -> dict[str, Any]:
    code, out, err = run("--max-new-tokens", "6", "--temperature", "0", "--json", *arguments)
    assert code == 0, err
    result: dict[str, Any] = json.loads(out)
    return result


def test_ablated_experts_are_visited_by_no_token_and_the_json_says_what_was_changed(run: Run) -> None:
    plain = generated(run)
    ablated = generated(run, "--ablate", "0:1", "--ablate", "1:2", "--mode", "reroute", "--force", "1:0")
    assert plain["intervention"] == {"ablate": [], "force": [], "mode": "zero", "top_k": None, "temperature": None}
    assert {**ablated["intervention"], "top_k": 0, "temperature": 0} == {
        "ablate": [[0, 1], [1, 2]], "force": [[1, 0]], "mode": "reroute", "top_k": 0, "temperature": 0
    }  # fmt: skip
    for token in ablated["tokens"]:
        first, second = token["experts"]
        assert 1 not in first
        assert -1 not in first
        assert 2 not in second
        assert 0 in second
    assert plain["tokens"] != ablated["tokens"]


@pytest.mark.slow
def test_as_a_process_the_text_is_on_stdout_and_the_change_on_stderr(trained_root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "main.py", "generate", "--run", "tiny", "--prompt", "The ", "--max-new-tokens", "4",
         "--ablate", "0:1"],
        cwd=ROOT, env={**os.environ, "MOESCOPE_CHECKPOINTS": str(trained_root)}, text=True, capture_output=True,
        timeout=240,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stdout.endswith("\n")
    assert done.stderr.strip().endswith("tokens/s; ablate 0:1 (zero)")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ablate", "7:1"], "layer 7 has no experts; expected one of the MoE layers 0, 1"),
        (["--ablate", "1:4"], "layer 1 has no expert 4; expected 0 to 3"),
        (["--force", "x"], "'x' names no expert; expected LAYER:EXPERT, such as 2:5"),
        (["--ablate", "0:1", "--force", "0:1"], "expert 0:1 is both ablated and forced"),
        (["--mode", "reroute"], "--mode reroute says what ablated experts leave behind; add --ablate L:E"),
        (["--mode", "off", "--ablate", "0:1"], "invalid choice: 'off'"),
    ],
)
def test_a_wrong_expert_or_mode_is_one_line(arguments: list[str], words: str, run: Run) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
