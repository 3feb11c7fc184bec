"""What a suite's evaluation items have in common with what was seen in training, told in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.base.snapshot import find_snapshot
from bench.content import Cache
from bench.data.leaks import Checked, Finding
from bench.data.seen import Seen, code_limits, compare_seen, load_seen
from bench.data.splits import verify
from bench.data.stored import compare_items, fingerprints_of, limits_of
from bench.record import RunRecord, load_items, load_record
from bench.suites import find_data
from bench.types import BenchError, Dataset

_SIDES = ("val", "test")
_SHOWN = 3
KNOWN_CASE = """\
A known case, for comparison: the release of Bayesian Power Steering (DingDing33/BPS-v1-1, commit
926842c) joins train2017, val2017 and test2017 of COCO into one training set. A FID on val2017 then
compares samples with images that the network was trained on, conditions included: it measures in
part how well they are remembered, and no later check of the samples can tell the two apart. A
trustworthy number needs a training side without val2017, which is what this benchmark checks before
it trains: the same ids, the same pixels, and the same picture moved, mirrored or packed again.
"""


@dataclass(frozen=True, kw_only=True)
class Look:
    """One comparison of evaluation items with what was seen.

    title: which with which; about: what was seen, or why that is unknown; limits: of likeness, by
    measure; checked: what came out, None where unknown.
    """

    title: str
    about: str
    limits: dict[str, float]
    checked: Checked | None


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Everything `bench audit` says.

    data: what is wrong with the data and their splits; looks: comparisons with training and with
    pretraining; run: what a record says of itself, in words.
    """

    suite: str
    dataset: str
    items: dict[str, int]
    data: tuple[Finding, ...]
    looks: tuple[Look, ...]
    run: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether data differ from their splits or an evaluation item was seen."""
        found = [f for look in self.looks if look.checked for f in look.checked.findings]
        return bool(self.data) or any(f.leak for f in found)


def audit(
    suite: str, *, base: Path | None = None, cache: Cache | None = None, data: Path | None = None
) -> Audit:
    """Audit a suite by name: its data, and both evaluation sides against training and pretraining.

    base: the user's; else the suite's; a suite without one has its pretraining unknown. data: the
    folder of a suite's data that the user brings. BenchError for an unknown suite and a damaged base.
    """
    return _audit(suite, base=base, cache=cache, data=data)


def audit_run(
    folder: Path, *, base: Path | None = None, cache: Cache | None = None, data: Path | None = None
) -> Audit:
    """Audit the suite of a run, and the very items it was evaluated on.

    Where the run's base is not the one at hand, its pretraining is unknown. BenchError for a damaged
    record.
    """
    record = load_record(folder)
    items = load_items(folder).ids
    return _audit(record.suite, base=base, cache=cache, data=data, record=record, items=items)


def _audit(
    suite: str,
    *,
    base: Path | None,
    cache: Cache | None,
    data: Path | None = None,
    record: RunRecord | None = None,
    items: Sequence[str] = (),
) -> Audit:
    found = find_data(suite, data)
    dataset, splits = found.dataset(), found.splits()
    sides = {side: splits.side(side) for side in _SIDES}
    if record is not None:
        sides = {record.splits.eval.name: tuple(items)}
    known = set(dataset.ids)
    strange = [item for ids in sides.values() for item in ids if record and item not in known]
    if strange:
        raise BenchError(f"the run was evaluated on items that {suite} does not have: {strange[:3]}.")
    train = [i for i in splits.side("train") if i in known]
    seen = _seen(base or found.base, record)
    looks = [
        look
        for side, ids in sides.items()
        if ids
        for look in _looks(dataset, train, [i for i in ids if i in known], side, seen, cache)
    ]
    return Audit(
        suite=suite,
        dataset=dataset.name,
        items={side: len(splits.side(side)) for side in ("train", *_SIDES)},
        data=tuple(verify(dataset, splits, cache=cache)),
        looks=tuple(looks),
        run=() if record is None else _run_words(record),
    )


def _seen(base: Path | None, record: RunRecord | None) -> Seen | str:
    if base is None:
        return "the suite brings no base; give yours with --base"
    digest = find_snapshot(base).digest
    if record is not None and record.protocol.get("base") != digest:
        return f"the run was made with another base than {base.name}; give it with --base"
    return load_seen(base, base=digest)


def _looks(
    dataset: Dataset,
    train: Sequence[str],
    ids: Sequence[str],
    side: str,
    seen: Seen | str,
    cache: Cache | None,
) -> list[Look]:
    """Compare one evaluation side with training and with pretraining."""
    found = compare_items(dataset, train, ids, between=f"train and {side}", cache=cache)
    own = fingerprints_of(dataset, ids)
    words = f"{len(own.ids)} {side} items with"
    about = f"{len(train)} training items"
    limits = limits_of(dataset)
    looks = [Look(title=f"{words} training", about=about, limits=limits, checked=found)]
    title = f"{words} pretraining"
    if isinstance(seen, str):
        return [*looks, Look(title=title, about=seen, limits={}, checked=None)]
    other = compare_seen(seen, own, cache=cache)
    return [*looks, Look(title=title, about=seen.about, limits=code_limits(), checked=other)]


def _run_words(record: RunRecord) -> tuple[str, ...]:
    if record.leaks is None:
        said = "it was made before pretraining was looked at"
    else:
        said = f"training {record.leaks.training.status}, pretraining {record.leaks.pretraining.status}"
    return (f"{record.run_id}: {record.leaked} evaluation items with a leak; {said}",)


def audit_value(found: Audit) -> dict[str, Any]:
    """Return an audit as plain JSON values."""
    return {**asdict(found), "failed": found.failed, "known_case": KNOWN_CASE}


def audit_text(found: Audit) -> str:
    """Return an audit for a terminal."""
    items = ", ".join(f"{side} {n}" for side, n in found.items.items())
    lines = [f"{found.suite}: {found.dataset} ({items})", ""]
    lines += [f"FAIL data: {f.kind}: {f.message}" for f in found.data] or [
        "ok   data: ids, contents and sides are those of the committed splits, no side leaks"
    ]
    for look in found.looks:
        lines += _look_lines(look)
    lines += [f"run  {words}" for words in found.run]
    return "\n".join([*lines, "", KNOWN_CASE.rstrip()])


def _look_lines(look: Look) -> list[str]:
    if look.checked is None:
        return [f"?    {look.title}: UNKNOWN, {look.about}"]
    leaks = [f for f in look.checked.findings if f.leak]
    limits = ", ".join(f"{measure} {limit:.3f}" for measure, limit in look.limits.items())
    ids = "ids, " if look.title.endswith(" training") else ""  # pretraining shares no ids
    lines = [
        f"{'FAIL' if leaks else 'ok  '} {look.title} ({look.about}): {ids}exact contents, likeness "
        f"above {limits}"
    ]
    lines += [f"     {'LEAK' if f.leak else 'told'} {f.kind}: {f.message}" for f in look.checked.findings]
    for measure in look.limits:
        near = [n for n in look.checked.nearest if n.measure == measure][:_SHOWN]
        said = ", ".join(f"{n.first} = {n.second} ({n.likeness:.3f})" for n in near)
        lines.append(f"     nearest {measure} that passes: {said or 'none comes near'}")
    return lines
