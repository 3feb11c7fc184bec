"""Runs as they are kept: a folder each, or all of a results folder packed as data in two files.

A pack of `results/emoji` is `results/emoji.jsonl.gz`, a line a run, and `results/emoji.npz`. A line holds
the run's place (its folder below `results/emoji`), its record as it is, and digests of its arrays (scores
of items, curve, tiles), each of which lies once in the archive.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import math
import os
import re
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from bench import content
from bench import record as records
from bench.ablations import ABLATIONS_FOLDER
from bench.content import Code, FromFile, Name, Text
from bench.data.picture import SIDES, TILES_FILE, read_tiles, tile_pictures
from bench.record import ITEMS_FILE, RECORD_FILE, ItemScores, RunRecord, find_records, load_record
from bench.types import BenchError

LINES, ARRAYS = ".jsonl.gz", ".npz"
_REMEDY = "Restore both files of the pack, or make them anew: bench results pack."
_MOST_DECIMALS = 12
_BITS = -1  # in place of decimals, where none hold the numbers: their bits as they are
_EXACT = 2**53
_MISSING = np.iinfo(np.int64).min
_SCORES = ("rows", "replicates")
_OF_VARIANT = ("suite", "task", "method", "options", "budget", "changes")
"""What of a record tells variants apart: runs that are alike in these differ in their seed alone."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A record with the folder it lies in (None in a pack) and its per-item scores, None without any.

    strips: tiles out of a pack. timed: how its costs in time and memory were measured alone, "" where not.
    """

    record: RunRecord
    folder: Path | None = None
    items: ItemScores | None = None
    strips: Mapping[str, np.ndarray] | None = None
    timed: str = ""

    @property
    def place(self) -> str:
        """The folder, else the name, for messages."""
        return self.record.run_id if self.folder is None else str(self.folder)

    @property
    def curve(self) -> tuple[tuple[int, float], ...]:
        """The training curve as (step, loss); empty where nothing was trained or kept."""
        return self.items.curve if self.items is not None else ()

    @property
    def has_tiles(self) -> bool:
        """Tell whether pictures of it are kept, damaged or not."""
        return self.strips is not None or (self.folder is not None and (self.folder / TILES_FILE).is_file())

    def tiles(self) -> dict[str, np.ndarray]:
        """Return condition, sample and target of a few items, [N,H,W,3] uint8 each; BenchError if damaged."""
        strips = self.strips
        if strips is None:
            strips = read_tiles((self.folder or Path()) / TILES_FILE)
        return tile_pictures(strips, self.place)


def load_run(folder: Path) -> Run:
    """Read one run folder; BenchError for a bad record, artifact or items, and links out of it."""
    for name in (RECORD_FILE, ITEMS_FILE, TILES_FILE):
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise BenchError(f"{folder / name} is a link that leads out of its run. Put the file there.")
    record = load_record(folder)
    items = records.load_items(folder) if (folder / ITEMS_FILE).exists() else None
    return Run(record=record, folder=folder, items=items)


def kept_runs(results: Path | Pack, within: str = "") -> list[Run]:
    """Read every run of a results folder, or one below, and of its pack, by name; folders go first."""
    pack = Pack.of(results)
    reads: dict[str, Callable[[], Run]] = {n: partial(pack.run, x) for n, x in pack.within(within).items()}
    reads |= {f.name: partial(load_run, f) for f in find_records(pack.results / within)}
    return [reads[name]() for name in sorted(reads)]


def kept_records(results: Path, within: str = "", *, skip_damaged: bool = False) -> list[RunRecord]:
    """Read the records alone of what `kept_runs` reads; skip_damaged: those count for nothing."""
    pack, found, skipped = Pack(results), [], (BenchError,) if skip_damaged else ()
    reads: dict[str, Callable[[], RunRecord]] = {}
    with contextlib.suppress(*skipped):
        reads = {n: partial(pack.record, line) for n, line in pack.within(within).items()}
    reads |= {f.name: partial(load_record, f, verify=False) for f in find_records(pack.results / within)}
    for name in sorted(reads):
        with contextlib.suppress(*skipped):
            found.append(reads[name]())
    return found


def kept_record(folder: Path) -> RunRecord:
    """Read the record of a run by its folder, or by the place where that lay before it was packed."""
    if not (folder / RECORD_FILE).exists():
        for above in folder.parents[:2]:
            pack = Pack(above)
            line = pack.lines.get(folder.relative_to(above).as_posix())
            if line is not None:
                return pack.record(line)
    return load_record(folder)


@dataclass(frozen=True, kw_only=True)
class PackedItems(FromFile):
    """An items file with digests in place of lists of numbers; curve: those of steps and losses."""

    ids: Code
    groups: Code | None = None
    rows: Mapping[Name, Mapping[Name, Code]]
    replicates: Mapping[Name, Mapping[Name, Code]] | None = None
    curve: tuple[Code, Code] | None = None
    layer_weights: list[Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Line(FromFile):
    """A run of a pack. place: its folder below the results folder; tiles: side -> digest of a strip."""

    place: Text
    record: Mapping[str, Any]
    items: PackedItems | None = None
    tiles: Mapping[Name, Code] | None = None

    def __post_init__(self) -> None:
        folder, _, name = self.place.rpartition("/")
        if folder not in ("", ABLATIONS_FOLDER) or content.check_name(name) in ("", ABLATIONS_FOLDER):
            raise BenchError(f"'{self.place}' is no place of a run")
        if self.tiles is not None and set(self.tiles) != {*SIDES, "items"}:
            raise BenchError(f"tiles are of other sides than {', '.join(SIDES)} and items")


class Pack:
    """The pack of a results folder, read where it is asked for; without lines where there is none."""

    def __init__(self, results: Path) -> None:
        """Take the results folder, whether it exists or not, or the file of lines, which bears its name."""
        self.results = results.with_name(results.name.removesuffix(LINES)) if results.name else results
        named = self.results if self.results.name not in ("", "..") else self.results.resolve()
        self.paths = [named.parent / f"{named.name}{end}" for end in (LINES, ARRAYS)]

    @classmethod
    def of(cls, results: Path | Pack) -> Pack:
        """Return a pack as it is, and that of a results folder."""
        return results if isinstance(results, Pack) else cls(results)

    @cached_property
    def lines(self) -> dict[str, Line]:
        """The lines by place; BenchError for a file that is damaged or holds something else."""
        found: dict[str, Line] = {}
        path, most = self.paths[0], content.MOST_BYTES
        if not path.exists():
            return found
        try:
            packed = io.BytesIO(content.read_small(path, remedy=_REMEDY))
            raw = gzip.GzipFile(fileobj=packed).read(most + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise BenchError(f"{path} cannot be unpacked ({error}). {_REMEDY}") from error
        if len(raw) > most:
            raise BenchError(f"{path} holds more than {most:,} bytes, which no pack does. {_REMEDY}")
        for number, text in enumerate(raw.splitlines(), start=1):
            where = f"{path}, line {number}"
            line: Line = content.parse_json(text, where, of=Line, remedy=_REMEDY)
            if line.place in found:
                raise BenchError(f"{where} holds '{line.place}' again. {_REMEDY}")
            found[line.place] = line
        return found

    def within(self, folder: str) -> dict[str, Line]:
        """Return the lines of runs right below a folder, by their folder's name."""
        places = {place: place.rpartition("/") for place in self.lines}
        return {name: self.lines[place] for place, (above, _, name) in places.items() if above == folder}

    def record(self, line: Line) -> RunRecord:
        """Return the record of a line; BenchError as `load_record`."""
        return records.record_of(dict(line.record), f"{self.paths[0]}, {line.place}")

    def run(self, line: Line) -> Run:
        """Return a line as the report reads it."""
        where, items = f"{self.paths[0]}, {line.place}", self.items(line)
        scores = None if items is None else content.validated(items, ItemScores, where, remedy=_REMEDY)
        return Run(record=self.record(line), items=scores, strips=self.strips(line))

    def items(self, line: Line) -> dict[str, Any] | None:
        """Return what a line's items file held, scores and replicates as arrays."""
        packed = line.items
        if packed is None:
            return None
        rows = {name: of for name in _SCORES if (of := getattr(packed, name)) is not None}
        found = {"ids": self._texts(packed.ids), **_each(rows, self._array)}
        if packed.groups is not None:
            found["groups"] = [int(group) for group in self._array(packed.groups)]
        if packed.curve is not None:
            steps, losses = (self._array(digest).tolist() for digest in packed.curve)
            whole = [int(step) if math.isfinite(step) else -1 for step in steps]
            found["curve"] = [list(point) for point in zip(whole, losses, strict=False)]
        if packed.layer_weights is not None:
            found["layer_weights"] = packed.layer_weights
        return found

    def strips(self, line: Line) -> dict[str, np.ndarray] | None:
        """Return the tiles of a line as `bench.data.picture.read_tiles` does."""
        if line.tiles is None:
            return None
        sides = {side: self._array(line.tiles[side], np.uint8) for side in SIDES}
        return {**sides, "items": np.asarray(self._texts(line.tiles["items"]))}

    def files(self, line: Line) -> dict[str, bytes]:
        """Return the files of a line's run folder, byte for byte as they were."""
        values, strips = {RECORD_FILE: line.record}, self.strips(line)
        items = self.items(line)
        if items is not None:
            values[ITEMS_FILE] = _each(items, lambda scores: [None if v != v else v for v in scores.tolist()])
        files = {name: content.json_bytes(value, indent=1) + b"\n" for name, value in values.items()}
        return files if strips is None else {**files, TILES_FILE: content.npz_bytes(strips)}

    def _texts(self, digest: str) -> list[str]:
        raw, where = self._array(digest, np.uint8).tobytes(), f"{self.paths[1]}, {digest}"
        return list(content.parse_json(raw, where, of=list[Name], remedy=_REMEDY))

    def _array(self, digest: str, kind: type = np.float64) -> np.ndarray:
        array = self._arrays.get(digest)
        if array is None or array.dtype != kind:
            raise BenchError(f"{self.paths[1]} lacks array {digest}, which {self.paths[0]} names. {_REMEDY}")
        return array

    @cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        """The arrays by digest; BenchError where one is not what its digest says."""
        path = self.paths[1]
        found = content.read_npz(path)
        with content.refusing(lambda why: f"{path} is no archive of a pack ({why}). {_REMEDY}"):
            numbers, decimals = _parted(found, "numbers"), found["decimals"].tolist()
            arrays = {d: _floats(a, e) for (d, a), e in zip(numbers.items(), decimals, strict=True)}
            arrays |= _parted(found, "bytes")
        for digest, array in arrays.items():
            if content.digest_arrays(array=array)[:16] != digest:
                raise BenchError(f"{path} is damaged: array {digest} is another. {_REMEDY}")
        return arrays


