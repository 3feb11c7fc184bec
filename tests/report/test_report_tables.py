"""Numbers in a table are the records' numbers, or what they average to by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.metrics.intervals import (
    FEW_ITEMS,
    LEAST_ITEMS,
    Resamples,
    jackknife_interval,
    mean_interval,
)
from bench.reporting import Run, build_table, load_runs, record_text, tidy
from bench.reporting.grid import to_markdown
from bench.reporting.names import Column, command_line, decimals, header, label, number
from bench.reporting.rows import Row, Table
from bench.reporting.runs import item_matrix
from bench.reporting.tables import caption, cost_grid, main_grid, tidy_costs
from bench.types import BenchError

Writer = Callable[..., Run]
JUDGE = "EfficientNet-Lite0"
IDS = tuple(f"{i:04X}" for i in range(40))


def row_of(table: Table, name: str) -> Row:
    return next(row for row in table.rows if row.label == name)


def column_of(table: Table, metric: str) -> Column:
    return next(column for column in table.columns if column.metric == metric)


def cells(text: str, name: str) -> list[str]:
    """The cells of a Markdown table's line that starts with `name`."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_one_seed_shows_its_record(add_run: Writer) -> None:
    run = add_run("bps", {"fd": 38.25, "sketch_f1": 0.5231}, shuffled={"sketch_f1": 0.11})
    frame = tidy(build_table([run]))
    for row, source in (("BPS", "samples"), ("BPS (shuffled conditions)", "shuffled")):
        for metric, expected in run.record.rows[source].items():
            line = frame[(frame["row"] == row) & (frame["metric"] == metric)].iloc[0]
            got = (line["value"], line["low"], line["high"], line["items"])
            assert got == (expected.value, expected.low, expected.high, expected.n)
    shown = cells(to_markdown(main_grid(build_table([run]))), "BPS")
    assert shown == ["BPS", "1", "38.2 [37.0, 39.5]", "–", "–", "0.523 [0.503, 0.543]", "–"]


def test_rows_stand_in_order(full: Path) -> None:
    table = build_table(load_runs(full))
    assert [row.label for row in table.rows] == [
        "real training images (reference)",
        "autoencoder (ceiling)",
        "BPS",
        "BPS (shuffled conditions)",
        "T2I-Adapter",
        "T2I-Adapter (shuffled conditions)",
        "text-only (floor)",
    ]
    assert [column.metric for column in table.columns] == [
        "fd",
        "kid",
        "cosine",
        "retrieval",
        "sketch_f1",
        "mae",
        "clip",
    ]
    assert row_of(table, "BPS").seeds == (0, 1, 2)


def test_seeds_average_by_hand(add_run: Writer) -> None:
    """Values 1, 2, 6: mean 3, deviation sqrt(7); bounds average where no item scores exist."""
    for seed, fd in enumerate((1.0, 2.0, 6.0)):
        run = add_run("bps", {"fd": fd}, items=False, seed=seed)
        assert run.items is None
    table = build_table(load_runs(run.folder.parent if run.folder else Path()))
    cell = row_of(table, "BPS").cells[column_of(table, "fd")]
    assert cell.value == pytest.approx(3.0, abs=1e-12)
    assert cell.deviation == pytest.approx(7.0**0.5, abs=1e-12)
    assert (cell.low, cell.high) == (pytest.approx(1.8), pytest.approx(4.2))


def test_seeds_with_items_are_resampled_together(build: Any, add_run: Writer, results: Path) -> None:
    """Item noise that cancels between two seeds leaves no interval; mean bounds would leave one."""
    up = build.spread(0.5, seed=1)
    for seed, scores in enumerate((up, [1.0 - x for x in up])):
        items = {"samples": {"sketch_f1": scores}}
        add_run("bps", {"sketch_f1": 0.5}, item_rows=items, seed=seed)
    table = build_table(load_runs(results))
    cell = row_of(table, "BPS").cells[column_of(table, "sketch_f1")]
    assert (cell.low, cell.high) == (pytest.approx(0.5), pytest.approx(0.5))
    assert cell.deviation == pytest.approx(0.0, abs=1e-12)


def test_set_metrics_of_several_seeds_average_their_replicates(add_run: Writer, results: Path) -> None:
    for seed, fd in enumerate((30.0, 32.0)):
        add_run("bps", {"fd": fd}, seed=seed, sets=True)
    runs = load_runs(results)
    cell = next(iter(row_of(build_table(runs), "BPS").cells.values()))
    own = [run.items.replicates["samples"]["fd"] for run in runs if run.items is not None]
    expected = jackknife_interval(31.0, (own[0] + own[1]) / 2)
    assert (cell.value, cell.low, cell.high) == (31.0, expected.low, expected.high)


