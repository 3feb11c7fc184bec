"""`bench show`: a record as a table, as JSON, or against another one in words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.app.options import AsJson, guarded
from bench.terminal import say, to_json

RunPlace = Annotated[Path, typer.Argument(help="A run folder, or its record.json.")]
Other = Annotated[Path | None, typer.Option("--diff", help="Another run: say in words what differs.")]


@guarded
def show_command(run: RunPlace, diff: Other = None, as_json: AsJson = False) -> None:
    """Show the record of a run, after checking its artifacts; or what differs from another."""
    from bench.content import read_json
    from bench.record import RECORD_FILE, load_record
    from bench.report.changes import record_changes
    from bench.report.tables import record_text

    record = load_record(_folder(run))
    if diff is not None:
        said = record_changes(record, load_record(_folder(diff)))
        say(to_json(said) if as_json else "\n".join(said))
        return
    say(to_json(read_json(_folder(run) / RECORD_FILE)) if as_json else record_text(record))


def _folder(place: Path) -> Path:
    return place.parent if place.name == "record.json" else place
