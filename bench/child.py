"""This program in another process, here or on a node of a Ray cluster, which ends with the one that asked.

Here and without a GPU that is a fork of a process that has imported what runs need, which takes seconds.

Imports nothing of this project at first: a node is handed `on_node` as a value, since the working folder,
which comes first there, may hold another project's `bench/`.
"""

from __future__ import annotations

import importlib.util
import math
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

PROGRAM = Path(__file__).resolve().parent.parent / "cli.py"
LOCAL = "local"
LOOK_SECONDS = 0.1
STOPPED = (130, 143)
_AGAIN_SECONDS = 5.0
_UNKNOWN = 255  # multiprocessing's code of a process whose end it cannot know
_GRACE_SECONDS = 30.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_BLOCKED = (*_SIGNALS, signal.SIGHUP)  # in what forks
_ENDS = (0, *STOPPED, *(-number for number in _SIGNALS))  # of a process that went well or was asked to end
_CHILD = "BPS_BENCH_CHILD"
_TO_NODES = ("BENCH_", "BPS_BENCH_", "HF_", "OMP_NUM_THREADS")
_HEAVY = (
    "torch",
    "accelerate",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.schedulers.scheduling_dpmsolver_multistep",
    "transformers.models.clip.modeling_clip",
)
"""What nearly every run imports, none of it this project's: the working folder may hold another `bench/`."""
_THREADS, _BLAS, _SAFE = "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PYTHONSAFEPATH"
_forked = False  # whether this process is a fork of one that has imported _HEAVY


class _Told:
    """What a process that was started here says; kept: where its messages are kept, None for the terminal."""

    kept: IO[bytes] | None

    def last_line(self) -> str:
        """Return the last line it wrote, or "see above" where it wrote to the terminal."""
        if self.kept is None:
            return "see above"
        self.kept.seek(0)
        lines = self.kept.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "without a word"


class Process(_Told, subprocess.Popen[bytes]):
    """A command in a new process that only its parent signals; what it prints goes nowhere.

    alone: its messages go to standard error; else they are kept aside. added: to this program's environment.
    answers: what it prints is what this program prints.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        alone: bool,
        added: Mapping[str, str],
        folder: str | None = None,
        answers: bool = False,
    ) -> None:
        self.kept = None if alone else tempfile.TemporaryFile()
        super().__init__(
            argv,
            stdin=subprocess.PIPE,  # held open for as long as this process lives, see `end_with_parent`
            stdout=None if answers else subprocess.DEVNULL,
            stderr=self.kept,
            env={**os.environ, **added},
            cwd=folder,
            start_new_session=True,
        )


class Fork(_Told):
    """This program's command line in a fork; see `Process` for how it begins and what it answers to."""

    def __init__(
        self, arguments: Sequence[str], *, alone: bool, added: Mapping[str, str], answers: bool = False
    ) -> None:
        self.kept = None if alone else tempfile.NamedTemporaryFile()
        place = self.kept.name if self.kept else None
        self._process = _forking().Process(
            target=_as_program, args=(tuple(arguments), {**os.environ, **added}, place, answers), daemon=True
        )
        self._process.start()

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid or 0

    def poll(self) -> int | None:
        """Return the exit code, the number of a signal that ended it below 0, None while it runs.

        Where what forked it is lost, so is its code, 255 then, but it may still run.
        """
        code = self._process.exitcode
        return None if code == _UNKNOWN and Path(f"/proc/{self.pid}").exists() else code

    returncode = property(poll)

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to save its work and end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it by force."""
        self.send_signal(signal.SIGKILL)


def can_fork(device: str) -> bool:
    """Whether a run's process may be a fork, which neither CUDA nor macOS's own libraries survive.

    What forks has a socket in the folder of temporary files, whose path may have 107 characters in all.
    """
    return device == "cpu" and sys.platform == "linux" and len(os.fsencode(tempfile.gettempdir())) < 70


def expect_forks(device: str) -> None:
    """Begin to import what forks need, beside what this process does, where a run is likely to be forked."""
    likely = device == "cpu" or not any(Path("/dev").glob("nvidia[0-9]*"))
    if likely and can_fork("cpu") and "WORLD_SIZE" not in os.environ:
        _forking()


def _forking() -> Any:
    """Return what forks, from this process where it is a fork, else from one that is started once.

    Its BLAS has one thread, if the user has not said otherwise: beside others one with more stands still.
    """
    import multiprocessing  # which would slow every help down
    from multiprocessing import forkserver, resource_tracker

    if _forked:
        return multiprocessing.get_context("fork")
    set_there = {_SAFE: "1", _BLAS: os.environ.get(_BLAS) or os.environ.get(_THREADS) or "1"}
    before = {name: os.environ.get(name) for name in set_there}
    os.environ.update(set_there)
    resource_tracker.ensure_running()  # whose own start unblocks signals
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)  # a stop of the group must not end it
    try:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(_HEAVY))
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)
        for name, value in before.items():
            os.environ.pop(name)
            os.environ.update({} if value is None else {name: value})
    return context


def _as_program(arguments: Sequence[str], given: Mapping[str, str], kept: str | None, answers: bool) -> None:
    """In a fork: be this program's command line in an environment, as a process of its own would."""
    import multiprocessing
    import runpy

    global _forked
    _forked = True
    multiprocessing.current_process().daemon = False  # which may have processes of its own
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _BLOCKED)  # what came since comes now
    os.environ.clear()  # that of when the forked process began
    os.environ.update(given)
    for number, place in ((1, None if answers else os.devnull), (2, kept)):
        if place is not None:
            with open(place, "ab") as file:
                os.dup2(file.fileno(), number)
    parent = multiprocessing.parent_process()
    assert parent is not None, "a fork has one"
    _end_after(parent.join)
    threads = given.get(_THREADS, "")
    if threads.isdecimal() and int(threads) and "torch" in sys.modules:  # which has read its environment
        sys.modules["torch"].set_num_threads(int(threads))
    sys.argv = [str(PROGRAM), *arguments]
    runpy.run_path(str(PROGRAM), run_name="__main__")


