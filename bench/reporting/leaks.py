"""How a report says that evaluation items were, or may have been, seen in training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bench.record import LeakCheck, RunRecord
from bench.reporting.names import titled


def leak_mark(records: Iterable[RunRecord]) -> str:
    """Return "LEAK: 3 items" for the record with most of them, nothing where there is no leak."""
    most = max((record.leaked for record in records), default=0)
    return f"LEAK: {most} item{'' if most == 1 else 's'}" if most else ""


def leak_title(name: str, records: Iterable[RunRecord]) -> str:
    """Return the title of a table or figure, with the mark where a run in it has a leak."""
    mark = leak_mark(records)
    return f"{name} ({mark})" if mark else name


def leak_by_task(records: Mapping[str, Sequence[RunRecord]]) -> str:
    """Return "LEAK: sketch 3 items, layout 1 item", nothing where no task has a leak."""
    marks = {task: leak_mark(own).removeprefix("LEAK: ") for task, own in records.items()}
    said = ", ".join(f"{task} {mark}" for task, mark in marks.items() if mark)
    return f"LEAK: {said}" if said else ""


def outside_mark(records: Iterable[RunRecord]) -> str:
    """Return what a row with weights from outside is marked with, nothing where there are none."""
    given = [record.weights for record in records if record.weights is not None]
    if not given:
        return ""
    return "WEIGHTS FROM OUTSIDE" if all(w.train_images for w in given) else "NOT TRAINED HERE"


def marked(name: str, mark: str) -> str:
    """Put a mark into a row's brackets: "BPS (prior=none, LEAK: 3 items)"."""
    if not mark:
        return name
    return f"{name[:-1]}, {mark})" if name.endswith(")") else f"{name} ({mark})"


def split_notes(records: Sequence[RunRecord]) -> list[str]:
    """Return what must be said of the sides: leaks, unknown pretraining, unequal items."""
    notes = []
    items = " and ".join(map(str, sorted({record.leaked for record in records} - {0})))
    if items:
        more = " or pretraining" if any(record.leaks for record in records) else ""
        notes.append(f"LEAK: {items} evaluation items have a (near) twin in training{more}.")
    checks = [record.leaks.pretraining for record in records if record.leaks is not None]
    for about in sorted({check.about for check in checks if check.status == "unknown"}):
        notes.append(f"PRETRAINING UNKNOWN: {about}, so nobody knows which evaluation items it has seen.")
    notes += sorted({_outside_words(record) for record in records if record.weights is not None})
    sides = {(r.protocol_hash, r.splits.eval, r.splits.train) for r in records}
    if len(sides) > len({digest for digest, _, _ in sides}):
        notes.append("SPLITS DIFFER: records of one protocol were made on different items.")
    return notes


def _outside_words(record: RunRecord) -> str:
    assert record.weights is not None
    given = record.weights
    trained = (
        f"trained on from there, {given.train_images} images"
        if given.train_images
        else ("0 training images here")
    )
    form = f"; condition: {given.condition}" if given.condition else ""
    facts = "".join(f"; {name}: {said}" for name, said in given.facts.items())
    return (
        f"WEIGHTS FROM OUTSIDE: {titled(record.method)} has those of {given.name} (SHA-256 "
        f"{given.sha256[:12]}), {trained}. Their training data are unknown, so nobody knows which "
        f"evaluation items they have seen{form}{facts}."
    )


def leak_lines(record: RunRecord) -> list[str]:
    """Return what `bench show` says of a record's leak checks, a line each; none for old records."""
    if record.leaks is None:
        return [f"{leak_mark([record])} in training"] if record.leaked else []
    lines = [] if record.weights is None else [_outside_words(record)]
    for name in ("training", "pretraining"):
        check = getattr(record.leaks, name)
        lines.append(f"{name}: {_check_words(check)}")
        lines += [f"  {finding}" for finding in check.findings]
    return lines


def _check_words(check: LeakCheck) -> str:
    if check.status == "unknown":
        return f"UNKNOWN whether evaluation items were seen: {check.about}"
    nearest = ", ".join(
        f"{measure} {check.nearest[measure]:.3f} (limit {limit:.3f})"
        for measure, limit in sorted(check.limits.items())
        if measure in check.nearest
    )
    found = f"LEAK: {check.items} evaluation items seen" if check.items else "no leak"
    return f"{found} among {check.about}" + (f"; nearest that pass: {nearest}" if nearest else "")
