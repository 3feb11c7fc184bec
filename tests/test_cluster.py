"""Runs on a Ray cluster of one node: placed, watched, stopped, lost; the same records as anywhere."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import cli
from bench.child import PROGRAM, Remote, placed
from bench.record import load_record
from bench.types import BenchError
from tests.test_child import foreign

ray = pytest.importorskip("ray")
Start = Callable[[Sequence[str]], Remote]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Start runs that take a whole core of a node of two, from a folder of somebody else's `bench`.

    Interrupts are ignored, as in what a script starts with `&`: its children inherit that.
    """
    folder = foreign(tmp_path_factory.mktemp("elsewhere"))
    (folder / "waits.py").write_text("import time\n\ntime.sleep(600)\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        with placed("local", cpus=1, gpus=0) as begin:
            signal.signal(signal.SIGINT, before)
            yield begin
    assert not (folder / "ran").exists()


def ended(run: Remote, *, seconds: float = 120) -> int:
    until = time.monotonic() + seconds
    while run.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    code = run.poll()
    assert code is not None, "it still runs"
    return code


@pytest.mark.slow
def test_exit_codes_and_last_line_come_back(start: Start) -> None:
    good, bad = start(["--help"]), start(["run", "--method", "bsp"])
    assert ended(good) == 0
    assert ended(bad) == 2 and "Did you mean 'bps'?" in bad.last_line()


def test_a_folder_that_a_node_lacks_is_said(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setattr(Path, "cwd", lambda: gone)
    run = start(["--help"])
    assert ended(run) == 1
    assert f"has no folder {gone}" in run.last_line() and "same path" in run.last_line()


WAITING = ["list", "waits:Method"]
"""A command that waits: it imports what lies in its folder."""


def begun(start: Start, number: int) -> list[Remote]:
    """Start commands that wait, and wait until all are there."""
    runs = [start(WAITING) for _ in range(number)]
    until = time.monotonic() + 60
    while len(waiting()) < number and time.monotonic() < until:
        time.sleep(0.05)
    assert len(waiting()) == number and all(run.poll() is None for run in runs)
    return runs


def test_one_that_waits_for_room_ends_at_once_when_stopped(start: Start) -> None:
    cores = int(ray.cluster_resources()["CPU"])
    held = begun(start, cores)
    without_room = start(["--help"])
    assert without_room.poll() is None
    without_room.terminate()
    assert ended(without_room, seconds=5) == 128 + signal.SIGTERM
    for run in held:
        run.terminate()
    assert [ended(run) for run in held] == [-signal.SIGTERM] * cores


def test_a_lost_node_is_a_failure_and_ends_its_process(start: Start) -> None:
    """A host that is gone takes its process along: the system asks it to stop."""
    (run,) = begun(start, 1)
    (pid,) = waiting()
    os.kill(int(Path(f"/proc/{pid}/stat").read_text().split(") ")[1].split()[1]), signal.SIGKILL)
    assert ended(run) == 1 and "lost" in run.last_line()
    until = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


def waiting() -> list[int]:
    """Return the processes that have the waiting command."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                argv = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if argv[-3:-1] == [word.encode() for word in WAITING] and str(PROGRAM).encode() in argv:
                found.append(int(entry.name))
    return found


def test_signal_handlers_are_as_they_were(start: Start) -> None:
    assert signal.getsignal(signal.SIGTERM) in {signal.SIG_DFL, signal.default_int_handler}


def test_a_run_that_no_node_can_hold_is_refused() -> None:
    ray.shutdown()
    with pytest.raises(BenchError, match=r"no node of the cluster has 1 cores and 99 GPUs.*there: "):
        with placed("local", cpus=1, gpus=99):
            pass
    assert not ray.is_initialized()


def test_no_cluster_is_an_error_for_the_user() -> None:
    done = CliRunner().invoke(cli.app, ["run", "--seeds", "0,1", "--ray", "auto"])
    assert done.exit_code == 2 and "no Ray cluster answers at 'auto'" in done.output
    assert "Traceback" not in done.output


@pytest.mark.slow
def test_the_command_makes_the_records_of_an_ordinary_run(micro_folder: Path, tmp_path: Path) -> None:
    ray.shutdown()  # of the tests before
    where = ["--suite", "micro", "--base", micro_folder, "--device", "cpu"]
    little = ["--sample-batch", 5, "--limit", 10, "--sampling-steps", 1]
    words = ["run", "--method", "text-only", "--no-floor", *where, *little]
    for more in (
        ["--ray", "local", "--results", tmp_path / "ray"],
        ["--results", tmp_path / "here"],
    ):
        done = CliRunner().invoke(cli.app, [str(w) for w in (*words, *more)])
        assert done.exit_code == 0, done.output
    (one,), (other,) = ([*(tmp_path / name).iterdir()] for name in ("ray", "here"))
    assert load_record(one).artifacts == load_record(other).artifacts
