"""`bench data`, `bench base`, `bench audit` and `bench export`: what goes in and what comes out."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli.options import AsJson, Asked, Shell, configured, outline, taking
from bench.cli.report import RunPlace, run_folder
from bench.cli.terminal import aside, console_hooks, say, to_json
from bench.config import READING, SIDES
from bench.data.coco import TASKS, Recipe
from bench.types import BenchError, unknown

if TYPE_CHECKING:
    from bench.data.leaks import Fingerprints
    from bench.record import RunRecord

data_app = Shell(help="The data sets and their splits.", no_args_is_help=True)
judges_app = Shell(help="Networks that read samples: those here, and fetching others.", no_args_is_help=True)
base_app = Shell(help="The frozen base: a Stable Diffusion of yours.", no_args_is_help=True)

Jobs = Annotated[int | None, typer.Option("--jobs", min=1, help="Processes; else one a core, or one a GPU.")]


@data_app.command("verify")
@configured("suite", "data", *READING)
def verify(*, asked: Asked, jobs: Jobs = None) -> None:
    """Re-check the digests of a suite's data and look for leaks between its sides."""
    from bench.data.leaks import verify as verify_splits
    from bench.suites import find_data

    suite = find_data(asked.config)
    dataset, splits = suite.dataset(), suite.splits()
    with console_hooks() as hooks:
        findings = verify_splits(dataset, splits, jobs=jobs or os.cpu_count() or 1, hooks=hooks)
    for finding in findings:
        aside(f"FAIL {finding.kind}: {finding.message}")
    if findings:
        raise typer.Exit(1)
    counts = ", ".join(f"{side} {len(splits.side(side))}" for side in ("train", *SIDES))
    say(f"ok   {dataset.name}: {len(dataset.ids)} items ({counts}); digests hold, no leaks")
    for name, value in getattr(dataset, "protocol", {}).items():
        say(f"     {name}: {value}")


@data_app.command("export")
@configured("suite", "data", *READING)
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

    suite = find_data(asked.config)
    dataset, splits = suite.dataset(), suite.splits()
    ids = pick_items(splits.side(side), items)
    export_images(dataset, ids, out)
    say(f"{len(ids)} images of {dataset.name}, {side} -> {out}")


@data_app.command("encode")
@configured("suite", "data", "base", "base_variant", "side", "budget", "device", *READING, suite="coco17")
def encode(*, asked: Asked) -> None:
    """Encode a suite's images and captions with the base, once for all runs; a killed call goes on.

    Several processes, of a launcher or started one by one, share the work.
    """
    from bench.base.load import load_base
    from bench.content import Cache
    from bench.data.latents import encode_suite, size_words
    from bench.suites import suite_of, with_base
    from bench.training.engine import find_device, join, speaks

    suite = with_base(suite_of(asked.config))
    assert suite.base is not None, "with_base refuses suites without one"
    device = find_device(asked.config.device)
    join(device)  # several processes have a GPU each
    base = load_base(suite.base, device=device, variant=suite.variant)
    with console_hooks() as hooks:
        encoded = encode_suite(suite, base=base, cache=Cache(), budget=asked.config.budget, hooks=hooks)
    for side, shards in encoded.items() if speaks() else ():
        say(
            f"{side}: {len(shards.ids)} items, {shards.views} view(s), {len(shards.paths)} shards, "
            f"{size_words(shards.bytes(len(shards.ids)))} in {shards.paths[0].parent.parent}"
        )


@data_app.command("prepare")
@configured("device")
@taking(Recipe, "recipe")
def prepare(
    dataset: Annotated[str, typer.Argument(help="coco17.")],
    root: Annotated[Path, typer.Option(help="COCO: train2017/, val2017/ and annotations/ lie in it.")],
    out: Annotated[Path, typer.Option(help="Folder for the prepared data; the same one to go on.")],
    *,
    asked: Asked,
    recipe: Recipe,
    detectors: Annotated[
        Path | None, typer.Option(help="Folder of table5_pidinet.pth or ControlNetHED.pth.")
    ] = None,
    jobs: Jobs = None,
) -> None:
    """Check COCO 2017, resize its images and draw all conditions, once; a killed run goes on."""
    from bench.data import visible_gpus
    from bench.data.coco import SKIPPED
    from bench.data.coco.prepare import count_reasons, prepare_coco17
    from bench.data.latents import size_words
    from bench.training.engine import find_device

    if dataset != "coco17":
        raise unknown("data set to prepare", dataset, ("coco17",))
    recipe = replace(recipe, tasks=tuple(task for task in TASKS if task in recipe.tasks))
    device = "cpu" if recipe.sketch == "canny" else find_device(asked.config.device)
    most = len(visible_gpus()) if device == "cuda" else os.cpu_count() or 1
    how: dict[str, Any] = {"recipe": recipe, "weights": detectors, "device": device, "jobs": jobs or most}
    with console_hooks() as hooks:
        report = prepare_coco17(root, out, hooks=hooks, **how)
    lines = [f"{count} items of {name}" for name, count in report.items.items()]
    for reason, count in count_reasons(report.skipped).items():
        lines.append(f"left out, see {report.folder / SKIPPED}: {count:6d}  {reason}")
    if report.leaky:
        lines.append(
            "RELEASE-LEAKY: val2017 is on the train side, to reproduce the release alone; "
            "runs need --allow-leak and are marked."
        )
    lines += [f"LEAK {message}" for message in report.leaks]
    lines.append(f"{size_words(report.bytes)} in {report.folder}")
    say("\n".join([*lines, f"next: bench run --suite coco17 --data {report.folder} --base FOLDER"]))


