"""Processes of this program: the very one that asks, from any folder, and none outlives its parent."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.child import PROGRAM, check_program, child
from bench.types import BenchError

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("bench", "bps", "baselines")


def foreign(folder: Path) -> Path:
    """Make a folder of somebody else's modules under our names, which leave a file `ran` behind."""
    for name in ("cli.py", *(f"{package}/__init__.py" for package in PACKAGES)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    return folder


def test_a_child_runs_this_program_from_another_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "checkout"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, other / package, ignore=shutil.ignore_patterns("assets", "__py*"))
    (other / "cli.py").write_text("open('ran', 'w')\n" + (ROOT / "cli.py").read_text().split("\n", 2)[2])
    monkeypatch.chdir(other)
    asked = child(["base", "--help"], alone=False)
    assert asked.wait() == 0, asked.last_line()
    assert not (other / "ran").exists()
    with pytest.raises(BenchError, match="package bench of"):
        check_program(other / "cli.py")
    check_program(PROGRAM)


def test_several_processes_share_a_run_of_a_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each knows how many there are, as under a launcher, and all end with the one that asked."""
    (tmp_path / "told.py").write_text(
        "import os\nfrom pathlib import Path\n"
        "Path(f\"{os.environ['RANK']}-of-{os.environ['WORLD_SIZE']}\").touch()\nclass Method: pass\n"
    )
    monkeypatch.chdir(tmp_path)
    asked = child(["list", "told:Method"], alone=False, processes=2)
    asked.wait()
    assert {path.name for path in Path().glob("?-of-?")} == {"0-of-2", "1-of-2"}, asked.last_line()


def test_a_child_ends_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    (tmp_path / "waits.py").write_text("import time\n\ntime.sleep(600)\n")
    words = ["list", "waits:Method"]  # imports what lies in its folder, and so waits
    code = f"from bench.child import child; print(child({words}, alone=True).pid, flush=True); input()"
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert Path(f"/proc/{pid}").exists()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until = time.monotonic() + 60
    while _runs(pid) and time.monotonic() < until:
        time.sleep(0.02)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    """Whether a process is there and no zombie, which nobody has yet asked for its end."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


ENDS = {  # what the first and the second of two processes do -> exit code, what is said
    "both end well": ("print('done')", "pass", 0, ""),
    "the first fails": ("sys.exit(2)", "time.sleep(600)", 2, ""),
    "the second fails": ("time.sleep(600)", "sys.exit('no room')", 2, "process 1 of the 2 .*no room"),
    "the second is killed": ("time.sleep(600)", "os.kill(os.getpid(), 9)", 2, "killed by signal 9"),
    "one is stopped as it waits": (
        "os.kill(os.getppid(), 15); time.sleep(600)",
        "signal.signal(15, lambda *args: (time.sleep(1), os._exit(2))); time.sleep(600)",
        143,
        "",
    ),
    "the second is stopped before the first listens": (
        "signal.signal(15, signal.SIG_IGN); time.sleep(1); os.kill(os.getppid(), 15); time.sleep(600)",
        "time.sleep(600)",
        137,
        "",
    ),
    "all are stopped": ("os.kill(os.getppid(), 15); time.sleep(600)", "time.sleep(600)", 143, ""),
}


@pytest.mark.parametrize("case", ENDS)
def test_processes_that_share_a_run_end_together(case: str) -> None:
    *acts, expected, said = ENDS[case]
    code = "import os, signal, sys, time; from bench import child; child._argv = lambda words: words; "
    code += "child._GRACE_SECONDS = 5.0; {}"
    polite = "signal.signal(15, lambda *args: sys.exit(143)); "
    words = [
        sys.executable,
        "-c",
        f"import os, signal, sys, time; {polite}exec({acts!r}[int(os.environ['RANK'])])",
    ]
    parent = code.format(f"sys.exit(child.together({words!r}, count=2))")
    done = subprocess.run(
        [sys.executable, "-c", parent], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == expected, done.stderr
    assert done.stdout == ("done\n" if case == "both end well" else "")
    assert re.search(said, done.stderr) if said else done.stderr == ""
