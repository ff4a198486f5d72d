"""The house rules of docs/decisions/0001: who may import whom, where caching lives, how long a file may be."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [
    *sorted(
        path
        for folder in ("moe_core", "data_gen", "app", "bench")
        for path in (ROOT / folder).rglob("*.py")
        if "__pycache__" not in path.parts
    ),
    ROOT / "main.py",
]

# Folder or module -> what it must never import (prefixes). `config` and `errors` may be imported by all.
FORBIDDEN: dict[str, tuple[str, ...]] = {
    "data_gen": ("moe_core", "app", "main", "bench", "torch", "streamlit"),
    "moe_core": ("app", "main", "streamlit"),
    "moe_core/config": ("moe_core.", "torch"),
    "moe_core/errors.py": ("moe_core", "torch"),
    "moe_core/files.py": ("moe_core.", "torch"),
    "moe_core/config/presets.py": ("pydantic",),
    "moe_core/data": ("torch", "moe_core.model", "moe_core.training", "moe_core.inference", "moe_core.evaluation"),
    "moe_core/model": (
        "moe_core.training",
        "moe_core.inference",
        "moe_core.evaluation",
        "moe_core.routing",
        "moe_core.runs",
        "moe_core.data",
        "moe_core.figures",
        "moe_core.reports",
        "moe_core.experiments",
        "moe_core.exchange",
    ),
    "moe_core/routing": (
        "moe_core.model",
        "moe_core.training",
        "moe_core.inference",
        "moe_core.evaluation",
        "moe_core.runs",
        "moe_core.data",
        "moe_core.figures",
        "moe_core.reports",
        "moe_core.experiments",
        "moe_core.exchange",
    ),
    "moe_core/routing/instruments": (
        "moe_core.routing.recordings",
        "moe_core.routing.statistics",
        "moe_core.routing.measures",
        "moe_core.routing.metrics",
        "moe_core.routing.baselines",
    ),
    "moe_core/routing/recordings": (
        "torch",
        "moe_core.routing.instruments",
        "moe_core.routing.statistics",
        "moe_core.routing.measures",
        "moe_core.routing.metrics",
        "moe_core.routing.baselines",
    ),
    "moe_core/routing/trace": (
        "torch",
        "moe_core.routing.instruments",
        "moe_core.routing.recordings",
        "moe_core.routing.statistics",
        "moe_core.routing.measures",
        "moe_core.routing.metrics",
        "moe_core.routing.baselines",
    ),
    "moe_core/routing/workers": (
        "torch",
        "moe_core.routing.instruments",
        "moe_core.routing.statistics",
        "moe_core.routing.measures",
        "moe_core.routing.metrics",
        "moe_core.routing.baselines",
    ),
    "moe_core/routing/metrics.py": ("torch", "moe_core.routing.instruments"),
    "moe_core/routing/baselines.py": ("torch", "moe_core.routing.instruments"),
    "moe_core/routing/measures": (
        "torch",
        "moe_core.routing.instruments",
        "moe_core.routing.metrics",
        "moe_core.routing.baselines",
    ),
    "moe_core/routing/placement": (
        "torch",
        "moe_core.routing.instruments",
        "moe_core.routing.measures",
        "moe_core.routing.metrics",
        "moe_core.routing.baselines",
    ),
    "moe_core/routing/statistics": (
        "torch",
        "moe_core.routing.instruments",
        "moe_core.routing.metrics",
        "moe_core.routing.baselines",
        "moe_core.routing.measures",
    ),
    "moe_core/runs": (
        "moe_core.training",
        "moe_core.inference",
        "moe_core.evaluation",
        "moe_core.experiments",
        "moe_core.exchange",
        "moe_core.figures",
        "moe_core.reports",
    ),
    "moe_core/figures": (
        "torch",
        "moe_core.model",
        "moe_core.training",
        "moe_core.inference",
        "moe_core.evaluation",
        "moe_core.reports",
    ),
    "moe_core/training": ("moe_core.experiments", "moe_core.exchange", "moe_core.figures", "moe_core.reports"),
    "moe_core/evaluation": (
        "moe_core.training",
        "moe_core.experiments",
        "moe_core.exchange",
        "moe_core.figures",
        "moe_core.reports",
    ),
    "moe_core/experiments": ("moe_core.exchange", "moe_core.figures", "moe_core.reports"),
    "moe_core/exchange": (
        "moe_core.inference",
        "moe_core.evaluation",
        "moe_core.experiments",
        "moe_core.figures",
        "moe_core.reports",
    ),
    "moe_core/reports": ("torch", "moe_core.model", "moe_core.training", "moe_core.exchange"),
    "moe_core/inference": (
        "moe_core.conversations",
        "moe_core.training",
        "moe_core.evaluation",
        "moe_core.experiments",
        "moe_core.exchange",
        "moe_core.figures",
        "moe_core.reports",
    ),
    "moe_core/conversations": (
        "moe_core.training",
        "moe_core.evaluation",
        "moe_core.experiments",
        "moe_core.exchange",
        "moe_core.figures",
        "moe_core.reports",
        "moe_core.server",
    ),
    "moe_core/client": (
        "torch",
        "moe_core.model",
        "moe_core.training",
        "moe_core.inference",
        "moe_core.evaluation",
        "moe_core.runs",
        "moe_core.experiments",
        "moe_core.exchange",
        "moe_core.figures",
        "moe_core.reports",
    ),
    "moe_core/server": (
        "moe_core.training",
        "moe_core.evaluation",
        "moe_core.experiments",
        "moe_core.exchange",
        "moe_core.figures",
        "moe_core.reports",
    ),
    "app": ("main", "moe_core.cli"),
}
NETWORK = ("httpx2", "httpx", "requests", "urllib3", "urllib.request", "http.client", "aiohttp", "socket")
ALLOWED: dict[str, tuple[str, ...]] = {
    "moe_core/config": ("moe_core.errors", "moe_core.config"),
    "moe_core/files.py": ("moe_core.errors",),
}
ONLY_MAIN_IMPORTS = "moe_core.cli"
ONLY_ITS_COMMAND_IMPORTS = "bench"


def imported_modules(path: Path) -> set[str]:
    """Every module name that the file imports anywhere, lazy imports included; `if TYPE_CHECKING:` counts as well."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            modules.add(node.module)
            modules.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"{path}: relative import; write the full name so that this test can follow it")
    return modules