def pack_runs(results: Path, out: Path) -> list[Path]:
    """Write all runs of a results folder, and of its pack, as a pack; return its two files.

    Tiles are kept of the first seed of each variant alone; what else lies in a run's folder is not.
    BenchError, with nothing written, without runs, for a damaged one, and one that would not come back byte
    for byte.
    """
    source, target = Pack(results), Pack(out)
    folders = [*find_records(source.results), *find_records(source.results / ABLATIONS_FOLDER)]
    files = {place: source.files(line) for place, line in source.lines.items()}
    files |= {f.relative_to(source.results).as_posix(): _files_of(f) for f in folders}
    if not files:
        raise BenchError(f"no runs in {results}: name a folder that holds run folders.")
    drawn = {place: json.loads(own[RECORD_FILE]) for place, own in files.items() if TILES_FILE in own}
    seen: set[str] = set()
    for place, record in sorted(drawn.items(), key=lambda pair: (pair[1]["seed"], pair[0])):
        kinds = {name: record.get(name, {}) for name in _OF_VARIANT}
        variant = content.digest_json([place.rpartition("/")[0], kinds])
        if variant in seen:
            del files[place][TILES_FILE]
        seen.add(variant)
    arrays: dict[str, np.ndarray] = {}
    lines = [_line(place, files[place], arrays) for place in sorted(files)]
    with tempfile.TemporaryDirectory(prefix=".pack-", dir=_made(target.results.parent)) as folder:
        made = Pack(Path(folder) / target.results.name)
        text = b"".join(content.json_bytes(line) + b"\n" for line in lines)
        content.atomic_write(made.paths[0], gzip.compress(text, mtime=0))
        _write_arrays(made.paths[1], arrays)
        for place, line in made.lines.items():
            if made.files(line) != files[place]:
                raise BenchError(f"{place} would not come back as it is: other programs wrote its files.")
        for path, final in zip(reversed(made.paths), reversed(target.paths), strict=True):
            os.replace(path, final)  # lines last: they name the arrays
    return target.paths


