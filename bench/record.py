"""The record of a run: one JSON file that says what was done, on what, and what came out."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import PlainValidator, StringConstraints, with_config
from typing_extensions import TypedDict

from bench import content
from bench.child import PROGRAM
from bench.content import Amount, Count, FromFile, Name, Number, Text, Whole, Word, read_json, sha256_file
from bench.types import BenchError

SCHEMA_VERSION = 1
_LEAST_GROUPS = 2
RECORD_FILE = "record.json"
ITEMS_FILE = "items.json"
OWN_STYLES = "own styles"
"""The row of a record that tells how far samples of the base's own styles lie from the base's own."""
COMPARED = "compare"
"""The suite of records that `bench compare --name` writes: a folder's scores, nothing trained here."""
SUBMITTED = "submitted by"
"""Among the options of a record that others made."""
MACHINE = ("processor", "device", "gpu", "threads", "platform")
"""What of an environment tells machines apart whose times do not compare."""
_REMEDY = "Restore it or run again with --again."
_WHERE_SAID = ("title", "changes", "config", "draws", "trained_in", "weights")
_ROOT = PROGRAM.parent
_OWN = ("bench", "bps", "baselines")
_PACKAGES = ("bps-bench", "torch", "diffusers", "transformers", "numpy", "scipy", "open_clip_torch", "timm")


@dataclass(frozen=True, kw_only=True)
class MetricValue(FromFile):
    """One number of a record with its 95% interval over items.

    value is None where it could not be measured (never 0); n: items; judge: the network that read
    the images, or "none"; scale: unit in words; better: "higher", "lower" or "none".
    """

    value: Number | None
    low: Number | None
    high: Number | None
    n: Count
    judge: Text
    scale: Text
    better: Annotated[str, StringConstraints(pattern="^(higher|lower|none)$")]


@dataclass(frozen=True, kw_only=True)
class SplitInfo(FromFile):
    """How many items of a side were used, and the digest of their ids and contents."""

    name: Text
    n: Count
    digest: Text


@dataclass(frozen=True, kw_only=True)
class Splits(FromFile):
    """The two sides of a run and how many evaluation items have a (near) twin in training."""

    train: SplitInfo
    eval: SplitInfo
    overlap: Count


@dataclass(frozen=True, kw_only=True)
class LeakCheck(FromFile):
    """What was looked for between evaluation items and one thing that could have been seen.

    status: "clean", "leak" or "unknown" (nothing to compare with; never to be read as clean). about:
    what the items were compared with, or why that could not be. items: evaluation items that a leak
    touches, None where unknown. findings: sentences, of leaks and of what is told but allowed.
    limits: likeness above which two pictures are one, by measure; nearest: the highest that passed.
    """

    status: Literal["clean", "leak", "unknown"]
    about: Text
    items: Count | None
    findings: Sequence[Text]
    limits: Mapping[Text, Number]
    nearest: Mapping[Text, Number]


@dataclass(frozen=True, kw_only=True)
class Leaks(FromFile):
    """The checks of a run's evaluation items: against its training side and the base's pretraining.

    items: evaluation items that any leak touches; above 0 only where the run was told to go on.
    """

    items: Count
    training: LeakCheck
    pretraining: LeakCheck


@dataclass(frozen=True, kw_only=True)
class Outside(FromFile):
    """Weights that a run was given from outside; what they were trained on is unknown.

    name: of their folder or file; sha256: of the file, or of all of files, which are read: name ->
    SHA-256. train_images: on which this run trained on, 0 where it only evaluates. condition: how the
    task's condition was changed to fit them, "" where not. facts: what the method says of them.
    """

    name: Text
    sha256: Text
    files: Mapping[Text, Text]
    train_images: Count
    condition: Text
    facts: Mapping[Text, Text]


@dataclass(frozen=True, kw_only=True)
class Cost(FromFile):
    """What a run cost, measured: scalars, multiply-adds, seconds, bytes; None where a stage did not happen.

    macs: a denoiser call of one image with one text branch; macs_guided: with two; macs_encode: once an
    image; macs_train: an image of training, both passes (older records do not say). score_seconds: of the
    method's own samples, features included. peak_memory_bytes: while training and sampling.
    """

    parameters: Count
    parameters_trainable: Count
    parameters_dead: Count
    macs: Count
    macs_guided: Count
    macs_encode: Count
    train_seconds: Amount | None
    train_images: Count
    train_images_per_second: Amount | None
    sample_seconds_per_image: Amount | None
    score_seconds: Amount | None
    peak_memory_bytes: Count | None
    macs_train: Count | None = None