def matches(module: str, prefix: str) -> bool:
    return module.startswith(prefix) if prefix.endswith(".") else module == prefix or module.startswith(prefix + ".")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_flow_one_way(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    modules = imported_modules(path)
    for place, prefixes in FORBIDDEN.items():
        if name == place or name.startswith(place + "/"):
            allowed = ALLOWED.get(place, ())
            bad = {
                module
                for module in modules
                for prefix in prefixes
                if matches(module, prefix) and not any(matches(module, fine) for fine in allowed)
            }
            assert not bad, f"{name} must not import {sorted(bad)}"
    if name not in ("main.py", "moe_core/__main__.py") and not name.startswith("moe_core/cli/"):
        assert not {module for module in modules if matches(module, ONLY_MAIN_IMPORTS)}, f"{name} imports the CLI"
    if not name.startswith("bench/") and name != "moe_core/cli/bench.py":
        assert not {module for module in modules if matches(module, ONLY_ITS_COMMAND_IMPORTS)}, f"{name} imports bench"


def test_only_the_client_and_a_cluster_reach_a_network() -> None:
    """The library makes no connection that its user did not name with an address: of a server, or of a Ray cluster."""
    addressed = [ROOT / "moe_core" / "client", ROOT / "moe_core" / "routing" / "workers" / "ray_cluster.py"]
    addressed.append(ROOT / "moe_core" / "server" / "listening.py")  # is asked, and asks nobody
    for path in SOURCES:
        inside = path.is_relative_to(ROOT / "moe_core") and not any(path.is_relative_to(one) for one in addressed)
        if inside or path.is_relative_to(ROOT / "app"):
            found = {module for module in imported_modules(path) for name in NETWORK if matches(module, name)}
            assert not found, f"{path.relative_to(ROOT)} imports {sorted(found)}"


def test_only_the_server_needs_the_extra_serve() -> None:
    for path in SOURCES:
        if not path.is_relative_to(ROOT / "moe_core" / "server"):
            found = {m for m in imported_modules(path) for name in ("fastapi", "uvicorn") if matches(m, name)}
            assert not found, f"{path.relative_to(ROOT)} imports {sorted(found)}"


def test_the_walker_sees_a_violation(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from moe_core.model import router\n    import torch.nn\n")
    assert {"moe_core.model", "moe_core.model.router", "torch.nn"} <= imported_modules(bad)
    assert matches("torch.nn", "torch")
    assert not matches("torchvision", "torch")


def imported_at_run_time(path: Path) -> list[ast.Import | ast.ImportFrom]:
    """The import statements of a file that run, those within a function included; not those for types alone."""
    return _run_time_imports_of_text(path.read_text(encoding="utf-8"))


@functools.cache
def _run_time_imports_of_text(text: str) -> list[ast.Import | ast.ImportFrom]:
    tree = ast.parse(text)
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    return [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom) and n not in typing_only]


def imported_files(path: Path, root: Path, sources: set[Path]) -> set[Path]:
    """The files of the tree that a file imports when it runs, from within a function included."""
    found: set[Path] = set()
    for node in imported_at_run_time(path):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif node.module:
            # A name is a submodule, or stands in the package's own file.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name if file_of(name, root, sources) else node.module for name in names]
        else:
            continue
        found |= {file for module in modules if (file := file_of(module, root, sources))}
    return found - {path}


def way_to_torch(start: Path, graph: dict[Path, set[Path]]) -> list[Path]:
    """The shortest chain of imports from a file to one that imports torch; empty where there is none."""
    ways = {start: [start]}
    waiting = [start]
    for path in waiting:
        modules = [
            name
            for node in imported_at_run_time(path)
            for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""])
        ]
        if any(matches(module, "torch") for module in modules):
            return ways[path]
        for other in sorted(graph[path] - set(ways)):
            ways[other] = [*ways[path], other]
            waiting.append(other)
    return []


