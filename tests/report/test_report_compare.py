"""The comparison over tasks says what the intervals say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from bench.ablations import settings_of
from bench.packed import Run
from bench.reporting.compare import Comparison, build_comparison, findings, verdict
from bench.reporting.frame import build_table
from bench.reporting.tables import cost_grid, cost_task, main_grid, tidy
from bench.reporting.words import made_equal
from bench.types import BenchError
from tests.report.small import COST, made, record, spread

LEVELS = {"bps": 0.62, "controlnet": 0.60, "t2i-adapter": 0.4, "text-only": 0.1}
PRIMARY = {"sketch": "sketch_f1", "layout": "box_recall"}


def compare(*runs: Run) -> Comparison:
    tasks = sorted({run.record.task for run in runs})
    return build_comparison([build_table([r for r in runs if r.record.task == task]) for task in tasks])


def run(method: str, task: str = "sketch", level: float | None = None, seed: int = 0, **more: Any) -> Run:
    mean = LEVELS[method] if level is None else level
    scores: Mapping[str, Any] = {PRIMARY[task]: spread(mean, seed=len(method), width=0.01)}
    name = f"{method}-{task}-{seed}-{len(more.get('options', {}))}"
    return made(method, scores, task=task, seed=seed, **{"run_id": name, **more})


@pytest.fixture(scope="module")
def suite() -> Comparison:
    """Four methods on sketch, of two seeds but the floor; layout lacks ControlNet."""
    runs = [run(method, seed=seed) for method in list(LEVELS)[:3] for seed in (0, 1)]
    runs += [run("text-only"), run("bps", "layout"), run("t2i-adapter", "layout"), run("text-only", "layout")]
    return compare(*runs, run("bps", level=0.5, options={"prior": "none"}))


def test_rows_and_columns_stand_in_order(suite: Comparison) -> None:
    assert list(suite.tables) == ["sketch", "layout"]
    assert [row.label for row in suite.rows] == [
        "BPS",
        "T2I-Adapter",
        "BPS (prior=none)",
        "ControlNet",
        "text-only (floor)",
    ]
    assert [(c.task, c.metric) for c in suite.columns] == [("sketch", "sketch_f1"), ("layout", "box_recall")]
    assert not any(suite.options.values())


def test_bold_stands_only_where_the_interval_and_the_seeds_allow(suite: Comparison) -> None:
    grid = main_grid(suite)
    for place, column in enumerate(suite.columns, start=2):
        standing = suite.standings[column]
        bold = [row.label for row, line in zip(suite.rows, grid.body, strict=True) if line[place].bold]
        assert bold == ([standing.best.label] if standing.clear else [])
    assert suite.standings[suite.columns[0]].best.label == "BPS"
    disagree = [
        run(m, level=x, seed=s)
        for s, (a, b) in enumerate(((0.9, 0.2), (0.4, 0.5)))
        for m, x in (("bps", a), ("controlnet", b))
    ]
    (standing,) = compare(*disagree).standings.values()
    assert standing.difference is not None and not standing.clear
    assert "cannot be told apart" in findings(compare(*disagree))["sketch"][0]


def test_floors_and_references_are_never_best() -> None:
    runs = [run("bps"), run("controlnet"), run("text-only", level=0.9)]
    best, own = findings(compare(*runs))["sketch"]
    assert "BPS beats ControlNet on line F1" in best
    assert best.endswith("text-only, which sees no condition, has the better mean.")
    assert "falls behind text-only by" in own


def test_a_number_that_is_missing_is_a_dash(suite: Comparison) -> None:
    row = next(line for line in main_grid(suite).body if line[0].main == "ControlNet")
    assert row[2].main != "–" and row[3].main == "–"
    lines = tidy(suite)
    assert len(lines) == len(suite.rows) * len(suite.columns)
    gone = lines[(lines["row"] == "ControlNet") & (lines["task"] == "layout")]
    assert gone["value"].isna().all() and gone["method"].isna().all() and gone["protocol"].notna().all()


def test_the_caption_says_what_the_reader_must_know(suite: Comparison) -> None:
    caption = main_grid(suite).caption
    for words in (
        "Comparison on emoji: 40 evaluation items",
        "budget standard (64,000 training images for each method)",
        "2 training seeds a row († fewer: ",
        "BPS 1 on layout",
        "text-only 1",
        "protocol sketch 0123456789ab, layout 0123456789ab",
        "–: not measured",
    ):
        assert words in caption, caption
    unequal = compare(run("bps"), run("controlnet", cost=replace(COST, train_images=100)))
    assert "100 or 64,000 training images for each method, NOT EQUAL" in main_grid(unequal).caption


def test_the_learning_rate_tells_no_rows_apart_unless_a_task_holds_several() -> None:
    runs = [
        run("bps", task, options={"learning_rate": x}) for task, x in (("sketch", 0.001), ("layout", 0.5))
    ]
    assert [row.name for row in compare(*runs).rows] == ["BPS"]
    more = run("bps", options={"learning_rate": 0.01}, run_id="more")
    names = [row.name for row in compare(*runs, more).rows]
    assert sorted(names) == [f"BPS (learning_rate={rate})" for rate in (0.001, 0.01, 0.5)]


def by_task(method: str, **settings: Mapping[str, Any]) -> list[Run]:
    """A run a task: a method's own options there, and what differs from these."""
    return [run(method, t, options=settings_of(method, t) | more) for t, more in settings.items()]


