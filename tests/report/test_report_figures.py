"""Pictures hold what they were given, where they say, in the same bytes each time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import bench.reporting.cost_figure as cost_module
from bench import registry
from bench.reporting import Run, build_table, contact_sheet, curve_figure, load_runs, overview
from bench.reporting.cost_figure import cost_panels
from bench.reporting.curves import _running_mean, differences
from bench.reporting.figures import _above, _apart, looks
from bench.reporting.sheet import sheet_layout
from bench.types import BenchError


@pytest.mark.parametrize("notes", [False, True])
def test_sheet_holds_the_images_where_the_layout_says(build: Any, tmp_path: Path, notes: bool) -> None:
    rows = build.sheet_rows(n=11)
    items = [f"item {i}" for i in range(11)] if notes else ()
    path = contact_sheet(rows, tmp_path / "sheet.png", title="run", items=items, per_band=4)
    layout = sheet_layout(rows, per_band=4, notes=notes)
    with Image.open(path) as opened:
        pixels = np.asarray(opened.convert("RGB"))
        assert not opened.info
    assert pixels.shape[:2] == layout.size[::-1]
    covered = np.zeros(pixels.shape[:2], dtype=int)
    for r, images in enumerate(rows.values()):
        for i, image in enumerate(images):
            x, y = layout.origin(row=r, item=i)
            got = pixels[y : y + 128, x : x + 128]
            np.testing.assert_array_equal(got, image.repeat(2, axis=0).repeat(2, axis=1))
            covered[y : y + 128, x : x + 128] += 1
    assert covered.max() == 1
    words = pixels[:, : layout.margin + layout.label_width - 2]
    assert (words < 128).any()


def test_sheet_has_the_same_bytes_each_time(build: Any, tmp_path: Path) -> None:
    one = contact_sheet(build.sheet_rows(), tmp_path / "a.png", title="run").read_bytes()
    assert contact_sheet(build.sheet_rows(), tmp_path / "b.png", title="run").read_bytes() == one
    assert contact_sheet(build.sheet_rows(1), tmp_path / "c.png", title="run").read_bytes() != one


def test_sheet_refuses_what_is_not_images(tmp_path: Path) -> None:
    good = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    for rows in (
        {},
        {"sample": good.astype(np.float32)},
        {"sample": good[0]},
        {"sample": good, "target": good[:1]},
        {"sample": good[:0]},
    ):
        with pytest.raises(BenchError, match="contact sheet"):
            contact_sheet(rows, tmp_path / "x.png", title="run")
    with pytest.raises(BenchError, match="1 item texts for 2 items"):
        contact_sheet({"sample": good}, tmp_path / "x.png", title="run", items=["a"])
    assert not list(tmp_path.iterdir())


def test_overview_has_the_same_bytes_each_time(full: Path, tmp_path: Path) -> None:
    table = build_table(load_runs(full))
    one = overview(table, tmp_path / "a.png").read_bytes()
    assert overview(table, tmp_path / "b.png").read_bytes() == one
    with Image.open(tmp_path / "a.png") as opened:
        assert "Software" not in opened.info
        assert np.asarray(opened.convert("L")).std() > 5


def test_curves_have_the_same_bytes_each_time(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    noisy = [(step, float(x)) for step, x in enumerate(draw.random(200))]
    curves = {"bps": noisy, "t2i-adapter": [(0, 0.5), (100, 0.2)]}
    one = curve_figure(curves, tmp_path / "a.png", x="step", y="loss").read_bytes()
    assert curve_figure(curves, tmp_path / "b.png", x="step", y="loss").read_bytes() == one


def test_figures_are_pdf_too_with_the_same_bytes_at_any_time(
    report: Path, full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {path.stem for path in report.glob("*.pdf")}
    assert made == {f"{kind}-emoji-sketch" for kind in ("overview", "cost", "curves", "qualitative")}
    for stem in made:
        data = (report / f"{stem}.pdf").read_bytes()
        assert data.startswith(b"%PDF-") and (report / f"{stem}.png").exists()
        assert b"CreationDate" not in data and b"Producer" not in data and b"/Type3" not in data
    table = build_table(load_runs(full))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    overview(table, tmp_path / "a.png", pdf=True)
    kept = (report / "overview-emoji-sketch.pdf").read_bytes()
    assert (tmp_path / "a.pdf").read_bytes() == kept


@pytest.mark.parametrize(
    ("curves", "words"),
    [({}, "no curve"), ({"bps": []}, "'bps': 0"), ({"bps": [(3, float("nan"))]}, "nan at step 3")],
)
def test_curves_refuse_what_cannot_be_drawn(
    curves: dict[str, list[tuple[int, float]]], words: str, tmp_path: Path
) -> None:
    with pytest.raises(BenchError, match=words):
        curve_figure(curves, tmp_path / "x.png", x="step", y="loss")
    assert not list(tmp_path.iterdir())


def test_curves_are_compared_at_shared_steps_alone(tmp_path: Path) -> None:
    curves = {"paper": [(2, 0.5), (1, 1.0)], "free": [(1, 0.75), (2, 1.0)], "long": [(1, 0.0)]}
    minus = {"free": "paper", "long": "paper"}
    assert differences(curves, minus) == {"free": [(1, -0.25), (2, 0.5)]}
    alone = curve_figure(curves, tmp_path / "a.png", x="step", y="loss")
    both = curve_figure(curves, tmp_path / "b.png", x="step", y="loss", minus=minus)
    apart = curve_figure(curves, tmp_path / "c.png", x="step", y="loss", minus={"long": "paper"})
    with Image.open(alone) as one, Image.open(both) as two:
        assert two.height > 1.5 * one.height
    assert apart.read_bytes() == alone.read_bytes()


def test_a_method_has_one_colour_and_its_variants_are_told_apart() -> None:
    names = [name for name, row in registry.rows("method").items() if not row.variant_of]
    known = looks({name: name for name in names})
    assert len({look.colour for look in known.values()}) == len(names)
    varied = looks({"text-only": "text-only", **{f"bps {i}": "bps" for i in range(12)}})
    assert varied["bps 0"] == known["bps"] and varied["text-only"] == known["text-only"]
    assert len({(look.colour, look.dash) for name, look in varied.items() if name != "text-only"}) == 12
    assert looks({"mine": "mine"}) == looks({"mine": "mine"})


def test_a_floor_does_not_stretch_the_figure_of_costs(
    build: Any, add_run: Callable[..., Run], results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for method, fd in (("bps", 90.0), ("controlnet", 95.0), ("text-only", 170.0)):
        add_run(method, {"fd": fd})
    limits: list[tuple[float, float]] = []
    place = cost_module._place_names
    monkeypatch.setattr(
        cost_module, "_place_names", lambda axis, *a: limits.append(axis.get_ylim()) or place(axis, *a)
    )
    table = build_table(load_runs(results))
    rows = [row for row in table.rows if row.kind in {"method", "floor"}]
    panels = cost_panels(rows, table.columns, task="sketch")
    cost_module.cost_figure(rows, panels, tmp_path / "cost.png", title="t")
    assert limits and all(high < 110 for _, high in limits)


def test_running_mean_by_hand() -> None:
    got = _running_mean(np.asarray([0.0, 3.0, 6.0, 0.0]), 3)
    np.testing.assert_allclose(got, [1.5, 3.0, 3.0, 3.0])


def test_names_are_pushed_apart_in_order() -> None:
    moved = _apart([1.0, 1.0, 5.0, 1.1], least=0.5)
    assert np.diff(sorted(moved)).min() > 0.49
    assert np.argsort(moved, kind="stable").tolist() == [0, 1, 3, 2]
    assert _apart([1.0, 3.0], least=0.5) == [1.0, 3.0]


def test_names_under_the_axis_are_lifted_and_those_far_above_stay() -> None:
    assert _above([0.0, 0.4, 9.0], floor=0.2, least=0.5) == pytest.approx([0.2, 0.7, 9.0])
    assert _above([0.2, 0.3], floor=0.2, least=0.5) == [0.2, 0.3]


def test_names_of_dashed_curves_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(
        "bench.reporting.curves.label_ends", lambda axis, ends: written.extend(e[0] for e in ends)
    )
    curves = {f"curve {i}": [(1, float(i)), (2, i + 1.0)] for i in range(8)}
    curve_figure(curves, tmp_path / "curves.png", x="step", y="loss")
    assert written == [*(f"curve {i}" for i in range(7)), "- - curve 7"]
