"""Tables: which rows and columns there are, how seeds average, what is said aloud, and no number made up."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from bench.cost import Timing, add_timing
from bench.metrics.intervals import FEW_ITEMS, LEAST_ITEMS, Deal, Estimates, crossed_interval
from bench.packed import Run
from bench.record import LeakCheck, Leaks, write_record
from bench.reporting.compare import build_comparison
from bench.reporting.frame import Cell, Row, Table, build_table, chosen, evidence, frame, load_runs
from bench.reporting.render import to_csv, to_markdown
from bench.reporting.tables import caption, cost_grid, leaderboards, main_grid, record_text, tidy, tidy_costs
from bench.reporting.words import (
    Column,
    command_line,
    count,
    decimals,
    interval_text,
    label,
    number,
    record_changes,
)
from bench.types import BenchError
from tests.report.small import COST, IDS, JUDGE, PROTOCOL, made, record, spread, value

OTHER = {"protocol_hash": "f" * 64, "protocol": {**PROTOCOL, "sampler": {"steps": 50, "guidance": 2.5}}}


def row(table: Table, name: str) -> Row:
    (found,) = [row for row in table.rows if row.label == name]
    return found


def cell(table: Table, name: str, metric: str) -> Cell:
    (found,) = [cell for column, cell in row(table, name).cells.items() if column.metric == metric]
    return found


def labels(table: Table, *kinds: str) -> list[str]:
    return [row.label for row in table.rows if not kinds or row.kind in kinds]


def test_rows_and_columns_stand_in_order() -> None:
    runs = [
        made("text-only", {"fd": 60.0}),
        made("t2i-adapter", {"mae": 0.1, "fd": 40.0}),
        made(
            "bps",
            {"seg_miou": 0.1, "fd": 38.0, "sketch_f1": 0.5},
            shuffled={"fd": 44.0},
            references={"fd": 4.0},
        ),
        made("bps", {"fd": 38.0}, seed=1),
    ]
    table = build_table(runs)
    assert labels(table) == [
        "autoencoder (ceiling)",
        "BPS",
        "BPS (shuffled conditions)",
        "T2I-Adapter",
        "text-only (floor)",
    ]
    assert [c.metric for c in table.columns] == ["sketch_f1", "seg_miou", "fd", "mae"]
    assert row(table, "BPS").seeds == (0, 1) and row(table, "BPS (shuffled conditions)").seeds == (0,)
    assert row(table, "autoencoder (ceiling)").seeds == ()


def test_seeds_average_by_hand() -> None:
    """Values 1, 2, 6: mean 3, deviation sqrt(7); bounds average where no item scores exist."""
    table = build_table([made("bps", {"mae": x}, seed=seed) for seed, x in enumerate((1.0, 2.0, 6.0))])
    found = cell(table, "BPS", "mae")
    assert (found.value, found.deviation) == (pytest.approx(3.0), pytest.approx(7.0**0.5))
    assert (found.low, found.high) == (pytest.approx(2.98), pytest.approx(3.02))


def test_seeds_with_items_are_resampled_together() -> None:
    """Item noise that cancels between two seeds leaves no interval; mean bounds would leave one."""
    up = spread(0.5, seed=1)
    runs = [made("bps", {"mae": scores}, seed=s) for s, scores in enumerate((up, [1.0 - x for x in up]))]
    found = cell(build_table(runs), "BPS", "mae")
    assert (found.low, found.high, found.deviation) == tuple(map(pytest.approx, (0.5, 0.5, 0.0)))


def test_set_metrics_of_several_seeds_average_their_replicates() -> None:
    replicates = [spread(30.0 + 2 * seed, seed=seed) for seed in (0, 1)]
    runs = [made("bps", {"fd": 30.0 + 2 * s}, seed=s, replicates={"fd": replicates[s]}) for s in (0, 1)]
    found = cell(build_table(runs), "BPS", "fd")
    values, dealt = np.array([30.0, 32.0]), Deal.of_pairs(40)
    expected = crossed_interval(
        Estimates.of_replicates(values, np.array(replicates), dealt=dealt, seeds=(0, 1))
    )
    assert (found.value, found.low, found.high) == (31.0, expected.low, expected.high)


def test_items_without_a_score_are_left_out_of_every_seed() -> None:
    known = spread(0.5, seed=1)[:20]
    runs = [made("bps", {"box_recall": [*known, *[np.nan] * 20]}, seed=seed) for seed in (0, 1)]
    found = cell(build_table(runs), "BPS", "box_recall")
    expected = crossed_interval(Estimates.of_items(np.array([known, known]), seeds=(0, 1)))
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_items_are_matched_by_id() -> None:
    up = spread(0.5, seed=1)
    runs = [made("bps", {"mae": up}), made("bps", {"mae": up[::-1]}, ids=IDS[::-1], seed=1)]
    found = evidence(frame(runs))
    assert found is not None
    np.testing.assert_array_equal(found.estimates[0].influence[0], found.estimates[0].influence[1])


def test_items_that_do_not_average_to_the_value_are_not_used() -> None:
    wrong = {"metrics": {"miou": value("miou", 0.5)}, "rows": {}}
    runs = [made("bps", {"miou": spread(0.6, seed=s)}, seed=s, **wrong) for s in (0, 1)]
    table = build_table(runs)
    assert (cell(table, "BPS", "miou").low, cell(table, "BPS", "miou").high) == (0.48, 0.52)
    assert any("do not average" in note for note in table.notes)


def test_missing_is_a_dash_and_never_zero() -> None:
    table = build_table([made("bps", {"fd": None, "mae": 0.0, "sketch_f1": 0.5})])
    shown = {c: t.main for c, t in zip(main_grid(table).header, main_grid(table).body[0], strict=True)}
    assert shown[f"FD ({JUDGE}) ↓"] == "–" and shown["MAE ↓"] == "0.000"
    lines = tidy(table).set_index("metric")
    assert np.isnan(lines.loc["fd", "value"]) and lines.loc["mae", "value"] == 0.0


def test_a_seed_without_a_number_is_not_averaged_away() -> None:
    table = build_table([made("bps", {"fd": 10.0}), made("bps", {"fd": None}, seed=1)])
    assert cell(table, "BPS", "fd").value is None
    assert any("missing for seed 1" in note for note in table.notes)


def test_several_protocols_are_refused_and_marked_when_mixed() -> None:
    runs = [made("bps", {"fd": 38.0}), made("bps", {"fd": 40.0}, run_id="other", **OTHER)]
    with pytest.raises(BenchError, match="2 protocols .*0123456789ab: sampler.steps=10; ffffffffffff: .*=50"):
        build_table(runs)
    table = build_table(runs, mixed=True)
    assert labels(table) == ["BPS (protocol A)", "BPS (protocol B)"]
    assert caption(table).startswith("MIXED PROTOCOLS")
    assert "B is ffffffffffff (sampler.steps=50)" in caption(table)
    assert not build_table(runs[:1], mixed=True).marks


def test_other_suites_tasks_and_the_same_run_twice_are_refused() -> None:
    with pytest.raises(BenchError, match="emoji / layout, emoji / sketch"):
        build_table([made("bps", {"fd": 1.0}), made("bps", {"fd": 1.0}, task="layout")])
    with pytest.raises(BenchError, match="got no record"):
        build_table([])
    with pytest.raises(BenchError, match="one and two are the same run twice .*seed 0"):
        build_table([made("bps", {"fd": 1.0}, run_id=name) for name in ("one", "two")])


def test_only_differing_options_are_named() -> None:
    options: Sequence[dict[str, Any]] = (
        {"prior": "frozen", "width": 64},
        {"prior": "none", "width": 64},
        {"width": 64},
    )
    runs = [made("bps", {"fd": 1.0}, options=chosen, run_id=str(i)) for i, chosen in enumerate(options)]
    runs.append(made("t2i-adapter", {"fd": 1.0}, options={"prior": "x"}))
    assert sorted(labels(build_table(runs))) == [
        "BPS",
        "BPS (prior=frozen)",
        "BPS (prior=none)",
        "T2I-Adapter",
    ]


def test_variants_stand_below_and_in_no_printed_table() -> None:
    runs = [
        made("bps", {"fd": 1.0}, options={"prior": "frozen"}),
        made("bps", {"fd": 2.0}, options={"prior": "none"}, run_id="varied"),
        made("text-only", {"fd": 3.0}),
    ]
    table = build_table(runs, variants={"varied"})
    assert labels(table) == ["BPS", "text-only (floor)", "BPS (prior=none)"]
    assert [line[0].main for line in main_grid(table).body] == ["BPS", "text-only (floor)"]
    assert set(tidy(table)["row"]) == set(labels(table))
    assert list(tidy_costs(table)["row"]) == ["BPS", "text-only", "BPS (prior=none)"]


def test_equal_references_are_one_row_and_unequal_ones_are_said_aloud() -> None:
    runs = [made(m, {"fd": 1.0}, references={"fd": 4.0}) for m in ("bps", "text-only")]
    assert labels(build_table(runs), "ceiling") == ["autoencoder (ceiling)"]
    wider = replace(runs[1].record.rows["autoencoder"]["fd"], low=0.0, high=9.0)  # recorded by another rule
    other = replace(runs[1].record, rows={**runs[1].record.rows, "autoencoder": {"fd": wider}})
    assert build_table([runs[0], replace(runs[1], record=other)]).notes == build_table(runs).notes
    elsewhere = made("text-only", {"fd": 1.0}, references={"fd": 4.0001})  # another processor
    assert build_table([runs[0], elsewhere]).notes == build_table(runs).notes
    table = build_table([*runs, made("sd-finetune", {"fd": 1.0}, references={"fd": 4.1})])
    (note,) = [note for note in table.notes if note.startswith("REFERENCES DIFFER: 'autoencoder'")]
    assert "is not in FD (EfficientNet-Lite0): shown as in bps-sketch-s0, otherwise in sd-fine" in note
    assert labels(table, "ceiling") == ["autoencoder (ceiling)"]


def leaks(items: int) -> Leaks:
    nothing: dict[str, Any] = {"findings": [], "limits": {}, "nearest": {}}
    seen = LeakCheck(status="leak", about="3000 training items", items=items, **nothing)
    unknown = LeakCheck(status="unknown", about="no fingerprints", items=None, **nothing)
    return Leaks(items=items, training=seen, pretraining=unknown)


def test_a_leak_stands_in_labels_titles_captions_and_notes() -> None:
    table = build_table([made("bps", {"fd": 1.0}, leaks=leaks(3)), made("controlnet", {"fd": 2.0})])
    assert labels(table) == ["BPS (LEAK: 3 items)", "ControlNet"]
    assert table.title == "emoji / sketch (LEAK: 3 items)"
    assert table.title in caption(table) and table.title in cost_grid(table).caption
    assert table.notes[0].startswith("LEAK: 3 evaluation items")
    assert "PRETRAINING UNKNOWN: no fingerprints" in table.notes[1]
    comparison = build_comparison([table])
    assert labels(comparison) == ["BPS (LEAK: sketch 3 items)", "ControlNet"]
    assert caption(comparison).startswith("Comparison on emoji (LEAK: 3 items)")
    shown = record_text(table.runs[0].record)
    assert "LEAK: 3 evaluation items seen among 3000 training items" in shown and "UNKNOWN whether" in shown


def test_records_of_other_items_are_said_aloud() -> None:
    other = record("bps")
    moved = replace(other.splits, eval=replace(other.splits.eval, digest="cc"))
    table = build_table([made("bps", {"fd": 1.0}), made("controlnet", {"fd": 1.0}, splits=moved)])
    assert any("SPLITS DIFFER" in note for note in table.notes)


def test_devices_and_torch_are_told_where_they_matter() -> None:
    card = {"device": "cuda", "gpu": "A Card", "packages": {"torch": "2.15"}}
    alone = build_table([made("bps", {"fd": 1.0}, environment=card)])
    assert "Made on A Card, torch 2.15." in alone.notes and caption(alone).endswith("torch 2.15.")
    runs = [*alone.runs, made("text-only", {"fd": 1.0}, environment={"device": "cpu", "packages": []})]
    (note,) = [n for n in build_table(runs).notes if "DIFFER" in n]
    assert note.endswith("Runs: 1 on A Card, torch 2.15; 1 on cpu.")
    assert "do not compare" in cost_grid(build_table(runs)).caption
    assert "do not compare" not in cost_grid(alone).caption


def test_a_table_says_which_learning_rates_were_chosen() -> None:
    chosen = made("bps", {"fd": 1.0}, config={"learning_rate": 3e-5})
    notes = build_table([chosen, made("controlnet", {"fd": 1.0})]).notes
    assert "Learning rates other than the suite's: BPS 3e-05." in notes
    assert not any("rates" in note for note in build_table([made("bps", {"fd": 1.0})]).notes)


def test_headers_say_judge_and_direction() -> None:
    def of(metric: str, **changes: str) -> str:
        return Column.of(metric, value(metric, 1.0, **changes)).header

    assert of("fd") == f"FD ({JUDGE}) ↓"
    for judge in ("inception-v3", "Inception-v3/clean"):
        assert of("fd", judge=judge) == f"FID ({judge}) ↓"
    assert of("retrieval") == "R@1 ↑"
    assert of("clip") == "CLIP score (emoji-clip, cosine) ↑"
    assert of("seg_miou", judge="segmenter") == "seg miou (segmenter, fraction) ↑"
    assert of("count", better="none", scale="lines") == "count (lines)"
    with pytest.raises(BenchError, match="Did you mean 'higher'"):
        of("mae", better="high")


def test_numbers_of_other_judges_stand_in_other_columns() -> None:
    other = {"metrics": {"fd": value("fd", 9.0, judge="inception-v3")}, "rows": {}}
    table = build_table([made("bps", {"fd": 38.0}), made("t2i-adapter", {}, **other)])
    assert [c.judge for c in table.columns] == [JUDGE, "inception-v3"]
    assert [line.main for line in main_grid(table).body[1]][2:] == ["–", "9.000"]


@pytest.mark.parametrize(
    ("value", "width", "expected"),
    [
        (0.52, 0.04, 3),
        (38.0, 2.4, 1),
        (380.0, 24.0, 0),
        (31.25, None, 1),
        (0.0, None, 2),
        (None, None, 2),
        (1e-12, 1e-12, 6),
    ],
)
def test_decimals_follow_the_interval(value: float | None, width: float | None, expected: int) -> None:
    found = Cell(value=value, low=None if width is None else 0.0, high=width, items=9, lines=())
    assert decimals([found, None]) == expected


def test_texts_of_numbers() -> None:
    assert [number(x, 2) for x in (-0.0001, -0.51, None)] == ["0.00", "-0.51", "–"]
    assert [count(x) for x in (1_234_567, 1_000, 12, None)] == ["1.23 M", "1 k", "12", "–"]
    ends = [interval_text(0.5, 0.46, 0.53, 2, style) for style in ("brackets", "±", "none")]
    assert ends == ["[0.46, 0.53]", "± 0.04", ""]
    assert label("bps (prior=none)", "", "LEAK: 1 item") == "bps (prior=none, LEAK: 1 item)"


def test_costs_average_times_and_leave_missing_out() -> None:
    runs = [
        made("bps", {"fd": 1.0}),
        made("bps", {"fd": 1.0}, seed=1, cost=replace(COST, train_seconds=860.0)),
        made("text-only", {"fd": 1.0}, cost=replace(COST, train_seconds=None)),
    ]
    table = build_table(runs)
    shown = [dict(zip(cost_grid(table).header, line, strict=True)) for line in cost_grid(table).body]
    assert [line["train seconds"].main for line in shown] == ["850", "–"]
    assert shown[0]["trainable parameters"].main == "1.23 M" and shown[0]["peak memory (MiB)"].main == "3072"
    assert list(tidy_costs(table)["parameters_trainable"]) == [1_234_567] * 3


def test_times_come_from_the_file_of_timings(tmp_path: Path) -> None:
    for method in ("bps", "controlnet"):
        run = record(method, metrics={"fd": value("fd", 1.0)})
        write_record(tmp_path / run.run_id, run)
    amounts = {"train_images_per_second": 20.0, "sample_seconds_per_image": 0.5, "peak_memory_bytes": 2**30}
    timing = Timing(method="bps", options={}, task="layout", steps=4, items=8, **amounts)
    add_timing(tmp_path, timing, machine={"processor": "a quiet one", "device": "cpu", "threads": 2})
    bps, controlnet = (run.record.cost for run in load_runs(tmp_path))
    assert bps.train_seconds == COST.train_images / 20.0 and bps.macs == COST.macs
    assert controlnet.train_seconds is None and controlnet.peak_memory_bytes is None
    assert (
        "measured alone (a quiet one, cpu, 2 threads)" in cost_grid(build_table(load_runs(tmp_path))).caption
    )


def test_times_of_another_precision_or_number_of_processes_are_not_taken(tmp_path: Path) -> None:
    def written(method: str, **changes: Any) -> None:
        run = record(method, metrics={"fd": value("fd", 1.0)}, **changes)
        write_record(tmp_path / run.run_id, run)

    plain = record("bps")
    half = {"protocol": {**plain.protocol, "training": {"precision": "bf16"}}}
    several = {"environment": {**plain.environment, "execution": [{"step": 0, "processes": 8}]}}
    written("bps", **half)
    written("controlnet", **several)
    written("t2i-adapter", environment={**plain.environment, "device": "cuda"})
    amounts = {"train_images_per_second": 20.0, "sample_seconds_per_image": 0.5, "peak_memory_bytes": 2**30}
    machine = {"processor": "a quiet one", "device": "cpu", "threads": 2}
    for method in ("bps", "controlnet", "t2i-adapter"):
        timing = Timing(method=method, options={}, task="layout", steps=4, items=8, **amounts)
        add_timing(tmp_path, timing, machine=machine)
    costs = [run.record.cost for run in load_runs(tmp_path)]
    assert [cost.train_seconds for cost in costs] == [None] * 3
    add_timing(tmp_path, replace(timing, method="bps", setup={"precision": "bf16"}), machine=machine)
    add_timing(tmp_path, replace(timing, method="controlnet", setup={"processes": 8}), machine=machine)
    costs = [run.record.cost for run in load_runs(tmp_path)]
    assert [cost.sample_seconds_per_image for cost in costs] == [0.5, 0.5, None]
    shown = [line[0].main for line in cost_grid(build_table(load_runs(tmp_path))).body]
    assert [name.partition(" (")[2] for name in shown] == ["bf16)", "8 processes)", ""]


def test_commands_are_quoted_and_take_what_was_changed() -> None:
    options = {"note": "a b", "learned": True, "name": "1", "learning_rate": 0.001}
    changes = {"train_items": 10, "steps": 50}
    made_again = command_line(record("bps", options=options, budget="standard-10", seed=2, changes=changes))
    for words in (
        "bench run --method bps --task sketch --seed 2 ",
        "--option learned=true --option 'name=\"1\"' --option 'note=a b'",
        "--budget standard ",
        "--train-items 10",
        "--sampling-steps 50",
        "--learning-rate 0.001",
        "--device cpu",
    ):
        assert words in made_again, made_again


def test_the_text_of_a_record_has_its_floor_beside_it() -> None:
    run = made("bps", {"fd": 38.0, "clip": None}, shuffled={"fd": 44.0}, references={"fd": 4.2}).record
    floor = made("text-only", {"fd": 47.5}).record
    lines = record_text(run, floor=floor).splitlines()
    assert lines[0] == "BPS on emoji / sketch, seed 0, budget standard, 40 items, protocol 0123456789ab"
    first = next(i for i, line in enumerate(lines) if line.startswith("FD ↓"))
    assert lines[first].split()[2:] == ["38.000", "44.000", "47.500", "4.200"]
    assert f"({JUDGE})" in lines[first + 1] and "[37.980, 38.020]" in lines[first + 1]
    assert any(line.startswith("CLIP score") and line.count("–") == 4 for line in lines)
    assert all(line == line.rstrip() for line in lines)
    assert "MIXED PROTOCOLS" in record_text(run, floor=replace(floor, protocol_hash="f" * 64))


@pytest.mark.parametrize("items", [LEAST_ITEMS - 1, LEAST_ITEMS, FEW_ITEMS])
def test_a_frechet_distance_of_few_items_warns_and_of_too_few_is_not_shown(items: int) -> None:
    metrics = {"fd": value("fd", 38.0, n=items), "kid": value("kid", 0.1, n=items)}
    table = build_table([made("bps", {}, metrics=metrics, rows={"autoencoder": metrics})])
    note = {LEAST_ITEMS - 1: ["TOO FEW"], LEAST_ITEMS: ["FEW"], FEW_ITEMS: []}[items]
    assert [n.split(" ITEMS")[0] for n in table.notes] == note
    for name in ("BPS", "autoencoder (ceiling)"):
        assert cell(table, name, "kid").value == 0.1
        assert (cell(table, name, "fd").value is None) == (items < LEAST_ITEMS)


def test_methods_and_metrics_may_be_chosen_by_name_and_title() -> None:
    runs = [
        made(m, {"fd": 1.0, "mae": 0.1}, references={"fd": 4.0}) for m in ("bps", "controlnet", "text-only")
    ]
    table = build_table(chosen(runs, methods=["BPS", "controlnet"], metrics=["fd"]))
    assert labels(table) == ["autoencoder (ceiling)", "BPS", "ControlNet"]
    assert [c.metric for c in table.columns] == ["fd"]
    assert chosen(runs) == runs
    with pytest.raises(BenchError, match="Did you mean 'controlnet'"):
        chosen(runs, methods=["controlnt"])
    with pytest.raises(BenchError, match="unknown metric .*Allowed: fd, mae"):
        chosen(runs, metrics=["x"])


def test_the_leaderboard_has_main_metrics_without_intervals() -> None:
    runs = [made(m, {"fd": x, "mae": 0.1}) for m, x in (("bps", 1.0), ("text-only", 2.0))]
    (board,) = leaderboards(build_table(runs))
    assert board.header == ("", "seeds", "FD ↓")
    assert [[text.line for text in line] for line in board.body] == [
        ["BPS", "1", "1.000"],
        ["text-only (floor)", "1", "2.000"],
    ]


def test_csv_is_the_table_in_full_precision_and_holds_no_formula() -> None:
    runs = [made(name, {"fd": 1.0 / 3.0}) for name in ("=1+1", "@sum", "-x")]
    table = build_table(runs)
    lines = list(csv.DictReader(to_csv(tidy(table)).splitlines()))
    assert [line["row"] for line in lines] == ["'-x", "'=1+1", "'@sum"]
    assert {float(line["value"]) for line in lines} == {1.0 / 3.0}
    assert pandas.notna(tidy(table)["low"]).all()


def test_names_become_no_markup() -> None:
    hostile = "<img src=x onerror=boom()> [a](javascript:boom()) `` ~~~ \\ |"
    text = to_markdown(main_grid(build_table([made(hostile, {"fd": 1.0}, suite=hostile, budget=hostile)])))
    assert "<img" not in text and not re.search(r"(?<!\\)\][(\[:] *javascript", text)


def test_equal_and_other_protocols_are_said_first_then_what_differs() -> None:
    here = record("bps")
    same = record_changes(here, here)
    assert same[0].startswith("same protocol (0123456789ab)") and len(same) == 2
    there = record("controlnet", seed=1, options={"scale": 0.5}, leaks=leaks(3), **OTHER)
    assert record_changes(here, there) == [
        "OTHER PROTOCOL (0123456789ab here, ffffffffffff there): their numbers do not compare",
        "  protocol: sampler.steps is 10 here, 50 there",
        'method is "bps" here, "controlnet" there',
        "seed is 0 here, 1 there",
        "option scale is – here, 0.5 there",
        "leaked items is 0 here, 3 there",
    ]


def test_a_run_needs_no_items_and_no_folder() -> None:
    assert build_table([Run(record=record("bps", metrics={"fd": value("fd", 1.0)}))]).rows[0].label == "BPS"
