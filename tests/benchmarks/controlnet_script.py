"""Images a second of ControlNet in diffusers' train_controlnet.py, unchanged, and in `bench train`, in turns.

    python tests/benchmarks/controlnet_script.py train_controlnet.py --rounds 2

The script is examples/controlnet/train_controlnet.py of a diffusers checkout; it needs `datasets` and
`torchvision`. Both train on one random base in the likeness of Stable Diffusion 1.5, of width 64 at 256 px,
on one folder of pictures, with one batch, on all cores. The script's rate is that of the steps between a
short and a long training, so that start-up is left out; ours is what the run says (work/train.json). What
ours does before, encoding each picture and caption once, is printed beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from bench.base.random import write_random_base

HERE = Path(__file__).resolve().parents[2]
SIZE, BATCH = 256, 8


def write_pictures(folder: Path, count: int, *, column: str) -> Path:
    """Write smooth random pictures, captions and conditions, whose column each of the two calls otherwise."""
    (folder / "conditions").mkdir(parents=True)
    random, lines = np.random.default_rng(0), []
    for number in range(count):
        for place in ("", "conditions/"):
            picture = Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8))
            picture.resize((SIZE, SIZE)).save(folder / f"{place}{number}.png")
        told = {"file_name": f"{number}.png", "text": f"a dog near a window {number}"}
        lines.append(json.dumps({**told, column: f"conditions/{number}.png"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def take(words: list[object]) -> float:
    """Return the seconds of a command, whose messages are shown where it fails."""
    begun = time.perf_counter()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "BPS_BENCH_CACHE": tempfile.mkdtemp()}
    done = subprocess.run(
        [sys.executable, *map(str, words)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    if done.returncode:
        sys.exit(done.stderr.decode()[-3000:])
    return time.perf_counter() - begun


def script_rate(script: Path, base: Path, data: Path, steps: tuple[int, int]) -> float:
    """Return the script's images a second."""
    seconds = []
    for count in steps:
        with tempfile.TemporaryDirectory() as out:
            words: list[object] = [script, "--pretrained_model_name_or_path", base, "--train_data_dir", data]
            words += ["--caption_column", "text", "--conditioning_image_column", "conditioning_image"]
            words += ["--resolution", SIZE, "--train_batch_size", BATCH, "--max_train_steps", count]
            seconds.append(take([*words, "--output_dir", out, "--learning_rate", 1e-4]))
    return BATCH * (steps[1] - steps[0]) / (seconds[1] - seconds[0])


def our_rate(base: Path, data: Path, steps: int) -> tuple[float, float]:
    """Return images a second of steps, and the seconds of all else."""
    with tempfile.TemporaryDirectory() as results:
        words: list[object] = [HERE / "cli.py", "train", "--suite", "folder", "--data", data, "--base", base]
        words += ["--task", "image", "--method", "controlnet", "--resolution", SIZE, "--device", "cpu"]
        words += ["--train-batch", BATCH, "--train-images", BATCH * steps, "--results", results]
        whole = take(words)
        (told,) = Path(results).glob("*/work/train.json")
        result = json.loads(told.read_text())
    return result["images"] / result["seconds"], whole - result["seconds"]


def main() -> None:
    """Print both rates of every round, and the ratio of the best."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("script", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", default="4,16")
    parser.add_argument("--pictures", type=int, default=64)
    asked = parser.parse_args()
    short, long = map(int, asked.steps.split(","))
    with tempfile.TemporaryDirectory() as scratch:
        base = write_random_base(Path(scratch) / "base", like="sd15", width=64, size=SIZE)
        ours_at, theirs_at = (
            write_pictures(Path(scratch) / column, asked.pictures, column=column)
            for column in ("conditioning_image", "conditioning_image_file_name")
        )
        theirs, ours = [], []
        for _ in range(asked.rounds):
            theirs.append(script_rate(asked.script, base, theirs_at, (short, long)))
            rate, before = our_rate(base, ours_at, long)
            ours.append(rate)
            sys.stdout.write(
                f"script {theirs[-1]:.2f} images/s, bench {rate:.2f} after {before:.0f} s of all else\n"
            )
            sys.stdout.flush()
        sys.stdout.write(f"bench over script: {max(ours) / max(theirs):.2f} x\n")


if __name__ == "__main__":
    main()
