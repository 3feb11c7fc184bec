"""Checkpoints of long work: one file, written atomically, read without unpickling code."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.content import atomic_path
from bench.types import BenchError

if TYPE_CHECKING:
    import torch


def save_checkpoint(path: Path, *, step: int, **parts: Any) -> None:
    """Write the state_dict of every part and the step to `path`, replacing it atomically.

    Raises BenchError where the folder cannot be written or the disk is full; the earlier
    checkpoint then stays.
    """
    import torch

    state = {"step": step, **{name: part.state_dict() for name, part in parts.items()}}
    with atomic_path(path) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # torch hides the system's error behind its own
            raise OSError(str(error)) from error


def load_checkpoint(path: Path, **parts: Any) -> int:
    """Load every part's state_dict from `path` and return its step; 0 if there is no file.

    Raises BenchError for a file that cannot be read or does not fit the parts.
    """
    import torch

    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
    except Exception as error:
        raise BenchError(
            f"checkpoint {path} cannot be resumed ({error}). Delete it to start again."
        ) from error
    return int(state["step"])


def check_finite(value: torch.Tensor, step: int) -> None:
    """Raise BenchError if a loss or gradient norm is not finite."""
    number = float(value.detach())
    if not math.isfinite(number):
        raise BenchError(
            f"the training diverged at step {step} (a loss or gradient norm of {number}). Go on from "
            "the last checkpoint with a lower learning rate."
        )


class Stopped(Exception):
    """Somebody asked the process to stop; the work so far is on disk. code: the exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"stopped with exit code {code}")
        self.code = code


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
