"""Pictures and names that emoji-clip learns from: sources, augmentation, batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.content import digest_arrays, read_npz
from bench.emoji.collection import may_mirror
from bench.emoji.tokenizer import train_tokenizer
from bench.judges.clip import bare_caption
from bench.randomness import generator
from bench.types import BenchError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pictures [N,64,64,3] uint8, their bare names and the style of each."""

    images: np.ndarray
    captions: tuple[str, ...]
    styles: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse arrays that do not pair up."""
        count = len(self.captions)
        if self.images.shape != (count, 64, 64, 3) or self.images.dtype != np.uint8 or not count:
            raise BenchError(
                f"pairs need images [N,64,64,3] uint8 for {count} captions, "
                f"got {self.images.shape} {self.images.dtype}"
            )
        if len(self.styles) != count:
            raise BenchError(f"{count} captions but {len(self.styles)} styles")

    @property
    def digest(self) -> str:
        """SHA-256 of pictures, names and styles."""
        return digest_arrays(
            images=self.images, captions=np.array(self.captions), styles=np.array(self.styles)
        )

    def __add__(self, other: Pairs) -> Pairs:
        """Return both sets, this one first."""
        return Pairs(
            images=np.concatenate([self.images, other.images]),
            captions=self.captions + other.captions,
            styles=self.styles + other.styles,
        )


def load_collection(path: Path) -> Pairs:
    """Read the pretraining collection: an npz of images, captions (bare names) and styles."""
    arrays = read_npz(path)
    missing = {"images", "captions", "styles"} - set(arrays)
    if missing:
        raise BenchError(f"{path} lacks the arrays {', '.join(sorted(missing))}")
    if any(arrays[name].ndim != 1 or arrays[name].dtype.kind != "U" for name in ("captions", "styles")):
        raise BenchError(f"{path}: captions and styles must be lists of texts. Draw the collection anew.")
    return Pairs(
        images=arrays["images"],
        captions=tuple(str(c).lower() for c in arrays["captions"]),
        styles=tuple(str(s) for s in arrays["styles"]),
    )


def openmoji_pairs(side: str) -> Pairs:
    """Return one side of OpenMoji64 under its bare names; side: "train" or "val"."""
    from bench.data.openmoji import OpenMoji64, openmoji64_splits

    data = OpenMoji64()
    rows = data.rows(openmoji64_splits().side(side))
    return Pairs(
        images=data.images[rows],
        captions=tuple(bare_caption(data.captions[row]).lower() for row in rows),
        styles=("openmoji",) * len(rows),
    )


def augment(image: np.ndarray, *, rng: np.random.Generator, mirror: bool) -> np.ndarray:
    """Return a changed picture, [64,64,3] uint8 -> the same form.

    Mirrored half the time where allowed; rotated up to 8 degrees, scaled 0.85 to 1.1, shifted up to
    4 px on white; channels scaled 0.92 to 1.06; grey 1 in 20; blurred 1 in 5; noisy 1 in 5.
    """
    from PIL import Image
    from scipy import ndimage

    picture = Image.fromarray(image[:, ::-1] if mirror and rng.random() < 0.5 else image)
    angle, scale = math.radians(rng.uniform(-8, 8)), 1 / rng.uniform(0.85, 1.1)
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    x, y = rng.uniform(-4, 4, size=2)
    matrix = (cos, sin, 32 - cos * (32 + x) - sin * (32 + y), -sin, cos, 32 + sin * (32 + x) - cos * (32 + y))
    picture = picture.transform(
        (64, 64),
        Image.Transform.AFFINE,
        matrix,
        Image.Resampling.BICUBIC,
        fillcolor=(255, 255, 255),
    )
    pixels = np.asarray(picture, dtype=np.float64) * rng.uniform(0.92, 1.06, size=3)
    grey, blurred, noisy = rng.random(3) < (0.05, 0.2, 0.2)
    if grey:
        pixels = np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2)
    if blurred:
        pixels = ndimage.gaussian_filter(pixels, (*[rng.uniform(0.3, 1.0)] * 2, 0))
    if noisy:
        pixels = pixels + rng.normal(size=pixels.shape) * 5
    return pixels.round().clip(0, 255).astype(np.uint8)


def view_of(pairs: Pairs, index: int, *, view: int, seed: int) -> np.ndarray:
    """Return a view of one picture, [64,64,3] uint8: 0 is the picture itself, others augmented."""
    if view == 0:
        return np.asarray(pairs.images[index])
    rng = generator(seed, "clip view", str(index), view)
    return augment(pairs.images[index], rng=rng, mirror=may_mirror(pairs.captions[index]))


class Groups:
    """Rows by caption, for batches of different captions."""

    def __init__(self, pairs: Pairs) -> None:
        """Index the pairs; captions in sorted order."""
        rows: dict[str, list[int]] = {}
        for row, caption in enumerate(pairs.captions):
            rows.setdefault(caption, []).append(row)
        self.captions = sorted(rows)
        self._all = [rows[caption] for caption in self.captions]
        self._own = [[r for r in group if pairs.styles[r] == "openmoji"] for group in self._all]

    def draw(
        self, rng: np.random.Generator, *, batch: int, openmoji_share: float, drop_word: float
    ) -> tuple[np.ndarray, list[str]]:
        """Return the rows of one batch, all of different captions, and their captions.

        batch: at most the number of different captions. openmoji_share: chance that a caption with
        an OpenMoji picture shows that one. drop_word: see `drop_words`.
        """
        size = min(batch, len(self.captions))
        picked = rng.choice(len(self.captions), size=size, replace=False)
        rows = []
        for group in picked:
            own = self._own[group] if rng.random() < openmoji_share else []
            rows.append(rng.choice(own or self._all[group]))
        texts = [drop_words(self.captions[group], rng=rng, rate=drop_word) for group in picked]
        return np.array(rows), texts


def drop_words(caption: str, *, rng: np.random.Generator, rate: float) -> str:
    """Return half of the captions less each word at `rate` (never all), the others whole."""
    if rng.random() < 0.5:
        return caption
    return " ".join(w for w in caption.split() if rng.random() >= rate) or caption


def build_tokenizer(captions: Sequence[str], *, size: int, length: int) -> Any:
    """Return a tokenizers.Tokenizer of at most `size` tokens that pads to `length` with id 0.

    The end token has the highest id, since open_clip pools the text where the id is highest.
    """
    clip = train_tokenizer(sorted(set(captions)), size=size, length=length)
    tokenizer = clip.backend_tokenizer
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=0, pad_token=tokenizer.id_to_token(0))
    assert clip.eos_token_id == tokenizer.get_vocab_size() - 1, clip.eos_token_id
    return tokenizer


def encode(tokenizer: Any, captions: Sequence[str]) -> torch.Tensor:
    """Return token ids, [N,L] int64."""
    import torch

    return torch.tensor([one.ids for one in tokenizer.encode_batch(list(captions))])
