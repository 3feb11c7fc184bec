"""SD 1.5 at its full width with random weights, on the CPU: steps of every method against their plans.

Minutes and up to 17 GiB a method, so only on demand: `BENCH_FULL_WIDTH=1 pytest tests/test_full_width.py`.
Two training steps are taken, since AdamW's state appears with the first and counts from the second.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import registry
from bench.config import RunConfig
from bench.speed import FILE, Stand
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
    words = [
        "cost",
        "--method",
        method,
        "--random",
        "sd15",
        "--size",
        "512",
        "--train-batch",
        "1",
        "--sample-batch",
        "1",
        "--rounds",
        "1",
        "--device",
        "cpu",
        "--out",
        str(tmp_path),
    ]
    needed = _planned(method)
    assert needed < LIMIT, "would not fit at all"
    if available() < needed + SPARE:
        pytest.skip(f"needs {needed / 2**30:.1f} GiB, {available() / 2**30:.1f} GiB are available")
    done = subprocess.run(
        [sys.executable, "-m", "cli", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    (found,) = json.loads((tmp_path / FILE).read_text())["entries"]
    for what in ("train", "sample"):
        measured, planned = found[f"{what}_bytes"], found[f"planned_{what}_bytes"]
        if measured is not None:
            assert measured < LIMIT
            assert measured == pytest.approx(planned, rel=0.15), what


def _planned(method: str) -> int:
    """Return what the process will need, by its plan."""
    from bench.cost import libraries_bytes
    from bench.footprint import footprint
    from bench.plan import CPU_ALLOWANCE

    config = RunConfig(method=method, train_batch=1, sample_batch=1, device="cpu")
    spec = Stand(like="sd15", size=512).spec(config)
    chosen, options = method_of(config)
    counted = footprint(
        chosen,
        options=options,
        shape=spec.shape,
        task=spec.task,
        setting=spec.setting,
    )
    return round(libraries_bytes() + CPU_ALLOWANCE * counted.peak)
