"""What training leaves on disk: checkpoints to go on from, and weights, also taken over by equal trainings.

Checkpoints are one file, written atomically and read without unpickling code. Guidance, sampling steps and
draws move no weight, so runs that differ in these alone train once.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import content
from bench.ablations import ABLATIONS_FOLDER
from bench.base.weights import read_tensors
from bench.content import Amount, Code, Count, FromFile, Number, Text, Word, read_json, sha256_file
from bench.types import BenchError, raise_of_machine

ADAPTER = "work/adapter.safetensors"
KEPT = 2  # of a training's checkpoints: the newest, and one to fall back on where that is damaged
BEGUN, TRAINED = "work/run.json", "work/train.json"


@dataclass(frozen=True, kw_only=True)
class TrainResult(FromFile):
    """What training took, as work/train.json says it: seconds over all its starts, images, and the rest.

    dead: scalars without any gradient. curve: [(step, mean loss since the last point)]. starts: how it was
    carried out, an entry a start: "step" it went on from, "processes", and what else was not at its
    default. peak_memory_bytes: over all its starts, None where nothing was trained. sha256: of the weights
    it left. trained_in: the run that they were taken over from.
    """

    steps: Count
    images: Count
    seconds: Amount
    dead: Count
    curve: Sequence[tuple[Count, Number]]
    starts: Sequence[Mapping[str, Any]] = ()
    peak_memory_bytes: Count | None = None
    sha256: Code | None = None
    trained_in: Word | None = None


NOTHING = TrainResult(steps=0, images=0, seconds=0.0, dead=0, curve=())
"""Of a method that has nothing to train, and of weights that are evaluated as they are."""


def save_checkpoint(path: Path, *, step: int, keep: int = 1, **parts: Any) -> None:
    """Write the state_dict of every part and the step to `path`, replacing it atomically.

    keep: how many of the newest stay: `path`, before it `name.1.ckpt` and so on. BenchError where the disk
    refuses; the earlier checkpoint then stays.
    """
    _write(path, _state(step, parts), keep)


class Writer:
    """Writes checkpoints from copies in memory, one after another in a thread, while training goes on.

    path, keep: see `save_checkpoint`, whose errors come with the next call.
    """

    def __init__(self, path: Path, *, keep: int = KEPT) -> None:
        self._path, self._keep, self._pool = path, keep, ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def save(self, *, step: int, **parts: Any) -> None:
        """Copy the state of the parts as they are now, once the copy before is written, and write it."""
        import torch
        from torch.utils._pytree import tree_map_only

        self.wait()
        state = tree_map_only(torch.Tensor, lambda t: t.detach().to("cpu", copy=True), _state(step, parts))
        self._writing = self._pool.submit(_write, self._path, state, self._keep)

    def wait(self) -> None:
        """Wait until all is on disk."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """End the thread once it has written what it has."""
        self._pool.shutdown()


def _state(step: int, parts: Mapping[str, Any]) -> dict[str, Any]:
    return {"step": step, **{name: part.state_dict() for name, part in parts.items()}}


def _write(path: Path, state: Mapping[str, Any], keep: int) -> None:
    import torch

    with content.atomic_path(path) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # it hides the system's error, which comes again where more is written
            with open(temporary, "ab", buffering=0) as file:
                file.write(bytes(1 << 20))
            raise OSError(str(error)) from error
        for age in range(keep - 1, 0, -1):  # each grows one older, those beyond `keep` go
            if _aged(path, age - 1).exists():
                os.replace(_aged(path, age - 1), _aged(path, age))
        for old in set(_generations(path)) - {_aged(path, age) for age in range(keep)}:
            old.unlink()


def load_checkpoint(path: Path, *, say: Callable[[str], None] = lambda text: None, **parts: Any) -> int:
    """Load every part's state_dict from the newest whole checkpoint; return its step, 0 for none.

    say: told of a damaged one. BenchError where none that is there can be read, or one does not fit the
    parts.
    """
    import torch

    reason: Exception | None = None
    for found in _generations(path):
        try:
            with zipfile.ZipFile(found) as archive:
                damaged = archive.testzip()  # torch does not look at sums
            if damaged is not None:
                raise zipfile.BadZipFile(f"{damaged} does not match its checksum")
            state = dict(torch.load(found, map_location="cpu", weights_only=True))
            break
        except Exception as error:  # torch raises many kinds for a damaged file
            reason = reason or error
    else:
        if reason is None:
            return 0
        raise _unfit(path, reason) from reason
    if reason is not None:
        say(f"checkpoint {path} is damaged ({reason}); going on from {found.name}")
    try:
        for name, part in parts.items():
            part.load_state_dict(state[name])
    except Exception as error:
        raise _unfit(found, error) from error
    return int(state["step"])


def _unfit(path: Path, error: Exception) -> BenchError:
    return BenchError(f"checkpoint {path} cannot be resumed ({error}). Delete it to start again.")


def _aged(path: Path, age: int) -> Path:
    """Name the checkpoint `age` saves before the newest."""
    return path.with_name(f"{path.stem}.{age}{path.suffix}") if age else path


def _generations(path: Path) -> list[Path]:
    """Return the checkpoints that are there, newest first."""
    older = sorted(path.parent.glob(f"{path.stem}.[0-9]{path.suffix}"))
    return [place for place in (path, *older) if place.exists()]


def check_finite(what: str, value: float, *, step: int, steps: int, advice: str) -> None:
    """Raise BenchError if a loss or gradient norm is not finite."""
    if not math.isfinite(value):
        raise BenchError(f"the {what} is {value} at step {step} of {steps}. {advice}")


class Trainable:
    """The trainable parameters of a module, to be saved and loaded; frozen ones belong to the base."""

    def __init__(self, module: Any) -> None:
        self.parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}

    def state_dict(self) -> dict[str, Any]:
        """Return name -> tensor of every trainable parameter."""
        return {name: p.detach() for name, p in self.parameters.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy the tensors in; KeyError or RuntimeError where names or shapes differ."""
        import torch

        if set(state) != set(self.parameters):
            wrong = sorted(set(state) ^ set(self.parameters))
            raise KeyError(f"parameters differ: {', '.join(wrong[:5])}")
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state[name])


