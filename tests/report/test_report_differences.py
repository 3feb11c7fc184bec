"""Differences are paired, and words are never stronger than the interval."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.content import read_json, write_json
from bench.metrics.intervals import Interval, Resamples, difference_interval, jackknife_interval
from bench.reporting import Difference, Run, build_table, load_runs, paired_differences, verdict
from bench.reporting.differences import against, told_apart
from bench.reporting.names import Column
from bench.reporting.tables import difference_grid
from bench.types import BenchError

Writer = Callable[..., Run]
IDS = tuple(f"{i:04X}" for i in range(40))

STRONG = ("beats", "falls behind", "is higher than", "is lower than")


def difference(
    value: float,
    low: float,
    high: float,
    *,
    better: str = "higher",
    agree: bool | None = None,
    seeds: int = 1,
) -> Difference:
    return Difference(
        first="bps",
        second="text-only",
        column=Column(metric="sketch_f1", judge="none", scale="fraction", better=better),
        interval=Interval(value=value, low=low, high=high),
        items=240,
        left_out=0,
        first_seeds=seeds,
        second_seeds=seeds,
        agree=agree,
    )


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (
            difference(0.52, 0.50, 0.54),
            "bps beats text-only on line F1 by 0.520 [0.500, 0.540] (240 items, one seed).",
        ),
        (
            difference(-0.52, -0.54, -0.50),
            "bps falls behind text-only on line F1 by 0.520 [0.500, 0.540] (240 items, one seed).",
        ),
        (
            difference(-0.52, -0.54, -0.50, better="lower"),
            "bps beats text-only on line F1 by 0.520 [0.500, 0.540] (240 items, one seed).",
        ),
        (
            difference(0.1, 0.0, 0.2),
            "bps and text-only cannot be told apart on line F1: difference 0.10 [0.00, 0.20] "
            "(240 items, one seed).",
        ),
        (
            difference(0.52, 0.50, 0.54, agree=False, seeds=3),
            "On the mean over seeds bps beats text-only on line F1 by 0.520 [0.500, 0.540] "
            "(240 items, 3 seeds), but single seeds do not agree.",
        ),
        (
            difference(0.01, 0.0003, 0.02),
            "bps beats text-only on line F1 by 0.0100 [0.0003, 0.0200] (240 items, one seed).",
        ),
    ],
)
def test_words(made: Difference, expected: str) -> None:
    assert verdict(made) == expected


@pytest.mark.parametrize("better", ["higher", "lower", "none"])
@pytest.mark.parametrize("agree", [None, True, False])
def test_words_are_never_stronger_than_the_interval(better: str, agree: bool | None) -> None:
    draw = np.random.default_rng(0)
    sizes = draw.choice([1.0, 1e-3, 1e-7], size=(300, 1))
    ends = np.sort(draw.uniform(-1, 1, (300, 2)) * sizes, axis=1)
    ends[:30] -= ends[:30, :1] * draw.integers(0, 2, (30, 1))  # some begin at 0 exactly
    for low, high in ends.tolist():
        made = difference((low + high) / 2, low, high, better=better, agree=agree)
        _check_words(verdict(made), low, high, better=better, agree=agree)


def _check_words(words: str, low: float, high: float, *, better: str, agree: bool | None) -> None:
    claims = any(f" {strong} " in words for strong in STRONG)
    assert claims == (low > 0 or high < 0), words
    assert claims or "cannot be told apart" in words
    if " beats " in words:
        assert better != "none" and (low > 0 if better == "higher" else high < 0), words
    if " falls behind " in words:
        assert better != "none" and (high < 0 if better == "higher" else low > 0), words
    if claims and agree is False:
        assert words.startswith("On the mean over seeds") and "do not agree" in words
    if claims and min(abs(low), abs(high)) > 1e-8:
        shown = re.search(r"\[([^,]+), ([^\]]+)\]", words)
        assert shown is not None and 0 < float(shown[1]) <= float(shown[2]), words


def test_a_difference_is_the_paired_one(build: Any, add_run: Writer, results: Path) -> None:
    """The same item noise on both sides cancels: the interval is far tighter than either's own."""
    base = build.spread(0.2, seed=1)
    first = [x + 0.3 + n for x, n in zip(base, build.spread(0.0, seed=2, width=0.01), strict=True)]
    add_run("bps", {"sketch_f1": 0.5}, item_rows={"samples": {"sketch_f1": first}})
    add_run(
        "text-only",
        {"sketch_f1": 0.2},
        item_rows={"samples": {"sketch_f1": base[::-1]}},
        item_ids=IDS[::-1],
    )
    (found,) = paired_differences(build_table(load_runs(results)), seed=7)
    resamples = Resamples(n_items=40, seed=7)
    assert found.interval == difference_interval(np.asarray(first), np.asarray(base), resamples=resamples)
    assert found.interval.value == pytest.approx(0.3)
    assert found.interval.high - found.interval.low < 0.01
    assert (found.items, found.left_out, found.agree) == (40, 0, None)


