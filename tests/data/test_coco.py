"""COCO from official folders to a prepared one: what is kept and left out, and that a kill is harmless."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench import registry
from bench.content import Cache, Lock, read_json, sha256_file, write_json
from bench.data import in_processes, leaks
from bench.data.coco import Recipe
from bench.data.coco.dataset import Coco17, read_table, splits_of, table_path, write_table
from bench.data.coco.draw import caption_of, frame_of, load_sketcher
from bench.data.coco.official import read_official
from bench.data.coco.prepare import estimate_bytes, prepare_coco17
from bench.data.latents import plan_shards
from bench.data.leaks import verify
from bench.types import BenchError, Hooks, Stopped
from tests.coco_fixture import CATEGORIES, LEFT_OUT, build_coco, edit, picture_of, things_of
from tests.command_line import bench

ROOT = Path(__file__).resolve().parents[2]
RECIPE = Recipe(size=64, sketch="canny")
Change = Callable[[Any], Any]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_coco(tmp_path_factory.mktemp("coco"))


@pytest.fixture(scope="module")
def prepared(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared")
    prepare_coco17(root, out, recipe=RECIPE, piece=4)
    return out


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_items_are_what_is_whole_and_the_rest_is_listed(prepared: Path) -> None:
    data = Coco17(prepared)
    train = [f"{n:012d}" for n in range(1, 15)]
    assert data.ids == (
        *(i for i in train if i not in LEFT_OUT),
        *(f"{n:012d}" for n in range(101, 111)),
    )
    skipped = json.loads((prepared / "skipped.json").read_text())
    assert {s["id"]: s["reason"] for s in skipped if s["what"] == "image"} == LEFT_OUT
    broken = [(s["id"], s["reason"]) for s in skipped if s["what"] == "annotation"]
    assert broken == [("000000000009", "a box outside its image"), ("000000000009", "an empty box")]
    splits = splits_of(data)
    assert len(splits.train) == 11 and len(splits.val) == 10 and splits.test == ()
    assert verify(data, splits) == []
    with pytest.raises(KeyError):
        data["000000000004"]


def test_every_task_finds_its_layers(prepared: Path) -> None:
    data = Coco17(prepared)
    for name, channels in (("sketch", 1), ("segmentation", 3), ("layout", 3), ("drawing", 4)):
        for item in data.ids:
            condition = registry.load("task", name).condition(data[item])
            assert condition.shape == (channels, 64, 64) and condition.dtype == np.float32
            assert 0 <= condition.min() and condition.max() <= 1


def test_stored_pixels_are_kept_as_rgb_and_not_turned(prepared: Path) -> None:
    data = Coco17(prepared)
    for number in (1, 3, 7, 8):  # plain, CMYK, EXIF orientation 6, portrait
        width, height = picture_of(number).size
        frame = frame_of(width, height, size=64, resize="crop")
        gap = data[f"{number:012d}"].image.astype(int) - frame.picture(picture_of(number))
        assert np.abs(gap).mean() < 8, number  # JPEG's losses; turned: above 40
    grey = data["000000000002"].image
    assert (grey[..., 0] == grey[..., 1]).all() and (grey[..., 0] == grey[..., 2]).all()
    assert data["000000000007"].caption == caption_of(
        7, [f"A picture, number 7, in words {k}." for k in range(5)]
    )


def test_maps_and_layouts_lie_over_the_image_by_either_rule(root: Path, tmp_path: Path) -> None:
    for resize in ("crop", "squash"):
        prepare_coco17(
            root, tmp_path / resize, recipe=Recipe(size=96, resize=resize, tasks=("segmentation", "layout"))
        )
        data = Coco17(tmp_path / resize)
        for number in (1, 8, 9):
            item, (width, height) = data[f"{number:012d}"], picture_of(number).size
            assert set(item.layers) == {"classes", "boxes"} and item.palette is not None
            scale = (96 / width, 96 / height) if resize == "squash" else (96 / 72, 96 / 72)
            left, top = (0, 0) if resize == "squash" else ((width - 72) // 2, (height - 72) // 2)
            things = [t for t in things_of(number) if not t.crowd]
            assert len(item.layers["boxes"]) == len(things)
            for thing, box in zip(things, item.layers["boxes"], strict=True):
                x, y, wide, high = thing.box
                edges = (
                    (x - left) * scale[0],
                    (y - top) * scale[1],
                    (x + wide - left) * scale[0],
                    (y + high - top) * scale[1],
                )
                wanted = np.clip(edges, 0, 96)
                assert np.abs(box[1:] - wanted).max() <= 1 and box[0] == thing.category
                assert item.layers["boxes"].dtype == np.int32
            x0, y0, x1, y1 = item.layers["boxes"][-1, 1:]  # nothing is drawn over the smallest
            inside = item.layers["classes"][y0 + 1 : y1 - 1, x0 + 1 : x1 - 1]
            assert (inside == things[-1].category).all()
            drawn = registry.load("task", "layout").condition(item)[:, (y0 + y1) // 2, (x0 + x1) // 2]
            assert np.allclose(drawn * 255, CATEGORIES[things[-1].category - 1]["color"])


def test_classes_have_cocos_colours_and_void_is_black(prepared: Path) -> None:
    data = Coco17(prepared)
    assert data.class_names == ("void", *(c["name"] for c in CATEGORIES))
    item = data["000000000010"]
    condition = (registry.load("task", "segmentation").condition(item) * 255).round().astype(np.uint8)
    colours = {tuple(c) for c in condition.reshape(3, -1).T.tolist()}
    assert colours == {(0, 0, 0), *(tuple(c["color"]) for c in CATEGORIES)}
    empty = registry.load("task", "layout").condition(data["000000000011"])
    assert empty.max() == 0 and data["000000000011"].layers["boxes"].shape == (0, 5)


def test_photographs_are_judged_by_what_can_be_read_from_them(prepared: Path) -> None:
    data = Coco17(prepared)
    item, other = data["000000000101"], data["000000000102"]
    own = {n: registry.load("task", n).fidelity(item.image, item) for n in ("sketch", "drawing")}
    assert own["sketch"]["sketch_f1"] == 1 and own["drawing"]["colour_error"] == 0
    worse = registry.load("task", "drawing").fidelity(other.image, item)
    assert worse["colour_error"] > 5 and worse["sketch_f1"] < 0.9
    for name in ("segmentation", "layout"):
        assert all(np.isnan(v) for v in registry.load("task", name).fidelity(item.image, item).values())


def test_the_same_bytes_come_from_one_and_two_processes(root: Path, prepared: Path, tmp_path: Path) -> None:
    prepare_coco17(root, tmp_path / "two", recipe=RECIPE, piece=4, jobs=2)
    assert files_of(tmp_path / "two") == files_of(prepared)


def test_asked_to_stop_it_goes_on_where_it_was(root: Path, prepared: Path, tmp_path: Path) -> None:
    asked: list[int] = []

    def stop() -> int | None:
        asked.append(1)
        return 143 if len(asked) == 2 else None

    hooks = Hooks()
    vars(hooks).update(stop=stop)
    with pytest.raises(Stopped):
        prepare_coco17(root, tmp_path / "out", recipe=RECIPE, piece=4, hooks=hooks)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "images").rglob("*.png")}
    assert len(before) == 5  # eight pictures, three of them broken
    done: list[int] = []
    hooks = Hooks()
    vars(hooks).update(tick=lambda count, total: done.append(count))
    prepare_coco17(root, tmp_path / "out", recipe=RECIPE, piece=4, hooks=hooks)
    assert done[0] == 8 and files_of(tmp_path / "out") == files_of(prepared)
    assert all(p.stat().st_mtime_ns == moment for p, moment in before.items())


def test_killed_outright_it_goes_on_to_the_same_bytes(root: Path, tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "cli",
        "data",
        "prepare",
        "coco17",
        "--root",
        str(root),
        "--out",
        str(tmp_path / "out"),
        "--size",
        "256",
        "--sketch",
        "canny",
        "--jobs",
        "1",
        "--tasks",
        "sketch",
    ]
    child = subprocess.Popen(words, cwd=ROOT, env=os.environ, stderr=subprocess.DEVNULL)
    images = tmp_path / "out" / "images"
    until = time.monotonic() + 120
    while not (images.exists() and list(images.rglob("*.png"))) and time.monotonic() < until:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL and not (tmp_path / "out" / "manifest.json").exists()
    recipe = Recipe(size=256, sketch="canny", tasks=("sketch",))
    prepare_coco17(root, tmp_path / "out", recipe=recipe)
    prepare_coco17(root, tmp_path / "whole", recipe=recipe)
    left = files_of(tmp_path / "out")
    assert left == files_of(tmp_path / "whole")
    estimate = estimate_bytes(recipe, items=21)
    assert sum(map(len, left.values())) < estimate  # the fixture is smoother than photographs


def test_a_folder_that_another_process_prepares_is_refused(
    root: Path, prepared: Path, tmp_path: Path
) -> None:
    """Nothing of its is touched; once it was killed, what it left half written is gone."""
    out, half = tmp_path / "out", tmp_path / "out/images/val2017/.1.png.0123456789ab.tmp.png"
    half.parent.mkdir(parents=True)
    half.touch()
    with Lock(out / "lock", about=out), pytest.raises(BenchError, match=f"process {os.getpid()} on "):
        prepare_coco17(root, out, recipe=RECIPE, piece=4)
    assert half.exists() and not (out / "begun.json").exists()
    shutil.copy(prepared / "begun.json", out)
    prepare_coco17(root, out, recipe=RECIPE, piece=4)
    assert files_of(out) == files_of(prepared)


def test_another_recipe_or_a_strange_folder_is_refused(root: Path, prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="size: 64x64 there, 128x128 now"):
        prepare_coco17(root, prepared, recipe=Recipe(size=128, sketch="canny"), piece=4)
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(BenchError, match="is not empty"):
        prepare_coco17(root, tmp_path, recipe=RECIPE)


def test_a_changed_picture_is_noticed_when_it_is_read(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path / "copy")
    path = tmp_path / "copy" / "images" / "val2017" / "000000000103.png"
    image = np.array(Image.open(path))
    image[0, 0] ^= 1
    Image.fromarray(image).save(path)
    data = Coco17(tmp_path / "copy")
    with pytest.raises(BenchError, match="000000000103 is not what was prepared"):
        _ = data["000000000103"].image
    assert [f.kind for f in verify(data, splits_of(data))] == ["changed item"]
    table = table_path(tmp_path / "copy", "val2017")
    table.write_bytes(table.read_bytes()[:-1] + b"?")
    with pytest.raises(BenchError, match="not the file its record names"):
        Coco17(tmp_path / "copy")


def test_a_changed_map_is_noticed_too(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path / "copy")
    path = tmp_path / "copy" / "classes" / "train2017" / "000000000013.png"
    Image.fromarray(np.array(Image.open(path)) ^ 1).save(path)
    data = Coco17(tmp_path / "copy")
    _ = data["000000000013"].image
    with pytest.raises(BenchError, match="000000000013 is not what was prepared"):
        data["000000000013"].layers["classes"]
    assert [f.kind for f in verify(data, splits_of(data))] == ["changed item"]


def test_items_are_read_by_several_processes_that_tell_how_far_they_are(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaks, "_CHUNK", 8)
    data, seen, hooks = Coco17(prepared), list[tuple[int, int]](), Hooks()
    vars(hooks).update(tick=lambda done, total, note="": seen.append((done, total)))
    assert verify(data, splits_of(data), jobs=2, hooks=hooks) == []
    count = len(data)
    assert len(seen) == -(-count // 8) and seen[-1] == (count, count)


@pytest.mark.parametrize(
    ("task", "read"),
    [
        ("sketch", {"sketch"}),
        ("segmentation", {"classes"}),
        ("layout", set[str]()),
        ("drawing", {"images", "sketch"}),
    ],
)
def test_a_condition_reads_what_its_task_needs(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, task: str, read: set[str]
) -> None:
    data, layers = Coco17(prepared), list[str]()
    picture = data._picture
    monkeypatch.setattr(data, "_picture", lambda layer, item: (layers.append(layer), picture(layer, item))[1])
    example = data["000000000013"]
    assert example.caption and not layers
    registry.load("task", task).condition(example)
    assert sorted(layers) == sorted(read)


def test_equal_pictures_and_captions_are_encoded_once_whatever_tasks_there_are(
    root: Path, prepared: Path, tmp_path: Path
) -> None:
    recipe = Recipe(size=64, sketch="canny", tasks=("sketch",))
    prepare_coco17(root, tmp_path / "one", recipe=recipe, piece=4)
    few, all_tasks = Coco17(tmp_path / "one"), Coco17(prepared)
    assert few.digest != all_tasks.digest and few.ids == all_tasks.ids

    def paths(data: Coco17) -> tuple[Path, ...]:
        base: Any = SimpleNamespace(
            parts=dict.fromkeys(("vae", "text_encoder", "tokenizer"), ""),
            family=SimpleNamespace(encoders=("text_encoder",), tokenizers=("tokenizer",)),
            zero_empty=False,
            downscale=8,
            vae=SimpleNamespace(config=SimpleNamespace(latent_channels=4)),
            text_shape=(7, 8),
        )
        return plan_shards(base, dataset=data, ids=data.ids, views=1, cache=Cache(tmp_path)).paths

    assert paths(few) == paths(all_tasks)
    cropped = prepare_coco17(root, tmp_path / "crop", recipe=replace(recipe, resize="squash"), piece=4)
    assert paths(Coco17(cropped.folder)) != paths(few)


def test_processes_on_gpus_see_one_each() -> None:
    seen = in_processes(os.getenv, ["CUDA_VISIBLE_DEVICES"] * 8, jobs=2, gpus=("5", "7"))
    assert set(seen) <= {"5", "7"}


def tampered(prepared: Path, folder: Path, change: Change = lambda t: t) -> Path:
    """A prepared folder whose table of val2017 is another, and whose manifest says so."""
    shutil.copytree(prepared, folder)
    path, manifest = table_path(folder, "val2017"), read_json(folder / "manifest.json")
    write_table(path, change(read_table(path)))
    manifest["tables"]["val2017"]["sha256"] = sha256_file(path)
    write_json(folder / "manifest.json", manifest)
    return folder


def column(name: str, values: Callable[[list[Any]], Any]) -> Change:
    """Return what changes the values of a column and nothing else, where its type lets it."""

    def change(table: Any) -> Any:
        import pyarrow as pa

        place, field = table.schema.get_field_index(name), table.schema.field(name)
        return table.set_column(place, field, pa.array(values(table[name].to_pylist()), field.type))

    return change


@pytest.mark.parametrize("escape", ["../../../escaped", "/tmp/escaped", "a/../../b", "000000000101\n", ""])
def test_ids_of_a_prepared_folder_lead_nowhere_else(prepared: Path, tmp_path: Path, escape: str) -> None:
    folder = tampered(prepared, tmp_path / "in" / "coco", column("id", lambda ids: [escape, *ids[1:]]))
    before = sorted(tmp_path.rglob("*"))
    out = tmp_path / "in" / "deep" / "out"
    done = bench("data", "export", out, "--suite", "coco17", "--data", folder, "--side", "val")
    assert done.exit_code == 2 and "error: " in done.output
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.drop_columns(["code"]),
        lambda t: t.rename_columns([*t.column_names[:-1], "large"]),
        lambda t: t.cast(t.schema.set(0, t.schema.field(0).with_nullable(True))),
        lambda t: t.take([*range(t.num_rows), 0]),
        column("boxes", lambda boxes: [boxes[0] + [1], *boxes[1:]]),
    ],
)
def test_tables_of_another_form_are_refused(prepared: Path, tmp_path: Path, change: Change) -> None:
    folder = tampered(prepared, tmp_path / "coco", change)
    with pytest.raises(BenchError, match="Prepare the data anew"):
        Coco17(folder)


def test_a_folder_of_an_earlier_form_is_refused(root: Path, prepared: Path, tmp_path: Path) -> None:
    folder = tampered(prepared, tmp_path / "coco")
    manifest, begun = (read_json(folder / name) for name in ("manifest.json", "begun.json"))
    write_json(folder / "manifest.json", {**manifest, "schema": 1})
    with pytest.raises(BenchError, match="another version of this program. Prepare the data anew"):
        Coco17(folder)
    write_json(folder / "begun.json", {k: v for k, v in begun.items() if k != "schema"})
    with pytest.raises(BenchError, match="schema: nothing there, 3 now"):
        prepare_coco17(root, folder, recipe=RECIPE, piece=4)


@pytest.mark.parametrize(
    ("layer", "picture"),
    [
        ("images", Image.new("L", (64, 64))),
        ("images", Image.new("RGB", (65, 64))),
        ("classes", Image.new("RGB", (64, 64))),
        ("sketch", Image.new("I;16", (64, 64))),
    ],
)
def test_pictures_of_another_form_are_refused(
    prepared: Path, tmp_path: Path, layer: str, picture: Image.Image
) -> None:
    shutil.copytree(prepared, tmp_path / "copy")
    picture.save(tmp_path / "copy" / layer / "val2017" / "000000000101.png")
    item = Coco17(tmp_path / "copy")["000000000101"]
    with pytest.raises(BenchError, match=r"000000000101\.png cannot be read"):
        _ = item.image if layer == "images" else item.layers[layer]


@pytest.mark.parametrize("colours", [[1, 2, 300], [1, 2, -1], [2**70, 0, 0], [1, 2], "red", [[1], 2, 3]])
def test_a_manifest_with_impossible_colours_is_refused(
    prepared: Path, tmp_path: Path, colours: object
) -> None:
    folder = tampered(prepared, tmp_path / "coco")
    manifest = read_json(folder / "manifest.json")
    manifest["categories"][0]["color"] = colours
    write_json(folder / "manifest.json", manifest)
    with pytest.raises(BenchError, match="manifest.json"):
        Coco17(folder)


def _caption_of_nobody(value: Any) -> None:
    value["annotations"].append({"id": 1, "image_id": 999, "caption": "Nobody."})


def _box_of_nobody(value: Any) -> None:
    value["annotations"].append({"id": 1, "image_id": 101, "category_id": 77})


def _no_list(value: Any) -> None:
    del value["images"]


def _way_out(value: Any) -> None:
    value["images"][0]["file_name"] = "../escape.jpg"


def _place(*keys: Any, value: Any) -> Callable[[Any], None]:
    """Return what puts a value at a place in a file's JSON."""

    def change(whole: Any) -> None:
        for key in keys[:-1]:
            whole = whole[key]
        whole[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("captions_val2017.json", _place("images", 0, "file_name", value=".."), "images.0.file_name"),
        ("captions_val2017.json", _place("images", 0, "file_name", value="a\0b"), "images.0.file_name"),
        ("captions_val2017.json", _place("images", 0, "width", value=2**70), "images.0.width"),
        ("captions_val2017.json", _place("images", 0, "id", value=2**70), "images.0.id"),
        ("captions_val2017.json", _place("annotations", 0, "caption", value="a \ud800"), "caption"),
        ("panoptic_val2017.json", _place("categories", 0, "name", value="\udfff"), "categories.0.name"),
        ("panoptic_val2017.json", _place("categories", 0, "color", value=[1, 2, 256]), "categories.0.color"),
        ("panoptic_val2017.json", _place("annotations", 0, "file_name", value=""), "file_name"),
        ("captions_train2017.json", _caption_of_nobody, "1 image that no list of it holds: 999"),
        ("instances_val2017.json", _box_of_nobody, "1 class that no list of it holds: 77"),
        ("panoptic_val2017.json", _no_list, "'images' is missing"),
        ("captions_val2017.json", _way_out, "images.0.file_name"),
    ],
)
def test_what_no_list_holds_is_an_error(
    root: Path, tmp_path: Path, file: str, change: Callable[[Any], None], said: str
) -> None:
    root = Path(shutil.copytree(root, tmp_path / "coco"))
    edit(root, file, change)
    with pytest.raises(BenchError, match=said):
        prepare_coco17(root, tmp_path / "out", recipe=RECIPE)
    assert not (tmp_path / "out").exists()


