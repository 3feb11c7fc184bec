"""`bench data prepare coco17`: official folders in, a prepared folder out; resumable, told beforehand.

    images/SET/ID.png    the square image; PNG, since JPEG's losses would move the Fréchet distance
    sketch/, classes/    layers as grey PNG, where tasks need them
    tables/SET.parquet   ids, captions, boxes, digests, codes for the leak check
    skipped.json         what was left out, and why
    manifest.json        options, classes, digests of the tables; written last
Boxes, captions and coarse colours take no files of their own. Pictures are drawn in pieces, by several
processes; a finished piece is kept in parts/, so that a killed run goes on.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from bench import content
from bench.content import Cache, Lock, atomic_write, read_json, sha256_bytes, sha256_file, write_json
from bench.data import in_processes, visible_gpus
from bench.data.coco import MANIFEST, NAME, SETS, SKIPPED, TRAIN, VAL, Recipe
from bench.data.coco.dataset import ATTRIBUTION, SCHEMA, Coco17, read_table, table_of, table_path, write_table
from bench.data.coco.draw import Broken, describe_sketch, draw, load_sketcher, protocol_of
from bench.data.coco.official import Category, OfficialSet, Picture, Skip, needed_kinds, read_official
from bench.data.latents import check_room
from bench.data.leaks import Finding, compare
from bench.data.picture import encoded
from bench.types import BenchError, Example, Hooks, how_many

BEGUN = "begun.json"
LOCK = "lock"
PARTS = "parts"
PIECE = 16  # pictures a piece
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


class Piece(NamedTuple):
    """A few pictures of one set; path: of the finished piece's table, beside it lies what was left out."""

    set: str
    path: Path
    pictures: tuple[Picture, ...]


def prepare_coco17(
    root: Path,
    out: Path,
    *,
    recipe: Recipe,
    weights: Path | None = None,
    device: str = "cpu",
    jobs: int = 1,
    piece: int = PIECE,
    hooks: Hooks | None = None,
) -> Report:
    """Prepare a COCO 2017 root into a folder, or go on where a killed run stopped.

    weights: folder of the sketch network. jobs: processes; on "cuda" each has one of the GPUs. piece:
    pictures drawn between two looks at hooks.stop; finished pieces are kept. The same recipe gives the same
    bytes, whatever jobs is. BenchError for missing or inconsistent files, too small a disk, a folder begun
    with other options, and one that another process prepares.
    """
    hooks = hooks or Hooks()
    if "sketch" in recipe.maps:  # what is missing is said before minutes of reading
        describe_sketch(recipe, weights=weights)
    official = read_official(root, kinds=needed_kinds(recipe.tasks), maps="classes" in recipe.maps)
    sets = [_limited(one, recipe.limit) for one in official.values()]
    categories = sets[0].categories
    protocol = protocol_of(recipe, categories, weights=weights)
    source = {file: digest for one in sets for file, digest in sorted(one.digests.items())}
    begun = {"schema": SCHEMA, "protocol": protocol, "source": source, "piece": piece}
    if (out / MANIFEST).exists() and not (out / PARTS).exists():
        _claim(out, begun)
        return report(out)
    with Lock(out / LOCK, about=out):
        _claim(out, begun)
        content.remove_unfinished(out)
        if not (out / MANIFEST).exists():
            items = sum(len(one.pictures) for one in sets)
            more = max(0, estimate_bytes(recipe, items=items) - _size(out))
            room = check_room(out, more, remedy="Choose another disk, fewer tasks, or a smaller --size.")
            hooks.say(f"{how_many(items, 'picture')}: about {room}")
            pieces = [
                Piece(one.name, out / PARTS / f"{one.name}-{n:05d}.parquet", one.pictures[at : at + piece])
                for one in sets
                for n, at in enumerate(range(0, len(one.pictures), piece))
            ]
            how: dict[str, Any] = {"weights": weights, "device": device}
            work = partial(_draw_piece, out, recipe=recipe, categories=categories, **how)
            _draw(work, pieces, jobs=jobs, gpus=visible_gpus() if device == "cuda" else (), hooks=hooks)
            hooks.stage(f"compare {TRAIN} with {VAL}", 1)
            manifest = {
                "schema": SCHEMA,
                "name": NAME,
                "recipe": asdict(recipe),
                "protocol": protocol,
                "source": source,
                "attribution": ATTRIBUTION,
                "categories": [asdict(category) for category in categories],
            }
            _finish(out, manifest, pieces, [skip for one in sets for skip in one.skipped])
        shutil.rmtree(out / PARTS, ignore_errors=True)
    return report(out)


