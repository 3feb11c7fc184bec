"""Paired differences between rows of one table, and what may be said of them in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from bench.report.names import Column, brackets, decimals, named, number
from bench.report.rows import BOOTSTRAP_SEED, Row, Table
from bench.report.runs import item_matrix
from bench.stats import Interval, Resamples, difference_interval


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Mean of `first` minus mean of `second` over the same items, with its paired 95% interval.

    items: paired items; left_out: items without a score in one of the two; first_seeds and
    second_seeds: training seeds averaged on each side; agree: whether every seed of one side lies
    on the same side of every seed of the other, None where both have a single seed.
    """

    first: str
    second: str
    column: Column
    interval: Interval
    items: int
    left_out: int
    first_seeds: int
    second_seeds: int
    agree: bool | None


def paired_differences(table: Table, *, seed: int = BOOTSTRAP_SEED) -> tuple[Difference, ...]:
    """Return method minus floor, method minus shuffled and method minus method, where paired.

    seed: of the bootstrap over items; all differences on equally many items share its resamples.
    Only rows of one protocol are compared, and only metrics with per-item scores: a Fréchet
    distance belongs to a whole set and appears here never.
    """
    resamples: dict[int, Resamples] = {}
    found = []
    for first, second in _pairs(table):
        for column in table.columns:
            if column in first.cells and column in second.cells:
                difference = _difference(first, second, column, resamples, seed)
                found += [difference] if difference is not None else []
    return tuple(found)


def difference_digits(difference: Difference) -> int:
    """Return decimals that show two digits of the interval's width and no end at 0 that is not."""
    low, high = difference.interval.low, difference.interval.high
    digits = decimals([difference.interval.value], widths=[high - low])
    ends = [abs(end) for end in (low, high) if end]
    nearest = min(ends, default=0.0)
    return max(digits, min(-math.floor(math.log10(nearest)), 9)) if nearest else digits


def verdict(difference: Difference) -> str:
    """Return a difference in plain words, never stronger than its interval.

    "beats" and "falls behind" need an interval that leaves 0 out, and training seeds that agree;
    otherwise the two cannot be told apart, or it is said that single seeds do not agree.
    """
    low, high = difference.interval.low, difference.interval.high
    names = difference.first, difference.second
    on = f"on {named(difference.column)}"
    if not (low > 0 or high < 0):
        return f"{names[0]} and {names[1]} cannot be told apart {on}: {_signed(difference)}."
    if difference.agree is False:
        text = f"{names[0]} {_verb(difference)} {names[1]} {on} by {_unsigned(difference)}"
        return f"On the mean over seeds {text}, but single seeds do not agree."
    return f"{names[0]} {_verb(difference)} {names[1]} {on} by {_unsigned(difference)}."


def verdicts(differences: Sequence[Difference]) -> list[str]:
    """Return the verdict of each difference, in order."""
    return [verdict(difference) for difference in differences]


def _verb(difference: Difference) -> str:
    positive = difference.interval.low > 0
    if difference.column.better == "none":
        return "is higher than" if positive else "is lower than"
    better = positive == (difference.column.better == "higher")
    return "beats" if better else "falls behind"


def _signed(difference: Difference) -> str:
    digits, interval = difference_digits(difference), difference.interval
    ends = brackets(interval.low, interval.high, digits)
    return f"difference {number(interval.value, digits)} {ends}{_basis(difference)}"


def _unsigned(difference: Difference) -> str:
    digits, interval = difference_digits(difference), difference.interval
    low, high = sorted((abs(interval.low), abs(interval.high)))
    value = number(abs(interval.value), digits)
    return f"{value} {brackets(low, high, digits)}{_basis(difference)}"


def _basis(difference: Difference) -> str:
    left_out = f", {difference.left_out} left out" if difference.left_out else ""
    seeds = f"{difference.first_seeds} and {difference.second_seeds} seeds"
    if difference.first_seeds == difference.second_seeds:
        n = difference.first_seeds
        seeds = "one seed" if n == 1 else f"{n} seeds"
    return f" ({difference.items} items{left_out}, {seeds})"


def _pairs(table: Table) -> Iterator[tuple[Row, Row]]:
    methods = [row for row in table.rows if row.kind == "method"]
    for row in methods:
        for other in table.rows:
            if other.kind == "floor" and other.protocol_hash == row.protocol_hash:
                yield row, other
        for other in table.rows:
            if other.kind == "shuffled" and other.runs == row.runs:
                yield row, other
    for row, other in combinations(methods, 2):
        if row.protocol_hash == other.protocol_hash:
            yield row, other


def _difference(
    first: Row, second: Row, column: Column, resamples: dict[int, Resamples], seed: int
) -> Difference | None:
    paired = _aligned(first, second, column)
    if paired is None:
        return None
    a, b, left_out = paired
    if a.shape[1] < 2:
        return None
    n = a.shape[1]
    drawn = resamples.setdefault(n, Resamples(n_items=n, seed=seed))
    return Difference(
        first=first.name,
        second=second.name,
        column=column,
        interval=difference_interval(a.mean(axis=0), b.mean(axis=0), resamples=drawn),
        items=n,
        left_out=left_out,
        first_seeds=len(a),
        second_seeds=len(b),
        agree=_agree(a.mean(axis=1), b.mean(axis=1)),
    )


def _aligned(first: Row, second: Row, column: Column) -> tuple[np.ndarray, np.ndarray, int] | None:
    """Return scores [S,N] of both rows on the items that both have, and how many were left out."""
    one = item_matrix(first.runs, source=first.source, metric=column.metric)
    other = item_matrix(second.runs, source=second.source, metric=column.metric)
    if one is None or other is None or set(one[0]) != set(other[0]):
        return None
    at = {item: i for i, item in enumerate(other[0])}
    a, b = one[1], other[1][:, [at[item] for item in one[0]]]
    known = np.isfinite(a).all(axis=0) & np.isfinite(b).all(axis=0)
    return a[:, known], b[:, known], int((~known).sum())


def _agree(a: np.ndarray, b: np.ndarray) -> bool | None:
    if len(a) == len(b) == 1:
        return None
    return bool(a.min() > b.max() or a.max() < b.min())
