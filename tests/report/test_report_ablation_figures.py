"""Figures of ablations: samples side by side, floors, and where runs were made."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from bench.ablations import ABLATIONS, FEW_ITEMS
from bench.reporting import load_runs
from bench.reporting.ablation_page import SAMPLES, ablation_markdown, ablation_sections
from bench.reporting.figures import floor_line
from bench.reporting.html.ablations import ablation_data
from bench.reporting.tables import main_grid
from tests.report.ablation_runs import only_table, plausible, write_variant

PRIOR, DATA = ABLATIONS["prior"], ABLATIONS["data"]
FROZEN = PRIOR.variants[0]


@pytest.mark.parametrize(
    ("value", "words", "height"),
    [
        (1.5, "floor", 1.5),
        (4.0, "floor", 4.0),
        (-40.0, "floor -40 ↓", 0.0),
        (9.5, "floor 9.5 ↑", 2.0),
    ],
)
def test_a_floor_far_away_does_not_flatten_the_curves(value: float, words: str, height: float) -> None:
    axis = Figure().subplots()
    axis.set_ylim(0.0, 2.0)
    assert floor_line(axis, "floor", value) == (words, height)
    assert axis.get_ylim() == (0.0, 2.0) and bool(axis.lines) == (words == "floor")


def test_the_caption_says_on_which_gpu_runs_were_made(build: Any, results: Path) -> None:
    card = {"device": "cuda", "gpu": "A Card", "packages": {"torch": "2.15"}}
    for variant in PRIOR.variants[:3]:
        write_variant(build, results, variant, plausible(variant, 0), environment=card)
    assert main_grid(only_table(results)).caption.endswith(" Made on A Card, torch 2.15.")


def drawn_columns(picture: Path) -> int:
    """How many columns of 128 pixels, 6 apart within margins of 14, a gallery has."""
    with Image.open(picture) as opened:
        columns, rest = divmod(opened.width - 2 * 14 + 6, 128 + 6)
    assert rest == 0
    return columns


def test_samples_of_every_variant_stand_side_by_side(build: Any, results: Path) -> None:
    for variant in PRIOR.variants:
        write_variant(build, results, variant, plausible(variant, 0), tiles=True)
    (section,) = ablation_sections([only_table(results)], results)
    name = "ablation-prior-emoji-sketch-samples.png"
    assert name in section.figures and (results / name).with_suffix(".pdf").exists()
    assert drawn_columns(results / name) == len(PRIOR.variants) + 2, "condition and target"


def test_samples_along_training_items_are_the_references(build: Any, results: Path) -> None:
    for variant in DATA.variants:
        fields = {"budget": DATA.budget, "tiles": True}
        write_variant(build, results, variant, plausible(variant, 0), **fields)
    (section,) = ablation_sections([only_table(results)], results)
    name = "ablation-data-emoji-sketch-samples.png"
    assert name in section.figures
    assert drawn_columns(results / name) == len(FEW_ITEMS) + 1 + 2, "bps alone, all items the last"


def test_samples_without_the_references_are_no_comparison(build: Any, results: Path) -> None:
    for variant in PRIOR.variants[:3]:
        levels = plausible(variant, 0)
        write_variant(build, results, variant, levels, tiles=variant is not FROZEN)
    (section,) = ablation_sections([only_table(results)], results)
    assert not [name for name in section.figures if "samples" in name]
    write_variant(build, results, FROZEN, plausible(FROZEN, 0), tiles=True)
    for run in load_runs(results):
        if run.record.options["prior"] == "none":
            (results / run.record.run_id / "tiles.npz").unlink()
    (section,) = ablation_sections([only_table(results)], results)
    assert section.left_out == ("no prior keeps no tiles.",)
    assert "- no prior keeps no tiles.\n" in ablation_markdown(section)
    assert ablation_data([section])[0]["left_out"] == list(section.left_out)


def test_large_samples_stay_small_in_the_page(build: Any, results: Path) -> None:
    for variant in PRIOR.variants[:3]:
        write_variant(build, results, variant, plausible(variant, 0))
    (section,) = ablation_sections([only_table(results)], results)
    drawn = np.random.default_rng(0).integers(0, 256, (500, 3000, 3), dtype=np.uint8)
    Image.fromarray(drawn).save(results / "large.png")
    (made,) = ablation_data([replace(section, figures={"large.png": SAMPLES})])
    packed = base64.b64decode(made["figures"][0]["source"].split(",")[1])
    with Image.open(io.BytesIO(packed)) as opened:
        assert opened.size == (1400, 233)
    assert len(packed) < (results / "large.png").stat().st_size / 4


def test_tiles_of_one_row_are_no_comparison(build: Any, results: Path) -> None:
    for variant in PRIOR.variants[:3]:
        levels = plausible(variant, 0)
        write_variant(build, results, variant, levels, tiles=variant is FROZEN)
    (section,) = ablation_sections([only_table(results)], results)
    assert not [name for name in section.figures if "samples" in name]
