"""`bench data`: verify, export and prepare the data of a suite."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.app.encode import encode_command
from bench.app.options import DataFolder, Shell, SuiteName, guarded
from bench.app.prepare import prepare_command
from bench.terminal import aside, say

data_app = Shell(help="The data sets and their splits.", no_args_is_help=True)
data_app.command("prepare")(prepare_command)
data_app.command("encode")(encode_command)


@data_app.command("verify")
@guarded
def verify_command(suite: SuiteName = "emoji", data: DataFolder = None) -> None:
    """Re-check the digests of a suite's data and look for leaks between its sides."""
    from bench.data.splits import verify
    from bench.suites import find_data

    found = find_data(suite, data)
    dataset, splits = found.dataset(), found.splits()
    findings = verify(dataset, splits)
    for finding in findings:
        aside(f"FAIL {finding.kind}: {finding.message}")
    if findings:
        raise typer.Exit(1)
    counts = ", ".join(f"{side} {len(splits.side(side))}" for side in ("train", "val", "test"))
    say(f"ok   {dataset.name}: {len(dataset.ids)} items ({counts}); digests hold, no leaks")
    for name, value in getattr(dataset, "protocol", {}).items():
        say(f"     {name}: {value}")


@data_app.command("export")
@guarded
def export_command(
    out: Annotated[Path, typer.Argument(help="Folder for <id>.png.")],
    suite: SuiteName = "emoji",
    data: DataFolder = None,
    side: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    items: Annotated[int | None, typer.Option(min=1, help="How many, by a fixed rule.")] = None,
) -> None:
    """Write the images of a side as PNG files, as a reference for `bench score A B`."""
    from bench.artifacts import pick_items
    from bench.sample import export_images
    from bench.suites import find_data

    found = find_data(suite, data)
    dataset, splits = found.dataset(), found.splits()
    ids = pick_items(splits.side(side), items)
    export_images(dataset, ids, out)
    say(f"{len(ids)} images of {dataset.name}, {side} -> {out}")
