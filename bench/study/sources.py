"""Pictures of finished runs that may be compared with each other, and what they were made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench import registry
from bench.artifacts import mosaic, show_condition
from bench.picture import read_exact
from bench.record import RECORD_FILE, RunRecord, load_items, load_record
from bench.reporting.names import label, variant_details
from bench.sampling import load_images
from bench.types import BenchError, Example

MOSAIC = "work/samples.png"
_SAME = ("suite", "task", "protocol_hash", "seed")


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a study is made from.

    samples: by the method's name in tables, [N,H,W,3] uint8 each, in the order of ids; conditions:
    [N,C,H,W] float32 in [0, 1]; examples: the N items. The same initial noise for every method.
    """

    records: Mapping[str, RunRecord]
    ids: tuple[str, ...]
    samples: Mapping[str, np.ndarray]
    conditions: np.ndarray
    examples: tuple[Example, ...]

    @property
    def record(self) -> RunRecord:
        """The first run's record; suite, task, protocol, seed and attribution are everyone's."""
        return next(iter(self.records.values()))

    def picture(self, row: int) -> np.ndarray:
        """Return the condition of an item as a picture, [H,W,3] uint8."""
        return show_condition(self.conditions[row])


def load_source(folders: Sequence[Path]) -> Source:
    """Read two or more finished runs of one suite, task, protocol and seed.

    Records and the files they list are checked against their digests, samples against the picture of
    all samples that was scored, the data set against the protocol. BenchError otherwise.
    """
    if len(folders) < 2:
        raise BenchError(
            f"a study compares at least two runs, got {len(folders)}. Name two or more run folders."
        )
    folders = [f.parent if f.name == RECORD_FILE else f for f in folders]
    found = [load_record(folder) for folder in folders]
    _check_same(found, folders)
    items = [load_items(folder).ids for folder in folders]
    for folder, own in zip(folders, items, strict=True):
        if own != items[0]:
            raise BenchError(f"{folder} was evaluated on other items than {folders[0]}.")
    names = [label(r.method, *variant_details(r, found, marks={})) for r in found]
    examples = _examples(found[0], items[0])
    height, width = examples[0].image.shape[:2]
    samples = {n: _samples(f, items[0], size=(height, width)) for n, f in zip(names, folders, strict=True)}
    task = registry.recorded("task", found[0])
    return Source(
        records=dict(zip(names, found, strict=True)),
        ids=items[0],
        samples=samples,
        conditions=np.stack([task.condition(e) for e in examples]),
        examples=examples,
    )


def _check_same(found: Sequence[RunRecord], folders: Sequence[Path]) -> None:
    """Raise BenchError where runs may not be compared, or where two are one and the same."""
    first = found[0]
    for record, folder in zip(found, folders, strict=True):
        for name in _SAME:
            ours, theirs = getattr(first, name), getattr(record, name)
            if ours != theirs:
                raise BenchError(
                    f"{folders[0]} has {name} {_short(ours)} but {folder} has {_short(theirs)}. A study"
                    " compares samples of one suite, task, protocol and seed (the same noise)."
                )
    seen: dict[str, Path] = {}
    for record, folder in zip(found, folders, strict=True):
        if record.run_id in seen:
            raise BenchError(
                f"{seen[record.run_id]} and {folder} are the same run, {record.run_id}. Name each "
                "method once."
            )
        seen[record.run_id] = folder


def _short(value: object) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text


def _samples(folder: Path, ids: Sequence[str], *, size: tuple[int, int]) -> np.ndarray:
    """Read a run's samples and compare them with those that were scored."""
    if not (folder / "work" / "samples").is_dir():
        raise BenchError(
            f"{folder} holds no samples: they stay where a run was made, published results do not carry "
            "them. Make the run here with `bench run`, and name its folder."
        )
    images = load_images(folder / "work" / "samples", ids, size=size)
    if (folder / MOSAIC).exists():
        expected = mosaic(images)
        height, width = expected.shape[:2]
        page = read_exact(folder / MOSAIC, advice="Run again with --again.", size=(height, width))
        if not np.array_equal(page, expected):
            raise BenchError(
                f"the samples in {folder / 'work' / 'samples'} are not those that were scored "
                f"({folder / MOSAIC} differs). Run again with --again."
            )
    return images


def _examples(record: RunRecord, ids: Sequence[str]) -> tuple[Example, ...]:
    dataset = registry.recorded("suite", record).dataset()
    if dataset.digest != record.protocol.get("dataset"):
        raise BenchError(
            f"the data set of suite {record.suite} is not the one the runs were made on (its digest "
            f"is {dataset.digest[:12]}, the protocol's {str(record.protocol.get('dataset'))[:12]}). "
            "Run again with this version."
        )
    return tuple(dataset[i] for i in ids)
