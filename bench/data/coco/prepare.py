"""`bench data prepare coco17`: official folders in, a prepared folder out; resumable, told beforehand.

    images/SET/ID.png    the square image; PNG, since JPEG's losses would move the Fréchet distance
    sketch/, classes/    layers as grey PNG, where tasks need them
    tables/SET.npz       ids, captions, boxes, digests, codes for the leak check
    skipped.json         what was left out, and why
    manifest.json        options, classes, digests of the tables; written last
Boxes, captions and coarse colours take no files of their own.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.content import (
    Cache,
    read_json,
    remove_unfinished,
    sha256_bytes,
    sha256_file,
    write_json,
)
from bench.data.coco import (
    ATTRIBUTION,
    MANIFEST,
    NAME,
    SETS,
    SKIPPED,
    TABLES,
    TRAIN,
    VAL,
    item_name,
)
from bench.data.coco.dataset import Coco17
from bench.data.coco.official import OfficialSet, Skip, needed_kinds, read_official
from bench.data.coco.recipe import Recipe
from bench.data.coco.sketches import describe_sketch
from bench.data.coco.tables import join, read_table, write_table
from bench.data.coco.work import PARTS, PIECE, draw_pieces, pieces_of
from bench.data.leaks import Finding, how_many
from bench.locks import Lock
from bench.types import BenchError

BEGUN = "begun.json"
LOCK = "lock"
SCHEMA = 1
# Bytes a pixel of what is stored, for the estimate: PNG of photographs, soft and binary lines, maps.
_BYTES = {"images": 1.7, "soft": 0.35, "binary": 0.06, "classes": 0.03}
_ROW = 400  # bytes of tables an item
_BLOCK = 4096  # of a file system


@dataclass(frozen=True, kw_only=True)
class Report:
    """What preparing did: items by set, what was left out, bytes on disk, leaks that remain."""

    folder: Path
    items: Mapping[str, int]
    skipped: tuple[Skip, ...]
    bytes: int
    leaky: bool
    leaks: tuple[str, ...]


def prepare_coco17(
    root: Path,
    out: Path,
    *,
    recipe: Recipe,
    weights: Path | None = None,
    device: str = "cpu",
    jobs: int = 1,
    piece: int = PIECE,
    say: Callable[[str], None] = lambda text: None,
    stage: Callable[[str, int], None] = lambda name, total: None,
    tick: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[], int | None] = lambda: None,
) -> Report:
    """Prepare a COCO 2017 root into a folder, or go on where a killed run stopped.

    weights: folder of the sketch network. jobs: processes. piece: pictures drawn between two looks at
    `stop`; finished pieces are kept. The same recipe gives the same bytes, whatever jobs is. BenchError
    for missing or inconsistent files, too small a disk, a folder begun with other options, and one that
    another process prepares.
    """
    if "sketch" in recipe.maps:  # what is missing is said before minutes of reading
        describe_sketch(recipe.sketch, weights=weights, soft=recipe.soft, size=recipe.size)
    found = read_official(root, kinds=needed_kinds(recipe.tasks), maps="classes" in recipe.maps)
    found = {name: limited(s, recipe.limit) for name, s in found.items()}
    protocol = recipe.protocol(found[TRAIN].categories, weights=weights)
    source = {file: digest for s in found.values() for file, digest in sorted(s.digests.items())}
    wanted = {"protocol": protocol, "source": source, "piece": piece}
    if (out / MANIFEST).exists() and not (out / PARTS).exists():
        _claim(out, wanted)
        return report(out)
    with Lock(out / LOCK, about=out):
        _claim(out, wanted)
        remove_unfinished(out)
        if not (out / MANIFEST).exists():
            _check_disk(out, found, recipe, say)
            pieces = [
                p
                for official in found.values()
                for p in pieces_of(
                    official, recipe=recipe, out=out, weights=weights, device=device, size=piece
                )
            ]
            stage("prepare", sum(len(p.pictures) for p in pieces))
            draw_pieces(pieces, jobs=jobs, tick=tick, stop=stop)
            stage("compare train2017 with val2017", 1)
            _finish(out, found, recipe=recipe, protocol=protocol, source=source, piece=piece)
        shutil.rmtree(out / PARTS, ignore_errors=True)
    return report(out)


def limited(found: OfficialSet, limit: int | None) -> OfficialSet:
    """Return a set with its first pictures in an order that hashed ids give; all for None."""
    if limit is None:
        return found
    order = sorted(found.pictures, key=lambda p: sha256_bytes(item_name(p.id).encode()))
    kept = sorted(order[:limit], key=lambda p: p.id)
    names = {item_name(p.id) for p in kept}
    skipped = tuple(s for s in found.skipped if s.id in names)
    return replace(found, pictures=tuple(kept), skipped=skipped)


def estimate_bytes(recipe: Recipe, *, items: int) -> int:
    """Return about how many bytes a prepared folder takes for so many items."""
    lines = "soft" if recipe.soft and recipe.sketch != "canny" else "binary"
    layers = ["images", *(lines if m == "sketch" else m for m in recipe.maps)]
    pixels = recipe.size**2
    files = sum(_BYTES[layer] * pixels + _BLOCK / 2 for layer in layers)
    return round(items * (files + _ROW))


def report(folder: Path) -> Report:
    """Describe a prepared folder."""
    data = Coco17(folder)
    skipped = read_json(folder / SKIPPED, of=tuple[Skip, ...])
    train, val = data.table(TRAIN).ids, data.table(VAL).ids
    found: tuple[Finding, ...] = ()
    if data.recipe.leaky or data.recipe.duplicates == "keep":
        side = (*train, *val) if data.recipe.leaky else train
        found = data.compare(side, val, cache=Cache()).findings
    places = (p for p in folder.rglob("*") if p.is_file())
    return Report(
        folder=folder,
        items={n: len(data.table(n).ids) for n in SETS},
        skipped=skipped,
        bytes=sum(p.stat().st_size for p in places),
        leaky=data.recipe.leaky,
        leaks=tuple(f.message for f in found),
    )


def _claim(out: Path, wanted: Mapping[str, Any]) -> None:
    """Take a folder that is empty or was begun with the same options; BenchError for another one."""
    path = out / BEGUN
    if path.exists():
        before = read_json(path)
        if not isinstance(before, dict):
            raise BenchError(f"{path} is damaged. Choose another --out, or delete the folder.")
        differ = [
            f"{name}: {_side(before, name)} there, {_side(wanted, name)} now"
            for name in sorted({*_flat(before), *_flat(wanted)})
            if _side(before, name) != _side(wanted, name)
        ]
        if differ:
            raise BenchError(
                f"{out} was begun with other options ({'; '.join(differ)}). Choose another --out, or "
                "delete the folder."
            )
        return
    if any(path.name != LOCK for path in out.iterdir()):
        raise BenchError(f"{out} is not empty and no prepared COCO. Choose another --out.")
    write_json(path, wanted)


def _flat(value: Mapping[str, Any]) -> dict[str, Any]:
    parts = {k: v for k, v in value.items() if not isinstance(v, dict)}
    return parts | {k: v for inner in value.values() if isinstance(inner, dict) for k, v in inner.items()}


def _side(value: Mapping[str, Any], name: str) -> Any:
    return _flat(value).get(name, "nothing")


def _check_disk(
    out: Path, found: Mapping[str, OfficialSet], recipe: Recipe, say: Callable[[str], None]
) -> None:
    """Say how much disk the folder will take; BenchError where that is more than there is."""
    items = sum(len(s.pictures) for s in found.values())
    wanted = estimate_bytes(recipe, items=items)
    there = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    free = shutil.disk_usage(out).free
    say(f"{how_many(items, 'picture')}: about {size_text(wanted)} in {out}, {size_text(free)} free")
    if wanted - there > free:
        raise BenchError(
            f"{out} needs about {size_text(wanted - there)} more, and {size_text(free)} are free. "
            "Choose another disk, fewer tasks, or a smaller --size."
        )


def _finish(
    out: Path,
    found: Mapping[str, OfficialSet],
    *,
    recipe: Recipe,
    protocol: Mapping[str, str],
    source: Mapping[str, str],
    piece: int,
) -> None:
    """Join the pieces into tables, leave duplicates out where asked, and write the manifest."""
    skipped: list[Skip] = []
    for name, official in found.items():
        pieces = pieces_of(official, recipe=recipe, out=out, weights=None, device="", size=piece)
        parts = [read_table(p.path) for p in pieces]
        write_table(out / TABLES / f"{name}.npz", join([table for table, _ in parts]))
        skipped += [*official.skipped, *(s for _, left in parts for s in left)]
    manifest = {
        "schema": SCHEMA,
        "name": NAME,
        "recipe": asdict(recipe),
        "protocol": dict(protocol),
        "source": dict(source),
        "attribution": ATTRIBUTION,
        "categories": [
            {"id": c.id, "name": c.name, "color": list(c.colour)} for c in found[TRAIN].categories
        ],
    }
    if recipe.duplicates == "drop" and not recipe.leaky:
        skipped += _drop_duplicates(out, manifest)
    skipped.sort(key=lambda s: (s.set, s.id, s.reason))
    write_json(out / SKIPPED, [asdict(s) for s in skipped])
    write_json(
        out / MANIFEST,
        {
            **manifest,
            "tables": _tables(out),
            "skipped": {"sha256": sha256_file(out / SKIPPED), "by reason": count_reasons(skipped)},
        },
    )


def _tables(out: Path) -> dict[str, Any]:
    paths = {name: out / TABLES / f"{name}.npz" for name in SETS}
    return {
        name: {"sha256": sha256_file(path), "items": len(read_table(path)[0].ids)}
        for name, path in paths.items()
    }


def _drop_duplicates(out: Path, manifest: Mapping[str, Any]) -> list[Skip]:
    """Take pictures of val2017 out of train2017's table; return what was taken."""
    data = Coco17(out, manifest={**manifest, "tables": _tables(out)})
    train, val = data.table(TRAIN).ids, data.table(VAL).ids
    twins = {
        first: f"{finding.kind} as {second} of {VAL}"
        for finding in data.compare(train, val, cache=Cache()).findings
        for first, second in finding.pairs
    }
    kept = data.table(TRAIN).keep([i for i in train if i not in twins])
    write_table(out / TABLES / f"{TRAIN}.npz", kept)
    return [Skip(set=TRAIN, id=i, file=f"{i}.jpg", reason=why) for i, why in twins.items()]


def count_reasons(skipped: Sequence[Skip]) -> dict[str, int]:
    """Count what was left out, by set, what it is and why; duplicates by their kind alone."""
    reasons = (f"{s.set}: {s.what}, {s.reason.split(' as ')[0]}" for s in skipped)
    return dict(sorted(Counter(reasons).items()))


def size_text(number: float) -> str:
    """Return bytes in words, "1.5 GiB"."""
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.1f} MiB"
