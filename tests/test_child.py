"""Processes of this program: the very one that asks, from any folder, and none outlives its parent."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
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
    wait_for(lambda: not _runs(pid))


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
        "os.kill(parent, 15); time.sleep(600)",
        "signal.signal(15, lambda *args: (time.sleep(1), os._exit(2))); time.sleep(600)",
        143,
        "",
    ),
    "the second is stopped before the first listens": (
        "signal.signal(15, signal.SIG_IGN); time.sleep(1); os.kill(parent, 15); time.sleep(600)",
        "time.sleep(600)",
        137,
        "",
    ),
    "all are stopped": ("os.kill(parent, 15); time.sleep(600)", "time.sleep(600)", 143, ""),
}


@pytest.mark.parametrize(
    ("case", "forks"),
    [*((case, True) for case in ENDS), ("both end well", False), ("all are stopped", False)],
)
def test_processes_that_share_a_run_end_together(case: str, forks: bool, tmp_path: Path) -> None:
    """Forks of one process as interpreters of their own, which systems without forks have."""
    *acts, expected, said = ENDS[case]
    (tmp_path / "acts.py").write_text(
        "import os, signal, sys, time\nfrom pathlib import Path\n"
        "signal.signal(15, lambda *args: sys.exit(143))\nparent = int(Path('parent').read_text())\n"
        f"exec({acts!r}[int(os.environ['RANK'])])\nsys.exit(0)\n"
    )
    parent = (
        "import os, sys\nfrom pathlib import Path\nfrom bench import child\n"
        "Path('parent').write_text(str(os.getpid()))\nchild._GRACE_SECONDS, child._HEAVY = 10.0, ()\n"
        f"child.can_fork = lambda device: {forks}\n"
        "sys.exit(child.together(['list', 'acts:Method'], count=2))"
    )
    done = ended(parent, tmp_path)
    assert done.returncode == expected, done.stderr
    assert done.stdout == ("done\n" if case == "both end well" else "")
    assert re.search(said, done.stderr) if said else done.stderr == ""


def test_a_fork_is_this_program_in_its_own_session_and_ends_with_its_parent(tmp_path: Path) -> None:
    """Also a fork of a fork, as a run of a grid has them; another project's modules are nowhere run."""
    foreign(tmp_path / "theirs")
    tells = (
        "import os, time\nfrom pathlib import Path\nimport torch\nfrom bench import child\n"
        "told = f'{os.getpid()} {os.getsid(0)} {torch.get_num_threads()} {child.__file__}'\n"
        "assert os.environ['SINCE'] == 'yes' and 'PYTHONSAFEPATH' not in os.environ\n"
        "Path(f'{__name__}.part').write_text(told)\nos.rename(f'{__name__}.part', f'{__name__}.told')\n"
    )
    forks = "fork = child.Fork(['list', 'second:M'], alone=True, added={'OMP_NUM_THREADS': '1'})\n"
    for name, more in (("first", forks), ("second", "")):
        (tmp_path / f"{name}.py").write_text(f"{tells}{more}time.sleep(600)\n")
    parent = subprocess.Popen(
        [
            sys.executable,
            "-Pc",
            "import os, time\nfrom bench import child\nchild._HEAVY = ('torch',)\n"
            "child._forking()\nos.environ['SINCE'] = 'yes'\n"
            "fork = child.Fork(['list', 'first:M'], alone=True, added={})\ntime.sleep(600)",
        ],
        cwd=tmp_path / "theirs",
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
    )
    told = [tmp_path / "theirs" / f"{name}.told" for name in ("first", "second")]
    try:
        wait_for(lambda: all(path.exists() for path in told))
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    (pid, session, _, place), (second, its_session, threads, _) = (path.read_text().split() for path in told)
    assert pid == session and second == its_session != session and threads == "1"
    assert Path(place).is_relative_to(ROOT) and not (tmp_path / "theirs" / "ran").exists()
    wait_for(lambda: not _runs(int(pid)) and not _runs(int(second)))


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not what():
        assert time.monotonic() < until
        time.sleep(0.02)


LOST = {  # what befalls what forks -> the exit code that is told of a fork that was stopped
    "the whole group is stopped": ("os.killpg(0, 15)", 143),  # as `timeout` and schedulers do
    "it is killed": ("os.kill(forkserver._forkserver._forkserver_pid, 9)", 255),
}


@pytest.mark.parametrize("case", LOST)
def test_a_fork_is_told_to_run_as_long_as_it_does(case: str, tmp_path: Path) -> None:
    act, expected = LOST[case]
    (tmp_path / "polite.py").write_text(
        "import signal, sys, time\nfrom pathlib import Path\n"
        "signal.signal(15, lambda *args: sys.exit(143))\nPath('ready').touch()\ntime.sleep(600)\n"
    )
    code = (
        "import os, signal, time\nfrom multiprocessing import forkserver\nfrom pathlib import Path\n"
        "from bench import child\nchild._HEAVY = ()\nsignal.signal(15, lambda *args: None)\n"
        "fork = child.Fork(['list', 'polite:Method'], alone=True, added={})\n"
        "while not Path('ready').exists(): time.sleep(0.02)\n"
        f"{act}\ntime.sleep(0.5)\nassert fork.poll() is None, fork.poll()\nfork.terminate()\n"
        "while fork.poll() is None: time.sleep(0.02)\nprint(fork.poll())"
    )
    done = ended(code, tmp_path)
    assert done.stdout == f"{expected}\n", done.stderr


def ended(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder whose modules it finds, as the first of a process group."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"},
        start_new_session=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
