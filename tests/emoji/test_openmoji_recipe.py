"""The builder on a made-up package of tiny drawings, and its rules one by one."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.data.leaks import fingerprint, verify
from bench.data.openmoji import OpenMoji64, openmoji64_splits
from bench.emoji import run
from bench.emoji.openmoji import (
    base_emoji,
    build,
    caption_of,
    classify,
    concept,
    drop_reason,
    find_boxes,
    group_items,
    load_palette,
    looking_alike,
    main,
    render,
    side_of,
)
from bench.types import BenchError

pytest.importorskip("resvg_py")

GRID = '<g id="grid"><rect width="72" height="72" fill="#00a5ff"/></g>'
SQUARE = '<g id="color"><rect x="14" y="14" width="20" height="30" fill="#d22f27"/></g>'
LINES = (
    '<g id="line"><rect x="14" y="14" width="20" height="30" fill="none" stroke="#000" stroke-width="2"/></g>'
)
WHITE_LINES = (
    '<g id="line-supplement"><path d="M20,60H60" stroke="#fff" stroke-width="4"/></g>'
    '<g id="line"><path d="M20,20H60" stroke="#d22f27" stroke-width="4"/></g>'
)
DISCS = (
    '<g id="color"><circle cx="20" cy="50" r="8" fill="#fcea2b"/></g>'
    '<g id="skin"><circle cx="52" cy="50" r="10" fill="#fadcbc"/></g>'
    '<g id="color-foreground"><rect x="40" y="10" width="3" height="3" fill="#000"/></g>'
)


def entry(hexcode: str, annotation: str, group: str = "objects", tone: str = "") -> dict[str, Any]:
    return {
        "hexcode": hexcode,
        "annotation": annotation,
        "group": group,
        "subgroups": "tool",
        "skintone": tone,
    }


@pytest.fixture
def package(tmp_path: Path) -> Path:
    root = tmp_path / "package"
    drawings = {
        "A1": GRID + SQUARE + LINES,
        "A2": GRID + DISCS + WHITE_LINES,
        "A3": GRID + SQUARE + '<g id="line"/>',
        "A4": GRID + '<g id="color"/>' + LINES,
        "A5": "<g",
        "F1": GRID + SQUARE + LINES,
    }
    entries = [
        entry("A2", "two  “discs”"),
        entry("A1", "red box"),
        entry("A3", "no lines"),
        entry("A4", "no colour"),
        entry("A5", "broken"),
        entry("A6", "without a file"),
        entry("F1", "flag: nowhere", "flags"),
        entry("A1-1F3FB", "red box: light skin tone", tone="1"),
    ]
    for hexcode, body in drawings.items():
        path = root / "src" / "objects" / "tool" / f"{hexcode}.svg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'<svg viewBox="0 0 72 72" xmlns="http://www.w3.org/2000/svg">{body}</svg>', "utf-8")
    (root / "data").mkdir()
    (root / "data" / "openmoji.json").write_text(json.dumps(entries), "utf-8")
    palette = {
        "colors": ["#000000", "#ffffff", "#D22F27", "#fcea2b"],
        "skintones": {"fitzpatrick": ["#fadcbc"], "hair": ["#000000"]},
    }
    (root / "data" / "color-palette.json").write_text(json.dumps(palette), "utf-8")
    (root / "package.json").write_text('{"version": "0.0.1"}', "utf-8")
    return root


def test_the_same_package_gives_the_same_bytes(package: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        build(package, tmp_path / name)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["openmoji64.manifest.json", "openmoji64.npz", "openmoji64.splits.json"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_what_is_left_out_is_counted_by_reason(package: Path, tmp_path: Path) -> None:
    manifest = build(package, tmp_path / "out")
    reasons = {reason.split(":")[0]: n for reason, n in manifest["dropped"].items()}
    assert reasons == {
        "empty sketch": 1,
        "empty colour": 1,
        "broken": 1,
        "no drawing in the package": 1,
        "flag": 1,
        "skin tone variant": 1,
    }
    assert manifest["count"] == 2 and manifest["source"]["version"] == "0.0.1"


def test_the_layers_are_what_was_drawn(package: Path, tmp_path: Path) -> None:
    build(package, tmp_path / "out")
    data = OpenMoji64(tmp_path / "out")
    assert verify(data, openmoji64_splits(tmp_path / "out")) == []
    box = data["A1"]
    assert box.image[25, 20].tolist() == [0xD2, 0x2F, 0x27]  # one unit is one pixel, less 4
    assert box.image[0, 0].tolist() == [255, 255, 255]  # the grid is not drawn
    assert box.layers["sketch"][9:11, 15:25].min() == 255 and box.layers["sketch"][25, 20] == 0
    assert box.layers["boxes"].tolist() == [[data.class_names.index("red"), 10, 10, 30, 40]]


def test_lines_count_whatever_their_colour(package: Path, tmp_path: Path) -> None:
    build(package, tmp_path / "out")
    item = OpenMoji64(tmp_path / "out")["A2"]
    assert item.caption == 'two "discs", openmoji style'
    assert (item.layers["sketch"][54:58, 20:50] == 255).all()  # white line
    assert (item.layers["sketch"][14:18, 20:50] == 255).all()  # red line
    assert item.layers["sketch"].astype(bool).sum() == 8 * 40


def test_skin_and_foreground_are_classes_and_small_regions_no_boxes(package: Path, tmp_path: Path) -> None:
    build(package, tmp_path / "out")
    data = OpenMoji64(tmp_path / "out")
    names = [data.class_names[box[0]] for box in data.boxes("A2").tolist()]
    assert names == ["light skin", "yellow"]
    assert data.class_names[data["A2"].layers["classes"][7, 37]] == "black"


def test_a_wrong_package_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="npm pack openmoji"):
        build(tmp_path, tmp_path / "out")


def test_the_command_line_builds_and_refuses(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["openmoji", "--package", str(package), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code == 0 and len(OpenMoji64(tmp_path / "out")) == 2
    arguments[2] = str(tmp_path / "nowhere")
    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code == 2


def test_boxes_are_sorted_cut_and_exclusive() -> None:
    classes = np.zeros((64, 64), np.uint8)
    for index in range(20):
        row, column = divmod(index, 5)
        classes[row * 12 : row * 12 + 4, column * 12 : column * 12 + 3 + index % 3] = 1
    classes[60:64, 60:64] = 2  # touches the far corner
    boxes = find_boxes(classes).astype(int)
    assert len(boxes) == 16
    areas = (boxes[:, 3] - boxes[:, 1]) * (boxes[:, 4] - boxes[:, 2])
    assert (np.diff(areas) <= 0).all()
    assert [2, 60, 60, 64, 64] in boxes.tolist()
    assert find_boxes(np.zeros((64, 64), np.uint8)).shape == (0, 5)


def test_diagonal_neighbours_are_two_regions() -> None:
    classes = np.zeros((64, 64), np.uint8)
    classes[0:4, 0:4] = classes[4:8, 4:8] = 1
    assert len(find_boxes(classes)) == 2


def test_classify_takes_the_nearest_colour_and_knows_paper(package: Path) -> None:
    known, palette = load_palette(package)
    assert known[0] == "background" and len(known) == len(palette) == 6
    rgba = np.zeros((1, 4, 4), np.uint8)
    rgba[0, 1] = (0xD0, 0x30, 0x28, 255)
    rgba[0, 2] = (255, 255, 255, 255)
    rgba[0, 3] = (0, 0, 0, 127)
    names = [known[label] for label in classify(rgba, palette)[0]]
    assert names == ["background", "red", "white", "background"]


def test_kinds_are_dropped_by_group_and_subgroup() -> None:
    keep = {"group": "extras-openmoji", "subgroups": "healthcare", "skintone": ""}
    assert drop_reason(keep) is None
    assert "brand" in str(drop_reason({**keep, "subgroups": "brand"}))
    assert "flag" in str(drop_reason({**keep, "group": "flags", "subgroups": "any"}))
    assert "skin tone" in str(drop_reason({**keep, "skintone": "3"}))


def test_captions_have_plain_quotes() -> None:
    assert caption_of(" one  o’clock ") == "one o'clock, openmoji style"


@pytest.mark.parametrize(
    "names",
    [
        ["man astronaut", "woman astronaut", "astronaut"],
        ["person running", "woman running: facing right"],
        ["red apple", "green apple"],
        ["left-facing fist", "raised fist"],
        ["one o’clock", "twelve-thirty"],
        ["full moon", "waning crescent moon"],
    ],
)
def test_variants_have_one_concept(names: list[str]) -> None:
    assert len({concept(name, "any") for name in names}) == 1


def test_other_things_have_other_concepts() -> None:
    names = ["man astronaut", "man cook", "cat", "red apple", "clockwise", "full moon"]
    assert len({concept(name, "any") for name in names}) == len(names)


@pytest.mark.parametrize(
    ("hexcode", "base"),
    [
        ("1F468-200D-1F680", "person 1F680"),
        ("1F9D1-1F3FB-200D-1F680", "person 1F680"),
        ("1F680", "1F680"),
        ("1F3C3-200D-2642-FE0F-200D-27A1-FE0F", "1F3C3"),
        ("1F468-200D-1F9B0", "person"),
        ("1F469", "person"),
        ("1F43B-200D-2744-FE0F", "1F43B"),
        ("2640", "2640"),
    ],
)
def test_base_emoji(hexcode: str, base: str) -> None:
    assert base_emoji(hexcode) == base


def test_groups_join_by_words_and_by_looks(package: Path, tmp_path: Path) -> None:
    build(package, tmp_path / "out")
    data = OpenMoji64(tmp_path / "out")
    twin = data["A1"]
    prints = fingerprint(
        [twin, data["A2"], type(twin)(id="B7", caption="", image=twin.image, layers=twin.layers)]
    )
    notes = [("box", "x"), ("discs", "x"), ("crate", "x")]
    assert group_items(prints, notes) == {"A1": ("A1", "B7"), "A2": ("A2",)}
    assert group_items(prints, [("box", "x")] * 3) == {"A1": ("A1", "A2", "B7")}


def test_sides_follow_the_fractions_and_large_groups_train() -> None:
    drawn = [side_of(f"group {i}", 1) for i in range(4000)]
    assert abs(drawn.count("test") / 4000 - 0.26) < 0.03
    assert abs(drawn.count("val") / 4000 - 0.10) < 0.02
    assert {side_of(f"group {i}", 9) for i in range(100)} == {"train"}


def test_the_shipped_sides_follow_from_their_groups_and_look_alikes_share_one() -> None:
    data, splits = OpenMoji64(), openmoji64_splits()
    sizes = Counter(splits.groups.values())
    for side in ("train", "val", "test"):
        assert {side_of(g, sizes[g]) for g in (splits.groups[item] for item in splits.side(side))} == {side}
    ids = splits.val + splits.test[:100]
    pairs = {pair for pair in looking_alike(fingerprint(data[item] for item in ids)) if len(set(pair)) == 2}
    assert pairs and all(splits.groups[ids[i]] == splits.groups[ids[j]] for i, j in pairs)
    firsts: dict[str, str] = {}
    for item in data.ids:
        assert splits.groups[firsts.setdefault(base_emoji(item), item)] == splits.groups[item]


def test_namespaces_do_not_matter() -> None:
    svg = f'<svg viewBox="0 0 72 72" xmlns="http://www.w3.org/2000/svg">{SQUARE}</svg>'
    rgba = render(ElementTree.fromstring(svg), lambda layer: True, crisp=True)
    assert rgba.shape == (64, 64, 4) and rgba[25, 20].tolist() == [0xD2, 0x2F, 0x27, 255]
