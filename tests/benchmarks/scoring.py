"""Times what every reader repeats, beside other tools and an old checkout: metrics, reports, start-up.

    python tests/benchmarks/scoring.py [--old CHECKOUT] [--only metrics|reports|startup]

Not a test: run it on idle cores. CHECKOUT is a work tree of an earlier commit with its own `.venv`, if any,
as `git worktree add CHECKOUT 6d0cf55` makes one. All columns come from one run on one machine, in turns.
metrics: FD, KID, FD of infinitely many, four neighbour metrics and their 95% intervals of 363 and 363 images,
against FD and KID by torch-fidelity and by clean-fid, each with the same EfficientNet-Lite0 as timm builds
it, each image judged once by each tool. reports: `bench report` of the records that each checkout publishes.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
STARTS = ("--help", "list", "show results/emoji", "report --help", "plan --suite coco17 --method bps")
BATCH = 32


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Return seconds of clock and of processor."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - processor


def metrics(rounds: int) -> None:
    """Print the times of three tools on the same images."""
    import numpy as np
    import timm
    import torch
    from cleanfid import fid

    from bench.data.openmoji import OpenMoji64, openmoji64_splits
    from bench.judges import load_judge
    from bench.judges.vision import _resized, efficientnet_state
    from bench.metrics import TOOLS
    from bench.sampling import export_images
    from bench.scoring import compare

    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    network.load_state_dict(efficientnet_state(list(network.state_dict())))
    network.reset_classifier(0)
    network.eval().to(memory_format=torch.channels_last)
    judge, data, sides = load_judge("efficientnet-lite0"), OpenMoji64(), openmoji64_splits()

    def model(images: torch.Tensor) -> torch.Tensor:
        pixels = images.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        with torch.inference_mode():
            return network(
                ((_resized(pixels, "cpu") - 127) / 128).contiguous(memory_format=torch.channels_last)
            )

    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / name for name in ("a", "b")]
        for folder, ids in zip(folders, (sides.train, sides.test), strict=True):
            folder.mkdir()
            export_images(data, ids[: len(sides.test)], folder)

        def features(folder: Path) -> np.ndarray:
            return np.asarray(
                fid.get_folder_features(
                    str(folder),
                    model,
                    num_workers=0,
                    batch_size=BATCH,
                    mode="clean",
                    device=torch.device("cpu"),
                    custom_fn_resize=lambda image: image,
                    verbose=False,
                )
            )

        def ours() -> None:
            compare(*folders, judges={"features": judge}, batch=BATCH)

        def theirs(name: str) -> Callable[[], Any]:
            return lambda: TOOLS[name](*map(features, folders))

        works = {"ours": ours, **{name: theirs(name) for name in TOOLS}}
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
        for _ in range(rounds + 1):  # the first warms up
            for name, work in works.items():
                taken[name].append(timed(work))
        middle = {n: [statistics.median(x) for x in zip(*t[1:], strict=True)] for n, t in taken.items()}
    for name, (clock, processor) in middle.items():
        print(f"metrics  {name:16} {clock:7.2f} s  {processor:7.2f} processor s")
    for place, what in enumerate(("clock", "processor")):
        both = sum(times[place] for name, times in middle.items() if name != "ours")
        print(f"metrics  the two over ours, {what}: {both / middle['ours'][place]:.2f}")


def command(checkout: Path, words: Sequence[str]) -> tuple[float, float]:
    """Return seconds of clock and processor that a command takes."""
    own = checkout / ".venv" / "bin" / "python"
    before, clock = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    argv = [str(own if own.exists() else sys.executable), "cli.py", *words]
    if subprocess.run(argv, cwd=checkout, capture_output=True).returncode:
        return math.nan, math.nan  # an older program may not have it
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - clock, used


def beside(name: str, words: Sequence[str], checkouts: Sequence[Path], rounds: int) -> None:
    """Print what a command takes in each checkout, the fastest of several, in turns."""
    taken: list[list[tuple[float, float]]] = [[] for _ in checkouts]
    for _ in range(rounds):
        for times, checkout in zip(taken, checkouts, strict=True):
            times.append(command(checkout, words))
    fastest = [[min(column) for column in zip(*times, strict=True)] for times in taken]
    cells = "  then ".join(f"{clock:7.2f} s ({used:7.2f} processor s)" for clock, used in fastest)
    ratio = f"  {fastest[1][1] / fastest[0][1]:.2f}x" if len(fastest) > 1 else ""
    print(f"{name:8} bench {' '.join(words):40} {cells}{ratio}", flush=True)


def main() -> None:
    """Time what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--old", type=Path)
    parser.add_argument("--only", choices=("metrics", "reports", "startup"))
    parser.add_argument("--rounds", type=int, default=1)
    asked = parser.parse_args()
    checkouts = [ROOT, *([asked.old.resolve()] if asked.old else [])]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    if asked.only in (None, "metrics"):
        metrics(asked.rounds)
    if asked.only in (None, "startup"):
        for words in STARTS:
            beside("startup", words.split(), checkouts, asked.rounds + 1)
    if asked.only in (None, "reports"):
        with tempfile.TemporaryDirectory() as out:
            beside("reports", ["report", "--results", "results/emoji", "--out", out], checkouts, asked.rounds)


if __name__ == "__main__":
    main()
