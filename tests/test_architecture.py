"""Who may import whom: read from the source, so that a shortcut cannot slip in."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("bench", "baselines", "bps")

_LOOP = ("bench.running", "bench.grid", "bench.training.loop", "bench.training.engine")
_METHODS = ("bench.base.load", "bench.types", "bench.base.weights")
# Of the product, a module of these rooms imports nothing but its own room and what stands here;
ONLY = {
    "bps": _METHODS,
    "baselines": _METHODS,
    "bench.metrics": ("bench.content", "bench.types", "bench.randomness", "bench.record"),
}
# nothing of these;
NEVER = {"bench.reporting": _LOOP, "bench.study": _LOOP}
# and these rooms are imported by nobody else: methods are found by the registry's strings.
ALONE = {"cli": (), "bench.cli": ("cli", "bench.emoji"), "bps": (), "baselines": ()}


def modules() -> dict[str, Path]:
    paths = [p for package in PACKAGES for p in (ROOT / package).rglob("*.py")]
    return {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
        for p in (*paths, ROOT / "cli.py")
    }


def imports(path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """Yield what a module imports of the product, anywhere in it and for types too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [name if name in known else node.module for name in names]
            yield from (name for name in found if name in known)


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    known = modules()
    return {module: set(imports(path, known)) - {module} for module, path in known.items()}


def within(module: str, rooms: Iterable[str]) -> bool:
    return any(module == room or module.startswith(f"{room}.") for room in rooms)


def test_rooms_import_what_they_may(graph: dict[str, set[str]]) -> None:
    wrong = []
    for module, names in graph.items():
        only = [name for room in ONLY if within(module, [room]) for name in (room, *ONLY[room])]
        never = [name for room in NEVER if within(module, [room]) for name in NEVER[room]]
        never += [room for room, users in ALONE.items() if not within(module, (room, *users))]
        wrong += [f"{module} imports {n}" for n in names if within(n, never) or only and not within(n, only)]
    assert wrong == []


def test_there_is_no_circle(graph: dict[str, set[str]]) -> None:
    TopologicalSorter(graph).prepare()  # raises CycleError with the modules of one


def test_nothing_prints_outside_the_command_line() -> None:
    for module, path in modules().items():
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        prints = [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]
        assert not prints, module
        echoes = [c for c in calls if ast.unparse(c.func) == "typer.echo"]
        assert not echoes or module == "bench.cli.terminal", f"{module}: bench.cli.terminal says things"


def test_pictures_are_opened_in_one_place() -> None:
    """Drawings that `bench.emoji` has just made itself are no pictures from outside."""
    opening = [m for m, p in modules().items() if "Image.open(" in p.read_text()]
    assert [m for m in opening if not m.startswith("bench.emoji.")] == ["bench.data.picture"]
