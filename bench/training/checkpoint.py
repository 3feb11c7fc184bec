"""Checkpoints of long work: one file, written atomically, read without unpickling code."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.content import atomic_path
from bench.types import BenchError

if TYPE_CHECKING:
    import torch


def save_checkpoint(path: Path, *, step: int, keep: int = 1, **parts: Any) -> None:
    """Write the state_dict of every part and the step to `path`, replacing it atomically.

    keep: how many of the newest stay: `path`, before it `name.1.ckpt` and so on. Raises BenchError
    where the folder cannot be written or the disk is full; the earlier checkpoint then stays.
    """
    import torch

    state = {"step": step, **{name: part.state_dict() for name, part in parts.items()}}
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
