"""Paired differences between rows of one table, and what may be said of them in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from bench.metrics.intervals import Interval, Resamples, difference_interval, jackknife_interval
from bench.reporting.names import Column, brackets, decimals, named, number
from bench.reporting.rows import BOOTSTRAP_SEED, Row, Table
from bench.reporting.runs import item_matrix, measured, replicate_matrix

_Found = tuple[Interval, int, int, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """`first` minus `second`, means over seeds on the same items, with its paired 95% interval.

    The interval is a bootstrap where each item has a score, and the jackknife over groups of items
    for a metric of the whole set. items: paired items; left_out: items without a score in one of
    the two; first_seeds, second_seeds: training seeds averaged on each side; agree: whether every
    seed of one side lies on the same side of every seed of the other, None where both have one.
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
    Only rows of one protocol are compared, and only metrics with per-item scores or, for a whole
    set (FD, KID), with jackknife replicates that left out the same items.
    """
    pairing = Pairing(seed=seed)
    found = [
        pairing.difference(first, second, column=column)
        for first, second in _pairs(table)
        for column in table.columns
    ]
    return tuple(difference for difference in found if difference is not None)


class Pairing:
    """Makes paired differences of rows that all share the resamples of one seed."""

    def __init__(self, *, seed: int = BOOTSTRAP_SEED) -> None:
        """Draw nothing yet: resamples are made for each number of items once."""
        self.seed = seed
        self._resamples: dict[int, Resamples] = {}

    def difference(self, first: Row, second: Row, *, column: Column) -> Difference | None:
        """Return first minus second in a column, None where it is missing or cannot be paired."""
        sides = [row.cells.get(column) for row in (first, second)]
        if any(cell is None or cell.value is None for cell in sides):
            return None
        found = self._by_items(first, second, column) or _by_replicates(first, second, column)
        if found is None:
            return None
        interval, items, left_out, values = found
        return Difference(
            first=first.name,
            second=second.name,
            column=column,
            interval=interval,
            items=items,
            left_out=left_out,
            first_seeds=len(first.runs),
            second_seeds=len(second.runs),
            agree=_agree(*values),
        )

    def _by_items(self, first: Row, second: Row, column: Column) -> _Found | None:
        paired = _aligned(first, second, column)
        if paired is None or paired[0].shape[1] < 2:
            return None
        a, b, left_out = paired
        n = a.shape[1]
        if n not in self._resamples:
            self._resamples[n] = Resamples(n_items=n, seed=self.seed)
        interval = difference_interval(a.mean(axis=0), b.mean(axis=0), resamples=self._resamples[n])
        return interval, n, left_out, (a.mean(axis=1), b.mean(axis=1))


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
    first, second, basis = difference.first, difference.second, _basis(difference)
    on = f"on {named(difference.column)}"
    if not (low > 0 or high < 0):
        return f"{first} and {second} cannot be told apart {on}: {_signed(difference)}{basis}."
    text = f"{first} {_verb(difference)} {second} {on} by {_unsigned(difference)}{basis}"
    if difference.agree is False:
        return f"On the mean over seeds {text}, but single seeds do not agree."
    return f"{text}."


def seed_mark(difference: Difference) -> str:
    """Return "*" where single training seeds speak against the mean over seeds, else nothing."""
    return "*" if difference.agree is False else ""


def told_apart(difference: Difference) -> bool:
    """Tell whether the interval leaves 0 out and no training seed speaks against it."""
    low, high = difference.interval.low, difference.interval.high
    return (low > 0 or high < 0) and difference.agree is not False


def against(differences: Sequence[Difference]) -> str:
    """Return differences of one first row in one column as a line, gathered by what may be said.

    "BPS on line F1 (40 items, one seed): beats a by 0.20 [0.10, 0.30], b by ...; cannot be told apart
    from c: ...". Items and seeds are said once where most share them. Claims follow `verdict`.
    """
    bases = [_basis(d) for d in differences]
    usual = max(bases, key=bases.count)
    said: dict[str, list[str]] = {}
    for d, basis in zip(differences, bases, strict=True):
        own = "" if basis == usual else basis
        if not (d.interval.low > 0 or d.interval.high < 0):
            said.setdefault("cannot be told apart from", []).append(f"{d.second}: {_signed(d)}{own}")
        else:
            doubt = "on the mean over seeds, with single seeds that do not agree, "
            verb = f"{doubt if d.agree is False else ''}{_verb(d)}"
            said.setdefault(verb, []).append(f"{d.second} by {_unsigned(d)}{own}")
    words = "; ".join(f"{verb} {', '.join(others)}" for verb, others in said.items())
    otherwise = "where not said, " if len(set(bases)) > 1 else ""
    usual = f"{otherwise}{usual.strip(' ()')}"
    return f"{differences[0].first} on {named(differences[0].column)} ({usual}): {words}."


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
    return f"difference {number(interval.value, digits)} {ends}"


def _unsigned(difference: Difference) -> str:
    digits, interval = difference_digits(difference), difference.interval
    low, high = sorted((abs(interval.low), abs(interval.high)))
    value = number(abs(interval.value), digits)
    return f"{value} {brackets(low, high, digits)}"


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
            if other.kind == "shuffled" and {*map(id, other.runs)} <= {*map(id, row.runs)}:
                yield replace(row, runs=other.runs), other  # at the seeds that were shuffled
    for row, other in combinations(methods, 2):
        if row.protocol_hash == other.protocol_hash:
            yield row, other


def _by_replicates(first: Row, second: Row, column: Column) -> _Found | None:
    """Subtract the replicates of two sets that left out the same items in turn."""
    one = replicate_matrix(first.runs, source=first.source, metric=column.metric)
    other = replicate_matrix(second.runs, source=second.source, metric=column.metric)
    if one is None or other is None or one[0] != other[0] or one[1].shape[1] != other[1].shape[1]:
        return None
    a, b = _seed_values(first, column), _seed_values(second, column)
    interval = jackknife_interval(float(a.mean() - b.mean()), one[1].mean(axis=0) - other[1].mean(axis=0))
    return interval, len(one[0]), 0, (a, b)


def _seed_values(row: Row, column: Column) -> np.ndarray:
    """Return the recorded value of each seed, [S]; NaN where one is missing."""
    found = [measured(run, row.source, column) for run in row.runs]
    return np.asarray([np.nan if m is None or m.value is None else m.value for m in found])


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
