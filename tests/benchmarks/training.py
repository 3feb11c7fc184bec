"""Training images a second of one `bench train`, of two checkouts in turns: idle, and beside busy processes.

    python tests/benchmarks/training.py OTHER --methods bps,controlnet --busy 0,2 --rounds 3

OTHER: a checkout of another commit, for which the packages of this Python must do. The two take turns, each
in a fresh folder; the best round of each counts, as whatever else the machine does only slows. What a run
says of itself is read (work/train.json), so that start-up is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]


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


def rate(checkout: Path, method: str, images: int) -> float:
    """Train afresh and return images a second, of steps alone."""
    with tempfile.TemporaryDirectory() as results:
        words = [
            "train",
            "--method",
            method,
            "--device",
            "cpu",
            "--train-images",
            images,
            "--results",
            results,
        ]
        environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
        subprocess.run(
            [sys.executable, "-P", checkout / "cli.py", *map(str, words)],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**environment, "PYTHONPATH": str(checkout)},
        )
        (told,) = Path(results).glob("*/work/train.json")
        result = json.loads(told.read_text())
    return float(result["images"] / result["seconds"])


def main() -> None:
    """Print a line for each method and number of busy processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path)
    parser.add_argument("--methods", default="bps,controlnet")
    parser.add_argument("--busy", default="0,2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=480)
    asked = parser.parse_args()
    for count in map(int, asked.busy.split(",")):
        for method in asked.methods.split(","):
            rates: dict[Path, list[float]] = {asked.other.resolve(): [], HERE: []}
            with busy(count):
                for _ in range(asked.rounds):
                    for checkout, found in rates.items():
                        found.append(rate(checkout, method, asked.images))
            other, ours = (max(found) for found in rates.values())
            every = [[round(value, 1) for value in found] for found in rates.values()]
            sys.stdout.write(
                f"{method} beside {count}: {other:.1f} -> {ours:.1f} images/s, {ours / other:.2f} x {every}\n"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
