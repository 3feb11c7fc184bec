"""The record of a run: one JSON file that says what was done, on what, and what came out."""

from __future__ import annotations

import dataclasses
import functools
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from importlib import metadata
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

from bench.content import read_json, sha256_file, write_json
from bench.types import BenchError

SCHEMA_VERSION = 1
RECORD_FILE = "record.json"
ITEMS_FILE = "items.json"
MACHINE = ("processor", "device", "gpu", "threads", "platform")
"""What of an environment tells machines apart whose times do not compare."""
_WHERE_SAID = ("changes", "trained_in", "weights")
_PACKAGES = ("torch", "diffusers", "transformers", "numpy", "scipy", "open_clip_torch", "timm")


@dataclass(frozen=True, kw_only=True)
class MetricValue:
    """One number of a record with its 95% interval over items.

    value is None where it could not be measured (never 0); n: items; judge: the network that read
    the images, or "none"; scale: unit in words; better: "higher", "lower" or "none".
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    judge: str
    scale: str
    better: str


@dataclass(frozen=True, kw_only=True)
class SplitInfo:
    """How many items of a side were used, and the digest of their ids and contents."""

    name: str
    n: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The two sides of a run and how many evaluation items have a (near) twin in training."""

    train: SplitInfo
    eval: SplitInfo
    overlap: int


@dataclass(frozen=True, kw_only=True)
class LeakCheck:
    """What was looked for between evaluation items and one thing that could have been seen.

    status: "clean", "leak" or "unknown" (nothing to compare with; never to be read as clean). about:
    what the items were compared with, or why that could not be. items: evaluation items that a leak
    touches, None where unknown. findings: sentences, of leaks and of what is told but allowed.
    limits: likeness above which two pictures are one, by measure; nearest: the highest that passed.
    """

    status: str
    about: str
    items: int | None
    findings: Sequence[str]
    limits: Mapping[str, float]
    nearest: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Leaks:
    """The checks of a run's evaluation items: against its training side and the base's pretraining.

    items: evaluation items that any leak touches; above 0 only where the run was told to go on.
    """

    items: int
    training: LeakCheck
    pretraining: LeakCheck


