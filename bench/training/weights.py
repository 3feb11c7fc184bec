"""Trained weights in the folders of runs: written, checked, and taken over by equal trainings.

Guidance and sampling steps move no weight, so runs that differ in these alone train once.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.ablations import ABLATIONS_FOLDER
from bench.base.weights import read_tensors
from bench.content import Text, atomic_write, read_json, sha256_file, write_json
from bench.training.checkpoint import Trainable
from bench.training.loop import TrainResult
from bench.types import BenchError, raise_of_machine

ADAPTER = "work/adapter.safetensors"
BEGUN, TRAINED = "work/run.json", "work/train.json"


def save_weights(path: Path, trainable: Trainable) -> None:
    """Write the trainable parameters as safetensors, atomically."""
    from safetensors.torch import save

    tensors = {n: t.cpu().contiguous() for n, t in trainable.state_dict().items()}
    atomic_write(path, save(tensors))


def load_weights(path: Path, trainable: Trainable, *, sha256: str | None = None) -> None:
    """Load parameters written by `save_weights`; BenchError if they do not fit or differ from a digest."""
    if sha256 is not None and sha256_file(path) != sha256:
        raise BenchError(
            f"{path} is not what training wrote (its SHA-256 differs from train.json's). Run `bench "
            "train` again: it writes the weights of its last checkpoint."
        )
    try:
        trainable.load_state_dict(read_tensors(path))
    except Exception as error:
        raise_of_machine(error)
        raise BenchError(
            f"weights {path} cannot be loaded ({error}). Delete the run folder and train again."
        ) from error


def trained(folder: Path) -> TrainResult | None:
    """Return what training left in a run's folder says of it, None where it has not finished."""
    path = folder / TRAINED
    return read_json(path, of=TrainResult) if path.exists() else None


def intact(folder: Path) -> bool:
    """Tell whether the weights are there as training left them; earlier versions kept no digest."""
    path, result = folder / ADAPTER, trained(folder)
    promised = result.sha256 if result else None
    return path.exists() and promised in (None, sha256_file(path))


def taken_over(folder: Path) -> TrainResult | None:
    """Return the training that a run took its weights from, None where it took none."""
    result = trained(folder)
    return result if result and result.trained_in and intact(folder) else None


def take_over(folder: Path, *, key: str) -> TrainResult | None:
    """Put the weights of an equal training into a run's folder; None where there is none.

    key: of the training. Looks in the run's results folder, among ablations and beside them.
    """
    donor = find_trained(folder.parent, key)
    if donor is None:
        return None
    try:
        result = replace(read_json(donor / TRAINED, of=TrainResult), trained_in=donor.name)
        weights = (donor / ADAPTER).read_bytes()
    except (BenchError, OSError):
        return None  # somebody makes it anew just now
    write_json(folder / TRAINED, vars(result))
    atomic_write(folder / ADAPTER, weights)
    return taken_over(folder)


def find_trained(results: Path, key: str) -> Path | None:
    """Return a run folder that still holds the weights of the training with this key, None for none."""
    beside = results.parent if results.name == ABLATIONS_FOLDER else results / ABLATIONS_FOLDER
    begun = [path for place in (results, beside) for path in sorted(place.glob(f"*/{BEGUN}"))]
    for path in begun:
        folder = path.parent.parent
        equal = read_json(path, of=dict[Text, Any]).get("training") == key
        if equal and trained(folder) is not None and intact(folder):
            return folder
    return None
