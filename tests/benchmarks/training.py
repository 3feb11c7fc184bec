"""Training images a second of one `bench train`, of two checkouts in turns: idle, and beside busy processes.

    python tests/benchmarks/training.py OTHER --methods bps,controlnet --busy 0,2 --rounds 3

OTHER: a checkout of another commit, for which the packages of this Python must do. The two take turns, each
in a fresh folder; the best round of each counts, as whatever else the machine does only slows. Steps are
counted between the first and the last line of progress within some seconds, so that start-up is left out.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]
BATCH = 16  # of suite emoji


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep `count` other processes of one thread at work."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def rate(checkout: Path, method: str, seconds: float) -> float:
    """Begin a training afresh, stop it after some seconds and return images a second."""
    told: list[tuple[float, int]] = []
    with tempfile.TemporaryDirectory() as results:
        words = ["train", "--method", method, "--device", "cpu", "--budget", "quick", "--results", results]
        environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
        process = subprocess.Popen(
            [sys.executable, "-P", checkout / "cli.py", *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**environment, "PYTHONPATH": str(checkout)},
        )
        assert process.stderr is not None
        for line in process.stderr:
            steps = re.match(r"train: (\d+)/\d+", line)
            if steps:
                told.append((time.monotonic(), int(steps[1])))
            if len(told) > 1 and told[-1][0] - told[0][0] > seconds:
                process.terminate()
                break
        process.communicate()
    (begun, first), (ended, last) = told[0], told[-1]
    return BATCH * (last - first) / (ended - begun)


def main() -> None:
    """Print a line for each method and number of busy processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path)
    parser.add_argument("--methods", default="bps,controlnet")
    parser.add_argument("--busy", default="0,2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=14)
    asked = parser.parse_args()
    for count in map(int, asked.busy.split(",")):
        for method in asked.methods.split(","):
            rates: dict[Path, list[float]] = {asked.other.resolve(): [], HERE: []}
            with busy(count):
                for _ in range(asked.rounds):
                    for checkout, found in rates.items():
                        found.append(rate(checkout, method, asked.seconds))
            other, ours = (max(found) for found in rates.values())
            every = [[round(value, 1) for value in found] for found in rates.values()]
            sys.stdout.write(
                f"{method} beside {count}: {other:.1f} -> {ours:.1f} images/s, {ours / other:.2f} x {every}\n"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