def test_pairs_and_order(full: Path) -> None:
    found = paired_differences(build_table(load_runs(full)))
    pairs = list(dict.fromkeys((d.first, d.second) for d in found))
    assert pairs == [
        ("BPS", "text-only"),
        ("BPS", "BPS (shuffled conditions)"),
        ("T2I-Adapter", "text-only"),
        ("T2I-Adapter", "T2I-Adapter (shuffled conditions)"),
        ("BPS", "T2I-Adapter"),
    ]
    of_items = {"cosine", "retrieval", "sketch_f1", "mae", "clip"}
    assert {d.column.metric for d in found} == of_items | {"fd", "kid"}
    shuffled = {d.column.metric for d in found if "shuffled" in d.second}
    assert shuffled == of_items  # the shuffled rows of these runs have no replicates
    f1 = next(d for d in found if d.second == "text-only" and d.column.metric == "sketch_f1")
    assert f1.interval.value == pytest.approx(np.mean([0.52, 0.53, 0.507]) - 0.10)
    assert (f1.first_seeds, f1.second_seeds, f1.agree) == (3, 1, True)


def test_a_set_metric_is_paired_by_its_replicates(build: Any, add_run: Writer, results: Path) -> None:
    """Replicates that move together cancel: the interval is far tighter than either's own."""
    for seed, fd in enumerate((30.0, 31.0)):
        add_run("bps", {"fd": fd}, seed=seed, sets=True)
    add_run("text-only", {"fd": 40.0}, sets=True)
    runs = load_runs(results)
    (found,) = paired_differences(build_table(runs))
    own = [run.items.replicates["samples"]["fd"] for run in runs if run.items is not None]
    by_hand = (own[0] + own[1]) / 2 - own[2]
    assert found.interval == jackknife_interval(-9.5, by_hand)
    alone = jackknife_interval(40.0, own[2])
    assert found.interval.high - found.interval.low < (alone.high - alone.low) / 2
    assert (found.items, found.left_out, found.agree) == (40, 0, True)
    assert verdict(found).startswith("BPS beats text-only on FD")


@pytest.mark.parametrize("change", ["none", "order", "groups"])
def test_sets_that_left_out_other_items_make_no_difference(
    build: Any, add_run: Writer, results: Path, change: str
) -> None:
    add_run("bps", {"fd": 30.0}, sets=True)
    other = add_run(
        "text-only",
        {"fd": 40.0},
        sets=change != "none",
        item_ids=IDS[::-1] if change == "order" else IDS,
    )
    if change == "groups" and other.folder is not None:
        items = read_json(other.folder / "items.json")
        items["replicates"]["samples"]["fd"].pop()
        write_json(other.folder / "items.json", items)
    assert paired_differences(build_table(load_runs(results))) == ()


def test_replicates_and_curves_must_be_numbers(add_run: Writer, results: Path) -> None:
    run = add_run("bps", {"fd": 30.0}, sets=True, curve=[(1, 0.5), (2, 0.25)])
    assert run.items is not None and run.items.curve == ((1, 0.5), (2, 0.25))
    assert run.folder is not None
    path = run.folder / "items.json"
    whole = read_json(path)
    for key, wrong in (
        ("replicates", {"samples": {"fd": [1.0, None]}}),
        ("replicates", {"samples": {"fd": [1.0]}}),
        ("curve", [[1, "x"]]),
        ("curve", [[1]]),
    ):
        write_json(path, whole | {key: wrong})
        with pytest.raises(BenchError, match="items.json"):
            load_runs(results)


