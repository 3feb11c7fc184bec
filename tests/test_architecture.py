"""Who may import whom: read from the source, so that a shortcut cannot slip in."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("bench", "baselines", "bps")

# Rooms from the bottom up: a module imports its own level's earlier rows and lower levels only.
LEVELS = [
    {"bench.types", "bench.child", "bench.terminal"},
    {"bench.strict"},
    {
        "bench.content",
        "bench.locks",
        "bench.gpus",
        "bench.live",
        "bench.stats",
        "bench.metrics",
        "bench.picture",
        "bench.randomness",
        "bench.emoji.tokenizer",
    },
    {"bench.base_rules", "bench.tensors"},
    {"bench.snapshot"},
    {
        "bench.checkpoint",
        "bench.base",
        "bench.random_base",
        "bench.hooks",
        "bench.processes",
        "bench.trackers",
        "bench.data",
        "bench.judges",
        "bench.record",
        "bench.weights",
    },
    {"bench.tasks", "bench.artifacts", "bench.shapes"},
    {"bench.timings", "bench.ablations"},
    {"bench.report", "bench.suites", "bench.prepared", "bench.prepare", "bench.shards"},
    {
        "bench.cost",
        "bench.encode",
        "bench.engine",
        "bench.train",
        "bench.footprint",
        "bench.plan",
        "bench.score",
        "bench.folders",
        "bench.comparison",
        "bench.tools",
        "bench.simulate",
    },
    {"bench.sample", "bench.yardsticks"},
    {"bench.speed"},
    {
        "bench.audit",
        "bench.check",
        "bench.emoji",
        "bench.publish",
        "bench.run",
        "bench.spec",
        "bench.study",
        "bench.trained",
    },
    {"bench.export", "bench.grid", "bench.measure"},
    {"bench.arguments", "bench.cluster", "bench.console", "bench.tune"},
    {"bench.commands"},
    {"bench.ablate"},
    {"bench.forecast", "bench.plans", "bench.speeds"},
    {"bench.app"},
]


def modules() -> dict[str, Path]:
    paths = [p for package in PACKAGES for p in (ROOT / package).rglob("*.py")]
    return {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
        for p in (*paths, ROOT / "cli.py")
    }


def imports(path: Path, *, runtime_only: bool = False) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    skipped = set()
    if runtime_only:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                skipped |= {id(n) for n in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def level(module: str) -> int | None:
    for number, rooms in enumerate(LEVELS):
        if any(module == r or module.startswith(r + ".") for r in rooms):
            return number
    return None


def test_every_module_of_bench_has_a_level() -> None:
    assert [m for m in modules() if m.startswith("bench.") and level(m) is None] == []


@pytest.mark.parametrize("module", [m for m in modules() if m.startswith("bench.")])
def test_bench_imports_run_one_way(module: str) -> None:
    own = level(module)
    assert own is not None
    for name in imports(modules()[module]):
        other = level(name)
        assert other is None or other <= own, f"{module} imports {name} from a higher room"
        assert not name.startswith(("cli", "baselines")), f"{module} imports {name}"
        assert not name.startswith("bps"), f"{module} imports {name}"


@pytest.mark.parametrize("module", [m for m in modules() if m.startswith(("bps", "baselines"))])
def test_methods_import_base_and_types_alone(module: str) -> None:
    known = modules()
    ours = {n for n in imports(known[module]) if n in known and n.startswith(("bench", "cli"))}
    methods = module.startswith("baselines") or module == "bps.method"
    assert ours <= ({"bench.base", "bench.types", "bench.weights"} if methods else set())


def test_there_is_no_cycle() -> None:
    known = modules()
    graph = {m: {n for n in imports(p, runtime_only=True) if n in known and n != m} for m, p in known.items()}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for name in graph[module]:
                visit(name, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())
    assert done == set(known)


def test_nothing_prints_outside_the_command_line() -> None:
    for module, path in modules().items():
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        prints = [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]
        assert not prints, module
        echoes = [c for c in calls if ast.unparse(c.func) == "typer.echo"]
        assert not echoes or module == "bench.terminal", f"{module}: what is said goes through bench.terminal"


def test_pictures_are_opened_in_one_place() -> None:
    """Drawings that `bench.emoji` has just made itself are no pictures from outside."""
    opening = [m for m, p in modules().items() if "Image.open(" in p.read_text()]
    assert [m for m in opening if not m.startswith("bench.emoji.")] == ["bench.picture"]
