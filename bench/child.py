"""A new process of the very program that asks for it, which ends when the one that asked does.

Imports nothing of this project at first: a node of a Ray cluster is handed `Process` as a value, since the
working folder, which comes first there, may hold another project's `bench/`.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

PROGRAM = Path(__file__).resolve().parent.parent / "cli.py"
_CHILD = "BPS_BENCH_CHILD"


def command(arguments: Sequence[str]) -> list[str]:
    """Return what starts this program's command line: its own file, not one of the working folder."""
    return [sys.executable, "-P", str(PROGRAM), *arguments]


def handed_over() -> dict[str, str]:
    """Return the environment in which a new process finds the modules that this one finds, in order.

    It also says that the process is a child, and what PYTHONPATH was before.
    """
    places = dict.fromkeys(os.path.abspath(place) for place in sys.path)  # "" is the working folder
    found = os.pathsep.join(place for place in places if os.path.exists(place))
    return {"PYTHONPATH": found, _CHILD: os.environ.get("PYTHONPATH", "")}


class Process:
    """A command in a new process; its table goes nowhere, its messages where they can be read.

    alone: it writes to this program's standard error; else several run at once, and what each says
    is kept aside, since their progress would be a muddle.
    """

    def __init__(
        self,
        words: Sequence[str],
        *,
        alone: bool,
        added: Mapping[str, str],
        folder: str | None = None,
    ) -> None:
        """Start it; it hears signals only through `send_signal`.

        words: as `command` returns them. added: to this program's environment. folder None: this
        program's. RuntimeError where the folder is not there.
        """
        if folder is not None and not os.path.isdir(folder):
            raise RuntimeError(
                f"node {platform.node()} has no folder {folder}. Share it under the same path on "
                "every node; this program, results, base and data too."
            )
        self._aside = None if alone else tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            list(words),
            stdin=subprocess.PIPE,  # held open for as long as this process lives, see `end_with_parent`
            stdout=subprocess.DEVNULL,
            stderr=self._aside,
            env={**os.environ, **added},
            cwd=folder,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """The system's number of the process."""
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        return self._process.poll()

    def wait(self) -> int:
        """Wait for its end and return the exit code."""
        return self._process.wait()

    def send_signal(self, number: int) -> None:
        """Pass a signal on."""
        self._process.send_signal(number)

    def last_words(self) -> str:
        """Return the last line it wrote, or "see above" where it wrote to the terminal."""
        if self._aside is None:
            return "see above"
        self._aside.seek(0)
        lines = self._aside.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "without a word"


def child(arguments: Sequence[str], *, alone: bool, added: Mapping[str, str] | None = None) -> Process:
    """Start this program's command line here with the arguments, see `Process`."""
    return Process(command(arguments), alone=alone, added={**(added or {}), **handed_over()})


def check_program(entry: Path) -> None:
    """Check that all packages of this program are those beside its command line, `entry` (cli.py).

    Raises BenchError where another project's folder of that name is found before ours.
    """
    from bench.types import BenchError

    for name in ("bench", "bps", "baselines"):
        found = importlib.util.find_spec(name)
        lies = list(found.submodule_search_locations or ()) if found else []
        if not any(Path(place).resolve() == entry.resolve().parent / name for place in lies):
            raise BenchError(
                f"{entry} would run with the package {name} of {', '.join(lies) or 'nowhere'}, not its own. "
                "Leave that folder and take it out of PYTHONPATH, or start the program as `bench`."
            )


def end_with_parent() -> None:
    """In a child: stop politely as soon as the process that started this one is gone, however it went.

    A child reads from a pipe that its parent holds open and never writes to, so that it ends with the
    parent, even one that died before the child came to listen.
    """
    before = os.environ.pop(_CHILD, None)
    if before is None:
        return
    os.environ["PYTHONPATH"] = before

    def listen() -> None:
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=listen, name="parent", daemon=True).start()
