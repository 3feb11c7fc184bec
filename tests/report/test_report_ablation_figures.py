"""Figures of ablations: differences, quality along an axis, layer weights, samples side by side."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from bench.ablations import ABLATIONS, FEW_ITEMS
from bench.reporting import load_runs
from bench.reporting.compare import build_ablations
from bench.reporting.figures import CURVES, SAMPLES, Pictures, draw_ablation
from bench.reporting.page import Pages, Section
from bench.reporting.tables import main_grid, tidy
from tests.report.ablation_runs import both, only_table, plausible, write_variant

PRIOR, DATA, CURVE = ABLATIONS["prior"], ABLATIONS["data"], ABLATIONS["budget"]
FROZEN = PRIOR.variants[0]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that a test draws, as they would be saved."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: figures.append(self))
    return figures


def draw(results: Path) -> Pictures:
    return draw_ablation(only_table(results), results, name="ablation")


def test_the_caption_says_on_which_gpu_runs_were_made(build: Any, results: Path) -> None:
    card = {"device": "cuda", "gpu": "A Card", "packages": {"torch": "2.15"}}
    for variant in PRIOR.variants[:3]:
        write_variant(build, results, variant, plausible(variant, 0), environment=card)
    assert main_grid(only_table(results)).caption.endswith(" Made on A Card, torch 2.15.")


def test_differences_and_samples_of_every_variant_are_drawn(
    build: Any, results: Path, drawn: list[Figure]
) -> None:
    for variant in PRIOR.variants:
        write_variant(build, results, variant, plausible(variant, 0), tiles=True)
    made, table = draw(results), only_table(results)
    assert list(made.figures) == ["differences to the paper's setting", CURVES, SAMPLES]
    compared = [row for row in table.rows if row.differences]
    values = set(drawn[0].axes[0].collections[-1].get_offsets()[:, 0])
    assert {row.differences[table.columns[0]].interval.value for row in compared} <= values
    (shown,) = made.galleries
    assert list(shown.runs) == [row.name for row in table.rows]
    heads = [text.get_text() for text in drawn[-1].axes[0].texts]
    assert len(heads) == len(PRIOR.variants) + 2, "condition and target"


def test_quality_along_training_items_is_a_line_a_method_and_samples_are_the_references(
    build: Any, results: Path, drawn: list[Figure]
) -> None:
    for variant in DATA.variants:
        fields = {"budget": DATA.budget, "tiles": True}
        write_variant(build, results, variant, plausible(variant, 0), **fields)
    made = draw(results)
    (legend,) = drawn[0].legends
    assert {"BPS", "ControlNet"} <= {text.get_text() for text in legend.get_texts()}
    (line,) = (line for line in drawn[0].axes[0].lines if line.get_label() == "BPS")
    assert len(line.get_xdata()) == len(FEW_ITEMS) + 1 and drawn[0].axes[0].get_xscale() == "log"
    assert len(made.galleries[0].runs) == len(FEW_ITEMS) + 1, "bps alone, all items the last"


def test_curves_are_of_first_seeds_minus_the_references(
    build: Any, results: Path, drawn: list[Figure]
) -> None:
    for variant in PRIOR.variants[:3]:
        write_variant(build, results, variant, plausible(variant, 0))
    assert CURVES in draw(results).figures
    named = [{line.get_label() for line in axis.lines} for axis in drawn[-1].axes]
    assert "frozen prior" in named[0] and "frozen prior" not in named[1] and "no prior" in named[1]


def test_samples_without_the_references_are_no_comparison(
    build: Any, results: Path, drawn: list[Figure]
) -> None:
    for variant in PRIOR.variants[:3]:
        write_variant(build, results, variant, plausible(variant, 0), tiles=variant is not FROZEN)
    assert SAMPLES not in draw(results).figures
    write_variant(build, results, FROZEN, plausible(FROZEN, 0), tiles=True)
    for run in load_runs(results):
        if run.record.options["prior"] == "none":
            (results / run.record.run_id / "tiles.npz").unlink()
    made = draw(results)
    (said,) = made.left_out
    assert "no prior" in said and said.endswith("keeps no tiles.")
    section = Section(name="a", table=only_table(results), pictures=made)
    pages = Pages(sections=[], suites=[], ablations=[section], out=results)
    assert f"- {said}\n" in pages.report()


def test_tiles_of_one_row_are_no_comparison(build: Any, results: Path, drawn: list[Figure]) -> None:
    for variant in PRIOR.variants[:3]:
        write_variant(build, results, variant, plausible(variant, 0), tiles=variant is FROZEN)
    assert SAMPLES not in draw(results).figures


@pytest.mark.parametrize("counted", [True, False])
def test_the_learning_curve_shows_fidelity_kid_and_gains_by_images_and_by_multiply_adds(
    build: Any, results: Path, drawn: list[Figure], counted: bool
) -> None:
    macs = {"bps": 9_000_000, "controlnet": 5_000_000}
    wanted = [v for v in CURVE.variants if v.method in macs and v.train_images in (1_600, None, 6_400)]
    for variant, seed in itertools.product(wanted, (0, 1)):
        right = {"sketch_f1": 0.9, "kid": 0.05, "fd": 100.0 + seed, "cosine": 0.6}
        wrong = {"sketch_f1": 0.3, "kid": 0.09, "fd": 120.0} if seed == 0 else None
        cost = replace(build.cost, train_images=variant.train_images or 3_200)
        cost = replace(cost, macs_train=macs[variant.method]) if counted else cost
        write_variant(build, results, variant, right, seed=seed, shuffled=wrong, cost=cost)
    (table,) = build_ablations(both(results), only=CURVE)
    made = draw_ablation(table, results, name="curve")
    assert list(made.figures) == ["quality by training images"]
    titles = [axis.get_title(loc="left").replace("\n", " ") for axis in drawn[0].axes]
    told = ["line F1 ↑", "KID (EfficientNet-Lite0", "condition gain, line F1", "condition gain, KID"]
    starts = [title[: len(start)] for title, start in zip(titles, told * 2, strict=False)]
    assert starts == told * (2 if counted else 1)
    names = ["BPS", "ControlNet", "BPS, uniform at matched rates"]
    assert {text.get_text() for text in drawn[0].legends[0].get_texts()} == set(names)
    for axis in drawn[0].axes:
        assert axis.get_xscale() == "log" and len(axis.collections) == len(names), "a band a line"
    x = [line.get_xdata().tolist() for line in drawn[0].axes[0].lines if line.get_label() == "ControlNet"]
    assert x == [[1_600, 3_200, 6_400]]
    if counted:
        (x,) = (line.get_xdata() for line in drawn[0].axes[-1].lines if line.get_label() == "ControlNet")
        assert x.tolist() == [images * 5_000_000 for images in (1_600, 3_200, 6_400)]
        assert set(tidy(table)["train_macs"]) >= {1_600 * 9_000_000, 6_400 * 5_000_000}


def test_guidance_is_a_curve_a_method(build: Any, results: Path, drawn: list[Figure]) -> None:
    wanted = [v for v in ABLATIONS["guidance"].variants if v.method in ("bps", "controlnet")]
    for variant in wanted:
        write_variant(build, results, variant, plausible(variant, 0))
    (table,) = build_ablations(both(results), only=ABLATIONS["guidance"])
    draw_ablation(table, results, name="guidance")
    lines = {line.get_label(): list(line.get_xdata()) for line in drawn[0].axes[0].lines}
    assert lines["BPS"] == lines["ControlNet"] == [1.0, 2.0, 2.5, 4.0, 7.5]
    rows = {row.name: row for row in table.rows}
    assert [name for name, row in rows.items() if not row.differences] == [
        "the suite's guidance (2.5)",
        "ControlNet, the suite's guidance (2.5)",
    ]
    (found,) = {d.second for d in rows["ControlNet, guidance 4"].differences.values()}
    assert found == "ControlNet, the suite's guidance (2.5)", "its own, not the paper's method"