@dataclass(frozen=True, kw_only=True)
class Outside:
    """Weights that a run was given from outside; what they were trained on is unknown.

    name: of their folder or file; sha256: of the file, or of all of files, which are read: name ->
    SHA-256. train_images: on which this run trained on, 0 where it only evaluates. condition: how the
    task's condition was changed to fit them, "" where not. facts: what the method says of them.
    """

    name: str
    sha256: str
    files: Mapping[str, str]
    train_images: int
    condition: str
    facts: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a run cost, measured.

    Parameters are numbers of scalars. macs: a denoiser call of one image with one text branch;
    macs_guided: with two, as under guidance; macs_encode: once an image. Times are seconds
    (score_seconds: of the method's own samples, features included); memory is the process's peak in
    bytes while training and sampling. None where a stage did not happen (text-only does not train).
    """

    parameters: int
    parameters_trainable: int
    parameters_dead: int
    macs: int
    macs_guided: int
    macs_encode: int
    train_seconds: float | None
    train_images: int
    train_images_per_second: float | None
    sample_seconds_per_image: float | None
    score_seconds: float | None
    peak_memory_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Everything a table needs, and everything needed to do the run again.

    rows: metrics by row name: "samples" (the method's own), "shuffled" (its samples under other
    items' conditions), "real training images", "autoencoder" (reconstructions of the targets).
    metrics is rows["samples"]. attribution: the sentence to print beside pictures.
    artifacts: path inside the run folder -> SHA-256. leaks: None in records made before pretraining
    was looked at. weights: those that came from outside, None where the run began with its own.
    changes: what was asked in place of the suite's and the budget's own: "guidance", "steps",
    "train_items". trained_in: the run whose equal training this one took over, None where it trained
    itself. The last three are left out of the file while they say nothing.
    """

    schema_version: int = SCHEMA_VERSION
    run_id: str
    suite: str
    task: str
    method: str
    options: Mapping[str, Any]
    budget: str
    seed: int
    protocol_hash: str
    protocol: Mapping[str, Any]
    splits: Splits
    metrics: Mapping[str, MetricValue]
    rows: Mapping[str, Mapping[str, MetricValue]] = field(default_factory=dict)
    cost: Cost
    environment: Mapping[str, Any]
    artifacts: Mapping[str, str]
    attribution: str
    started: str
    finished: str
    leaks: Leaks | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    trained_in: str | None = None
    weights: Outside | None = None

    @property
    def leaked(self) -> int:
        """How many evaluation items have been seen in training or pretraining, as far as is known."""
        return self.splits.overlap if self.leaks is None else self.leaks.items


def write_record(folder: Path, record: RunRecord) -> Path:
    """Write the record into its run folder atomically and return the file's path."""
    path = folder / RECORD_FILE
    values = dataclasses.asdict(record)
    write_json(path, {k: v for k, v in values.items() if v or k not in _WHERE_SAID})
    return path


def load_record(folder: Path, *, verify: bool = True) -> RunRecord:
    """Read a run folder's record; with `verify`, check every artifact that lies there.

    Artifacts that git does not carry (below work/) may be absent; what is there must match its
    digest. Raises BenchError for a record of another schema, missing keys or a changed artifact.
    """
    path = folder / RECORD_FILE
    raw = read_json(path)
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise BenchError(
            f"{path} has schema version {version}; this program reads {SCHEMA_VERSION}. Run it again."
        )
    record: RunRecord = _parse(RunRecord, raw, path)
    if record.metrics != record.rows.get("samples", record.metrics):
        raise BenchError(f"{path}: 'metrics' differs from the row 'samples'. Run again with --again.")
    if verify:
        _check_artifacts(folder, record.artifacts)
    return record


def find_records(folder: Path) -> list[Path]:
    """Return the run folders below `folder` that hold a record, sorted by name."""
    return sorted(p.parent for p in folder.glob(f"*/{RECORD_FILE}"))


def _check_artifacts(folder: Path, artifacts: Mapping[str, str]) -> None:
    for name, digest in artifacts.items():
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise BenchError(f"the record in {folder} names an artifact outside it: '{name}'.")
        if not path.exists():
            if name.startswith("work/"):
                continue
            raise BenchError(f"{path} is missing; the record lists it. Run again with --again.")
        if sha256_file(path) != digest:
            raise BenchError(
                f"{path} is not what the record says (SHA-256 differs). Restore it or run again with --again."
            )


def _parse(kind: Any, raw: Any, path: Path) -> Any:
    """Build a dataclass from JSON strictly: no unknown keys, none missing that has no default."""
    if not isinstance(raw, dict):
        raise BenchError(f"{path}: expected an object for {kind.__name__}, got {type(raw).__name__}.")
    known = dataclasses.fields(kind)
    needed = {f.name for f in known if f.default is MISSING and f.default_factory is MISSING}
    wrong = sorted((needed - set(raw)) | (set(raw) - {f.name for f in known}))
    if wrong:
        raise BenchError(f"{path}: {kind.__name__} has missing or unknown keys: {', '.join(wrong)}.")
    hints = _hints(kind)
    for key, value in raw.items():
        _check_scalar(hints[key], key, value, path)
    return kind(**{key: _value(kind, key, value, path) for key, value in raw.items()})


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _check_scalar(hint: Any, key: str, value: Any, path: Path) -> None:
    """Refuse a text where a number belongs, and the other way round; mappings are checked later."""
    allowed = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if not set(allowed) <= {str, int, float, type(None)}:
        return
    right = isinstance(value, allowed) or (float in allowed and isinstance(value, int))
    if not right or isinstance(value, bool):
        names = " or ".join("null" if a is type(None) else a.__name__ for a in allowed)
        raise BenchError(f"{path}: '{key}' must be {names}, got {value!r}.")


def _value(kind: Any, key: str, value: Any, path: Path) -> Any:
    if kind is Splits and key in {"train", "eval"}:
        return _parse(SplitInfo, value, path)
    if kind is RunRecord and key in {"splits", "cost"}:
        return _parse(Splits if key == "splits" else Cost, value, path)
    if kind is RunRecord and key == "leaks":
        return None if value is None else _parse(Leaks, value, path)
    if kind is RunRecord and key == "weights":
        return None if value is None else _parse(Outside, value, path)
    if kind is Leaks and key in {"training", "pretraining"}:
        return _parse(LeakCheck, value, path)
    nested = {"metrics", "rows", "artifacts", "options", "protocol", "environment", "changes"}
    if kind is RunRecord and key in nested and not isinstance(value, dict):
        raise BenchError(f"{path}: '{key}' must be an object, got {type(value).__name__}.")
    if kind is RunRecord and key == "metrics":
        return {name: _parse(MetricValue, m, path) for name, m in value.items()}
    if kind is RunRecord and key == "rows":
        _check_rows(value, path)
        return {
            row: {name: _parse(MetricValue, m, path) for name, m in metrics.items()}
            for row, metrics in value.items()
        }
    return value


def _check_rows(rows: Mapping[str, Any], path: Path) -> None:
    for name, metrics in rows.items():
        if not isinstance(metrics, dict):
            raise BenchError(f"{path}: row '{name}' must be an object of metrics.")


def load_items(folder: Path) -> dict[str, Any]:
    """Read per-item scores: {"ids": [...], "rows": {row: {metric: [value per id]}}}."""
    items = read_json(folder / ITEMS_FILE)
    if not isinstance(items, dict) or {"ids", "rows"} - set(items):
        raise BenchError(f"{folder / ITEMS_FILE} holds no per-item scores; run again with --again.")
    return items


def environment(*, device: str, threads: int) -> dict[str, Any]:
    """Say on what the run was made: versions, processor, device, threads, commit of the code.

    On "cuda" also the GPU's name, as "gpu".
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "processor": _processor(),
        "device": device,
        **_gpu(device),
        "threads": threads,
        "packages": dict(_versions(_PACKAGES)),
        "commit": _commit(),
    }


def _versions(names: Iterable[str]) -> Iterable[tuple[str, str]]:
    for name in names:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue


def device_words(machine: Mapping[str, Any]) -> str:
    """Return the device of a record's environment in words: "cpu", or the name of the GPU."""
    device = str(machine.get("device", "unknown"))
    return str(machine.get("gpu") or ("a GPU without a name" if device.startswith("cuda") else device))


def made_on(environment: Mapping[str, Any]) -> str:
    """Return a record's device and torch in words, as trained numbers depend on both."""
    packages = environment.get("packages")
    torch = packages.get("torch") if isinstance(packages, Mapping) else None
    return device_words(environment) + (f", torch {torch}" if torch else "")


def _gpu(device: str) -> dict[str, str]:
    """Return {"gpu": name} for a CUDA device, nothing for the CPU."""
    if not device.startswith("cuda"):
        return {}
    import torch

    return {"gpu": torch.cuda.get_device_name(device)}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), "unknown")


def _commit() -> str:
    """Return the commit of the running code, with "+changes" if the tree differs; else "unknown"."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return "unknown"
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10
        )
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--", "bench", "baselines", "bps", "cli.py"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head.stdout.strip() + ("+changes" if changed.stdout.strip() else "")
