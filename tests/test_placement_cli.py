"""`placement`: three answers, and files that engines take, of a trace and of counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_support import Run, assert_one_line
from placement_support import read_as_sglang, read_as_tensorrt_llm, write_files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("placement"))


def test_a_trace_gives_three_answers_and_both_files(cli: Run, files: Path, tmp_path: Path) -> None:
    sglang, tensorrt = tmp_path / "location.json", tmp_path / "balancer.yaml"
    options = ("--gpus", "4", "--replicas", "12", "--model-layers", "3", "--to-sglang", str(sglang))
    code, out, err = cli(
        tmp_path, "placement", str(files / "x.parquet"), *options, "--to-tensorrt-llm", str(tensorrt), "--json"
    )
    assert code == 0, err
    found = json.loads(out)
    assert "80 % of a layer's work" in err
    assert "A cache of the 4 of 8 experts used last" in err
    assert "busiest GPU" in err
    assert "--ep-num-redundant-experts 4" in err
    rows = read_as_sglang(sglang.read_text(), num_experts=8, redundant=4, ep_size=4, hidden_layers=3)
    assert rows[:2] == list(found["physical_to_logical_map"].values())
    assert read_as_tensorrt_llm(tensorrt.read_text(), num_experts=8, ep_size=4, moe_layers=[0, 1])[1] == rows[1]
    assert found["cache"]["layers"][0]["even"] == 1 / 8


def test_counts_say_what_the_cache_takes(cli: Run, files: Path, tmp_path: Path) -> None:
    code, out, err = cli(tmp_path, "placement", str(files / "x.counts.parquet"), "--domain", "domain 1")
    assert code == 0, err
    assert "takes the choices token by token" in out
    assert "Placed by its domain 1 text." in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--gpus", "3", "--replicas", "8"), ("8 physical experts on 3 GPUs", "such as 9")),
        (("--to-sglang", "x.txt"), ("--to-sglang 'x.txt' must end in .json",)),
        (("--domain", "none"), ("domain 'none' is not in these counts",)),
        (("--gpus", "none"), ("--gpus",)),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    cli: Run, files: Path, tmp_path: Path, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    code, _, err = cli(tmp_path, "placement", str(files / "x.parquet"), *options)
    assert code
    assert_one_line(err, *words)
    assert not list(tmp_path.iterdir())


def test_one_subject_is_needed(cli: Run, tmp_path: Path) -> None:
    code, _, err = cli(tmp_path, "placement")
    assert code
    assert_one_line(err, "give a FILE, or --run NAME")
