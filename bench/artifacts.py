"""Files a run leaves: trained weights, the contact sheet's rows, all samples in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.content import atomic_write, sha256_file
from bench.randomness import generator
from bench.training.checkpoint import Trainable
from bench.types import BenchError, raise_of_machine
from bench.weights import read_tensors


def save_weights(path: Path, trainable: Trainable) -> None:
    """Write the trainable parameters as safetensors, atomically."""
    from safetensors.torch import save

    tensors = {n: t.cpu().contiguous() for n, t in trainable.state_dict().items()}
    atomic_write(path, save(tensors))


def load_weights(path: Path, trainable: Trainable, *, sha256: str | None = None) -> None:
    """Load parameters written by `save_weights`; BenchError if they do not fit or differ from a digest."""
    if sha256 is not None and sha256_file(path) != sha256:
        raise BenchError(
            f"{path} is not what training wrote (its SHA-256 differs from train.json's). Run `bench "
            "train` again: it writes the weights of its last checkpoint."
        )
    try:
        trainable.load_state_dict(read_tensors(path))
    except Exception as error:
        raise_of_machine(error)
        raise BenchError(
            f"weights {path} cannot be loaded ({error}). Delete the run folder and train again."
        ) from error


def pick_items(ids: Sequence[str], count: int | None) -> tuple[str, ...]:
    """Return `count` of the ids by a fixed rule (order of hashed ids), sorted; all for None."""
    if count is None or count >= len(ids):
        return tuple(sorted(ids))
    ranked = sorted(ids, key=lambda i: generator(0, "pick", i).random())
    return tuple(sorted(ranked[:count]))


def show_condition(condition: np.ndarray) -> np.ndarray:
    """Condition [C,H,W] in [0, 1] -> a picture [H,W,3] uint8: lines dark on white, colours as such.

    One channel: ink. Three: colours. Four: colours with the fourth as ink over them.
    """
    ink = condition[-1] if len(condition) in (1, 4) else np.zeros_like(condition[0])
    colour = condition[:3].transpose(1, 2, 0) if len(condition) >= 3 else np.ones((*ink.shape, 3))
    return np.asarray((colour * (1 - ink[..., None]) * 255).round().astype(np.uint8))


def mosaic(images: np.ndarray, *, columns: int = 24) -> np.ndarray:
    """Tile images [N,H,W,3] row by row into one [R*H,columns*W,3], the rest white."""
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    page = np.full((rows * height, columns * width, 3), 255, dtype=np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * height, i % columns * width
        page[top : top + height, left : left + width] = image
    return page
