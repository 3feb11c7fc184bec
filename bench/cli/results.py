"""`bench results`: published runs as data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.cli.options import Shell, guarded
from bench.terminal import say

results_app = Shell(help="Pack run folders as data, and unpack them.", no_args_is_help=True)


@results_app.command("pack")
@guarded
def pack(
    folder: Annotated[Path, typer.Argument(help="Folder of run folders.")],
    out: Annotated[Path, typer.Argument(help="Name of the pack: OUT.jsonl.gz and OUT.npz.")],
) -> None:
    """Write records, scores of items and tiles of each variant's first seed as two files."""
    from bench.packed import pack_runs

    for path in pack_runs(folder, out):
        say(path)


@results_app.command("unpack")
@guarded
def unpack(
    pack: Annotated[Path, typer.Argument(help="Name of the pack, with or without .jsonl.gz.")],
    folder: Annotated[Path, typer.Argument(help="Where the run folders go.")],
) -> None:
    """Write the runs of a pack as run folders, byte for byte, after checking their digests."""
    from bench.packed import unpack_runs

    say(f"{len(unpack_runs(pack, folder))} runs in {folder}")