def test_items_without_a_score_are_left_out_of_every_seed(build: Any, add_run: Writer, results: Path) -> None:
    """A task may have nothing to judge in an item: then no seed has a score there."""
    known = build.spread(0.5, seed=1)[:20]
    scores = [*known, *[None] * 20]
    mean = float(np.mean(known))
    for seed in (0, 1):
        items = {"samples": {"box_recall": scores}}
        add_run("bps", {"box_recall": mean}, item_rows=items, seed=seed)
    table = build_table(load_runs(results))
    cell = row_of(table, "BPS").cells[column_of(table, "box_recall")]
    expected = mean_interval(np.asarray(known), resamples=Resamples(n_items=20, seed=0))
    assert (cell.low, cell.high) == (
        pytest.approx(expected.low, abs=1e-12),
        pytest.approx(expected.high, abs=1e-12),
    )


def test_items_are_matched_by_id(build: Any, add_run: Writer, results: Path) -> None:
    up = build.spread(0.5, seed=1)
    add_run("bps", {"sketch_f1": 0.5}, item_rows={"samples": {"sketch_f1": up}})
    add_run(
        "bps",
        {"sketch_f1": 0.5},
        item_rows={"samples": {"sketch_f1": up[::-1]}},
        item_ids=IDS[::-1],
        seed=1,
    )
    found = item_matrix(load_runs(results), source="samples", metric="sketch_f1")
    assert found is not None
    assert found[0] == IDS
    np.testing.assert_array_equal(found[1][0], found[1][1])


def test_items_that_do_not_average_to_the_value_are_not_used(
    build: Any, add_run: Writer, results: Path
) -> None:
    for seed in (0, 1):
        items = {"samples": {"seg_miou": build.spread(0.6, seed=seed)}}
        add_run("bps", {"seg_miou": 0.5}, item_rows=items, seed=seed)
    table = build_table(load_runs(results))
    cell = row_of(table, "BPS").cells[column_of(table, "seg_miou")]
    assert (cell.low, cell.high) == (pytest.approx(0.48), pytest.approx(0.52))
    assert any("do not average" in note for note in table.notes)


def test_missing_is_a_dash_and_never_zero(add_run: Writer) -> None:
    run = add_run("bps", {"fd": None, "sketch_f1": 0.0, "mae": 0.2})
    table = build_table([run])
    shown = cells(to_markdown(main_grid(table)), "BPS")
    assert shown[2] == "–"
    assert shown[5].startswith("0.000 [")
    frame = tidy(table)
    own = frame[frame["row"] == "BPS"].set_index("metric")
    assert np.isnan(own.loc["fd", "value"])
    assert own.loc["sketch_f1", "value"] == 0.0
    assert ",fd," in frame.to_csv() and ",0.0,0.0" not in frame[frame["metric"] == "fd"].to_csv()


def test_a_seed_without_a_number_is_not_averaged_away(add_run: Writer, results: Path) -> None:
    add_run("bps", {"fd": 10.0})
    add_run("bps", {"fd": None}, seed=1)
    table = build_table(load_runs(results))
    assert row_of(table, "BPS").cells[column_of(table, "fd")].value is None
    assert any("missing for seed 1" in note for note in table.notes)


def test_mixing_protocols_is_refused_and_marked_when_allowed(add_run: Writer, results: Path) -> None:
    add_run("bps", {"fd": 38.0})
    other = {"task": "sketch", "sampler": {"steps": 50, "guidance": 3.0}}
    add_run("t2i-adapter", {"fd": 40.0}, protocol_hash="f" * 64, protocol=other)
    runs = load_runs(results)
    with pytest.raises(BenchError, match="2 protocols in one table .*0123456789ab.*ffffffffffff"):
        build_table(runs)
    table = build_table(runs, mixed=True)
    assert [row.label for row in table.rows if row.kind == "method"] == [
        "BPS (protocol A)",
        "T2I-Adapter (protocol B)",
    ]
    text = caption(table)
    assert text.startswith("MIXED PROTOCOLS")
    assert "protocol A is 0123456789ab (sampler.steps=20)" in text
    assert "protocol B is ffffffffffff (sampler.steps=50)" in text


def test_one_protocol_is_not_marked(full: Path) -> None:
    table = build_table(load_runs(full), mixed=True)
    assert "MIXED" not in caption(table)
    assert not table.marks


