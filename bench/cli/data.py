"""`bench data`, `bench base`, `bench audit` and `bench export`: what goes in and what comes out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli.options import AsJson, Asked, Shell, configured, guarded, outline, split
from bench.cli.report import RunPlace, run_folder
from bench.config import SIDES
from bench.terminal import aside, say, to_json

if TYPE_CHECKING:
    from bench.data.coco.prepare import Report

data_app = Shell(help="The data sets and their splits.", no_args_is_help=True)
base_app = Shell(help="The frozen base: a Stable Diffusion of yours.", no_args_is_help=True)


@data_app.command("verify")
@guarded
@configured("suite", "data")
def verify(*, asked: Asked) -> None:
    """Re-check the digests of a suite's data and look for leaks between its sides."""
    from bench.data.splits import verify as verify_splits
    from bench.suites import find_data

    suite = find_data(asked.config.suite, asked.config.data)
    dataset, splits = suite.dataset(), suite.splits()
    findings = verify_splits(dataset, splits)
    for finding in findings:
        aside(f"FAIL {finding.kind}: {finding.message}")
    if findings:
        raise typer.Exit(1)
    counts = ", ".join(f"{side} {len(splits.side(side))}" for side in ("train", *SIDES))
    say(f"ok   {dataset.name}: {len(dataset.ids)} items ({counts}); digests hold, no leaks")
    for name, value in getattr(dataset, "protocol", {}).items():
        say(f"     {name}: {value}")


@data_app.command("export")
@guarded
@configured("suite", "data")
def export_data(
    out: Annotated[Path, typer.Argument(help="Folder for <id>.png.")],
    *,
    asked: Asked,
    side: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    items: Annotated[int | None, typer.Option(min=1, help="How many, by a fixed rule.")] = None,
) -> None:
    """Write the images of a side as PNG files, as a reference for `bench compare A B`."""
    from bench.randomness import pick_items
    from bench.sampling import export_images
    from bench.suites import find_data

    suite = find_data(asked.config.suite, asked.config.data)
    dataset, splits = suite.dataset(), suite.splits()
    ids = pick_items(splits.side(side), items)
    export_images(dataset, ids, out)
    say(f"{len(ids)} images of {dataset.name}, {side} -> {out}")


@data_app.command("encode")
@guarded
@configured("suite", "data", "base", "base_variant", "side", "budget", "device", suite="coco17")
def encode(*, asked: Asked) -> None:
    """Encode a suite's images and captions with the base, once for all runs; a killed call goes on."""
    from bench.base.load import load_base
    from bench.cli.progress import console_hooks
    from bench.content import Cache
    from bench.data.latents import encode_suite, size_words
    from bench.suites import suite_of, with_base
    from bench.training.processes import find_device

    suite = with_base(suite_of(asked.config))
    assert suite.base is not None, "with_base refuses suites without one"
    base = load_base(suite.base, device=find_device(asked.config.device), variant=suite.variant)
    with console_hooks() as hooks:
        encoded = encode_suite(suite, base=base, cache=Cache(), budget=asked.config.budget, hooks=hooks)
    for side, shards in encoded.items():
        say(
            f"{side}: {len(shards.ids)} items, {shards.views} view(s), {len(shards.paths)} shards, "
            f"{size_words(shards.bytes(len(shards.ids)))} in {shards.paths[0].parent.parent}"
        )


