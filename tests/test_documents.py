"""What the README and docs/ say holds: commands parse, links and paths lead somewhere, Python runs."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from moe_core.cli.parser import parse
from moe_core.config import load_config, parse_overrides
from moe_core.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = ("python main.py", "moescope")
FOLDERS = ("app", "bench", "data_gen", "docs", "moe_core", "tests")
every_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def commands(text: str) -> list[str]:
    """Command lines of the program: indented lines, lines of code blocks, and what stands between backticks."""
    code = [line for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    quoted = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [found for found in (*code, *lines, *quoted) if found.startswith(tuple(f"{name} " for name in PROGRAMS))]


def arguments_of(line: str) -> list[str]:
    """What follows the program's name; a remark behind the command and an ellipsis are left out."""
    words = shlex.split(line, comments=True)
    rest = words[2:] if words[0] == "python" else words[1:]
    return [word for word in rest if word != "..."]


def blocks_of_python(text: str) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))


def test_the_readme_is_a_page() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_readme_counts_the_goals_as_the_results_do() -> None:
    total, reached = re.search(r"Of (\d+) goals (\d+) are reached", (ROOT / "docs/results.md").read_text()).groups()  # type: ignore[union-attr]
    assert f"{reached} of {total} goals are reached" in (ROOT / "README.md").read_text()


@every_page
def test_every_command_parses(path: Path) -> None:
    for line in commands(path.read_text()):
        arguments = arguments_of(line)
        if arguments in (["--help"], ["--version"]) or arguments[:1] == ["dashboard"]:
            continue
        parsed = parse(arguments)
        overrides = getattr(parsed, "overrides", [])
        if overrides:
            load_config(overrides=parse_overrides(overrides), environment={})


def test_commands_are_found_and_a_wrong_one_is_refused() -> None:
    text = "x `python main.py runs` y\n\n    python main.py trace --nonsense   # no\n\n"
    text += "```sh\npython main.py presets\n```\n"
    assert [arguments_of(line) for line in commands(text)] == [["presets"], ["trace", "--nonsense"], ["runs"]]
    with pytest.raises(UsageError, match="nonsense"):
        parse(["runs", "--nonsense"])
    listed = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("    python main.py ")]
    assert len(listed) == 10
    assert len(commands((ROOT / "docs" / "cli.md").read_text())) > 20


@every_page
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if "://" in target:
            continue
        page, _, anchor = target.partition("#")
        found = path if not page else path.parent / page
        assert found.exists(), f"{path.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{path.name} links to {target}"


@every_page
def test_every_path_that_is_named_exists(path: Path) -> None:
    if path.name == "LOG.md":  # dated entries name the files of their day
        return
    for named in re.findall(r"(?<![\w/.-])((?:" + "|".join(FOLDERS) + r")/[\w./-]*\w)(?![\w/<*])", path.read_text()):
        if "NAME" not in named:  # a file that the reader is to write
            assert (ROOT / named).exists(), f"{path.relative_to(ROOT)} names {named}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["README.md", "docs/python.md"])
def test_its_python_runs(name: str, tmp_path: Path) -> None:
    code = blocks_of_python((ROOT / name).read_text())
    assert code.count("\n") >= 10
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MOESCOPE_CHECKPOINTS": str(tmp_path / "checkpoints")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "layer" in done.stdout


def test_the_site_shows_every_page_and_modules_that_exist() -> None:
    """`make docs` needs a generator that the tests do not; what would break it in our tree is held here."""
    navigation = (ROOT / "zensical.toml").read_text()
    for page in sorted((ROOT / "docs").rglob("*.md")):
        assert f'"{page.relative_to(ROOT / "docs").as_posix()}"' in navigation, page
    named = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "reference.md").read_text(), re.MULTILINE)
    assert len(named) > 10
    for module in named:
        assert importlib.import_module(module).__doc__, module
