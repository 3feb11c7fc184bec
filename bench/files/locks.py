"""Locks between processes and hosts: who is at a folder, until it ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from bench.content import remove_unfinished, unwritable
from bench.files.strict import parse_json
from bench.types import BenchError, Stopped

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_TRY_SECONDS = 1.0


class Lock:
    """Lets one process at a time do what two must not, also on hosts that share the disk.

    Use as a context, also within itself. path: of the lock's file, there while it is held; it says by
    whom. about: what is held, in words. clean: a folder to rid of what killed holders left half
    written. wait: called with who holds it until it is free; without it that is a BenchError. A holder
    that ends, however it ends, holds nothing; children it forks hold nothing of it. Where the file
    system has no locks (as on some clusters) everybody is let in.
    """

    def __init__(
        self,
        path: Path,
        *,
        about: object,
        clean: Path | None = None,
        wait: Callable[[str], None] | None = None,
    ) -> None:
        self.path, self.wait, self._about, self._clean = path, wait, about, clean
        self._file, self._depth = -1, 0

    def __enter__(self) -> Lock:
        """Take it; BenchError where another process holds it, or the folder cannot be written."""
        if self._depth == 0:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                while not self._taken():
                    continue
            except OSError as error:
                raise unwritable(self.path, error) from error
            if self._clean is not None:
                remove_unfinished(self._clean)
        self._depth += 1
        return self

    def __exit__(self, *problem: object) -> None:
        """Give it back, and remove its file."""
        self._depth -= 1
        if self._depth == 0 and self._file in _HELD:
            with contextlib.suppress(OSError):  # a folder that was deleted meanwhile
                self.path.unlink()
            _let_go(self._file)

    def refuse_if_held(self) -> None:
        """Raise BenchError where a process holds it; for who only reads, writes nothing."""
        with contextlib.suppress(OSError), open(self.path, "rb") as file:
            if not _locked(file.fileno(), fcntl.LOCK_SH):
                raise BenchError(self._holder(file.fileno()))

    def _taken(self) -> bool:
        """Try once; False where it is worth another try."""
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        _HELD.add(file)
        try:
            if not _locked(file, fcntl.LOCK_EX):
                if self.wait is None:
                    raise BenchError(self._holder(file))
                self.wait(self._holder(file))
            elif self._is_there(file):
                self._say_who(file)
                self._file, file = file, -1
                return True
            return False
        finally:
            if file >= 0:
                _let_go(file)

    def _is_there(self, file: int) -> bool:
        """Whether the path still leads to the file: its last holder may have removed it meanwhile."""
        try:
            return os.path.samestat(os.fstat(file), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _say_who(self, file: int) -> None:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        who = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(who).encode() + b"\n", 0)

    def _holder(self, file: int) -> str:
        try:
            who = parse_json(os.pread(file, 1000, 0), self.path, remedy="")
            named = f"process {who['pid']} on {who['host']}, since {who['since']}"
        except (OSError, BenchError, KeyError, TypeError):  # it has only just taken it
            named = "another process"
        return f"{self._about} is in use by {named}. Wait until that ends, or stop it: finished work is kept."


def patient(say: Callable[[str], None], stop: Callable[[], int | None]) -> Callable[[str], None]:
    """Return what a Lock's `wait` may be: it says once who holds it, and raises Stopped when asked."""
    told: list[str] = []

    def wait(held: str) -> None:
        if not told:
            told.append(held)
            say(f"waiting: {held}")
        code = stop()
        if code is not None:
            raise Stopped(code)
        time.sleep(_TRY_SECONDS)

    return wait


_HELD: set[int] = set()
"""Files of the locks that this process holds or tries."""


def _let_go(file: int) -> None:
    _HELD.discard(file)
    os.close(file)


def _forked() -> None:
    """Close the parent's locks in a child, which would otherwise keep them beyond the parent's end."""
    while _HELD:
        _let_go(min(_HELD))


os.register_at_fork(after_in_child=_forked)


def _locked(file: int, how: int) -> bool:
    """Lock an open file if nobody else has; True too where the file system knows no locks."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True
