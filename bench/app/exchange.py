"""`bench export`: the weights of a finished run as a folder that diffusers loads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.app.options import BaseFolder, Variant, guarded
from bench.terminal import say

RunPlace = Annotated[Path, typer.Argument(help="The folder of a finished run.")]
Out = Annotated[Path, typer.Argument(help="A new folder.")]


def exporting(catalogue: Callable[[], Any]) -> Callable[..., None]:
    """Return `bench export`; catalogue: the tables of methods."""

    @guarded
    def export(
        run: RunPlace,
        out: Out,
        base: BaseFolder = None,
        variant: Variant = None,
        with_base: Annotated[bool, typer.Option(help="Write the base beside it: a whole pipeline.")] = False,
    ) -> None:
        """Write a run's trained weights as a folder that diffusers loads, with a model card."""
        from bench.export import CARD, export_run

        place = run.parent if run.name == "record.json" else run
        folder = export_run(
            place,
            out,
            find=lambda name: catalogue().find(name)[0],
            base=base,
            variant=variant,
            with_base=with_base,
        )
        say(f"{folder}\n{folder / CARD}  (how to load it, scores, licence)")

    return export