def test_other_suites_and_tasks_are_refused(add_run: Writer, results: Path) -> None:
    add_run("bps", {"fd": 38.0})
    add_run("t2i-adapter", {"fd": 38.0}, task="layout")
    with pytest.raises(BenchError, match="emoji / layout, emoji / sketch"):
        build_table(load_runs(results), mixed=True)
    with pytest.raises(BenchError, match="at least one record"):
        build_table([])


def test_the_same_run_twice_is_refused(add_run: Writer, results: Path) -> None:
    add_run("bps", {"fd": 38.0})
    add_run("bps", {"fd": 39.0}, run_id="again")
    with pytest.raises(BenchError, match="the same run twice .*seed 0") as caught:
        build_table(load_runs(results))
    for run in load_runs(results):
        assert str(run.folder) in str(caught.value)


def test_only_differing_options_are_named(add_run: Writer, results: Path) -> None:
    for prior in ("frozen", "none"):
        options = {"prior": prior, "width": 64}
        add_run("bps", {"fd": 38.0}, options=options, run_id=f"bps-{prior}")
    add_run("bps", {"fd": 38.0}, options={"width": 64}, run_id="bps")
    add_run("t2i-adapter", {"fd": 38.0}, options={"prior": "x"})
    labels = [row.label for row in build_table(load_runs(results)).rows if row.kind == "method"]
    assert sorted(labels) == ["BPS", "BPS (prior=frozen)", "BPS (prior=none)", "T2I-Adapter"]


def test_equal_references_are_one_row_and_unequal_ones_are_said_aloud(
    build: Any, add_run: Writer, results: Path
) -> None:
    add_run("bps", {"fd": 38.0})
    add_run("text-only", {"fd": 47.0})
    table = build_table(load_runs(results))
    assert [row.kind for row in table.rows].count("ceiling") == 1
    assert [note.split(":")[0] for note in table.notes] == ["FEW ITEMS"]
    moved = build.references()
    moved["autoencoder"]["fd"] = build.value("fd", 4.3)
    add_run("t2i-adapter", {"fd": 40.0}, rows=moved, metrics={"fd": build.value("fd", 40.0)})
    table = build_table(load_runs(results))
    assert any(note.startswith("REFERENCES DIFFER: 'autoencoder'") for note in table.notes)
    named = [row.label for row in table.rows if row.kind == "ceiling"]
    assert named == [
        "autoencoder (ceiling, as in bps-sketch-s0)",
        "autoencoder (ceiling, as in t2i-adapter-sketch-s0)",
    ]
    assert [row.kind for row in table.rows].count("reference") == 1


def test_leaks_and_other_splits_are_said_aloud(add_run: Writer, results: Path) -> None:
    run = add_run("bps", {"fd": 38.0})
    splits = replace(run.record.splits, overlap=3)
    add_run("t2i-adapter", {"fd": 38.0}, splits=splits)
    leak = "LEAK: 3 evaluation items have a (near) twin in training."
    assert build_table(load_runs(results)).notes[0] == leak
    moved = replace(splits, eval=replace(splits.eval, digest="cc"))
    add_run("text-only", {"fd": 38.0}, splits=moved)
    assert any("SPLITS DIFFER" in note for note in build_table(load_runs(results)).notes)


def test_headers_say_judge_and_direction(build: Any) -> None:
    def of(metric: str, **changes: str) -> str:
        return header(Column.of(metric, build.value(metric, 1.0, **changes)))

    assert of("fd") == f"FD ({JUDGE}) ↓"
    assert of("fd", judge="inception-v3") == "FID (inception-v3) ↓"
    assert of("kid") == f"KID ({JUDGE}) ↓"
    assert of("cosine") == f"cosine to target ({JUDGE}) ↑"
    assert of("retrieval") == "R@1 ↑"
    assert of("sketch_f1") == "line F1 ↑"
    assert of("mae") == "MAE ↓"
    assert of("clip") == "CLIP score (emoji-clip, cosine) ↑"
    assert of("seg_miou", judge="segmenter") == "seg miou (segmenter, fraction) ↑"
    assert of("count", better="none", scale="lines") == "count (lines)"
    with pytest.raises(BenchError, match="Did you mean 'higher'"):
        of("mae", better="high")


def test_numbers_of_other_judges_stand_in_other_columns(build: Any, add_run: Writer, results: Path) -> None:
    add_run("bps", {"fd": 38.0})
    add_run("t2i-adapter", {}, metrics={"fd": build.value("fd", 9.0, judge="inception-v3")}, rows={})
    table = build_table(load_runs(results))
    assert [c.judge for c in table.columns if c.metric == "fd"] == [JUDGE, "inception-v3"]
    shown = cells(to_markdown(main_grid(table)), "T2I-Adapter")
    assert shown[2] == "–" and shown[3].startswith("9.00")