@data_app.command("prepare")
@guarded
@configured("device")
def prepare(
    dataset: Annotated[str, typer.Argument(help="coco17.")],
    root: Annotated[Path, typer.Option(help="COCO: train2017/, val2017/ and annotations/ lie in it.")],
    out: Annotated[Path, typer.Option(help="Folder for the prepared data; the same one to go on.")],
    *,
    asked: Asked,
    tasks: Annotated[list[str] | None, typer.Option(help="What to draw conditions for, else all.")] = None,
    size: Annotated[int, typer.Option(help="Side of the square images, in pixels.")] = 512,
    resize: Annotated[str, typer.Option(help="crop (middle square) or squash (as the release).")] = "crop",
    sketch: Annotated[
        str, typer.Option(help="Lines by pidinet, hed (need --detectors) or canny.")
    ] = "pidinet",
    soft: Annotated[bool, typer.Option("--soft/--binary", help="Grey edges, or lines alone.")] = True,
    detectors: Annotated[
        Path | None, typer.Option(help="Folder of table5_pidinet.pth or ControlNetHED.pth.")
    ] = None,
    splits: Annotated[
        str, typer.Option(help="clean, or release-leaky: trains on val2017 as the release, marked.")
    ] = "clean",
    duplicates: Annotated[
        str, typer.Option(help="Pictures of val2017 among train2017: drop or keep them.")
    ] = "drop",
    limit: Annotated[int | None, typer.Option(min=1, help="Pictures of each set, for trials.")] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", min=1, help="Else one a core.")] = None,
) -> None:
    """Check COCO 2017, resize its images and draw all conditions, once; a killed run goes on."""
    from bench.cli.progress import console_hooks
    from bench.data.coco.prepare import prepare_coco17
    from bench.data.coco.recipe import TASKS, Recipe
    from bench.training.processes import find_device
    from bench.types import unknown

    if dataset != "coco17":
        raise unknown("data set to prepare", dataset, ("coco17",))
    names = split(tasks or TASKS)
    for name in names:
        if name not in TASKS:
            raise unknown("task", name, TASKS)
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
            weights=detectors,
            device="cpu" if sketch == "canny" else find_device(asked.config.device),
            jobs=jobs or os.cpu_count() or 1,
            say=aside,
            stage=hooks.stage,
            tick=hooks.tick,
            stop=hooks.stop,
        )
        hooks.close()
    say(_report_text(found))


def _report_text(found: Report) -> str:
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


@base_app.command("random")
@guarded
@configured("base_variant")
def random_base(
    out: Annotated[Path, typer.Argument(help="A new folder.")],
    *,
    asked: Asked,
    like: Annotated[str, typer.Option(help="sd15 or sd21.")] = "sd15",
    width: Annotated[int, typer.Option(help="Of the UNet's first level; 320 is the real width.")] = 320,
    size: Annotated[int | None, typer.Option(help="Image size in pixels; else the real one's.")] = None,
    dtype: Annotated[str, typer.Option(help="On disk: float32, float16, bfloat16.")] = "float32",
    seed: Annotated[int, typer.Option(min=0, help="Of the weights.")] = 0,
) -> None:
    """Write a base with random weights and a Stable Diffusion's topology, as a diffusers folder."""
    from bench.base.random import write_random_base

    variant = asked.config.base_variant
    write_random_base(out, like=like, width=width, size=size, seed=seed, dtype=dtype, variant=variant)
    say(_shown(out, variant=variant, as_json=False))


@base_app.command("show")
@guarded
@configured("base_variant")
def show_base(
    place: Annotated[str, typer.Argument(help="A diffusers folder, or org/name\\[@revision].")],
    *,
    asked: Asked,
    as_json: AsJson = False,
) -> None:
    """Say what a base is: prediction, sizes, parameters, and the SHA-256 of every part."""
    say(_shown(Path(place), variant=asked.config.base_variant, as_json=as_json))


def _shown(place: Path, *, variant: str | None, as_json: bool) -> str:
    from bench.base.snapshot import describe, find_snapshot

    found = describe(find_snapshot(place, variant=variant))
    return to_json(found) if as_json else outline(found)


@guarded
@configured("suite", "base", "data")
def audit(
    *,
    asked: Asked,
    run: Annotated[Path | None, typer.Option("--run", help="Audit the items and base of this run.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check a suite's data, and its evaluation items against training and pretraining."""
    from bench.content import Cache
    from bench.data.audit import audit as audit_suite
    from bench.data.audit import audit_run, audit_text, audit_value

    base, data, cache = asked.config.base, asked.config.data, Cache()
    if run is None:
        found = audit_suite(asked.config.suite, base=base, cache=cache, data=data)
    else:
        found = audit_run(run_folder(run), base=base, cache=cache, data=data)
    say(to_json(audit_value(found)) if as_json else audit_text(found))
    if found.failed:
        raise typer.Exit(1)


@guarded
@configured("base", "base_variant")
def export(
    run: RunPlace,
    out: Annotated[Path, typer.Argument(help="A new folder.")],
    *,
    asked: Asked,
    with_base: Annotated[bool, typer.Option(help="Write the base beside it: a whole pipeline.")] = False,
) -> None:
    """Write a run's trained weights as a folder that diffusers loads, with a model card."""
    from bench.export import CARD, export_run

    base, variant = asked.config.base, asked.config.base_variant
    folder = export_run(run_folder(run), out, base=base, variant=variant, with_base=with_base)
    say(f"{folder}\n{folder / CARD}  (how to load it, scores, licence)")
