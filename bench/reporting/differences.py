"""Paired differences between rows of one table, and what may be said of them in words."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations

from bench.metrics.intervals import crossed_interval, holm
from bench.reporting.frame import WRONG_CONDITIONS, Difference, Row, Table, evidence
from bench.reporting.words import Column, brackets, number

_UNTOLD = "cannot be told apart from"


def paired_differences(table: Table) -> tuple[Difference, ...]:
    """Return method minus floor, minus itself under wrong conditions and minus method, where paired.

    Only rows of one protocol are compared, and only metrics with per-item scores or, for a whole
    set (FD, KID), with jackknife replicates that left out the same items.
    """
    return corrected(
        paired(first, second, column, seeds=seeds)
        for first, second, seeds in _pairs(table)
        for column in table.columns
        if not column.is_beside
    )


def _pairs(table: Table) -> Iterator[tuple[Row, Row, tuple[int, ...] | None]]:
    """Give the rows to compare and the seeds to compare them at, None for all: those that were shuffled.

    Rows with weights from outside share a table, but not a claim.
    """
    methods = [row for row in table.rows if row.ranked]
    for row in methods:
        for other in table.own("floor"):
            if other.record.protocol_hash == row.record.protocol_hash:
                yield row, other, None
        for other in table.own(*WRONG_CONDITIONS):
            if {*map(id, other.runs)} <= {*map(id, row.runs)}:
                yield row, other, other.seeds
    for row, other in combinations(methods, 2):
        if row.record.protocol_hash == other.record.protocol_hash:
            yield row, other, None


def paired(
    first: Row, second: Row, column: Column, *, seeds: Collection[int] | None = None
) -> Difference | None:
    """Return first minus second in a column, None where it is missing or cannot be paired.

    seeds: those to compare at, None for all that each has.
    """
    sides = [row.cells.get(column) for row in (first, second)]
    known = [cell for cell in sides if cell is not None and cell.value is not None]
    lines = [[x for x in c.lines if seeds is None or x.run.record.seed in seeds] for c in known]
    found = evidence(*lines) if len(lines) == 2 and all(lines) else None
    if found is None:
        return None
    interval = crossed_interval(*found.estimates)
    of, minus = (len({line.run.record.seed for line in side}) for side in lines)
    return Difference(
        first=first.name,
        second=second.name,
        column=column,
        interval=interval,
        items=found.items,
        groups=found.groups,
        left_out=found.left_out,
        first_seeds=of,
        second_seeds=minus,
        chance=interval.chance,
    )


def corrected(differences: Iterable[Difference | None]) -> tuple[Difference, ...]:
    """Return the differences that are known, each with its p-value corrected for all of them (Holm)."""
    known = [difference for difference in differences if difference is not None]
    chances = holm([difference.interval.chance for difference in known])
    return tuple(replace(d, chance=p, claims=len(known)) for d, p in zip(known, chances, strict=True))


def against(differences: Sequence[Difference]) -> str:
    """Return differences of one first row in one column as a line, gathered by what may be said.

    "BPS on line F1 (40 items, one seed): beats a by 0.20 [0.10, 0.30], b by ...; cannot be told apart
    from c: ...". Items and seeds are said once where most share them. Claims follow `verdict`.
    """
    bases = [_basis(d) for d in differences]
    usual = max(bases, key=bases.count)
    claims: dict[str, list[str]] = {}
    for d, basis in zip(differences, bases, strict=True):
        verb = f"{'by its interval alone ' if d.mark else ''}{_verb(d)}" if d.shown else _UNTOLD
        amount = f"{' by ' if d.shown else ': '}{_amount(d)}{'' if basis == usual else f' ({basis})'}"
        claims.setdefault(verb, []).append(f"{d.second}{amount}")
    said = "; ".join(f"{verb} {', '.join(others)}" for verb, others in claims.items())
    otherwise = "where not said, " if len(set(bases)) > 1 else ""
    return f"{differences[0].first} on {differences[0].column.named} ({otherwise}{usual}): {said}."


def verdict(difference: Difference) -> str:
    """Return a difference in plain words, never stronger than its interval.

    "beats" and "falls behind" need an interval that leaves 0 out, also once the claims made together are
    corrected for; otherwise the two cannot be told apart, or it is said that only the interval tells them.
    """
    first, second, amount = difference.first, difference.second, _amount(difference)
    on, basis = f"on {difference.column.named}", f"({_basis(difference)})"
    if not difference.shown:
        return f"{first} and {second} cannot be told apart {on}: {amount} {basis}."
    text = f"{first} {_verb(difference)} {second} {on} by {amount} {basis}"
    if difference.mark:
        return f"By its interval alone {text}; not once {difference.claims} such claims are corrected for."
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
    groups = f" in {difference.groups} groups" if difference.groups < difference.items else ""
    return f"{difference.items} items{groups}{left_out}, {seeds}"
