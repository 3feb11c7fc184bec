"""Tables say on which devices their runs were made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench.reporting import Run, build_table, load_runs
from bench.reporting.tables import caption, cost_grid

Writer = Callable[..., Run]


def test_runs_on_gpus_are_told_aloud(add_run: Writer, results: Path) -> None:
    card = {"processor": "a_cpu", "device": "cuda", "gpu": "A Card", "packages": {"torch": "2.15"}}
    add_run("bps", {"fd": 1.0}, environment=card)
    table = build_table(load_runs(results))
    assert "Made on A Card, torch 2.15." in table.notes
    assert caption(table).endswith(" Made on A Card, torch 2.15.")
    add_run("text-only", {"fd": 1.0})
    notes = build_table(load_runs(results)).notes
    assert [n for n in notes if "DIFFER" in n and "Runs: 1 on A Card, torch 2.15; 1 on cpu." in n]
    assert "do not compare" in cost_grid(build_table(load_runs(results))).caption


def test_another_torch_is_told_aloud_and_odd_packages_do_no_harm(add_run: Writer, results: Path) -> None:
    for seed, packages in enumerate(({"torch": "2.15"}, {"torch": "2.16"}, [])):
        add_run("bps", {"fd": 1.0}, seed=seed, environment={"device": "cpu", "packages": packages})
    add_run("bps", {"fd": 1.0}, seed=3, environment={"device": "cuda"})
    (note,) = [n for n in build_table(load_runs(results)).notes if "DIFFER" in n]
    assert note.endswith(
        "Runs: 1 on a GPU without a name; 1 on cpu; 1 on cpu, torch 2.15; 1 on cpu, torch 2.16."
    )


def test_runs_on_one_cpu_need_no_note(add_run: Writer, results: Path) -> None:
    add_run("bps", {"fd": 1.0})
    add_run("text-only", {"fd": 1.0})
    assert not [n for n in build_table(load_runs(results)).notes if "Made on" in n or "DEVICES" in n]