@pytest.mark.parametrize("agree", [True, False])
def test_one_line_against_many_claims_no_more(agree: bool) -> None:
    made = [
        difference(0.52, 0.50, 0.54, agree=agree, seeds=3),
        difference(0.1, 0.0, 0.2, seeds=3),
        difference(-0.1, -0.2, -0.05),
    ]
    doubt = "" if agree else "on the mean over seeds, with single seeds that do not agree, "
    assert against(made) == (
        f"bps on line F1 (where not said, 240 items, 3 seeds): {doubt}beats text-only by 0.520 "
        "[0.500, 0.540]; cannot be told apart from text-only: difference 0.10 [0.00, 0.20]; falls "
        "behind text-only by 0.10 [0.05, 0.20] (240 items, one seed)."
    )
    assert [told_apart(d) for d in made] == [agree, False, True]


def test_seeds_that_disagree_are_seen(add_run: Writer, results: Path) -> None:
    for seed, level in enumerate((0.9, 0.1)):
        add_run("bps", {"sketch_f1": level}, seed=seed)
    add_run("text-only", {"sketch_f1": 0.2})
    (found,) = paired_differences(build_table(load_runs(results)))
    assert found.agree is False
    assert verdict(found).endswith("but single seeds do not agree.")


def test_items_missing_on_one_side_are_left_out_of_both(add_run: Writer, results: Path) -> None:
    one: list[float | None] = [0.5] * 40
    other: list[float | None] = [0.2] * 40
    one[3], other[8] = None, None
    add_run("bps", {"sketch_f1": 0.5}, item_rows={"samples": {"sketch_f1": one}})
    add_run("text-only", {"sketch_f1": 0.2}, item_rows={"samples": {"sketch_f1": other}})
    (found,) = paired_differences(build_table(load_runs(results)))
    assert (found.items, found.left_out) == (38, 2)
    assert "38 items, 2 left out" in verdict(found)


def test_unpaired_numbers_make_no_difference(add_run: Writer, results: Path) -> None:
    add_run("bps", {"sketch_f1": 0.5}, items=False)
    add_run("text-only", {"sketch_f1": 0.2})
    add_run("t2i-adapter", {"sketch_f1": 0.4}, item_ids=[f"x{i}" for i in IDS])
    assert paired_differences(build_table(load_runs(results))) == ()


def test_protocols_are_not_compared(add_run: Writer, results: Path) -> None:
    add_run("bps", {"sketch_f1": 0.5})
    add_run("text-only", {"sketch_f1": 0.2}, protocol_hash="f" * 64)
    assert paired_differences(build_table(load_runs(results), mixed=True)) == ()


def test_shuffled_conditions_of_one_seed_are_paired_with_that_seed(results: Path, add_run: Writer) -> None:
    add_run("bps", {"sketch_f1": 0.5}, shuffled={"sketch_f1": 0.1}, seed=0)
    add_run("bps", {"sketch_f1": 0.7}, seed=1)
    table = build_table(load_runs(results))
    rows = {row.kind: row for row in table.rows if row.kind in {"method", "shuffled"}}
    assert rows["method"].seeds == (0, 1) and rows["shuffled"].seeds == (0,)
    assert not any("missing" in note for note in table.notes)
    (found,) = [d for d in paired_differences(table) if "shuffled" in d.second]
    assert (found.first_seeds, found.second_seeds) == (1, 1)
    assert found.interval.value == pytest.approx(0.4), "seed 0 alone, not the mean of both"


def test_a_difference_is_marked_where_seeds_do_not_agree(full: Path) -> None:
    table = build_table(load_runs(full))
    found = [replace(d, agree=a) for d in paired_differences(table)[:1] for a in (None, True, False)]
    grid = difference_grid(table, found)
    assert [line[-1].main for line in grid.body] == ["40", "40", "40*"]
    assert "seeds do not agree" in grid.caption and "No interval adds seed variance" in grid.caption