# What is read out of a record's open fields; the rest of these is only compared and shown.


@with_config(extra="allow")
class _Sampler(TypedDict, total=False):
    guidance: Number
    steps: Count


@with_config(extra="forbid")
class _Changes(TypedDict, total=False):
    guidance: Number
    steps: Count
    draws: Count
    train_items: Count
    train_subset: Count
    train_images: Count
    train_batch: Count
    limit: Count


@with_config(extra="allow")
class _Protocol(TypedDict, total=False):
    eval_side: Text
    budget: Mapping[str, Any]
    sampler: _Sampler


@with_config(extra="allow")
class _Environment(TypedDict, total=False):
    device: Text
    gpu: Text


@dataclass(frozen=True, kw_only=True)
class RunRecord(FromFile):
    """Everything a table needs, and everything needed to do the run again.

    rows: metrics by row name: "samples" (the method's own, as `metrics`), "shuffled" (its samples under other
    items' conditions), "blank" (under an empty one), "real training images", "autoencoder"
    (reconstructions of the targets). attribution: the sentence to print beside pictures. artifacts: path
    inside the run folder -> SHA-256. leaks: None in records made before pretraining was looked at. Left out
    of the file while they say nothing: changes, what was asked in place of the suite's and the budget's own;
    trained_in, the run whose equal training this one took over; weights that came from outside; config, what
    was asked, as `bench run --config` takes it; draws, the values at each, by row and metric, of which `rows`
    hold the means; title, of a method that this project does not bring.
    """

    schema_version: Whole = SCHEMA_VERSION
    run_id: Word
    suite: Word
    task: Word
    method: Word
    options: Mapping[Text, Any]
    budget: Word
    seed: Count
    protocol_hash: Text
    protocol: Annotated[Mapping[str, Any], content.holding(_Protocol)]
    splits: Splits
    metrics: Mapping[Name, MetricValue]
    rows: Mapping[Name, Mapping[Name, MetricValue]] = field(default_factory=dict)
    cost: Cost
    environment: Annotated[Mapping[str, Any], content.holding(_Environment)]
    artifacts: Mapping[Text, Text]
    attribution: Text
    started: Text
    finished: Text
    leaks: Leaks | None = None
    changes: Annotated[Mapping[str, Any], content.holding(_Changes)] = field(default_factory=dict)
    trained_in: Word | None = None
    weights: Outside | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    draws: Mapping[Name, Mapping[Name, Sequence[Number | None]]] = field(default_factory=dict)
    title: Text = ""

    @property
    def leaked(self) -> int:
        """How many evaluation items have been seen in training or pretraining, as far as is known."""
        return self.splits.overlap if self.leaks is None else self.leaks.items


def _scores(values: Any) -> np.ndarray:
    if isinstance(values, np.ndarray) and not (np.abs(values) >= content.LARGEST).any():
        return values
    if not isinstance(values, list) or not set(map(type, values)) <= {int, float, type(None)}:
        raise ValueError("a list of numbers and nulls is needed")
    return np.asarray(values, dtype=np.float64)


_Scores = Annotated[np.ndarray, PlainValidator(_scores)]


@dataclass(frozen=True, kw_only=True)
class ItemScores(FromFile):
    """Scores of each evaluation item: rows[row][metric] is [N] float64, NaN where missing.

    groups: the number of each item's group. replicates[row][metric] is [G] float64, the jackknife
    replicates of a metric of the whole set; curve: the training curve, (step, loss); layer_weights: those
    trained along, (slot, at the start, trained). All empty in files that hold none.
    """

    ids: tuple[Name, ...]
    groups: tuple[Count, ...] = ()
    rows: Mapping[Name, Mapping[Name, _Scores]]
    replicates: Mapping[Name, Mapping[Name, _Scores]] = field(default_factory=dict)
    curve: tuple[tuple[Count, Number], ...] = ()
    layer_weights: tuple[tuple[Count, Number, Number], ...] = ()

    def __post_init__(self) -> None:
        n = len(self.ids)
        if len(set(self.ids)) != n:
            raise BenchError("an item is named twice")
        if self.groups and len(self.groups) != n:
            raise BenchError(f"there are {len(self.groups)} groups for {n} items")
        for metric, scores in (found for of in self.rows.values() for found in of.items()):
            if len(scores) != n:
                raise BenchError(f"'{metric}' has {len(scores)} scores for {n} items")
        for metric, scores in (found for of in self.replicates.values() for found in of.items()):
            if len(scores) < _LEAST_GROUPS or not np.isfinite(scores).all():
                raise BenchError(f"'{metric}' has fewer than {_LEAST_GROUPS} replicates or one is missing")


