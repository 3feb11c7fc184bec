"""Several processes of one run, as `accelerate launch` or `torchrun` start them.

Each holds a copy of the weights and does its share of the same work; the main one writes records,
checkpoints and tables. Who a process is among them is accelerate's PartialState.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np

from bench.types import BenchError, unknown

if TYPE_CHECKING:
    from accelerate import PartialState

PARTNER_ENDED = (
    "another process of this run ended; its own message says why. Finished work is kept: start the same "
    "command again."
)
_PATIENCE = timedelta(days=7)  # others wait while the main process encodes or scores
_BROKEN = ("gloo", "NCCL", "ProcessGroup", "Connection closed", "Connection reset")


def launched() -> int:
    """Return how many processes the launcher started, by its environment; 1 without a launcher."""
    return max(1, _number("WORLD_SIZE", 1))


def speaks() -> bool:
    """Whether this process is the one that talks to the user."""
    return launched() == 1 or _number("RANK", 0) == 0


def _number(variable: str, default: int) -> int:
    """Return what a launcher says in an environment variable; BenchError where it is no such number."""
    text = os.environ.get(variable, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise BenchError(
            f"{variable} is '{text}' in the environment; a launcher sets it to a number. Unset it, or start "
            "the processes with accelerate launch or torchrun."
        )
    return int(text)


def find_device(name: str) -> str:
    """Return "cpu" or "cuda" for auto, cpu or cuda; BenchError where there is no such device."""
    if name == "cpu":
        return name
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cuda":
        raise unknown("device", name, ["auto", "cpu", "cuda"])
    if not torch.cuda.is_available():
        raise BenchError("--device cuda: torch sees no CUDA device here. Use --device cpu.")
    return name


def join(device: str) -> PartialState:
    """Join the processes of this launch, once, and return who this one is among them, also alone.

    device: "cpu" (talking through gloo) or "cuda" (NCCL; "cuda" then means this process's GPU).
    Raises BenchError where `accelerate launch --cpu` was asked for several and started one.
    """
    from accelerate import PartialState
    from accelerate.state import AcceleratorState

    if launched() == 1:
        _check_launcher()
        AcceleratorState._reset_state(reset_partial_state=True)  # of earlier work, on another device
        return PartialState(cpu=device == "cpu")
    for variable in ("RANK", "LOCAL_RANK"):
        _number(variable, 0)
    return PartialState(cpu=device == "cpu", timeout=_PATIENCE)


def _check_launcher() -> None:
    """accelerate 1.15 starts a single process for --cpu, whatever --num_processes says."""
    simple = os.environ.get("ACCELERATE_USE_CPU") == "True" and "WORLD_SIZE" not in os.environ
    if simple and "MASTER_ADDR" in os.environ:
        raise BenchError(
            "accelerate launch --cpu started one process only; it leaves several to MPI. Use "
            "`accelerate launch --multi_gpu --num_processes N --no_python bench run --device cpu ...` or "
            "`torchrun --nproc-per-node N --no-python bench run --device cpu ...`."
        )


def gathered(processes: PartialState, numbers: Sequence[float]) -> np.ndarray:
    """Return the n numbers of each of P processes, [P,n] float64, the same everywhere."""
    if processes.num_processes == 1:
        return np.array([numbers], dtype=np.float64)
    import torch
    from accelerate.utils import gather

    return gather(torch.tensor([numbers], dtype=torch.float64, device=processes.device)).cpu().numpy()


def leave() -> None:
    """Part from the other processes at the end of a command that went well.

    One that failed must not wait for them: the launcher ends the others when it is gone.
    """
    if launched() == 1:
        return
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def partner_ended(error: BaseException) -> bool:
    """Whether an error says that another process of this launch is gone."""
    import torch

    if launched() == 1 or not isinstance(error, RuntimeError):
        return False
    broken = isinstance(error, torch.distributed.DistError)
    return broken or any(word in str(error) for word in _BROKEN)