def test_what_a_paper_sets_by_task_stands_in_one_row() -> None:
    """BPS is head-heavy on sketch and uniform on layout, as released; another schedule is told there."""
    own, more = by_task("bps", sketch={}, layout={}), by_task("controlnet", sketch={}, layout={})
    old = by_task("bps", layout={"schedule": "head_heavy"})
    assert own[1].record.options == {**old[0].record.options, "schedule": "uniform"}
    found = compare(*own, *more, *old)
    assert [(row.name, [*row.rows]) for row in found.rows] == [
        ("BPS", ["sketch", "layout"]),
        ("ControlNet", ["sketch", "layout"]),
        ("BPS (schedule=head_heavy)", ["layout"]),
    ]
    assert found.rows[0].rows["layout"].runs == (own[1],)
    told = "schedule=head_heavy on sketch and schedule=uniform on layout"
    assert {name: said for name, said in found.options.items() if said} == {"BPS": told}
    assert f"BPS stands for {told}." in main_grid(found).caption
    names = {table.task: [row.name for row in table.rows] for table in found.tables.values()}
    assert names == {
        "sketch": ["BPS", "ControlNet"],
        "layout": ["BPS (schedule=head_heavy)", "BPS", "ControlNet"],
    }


def test_records_of_an_earlier_default_are_told_from_todays() -> None:
    """Also where no other row has the method: the plain name is the paper's own."""
    old = by_task("t2i-adapter", sketch={"timesteps": "uniform"}, layout={"timesteps": "uniform"})
    assert [row.name for row in compare(*old).rows] == ["T2I-Adapter (timesteps=uniform)"]
    found = compare(*by_task("t2i-adapter", sketch={}), *old)
    assert [(row.name, [*row.rows]) for row in found.rows] == [
        ("T2I-Adapter (timesteps=uniform)", ["sketch", "layout"]),
        ("T2I-Adapter", ["sketch"]),
    ]
    assert found.options == {"T2I-Adapter": "timesteps=cubic"}
    alone = compare(*by_task("bps", layout={"schedule": "head_heavy"}, sketch={"schedule": "uniform"}))
    assert [(row.name, [*row.rows]) for row in alone.rows] == [
        ("BPS (schedule=head_heavy)", ["layout"]),
        ("BPS (schedule=uniform)", ["sketch"]),
    ]


def test_options_of_a_method_from_outside_are_told_where_its_rows_differ() -> None:
    toys = [run("toy", task, level=0.5, options={"width": w}) for task, w in (("sketch", 1), ("layout", 1))]
    assert [row.name for row in compare(*toys).rows] == ["toy"]
    other = run("toy", level=0.4, options={"width": 2}, run_id="other")
    assert [row.name for row in compare(*toys, other).rows] == ["toy (width=1)", "toy (width=2)"]


def test_the_words_are_the_verdicts(suite: Comparison) -> None:
    for task, lines in findings(suite).items():
        best, own = lines
        assert own.startswith("BPS on ") and "text-only" in own
        (standing,) = (s for c, s in suite.standings.items() if c.task == task)
        assert standing.difference is not None and verdict(standing.difference) in best


def test_costs_are_of_the_task_with_most_methods(suite: Comparison) -> None:
    assert cost_task(suite) == "sketch"
    grid = cost_grid(suite)
    assert "measured on sketch, at equal training images" in grid.caption
    assert "MACs once an image" in grid.header and "MACs a call" not in grid.header


def test_what_a_budget_made_equal_is_said_as_it_is() -> None:
    one, more = record("bps"), record("bps", cost=replace(COST, train_images=1))
    assert made_equal([one, one]) == "equal training images"
    assert made_equal([one, more]) == "training images that are NOT EQUAL"
    assert (
        made_equal([record("bps", protocol={"budget": {"images_of": {"bps": 8}}}), more])
        == "equal training time"
    )


def test_tables_of_several_protocols_or_suites_are_refused() -> None:
    mixed = build_table([run("bps"), run("controlnet", protocol_hash="f" * 64)], mixed=True)
    with pytest.raises(BenchError, match="one table of one protocol"):
        build_comparison([mixed])
    with pytest.raises(BenchError, match="got no table"):
        build_comparison([])
