"""Imports only go down the list of layers."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import sagasim

# From the ground up: a module may import what stands on its own line or above it.
LAYERS = """
units errors userfile
compiled
core rng eventlog expectation
plan
seen
seams
hardware
fill importers trace_stats trace workloads
calibrate cost
kvcache
policies
clock links tiers batching scheduler replica reference_cache reference
agent cluster
movement epochs failures
config laws
arrivals sources assembly
simulate
fairness
metrics contract recorded
validate
capacity curve_points curves
work
experiment slo stats
report
comparison
figures figures_compared trace_figures validate_figures results timeline_wire timeline_rows timeline_slices timeline
errors_page oracle gate sweeping
html_report
saga_page
calibration_commands
options
interface
cli
__main__
"""
RANK = {name: rank for rank, line in enumerate(LAYERS.splitlines()) for name in line.split()}
PACKAGE = Path(sagasim.__file__).parent
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def top(path: Path) -> str:
    """Module or subpackage of a file: its name on the list."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def running(path: Path) -> list[ast.AST]:
    """The nodes of a file but those that are only for type checkers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    return [node for node in ast.walk(tree) if id(node) not in skipped]


def imported(path: Path) -> set[str]:
    """Names on the list that a file imports, lazily or not; what is only for type checkers does not count."""
    names: set[str] = set()
    for node in running(path):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: relative import"
            module = node.module or ""
            names.update([f"sagasim.{a.name}" for a in node.names] if module == "sagasim" else [module])
    return {name.split(".")[1] for name in names if name.startswith("sagasim.")} - {"__version__"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    own = top(path)
    assert own in RANK, f"{own} has no place on the list of layers"
    # seams finds the built-in policies by importing their package, lazily: the one way up
    up = {name for name in imported(path) if RANK[name] > RANK[own]} - ({"policies"} if own == "seams" else set())
    assert not up, f"{own} imports {sorted(up)}"


def test_the_list_names_only_what_exists() -> None:
    assert set(RANK) - {top(path) for path in MODULES} == set()


def test_policies_see_no_engine() -> None:
    allowed = {"units", "errors", "core", "rng", "eventlog", "plan", "seen", "seams", "policies"}
    for path in (PACKAGE / "policies").glob("*.py"):
        assert imported(path) <= allowed, path.name


@pytest.mark.parametrize(("heavy", "where"), [("torch", set()), ("pandas", {"interface/frames.py"})])
def test_heavy_packages_are_imported_in_one_place(heavy: str, where: set[str]) -> None:
    found = set()
    for path in MODULES:
        nodes = running(path)
        names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
        names |= {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}
        if heavy in {name.split(".")[0] for name in names}:
            found.add(path.relative_to(PACKAGE).as_posix())
    assert found == where