def file_of(module: str, root: Path, sources: set[Path]) -> Path | None:
    """The file of a module or package of the tree; None for another library's."""
    base = root / module.replace(".", "/")
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path in sources), None)


def circles(graph: dict[Path, set[Path]]) -> list[set[Path]]:
    """Sets of files that reach each other by imports (strongly connected components of more than one file)."""

    def reached(start: Path) -> set[Path]:
        seen: set[Path] = set()
        waiting = [start]
        while waiting:
            new = graph[waiting.pop()] - seen
            seen |= new
            waiting += new
        return seen

    reach = {path: reached(path) for path in graph}
    found: list[set[Path]] = []
    for path in graph:
        around = {other for other in reach[path] if path in reach[other]}
        if around and not any(path in circle for circle in found):
            found.append(around)
    return found


def test_no_imports_run_in_a_circle() -> None:
    sources = set(SOURCES)
    graph = {path: imported_files(path, ROOT, sources) for path in SOURCES}
    found = {frozenset(path.relative_to(ROOT).as_posix() for path in circle) for circle in circles(graph)}
    assert found == set()


WITHOUT_TORCH = (
    *(
        "trace",
        "recordings",
        "workers",
        "placement",
        "statistics",
        "measures",
        "metrics.py",
        "baselines.py",
        "measured.py",
        "calibration.py",
        "coverage.py",
    ),
    "token_arrays.py",
)
"""What analyses a trace, under moe_core/routing: it starts in a moment, and where no torch is installed."""