def write_record(folder: Path, record: RunRecord) -> Path:
    """Write the record into its run folder atomically and return the file's path."""
    content.write_json(folder / RECORD_FILE, record_values(record))
    return folder / RECORD_FILE


def record_values(record: RunRecord) -> dict[str, Any]:
    """Return a record as its file says it."""
    return {k: v for k, v in dataclasses.asdict(record).items() if v or k not in _WHERE_SAID}


def load_record(folder: Path, *, verify: bool = True) -> RunRecord:
    """Read a run folder's record; with `verify`, check every artifact that lies there.

    Pictures and what lies below work/ may be absent, as packs do not carry them. BenchError for a record of
    another schema, missing keys or a changed artifact.
    """
    path = folder / RECORD_FILE
    record = record_of(read_json(path, remedy=_REMEDY), path)
    for name, digest in record.artifacts.items() if verify else ():
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise BenchError(f"the record in {folder} names an artifact outside it: '{name}'.")
        if path.exists() and sha256_file(path) != digest:
            raise BenchError(f"{path} is not what the record says (SHA-256 differs). {_REMEDY}")
        if name == ITEMS_FILE and not path.exists():
            raise BenchError(f"{path} is missing; the record lists it. Run again with --again.")
    return record


def record_of(raw: Any, path: object) -> RunRecord:
    """Build a record from parsed JSON; path: where it came from. BenchError as `load_record`."""
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise BenchError(f"{path} has schema version {version}, not {SCHEMA_VERSION}. Run it again.")
    record: RunRecord = content.validated(raw, RunRecord, path, remedy=_REMEDY)
    if record.metrics != record.rows.get("samples", record.metrics):
        raise BenchError(f"{path}: 'metrics' differs from the row 'samples'. Run again with --again.")
    return record


def find_records(folder: Path) -> list[Path]:
    """Return the run folders below `folder` that hold a record, sorted by name."""
    return sorted(p.parent for p in folder.glob(f"*/{RECORD_FILE}"))


def load_items(folder: Path) -> ItemScores:
    """Read a run folder's scores of each item; BenchError for a file that holds none."""
    found: ItemScores = read_json(folder / ITEMS_FILE, of=ItemScores, remedy=_REMEDY)
    return found


def environment(*, device: str, threads: int) -> dict[str, Any]:
    """Say on what the run was made: versions, processor, device, threads, commit and digest of the code."""
    here = {"python": platform.python_version(), "platform": platform.platform(terse=True)}
    here |= {"processor": _processor(), "device": device}
    if device.startswith("cuda"):
        import torch

        here["gpu"] = torch.cuda.get_device_name(device)
    versions = dict[str, str]()
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    code = {"commit": _commit(), "sources": digest_sources()}
    return {**here, "threads": threads, "packages": versions, **code}


def digest_sources(root: Path = _ROOT) -> str:
    """Return one SHA-256 over the program's Python files, installed or in a checkout."""
    found = [root / "cli.py", *(path for name in _OWN for path in (root / name).rglob("*.py"))]
    return content.digest_json({p.relative_to(root).as_posix(): sha256_file(p) for p in found})


def device_words(machine: Mapping[str, Any]) -> str:
    """Return the device of a record's environment in words: "cpu", or the name of the GPU."""
    device = str(machine.get("device", "unknown"))
    return str(machine.get("gpu") or ("a GPU without a name" if device.startswith("cuda") else device))


def made_on(environment: Mapping[str, Any]) -> str:
    """Return a record's device and torch in words, as trained numbers depend on both."""
    packages = environment.get("packages")
    torch = packages.get("torch") if isinstance(packages, Mapping) else None
    return device_words(environment) + (f", torch {torch}" if torch else "")


def _processor() -> str:
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), "unknown")
    return platform.processor() or platform.machine()


def _commit() -> str:
    """Return the code's commit as git or pip (PEP 610) knows it, with "+changes"; else "unknown"."""

    def git(*argv: str) -> str:
        done = subprocess.run(["git", *argv], cwd=_ROOT, capture_output=True, text=True, timeout=10)
        return done.stdout.strip()

    if (_ROOT / ".git").exists():
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            changed = git("status", "--porcelain", "--", *_OWN, "cli.py")
            return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    with contextlib.suppress(metadata.PackageNotFoundError, ValueError, KeyError, TypeError):
        noted = metadata.distribution("bps-bench").read_text("direct_url.json")
        return str(json.loads(noted or "{}")["vcs_info"]["commit_id"])
    return "unknown"