def test_annotations_nested_without_end_are_an_error(root: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(root, tmp_path / "coco"))
    (root / "annotations" / "captions_val2017.json").write_bytes(b"[" * 100_000)
    with pytest.raises(BenchError, match="captions_val2017.json cannot be read"):
        prepare_coco17(root, tmp_path / "out", recipe=RECIPE)


def test_a_box_of_numbers_beyond_all_bounds_is_left_out(root: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(root, tmp_path / "coco"))
    edit(root, "instances_val2017.json", _place("annotations", 0, "bbox", value=[10**400, 0, 1, 1]))
    found = read_official(root, kinds=("captions", "instances", "panoptic"), maps=True)
    assert [s.reason for s in found["val2017"].skipped] == ["a box outside its image"]


def test_what_is_missing_is_named_with_its_place(root: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(root, tmp_path / "coco"))
    shutil.rmtree(root / "annotations" / "panoptic_val2017")
    (root / "annotations" / "panoptic_val2017").touch()  # no folder
    (root / "annotations" / "instances_train2017.json").unlink()
    with pytest.raises(BenchError) as error:
        prepare_coco17(root, tmp_path / "out", recipe=RECIPE)
    assert "panoptic_val2017/ (unpack panoptic_val2017.zip" in str(error.value)
    assert "instances_train2017.json (from annotations_trainval2017.zip" in str(error.value)
    with pytest.raises(BenchError, match="table5_pidinet.pth"):
        prepare_coco17(root, tmp_path / "out", recipe=Recipe(tasks=("sketch",)))
    found = prepare_coco17(root, tmp_path / "out", recipe=Recipe(size=64, sketch="canny", tasks=("sketch",)))
    assert found.items == {"train2017": 11, "val2017": 10}  # needs captions alone


