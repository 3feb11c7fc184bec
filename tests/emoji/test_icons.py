"""The pretraining collection: which icons it holds, under which captions, in which views."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench.emoji import tables
from bench.emoji.pretrain import Icon, collection, load_icons, may_mirror, render, render_all
from bench.types import BenchError

CIRCLE = '<circle cx="8" cy="8" r="6" fill="#d22f27"/>'


@pytest.fixture
def families(tmp_path: Path) -> Path:
    for family in tables("icons")["families"]:
        folder = tmp_path / family["package"]
        folder.mkdir()
        icons = {n: {"body": CIRCLE} for n in ("red-heart", "waving-hand", "waving-hand-dark-skin-tone")}
        icons |= {"flag-france": {"body": CIRCLE}, "gone": {"body": CIRCLE, "hidden": True}}
        if family["package"] == "fxemoji":
            icons = {"redheart": {"body": CIRCLE}}
        (folder / "package.json").write_text(json.dumps({"version": family["version"]}))
        (folder / "icons.json").write_text(json.dumps({"icons": icons, "width": 16, "height": 16}))
    return tmp_path


def test_icons_come_without_flags_tones_and_hidden_ones(families: Path) -> None:
    icons = load_icons(families)
    assert {i.caption for i in icons} == {"red heart", "waving hand"}
    known = [family["package"] for family in tables("icons")["families"]]
    assert len(icons) == 2 * (len(known) - 1) + 1 and not any("openmoji" in name for name in known)


def test_another_version_or_a_missing_family_is_said(families: Path) -> None:
    (families / "noto" / "package.json").write_text('{"version": "9.9.9"}')
    with pytest.raises(BenchError, match="has version 9.9.9"):
        load_icons(families)
    (families / "twemoji" / "icons.json").unlink()
    with pytest.raises(BenchError, match="Unpack the npm package"):
        load_icons(families)


def test_views_are_seeded_and_the_first_is_plain(families: Path, tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    icons = load_icons(families)[:2]
    one, two = (dict(render_all(icons, views=3, seed=1)) for _ in range(2))
    assert all(np.array_equal(one[i], two[i]) for i in one)
    assert np.array_equal(one[0][0], render(icons[0]))
    assert not np.array_equal(one[0][1], one[0][0])
    assert render(icons[0])[32, 32].tolist() == [0xD2, 0x2F, 0x27]
    blank = Icon(name="blank", caption="blank", style="x", svg=icons[0].svg.replace(CIRCLE, ""))
    assert dict(render_all([blank], views=2, seed=1)) == {}
    drawn = collection(families, tmp_path / "work")
    kept = collection(tmp_path / "nowhere", tmp_path / "work")
    assert np.array_equal(drawn[0], kept[0]) and drawn[1:] == kept[1:]
    assert drawn[0].shape == (27, 4, 64, 64, 3) and len(drawn[1]) == 27


def test_only_captions_without_sides_may_be_mirrored() -> None:
    assert may_mirror("grinning face") and may_mirror("red heart")
    for caption in ("left arrow", "letter q", "keycap 3", "seven oclock", "on arrow", "a button"):
        assert not may_mirror(caption), caption
