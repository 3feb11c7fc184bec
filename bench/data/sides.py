"""What a run may be told of its data before it begins: its sides as committed, and what leaks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from bench import record as records
from bench.content import Cache
from bench.data.leaks import Finding, Fingerprints, Look, digests_of, how_many, look, overlap
from bench.data.splits import Splits, side_digest
from bench.types import BenchError, Dataset


def check_sides(
    dataset: Dataset,
    splits: Splits,
    *,
    train: Sequence[str],
    evaluation: Sequence[str],
    side: str,
    seen: Fingerprints | str,
    allow_leak: bool = False,
    cache: Cache | None = None,
) -> tuple[records.Splits, records.Leaks]:
    """Describe the two sides of a run after checking contents and leaks, also from pretraining.

    seen: fingerprints of the base's pretraining data, or why there are none. allow_leak: go on where
    evaluation items were seen; the record then says so. cache: where comparisons are kept. Raises
    BenchError when an item's content is not what the committed splits promise, and for a leak.
    """
    if not evaluation:
        raise BenchError(f"{dataset.name} has no items on its side '{side}'. Choose another --side.")
    whole = len(splits.side("train"))  # a run may train on a part; its reference row is of all
    if whole < len(evaluation):
        raise BenchError(
            f"{dataset.name} has {whole} training and {len(evaluation)} evaluation items; the row of "
            "real training images needs as many of them. Bring more, or choose a smaller --budget."
        )
    digests = {}
    for name, ids in (("train", train), (side, evaluation)):
        found = digests_of(dataset, ids)
        changed = [i for i, digest in found.items() if splits.items.get(i) != digest]
        if changed:
            raise BenchError(
                f"{len(changed)} items of {name} are not those of the committed splits "
                f"({', '.join(changed[:3])} ...). Run `bench data verify`."
            )
        digests[name] = side_digest(found)
    looks = look(dataset, train, evaluation, side="evaluation", seen=seen, cache=cache)
    findings = [f for look in looks if look.checked is not None for f in look.checked.findings]
    training, pretraining = map(_leak_check, looks)
    leaks = records.Leaks(items=overlap(findings), training=training, pretraining=pretraining)
    if leaks.items and not allow_leak:
        raise BenchError(_leak_message(leaks.items, findings))
    sides = records.Splits(
        train=records.SplitInfo(name="train", n=len(train), digest=digests["train"]),
        eval=records.SplitInfo(name=side, n=len(evaluation), digest=digests[side]),
        overlap=leaks.training.items or 0,
    )
    return sides, leaks


def _leak_message(items: int, findings: Iterable[Finding]) -> str:
    """Return what a user is told who may not go on: every leak, and what to do."""
    told = "\n".join(f"  {f.kind}: {f.message}" for f in findings if f.leak)
    return (
        f"LEAK: {how_many(items, 'evaluation item')} already seen in training or pretraining; scores "
        f"on them say nothing of new pictures.\n{told}\nSee `bench audit`. Take these items from one "
        "of the sides, or go on with --allow-leak: record, tables and figures are then marked."
    )


def _leak_check(look: Look) -> records.LeakCheck:
    if look.checked is None:
        return _unknown(look.about, None)
    items = overlap(look.checked.findings)
    return records.LeakCheck(
        status="leak" if items else "clean",
        about=look.about,
        items=items,
        findings=[f.message for f in look.checked.findings],
        limits=look.checked.limits,
        nearest=look.checked.closest,
    )


def known_leaks(leaks: records.Leaks, outside: records.Outside | None) -> records.Leaks:
    """Return what is known of leaks once weights came from outside: their training data are unknown.

    A leak that was found stays one where the run trained on. A UNet that came along replaces the
    base's, so that nothing is known of its pretraining either.
    """
    if outside is None:
        return leaks
    here = leaks.training if outside.train_images else None
    training = _unknown(f"what {outside.name} was trained on is unknown", here)
    brought = outside.facts.get("unet", "").startswith("came with")
    pretraining = leaks.pretraining
    if brought:
        pretraining = _unknown(f"the UNet of {outside.name} was trained on unknown data", None)
    kept = [check.items or 0 for check in (training, pretraining)]
    items = leaks.items if training.items and pretraining.items else max(kept)
    return records.Leaks(items=items, training=training, pretraining=pretraining)


def _unknown(about: str, own: records.LeakCheck | None) -> records.LeakCheck:
    """Return a check that can say nothing but for what was found in the run's own data."""
    if own is not None and own.status == "leak":
        return replace(own, about=f"{own.about}; {about}")
    findings = [] if own is None else list(own.findings)
    more = f"; {own.status} among {own.about}" if own is not None else ""
    return records.LeakCheck(
        status="unknown", about=about + more, items=None, findings=findings, limits={}, nearest={}
    )
