"""Turns a finished run into its record, and vouches for the data before it begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from bench import record as records
from bench.content import read_json, sha256_file
from bench.cost import count_encode_macs, count_macs, count_parameters
from bench.data.splits import Splits, check_leaks, fingerprint, item_digest, overlap, side_digest
from bench.score import Scores
from bench.types import BenchError, Dataset

if TYPE_CHECKING:
    from bench.run import Run

ARTIFACTS = (records.ITEMS_FILE, "contact.png", "work/samples.png", "work/adapter.safetensors")


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def check_sides(
    dataset: Dataset, splits: Splits, *, train: Sequence[str], evaluation: Sequence[str], side: str
) -> records.Splits:
    """Describe the two sides of a run after checking contents and leaks between them.

    Raises BenchError when an item's content is not what the committed splits promise, or when an
    evaluation item has a twin in training.
    """
    prints, digests = {}, {}
    for name, ids in (("train", train), (side, evaluation)):
        examples = [dataset[i] for i in ids]
        found = {e.id: item_digest(e) for e in examples}
        changed = [i for i, digest in found.items() if splits.items.get(i) != digest]
        if changed:
            raise BenchError(
                f"{len(changed)} items of {name} are not those of the committed splits "
                f"({', '.join(changed[:3])} ...). Run `bench data verify`."
            )
        prints[name], digests[name] = fingerprint(examples), side_digest(found)
    leaks = [f for f in check_leaks(prints["train"], prints[side]) if f.leak]
    if leaks:
        raise BenchError(
            f"training and evaluation share content: {'; '.join(f.message for f in leaks)}. "
            "Run `bench data verify`."
        )
    return records.Splits(
        train=records.SplitInfo(name="train", n=len(train), digest=digests["train"]),
        eval=records.SplitInfo(name=side, n=len(evaluation), digest=digests[side]),
        overlap=overlap(leaks),
    )


def build_record(run: Run, rows: Mapping[str, Scores], *, started: str) -> records.RunRecord:
    """Return the record of a run whose rows are scored."""
    import torch

    spec = run.spec
    metrics = {name: scores.metrics for name, scores in rows.items()}
    kept = [name for name in ARTIFACTS if (run.folder / name).exists()]
    return records.RunRecord(
        run_id=run.id, suite=spec.suite.name, task=spec.task, method=spec.method.name,
        options={**run.options, "learning_rate": run.learning_rate},
        budget=spec.budget.name, seed=spec.seed, protocol_hash=run.protocol.hash,
        protocol=run.protocol.as_dict(), splits=run.split_info, metrics=metrics["samples"],
        rows=metrics, cost=_cost(run, score_seconds=rows["samples"].seconds),
        environment=records.environment(device=spec.device, threads=torch.get_num_threads()),
        artifacts={name: sha256_file(run.folder / name) for name in kept},
        attribution=str(getattr(run.dataset, "attribution", "")),
        started=started, finished=now(),
    )  # fmt: skip


def _cost(run: Run, *, score_seconds: float) -> records.Cost:
    trained, spent = read_json(run.work / "train.json"), read_json(run.work / "cost.json")
    total, trainable = count_parameters(run.denoiser)
    measured = {"denoiser": run.denoiser, "base": run.base, "data": run.eval_data}
    seconds = trained["seconds"] or None
    return records.Cost(
        parameters=total, parameters_trainable=trainable, parameters_dead=trained["dead"],
        macs=count_macs(**measured), macs_guided=count_macs(**measured, branches=2),
        macs_encode=count_encode_macs(**measured),
        train_seconds=seconds, train_images=trained["images"],
        train_images_per_second=trained["images"] / seconds if seconds else None,
        sample_seconds_per_image=spent["sample_seconds"] / spent["sample_images"],
        score_seconds=score_seconds, peak_memory_bytes=int(spent["peak_memory_bytes"]),
    )  # fmt: skip
