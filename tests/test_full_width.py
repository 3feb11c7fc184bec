"""SD 1.5 at its full width with random weights, on the CPU: steps of every method against their plans.

Minutes and up to 17 GiB a method, so only on demand: `BENCH_FULL_WIDTH=1 pytest tests/test_full_width.py`.
Two training steps are taken, since AdamW's state appears with the first and counts from the second.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import registry
from bench.base.random import shape_like
from bench.config import RunConfig, Training
from bench.cost import libraries_bytes, load_timings
from bench.measure import SAMPLER
from bench.plan import CPU_ALLOWANCE, Setting, footprint
from bench.suites import method_of

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 24 * 2**30
SPARE = 2**30


def available() -> int:
    """Return the bytes that programs can still take; as much as is asked where it is not known."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return LIMIT
    return next(int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable:"))


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("BENCH_FULL_WIDTH"), reason="BENCH_FULL_WIDTH is not set")
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("method", registry.names("method", ["all"]))
def test_a_method_takes_the_memory_that_was_planned(method: str, tmp_path: Path) -> None:
    chosen, options = method_of(RunConfig(method=method))
    setting = Setting(training=Training(batch=1, loss="eps", mirror=False), sampler=SAMPLER)
    task = registry.load("task", "sketch")
    counted = footprint(chosen, options=options, shape=shape_like("sd15"), task=task, setting=setting)
    needed = round(libraries_bytes() + CPU_ALLOWANCE * counted["peak"])
    assert needed < LIMIT, "would not fit at all"
    if available() < needed + SPARE:
        pytest.skip(f"needs {needed / 2**30:.1f} GiB, {available() / 2**30:.1f} GiB are available")
    argv = ["cost", "--method", method, "--random", "sd15", "--size", "512", "--train-batch", "1"]
    argv += ["--sample-batch", "1", "--train-steps", "1", "--sample-batches", "1", "--rounds", "1"]
    argv += ["--device", "cpu", "--results", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "cli", *argv],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    (measured,) = (load_timings(tmp_path) or pytest.fail("nothing was written")).entries
    assert measured.peak_memory_bytes < LIMIT
    assert measured.peak_memory_bytes == pytest.approx(measured.planned_memory_bytes, rel=0.15)
