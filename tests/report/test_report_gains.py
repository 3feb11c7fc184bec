"""Condition gains by hand, where they are missing, and that fidelity, KID and gains stand before FD."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bench.metrics.intervals import Deal, Estimates, crossed_interval
from bench.packed import Run
from bench.record import Outside
from bench.reporting.compare import build_comparison, findings, paired_differences
from bench.reporting.frame import Cell, Table, build_table
from bench.reporting.tables import caption, leaderboards, main_grid, tidy
from bench.reporting.words import notes
from tests.report.small import IDS, made, spread, value

OUTSIDE = Outside(name="released", sha256="ab" * 32, files={}, train_images=0, condition="", facts={})


def gain(table: Table, metric: str, row: str = "BPS") -> Cell | None:
    (found,) = [row_ for row_ in table.rows if row_.label == row]
    return next((cell for column, cell in found.cells.items() if column.metric == f"{metric}_gain"), None)


def with_sets(run: Run, replicates: dict[str, Sequence[float]]) -> Run:
    """The run with replicates of KID by row."""
    assert run.items is not None
    kept = {source: {"kid": np.asarray(found)} for source, found in replicates.items()}
    return replace(run, items=replace(run.items, replicates=kept))


def test_a_gain_by_hand() -> None:
    """Gains .6 and .4 in turn: mean .5, standard error .1 / sqrt(39), Student's t of 39 degrees 2.0227."""
    run = made("bps", {"sketch_f1": [0.8] * 40}, shuffled={"sketch_f1": [0.2, 0.4] * 20})
    found = gain(build_table([run]), "sketch_f1")
    assert found is not None and (found.value, found.items) == (pytest.approx(0.5), 40)
    assert found.low == pytest.approx(0.5 - 2.022691 * 0.1 / math.sqrt(39), abs=1e-6)
    assert found.high == pytest.approx(0.5 + 2.022691 * 0.1 / math.sqrt(39), abs=1e-6)


def test_less_is_better_of_an_error_and_of_kid() -> None:
    """KID .02 under the right condition and .05 under a wrong one gain .03, over groups and both seeds."""
    right, wrong = (
        np.array([spread(mean + 0.001 * s, seed=s + i, width=0.001) for s in (0, 1)])
        for i, mean in ((0, 0.02), (5, 0.05))
    )
    runs = [
        with_sets(
            made("bps", {"kid": 0.02 + s / 500}, shuffled={"kid": 0.05 + s / 250}, seed=s),
            {"samples": right[s], "shuffled": wrong[s]},
        )
        for s in (0, 1)
    ]
    found = gain(build_table(runs), "kid")
    sides = [
        Estimates.of_replicates(np.array(values), rows, dealt=Deal.of_pairs(40), seeds=(0, 1))
        for values, rows in (([0.05, 0.054], wrong), ([0.02, 0.022], right))
    ]
    expected = crossed_interval(*sides)
    assert found is not None and found.value == pytest.approx(0.031)
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert found.deviation == pytest.approx(0.001 * math.sqrt(2))  # .030 and .032


def test_a_gain_is_of_the_seeds_that_were_shuffled_and_the_caption_says_so() -> None:
    runs = [made("bps", {"sketch_f1": spread(0.9 - 0.1 * s, seed=s)}, seed=s) for s in (0, 1, 2)]
    runs[1] = made("bps", {"sketch_f1": [0.8] * 40}, shuffled={"sketch_f1": [0.3] * 40}, seed=1)
    table = build_table(runs)
    found = gain(table, "sketch_f1")
    assert found is not None and found.value == pytest.approx(0.5) and found.deviation is None
    assert "Gains are of fewer training seeds: 1 where a row has 3." in caption(table)
    lines = tidy(table).set_index(["row", "metric"])
    assert lines.loc[("BPS", "sketch_f1_gain"), "seeds"] == "1"
    assert lines.loc[("BPS", "sketch_f1"), "seeds"] == "0 1 2"
    assert not table.notes and "fewer training seeds" not in caption(build_table(runs[1:2]))
    comparison = build_comparison([table])
    assert "Gains are of fewer training seeds: 1 where a row has 3." in caption(comparison)
    own = tidy(comparison).set_index("metric")
    assert (own.loc["sketch_f1_gain", "seeds"], own.loc["sketch_f1_gain", "value"]) == ("1", found.value)