def save_weights(path: Path, trainable: Trainable) -> None:
    """Write the trainable parameters as safetensors, atomically."""
    from safetensors.torch import save

    tensors = {n: t.cpu().contiguous() for n, t in trainable.state_dict().items()}
    content.atomic_write(path, save(tensors))


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
    return path.exists() and (result.sha256 if result else None) in (None, sha256_file(path))


def take_over(folder: Path, *, key: str | None) -> TrainResult | None:
    """Return the training that a run took its weights from, earlier or now; None where it took none.

    key: of an equal training, looked for among the results and ablations beside; None takes none now.
    """
    result = trained(folder)
    if result is not None and result.trained_in and intact(folder):
        return result
    donor = find_trained(folder.parent, key) if key is not None else None
    if donor is None:
        return None
    try:
        result = replace(read_json(donor / TRAINED, of=TrainResult), trained_in=donor.name)
        weights = (donor / ADAPTER).read_bytes()
    except (BenchError, OSError):
        return None  # somebody makes it anew just now
    content.write_json(folder / TRAINED, vars(result))
    content.atomic_write(folder / ADAPTER, weights)
    return result if intact(folder) else None


def find_trained(results: Path, key: str) -> Path | None:
    """Return a run folder that still holds the weights of the training with this key, None for none."""
    beside = results.parent if results.name == ABLATIONS_FOLDER else results / ABLATIONS_FOLDER
    for path in (path for place in (results, beside) for path in sorted(place.glob(f"*/{BEGUN}"))):
        folder = path.parent.parent
        equal = read_json(path, of=dict[Text, Any]).get("training") == key
        if equal and trained(folder) is not None and intact(folder):
            return folder
    return None
