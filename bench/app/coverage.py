"""`bench coverage`: how often the published intervals hold the truth, by simulation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.app.options import AsJson, guarded
from bench.terminal import say, to_json

if TYPE_CHECKING:
    from bench.simulate import Coverage

_WORDS = """\
held: share of 95% intervals that hold the truth, with its Monte Carlo error; 93 to 97% is right.
Truth of means: the true mean. Truth of set metrics: the value expected at this number of items,
which rows of one table share; "at infinity" is how often the same interval holds the closed-form
Fréchet distance of infinitely many items: never claimed, and 0% where few items bias it upwards.
width: over that of an interval with the true standard error. Kinds in brackets are not published.
*: all axes have one variance, else 1/j. The interval of a share of neighbours is at least Wilson's:
near 1, where its values hardly vary, it holds the truth too often rather than too rarely."""


@guarded
def coverage_command(
    trials: Annotated[int, typer.Option(min=1, help="Simulated data sets a line.")] = 400,
    seed: Annotated[int, typer.Option(min=0, help="Of the simulation.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Simulate how often each kind of published interval holds the truth."""
    from bench.console import ConsoleHooks
    from bench.simulate import cells, simulate

    hooks = ConsoleHooks()
    hooks.stage("simulate", len(cells()))
    try:
        found = simulate(trials=trials, seed=seed, tick=hooks.tick)
    finally:
        hooks.close()
    if as_json:
        say(to_json([_plain(c) for c in found]))
    else:
        say(coverage_text(found))


def coverage_text(found: Sequence[Coverage]) -> str:
    """Return coverages as a plain table with the words that explain it."""
    from bench.report.grid import to_plain

    lines = [["interval", "N", "D", "trials", "held", "at infinity", "width", ""]]
    for c in found:
        name = c.kind if c.published else f"({c.kind})"
        beyond = "" if c.held_limit is None else f"{100 * c.held_limit:.0f}%"
        held = f"{100 * c.held:.1f}% ± {100 * c.error:.1f}"
        verdict = "ok" if c.right else "OUTSIDE 93 to 97%"
        sizes = [str(c.items), f"{c.dimensions}{'*' * c.flat}", str(c.trials)]
        lines.append([name, *sizes, held, beyond, f"{c.width:.2f}", verdict])
    return f"{to_plain(lines)}\n{_WORDS}"


def _plain(coverage: Coverage) -> dict[str, Any]:
    return {**asdict(coverage), "error": coverage.error, "right": coverage.right}
