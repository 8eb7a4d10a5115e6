"""Holds the house: which room may import which, who may touch the heavy libraries, how big things may grow."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from xray_opt.leaderboard import INTERVALS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "xray_opt"

#: Row → rooms. A room imports only from rows below its own, never sideways, never up.
ROWS = (
    ("errors", "metrics", "interrupts", "threads"),
    ("intervals", "calibration"),
    ("config", "faults"),
    ("dataset", "backbone", "loss", "phantom", "kaggle", "services", "spool", "moved_store"),
    ("cache", "adapter", "augment", "ledger"),
    ("feed",),
    ("evaluate",),
    ("mlflow_client", "trainer", "system_metrics", "robustness", "explain"),
    ("tracking", "registry", "served_model", "objectives"),
    ("experiment",),
    ("tuning",),
    ("leaderboard", "places", "kept_base", "overlap"),
    ("settling", "report"),
    ("workers", "single", "scoring", "upkeep", "syncing", "interfaces", "migrate", "doctor"),
    ("launchers", "finalize", "confirm", "base_export", "export", "serving"),
    ("baseline", "reproduce", "reporting"),
    ("api", "cli"),
)
ROW = {room: row for row, rooms in enumerate(ROWS) for room in rooms}
#: Library → the only rooms that import it.
DOORS = {
    "optuna": {"tuning"},
    "optuna_dashboard": {"tuning"},
    "mlflow": {"mlflow_client", "tracking", "registry", "served_model", "serving"},
    "click": {"cli"},
    "rich": {"cli"},
    "peft": {"adapter"},
    "matplotlib": {"report"},
    "grpc": {"tuning"},
    "kagglehub": {"kaggle"},
    "pydicom": {"dataset"},
    "onnxruntime": {"export"},
    "ray": {"launchers"},
}
#: Rooms that must stay light: they import no torch.
WITHOUT_TORCH = {
    "config",
    "errors",
    "interrupts",
    "threads",
    "metrics",
    "intervals",
    "calibration",
    "dataset",
    "cache",
    "phantom",
    "kaggle",
    "services",
    "spool",
    "moved_store",
    "tuning",
    "leaderboard",
    "ledger",
    "report",
    "places",
    "migrate",
    "doctor",
    "cli",
}
LONGEST_FILE, LONGEST_FUNCTION = 300, 60


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def sources() -> list[Path]:
    return sorted(
        path for path in PACKAGE.rglob("*.py") if path.name != "__main__.py" and path.parent != PACKAGE / "studies"
    )


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own_rooms(path: Path) -> set[str]:
    names = {name.split(".")[1] for name in imports_of(path) if name.startswith("xray_opt.")}
    return names - {"__version__"}


def room_files() -> list[Path]:
    return [path for path in sources() if path != PACKAGE / "__init__.py"]


def test_the_test_split_is_opened_in_one_place() -> None:
    calls = {
        str(path.relative_to(PACKAGE))
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "open_test"
    }
    assert calls == {"scoring/opening.py"}


def test_nobody_chooses_by_the_interval_of_a_trial() -> None:
    """It is written by who trains and read by who shows it: the best of many is the best by luck as well."""
    names = {"interval_notes", "interval_of", "INTERVALS", *INTERVALS.values()}
    parts = {ast.Name: "id", ast.Attribute: "attr", ast.Constant: "value"}
    users = {
        str(path.relative_to(PACKAGE))
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        if getattr(node, parts.get(type(node), ""), None) in names
    }
    assert users == {"leaderboard.py", "workers/work.py", "cli/compare.py", "report/sections_study.py"}


def test_every_room_has_a_row() -> None:
    assert {room_of(path) for path in room_files()} <= set(ROW)


@pytest.mark.parametrize("path", room_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_import_only_from_rows_below(path: Path) -> None:
    room = room_of(path)
    for other in own_rooms(path) - {room}:
        assert ROW[other] < ROW[room], f"{room} (row {ROW[room]}) imports {other} (row {ROW[other]})"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_libraries_live_behind_their_doors(path: Path) -> None:
    room = room_of(path)
    libraries = {name.split(".")[0] for name in imports_of(path)}
    for library in libraries & set(DOORS):
        assert room in DOORS[library], f"{room} imports {library}, which only {DOORS[library]} may"
    if room in WITHOUT_TORCH:
        assert not libraries & {"torch", "torchvision", "peft"}


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_stay_small_and_documented(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a room opens with a docstring"
    assert text.count("\n") <= LONGEST_FILE
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < LONGEST_FUNCTION, node.name
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, "no bare except"


def test_no_import_cycles_between_modules() -> None:
    graph = {}
    for path in sources():
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        graph[name] = {other for other in top_level_imports(path) if other.startswith("xray_opt.")}
    modules = set(graph)
    edges = {name: {nearest(target, modules) for target in targets} - {name, None} for name, targets in graph.items()}
    assert not find_cycle(edges)


def top_level_imports(path: Path) -> set[str]:
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def nearest(name: str, modules: set[str]) -> str | None:
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name or None


def find_cycle(edges: dict[str, set[str]]) -> list[str]:
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return []
        for target in sorted(edges.get(name, ())):
            if cycle := visit(target, [*trail, name]):
                return cycle
        done.add(name)
        return []

    for start in sorted(edges):
        if cycle := visit(start, []):
            return cycle
    return []


def test_importing_the_cli_pulls_in_nothing_heavy() -> None:
    heavy = ("torch", "mlflow", "optuna", "sklearn", "pandas", "numpy", "PIL", "peft", "yaml", "rich")
    code = f"import sys, xray_opt.cli; print([name for name in {heavy!r} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_no_registry_hosts_in_the_repository() -> None:
    for path in (ROOT / "requirements.lock", ROOT / "pyproject.toml", ROOT / "Makefile"):
        assert "://" not in path.read_text() or path.name == "pyproject.toml"
        assert "/simple" not in path.read_text()


def test_every_room_has_its_tests() -> None:
    tests = {path.stem for path in (ROOT / "tests").glob("test_*.py")}
    for room in ROW:
        assert any(name == f"test_{room}" or name.startswith(f"test_{room}_") for name in tests), f"no tests of {room}"