def analysis_files() -> list[Path]:
    places = [ROOT / "moe_core" / name for name in ("figures", "reports", "client")]
    places += (ROOT / "moe_core" / "routing" / place for place in WITHOUT_TORCH)
    assert not [place for place in places if not place.exists()]
    return [path for path in SOURCES if any(path == place or path.is_relative_to(place) for place in places)]


def test_analysis_and_figures_reach_torch_on_no_way() -> None:
    """Neither at once nor later, through no other file of the tree."""
    sources = set(SOURCES)
    graph = {path: imported_files(path, ROOT, sources) for path in SOURCES}
    for path in analysis_files():
        way = " -> ".join(step.relative_to(ROOT).as_posix() for step in way_to_torch(path, graph))
        assert not way, f"{way} imports torch"


def test_only_instruments_touch_a_model_under_routing() -> None:
    for path in SOURCES:
        inside = path.is_relative_to(ROOT / "moe_core" / "routing")
        if inside and not path.is_relative_to(ROOT / "moe_core" / "routing" / "instruments"):
            assert not {module for module in imported_modules(path) if matches(module, "torch")}, path


def test_the_way_to_torch_is_found_through_a_lazy_import(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("first.py", "second.py", "third.py"))
    first.write_text("def f():\n    import second\n")
    second.write_text("import third\n")
    third.write_text("from torch import nn\n")
    sources = {first, second, third}
    graph = {path: imported_files(path, tmp_path, sources) for path in sources}
    assert way_to_torch(first, graph) == [first, second, third]
    third.write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import nn\n")
    assert way_to_torch(first, graph) == []


def test_the_circle_finder_sees_a_lazy_circle_and_no_circle_of_types(tmp_path: Path) -> None:
    files = {
        "a.py": "from b import thing\n",
        "b.py": "def f():\n    import c\n",
        "c.py": "from typing import TYPE_CHECKING\nfrom p import inner\nif TYPE_CHECKING:\n    import d\n",
        "p/__init__.py": "",
        "p/inner.py": "def g():\n    import a\n",
        "d.py": "import c\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    sources = {tmp_path / name for name in files}
    graph = {path: imported_files(path, tmp_path, sources) for path in sources}
    (found,) = circles(graph)
    assert {path.relative_to(tmp_path).as_posix() for path in found} == {"a.py", "b.py", "c.py", "p/inner.py"}


def test_all_of_the_dashboard_needs_streamlit() -> None:
    """What does not is of use without the dashboard, so that its place is in moe_core."""
    for path in SOURCES:
        if path.is_relative_to(ROOT / "app") and path.name != "__init__.py":
            assert "streamlit" in imported_modules(path), f"{path.relative_to(ROOT)} belongs in moe_core"


def test_caching_lives_in_loaders_only() -> None:
    for path in SOURCES:
        if path.name not in ("loaders.py", "effect_loaders.py", "chat_loaders.py"):
            assert "st.cache_" not in path.read_text(encoding="utf-8"), f"{path}: caching belongs in app/loaders.py"


def test_files_and_pages_stay_small() -> None:
    for path in SOURCES:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        limit = 160 if path.parent.name == "app_pages" else 420
        assert lines <= limit, f"{path.relative_to(ROOT)} has {lines} lines, more than {limit}"


def test_no_html_from_tokens() -> None:
    """Token text is untrusted: no raw HTML anywhere in the dashboard."""
    for path in SOURCES:
        if path.is_relative_to(ROOT / "app"):
            text = path.read_text(encoding="utf-8")
            assert "unsafe_allow_html" not in text, path
            assert "innerHTML" not in text, path
            assert "st.html" not in text, path


FIGURES_READ = ("moe_core.runs.record", "moe_core.runs.evaluation", "moe_core.runs.curves")
TOUCHES_A_DISK = {
    "open", "read_text", "read_bytes", "write_text", "write_bytes", "glob", "rglob", "iterdir", "exists", "stat",
    "read_csv", "read_parquet", "read_json", "to_parquet", "load", "read_run", "read_findings",
}  # fmt: skip


def disk_calls(path: Path) -> set[str]:
    """Names of functions and methods called in the file that would read or write a file."""
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    names = {node.func.id for node in calls if isinstance(node.func, ast.Name)}
    return (names | {node.func.attr for node in calls if isinstance(node.func, ast.Attribute)}) & TOUCHES_A_DISK


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if path.is_relative_to(ROOT / "moe_core" / "figures")], ids=lambda path: path.name
)
def test_figures_read_no_disk(path: Path) -> None:
    """Of a run they take what was read: a RunRecord, its evaluation, its curves."""
    foreign = {m for m in imported_modules(path) if matches(m, "moe_core.runs")} - {"moe_core.runs"}
    bad = {m for m in foreign if not any(matches(m, allowed) for allowed in FIGURES_READ)}
    assert not bad, f"{path.name} must not import {sorted(bad)}"
    assert not {m for m in imported_modules(path) if m.split(".")[0] in {"pathlib", "os", "shutil", "tempfile"}}
    assert not disk_calls(path), f"{path.name} calls {sorted(disk_calls(path))}"