def unpack_runs(results: Path, folder: Path) -> list[Path]:
    """Write a pack's runs as folders; return them, sorted. BenchError, nothing written, if there already."""
    source = Pack(results)
    if not source.lines:
        raise BenchError(f"{source.paths[0]} is no pack of runs: name one that bench results pack wrote.")
    there = [place for place in source.lines if (folder / place).exists()]
    if there:
        raise BenchError(f"{folder / there[0]} is there already. Choose a folder without runs of the pack.")
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=_made(folder)) as made:
        for place, line in source.lines.items():
            for name, data in source.files(line).items():
                content.atomic_write(Path(made) / place / name, data)
            load_run(Path(made) / place)
        for place in source.lines:
            os.replace(Path(made) / place, _made((folder / place).parent) / Path(place).name)
    return sorted(folder / place for place in source.lines)


def add_record(submitted: Path, results: Path, *, by: str) -> Path:
    """Take a run that others made, a folder or its record, among the results; return its folder there.

    by: who made it, in a word: the row is marked and takes no part in sentences and bold. BenchError, with
    nothing written, where files or protocol are not what the record says, and where such a run is there.
    """
    folder = submitted.parent if submitted.is_file() else submitted
    if submitted.is_file() and submitted.name != RECORD_FILE:
        record, files = records.record_of(content.read_json(submitted), submitted), {}
    else:
        record = load_run(folder).record
        files = {name: data for name, data in _files_of(folder).items() if name != RECORD_FILE}
    if content.digest_json(dict(record.protocol)) != record.protocol_hash:
        why = f"its protocol is not the one whose hash it tells ({record.protocol_hash[:12]})"
        raise BenchError(f"{submitted}: {why}. Ask for the record as the run wrote it.")
    for name, value in record.metrics.items():
        ends = [value.low, value.value, value.high]
        if None not in ends and ends != sorted(ends):  # type: ignore[type-var]
            raise BenchError(f"{submitted}: {name} {value.value} lies outside its interval {ends[::2]}.")
    options = {**record.options, records.SUBMITTED: content.check_word(by)}
    place = f"{record.run_id}-{by}"
    if (results / place).exists():
        raise BenchError(f"{results / place} is there already. Remove it, or name another with --by.")
    kept = {name: digest for name, digest in record.artifacts.items() if name in files}
    added = replace(record, run_id=place, options=options, artifacts=kept)
    with tempfile.TemporaryDirectory(prefix=".add-", dir=_made(results)) as made:
        for name, data in files.items():
            content.atomic_write(Path(made) / "run" / name, data)
        records.write_record(Path(made) / "run", added)
        load_run(Path(made) / "run")
        os.replace(Path(made) / "run", results / place)
    return results / place


