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
from typing import TYPE_CHECKING, Any

from bench.ablations import ABLATIONS_FOLDER
from bench.base.weights import read_tensors
from bench.content import (
    Amount,
    Code,
    Count,
    FromFile,
    Number,
    Text,
    Word,
    atomic_path,
    atomic_write,
    read_json,
    sha256_file,
    write_json,
)
from bench.types import BenchError, raise_of_machine

if TYPE_CHECKING:
    import torch

ADAPTER = "work/adapter.safetensors"
BEGUN, TRAINED = "work/run.json", "work/train.json"


@dataclass(frozen=True, kw_only=True)
class TrainResult(FromFile):
    """What training took, as work/train.json says it: seconds over all its starts, images, and the rest.

    dead: scalars without any gradient. curve: [(step, mean loss since the last point)]. starts: how it was
    carried out, an entry a start: "step" it went on from, "processes", and what of Execution was not at its
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

    keep: how many of the newest stay: `path`, before it `name.1.ckpt` and so on. Raises BenchError
    where the folder cannot be written or the disk is full; the earlier checkpoint then stays.
    """
    _write(path, _state(step, parts), keep)


class Writer:
    """Writes checkpoints from copies in memory, one after another in a thread, while training goes on.

    path, keep: see `save_checkpoint`, whose errors come with the next call.
    """

    def __init__(self, path: Path, *, keep: int) -> None:
        self._path, self._keep = path, keep
        self._pool = ThreadPoolExecutor(1)
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

    with atomic_path(path) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # torch hides the system's error behind its own
            raise _reason(temporary) or OSError(str(error)) from error
        _rotate(path, keep)


def _reason(path: Path) -> OSError | None:
    """Return why the system takes no more of a file, None where it does."""
    try:
        with open(path, "ab", buffering=0) as file:
            file.write(bytes(1 << 20))
    except OSError as error:
        return error
    return None


def load_checkpoint(path: Path, *, say: Callable[[str], None] = lambda text: None, **parts: Any) -> int:
    """Load every part's state_dict from the newest whole checkpoint; return its step, 0 for none.

    say: told where a damaged one was passed over. Raises BenchError where none that is there can be
    read, and for one that does not fit the parts.
    """
    reason: Exception | None = None
    for candidate in _generations(path):
        try:
            state = _read(candidate)
        except Exception as error:  # torch raises many kinds for a damaged file
            reason = reason or error
            continue
        if reason is not None:
            say(f"checkpoint {path} is damaged ({reason}); going on from {candidate.name}")
        try:
            for name, part in parts.items():
                part.load_state_dict(state[name])
        except Exception as error:
            raise _unfit(candidate, error) from error
        return int(state["step"])
    if reason is not None:
        raise _unfit(path, reason) from reason
    return 0


def _unfit(path: Path, error: Exception) -> BenchError:
    return BenchError(f"checkpoint {path} cannot be resumed ({error}). Delete it to start again.")


def _earlier(path: Path, age: int) -> Path:
    """Name the checkpoint `age` saves before the newest."""
    return path if age == 0 else path.with_name(f"{path.stem}.{age}{path.suffix}")


def _generations(path: Path) -> list[Path]:
    """Return the checkpoints that are there, newest first."""
    older = path.parent.glob(f"{path.stem}.*{path.suffix}")
    ages = (p.name[len(path.stem) + 1 : -len(path.suffix)] for p in older)
    known = sorted(int(age) for age in ages if age.isdigit())
    return [p for p in (_earlier(path, age) for age in (0, *known)) if p.exists()]


def _rotate(path: Path, keep: int) -> None:
    """Make room for a newer checkpoint: each grows one older, those beyond `keep` go."""
    for age in range(keep - 1, 0, -1):
        if _earlier(path, age - 1).exists():
            os.replace(_earlier(path, age - 1), _earlier(path, age))
    for old in set(_generations(path)) - {_earlier(path, age) for age in range(keep)}:
        old.unlink()


def _read(path: Path) -> dict[str, Any]:
    """Read a checkpoint after checking every part of the archive: torch does not look at sums."""
    import torch

    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"{damaged} does not match its checksum")
    return dict(torch.load(path, map_location="cpu", weights_only=True))


def check_finite(value: torch.Tensor, step: int) -> None:
    """Raise BenchError if a loss or gradient norm is not finite."""
    number = float(value.detach())
    if not math.isfinite(number):
        raise BenchError(
            f"the training diverged at step {step} (a loss or gradient norm of {number}). Go on from "
            "the last checkpoint with a lower learning rate."
        )


class Trainable:
    """The trainable parameters of a module as something that can be saved and loaded.

    Frozen parameters belong to the base and are never written.
    """

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