def test_items_without_a_score_on_either_side_are_left_out_of_both() -> None:
    right, wrong = [0.9] * 40, [0.1] * 40
    right[0], wrong[1], wrong[2] = math.nan, math.nan, 0.5
    found = gain(build_table([made("bps", {"sketch_f1": right}, shuffled={"sketch_f1": wrong})]), "sketch_f1")
    assert found is not None and found.items == 38
    assert found.value == pytest.approx((37 * 0.8 + 0.4) / 38)


def test_gains_are_missing_where_nothing_was_shuffled() -> None:
    table = build_table(
        [
            made("bps", {"sketch_f1": 0.9, "kid": 0.1}, shuffled={"sketch_f1": 0.4, "kid": None}),
            made("style-only", {"sketch_f1": 0.3, "kid": 0.1}),
            made("text-only", {"sketch_f1": 0.2, "kid": 0.1}, references={"sketch_f1": 0.9}),
        ]
    )
    found = gain(table, "sketch_f1")
    assert found is not None and found.value == pytest.approx(0.5)
    assert found.low is None  # nothing is known of its items
    without = gain(table, "kid")
    assert without is not None and without.value is None
    for row in ("style-only SD", "text-only (floor)", "autoencoder (ceiling)", "BPS (shuffled conditions)"):
        assert gain(table, "sketch_f1", row) is None
        (line,) = [line for line in main_grid(table).body if line[0].main == row]
        assert [line[k].main for k, h in enumerate(main_grid(table).header) if "gain" in h] == ["–", "–"]
    assert "condition gain" not in " ".join(main_grid(build_table([made("bps", {"fd": 1.0})])).header)


def headline(method: str, task: str, *, shift: float = 0.0, **more: Any) -> Run:
    first = {"sketch": "sketch_f1", "drawing": "sketch_f1", "layout": "box_recall"}[task]
    own = {"fd": 90.0 - shift, "kid": 0.1 - shift / 100, first: spread(0.6 + shift, seed=1, width=0.02)}
    own |= {"colour_error": spread(20.0 - shift, seed=1), "cosine": spread(0.6, seed=1)}
    wrong = {"kid": 0.12, first: spread(0.3, seed=2)}
    return made(method, own, shuffled=wrong, task=task, references={"fd": 4.0}, **more)


@pytest.mark.parametrize("task", ["sketch", "drawing", "layout"])
def test_fidelity_kid_and_gain_lead_everywhere(task: str) -> None:
    table = build_table([headline("bps", task, shift=0.1), headline("controlnet", task)])
    first = "box_recall" if task == "layout" else "sketch_f1"
    fidelity = ["colour_error", first] if task != "layout" else [first, "colour_error"]
    lead = ["kid", f"{first}_gain", "kid_gain", "fd"]
    assert [c.metric for c in table.columns] == [*fidelity, *lead, "cosine"]
    comparison = build_comparison([table])
    primary = [first, "colour_error"] if task == "drawing" else [first]
    assert [c.metric for c in comparison.columns] == [*primary, *lead, "cosine"]
    told = {"sketch_f1": "line F1", "box_recall": "box recall", "colour_error": "colour error ΔE76"}
    names = [told[metric] for metric in primary]
    gains = [f"condition gain, {names[0]}", "condition gain, KID"]
    shown = [head.rstrip(" ↑↓") for head in [*leaderboards(comparison)][0].header[2:]]
    assert shown == [*names, "KID", *gains, "FD"]
    best = [line for line in findings(comparison)[task] if line.startswith("Best mean on")]
    assert [line[13:].split(":")[0].split(" (")[0] for line in best] == [*names, "KID", "FD"]