def report(folder: Path) -> Report:
    """Describe a prepared folder."""
    data = Coco17(folder)
    leaky = data.recipe.leaky
    shared = leaky or data.recipe.duplicates == "keep"
    findings = _shared(data, data.ids if leaky else tuple(data.sides[TRAIN])) if shared else ()
    return Report(
        folder=folder,
        items={name: len(rows) for name, rows in data.sides.items()},
        skipped=read_json(folder / SKIPPED, of=tuple[Skip, ...]),
        bytes=_size(folder),
        leaky=leaky,
        leaks=tuple(finding.message for finding in findings),
    )


def estimate_bytes(recipe: Recipe, *, items: int) -> int:
    """Return about how many bytes a prepared folder takes for so many items."""
    lines = "soft" if recipe.soft and recipe.sketch != "canny" else "binary"
    layers = ["images", *(lines if m == "sketch" else m for m in recipe.maps)]
    files = sum(_BYTES[layer] * recipe.size**2 + _BLOCK / 2 for layer in layers)
    return round(items * (files + _ROW))


def count_reasons(skipped: Sequence[Skip]) -> dict[str, int]:
    """Count what was left out, by set, what it is and why; duplicates by their kind alone."""
    reasons = (f"{s.set}: {s.what}, {s.reason.split(' as ')[0]}" for s in skipped)
    return dict(sorted(Counter(reasons).items()))


def _limited(official: OfficialSet, limit: int | None) -> OfficialSet:
    """Return a set with its first pictures in an order that hashed ids give; all for None."""
    order = sorted((p.name for p in official.pictures), key=lambda name: sha256_bytes(name.encode()))
    kept = set(order[:limit])
    pictures = tuple(p for p in official.pictures if p.name in kept)
    return replace(official, pictures=pictures, skipped=tuple(s for s in official.skipped if s.id in kept))


def _claim(out: Path, begun: Mapping[str, Any]) -> None:
    """Take a folder that is empty or was begun with the same options; BenchError for another one."""
    path = out / BEGUN
    if not path.exists():
        if any(path.name != LOCK for path in out.iterdir()):
            raise BenchError(f"{out} is not empty and no prepared COCO. Choose another --out.")
        write_json(path, begun)
        return
    there, now = (
        {**value, **{k: v for part in value.values() if isinstance(part, dict) for k, v in part.items()}}
        for value in (read_json(path, of=dict[str, Any]), begun)
    )
    differ = [
        f"{name}: {there.get(name, 'nothing')} there, {now.get(name, 'nothing')} now"
        for name in sorted({*there, *now}.difference(("protocol", "source")))
        if there.get(name) != now.get(name)
    ]
    if differ:
        remedy = "Choose another --out, or delete the folder."
        raise BenchError(f"{out} was begun with other options ({'; '.join(differ)}). {remedy}")


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def _draw(
    work: Callable[[Piece], int], pieces: Sequence[Piece], *, jobs: int, gpus: Sequence[str], hooks: Hooks
) -> None:
    """Draw the pieces that are not there yet, `jobs` at once; raises Stopped between pieces."""
    total = sum(len(p.pictures) for p in pieces)
    waiting = [p for p in pieces if not p.path.exists()]
    done = total - sum(len(p.pictures) for p in waiting)
    hooks.stage("prepare", total)
    hooks.tick(done, total)
    with closing(in_processes(work, waiting, jobs=jobs, gpus=gpus)) as counts:
        for count in counts:
            done += count
            hooks.tick(done, total)
            if done < total:
                hooks.check_stop()


