"""Paired differences between rows of one table, and what may be said of them in words."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import combinations

import numpy as np

from bench.metrics.intervals import Interval, difference_interval, jackknife_interval
from bench.reporting.frame import Difference as Difference
from bench.reporting.frame import Lines, Row, Table, item_scores, resamples, set_replicates
from bench.reporting.words import Column, brackets, number


def paired_differences(table: Table) -> tuple[Difference, ...]:
    """Return method minus floor, method minus shuffled and method minus method, where paired.

    Only rows of one protocol are compared, and only metrics with per-item scores or, for a whole
    set (FD, KID), with jackknife replicates that left out the same items.
    """
    differences = (
        paired(first, second, column, seeds=seeds)
        for first, second, seeds in _pairs(table)
        for column in table.columns
    )
    return tuple(difference for difference in differences if difference is not None)


def _pairs(table: Table) -> Iterator[tuple[Row, Row, tuple[int, ...] | None]]:
    """Give the rows to compare and the seeds to compare them at, None for all: those that were shuffled."""
    methods = table.own("method")
    for row in methods:
        for other in table.own("floor"):
            if other.protocol_hash == row.protocol_hash:
                yield row, other, None
        for other in table.own("shuffled"):
            if {*map(id, other.runs)} <= {*map(id, row.runs)}:
                yield row, other, other.seeds
    for row, other in combinations(methods, 2):
        if row.protocol_hash == other.protocol_hash:
            yield row, other, None


def paired(
    first: Row, second: Row, column: Column, *, seeds: Collection[int] | None = None
) -> Difference | None:
    """Return first minus second in a column, None where it is missing or cannot be paired.

    seeds: those to compare at, None for all that each has. All differences on equally many items share
    their resamples.
    """
    sides = [row.cells.get(column) for row in (first, second)]
    cells = [cell for cell in sides if cell is not None and cell.value is not None]
    lines = [[x for x in c.lines if seeds is None or x.run.record.seed in seeds] for c in cells]
    if len(lines) < 2 or not all(map(len, lines)):
        return None
    estimate = _by_items(*lines) or _by_replicates(*lines)
    if estimate is None:
        return None
    interval, items, left_out, (a, b) = estimate
    return Difference(
        first=first.name,
        second=second.name,
        column=column,
        interval=interval,
        items=items,
        left_out=left_out,
        first_seeds=len(a),
        second_seeds=len(b),
        agree=None if len(a) == len(b) == 1 else bool(a.min() > b.max() or a.max() < b.min()),
    )


_Estimate = tuple[Interval, int, int, tuple[np.ndarray, np.ndarray]]
"""An interval, items behind it and left out of it, values of each seed of both sides."""


def _by_items(first: Lines, second: Lines) -> _Estimate | None:
    """Bootstrap the difference of scores on the items that both have."""
    one, other = item_scores(first), item_scores(second)
    if one is None or other is None or one[0] != other[0]:
        return None
    known = np.isfinite(one[1]).all(axis=0) & np.isfinite(other[1]).all(axis=0)
    a, b, n = one[1][:, known], other[1][:, known], int(known.sum())
    if n < 2:
        return None
    interval = difference_interval(a.mean(axis=0), b.mean(axis=0), resamples=resamples(n))
    return interval, n, len(known) - n, (a.mean(axis=1), b.mean(axis=1))


def _by_replicates(first: Lines, second: Lines) -> _Estimate | None:
    """Subtract the replicates of two sets that left out the same items in turn."""
    one, other = set_replicates(first), set_replicates(second)
    if one is None or other is None or one[0] != other[0] or one[1].shape[1] != other[1].shape[1]:
        return None
    a, b = (np.asarray([line.value for line in lines]) for lines in (first, second))
    interval = jackknife_interval(float(a.mean() - b.mean()), one[1].mean(axis=0) - other[1].mean(axis=0))
    return interval, len(one[0]), 0, (a, b)


def against(differences: Sequence[Difference]) -> str:
    """Return differences of one first row in one column as a line, gathered by what may be said.

    "BPS on line F1 (40 items, one seed): beats a by 0.20 [0.10, 0.30], b by ...; cannot be told apart
    from c: ...". Items and seeds are said once where most share them. Claims follow `verdict`.
    """
    bases = [_basis(d) for d in differences]
    usual = max(bases, key=bases.count)
    claims: dict[str, list[str]] = {}
    for d, basis in zip(differences, bases, strict=True):
        doubt = "on the mean over seeds, with single seeds that do not agree, " if d.mark else ""
        verb = f"{doubt}{_verb(d)}" if d.shown else "cannot be told apart from"
        joint = " by " if d.shown else ": "
        claims.setdefault(verb, []).append(
            f"{d.second}{joint}{_amount(d)}{'' if basis == usual else f' ({basis})'}"
        )
    words = "; ".join(f"{verb} {', '.join(others)}" for verb, others in claims.items())
    otherwise = "where not said, " if len(set(bases)) > 1 else ""
    return f"{differences[0].first} on {differences[0].column.named} ({otherwise}{usual}): {words}."


def verdict(difference: Difference) -> str:
    """Return a difference in plain words, never stronger than its interval.

    "beats" and "falls behind" need an interval that leaves 0 out, and training seeds that agree;
    otherwise the two cannot be told apart, or it is said that single seeds do not agree.
    """
    first, second, amount = difference.first, difference.second, _amount(difference)
    on, basis = f"on {difference.column.named}", f"({_basis(difference)})"
    if not difference.shown:
        return f"{first} and {second} cannot be told apart {on}: {amount} {basis}."
    text = f"{first} {_verb(difference)} {second} {on} by {amount} {basis}"
    if difference.mark:
        return f"On the mean over seeds {text}, but single seeds do not agree."
    return f"{text}."


def _verb(difference: Difference) -> str:
    if difference.column.better == "none":
        return "is higher than" if difference.interval.low > 0 else "is lower than"
    return "beats" if difference.better else "falls behind"


def _amount(difference: Difference) -> str:
    """Return how much it is: its size where a verb tells its direction, else with its sign."""
    interval, digits = difference.interval, difference.digits
    value, low, high = interval.value, interval.low, interval.high
    if difference.shown:
        value, (low, high) = abs(value), sorted((abs(low), abs(high)))
    return f"{'' if difference.shown else 'difference '}{number(value, digits)} {brackets(low, high, digits)}"


def _basis(difference: Difference) -> str:
    left_out = f", {difference.left_out} left out" if difference.left_out else ""
    n, other = difference.first_seeds, difference.second_seeds
    seeds = ("one seed" if n == 1 else f"{n} seeds") if n == other else f"{n} and {other} seeds"
    return f"{difference.items} items{left_out}, {seeds}"
