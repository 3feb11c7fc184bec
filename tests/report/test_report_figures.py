"""Figures show what they were given: each number, each name, and a method in one colour."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from bench import registry
from bench.data.picture import TILES_FILE, write_tiles
from bench.reporting import Run, build_table, load_runs, make_report
from bench.reporting.figures import (
    Mark,
    Panel,
    Sheet,
    curve_figure,
    differences,
    dot_figure,
    draw_table,
    gallery,
    gallery_figure,
    looks,
    plane_figure,
    running_mean,
)

Writer = Callable[..., Run]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that a test draws, as they would be saved."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: figures.append(self))
    return figures


def texts(axis: Any) -> set[str]:
    return {text.get_text() for text in axis.texts}


def test_dots_stand_at_their_values_with_intervals_and_missing_ones_say_so(
    drawn: list[Figure], tmp_path: Path
) -> None:
    marks = [
        Mark("BPS", "bps", 3.0, 2.5, 3.5, text="3.0"),
        Mark("text-only (floor)", "text-only", 7.0, kind="floor", text="7.0"),
    ]
    names = ["BPS", "ControlNet", "text-only (floor)"]
    dot_figure({"FD (a judge) ↓": marks, "mAP": marks[:1]}, Sheet(tmp_path / "a.png"), title="t", names=names)
    first, second = drawn[0].axes
    assert first.get_title(loc="left") == "FD\n(a judge) ↓"
    assert {*names, "3.0", "7.0", "–"} <= texts(first) and not set(names) & texts(second)
    intervals, dots = first.collections[1:]
    np.testing.assert_array_equal(dots.get_offsets(), [(3.0, 0.0), (7.0, 2.0)])
    np.testing.assert_array_equal(intervals.get_segments()[0], [(2.5, 0.0), (3.5, 0.0)])


@pytest.mark.parametrize("width", [3.25, 6.75])
def test_figures_of_a_paper_have_its_width_and_letters_of_8_points(width: float, tmp_path: Path) -> None:
    marks = [Mark(f"method {k}", "bps", 90.0, 80.0, 95.0, x=10.0 + k, text="90.0") for k in range(5)]
    names, made = [mark.name for mark in marks], tmp_path / "a.png"
    for draw in (
        lambda: dot_figure(dict.fromkeys("abcdefg", marks), Sheet(made, width), title="t", names=names),
        lambda: plane_figure([Panel("s", "FD", marks)] * 3, Sheet(made, width), title="t"),
        lambda: gallery_figure(
            {n: np.zeros((2, 512, 512, 3), np.uint8) for n in names}, Sheet(made, width), title="t"
        ),
    ):
        draw()
        with Image.open(made) as image:
            assert image.width == round(120 * width) and image.height < 120 * 9
        box = re.search(rb"/MediaBox \[ ?0 0 ([0-9.]+) ", made.with_suffix(".pdf").read_bytes())
        assert box is not None and float(box[1]) == 72 * width


def test_large_pictures_are_drawn_smaller_with_larger_names(drawn: list[Figure], tmp_path: Path) -> None:
    for size in (64, 512):
        pictures = {name: np.zeros((8, size, size, 3), np.uint8) for name in ("BPS", "target")}
        gallery_figure(pictures, Sheet(tmp_path / "a.png"), title="t")
    small, large = drawn[0], drawn[-1]
    assert large.axes[0].images[0].get_array().shape == (8 * 260, 2 * 260, 3)
    assert large.axes[0].texts[0].get_fontsize() == 2 * small.axes[0].texts[0].get_fontsize()


@pytest.mark.parametrize(("floor", "told"), [(95.0, ""), (170.0, "floor 170 ↑"), (-40.0, "floor -40 ↓")])
def test_a_floor_far_away_does_not_flatten_a_panel(
    floor: float, told: str, drawn: list[Figure], tmp_path: Path
) -> None:
    marks = [Mark("BPS", "bps", 90.0, x=10.0), Mark("CN", "controlnet", 94.0, x=100.0)]
    panel = Panel("seconds", "FD", [*marks, Mark("floor", "text-only", floor, kind="floor")], log=True)
    plane_figure([panel], Sheet(tmp_path / "a.png"), title="t")
    (axis,), (legend,) = drawn[0].axes, drawn[0].legends
    low, high = axis.get_ylim()
    assert low > 85 and high < 100 and axis.get_xscale() == "log"
    assert texts(axis) == ({told} - {""})
    named = [text.get_text() for text in legend.get_texts()]
    assert named == ["BPS", "CN", *([] if told else ["floor"])]


def curve(name: str, *points: tuple[float, float]) -> list[Mark]:
    return [Mark(name, name, value, x=step) for step, value in points]


def test_curves_are_compared_at_shared_steps_alone(drawn: list[Figure], tmp_path: Path) -> None:
    curves = {
        "paper": curve("paper", (2, 0.5), (1, 1.0)),
        "free": curve("free", (1, 0.75), (2, 1.0)),
        "long": curve("long", (1, 0.0)),
    }
    minus = {"free": "paper", "long": "paper"}
    assert differences(curves, minus) == {"free": curve("free", (1, -0.25), (2, 0.5))}
    for pairs in (minus, {"long": "paper"}):
        curve_figure(curves, Sheet(tmp_path / "a.png"), labels=("step", "loss"), title="t", minus=pairs)
    assert [len(figure.axes) for figure in drawn[::2]] == [2, 1]
    (line,) = drawn[0].axes[1].lines
    np.testing.assert_allclose(line.get_xydata(), [(1, -0.25), (2, 0.5)])


def test_a_long_curve_is_drawn_faint_under_its_running_mean(drawn: list[Figure], tmp_path: Path) -> None:
    noisy = {"bps": curve("bps", *((step, float(step % 2)) for step in range(100)))}
    curve_figure(noisy, Sheet(tmp_path / "a.png"), labels=("step", "loss"), title="t")
    faint, smooth = drawn[0].axes[0].lines
    assert faint.get_alpha() < 0.5 and np.ptp(smooth.get_ydata()) < 0.2


def test_running_mean_by_hand() -> None:
    got = running_mean(np.asarray([0.0, 3.0, 6.0, 0.0]), 3)
    np.testing.assert_allclose(got, [1.5, 3.0, 3.0, 3.0])


def test_a_method_has_one_colour_and_its_variants_are_told_apart() -> None:
    names = [name for name, row in registry.rows("method").items() if not row.variant_of]
    known = looks({name: name for name in names})
    assert len({look.colour for look in known.values()}) == len(names)
    assert len({look.marker for look in known.values()}) == len(names)
    varied = looks({"text-only": "text-only", **{f"bps {i}": "bps" for i in range(12)}})
    assert varied["bps 0"] == known["bps"] and varied["text-only"] == known["text-only"]
    assert len({(look.colour, look.dash) for name, look in varied.items() if name != "text-only"}) == 12
    assert looks({"mine": "mine"}) == looks({"mine": "mine"})


def test_figures_are_png_and_pdf_with_the_same_bytes_at_any_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {name: np.full((2, 8, 8, 3), 90, np.uint8) for name in ("condition", "BPS $x_猫$", "target")}
    for name, time in (("a", "1"), ("b", "2000000000")):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", time)
        gallery_figure(rows, Sheet(tmp_path / f"{name}.png"), title="t")
    for end in ("png", "pdf"):
        assert (tmp_path / f"a.{end}").read_bytes() == (tmp_path / f"b.{end}").read_bytes()
    data = (tmp_path / "a.pdf").read_bytes()
    assert data.startswith(b"%PDF-") and b"/Type3" not in data and b"Producer" not in data


def test_report_is_remade_byte_for_byte(full: Path, report: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(full, moved)
    again = make_report(moved, tmp_path / "again").files
    assert sorted(p.name for p in report.iterdir()) == [p.name for p in again]
    for path in again:
        assert path.read_bytes() == (report / path.name).read_bytes(), path.name


def test_a_gallery_holds_every_pixel(build: Any, drawn: list[Figure], tmp_path: Path) -> None:
    rows = build.sheet_rows(n=3, size=16)
    gallery_figure(rows, Sheet(tmp_path / "b.png"), title="t")
    (image,) = drawn[0].axes[0].images
    page = np.asarray(image.get_array()).reshape(3, 20, 3, 20, 3)[:, 2:-2, :, 2:-2]
    for column, pictures in enumerate(rows.values()):
        np.testing.assert_array_equal(page[:, :, column], pictures)
    assert [text.get_text() for text in drawn[0].axes[0].texts] == list(rows)


def test_a_table_is_drawn_by_its_numbers(full: Path, drawn: list[Figure], tmp_path: Path) -> None:
    table = build_table(load_runs(full))
    rows = [row for row in table.rows if row.kind in {"method", "floor"}]
    made = draw_table(table, rows, tmp_path, name="x")
    assert list(made.figures) == ["overview", "cost", "curves", "samples"]
    assert made.pdfs[1] == "cost-x.pdf" and not made.left_out
    overview, cost, curves, _ = drawn[::2]
    assert len(cost.axes) == 4, "fidelity and FD, by seconds and by parameters"
    assert {row.label for row in table.rows} <= texts(overview.axes[0])
    named = {text.get_text() for text in curves.legends[0].get_texts()}
    assert named == {row.name for row in rows if row.runs[0].curve}


def test_a_gallery_shows_the_tiles_of_every_row(full: Path) -> None:
    rows = [row for row in build_table(load_runs(full)).rows if row.kind in {"method", "floor"}]
    shown, left_out = gallery(rows)
    assert shown is not None and shown.seed == 0 and left_out == []
    assert list(shown.columns) == ["condition", *(row.name for row in rows), "target"]
    for row in rows:
        tiles = row.runs[0].tiles()
        np.testing.assert_array_equal(shown.columns[row.name], tiles["sample"])
        np.testing.assert_array_equal(shown.columns["target"], tiles["target"])


def test_a_gallery_says_what_it_leaves_out(build: Any, add_run: Writer, results: Path) -> None:
    for method in ("bps", "t2i-adapter", "text-only"):
        for seed in (0, 1):
            add_run(method, {"fd": 1.0}, seed=seed, tiles=(method, seed) != ("bps", 0), size=16)
    other = add_run("other", {"fd": 1.0}, seed=1)
    assert other.folder is not None
    moved = {name: images[::-1] for name, images in build.sheet_rows(n=24, size=16).items()}
    write_tiles(other.folder / TILES_FILE, moved, [f"item {k:02}" for k in range(24)])
    add_run("late", {"fd": 1.0}, seed=2, tiles=True, size=16)
    broken = add_run("broken", {"fd": 1.0}, seed=1, tiles=True, size=16)
    assert broken.folder is not None
    (broken.folder / TILES_FILE).write_bytes(b"")
    add_run("none", {"fd": 1.0}, seed=1)
    table = build_table(load_runs(results))
    shown, left_out = gallery([row for row in table.rows if row.kind in {"method", "floor"}])
    assert shown is not None and shown.seed == 1
    assert list(shown.columns) == ["condition", "BPS", "T2I-Adapter", "text-only", "target"]
    assert set(left_out) == {
        "none keeps no tiles.",
        "late keeps no tiles of seed 1.",
        "other: its tiles show other items.",
        "broken: its tiles cannot be read.",
    }