def test_gains_lead_no_column_and_make_no_claims() -> None:
    table = build_table([headline("bps", "sketch", shift=0.1), headline("controlnet", "sketch")])
    assert not [d for d in paired_differences(table) if d.column.is_gain]
    assert not [c for c in build_comparison([table]).standings if c.is_gain]


def test_the_empty_condition_stands_beside_the_shuffled_one() -> None:
    run = made("bps", {"mae": spread(0.1, seed=1)}, shuffled={"mae": spread(0.4, seed=2)})
    assert run.items is not None
    rows = {**run.record.rows, "other": {"mae": value("mae", 0.3)}, "blank": {"mae": value("mae", 0.2)}}
    items = {**run.items.rows, "blank": {"mae": np.asarray(spread(0.2, seed=3))}}
    run = replace(run, record=replace(run.record, rows=rows), items=replace(run.items, rows=items))
    table = build_table([run])
    assert [(row.kind, row.label) for row in table.rows] == [
        ("method", "BPS"),
        ("shuffled", "BPS (shuffled conditions)"),
        ("blank", "BPS (empty condition)"),
        ("other", "BPS (other)"),
    ]
    assert [d.second for d in paired_differences(table)] == [
        "BPS (shuffled conditions)",
        "BPS (empty condition)",
    ]


def test_what_two_sets_of_real_pictures_differ_by_is_said() -> None:
    run = made("bps", {"fd": 90.0})
    real = {"fd": value("fd", 56.32, half=2.8)}
    tables = [
        build_table(
            [replace(run, record=replace(run.record, task=task, rows={"real training images": real}))]
        )
        for task in ("sketch", "layout")
    ]
    for shown in (*tables, build_comparison(tables)):
        assert caption(shown).count("Two random sets of real pictures of this size differ by 56.320 FD") == 1
    assert "real pictures" not in caption(build_table([run]))


def test_weights_from_outside_are_never_best_bold_or_spoken_of() -> None:
    levels = {"bps": 0.6, "controlnet": 0.5, "t2i-adapter": 0.9}
    runs = [made(m, {"sketch_f1": spread(x, seed=len(m), width=0.01)}) for m, x in levels.items()]
    runs[2] = replace(runs[2], record=replace(runs[2].record, weights=OUTSIDE))
    table = build_table(runs)
    comparison = build_comparison([table])
    (standing,) = comparison.standings.values()
    assert standing.next is not None
    assert (standing.best.name, standing.next.name) == ("BPS", "ControlNet")
    said = [line for lines in findings(comparison).values() for line in lines]
    assert len(said) == 2 and not [line for line in said if "T2I-Adapter" in line]
    assert [(d.first, d.second) for d in paired_differences(table)] == [("BPS", "ControlNet")]
    bold = [line[0].main for line in main_grid(comparison).body if any(cell.bold for cell in line)]
    assert bold == ["BPS"] and len(main_grid(comparison).body) == 3
    alone = build_comparison([build_table([runs[2]])])
    assert not alone.standings and findings(alone) == {"sketch": []}


def test_ids_are_those_of_all_runs() -> None:
    """Items in another order in one seed are paired by what they are, not where they stand."""
    scores, other = spread(0.8, seed=1), spread(0.3, seed=2)
    runs = [
        made("bps", {"sketch_f1": scores}, shuffled={"sketch_f1": other}),
        made("bps", {"sketch_f1": scores[::-1]}, shuffled={"sketch_f1": other[::-1]}, ids=IDS[::-1], seed=1),
    ]
    one, both = (gain(build_table(part), "sketch_f1") for part in (runs[:1], runs))
    assert one is not None and both is not None
    assert (both.value, both.low, both.high) == tuple(map(pytest.approx, (one.value, one.low, one.high)))


def test_a_name_from_outside_stays_in_one_note() -> None:
    run = made("bps", {"sketch_f1": 0.5})
    given = replace(OUTSIDE, name="a\nb_<i>&%|", facts={"unet": "x\u2028y {{ z }}"})
    (note,) = notes("outside", [replace(run.record, weights=given)])
    assert "those of a b_<i>&%| (SHA-256" in note and note.endswith("; unet: x y {{ z }}.")
