"""`bench data prepare`: the user's own COCO 2017, drawn once for every task."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.app.options import LIST, Device, guarded
from bench.terminal import aside, say

if TYPE_CHECKING:
    from bench.data.coco.prepare import Report

Root = Annotated[Path, typer.Option(help="COCO's folder: train2017/, val2017/ and annotations/ lie in it.")]
Out = Annotated[Path, typer.Option(help="Folder for the prepared data; the same one to go on.")]
TaskNames = Annotated[str, typer.Option("--tasks", metavar=LIST, help="What to draw conditions for.")]
Size = Annotated[int, typer.Option(help="Side of the square images, in pixels.")]
Resize = Annotated[str, typer.Option(help="crop (middle square) or squash (as the release).")]
Sketch = Annotated[str, typer.Option(help="Lines by pidinet, hed (need --weights) or canny.")]
Soft = Annotated[bool, typer.Option("--soft/--binary", help="Grey edges, or lines alone.")]
Weights = Annotated[Path | None, typer.Option(help="Folder of table5_pidinet.pth or ControlNetHED.pth.")]
Splits = Annotated[
    str, typer.Option(help="clean, or release-leaky: trains on val2017 as the release, marked.")
]
Duplicates = Annotated[str, typer.Option(help="Pictures of val2017 among train2017: drop or keep them.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Pictures of each set, for trials.")]
Processes = Annotated[int | None, typer.Option("--jobs", min=1, help="Else one a core.")]


@guarded
def prepare_command(
    dataset: Annotated[str, typer.Argument(help="coco17.")],
    root: Root,
    out: Out,
    tasks: TaskNames = "sketch,segmentation,layout,drawing",
    size: Size = 512,
    resize: Resize = "crop",
    sketch: Sketch = "pidinet",
    soft: Soft = True,
    weights: Weights = None,
    splits: Splits = "clean",
    duplicates: Duplicates = "drop",
    limit: Limit = None,
    jobs: Processes = None,
    device: Device = "auto",
) -> None:
    """Check COCO 2017, resize its images and draw all conditions, once; a killed run goes on."""

    from bench.arguments import parse_device, parse_names
    from bench.console import console_hooks
    from bench.data.coco.prepare import prepare_coco17
    from bench.data.coco.recipe import TASKS, Recipe
    from bench.types import unknown

    if dataset != "coco17":
        raise unknown("data set to prepare", dataset, ("coco17",))
    names = parse_names("task", tasks, allowed=TASKS, groups={"all": TASKS})
    recipe = Recipe(
        tasks=tuple(t for t in TASKS if t in names),
        size=size,
        resize=resize,
        sketch=sketch,
        soft=soft,
        splits=splits,
        duplicates=duplicates,
        limit=limit,
    )
    with console_hooks() as hooks:
        found = prepare_coco17(
            root,
            out,
            recipe=recipe,
            weights=weights,
            device="cpu" if sketch == "canny" else parse_device(device),
            jobs=jobs or os.cpu_count() or 1,
            say=aside,
            stage=hooks.stage,
            tick=hooks.tick,
            stop=hooks.stop,
        )
        hooks.close()
    say(report_text(found))


def report_text(found: Report) -> str:
    """Return what preparing did, in lines for a terminal."""
    from bench.data.coco import SKIPPED
    from bench.data.coco.prepare import count_reasons, size_text

    lines = [f"{count} items of {name}" for name, count in found.items.items()]
    counts = count_reasons(found.skipped)
    if counts:
        lines.append(f"left out, listed in {found.folder / SKIPPED}:")
        lines += [f"  {count:6d}  {reason}" for reason, count in counts.items()]
    if found.leaky:
        lines.append(
            "RELEASE-LEAKY: val2017 is on the train side, to reproduce the release alone; "
            "runs need --allow-leak and are marked."
        )
    lines += [f"LEAK {message}" for message in found.leaks]
    lines.append(f"{size_text(found.bytes)} in {found.folder}")
    lines.append(f"next: bench run --suite coco17 --data {found.folder} --base FOLDER")
    return "\n".join(lines)