@pytest.mark.parametrize(
    ("values", "widths", "expected"),
    [
        ([0.52], [0.04], 3),
        ([38.0], [2.4], 1),
        ([380.0], [24.0], 0),
        ([0.019], [0.004], 4),
        ([31.25], [], 1),
        ([0.0], [], 2),
        ([None], [], 2),
        ([1e-12], [1e-12], 6),
    ],
)
def test_decimals_follow_the_interval(values: list[float | None], widths: list[float], expected: int) -> None:
    assert decimals(values, widths=widths) == expected


def test_numbers_never_read_minus_zero() -> None:
    assert number(-0.0001, 2) == "0.00"
    assert number(-0.51, 1) == "-0.5"
    assert number(None, 2) == "–"


def test_costs_average_times_and_leave_missing_out(build: Any, add_run: Writer, results: Path) -> None:
    add_run("bps", {"fd": 1.0})
    add_run("bps", {"fd": 1.0}, seed=1, cost=replace(build.cost, train_seconds=860.0))
    add_run("text-only", {"fd": 1.0}, cost=replace(build.cost, train_seconds=None))
    grid = cost_grid(build_table(load_runs(results)))
    seconds = grid.header.index("train seconds")
    assert [line[seconds].main for line in grid.body] == ["850", "–"]
    assert grid.body[0][grid.header.index("trainable parameters")].main == "1.23 M"
    assert grid.body[0][grid.header.index("peak memory (MiB)")].main == "3072"
    assert "do not compare" not in grid.caption
    frame = tidy_costs(build_table(load_runs(results)))
    assert list(frame["parameters_trainable"]) == [1_234_567] * 3


def test_costs_of_several_machines_say_so(add_run: Writer, results: Path) -> None:
    add_run("bps", {"fd": 1.0})
    add_run("text-only", {"fd": 1.0}, environment={"processor": "another", "device": "cpu"})
    assert "do not compare" in cost_grid(build_table(load_runs(results))).caption


def test_commands_are_quoted(build: Any) -> None:
    options = {"note": "a b", "width": 64, "learned": True, "name": "1", "learning_rate": 0.001}
    assert command_line(build.record("bps", options=options)) == (
        "bench run --suite emoji --task sketch --method bps --budget default --seed 0 "
        "--learning-rate 0.001 --device cpu "
        """--option learned=true --option 'name="1"' --option 'note=a b' --option width=64"""
    )


def test_terminal_table_of_one_record(add_run: Writer) -> None:
    run = add_run("bps", {"fd": 38.0, "clip": None}, shuffled={"fd": 44.0})
    floor = add_run("text-only", {"fd": 47.5})
    text = record_text(run.record, floor=floor.record)
    lines = text.splitlines()
    assert lines[0] == ("bps on emoji / sketch, seed 0, budget default, 40 items, protocol 0123456789ab")
    first = next(i for i, line in enumerate(lines) if line.startswith("FD ↓"))
    assert lines[first].split()[2:] == ["38.0", "44.0", "47.5", "4.2", "31.2"]
    assert lines[first + 1].startswith(f" ({JUDGE})")
    assert "[36.8, 39.2]" in lines[first + 1]
    clip = next(line for line in lines if line.startswith("CLIP score"))
    assert clip.split()[3:] == ["–"] * 5
    assert all(line == line.rstrip() for line in lines) and text.endswith("\n")
    assert "MIXED" not in text
    other = replace(floor.record, protocol_hash="f" * 64)
    assert "MIXED PROTOCOLS" in record_text(run.record, floor=other)


def test_labels() -> None:
    assert label("bps") == "bps"
    assert label("bps", "prior=none", "shuffled conditions") == ("bps (prior=none, shuffled conditions)")


def test_a_frechet_distance_of_few_items_warns_and_of_too_few_is_not_shown(
    build: Any, add_run: Writer, results: Path
) -> None:
    def table(items: int) -> Any:
        metrics = {"fd": build.value("fd", 38.0, n=items), "kid": build.value("kid", 0.1, n=items)}
        rows = {"samples": metrics, "autoencoder": metrics}
        add_run("bps", {}, rows=rows, metrics=metrics)
        return build_table(load_runs(results))

    for items, note in ((LEAST_ITEMS - 1, "TOO FEW"), (LEAST_ITEMS, "FEW"), (FEW_ITEMS, None)):
        made = table(items)
        assert [n.split(" ITEMS")[0] for n in made.notes] == ([note] if note else [])
        for row in made.rows:
            shown = {c.metric: cell.value for c, cell in row.cells.items()}
            assert shown["kid"] == 0.1
            assert (shown["fd"] is None) == (note == "TOO FEW")