def child(
    arguments: Sequence[str], *, alone: bool, added: Mapping[str, str] | None = None, processes: int = 1
) -> Process:
    """Start this program's command line; several processes, by torchrun, have a GPU each if there are."""
    argv = _argv(arguments)
    if processes > 1:
        how = ["--standalone", "--nproc-per-node", str(processes), "--no-python"]
        argv = [sys.executable, "-m", "torch.distributed.run", *how, *argv]
    return Process(argv, alone=alone, added={**(added or {}), **_handed_over()})


def together(arguments: Sequence[str], *, count: int, answers: bool = True) -> int:
    """Do a command in `count` processes of one thread, which share its work as a launcher's do.

    The first speaks for all, and answers if told so; signals go to all. Returns its exit code, 2 where
    another was lost, of which a line is said. One that fails or is stopped, or a second signal, ends the
    others, after half a minute by force.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, _THREADS: "1"}
    shared |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(count))
    asked: list[int] = []
    before = {s: signal.signal(s, lambda number, frame: asked.append(number)) for s in _SIGNALS}
    processes: list[Process | Fork] = []
    for rank in range(count):
        added = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        first, speaks = rank == 0, answers and rank == 0
        if can_fork("cpu"):
            processes.append(Fork(arguments, alone=first, added=added, answers=speaks))
        else:
            added |= _handed_over()
            processes.append(Process(_argv(arguments), alone=first, added=added, answers=speaks))
    try:
        return _supervised(processes, asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _supervised(processes: Sequence[Process | Fork], asked: list[int]) -> int:
    """Wait for processes, see `together`; asked: signals that came, taken out as they are passed on."""
    lost: Process | Fork | None = None
    patience, stopped = math.inf, False  # until when those that are left may save their work
    while None in (codes := [process.poll() for process in processes]):
        failed = [p for p, code in zip(processes, codes, strict=True) if code not in (None, *_ENDS)]
        ended = any(code is not None for code in codes)  # and those that are left may wait for it for ever
        if patience == math.inf and (failed or (stopped and (asked or ended))):
            patience = time.monotonic() + _GRACE_SECONDS
            if not stopped:
                lost = min(failed, key=lambda process: process.returncode)  # one that was killed says nothing
                asked.append(signal.SIGTERM)
        while asked:
            number, stopped = asked.pop(), True
            for process in processes:
                process.send_signal(number)
        if time.monotonic() > patience:
            for process in processes:
                process.kill()
        time.sleep(LOOK_SECONDS)
    code = processes[0].returncode
    if lost is None or (lost is processes[0] and code > 0):
        return code if code >= 0 else 128 - code
    how = f"was killed by signal {-lost.returncode}" if lost.returncode < 0 else f"ended ({lost.last_line()})"
    sys.stderr.write(
        f"error: process {processes.index(lost)} of the {len(processes)} that share this run {how}. "
        "Finished work is kept: start the same command again.\n"
    )
    return 2


def _argv(arguments: Sequence[str]) -> list[str]:
    """Return the command: this program's own file, not one of the working folder."""
    return [sys.executable, "-P", str(PROGRAM), *arguments]


def _handed_over() -> dict[str, str]:
    """Return an environment with the modules that this process finds, in order, for one that is its child."""
    places = dict.fromkeys(os.path.abspath(place) for place in sys.path)  # "" is the working folder
    existing = os.pathsep.join(place for place in places if os.path.exists(place))
    return {"PYTHONPATH": existing, _CHILD: os.environ.get("PYTHONPATH", "")}