def _draw_piece(
    out: Path,
    piece: Piece,
    *,
    recipe: Recipe,
    categories: tuple[Category, ...],
    weights: Path | None,
    device: str,
) -> int:
    """Draw one piece, pictures first, its table last, each file atomically; return its pictures' number."""
    sketched = "sketch" in recipe.maps
    sketcher = load_sketcher(recipe, weights=weights, device=device) if sketched else None
    kept: list[Example] = []
    skipped: list[Skip] = []
    for picture in piece.pictures:
        try:
            example = draw(picture, recipe=recipe, categories=categories, sketcher=sketcher)
        except Broken as reason:
            skipped.append(Skip(set=piece.set, id=picture.name, file=picture.file.name, reason=str(reason)))
            continue
        for layer, pixels in {"images": example.image, **example.layers}.items():
            if layer in ("images", *recipe.maps):
                png = encoded(pixels, "PNG", compress_level=6)  # lossless; equal pixels give equal bytes
                atomic_write(out / layer / piece.set / f"{example.id}.png", png)
        kept.append(example)
    write_json(piece.path.with_suffix(".json"), [asdict(s) for s in skipped])
    captions = {picture.name: picture.captions for picture in piece.pictures}
    write_table(piece.path, table_of(kept, small=piece.set == VAL, maps=recipe.maps, captions=captions))
    return len(piece.pictures)


def _finish(out: Path, manifest: dict[str, Any], pieces: Sequence[Piece], skipped: list[Skip]) -> None:
    """Join the pieces into tables, leave duplicates out where asked, and write the manifest."""
    for piece in pieces:
        skipped += read_json(piece.path.with_suffix(".json"), of=tuple[Skip, ...])
    parts = {name: [read_table(p.path) for p in pieces if p.set == name] for name in SETS}
    tables = {name: pa.concat_tables([table_of([], small=False), *parts[name]]) for name in SETS}
    _write_tables(out, manifest, tables)
    data = Coco17(out, manifest={**manifest, "skipped": {}})
    if data.recipe.duplicates == "drop" and not data.recipe.leaky:
        train = tuple(data.sides[TRAIN])
        twins = {
            first: f"{finding.kind} as {second} of {VAL}"
            for finding in _shared(data, train)
            for first, second in finding.pairs
        }
        skipped += [Skip(set=TRAIN, id=i, file=f"{i}.jpg", reason=why) for i, why in twins.items()]
        kept = pa.array([item not in twins for item in train], pa.bool_())
        _write_tables(out, manifest, {**tables, TRAIN: tables[TRAIN].filter(kept)})
    skipped.sort(key=lambda s: (s.set, s.id, s.reason))
    write_json(out / SKIPPED, [asdict(s) for s in skipped])
    left_out = {"sha256": sha256_file(out / SKIPPED), "by reason": count_reasons(skipped)}
    write_json(out / MANIFEST, {**manifest, "skipped": left_out})


def _write_tables(out: Path, manifest: dict[str, Any], tables: Mapping[str, Any]) -> None:
    """Write the tables and name them in a manifest."""
    manifest["tables"] = {}
    for name, table in tables.items():
        path = table_path(out, name)
        write_table(path, table.combine_chunks())
        manifest["tables"][name] = {"sha256": sha256_file(path), "items": table.num_rows}


def _shared(data: Coco17, train: Sequence[str]) -> tuple[Finding, ...]:
    """Return what of the train items is among the evaluation items."""
    val = data.fingerprints(tuple(data.sides[VAL]))
    return compare(data.fingerprints(train), val, cache=Cache()).findings
