"""The comparison over tasks says what the intervals say, and shows every method the same items."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from PIL import Image

from bench.content import read_json
from bench.reporting import Run, build_comparison, build_table, load_runs, make_report, verdict
from bench.reporting.compare import Comparison, findings
from bench.reporting.compare_tables import comparison_grid, cost_task, tidy_comparison
from bench.reporting.cost_figure import cost_figure, cost_panels
from bench.reporting.grid import to_markdown
from bench.reporting.latex import to_latex
from bench.reporting.notes import made_equal
from bench.reporting.qualitative import gallery
from bench.tiles import TILES_FILE, write_tiles
from bench.types import BenchError

Writer = Callable[..., Run]
TASKS = ["sketch", "segmentation", "layout", "drawing"]


def compare(folder: Path) -> Comparison:
    """The comparison of all runs of a folder."""
    runs = load_runs(folder)
    tasks = sorted({run.record.task for run in runs})
    return build_comparison([build_table([run for run in runs if run.record.task == task]) for task in tasks])


@pytest.fixture(scope="session")
def suite(suite_results: Path) -> Comparison:
    """The comparison of the whole synthetic suite."""
    return compare(suite_results)


def test_rows_and_columns_stand_in_order(suite: Comparison) -> None:
    assert list(suite.tables) == TASKS
    assert [entry.label for entry in suite.entries] == [
        "real training images (reference)",
        "autoencoder (ceiling)",
        "BPS",
        "LoRA + concat",
        "fine-tuned SD",
        "T2I-Adapter",
        "ControlNet",
        "BPS (schedule=uniform)",
        "text-only (floor)",
    ]
    assert [(task, column.metric) for task, column in suite.columns] == [
        *[("sketch", m) for m in ("fd", "sketch_f1", "cosine")],
        *[("segmentation", m) for m in ("fd", "miou", "cosine")],
        *[("layout", m) for m in ("fd", "box_recall", "cosine")],
        *[("drawing", m) for m in ("fd", "sketch_f1", "colour_error", "cosine")],
    ]
    assert suite.options == {"BPS": "schedule=head_heavy"}


def test_bold_stands_only_where_the_interval_and_the_seeds_allow(suite: Comparison) -> None:
    grid = comparison_grid(suite)
    seen = 0
    for place, (task, column) in enumerate(suite.columns, start=2):
        lines = {entry.label: line[place] for entry, line in zip(suite.entries, grid.body, strict=True)}
        bold = [name for name, cell in lines.items() if cell.bold]
        (standing,) = [s for s in suite.standings if (s.task, s.column) == (task, column)]
        assert bold == ([standing.best.label] if standing.clear else [])
        seen += len(bold)
        values = {
            e.label: cell.value
            for e in suite.own("method")
            if (cell := e.cell(task, column)) is not None and cell.value is not None
        }
        best = (max if column.better == "higher" else min)(values, key=lambda n: values[n])
        assert standing.best.label == best
        if standing.clear and standing.difference is not None:
            low, high = standing.difference.interval.low, standing.difference.interval.high
            assert (low > 0) if column.better == "higher" else (high < 0)
            assert standing.difference.agree is not False
    assert 0 < seen < len(suite.columns)


def test_single_seeds_that_disagree_make_nothing_bold(add_run: Writer, results: Path) -> None:
    for seed, (one, other) in enumerate(((0.9, 0.2), (0.4, 0.5))):
        add_run("bps", {"sketch_f1": one}, seed=seed)
        add_run("controlnet", {"sketch_f1": other}, seed=seed)
    found = compare(results)
    (standing,) = found.standings
    assert standing.difference is not None and standing.difference.interval.low > 0
    assert not standing.clear
    assert not any(cell.bold for line in comparison_grid(found).body for cell in line)
    assert "single seeds do not agree" in findings(found)["sketch"][0]


def test_floors_and_references_are_never_best(add_run: Writer, results: Path) -> None:
    add_run("bps", {"fd": 50.0}, sets=True)
    add_run("controlnet", {"fd": 60.0}, sets=True)
    add_run("text-only", {"fd": 40.0}, sets=True)
    found = compare(results)
    text = to_markdown(comparison_grid(found))
    assert re.findall(r"\*\*([^*]+)\*\*", text) == ["50.0"]
    best, own = findings(found)["sketch"]
    assert "BPS beats ControlNet on FD" in best
    assert best.endswith("text-only, which sees no condition, has the better mean.")
    assert "falls behind text-only by" in own


def test_a_number_that_is_missing_is_a_dash(suite: Comparison) -> None:
    grid = comparison_grid(suite)
    row = next(line for line in grid.body if line[0].main == "ControlNet")
    shown = {place: cell.main for place, cell in zip(suite.columns, row[2:], strict=True)}
    assert {text for (task, _), text in shown.items() if task == "layout"} == {"–"}
    assert "–" not in {text for (task, _), text in shown.items() if task != "layout"}
    frame = tidy_comparison(suite)
    gone = frame[(frame["row"] == "ControlNet") & (frame["task"] == "layout")]
    assert len(gone) == 3 and gone["value"].isna().all()


def test_the_caption_says_what_the_reader_must_know(suite: Comparison) -> None:
    grid = comparison_grid(suite)
    for words in (
        "Comparison on emoji: 40 evaluation items",
        "budget standard (16,384 training images for each method)",
        "judges EfficientNet-Lite0",
        "3 training seeds a row; † fewer: fine-tuned SD 1 on drawing; text-only 1",
        "BPS stands for schedule=head_heavy",
        "–: not measured",
    ):
        assert words in grid.caption
    for task, table in suite.tables.items():
        assert f"{task} {table.hashes[0][:12]}" in grid.caption
    marked = {line[0].main: line[1].main for line in grid.body if "†" in line[0].main}
    assert marked == {"fine-tuned SD †": "1–3", "text-only (floor) †": "1"}


def test_unequal_training_images_are_said_aloud(build: Any, add_run: Writer, results: Path) -> None:
    add_run("bps", {"fd": 50.0})
    add_run("controlnet", {"fd": 60.0}, cost=replace(build.cost, train_images=100))
    assert "100 or 64,000 training images" in comparison_grid(compare(results)).caption
    assert "NOT EQUAL" in comparison_grid(compare(results)).caption


def test_the_learning_rate_tells_no_rows_apart_unless_one_task_holds_several(
    add_run: Writer, results: Path
) -> None:
    for task, rate in (("sketch", 0.001), ("layout", 0.0005)):
        add_run("bps", {"fd": 50.0}, task=task, run_id=task, options={"learning_rate": rate})
    assert [entry.name for entry in compare(results).own("method")] == ["BPS"]
    add_run("bps", {"fd": 51.0}, run_id="rate", options={"learning_rate": 0.01})
    names = [entry.name for entry in compare(results).own("method")]
    assert sorted(names) == [f"BPS (learning_rate={rate})" for rate in (0.0005, 0.001, 0.01)]


def test_the_words_are_the_verdicts(suite: Comparison) -> None:
    said = findings(suite)
    assert list(said) == TASKS
    for task, lines in said.items():
        assert len(lines) == (6 if task == "drawing" else 4)
        for line in lines[1::2]:
            assert line.startswith("BPS on ") and "BPS (" not in line
            assert "text-only" in line
        for standing in suite.standings:
            if standing.task == task and standing.column.metric != "cosine":
                assert standing.difference is not None
                assert any(verdict(standing.difference) in line for line in lines[::2])


def test_latex_of_a_comparison_holds_whole_tasks_and_bold(suite: Comparison) -> None:
    text = to_latex(comparison_grid(suite), key="x")
    tasks = re.findall(r"\\multicolumn\{(\d)\}\{c\}\{(\w+)\}", text)
    assert tasks == [("3", "sketch"), ("3", "segmentation"), ("3", "layout"), ("4", "drawing")]
    assert r"\cmidrule(lr){3-5}" in text
    assert text.count(r"\textbf{") == sum(s.clear for s in suite.standings)
    parts = text.replace(r"\hspace{0pt}", "").split(r"\toprule")[1:]
    varied = ["schedule=uniform)" in part for part in parts]
    assert varied == ["{sketch}" in part for part in parts], "it has no number on other tasks"


def test_a_report_leads_with_the_comparison(suite_report: Path) -> None:
    text = (suite_report / "report.md").read_text()
    titles = re.findall(r"^##+ (.+)$", text, re.MULTILINE)
    assert titles[:5] == [
        "Comparison: emoji",
        "What it says",
        "What it costs",
        "What it looks like",
        "How to read the tables",
    ]
    assert [t.split(",")[0] for t in titles if t.startswith("emoji /")] == [
        f"emoji / {task}" for task in TASKS
    ]
    assert (suite_report / "comparison-emoji.md").read_text() in text
    assert (suite_report / "cost-emoji.md").read_text() in text
    made = {path.name for path in suite_report.iterdir()}
    assert set(re.findall(r"\]\(([^)]+)\)", text)) <= made
    for task in TASKS:
        for kind in ("overview", "cost", "curves", "qualitative"):
            assert f"{kind}-emoji-{task}.png" in text
    sheets = [name for name in made if name.startswith("contact-")]
    assert len(sheets) == len(set(sheets)) == 6 * 4 - 1 + 1  # one a row, none of a second seed
    frame = pandas.read_csv(suite_report / "comparison-emoji.csv")
    assert len(frame) == 9 * 13 and frame["best"].isin([True, False, np.nan]).all()


def test_several_protocols_of_one_task_have_no_comparison(
    add_run: Writer, results: Path, tmp_path: Path
) -> None:
    add_run("bps", {"fd": 38.0})
    add_run("bps", {"fd": 38.0}, protocol_hash="f" * 64, run_id="other")
    for mixed in (False, True):
        out = tmp_path / str(mixed)
        names = {path.name for path in make_report(results, out, mixed=mixed)}
        assert not any(name.startswith("comparison") for name in names)
        assert "No comparison over tasks: several protocols" in (out / "report.md").read_text()
    with pytest.raises(BenchError, match="one table of one protocol"):
        build_comparison([build_table(load_runs(results), mixed=True)])


def test_a_gallery_shows_the_first_tiles_of_every_row(suite: Comparison) -> None:
    entries = [*suite.own("method"), *suite.own("floor")]
    rows = [entry.rows["sketch"] for entry in entries]
    shown = gallery(rows)
    assert shown is not None and shown.seed == 0 and shown.left_out == ()
    assert list(shown.columns) == ["condition", *(row.name for row in rows), "target"]
    for row in rows:
        tiles = row.runs[0].tiles()
        np.testing.assert_array_equal(shown.columns[row.name], tiles["sample"][:8])
        np.testing.assert_array_equal(shown.columns["target"], tiles["target"][:8])


def test_a_gallery_says_what_it_leaves_out(build: Any, add_run: Writer, results: Path) -> None:
    for method in ("bps", "t2i-adapter", "text-only"):
        for seed in (0, 1):
            add_run(method, {"fd": 1.0}, seed=seed, tiles=(method, seed) != ("bps", 0))
    other = add_run("other", {"fd": 1.0}, seed=1)
    assert other.folder is not None
    moved = {name: images[::-1] for name, images in build.sheet_rows(n=24).items()}
    write_tiles(other.folder / TILES_FILE, moved, [f"item {k:02}" for k in range(24)])
    late = add_run("late", {"fd": 1.0}, seed=2, tiles=True)
    broken = add_run("broken", {"fd": 1.0}, seed=1, tiles=True)
    assert late.folder is not None and broken.folder is not None
    (broken.folder / TILES_FILE).write_bytes(b"")
    add_run("none", {"fd": 1.0}, seed=1)
    table = build_table(load_runs(results))
    shown = gallery([row for row in table.rows if row.kind in {"method", "floor"}])
    assert shown is not None and shown.seed == 1
    assert list(shown.columns) == ["condition", "BPS", "T2I-Adapter", "text-only", "target"]
    assert set(shown.left_out) == {
        "none keeps no tiles.",
        "late keeps no tiles of seed 1.",
        "other: its tiles show other items.",
        "broken: its tiles cannot be read.",
    }


def test_cost_figures_have_the_same_bytes_each_time(suite: Comparison, tmp_path: Path) -> None:
    entries = [*suite.own("method"), *suite.own("floor")]
    rows = [entry.rows["sketch"] for entry in entries]
    panels = cost_panels(rows, suite.tables["sketch"].columns, task="sketch")
    assert [column.metric for column in panels] == ["sketch_f1", "fd"]
    one = cost_figure(rows, panels, tmp_path / "a.png", title="t").read_bytes()
    assert cost_figure(rows, panels, tmp_path / "b.png", title="t").read_bytes() == one
    with Image.open(tmp_path / "a.png") as opened:
        assert "Software" not in opened.info
    assert cost_panels(rows[-1:], suite.tables["sketch"].columns, task="sketch") == []


def test_costs_are_of_the_task_with_most_methods(suite: Comparison, suite_report: Path) -> None:
    assert cost_task(suite) == "sketch"
    text = (suite_report / "cost-emoji.md").read_text()
    assert "measured on sketch at equal training images" in text
    assert "MACs once an image" in text and "MACs a call" not in text


def test_what_a_budget_made_equal_is_said_as_it_is(suite: Comparison) -> None:
    record = suite.own("method")[0].rows["sketch"].runs[0].record
    more = replace(record, cost=replace(record.cost, train_images=record.cost.train_images + 1))
    timed = {**record.protocol, "budget": {"images_of": {"bps": 8}}}
    assert made_equal([record, record]) == "equal training images"
    assert made_equal([record, more]) == "training images that are NOT EQUAL"
    assert made_equal([replace(record, protocol=timed), more]) == "equal training time"


def test_old_items_without_replicates_still_make_a_report(full: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(full, old)
    for path in old.glob("*/items.json"):
        items = read_json(path)
        path.write_text(json.dumps({key: items[key] for key in ("ids", "rows")}))
    names = {path.name for path in make_report(old, tmp_path / "out")}
    assert "comparison-emoji.md" in names
    assert not any(name.startswith("curves-") for name in names)
    text = (tmp_path / "out" / "report.md").read_text()
    assert "no paired difference to the next, T2I-Adapter, can be stated" in text
