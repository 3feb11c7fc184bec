"""Judges: the networks that turn images and captions into features for metrics.

Each has the name that headers print, the digest of its weights and its resize rule; all three are
part of the protocol. `judge_card` tells them without loading a network. They are found by name in
`bench.registry`; "open-clip/ViT-B-32" stands in the row open-clip/MODEL.

Where no weight file is given, it is looked for in the folder that the environment variable BENCH_JUDGES
names, under the judge's name: inception-v3.pth, dinov2-vitb14.pth, open-clip-ViT-B-16.safetensors.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from bench import registry
from bench.content import sha256_file
from bench.types import BenchError

if TYPE_CHECKING:
    import torch

JUDGES_VARIABLE = "BENCH_JUDGES"


@dataclass(frozen=True, kw_only=True)
class JudgeCard:
    """What a protocol records and a header prints of a judge.

    name: as printed. digest: SHA-256 of the weights (of all files, where there are several). resize: the
    rule from the image given to the network's input. reads_text: whether it embeds captions.
    """

    name: str
    digest: str
    resize: str
    reads_text: bool = False


class Judge:
    """A frozen network with its card; made by `load_judge`."""

    def __init__(
        self,
        card: JudgeCard,
        *,
        images: Callable[[np.ndarray], torch.Tensor],
        texts: Callable[[list[str]], torch.Tensor] | None = None,
        side: int | None = None,
    ) -> None:
        """Join a card with its towers: uint8 [B,H,W,3] -> [B,D] and captions -> [B,D].

        side: height and width of the network's input in pixels, where it is square and known.
        """
        self.card, self.name, self.digest, self.side = card, card.name, card.digest, side
        self._images, self._texts = images, texts

    def features(self, images: np.ndarray, *, batch_size: int = 8) -> np.ndarray:
        """Return the features of images: [N,H,W,3] uint8 RGB -> [N,D] float32, not normalised.

        Results do not depend on batch_size beyond rounding. BenchError for images of another form.
        """
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or not len(images):
            raise BenchError(f"a judge takes images [N,H,W,3] uint8, got {images.shape} {images.dtype}")
        return _in_batches(self._images, images, batch_size)

    def text(self, captions: Sequence[str]) -> np.ndarray:
        """Return the embeddings of captions, [N,D] float32, not normalised.

        BenchError for a judge without a text tower.
        """
        if self._texts is None:
            raise BenchError(f"judge '{self.name}' reads images only; choose a CLIP judge for text")
        return _in_batches(self._texts, list(captions), 64)


class JudgeKind(Protocol):
    """How judges of one name are made.

    name: as the user wrote it. weights: the file or folder given, None without one.
    """

    def card(self, name: str, weights: Path | None) -> JudgeCard:
        """Return the card without loading the network; BenchError for missing or changed weights."""

    def load(self, name: str, weights: Path | None, device: str) -> Judge:
        """Load the network, its weights checked first; errors as `card`."""


def judge_card(name: str, *, weights: str | Path | None = None) -> JudgeCard:
    """Return the card of a judge without loading its network.

    weights: the file of inception-v3, dinov2-vitb14 or open-clip/MODEL, else that in BENCH_JUDGES; another
    folder for emoji-clip. BenchError for an unknown name, missing or changed weights.
    """
    return _kind(name).card(name, None if weights is None else Path(weights))


def load_judge(name: str, *, weights: str | Path | None = None, device: str = "cpu") -> Judge:
    """Load a judge, its weights checked first; name, weights and errors as `judge_card`."""
    return _kind(name).load(name, None if weights is None else Path(weights), device)


def _kind(name: str) -> JudgeKind:
    kind: JudgeKind = registry.load("judge", "open-clip/MODEL" if name.startswith("open-clip/") else name)
    return kind


def need_file(name: str, weights: Path | None, remedy: str) -> Path:
    """Return the weight file given, else that of the judge's name in the folder of BENCH_JUDGES.

    BenchError with the remedy where there is none, and where two files there have the name.
    """
    stem, folder = name.replace("/", "-"), os.environ.get(JUDGES_VARIABLE)
    if weights is None and folder:
        paths = sorted(Path(folder).glob(f"{glob.escape(stem)}.*"))
        if len(paths) > 1:
            raise BenchError(
                f"{folder} holds {len(paths)} files for judge '{name}': "
                f"{', '.join(path.name for path in paths)}. Leave one."
            )
        weights = paths[0] if paths else None
    if weights is None or not weights.is_file():
        raise BenchError(
            f"judge '{name}' needs a weight file; got {weights}. {remedy} For runs, put it as {stem}.* "
            f"into a folder and name that in the environment variable {JUDGES_VARIABLE}."
        )
    return weights


def check_digest(path: Path, expected: str, remedy: str) -> None:
    """Raise BenchError for a file that is missing or has another SHA-256."""
    digest = sha256_file(path) if path.is_file() else ""
    if digest != expected:
        state = f"damaged or another file: SHA-256 {digest[:16]}..." if digest else "missing"
        raise BenchError(f"{path} is {state}, expected {expected[:16]}...; {remedy}")


def channels_first(images: np.ndarray, device: str) -> torch.Tensor:
    """[B,H,W,3] uint8 -> [B,3,H,W] uint8 on a device."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2)


def _in_batches(tower: Callable[[Any], torch.Tensor], items: Any, size: int) -> np.ndarray:
    import torch

    if size < 1:
        raise BenchError(f"batch_size must be at least 1, got {size}")
    with torch.inference_mode():
        parts = [tower(items[i : i + size]).float().cpu().numpy() for i in range(0, len(items), size)]
    return np.concatenate(parts).astype(np.float32, copy=False)