def check_program(entry: Path) -> None:
    """Raise BenchError where a package of this program is not the one beside its command line, `entry`."""
    from bench.types import BenchError

    for name in ("bench", "bps", "baselines"):
        spec = importlib.util.find_spec(name)
        places = list(spec.submodule_search_locations or ()) if spec else []
        if not any(Path(place).resolve() == entry.resolve().parent / name for place in places):
            raise BenchError(
                f"{entry} would run with the package {name} of {', '.join(places) or 'nowhere'}, not its own."
                " Leave that folder and take it out of PYTHONPATH, or start the program as `bench`."
            )


def end_with_parent() -> None:
    """In a child: stop politely as soon as the process that started this one is gone, however it went.

    It reads from a pipe that its parent holds open and never writes to.
    """
    before = os.environ.pop(_CHILD, None)
    if before is None:
        return
    os.environ["PYTHONPATH"] = before

    _end_after(lambda: os.read(0, 1))


def _end_after(wait: Callable[[], Any]) -> None:
    """Stop this process politely when `wait` returns, which waits for the parent's end."""

    def listen() -> None:
        wait()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=listen, name="parent", daemon=True).start()


@contextmanager
def placed(address: str | None, *, cpus: float, gpus: float) -> Iterator[Callable[..., Remote] | None]:
    """Give what starts this program on a Ray cluster with some arguments, None without an address.

    address: "auto", "local" for one started here and ended afterwards, else as Ray takes it. cpus, gpus: of
    each process. Every node needs this program, its Python, working folder, results, base and data under the
    same paths. BenchError without Ray, where no cluster answers, and where no node could ever hold a process.
    """
    if address is None:
        yield None
        return
    from bench.types import BenchError

    try:
        import ray
    except ImportError:
        raise BenchError("--ray needs Ray, which is not installed: pip install 'bps-bench[ray]'.") from None
    if address == LOCAL:  # its runs are this machine's work, not guests that others come before
        os.environ.setdefault("RAY_worker_niceness", "0")
    before = {number: signal.getsignal(number) for number in _SIGNALS}  # which Ray would replace
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
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        sizes = sorted({(node.get("CPU", 0), node.get("GPU", 0)) for node in nodes})
        if not any(cores >= cpus and cards >= gpus for cores, cards in sizes):  # it would wait for ever
            there = ", ".join(f"{cores:g} cores and {cards:g} GPUs" for cores, cards in sizes)
            raise BenchError(
                f"no node of the cluster has {cpus:g} cores and {gpus:g} GPUs for a run; there: {there}. "
                "Lower --cpus-per-run or --gpus-per-run."
            )
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        task = ray.remote(on_node).options(num_cpus=cpus, num_gpus=gpus, max_retries=0)
        given = {k: v for k, v in os.environ.items() if k.startswith(_TO_NODES)} | _handed_over()
        yield lambda arguments: Remote(task.remote(_argv(arguments), given, str(Path.cwd())))
    finally:
        ray.shutdown()


def on_node(argv: Sequence[str], added: Mapping[str, str], folder: str) -> tuple[int, str]:
    """Run a command on a node and return exit code and last line; when cancelled, ask it to stop."""
    if not os.path.isdir(folder):
        return 1, (
            f"node {platform.node()} has no folder {folder}. Share it under the same path on every node; "
            "this program, results, base and data too."
        )
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what `cmd &` starts in a script ignores it
    process, asked = Process(argv, alone=False, added=added, folder=folder), False
    while process.returncode is None:
        try:
            while process.poll() is None:
                time.sleep(LOOK_SECONDS)
        except KeyboardInterrupt:  # how Ray cancels, more than once: a second signal would not let it save
            if not asked:
                asked = True
                process.terminate()
    return process.returncode, process.last_line()


class Remote:
    """A process on some node, or one that still waits for room there."""

    def __init__(self, task: Any) -> None:
        self._task = task
        self._result: tuple[int, str] | None = None
        self._cancelled = math.inf  # when it was last asked to end, in seconds

    def poll(self) -> int | None:
        """Return the exit code, None while it waits or runs; 1 where its node was lost."""
        import ray

        if self._result is None and ray.wait([self._task], timeout=0)[0]:
            try:
                self._result = ray.get(self._task)
            except ray.exceptions.TaskCancelledError:
                self._result = 128 + signal.SIGTERM, "stopped"
            except ray.exceptions.RayError as error:
                reason = str(error).strip().splitlines()[-1]
                self._result = 1, f"its node was lost or could not begin it: {reason}"
        elif self._result is None and time.monotonic() > self._cancelled + _AGAIN_SECONDS:
            self.terminate()
        return None if self._result is None else self._result[0]

    def terminate(self) -> None:
        """Ask it to save its work and end; one that waits for room ends at once."""
        import ray

        self._cancelled = time.monotonic()
        ray.cancel(self._task)  # which may be lost: `poll` asks again

    def last_line(self) -> str:
        """Return the last line it wrote."""
        return "" if self._result is None else self._result[1]