def test_the_disk_rule_sees_a_violation(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text(
        "def f(path):\n    frame = pd.read_csv(path)\n    return frame, open(path), RoutingTrace.load(path)\n"
    )
    assert disk_calls(bad) == {"read_csv", "open", "load"}


SHARED_NAMES = {
    "analysis.py": "what was found out about a run, computed and kept",
    "files.py": "a file replaced as a whole, and those of a run",
    "beyond_length.py": "a measure with its figure",
    "load.py": "a measure with its figure",
    "long_context.py": "what is read beyond the trained length, and its page",
    "page.py": "the frame of a page: of the dashboard, and of the report",
    "registry.py": "what there is to choose from: measures, benchmarks",
    "causes.py": "a measure with its figure",
    "concordance.py": "a measure, and the words around its figure",
    "domains.py": "a measure, its figure and its page",
    "effects.py": "effects of experts, computed and drawn",
    "experts.py": "a measure, its figure and its page",
    "figure.py": "a figure, and its place in a page",
    "flow.py": "a measure and its page",
    "formation.py": "a measure with its figure",
    "interventions.py": "what changes the routing, and its page",
    "progress.py": "the progress of anything, and its bar in a page",
    "placement.py": "which experts are hot: its figure and its page",
    "pruning.py": "how many experts can go: computed, its measure and its figure",
    "tokens.py": "token by token: data, a measure, its figure and its page",
    "vocabulary.py": "a measure with its figure",
}
"""File names that stand in several rooms, because they do the same for each."""


def test_no_two_files_share_a_name_without_a_reason() -> None:
    rooms = [path for path in SOURCES if path.relative_to(ROOT).parts[0] in ("app", "moe_core")]
    names = [path.name for path in rooms if path.name != "__init__.py" and path.parent.name != "cli"]
    shared = {name for name in names if names.count(name) > 1}
    assert shared == set(SHARED_NAMES), "a name is shared that is not listed, or listed but not shared"


def test_multiprocessing_and_ray_start_with_the_engine_that_needs_them() -> None:
    """Counting alone imports neither."""
    modules = {"multiprocessing", "ray", "torch"}
    code = f"import sys, moe_core.routing.workers.count_files; print({modules} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("page", sorted((ROOT / "app" / "app_pages").glob("*.py")), ids=lambda path: path.stem)
def test_a_page_holds_no_string_that_streamlit_would_print(page: Path) -> None:
    """A string that stands alone in a page's file is shown on the page, also where it is meant for a reader of it."""
    first, *others = ast.parse(page.read_text(encoding="utf-8")).body
    alone = [node for node in others if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)]
    assert ast.get_docstring(ast.Module([first], [])) is not None
    assert [node.lineno for node in alone] == []