def add_comparison(comparison: Any, results: Path, *, name: str, command: str) -> Path:
    """Write what `bench compare` tells as a run's record, so that it becomes a row; return its folder."""
    given, reference = comparison.folders
    if not given["n"]:
        raise BenchError(f"{given['folder']} holds statistics; a row is of pictures. Give them as A.")
    judges = {role: vars(card) for role, card in comparison.judges.items()}
    protocol = {"reference": reference["digest"], "images": reference["n"], "judges": judges}
    side = records.SplitInfo(name="given", n=given["n"], digest=given["digest"])
    counted: dict[str, Any] = {f.name: 0 if f.type == "Count" else None for f in fields(records.Cost)}
    now, digest = datetime.now(UTC).isoformat(timespec="seconds"), content.digest_json(protocol)
    task = "-".join(re.findall(r"[A-Za-z0-9_]+", Path(reference["folder"]).stem)) or "reference"
    record = RunRecord(
        run_id=f"{records.COMPARED}-{content.check_word(name)}-{digest[:8]}",
        suite=records.COMPARED,
        task=f"{task}-{reference['digest'][:6]}",
        method=name,
        options={},
        budget="none",
        seed=0,
        protocol_hash=digest,
        protocol=protocol,
        splits=records.Splits(train=replace(side, n=0), eval=side, overlap=0),
        metrics=comparison.metrics,
        rows={"samples": comparison.metrics},
        cost=records.Cost(**counted),
        environment={**records.environment(device="cpu", threads=1), "command": command},
        artifacts={},
        attribution="",
        started=now,
        finished=now,
        weights=records.Outside(
            name=Path(given["folder"]).name or ".",
            sha256=given["digest"],
            files={},
            train_images=0,
            condition="",
            facts={"pictures": f"{given['n']} of a folder, made elsewhere"},
        ),
    )
    records.write_record(_made(results / record.run_id), record)
    return results / record.run_id


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise content.unwritable(folder, error) from error
    return folder


