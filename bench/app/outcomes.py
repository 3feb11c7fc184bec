"""What became of a grid of runs, in words and as an exit code."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from bench.terminal import aside, say, to_json

if TYPE_CHECKING:
    from bench.grid import Outcome


def end(outcomes: Sequence[Outcome], *, as_json: bool = False) -> None:
    """Say which runs of a grid failed and how to do them again; exit code 1 if any did."""
    failed = [o for o in outcomes if o.error]
    if as_json:
        said = {o.cell.name: o.error or o.refused or str(o.folder) for o in outcomes}
        say(to_json(said))
    if outcomes:  # an ablation whose runs all exist has made none
        made = sum(o.record is not None for o in outcomes)
        aside(f"{made} of {len(outcomes)} runs have a record")
    for outcome in failed:
        words = shlex.join(["bench", *outcome.cell.arguments])
        aside(f"FAILED {outcome.cell.name}: {outcome.error}\n  again: {words}")
    if failed:
        raise typer.Exit(1)