def test_a_planted_twin_is_dropped_or_told(tmp_path: Path) -> None:
    root = build_coco(tmp_path / "coco", planted=True)
    moved = root / "val2017" / "000000000107.jpg"  # and a near twin: another picture, moved and brighter
    image = np.asarray(Image.open(root / "train2017" / "000000000010.jpg"), np.int64)
    Image.fromarray(np.roll(image + 12, 1, axis=1).clip(0, 255).astype(np.uint8)).save(moved, quality=80)
    out = {rule: tmp_path / rule for rule in ("drop", "keep")}
    found = {
        rule: prepare_coco17(root, path, recipe=Recipe(size=64, sketch="canny", duplicates=rule))
        for rule, path in out.items()
    }
    twins = {s.id: s.reason for s in found["drop"].skipped if s.id in ("000000000010", "000000000012")}
    assert twins == {
        "000000000010": "near-duplicate image as 000000000107 of val2017",
        "000000000012": "same image as 000000000108 of val2017",
    }
    assert found["drop"].items == {"train2017": 9, "val2017": 10} and not found["drop"].leaks
    assert len(found["keep"].leaks) == 2 and found["keep"].items["train2017"] == 11
    dropped, kept = (Coco17(path) for path in out.values())
    assert verify(dropped, splits_of(dropped)) == [] and dropped.digest != kept.digest
    kinds = {f.kind: f.pairs for f in verify(kept, splits_of(kept))}
    assert kinds == {
        "same image": (("000000000012", "000000000108"),),
        "near-duplicate image": (("000000000010", "000000000107"),),
    }


