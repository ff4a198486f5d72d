"""Moescope as pip installs it from its wheel: outside the checkout, without the network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What a wheel is built from. Also bench and tests: a wheel must leave them out although they are there.
SOURCES = ("app", "bench", "data_gen", "moe_core", "tests")


@dataclass(frozen=True)
class Installed:
    """An environment of its own with the wheel, and an empty folder to work in."""

    programs: Path
    packages: Path
    """site-packages, where the wheel lies."""
    work: Path

    def environment(self, **more: str) -> dict[str, str]:
        """Variables of a shell that knows nothing of the checkout."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MOESCOPE_", "PYTHON"))}
        return {**kept, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default", **more}

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A program of the environment, in the folder to work in."""
        return subprocess.run(
            [str(self.programs / command[0]), *command[1:]],
            cwd=self.work,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
        )

    def files(self) -> dict[str, bytes]:
        """Everything of ours in site-packages but what Python compiles."""
        ours = [path for name in ("app", "data_gen", "moe_core") for path in (self.packages / name).rglob("*")]
        return {
            str(path.relative_to(self.packages)): path.read_bytes()
            for path in ours
            if path.is_file() and "__pycache__" not in path.parts
        }


def install(folder: Path) -> Installed:
    """Build the wheel and install it with pip; its dependencies are those that the tests run with."""
    source = folder / "source"
    for name in SOURCES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "main.py"):
        shutil.copyfile(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    _do([*pip, "wheel", str(source), "--no-index", "--no-deps", "--no-build-isolation", "-w", str(folder / "wheels")])
    shutil.rmtree(source)
    home = folder / "environment"
    venv.create(home, symlinks=True)
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "of_the_tests.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    (wheel,) = (folder / "wheels").glob("moescope-*.whl")
    _do([*pip, "--python", str(home / "bin" / "python"), "install", "--no-index", "--no-deps", str(wheel)])
    work = folder / "work"
    work.mkdir()
    return Installed(home / "bin", packages, work)


def _do(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