def _files_of(folder: Path) -> dict[str, bytes]:
    load_run(folder)
    paths = [folder / name for name in (RECORD_FILE, ITEMS_FILE, TILES_FILE)]
    return {path.name: content.read_small(path) for path in paths if path.exists()}


def _line(place: str, files: Mapping[str, bytes], arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return a run as a line; its arrays go among the others, by digest."""

    def add(values: Any, kind: type = np.float64) -> str:
        array: np.ndarray = np.asarray(values, dtype=kind)
        digest = content.digest_arrays(array=array)[:16]
        arrays[digest] = array
        return digest

    def texts(values: list[str]) -> str:
        return add(np.frombuffer(content.json_bytes(values), dtype=np.uint8), np.uint8)

    line: dict[str, Any] = {"place": place, "record": json.loads(files[RECORD_FILE])}
    if ITEMS_FILE in files:
        items = _each(json.loads(files[ITEMS_FILE]), add)
        if "curve" in items:
            items["curve"] = [add([point[k] for point in items["curve"]]) for k in (0, 1)]
        if "groups" in items:
            items["groups"] = add(items["groups"])
        line["items"] = {**items, "ids": texts(items["ids"])}
    if TILES_FILE in files:
        strips = content.npz_arrays(files[TILES_FILE], TILES_FILE)
        line["tiles"] = {side: add(strips[side], np.uint8) for side in SIDES}
        line["tiles"]["items"] = texts(strips["items"].tolist())
    return line


def _each(items: Mapping[str, Any], act: Callable[[Any], Any]) -> dict[str, Any]:
    """Return what an items file holds with something done to each list of scores."""
    done = {
        name: {row: {m: act(v) for m, v in of.items()} for row, of in items[name].items()}
        for name in set(_SCORES) & set(items)
    }
    return {**items, **done}


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by digest, [N] float64 or uint8 each; numbers that decimals hold exactly as whole ones."""
    numbers = {d: _whole(a) for d, a in arrays.items() if a.dtype == np.float64}
    texts = {d: a for d, a in arrays.items() if a.dtype == np.uint8}
    joined = {"decimals": np.asarray([decimals for decimals, _ in numbers.values()], dtype=np.int64)}
    joined |= _joined("numbers", {d: whole for d, (_, whole) in numbers.items()}, np.int64)
    content.write_npz(path, joined | _joined("bytes", texts, np.uint8), compress=True)


def _joined(name: str, arrays: Mapping[str, np.ndarray], kind: type) -> dict[str, np.ndarray]:
    ends = np.cumsum([0, *(len(array) for array in arrays.values())], dtype=np.int64)
    joined = np.concatenate([np.zeros(0, dtype=kind), *arrays.values()])
    return {name: joined, f"{name}_offsets": ends, f"{name}_digests": np.asarray([*arrays], dtype="U16")}


def _parted(found: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Cut arrays out of a joined one; that they are what was joined is for their digests to say."""
    ends = found[f"{name}_offsets"]
    parts = zip(found[f"{name}_digests"], ends[:-1], ends[1:], strict=True)
    return {str(digest): found[name][start:end] for digest, start, end in parts}


def _whole(values: np.ndarray) -> tuple[int, np.ndarray]:
    """Return decimals and the values as whole numbers of these, else `_BITS` and their bits."""
    missing = np.isnan(values)
    known = np.where(missing, 0.0, values)
    for decimals in range(_MOST_DECIMALS + 1):
        rounded = np.rint(known * 10.0**decimals)
        if not (np.abs(rounded) < _EXACT).all():
            break
        whole = rounded.astype(np.int64)
        if ((whole / 10.0**decimals).view(np.int64) == known.view(np.int64)).all():  # -0.0 is not 0.0
            return decimals, np.where(missing, _MISSING, whole)
    return _BITS, values.view(np.int64)


def _floats(whole: np.ndarray, decimals: int) -> np.ndarray:
    if decimals == _BITS:
        return whole.view(np.float64)
    return np.where(whole == _MISSING, np.nan, whole / 10.0**decimals)
