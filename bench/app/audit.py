"""`bench audit`: what a suite's evaluation items have in common with what was seen in training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.app.options import AsJson, BaseFolder, DataFolder, SuiteName, guarded
from bench.terminal import say, to_json

RunFolder = Annotated[Path | None, typer.Option("--run", help="Audit the items and base of this run.")]


@guarded
def audit_command(
    suite: SuiteName = "emoji",
    run: RunFolder = None,
    base: BaseFolder = None,
    data: DataFolder = None,
    as_json: AsJson = False,
) -> None:
    """Check a suite's data, and its evaluation items against training and pretraining."""
    from bench.audit import audit, audit_run, audit_text, audit_value
    from bench.content import Cache

    if run is None:
        found = audit(suite, base=base, cache=Cache(), data=data)
    else:
        found = audit_run(
            run.parent if run.name == "record.json" else run, base=base, cache=Cache(), data=data
        )
    say(to_json(audit_value(found)) if as_json else audit_text(found))
    if found.failed:
        raise typer.Exit(1)