@judges_app.command("list")
def list_judges() -> None:
    """List the judges, which of them can be used, and the weight files that are here."""
    from bench import registry
    from bench.content import sha256_file
    from bench.judges import CLIP_ROW, NETWORKS, judge_card, judges_folder

    table: dict[str, Any] = {}
    for name, row in registry.rows("judge").items():
        try:
            card = None if name == CLIP_ROW else judge_card(name)
            table[name] = f"here: {card.name} {card.digest[:12]}, {card.resize}" if card else row.title
        except BenchError as error:
            table[name] = str(error)
    table["networks of metrics"] = {name: source.words for name, source in NETWORKS.items()}
    files = sorted(path for path in judges_folder().glob("*") if path.is_file())
    table[f"files in {judges_folder()}"] = {path.name: sha256_file(path)[:12] for path in files}
    say(outline(table))


@judges_app.command("fetch")
def fetch(
    name: Annotated[str, typer.Argument(help="A judge, or a metric's network: see `bench judges list`.")],
) -> None:
    """Download a judge's weights from their publisher and check their digest; only when asked."""
    from bench.content import sha256_file
    from bench.judges import fetch_judge

    path = fetch_judge(name)
    say(f"{path}  SHA-256 {sha256_file(path)}")


@base_app.command("random")
@configured("base_variant")
def random_base(
    out: Annotated[Path, typer.Argument(help="A new folder.")],
    *,
    asked: Asked,
    like: Annotated[str, typer.Option(help="sd15, sd21 or sdxl.")] = "sd15",
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
@configured("base_variant")
def show_base(
    place: Annotated[str, typer.Argument(help="A diffusers folder, one file, or org/name\\[@revision].")],
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


@configured("suite", "base", "data", *READING)
def audit(
    *,
    asked: Asked,
    run: Annotated[Path | None, typer.Option("--run", help="Audit the items and base of this run.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check a suite's data, and its evaluation items against training and pretraining."""
    from bench.content import Cache
    from bench.data.leaks import look
    from bench.data.leaks import verify as verify_splits
    from bench.record import load_items, load_record
    from bench.reporting.render import filled
    from bench.suites import find_data

    record = None if run is None else load_record(run_folder(run))
    suite = find_data(asked.config if record is None else replace(asked.config, suite=record.suite))
    dataset, splits, cache = suite.dataset(), suite.splits(), Cache()
    known, sides = set(dataset.ids), {side: splits.side(side) for side in SIDES}
    if run is not None and record is not None:
        ids = load_items(run_folder(run)).ids
        sides = {record.splits.eval.name: ids}
        if strange := [item for item in ids if item not in known]:
            raise BenchError(f"the run has items that {suite.name} does not have: {strange[:3]}.")
    seen, looks = _seen(asked.config.base or suite.base, record), []
    train = [item for item in splits.train if item in known]
    for side, ids in ((side, ids) for side, ids in sides.items() if ids):
        present = [item for item in ids if item in known]
        looks += look(dataset, train, present, side=side, seen=seen, cache=cache)
    data = verify_splits(dataset, splits, cache=cache)
    leaks = [f for found in looks if found.checked for f in found.checked.findings if f.leak]
    found = {
        "suite": suite.name,
        "dataset": dataset.name,
        "items": {side: len(splits.side(side)) for side in ("train", *SIDES)},
        "data": [asdict(finding) for finding in data],
        "looks": [asdict(found) for found in looks],
        "run": [] if record is None else [f"{record.run_id}: {_leaks_of(record)}"],
        "failed": bool(data or leaks),
    }
    say(to_json(found) if as_json else filled("audit.txt", **found).rstrip())
    if found["failed"]:
        raise typer.Exit(1)


def _seen(base: Path | None, record: RunRecord | None) -> Fingerprints | str:
    """Return what a base has seen in pretraining, or why that is unknown."""
    from bench.base.snapshot import find_snapshot
    from bench.data.leaks import load_seen

    if base is None:
        return "the suite brings no base; give yours with --base"
    digest = find_snapshot(base).digest
    if record is not None and record.protocol.get("base") != digest:
        return f"the run was made with another base than {base.name}; give it with --base"
    return load_seen(base, base=digest)


def _leaks_of(record: RunRecord) -> str:
    leaks, status = record.leaks, "it was made before pretraining was looked at"
    if leaks is not None:
        status = f"training {leaks.training.status}, pretraining {leaks.pretraining.status}"
    return f"{record.leaked} evaluation items with a leak; {status}"


@configured("base", "base_variant")
def export(
    run: RunPlace,
    out: Annotated[Path, typer.Argument(help="A new folder.")],
    *,
    asked: Asked,
    with_base: Annotated[bool, typer.Option(help="Write the base beside it: a whole pipeline.")] = False,
    push: Annotated[str | None, typer.Option(help="Upload it as this model of the hub: org/name.")] = None,
) -> None:
    """Write a run's trained weights as a folder that diffusers loads, with a model card."""
    from bench.export import CARD, export_run
    from bench.export import push as push_folder

    base, variant = asked.config.base, asked.config.base_variant
    folder = export_run(run_folder(run), out, base=base, variant=variant, with_base=with_base)
    say(f"{folder}\n{folder / CARD}  (how to load it, scores, licence)")
    if push is not None:
        say(push_folder(folder, push))
