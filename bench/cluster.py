"""Runs of a grid on a Ray cluster: each begins where enough cores and GPUs are free.

Ray only places and watches them: a run is the same process as anywhere else. Every node needs this
program and its Python, the working folder, results, base and data under the same paths.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import bench.child
from bench.child import command, handed_over
from bench.grid import Child
from bench.types import BenchError

LOCAL = "local"
_PASSED_ON = ("BENCH_", "BPS_BENCH_", "HF_", "OMP_NUM_THREADS")


@contextmanager
def placed(
    address: str | None, *, cpus: float, gpus: float
) -> Iterator[Callable[[Sequence[str]], Child] | None]:
    """Give what starts a run on a Ray cluster, None where no address is given.

    address: "auto" for the cluster that this machine belongs to, "local" for one started here and
    ended afterwards, else as Ray takes it. cpus, gpus: what each run takes of its node. BenchError
    without Ray, where no cluster answers, and where no node could ever hold a run.
    """
    if address is None:
        yield None
        return
    ray = _connected(address)
    try:
        _check_room(ray, cpus=cpus, gpus=gpus)
        ray.cloudpickle.register_pickle_by_value(bench.child)  # a node need not, and must not, look for it
        host = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0)(bench.child.Process)
        given = {k: v for k, v in os.environ.items() if k.startswith(_PASSED_ON)}
        asked = {"alone": False, "added": {**given, **handed_over()}}
        yield lambda words: Remote(host.remote(command(words), **asked, folder=str(Path.cwd())))
    finally:
        ray.shutdown()


class Remote:
    """A run on some node, or one that still waits for room."""

    def __init__(self, host: Any) -> None:
        """Take the handle of its host, which Ray may not have placed yet."""
        self._host = host
        self._code: int | None = None
        self._words = "without a word"
        self._asked: Any = None
        self._begun = False

    def poll(self) -> int | None:
        """Return the exit code, None while it waits or runs; 1 where its node was lost."""
        import ray

        if self._code is not None:
            return self._code
        self._asked = self._asked or self._host.poll.remote()
        if not ray.wait([self._asked], timeout=0)[0]:
            return None
        asked, self._asked = self._asked, None
        try:
            code = ray.get(asked)
            self._begun = True
            if code is not None:
                self._words = ray.get(self._host.last_words.remote())
        except ray.exceptions.RayError as error:
            code = 1
            self._words = f"its node was lost or could not begin it: {str(error).splitlines()[-1]}"
        return None if code is None else self._end(code)

    def send_signal(self, number: int) -> None:
        """Pass a signal on; one that waits for room has nothing to save and ends at once."""
        if self.poll() is None:
            if self._begun:
                self._host.send_signal.remote(number)
            else:
                self._end(128 + number)

    def last_words(self) -> str:
        """Return the last line it wrote."""
        return self._words

    def _end(self, code: int) -> int:
        import ray

        ray.kill(self._host)  # its share of the node is free again
        self._code = code
        return code


def _connected(address: str) -> ModuleType:
    """Connect, and keep our own signal handlers, which Ray would replace."""
    try:
        import ray
    except ImportError:
        raise BenchError("--ray needs Ray, which is not installed: pip install 'bps-bench[ray]'.") from None
    if address == LOCAL:  # its runs are this machine's work, not guests that others come before
        os.environ.setdefault("RAY_worker_niceness", "0")
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="warning")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise BenchError(
            f"no Ray cluster answers at '{address}' ({error}). Start one (ray start --head), or give "
            f"--ray {LOCAL} for one on this machine alone."
        ) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return ray


def _check_room(ray: ModuleType, *, cpus: float, gpus: float) -> None:
    """Raise BenchError where every node is too small: a run would wait for ever."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(n.get("CPU", 0) >= cpus and n.get("GPU", 0) >= gpus for n in nodes):
        sizes = sorted({(n.get("CPU", 0), n.get("GPU", 0)) for n in nodes})
        there = ", ".join(f"{c:g} cores and {g:g} GPUs" for c, g in sizes)
        raise BenchError(
            f"no node of the cluster has {cpus:g} cores and {gpus:g} GPUs for a run; there: {there}. "
            "Lower --cpus-per-run or --gpus-per-run."
        )
