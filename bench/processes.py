"""Several processes of one run, as `accelerate launch` or `torchrun` start them.

Each holds a copy of the weights and does its share of the same work; the main one writes records,
checkpoints and tables. A run in one process meets none of this: `ALONE` answers for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from bench.types import BenchError, unknown

_PATIENCE = timedelta(days=7)  # others wait while the main process encodes or scores
_BROKEN = ("gloo", "NCCL", "ProcessGroup", "Connection closed", "Connection reset")


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Which of how many processes this one is. state: accelerate's PartialState, None if alone."""

    index: int = 0
    count: int = 1
    state: Any = None

    @property
    def main(self) -> bool:
        """Whether this process writes what is written once."""
        return self.index == 0

    def wait(self) -> None:
        """Wait until every process has come here."""
        if self.state is not None:
            with _told():
                self.state.wait_for_everyone()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the main process go through the block before the others, which find its files.

        An error of the main process ends it, and with it the launcher's other processes.
        """
        if not self.main:
            self.wait()
        yield
        if self.main:
            self.wait()

    def sum(self, *numbers: float) -> list[float]:
        """Return each number summed over the processes, the same everywhere."""
        return self._reduced(numbers, "SUM")

    def largest(self, *numbers: float) -> list[float]:
        """Return the largest of each number over the processes, the same everywhere."""
        return self._reduced(numbers, "MAX")

    def _reduced(self, numbers: tuple[float, ...], how: str) -> list[float]:
        if self.state is None:
            return list(numbers)
        import torch

        values = torch.tensor(numbers, dtype=torch.float64, device=self.state.device)
        with _told():
            torch.distributed.all_reduce(values, op=getattr(torch.distributed.ReduceOp, how))
        return values.tolist()


ALONE = Processes()


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


def join(device: str) -> Processes:
    """Join the processes of this launch and take this one's GPU; `ALONE` where there is one.

    device: "cpu" (talking through gloo) or "cuda" (NCCL; "cuda" then means this process's GPU).
    Raises BenchError where `accelerate launch --cpu` was asked for several and started one.
    """
    if launched() == 1:
        _check_launcher()
        return ALONE
    from accelerate import PartialState

    for variable in ("RANK", "LOCAL_RANK"):
        _number(variable, 0)
    with _told():
        state = PartialState(cpu=device == "cpu", timeout=_PATIENCE)
    return Processes(index=state.process_index, count=state.num_processes, state=state)


def _check_launcher() -> None:
    """accelerate 1.15 starts a single process for --cpu, whatever --num_processes says."""
    simple = os.environ.get("ACCELERATE_USE_CPU") == "True" and "WORLD_SIZE" not in os.environ
    if simple and "MASTER_ADDR" in os.environ:
        raise BenchError(
            "accelerate launch --cpu started one process only; it leaves several to MPI. Use "
            "`accelerate launch --multi_gpu --num_processes N --no_python bench run --device cpu ...` or "
            "`torchrun --nproc-per-node N --no-python bench run --device cpu ...`."
        )


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

    broken = isinstance(error, torch.distributed.DistError)
    return broken or (isinstance(error, RuntimeError) and any(word in str(error) for word in _BROKEN))


@contextmanager
def _told() -> Iterator[None]:
    """Turn a broken connection into a message: the process that failed has said why."""
    try:
        yield
    except RuntimeError as error:
        if not partner_ended(error):
            raise
        raise BenchError(
            "another process of this run ended; its own message says why. Finished work is kept: "
            f"start the same command again. ({str(error).splitlines()[0]})"
        ) from error
