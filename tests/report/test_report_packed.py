"""Runs packed as data: what comes back, what is refused, and that reports see no difference."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.content import read_npz, sha256_file, write_npz
from bench.data.picture import MOST_TILES, TILES_FILE, read_tiles, tile_pictures, write_tiles
from bench.packed import Pack, kept_record, kept_records, kept_runs, load_run, pack_runs, unpack_runs
from bench.record import find_records, load_record
from bench.reporting import make_report
from bench.types import BenchError
from tests.command_line import bench as command

Writer = Callable[..., Any]
KEPT = ("record.json", "items.json", "tiles.npz")


def files_of(results: Path) -> dict[str, bytes]:
    paths = [path for path in results.rglob("*") if path.name in KEPT]
    return {path.relative_to(results).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture
def packed(full: Path, tmp_path: Path) -> Path:
    """The name of a pack of small runs, whose folder does not exist."""
    pack_runs(full, tmp_path / "packs" / "full")
    return tmp_path / "packs" / "full"


def test_what_was_packed_comes_back_to_the_bit(full: Path, packed: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    folders = unpack_runs(packed, again)
    before, after = files_of(full), files_of(again)
    seconds = {name for name in before if name.startswith("bps-sketch-s") and name.endswith(TILES_FILE)}
    assert before.keys() - after.keys() == seconds - {f"bps-sketch-s0/{TILES_FILE}"}
    assert after == {name: before[name] for name in after} and len(folders) == len(find_records(full))
    digests = {path.name: sha256_file(path) for path in packed.parent.iterdir()}
    assert len(digests) == 2
    pack_runs(again, packed)
    assert digests == {path.name: sha256_file(path) for path in packed.parent.iterdir()}
    with pytest.raises(BenchError, match="is there already"):
        unpack_runs(packed, again)


def test_runs_are_read_alike_from_folders_and_from_a_pack(full: Path, packed: Path) -> None:
    for one, other in zip(kept_runs(full), kept_runs(packed), strict=True):
        assert one.record == other.record and other.folder is None
        assert one.items is not None and other.items is not None
        assert (one.items.ids, one.curve) == (other.items.ids, other.curve)
        for kind in ("rows", "replicates"):
            mine, theirs = getattr(one.items, kind), getattr(other.items, kind)
            assert {r: set(of) for r, of in mine.items()} == {r: set(of) for r, of in theirs.items()}
            for row, metrics in mine.items():
                for metric, scores in metrics.items():
                    assert scores.tobytes() == theirs[row][metric].tobytes()
        if other.has_tiles:
            for side, images in one.tiles().items():
                np.testing.assert_array_equal(images, other.tiles()[side])
    name = find_records(full)[0].name
    assert kept_record(packed / name) == load_record(full / name)


@pytest.mark.usefixtures("no_drawing")
def test_a_report_of_a_pack_is_that_of_its_folders(full: Path, packed: Path, tmp_path: Path) -> None:
    named = tmp_path / "of" / full.name
    for end in (".jsonl.gz", ".npz"):
        named.parent.mkdir(exist_ok=True)
        packed.with_name(packed.name + end).rename(named.with_name(named.name + end))
    one, other = tmp_path / "one", tmp_path / "other"
    make_report(full, one)
    assert command("report", "--results", f"{named}.jsonl.gz", "--out", other).exit_code == 0
    assert {p.name: p.read_bytes() for p in one.iterdir()} == {
        p.name: p.read_bytes() for p in other.iterdir()
    }


def test_fresh_runs_stand_beside_packed_ones_and_are_packed_with_them(
    build: Any, packed: Path, tmp_path: Path
) -> None:
    before = [record.run_id for record in kept_records(packed)]
    fresh = build.write_run(packed, "fresh", {"fd": 3.0}, tiles=True)
    assert [r.run_id for r in kept_records(packed)] == sorted([*before, fresh.record.run_id])
    pack_runs(packed, packed)
    assert len(Pack(packed).lines) == len(before) + 1
    assert kept_runs(packed)[-1].place


def test_a_pack_is_found_from_inside_its_folder(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed.mkdir()
    monkeypatch.chdir(packed)
    name = kept_records(Path())[0].run_id
    assert kept_record(Path(name)).run_id == name == kept_record(packed / name).run_id


def test_runs_of_ablations_keep_their_place(build: Any, results: Path, tmp_path: Path) -> None:
    build.write_run(results / "ablations", "bps", {"fd": 1.0})
    answer = command("results", "pack", results, tmp_path / "p")
    assert answer.exit_code == 0, answer.output
    assert kept_records(tmp_path / "p") == [] and len(kept_records(tmp_path / "p", "ablations")) == 1
    assert command("results", "unpack", tmp_path / "p.jsonl.gz", tmp_path / "out").exit_code == 0
    assert [load_run(f).record.method for f in find_records(tmp_path / "out" / "ablations")] == ["bps"]
    assert command("results", "unpack", tmp_path / "none", tmp_path / "out").exit_code == 2


@pytest.mark.parametrize("number", [0.1, -0.0, 1e-12, 1.5e19, 2**53 + 2.0, 1 / 3, 123456.789012])
def test_numbers_of_any_kind_come_back(number: float, build: Any, results: Path, tmp_path: Path) -> None:
    ids = ["a", "b", "c"]
    rows = {"samples": {"fd": [number, None, 1.0]}}
    build.write_run(results, "bps", {"fd": 1.0}, item_ids=ids, item_rows=rows)
    before = files_of(results)
    pack_runs(results, tmp_path / "p")
    unpack_runs(tmp_path / "p", tmp_path / "out")
    assert files_of(tmp_path / "out") == before


def test_what_would_not_come_back_is_not_packed(build: Any, results: Path, tmp_path: Path) -> None:
    run = build.write_run(results, "bps", {"fd": 1.0})
    path = run.folder / "items.json"
    path.write_text(json.dumps(json.loads(path.read_text())))  # other blanks than ours
    with pytest.raises(BenchError, match="would not come back"):
        pack_runs(results, tmp_path / "packs" / "p")
    assert not list((tmp_path / "packs").iterdir())
    with pytest.raises(BenchError, match="no runs"):
        pack_runs(tmp_path, tmp_path / "p")


def change_place(values: dict[str, Any]) -> None:
    values["place"] = "../outside"


def change_digest(values: dict[str, Any]) -> None:
    values["items"]["ids"] = "0" * 16


def drop_record(values: dict[str, Any]) -> None:
    del values["record"]


def drop_side(values: dict[str, Any]) -> None:
    del values["tiles"]["sample"]


@pytest.mark.parametrize("change", [change_place, change_digest, drop_record, drop_side])
def test_a_line_that_is_none_is_refused(
    change: Callable[[dict[str, Any]], None], packed: Path, tmp_path: Path
) -> None:
    path = packed.with_name("full.jsonl.gz")
    first, *others = gzip.decompress(path.read_bytes()).splitlines()
    values = json.loads(first)
    change(values)
    path.write_bytes(gzip.compress(b"\n".join([json.dumps(values).encode(), *others])))
    with pytest.raises(BenchError):
        kept_runs(packed)
    with pytest.raises(BenchError):
        unpack_runs(packed, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_damaged_files_are_refused(packed: Path) -> None:
    lines, arrays = packed.with_name("full.jsonl.gz"), packed.with_name("full.npz")
    whole, found = lines.read_bytes(), read_npz(arrays)
    for damaged in (whole[:-30], b"", whole + b"more", b"text"):
        lines.write_bytes(damaged)
        assert damaged == b"" or pytest.raises(BenchError, kept_runs, packed)
    lines.write_bytes(whole)
    for name in found:
        write_npz(arrays, {k: v for k, v in found.items() if k != name})
        pytest.raises(BenchError, kept_runs, packed)
    for name in ("numbers", "bytes", "decimals", "numbers_offsets"):
        write_npz(arrays, {**found, name: found[name] + 1})
        pytest.raises(BenchError, kept_runs, packed)
    arrays.unlink()
    pytest.raises(BenchError, kept_runs, packed)


@pytest.mark.parametrize("shape", [(64, 64), (32, 48), (7, 5)])
def test_tiles_hold_their_pictures_exactly(shape: tuple[int, int], tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    sides = ("condition", "sample", "target")
    rows = {side: draw.integers(0, 256, (5, *shape, 3), dtype=np.uint8) for side in sides}
    write_tiles(tmp_path / TILES_FILE, rows, list("abcde"))
    strips = read_tiles(tmp_path / TILES_FILE)
    for side, images in tile_pictures(strips, "here").items():
        np.testing.assert_array_equal(images, rows[side])
    for wrong in (
        {**strips, "items": np.asarray(list("abcdef") * 3)},
        {**strips, "sample": strips["sample"][:-9]},
    ):
        with pytest.raises(BenchError, match="here"):
            tile_pictures(wrong, "here")
    write_npz(tmp_path / TILES_FILE, {"sample": strips["sample"]})
    with pytest.raises(BenchError, match="holds no tiles"):
        read_tiles(tmp_path / TILES_FILE)


def test_wide_pictures_are_fewer(tmp_path: Path) -> None:
    rows = {side: np.zeros((MOST_TILES, 2, 1000, 3), np.uint8) for side in ("condition", "sample", "target")}
    write_tiles(tmp_path / TILES_FILE, rows, [f"i{k}" for k in range(MOST_TILES)])
    assert len(tile_pictures(read_tiles(tmp_path / TILES_FILE), "here")["sample"]) == 16
