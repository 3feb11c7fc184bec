"""Turns a finished run into its record, and vouches for the data before it begins."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import record as records
from bench.base.load import Base
from bench.config import Protocol, RunSpec
from bench.content import Cache, read_json, sha256_file
from bench.cost import Ledger, count_encode_macs, count_macs, count_parameters
from bench.data.latents import Prepared
from bench.data.leaks import Checked, Finding, Fingerprints, how_many, overlap
from bench.data.seen import Seen, code_limits, compare_seen
from bench.data.splits import Splits, digests_of, side_digest
from bench.data.stored import compare_items, fingerprints_of, limits_of
from bench.scoring import Scores
from bench.suites import changes
from bench.tiles import TILES_FILE
from bench.trained import ORIGIN, Trained
from bench.types import BenchError, Dataset
from bench.weights import Source

ARTIFACTS = (records.ITEMS_FILE, "contact.png", TILES_FILE, "work/samples.png", "work/adapter.safetensors")


class Ran(typing.Protocol):
    """What a record is made of: a run whose stages are done, as `bench.running.Run`."""

    spec: RunSpec
    id: str
    folder: Path
    work: Path
    given: dict[str, Any]
    protocol: Protocol
    split_info: records.Splits
    leaks: records.Leaks
    dataset: Dataset
    base: Base
    source: Source | None
    facts: dict[str, str]

    @property
    def denoiser(self) -> Any:
        """The method's, trained."""

    @property
    def eval_data(self) -> Prepared:
        """The evaluation items."""

    def ledger(self) -> Ledger:
        """What sampling has cost."""


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def check_sides(
    dataset: Dataset,
    splits: Splits,
    *,
    train: Sequence[str],
    evaluation: Sequence[str],
    side: str,
    seen: Seen | str,
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
    own = compare_items(dataset, train, evaluation, cache=cache)
    leaks, findings = find_leaks(
        own,
        fingerprints_of(dataset, evaluation),
        about=f"{len(train)} training items",
        limits=limits_of(dataset),
        seen=seen,
        cache=cache,
    )
    if leaks.items and not allow_leak:
        raise BenchError(leak_message(leaks.items, findings))
    sides = records.Splits(
        train=records.SplitInfo(name="train", n=len(train), digest=digests["train"]),
        eval=records.SplitInfo(name=side, n=len(evaluation), digest=digests[side]),
        overlap=leaks.training.items or 0,
    )
    return sides, leaks


def find_leaks(
    own: Checked,
    evaluation: Fingerprints,
    *,
    about: str,
    limits: Mapping[str, float],
    seen: Seen | str,
    cache: Cache | None = None,
) -> tuple[records.Leaks, list[Finding]]:
    """Join a comparison with the train side (about, limits: of it) with one with what the base saw.

    Returns what the record says and all findings.
    """
    training = _leak_check(own, about=about, limits=limits)
    if isinstance(seen, str):
        unknown = records.LeakCheck(
            status="unknown", about=seen, items=None, findings=[], limits={}, nearest={}
        )
        return _leaks(training, unknown, own.findings), list(own.findings)
    other = compare_seen(seen, evaluation, cache=cache)
    pretraining = _leak_check(other, about=seen.about, limits=code_limits())
    findings = (*own.findings, *other.findings)
    return _leaks(training, pretraining, findings), list(findings)


def leak_message(items: int, findings: Iterable[Finding]) -> str:
    """Return what a user is told who may not go on: every leak, and what to do."""
    said = "\n".join(f"  {f.kind}: {f.message}" for f in findings if f.leak)
    return (
        f"LEAK: {how_many(items, 'evaluation item')} already seen in training or pretraining; scores "
        f"on them say nothing of new pictures.\n{said}\nSee `bench audit`. Take these items from one "
        "of the sides, or go on with --allow-leak: record, tables and figures are then marked."
    )


def _leak_check(checked: Checked, *, about: str, limits: Mapping[str, float]) -> records.LeakCheck:
    items = overlap(checked.findings)
    return records.LeakCheck(
        status="leak" if items else "clean",
        about=about,
        items=items,
        findings=[f.message for f in checked.findings],
        limits=dict(limits),
        nearest=checked.closest,
    )


def _leaks(
    training: records.LeakCheck, pretraining: records.LeakCheck, findings: Iterable[Finding]
) -> records.Leaks:
    return records.Leaks(items=overlap(findings), training=training, pretraining=pretraining)


def build_record(run: Ran, rows: Mapping[str, Scores], *, started: str) -> records.RunRecord:
    """Return the record of a run whose rows are scored."""
    import torch

    spec, outside = run.spec, _outside(run)
    metrics = {name: scores.metrics for name, scores in rows.items()}
    kept = [name for name in ARTIFACTS if (run.folder / name).exists()]
    return records.RunRecord(
        run_id=run.id,
        suite=spec.suite.name,
        task=spec.task.name,
        method=spec.method.name,
        options={**spec.options, **run.given, "learning_rate": spec.learning_rate},
        budget=spec.budget.name,
        seed=spec.config.seed,
        protocol_hash=run.protocol.hash,
        protocol=run.protocol.as_dict(),
        splits=run.split_info,
        metrics=metrics["samples"],
        leaks=known_leaks(run.leaks, outside),
        weights=outside,
        rows=metrics,
        cost=_cost(run, score_seconds=rows["samples"].seconds),
        changes=changes(spec.config),
        config=spec.config.told().as_dict(),
        trained_in=read_json(run.work / "train.json", of=Trained).get(ORIGIN),
        environment={
            **records.environment(device=spec.device, threads=torch.get_num_threads()),
            **_execution(run),
            "base": run.base.provenance(),
        },
        artifacts={name: sha256_file(run.folder / name) for name in kept},
        attribution=str(getattr(run.dataset, "attribution", "")),
        started=started,
        finished=now(),
    )


def _execution(run: Ran) -> dict[str, object]:
    """Say how the training's starts were carried out, unless each was one plain process."""
    starts = read_json(run.work / "train.json", of=Trained).get("starts", [])
    plain = all(set(s) == {"step", "processes"} and s["processes"] == 1 for s in starts)
    return {} if plain else {"execution": starts}


def _outside(run: Ran) -> records.Outside | None:
    """Return what the record says of weights from outside, None without any."""
    if run.source is None or run.spec.weights is None:
        return None
    images = read_json(run.work / "train.json", of=Trained)["images"]
    return records.Outside(
        name=run.source.name,
        sha256=run.source.sha256,
        files=run.source.files,
        train_images=images,
        condition=run.spec.weights.form,
        facts=run.facts,
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


def _cost(run: Ran, *, score_seconds: float) -> records.Cost:
    trained, sampled = read_json(run.work / "train.json", of=Trained), run.ledger()
    total, trainable = count_parameters(run.denoiser)
    measured = {"denoiser": run.denoiser, "base": run.base, "data": run.eval_data}
    seconds = trained["seconds"] or None
    peaks = [sampled.peak_memory_bytes]
    if trained["images"]:
        peaks.append(trained.get("peak_memory_bytes"))
    known = [peak for peak in peaks if peak is not None]
    return records.Cost(
        parameters=total,
        parameters_trainable=trainable,
        parameters_dead=trained["dead"],
        macs=count_macs(**measured),
        macs_guided=count_macs(**measured, branches=2),
        macs_encode=count_encode_macs(**measured),
        train_seconds=seconds,
        train_images=trained["images"],
        train_images_per_second=trained["images"] / seconds if seconds else None,
        sample_seconds_per_image=sampled.seconds_per_image,
        score_seconds=score_seconds,
        peak_memory_bytes=max(known) if len(known) == len(peaks) else None,
    )
