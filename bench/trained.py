"""Trainings that runs share: guidance and sampling steps move no weight, so equal ones are done once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import with_config
from typing_extensions import TypedDict

from bench.ablations import ABLATIONS_FOLDER
from bench.content import atomic_write, digest_json, read_json, sha256_file, write_json
from bench.record import RECORD_FILE, load_record
from bench.strict import Amount, Code, Count, Number, Text, Word, holding
from bench.training.loop import CHECKPOINT, TrainResult
from bench.types import BenchError

ADAPTER = "work/adapter.safetensors"
ADAPTER_DIGEST = "sha256"  # of the adapter, in train.json
LOCK = "work/lock"
ORIGIN = "trained_in"


@with_config(extra="allow")
class _Trained(TypedDict):
    steps: Count
    images: Count
    seconds: Amount
    dead: Count
    curve: Sequence[tuple[Count, Number]]
    starts: NotRequired[Sequence[Mapping[str, Any]]]
    trained_in: NotRequired[Word]
    peak_memory_bytes: NotRequired[Count | None]
    sha256: NotRequired[Code]


@with_config(extra="allow")
class _Begun(TypedDict):
    started: Text
    training: NotRequired[Text]


class _Sampled(TypedDict):
    seconds_per_image: Amount | None


Trained = Annotated[Mapping[str, Any], holding(_Trained)]
Begun = Annotated[Mapping[str, Any], holding(_Begun)]
Sampled = Annotated[Mapping[str, Any], holding(_Sampled)]
"""What train.json, run.json and sample.json hold, which a run leaves below work/."""
_SAME = ("suite", "task", "dataset", "splits", "base", "training", "task_version")
_RESAMPLE = {"guidance", "steps"}


def training_key(
    protocol: Mapping[str, Any],
    *,
    method: str,
    options: Mapping[str, Any],
    learning_rate: float,
    seed: int,
    device: str,
) -> str:
    """Return a digest of everything that enters a training; equal ones end with the same weights.

    protocol: as `Protocol.as_dict`, of which sampler, judges and evaluation do not count.
    """
    budget, data = protocol["budget"], protocol.get("data")
    images = budget.get("images_of", {}).get(method, budget["train_images"])
    return digest_json(
        {
            **{name: protocol[name] for name in _SAME},
            "images": images,
            "train_items": budget.get("train_items"),
            "method": method,
            "options": dict(options),
            "learning_rate": learning_rate,
            "seed": seed,
            "device": device,
            **({"data": dict(data)} if data else {}),
        }
    )


def take_over(folder: Path, *, key: str, changed: Collection[str]) -> TrainResult | None:
    """Put the weights of an equal training into a run's folder, None where it must train itself.

    key: of its training. changed: what the run sets apart from its suite; only for runs with a guidance
    or number of steps of their own: what other runs say they cost is their own cost. Looks in the run's
    results folder, among ablations and beside them.
    """
    found = _already(folder)
    if found is not None:
        return found
    if not _RESAMPLE & set(changed):
        return None
    if (folder / "work" / CHECKPOINT).exists():
        return None  # it has begun to train itself
    donor = find_trained(folder.parent, key)
    if donor is None:
        return None
    try:
        result = read_json(donor / "work" / "train.json", of=Trained)
        weights = (donor / ADAPTER).read_bytes()
    except (BenchError, OSError):
        return None  # somebody makes it anew just now
    write_json(folder / "work" / "train.json", {ORIGIN: donor.name, **result})
    atomic_write(folder / ADAPTER, weights)
    return _already(folder)


def find_trained(results: Path, key: str) -> Path | None:
    """Return a run folder that still holds the weights of the training with this key."""
    candidates = (f for f in _folders(results) if _holds(f) and _key_of(f) == key)
    return next((f for f in candidates if intact(f)), None)


def adapter_digest(folder: Path) -> str | None:
    """Return the SHA-256 of the weights that training left in a run folder; None in older folders."""
    path = folder / "work" / "train.json"
    return read_json(path, of=Trained).get(ADAPTER_DIGEST) if path.exists() else None


def intact(folder: Path) -> bool:
    """Tell whether the weights are there as training left them."""
    path, promised = folder / ADAPTER, adapter_digest(folder)
    return path.exists() and promised in (None, sha256_file(path))


def _already(folder: Path) -> TrainResult | None:
    path = folder / "work" / "train.json"
    values = read_json(path, of=Trained) if path.exists() else {}
    if ORIGIN not in values or not intact(folder):
        return None
    known = {field.name for field in fields(TrainResult)}  # older folders lack the newer ones
    return TrainResult(**{key: value for key, value in values.items() if key in known})


def _folders(results: Path) -> Iterator[Path]:
    places: Sequence[Path] = [results, results / ABLATIONS_FOLDER]
    if results.name == ABLATIONS_FOLDER:
        places = [results, results.parent]
    for place in places:
        yield from sorted(path.parent.parent for path in place.glob("*/work/train.json"))


def _holds(folder: Path) -> bool:
    """Tell whether the trained weights are there and, where a record names them, unchanged."""
    if not (folder / ADAPTER).exists():
        return False
    if not (folder / RECORD_FILE).exists():
        return True
    try:
        promised = load_record(folder, verify=False).artifacts.get(ADAPTER)
    except BenchError:
        return False
    return promised is None or sha256_file(folder / ADAPTER) == promised


def _key_of(folder: Path) -> str | None:
    """Return a run's training key: as it was begun with or, in older folders, from its record."""
    path = folder / "work" / "run.json"
    begun = read_json(path, of=dict[Text, Any]) if path.exists() else {}  # older ones say less
    if "training" in begun:
        return str(begun["training"])
    if not (folder / RECORD_FILE).exists():
        return None
    record = load_record(folder, verify=False)
    options = dict(record.options)
    try:
        return training_key(
            record.protocol,
            method=record.method,
            learning_rate=float(options.pop("learning_rate")),
            options=options,
            seed=record.seed,
            device=str(record.environment["device"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError):  # a record of something else
        return None
