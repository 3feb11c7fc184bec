"""Looks at a finished base: sample grid, training curve, distances, memorisation; writes results/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.base.load import Base, PlainDenoiser, load_base
from bench.config import Sampler
from bench.content import write_json
from bench.metrics.frechet import frechet_distance
from bench.metrics.kernel import kernel_distance
from bench.metrics.paired import unit_rows
from bench.randomness import initial_noise
from bench.sampling import png, sample_latents, to_bytes

if TYPE_CHECKING:
    pass

GRID = (
    "red heart",
    "grinning face",
    "cat face",
    "pizza",
    "rocket",
    "house",
    "green apple",
    "bicycle",
    "umbrella",
    "guitar",
    "tree",
    "fish",
    "clock",
    "airplane",
    "dog",
    "sunflower",
)
STYLES = ("twemoji", "noto", "outlined", "streamline", "thin", "flat")


def draw(
    base: Base, captions: list[str], *, sampler: Sampler, seed: int = 0, hooks: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Sample captions; return images [N,64,64,3] uint8 and latents [N,4,16,16] float32."""
    import torch

    images, latents = [], []
    for start in range(0, len(captions), 32):
        block = captions[start : start + 32]
        noise = [initial_noise(seed, f"{start + i}", (4, 16, 16)) for i in range(len(block))]
        got = sample_latents(
            PlainDenoiser(base),
            base=base,
            sampler=sampler,
            noise=torch.from_numpy(np.stack(noise)),
            conditions=torch.zeros(len(block), 1, 64, 64),
            text=base.encode_text(block),
            empty=base.encode_text([""]),
        )
        latents.append(got.numpy())
        images.append(to_bytes(base.decode(got).permute(0, 2, 3, 1).numpy()))
        if hooks is not None:
            hooks.tick(start + len(block), len(captions))
    return np.concatenate(images), np.concatenate(latents)


def report_pretraining(
    folder: Path, *, out: Path, work: Path, held_out: np.ndarray, judge: Any, hooks: Any
) -> dict[str, Any]:
    """Measure a base on its held-out drawings and write figures and figures of merit to `out`.

    folder: the base; work: the recipe's folder (views.npy, collection.npz, curve.jsonl). Returns
    what it writes to pretraining.json.
    """
    base = load_base(folder)
    views = np.load(work / "views.npy", mmap_mode="r")
    with np.load(work / "collection.npz") as archive:
        captions = [f"{c}, {s} style" for c, s in zip(archive["captions"], archive["styles"], strict=True)]
    sampler = Sampler(guidance=2.5)
    hooks.stage("sample the held-out captions", len(held_out))
    samples, latents = draw(base, [captions[i] for i in held_out], sampler=sampler, hooks=hooks)
    real = np.asarray(views[np.sort(held_out), 0])
    rest = np.setdiff1d(np.arange(len(views)), held_out)
    other = np.asarray(views[np.random.default_rng(1).choice(rest, len(real), replace=False), 0])
    features = {n: judge.features(x) for n, x in (("s", samples), ("r", real), ("o", other))}
    measured = {
        "judge": judge.name,
        "held_out_drawings": len(real),
        "fd_samples": round(frechet_distance(features["s"], features["r"]), 1),
        "fd_other_real_drawings": round(frechet_distance(features["o"], features["r"]), 1),
        "kd_samples": round(kernel_distance(features["s"], features["r"]), 4),
        "kd_other_real_drawings": round(kernel_distance(features["o"], features["r"]), 4),
        **memorisation(base, latents, real, np.asarray(views[rest, 0])),
    }
    write_json(out / "pretraining.json", measured)
    _grid(base, out / "grid.png", sampler)
    _curve(work / "curve.jsonl", out)
    return measured


def memorisation(
    base: Base, latents: np.ndarray, held_out: np.ndarray, train: np.ndarray
) -> dict[str, float]:
    """Compare how near samples and held-out drawings come to the training drawings.

    Cosines of centred latents to the nearest training drawing: medians, and the share above 0.95.
    Held-out drawings have siblings in other families too, so samples should come no nearer.
    """

    def encode(images: np.ndarray) -> np.ndarray:
        parts = [base.encode_images(images[i : i + 64]) for i in range(0, len(images), 64)]
        return np.concatenate([p.flatten(1).numpy() for p in parts])

    known = encode(train)
    centre = known.mean(axis=0)
    known = unit_rows(known - centre)
    nearest = {
        name: (unit_rows(x - centre) @ known.T).max(axis=1)
        for name, x in (
            ("samples", latents.reshape(len(latents), -1)),
            ("held_out", encode(held_out)),
        )
    }
    return {
        f"{what}_{name}": round(float(value), 3)
        for name, near in nearest.items()
        for what, value in (
            ("nearest_cosine_median", np.median(near)),
            ("nearest_cosine_above_95", (near > 0.95).mean()),
        )
    }


def _grid(base: Base, path: Path, sampler: Sampler) -> None:
    from bench.content import atomic_write

    captions = [f"{name}, {style} style" for style in STYLES for name in GRID]
    images, _ = draw(base, captions, sampler=sampler)
    rows = images.reshape(len(STYLES), len(GRID), 64, 64, 3).transpose(0, 2, 1, 3, 4)
    page = rows.reshape(len(STYLES) * 64, len(GRID) * 64, 3)
    atomic_write(path, png(page))


def _curve(path: Path, out: Path) -> None:
    from bench.reporting.curves import curve_figure

    lines = [json.loads(line) for line in path.read_text().splitlines()]
    write_json(out / "curve.json", lines)
    curve_figure(
        {
            "validation error of v, moving average of weights": [
                (line["step"], line["validation"]) for line in lines
            ]
        },
        out / "curve.png",
        x="step of 64 images",
        y="mean squared error of v",
    )