def test_release_leaky_trains_on_val2017_and_says_so(root: Path, tmp_path: Path) -> None:
    recipe = Recipe(size=64, sketch="canny", tasks=("sketch",), splits="release-leaky")
    found = prepare_coco17(root, tmp_path / "out", recipe=recipe)
    data = Coco17(tmp_path / "out")
    splits = splits_of(data)
    assert set(splits.val) < set(splits.train) and len(splits.train) == 21
    assert data.name == splits.name == "coco17 release-leaky"
    assert data.protocol["splits"] == "release-leaky" and found.leaky and len(found.leaks) == 1
    assert [f.kind for f in verify(data, splits)] == ["shared id"]


def test_a_limit_takes_few_pictures_and_names_itself(root: Path, tmp_path: Path) -> None:
    recipe = Recipe(size=64, sketch="canny", tasks=("sketch",), limit=3)
    prepare_coco17(root, tmp_path / "out", recipe=recipe)
    data = Coco17(tmp_path / "out")
    assert len(splits_of(data).val) == 3 and data.protocol["limit"] == "3 pictures of each set"


@pytest.mark.parametrize("soft", [True, False])
def test_pidinet_draws_soft_or_binary_edges(tmp_path: Path, soft: bool) -> None:
    """The real network with random weights, in the file format of the published ones."""
    import torch

    model = pytest.importorskip("controlnet_aux.pidi.model")
    torch.manual_seed(0)
    state = {f"module.{k}": v for k, v in model.pidinet().state_dict().items()}
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / "table5_pidinet.pth")
    draw = load_sketcher(Recipe(size=64, soft=soft), weights=tmp_path)
    image = np.asarray(picture_of(1).resize((64, 64)))
    lines = draw(image)
    assert lines.shape == (64, 64) and lines.dtype == np.uint8 and (lines == draw(image)).all()
    assert (len(np.unique(lines)) > 2) == soft


def test_hed_draws_grey_edges(tmp_path: Path) -> None:
    import torch

    hed = pytest.importorskip("controlnet_aux.hed")
    torch.manual_seed(0)
    torch.save(hed.ControlNetHED_Apache2().state_dict(), tmp_path / "ControlNetHED.pth")
    draw = load_sketcher(Recipe(size=64, sketch="hed"), weights=tmp_path)
    lines = draw(np.asarray(picture_of(1).resize((64, 64))))
    assert lines.shape == (64, 64) and lines.dtype == np.uint8 and len(np.unique(lines)) > 2
