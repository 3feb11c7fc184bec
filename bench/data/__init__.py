"""Data sets; work on them cut into pieces for processes that end with the one that asked."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

from bench.types import BenchError

_Piece = TypeVar("_Piece")
_Result = TypeVar("_Result")
_GPUS = "CUDA_VISIBLE_DEVICES"


def in_processes(
    work: Callable[[_Piece], _Result], pieces: Sequence[_Piece], *, jobs: int, gpus: Sequence[str] = ()
) -> Generator[_Result]:
    """Yield the result of each piece as it comes; closing leaves the rest.

    jobs: processes, 1 for this one. gpus: as CUDA_VISIBLE_DEVICES names them; each process sees one, in turn.
    BenchError where a process dies.
    """
    from concurrent.futures import ProcessPoolExecutor, as_completed  # not on import: help stays instant
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    if jobs == 1:
        yield from map(work, pieces)
        return
    context = get_context("spawn")
    turn = context.Value("i", 0)
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(tuple(gpus), turn))
    try:
        for future in as_completed([pool.submit(work, piece) for piece in pieces]):
            yield future.result()
    except BrokenProcessPool as error:
        remedy = "Finished pieces are kept: run the same command again, with fewer --jobs."
        raise BenchError(f"a process died (out of memory?). {remedy}") from error
    finally:
        pool.shutdown(cancel_futures=True)


def visible_gpus() -> list[str]:
    """Return the GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get(_GPUS)
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


def _begin(gpus: Sequence[str], turn: Any) -> None:
    """In a process: take a GPU, leave Ctrl-C to the parent, and end with it even if it is killed."""
    from multiprocessing import parent_process

    with turn.get_lock():
        number, turn.value = turn.value, turn.value + 1
    if gpus:  # CUDA has not been asked for yet
        os.environ[_GPUS] = gpus[number % len(gpus)]

    def watch() -> None:
        parent = parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()
