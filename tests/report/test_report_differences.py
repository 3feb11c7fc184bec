"""Differences are paired, and words are never stronger than the interval."""

from __future__ import annotations

import re
from dataclasses import astuple, replace
from typing import Any

import numpy as np
import pytest

from bench.data.openmoji import openmoji64_splits
from bench.metrics.intervals import (
    Deal,
    Estimates,
    Interval,
    crossed_interval,
    holm,
    labels_of,
    linear_replicates,
)
from bench.packed import Run
from bench.reporting.compare import Difference, against, corrected, paired_differences, verdict
from bench.reporting.frame import build_table
from bench.reporting.tables import difference_grid
from bench.reporting.words import Column
from tests.report.small import IDS, made, spread

STRONG = ("beats", "falls behind", "is higher than", "is lower than")


def difference(
    value: float,
    low: float,
    high: float,
    *,
    better: str = "higher",
    chance: float = 0.001,
    groups: int = 240,
    seeds: int = 1,
) -> Difference:
    return Difference(
        first="bps",
        second="text-only",
        column=Column(metric="sketch_f1", judge="none", scale="fraction", better=better),
        interval=Interval(value=value, low=low, high=high),
        items=240,
        groups=groups,
        left_out=0,
        first_seeds=seeds,
        second_seeds=seeds,
        chance=chance,
        claims=20,
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
            difference(0.1, 0.0, 0.2),
            "bps and text-only cannot be told apart on line F1: difference 0.10 [0.00, 0.20] "
            "(240 items, one seed).",
        ),
        (
            difference(0.52, 0.50, 0.54, chance=0.2, groups=100, seeds=3),
            "By its interval alone bps beats text-only on line F1 by 0.520 [0.500, 0.540] "
            "(240 items in 100 groups, 3 seeds); not once 20 such claims are corrected for.",
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
@pytest.mark.parametrize("chance", [0.001, 0.2])
def test_words_are_never_stronger_than_the_interval(better: str, chance: float) -> None:
    draw = np.random.default_rng(0)
    sizes = draw.choice([1.0, 1e-3, 1e-7], size=(300, 1))
    ends = np.sort(draw.uniform(-1, 1, (300, 2)) * sizes, axis=1)
    ends[:30] -= ends[:30, :1] * draw.integers(0, 2, (30, 1))  # some begin at 0 exactly
    for low, high in ends.tolist():
        found = difference((low + high) / 2, low, high, better=better, chance=chance)
        _check_words(verdict(found), low, high, better=better, chance=chance)
        turned = found.turned
        _check_words(verdict(turned), -high, -low, better=better, chance=chance)
        assert turned.turned == found


def _check_words(words: str, low: float, high: float, *, better: str, chance: float) -> None:
    claims = any(f" {strong} " in words for strong in STRONG)
    assert claims == (low > 0 or high < 0), words
    assert claims or "cannot be told apart" in words
    if " beats " in words:
        assert better != "none" and (low > 0 if better == "higher" else high < 0), words
    if " falls behind " in words:
        assert better != "none" and (high < 0 if better == "higher" else low > 0), words
    if claims and chance > 0.05:
        assert words.startswith("By its interval alone") and "corrected" in words
    if claims and min(abs(low), abs(high)) > 1e-8:
        shown = re.search(r"\[([^,]+), ([^\]]+)\]", words)
        assert shown is not None and 0 < float(shown[1]) <= float(shown[2]), words


@pytest.mark.parametrize("chance", [0.001, 0.2])
def test_a_line_against_many_claims_no_more(chance: float) -> None:
    found = [
        difference(0.52, 0.50, 0.54, chance=chance, seeds=3),
        difference(0.1, 0.0, 0.2, seeds=3),
        difference(-0.1, -0.2, -0.05),
    ]
    doubt = "" if chance < 0.05 else "by its interval alone "
    assert against(found) == (
        f"bps on line F1 (where not said, 240 items, 3 seeds): {doubt}beats text-only by 0.520 "
        "[0.500, 0.540]; cannot be told apart from text-only: difference 0.10 [0.00, 0.20]; falls "
        "behind text-only by 0.10 [0.05, 0.20] (240 items, one seed)."
    )
    assert [d.clear for d in found] == [chance < 0.05, False, True]


def differences(*runs: Any, **more: Any) -> tuple[Difference, ...]:
    return paired_differences(build_table(runs, **more))


def test_a_difference_is_the_paired_one() -> None:
    """The same item noise on both sides cancels: the interval is far tighter than either's own."""
    base = spread(0.2, seed=1)
    first = [x + 0.3 + n for x, n in zip(base, spread(0.0, seed=2, width=0.01), strict=True)]
    (found,) = differences(made("bps", {"mae": first}), made("text-only", {"mae": base[::-1]}, ids=IDS[::-1]))
    by_hand = crossed_interval(Estimates.of_items(np.asarray(first)), Estimates.of_items(np.asarray(base)))
    assert found.interval == by_hand and found.interval.high - found.interval.low < 0.02
    assert (found.items, found.groups, found.left_out) == (40, 40, 0)


def test_pairs_and_order() -> None:
    scores = {m: spread(0.5, seed=i) for i, m in enumerate(("bps", "t2i-adapter", "text-only"))}
    runs = [made(m, {"mae": x}, shuffled={"mae": spread(0.2, seed=9)}) for m, x in scores.items()]
    assert [(d.first, d.second) for d in differences(*runs)] == [
        ("BPS", "text-only"),
        ("BPS", "BPS (shuffled conditions)"),
        ("T2I-Adapter", "text-only"),
        ("T2I-Adapter", "T2I-Adapter (shuffled conditions)"),
        ("BPS", "T2I-Adapter"),
    ]


def test_a_set_metric_is_paired_by_its_replicates() -> None:
    """Replicates that move together cancel; others, fewer or of another order make no difference."""
    shared = np.asarray(spread(0.0, seed=0))
    kept = [
        list(level + shared + np.asarray(spread(0.0, seed=s, width=0.01)))
        for s, level in ((1, 30.0), (2, 31.0))
    ]
    runs = [made("bps", {"fd": 30.0 + s}, seed=s, replicates={"fd": kept[s]}) for s in (0, 1)]
    floor = list(40.0 + shared)
    (found,) = differences(*runs, made("text-only", {"fd": 40.0}, replicates={"fd": floor}))
    dealt, seeds = Deal.of_pairs(40), (0, 1)
    both = Estimates.of_replicates(np.array([30.0, 31.0]), np.array(kept), dealt=dealt, seeds=seeds)
    alone = Estimates.of_replicates(40.0, np.array(floor), dealt=dealt)
    assert found.interval == crossed_interval(both, alone)
    assert (found.items, found.first_seeds, found.second_seeds) == (40, 2, 1)
    for changed in ({}, {"replicates": {"fd": floor[1:]}}, {"replicates": {"fd": floor}, "ids": IDS[::-1]}):
        assert differences(*runs, made("text-only", {"fd": 40.0}, **changed)) == ()


def test_seeds_that_disagree_widen_the_interval() -> None:
    """Items alone would tell the methods apart; two seeds so far apart cannot."""
    apart = [made("bps", {"mae": spread(x, seed=i)}, seed=i) for i, x in enumerate((0.9, 0.1))]
    floors = [made("text-only", {"mae": spread(0.2, seed=5)}, seed=i) for i in (0, 1)]
    (one,) = differences(apart[0], floors[0])
    (both,) = differences(*apart, *floors)
    assert one.clear and not both.shown
    assert both.interval.high - both.interval.low > 5 * (one.interval.high - one.interval.low)


def test_items_of_one_group_count_together() -> None:
    """The interval is that of the groups' means, as groups of four equal items say what one says."""
    base, up = (list(np.repeat(spread(x, seed=i)[:10], 4)) for i, x in enumerate((0.2, 0.5)))
    groups = {"groups": tuple(np.repeat(np.arange(10), 4).tolist())}
    (found,) = differences(*(made(m, {"mae": x}, **groups) for m, x in (("bps", up), ("text-only", base))))
    means = [Estimates.of_items(np.asarray(x[::4])) for x in (up, base)]
    expected = crossed_interval(*means)
    assert (found.interval.low, found.interval.high) == pytest.approx((expected.low, expected.high))
    assert (found.items, found.groups) == (40, 10) and "40 items in 10 groups" in verdict(found)


def test_claims_of_a_table_are_corrected_together_and_marked() -> None:
    scores = {m: spread(x, seed=i) for i, (m, x) in enumerate((("bps", 0.5), ("text-only", 0.45)))}
    table = build_table([made(m, {"mae": x, "psnr": x[::-1]}) for m, x in scores.items()])
    found = paired_differences(table)
    assert [d.chance for d in found] == holm([d.interval.chance for d in found])
    assert {d.claims for d in found} == {len(found)}
    weak = replace(found[0].interval, low=0.01, high=0.2, error=0.05)
    many = corrected([replace(found[0], interval=weak)] * 40)
    assert many[0].shown and not many[0].clear
    grid = difference_grid(table, [many[0], replace(many[0], chance=0.001)])
    assert [line[-1].main for line in grid.body] == ["40*", "40"]


def test_items_missing_on_one_side_are_left_out_of_both() -> None:
    one, other = spread(0.5, seed=1), spread(0.2, seed=2)
    one[3], other[8] = np.nan, np.nan
    (found,) = differences(made("bps", {"mae": one}), made("text-only", {"mae": other}))
    assert (found.items, found.left_out) == (38, 2) and "38 items, 2 left out" in verdict(found)


def test_numbers_that_cannot_be_paired_make_no_difference() -> None:
    floor = made("text-only", {"mae": spread(0.2, seed=1)})
    alone = made("bps", {"mae": 0.5})
    others = made("t2i-adapter", {"mae": spread(0.4, seed=2)}, ids=[f"x{i}" for i in IDS])
    assert differences(alone, floor, others) == ()
    moved = made("bps", {"mae": spread(0.5, seed=3)}, protocol_hash="f" * 64)
    assert differences(moved, floor, mixed=True) == ()


def test_shuffled_conditions_of_one_seed_are_paired_with_that_seed() -> None:
    first = made("bps", {"mae": spread(0.5, seed=1)}, shuffled={"mae": spread(0.1, seed=2)})
    (found,) = differences(first, made("bps", {"mae": spread(0.7, seed=3)}, seed=1))
    assert (found.first_seeds, found.second_seeds) == (1, 1)
    assert found.interval.value == pytest.approx(0.4), "seed 0 alone, not the mean of both"


def test_replicates_of_items_and_of_groups_are_paired_where_they_gather_to_the_same_groups() -> None:
    """Older runs left out items for FD, newer ones groups: what the same items add cancels, by group."""
    splits = openmoji64_splits()
    ids = splits.test[:60]
    groups = labels_of([splits.groups.get(item, item) for item in ids])
    assert max(groups) + 1 < len(ids)
    item_adds = np.array(spread(0.0, seed=3))[np.arange(60) % 40]
    item_adds -= item_adds.mean()

    def run(method: str, fd: float, own: np.ndarray | None, adds: np.ndarray = item_adds) -> Run:
        dealt = Deal.of_pairs(len(ids), groups=own)
        added = np.bincount(dealt.first, weights=adds, minlength=dealt.blocks)
        fields = {"groups": () if own is None else tuple(own.tolist()), "protocol": {"splits": splits.digest}}
        replicates = {"fd": linear_replicates(fd, added, dealt=dealt).tolist()}
        return made(method, {"fd": fd}, replicates=replicates, ids=ids, **fields)

    (found,) = paired_differences(build_table([run("bps", 50.0, None), run("controlnet", 40.0, groups)]))
    assert found.groups == max(groups) + 1 and found.interval.value == pytest.approx(10.0)
    assert (found.interval.low, found.interval.high) == pytest.approx((10.0, 10.0))
    other = item_adds[::-1].copy()
    old, new = (
        paired_differences(build_table([run("bps", 50.0, own), run("controlnet", 40.0, own, other)]))
        for own in (None, groups)
    )
    (mixed,) = paired_differences(
        build_table([run("bps", 50.0, None), run("controlnet", 40.0, groups, other)])
    )
    for (same,) in (old, new):
        assert astuple(mixed.interval) == pytest.approx(astuple(same.interval))
        assert same.interval.low < 9.9
    elsewhere = (groups + 1) % (max(groups) + 1)
    assert not paired_differences(build_table([run("bps", 50.0, None), run("controlnet", 40.0, elsewhere)]))
