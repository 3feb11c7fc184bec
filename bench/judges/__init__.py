"""Judges: the networks that turn images and captions into features for metrics.

Each has the name that headers print, the digest of its weights and its resize rule; all three are
part of the protocol. `judge_card` tells them without loading a network. They are found by name in
`bench.registry`; "open-clip/ViT-L-14-quickgelu/openai" stands in the row open-clip/MODEL/TAG.

Where no weight file is given, it is looked for in the folder of judges, that of the environment variable
BENCH_JUDGES or else `judges` in the cache, under the name that its Source says: inception-v3.pth,
dinov2-vitb14.safetensors, open-clip-ViT-L-14-quickgelu-openai.safetensors. `fetch_judge` puts it there.
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
from bench.content import Cache, atomic_path, check_array, refusing, sha256_file
from bench.types import BenchError, unknown

if TYPE_CHECKING:
    import torch

JUDGES_VARIABLE = "BENCH_JUDGES"
CLIP_ROW = "open-clip/MODEL/TAG"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a weight file is published.

    stem: of its name in the folder of judges. file: its name there. repo: on the Hugging Face Hub, which
    tells its SHA-256 when it is fetched; else url and sha256. also: other files that will do.
    """

    stem: str
    file: str
    repo: str = ""
    url: str = ""
    sha256: str = ""
    also: str = ""

    @property
    def words(self) -> str:
        """The file and who publishes it."""
        digest = f"SHA-256 {self.sha256[:16]}..." if self.sha256 else ""
        more = ", ".join(part for part in (self.repo, digest) if part)
        return f"{self.url or self.file}{more and f' ({more})'}{self.also}"


# What metrics of photographs ask, see bench.judges.detect.
NETWORKS = {
    "hed": Source(stem="ControlNetHED", file="ControlNetHED.pth", repo="lllyasviel/Annotators"),
    "pidinet": Source(stem="table5_pidinet", file="table5_pidinet.pth", repo="lllyasviel/Annotators"),
    "vgg16": Source(
        stem="vgg16",
        file="vgg16-397923af.pth",
        url="https://download.pytorch.org/models/vgg16-397923af.pth",
        sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    ),
    "lpips": Source(
        stem="lpips",
        file="weights-vgg16-lpips.pth",
        url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-vgg16-lpips.pth",
        sha256="a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
        also=", or vgg.pth of richzhang/PerceptualSimilarity, which is the same file",
    ),
}


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
        digest: str = "",
    ) -> None:
        """Join a card with its towers: uint8 [B,H,W,3] -> [B,D] and captions -> [B,D].

        side: height and width of the network's input in pixels, where it is square and known. digest: by
        which features are cached, else the card's; where one file serves judges that see differently.
        """
        self.card, self.name, self.digest, self.side = card, card.name, digest or card.digest, side
        self._images, self._texts = images, texts

    def features(self, images: np.ndarray, *, batch_size: int = 8) -> np.ndarray:
        """Return the features of images: [N,H,W,3] uint8 RGB -> [N,D] float32, not normalised.

        Results do not depend on batch_size beyond rounding. BenchError for images of another form.
        """
        shape = (len(images) or 1, None, None, 3)
        check_array(images, "a judge's set of images", dtype=np.uint8, shape=shape)
        return _in_batches(self._images, images, batch_size)

    def text(self, captions: Sequence[str]) -> np.ndarray:
        """Return embeddings of captions, [N,D] float32, not normalised; BenchError without a text tower."""
        if self._texts is None:
            raise BenchError(f"judge '{self.name}' reads images only; choose a CLIP judge for text")
        return _in_batches(self._texts, list(captions), 64)


class JudgeKind(Protocol):
    """How judges of one name are made; those whose file is published have `source(name)`, see Published.

    name: as the user wrote it. weights: the file or folder given, None without one.
    """

    def card(self, name: str, weights: Path | None) -> JudgeCard:
        """Return the card without loading the network; BenchError for missing or changed weights."""

    def load(self, name: str, weights: Path | None, device: str) -> Judge:
        """Load the network, its weights checked first; errors as `card`."""


class Published:
    """Kinds of judges whose weights are one published file; no digest of it is demanded, but it is recorded.

    published: who publishes it. title, resize: of the card.
    """

    published: Source
    title: str
    resize: str

    def source(self, name: str) -> Source:
        """Return who publishes the file."""
        return self.published

    def file(self, name: str, weights: Path | None) -> Path:
        """Return the file given, else the one in the folder of judges; errors as `need_file`."""
        return need_file(name, weights, self.source(name))

    def card(self, name: str, weights: Path | None) -> JudgeCard:
        """Return the card."""
        return JudgeCard(name=self.title, digest=sha256_file(self.file(name, weights)), resize=self.resize)


def judge_card(name: str, *, weights: str | Path | None = None) -> JudgeCard:
    """Return the card of a judge without loading its network.

    weights: the file of a judge that needs one, else that in the folder of judges; another folder for
    emoji-clip. BenchError for an unknown name, missing or changed weights.
    """
    return _kind(name).card(name, None if weights is None else Path(weights))


def load_judge(name: str, *, weights: str | Path | None = None, device: str = "cpu") -> Judge:
    """Load a judge, its weights checked first; name, weights and errors as `judge_card`."""
    return _kind(name).load(name, None if weights is None else Path(weights), device)


def fetch_judge(name: str) -> Path:
    """Download a weight file, unless it is there, and return where it lies, its digest checked.

    name: of a judge, or of NETWORKS. BenchError without a network, where the file is another than its
    publisher says, and for a judge that needs none.
    """
    known = {*registry.rows("judge"), *NETWORKS}
    if name not in known and not name.startswith("open-clip/") and ":" not in name:
        raise unknown("judge or network", name, known)
    kind: Any = None if name in NETWORKS else _kind(name)
    if kind is not None and not hasattr(kind, "source"):
        raise BenchError(f"judge '{name}' has its weights with it: there is nothing to fetch.")
    source: Source = NETWORKS[name] if kind is None else kind.source(name)
    there = _found(source.stem)
    if there is not None:
        return there
    path = judges_folder() / f"{source.stem}{Path(source.file).suffix}"
    with atomic_path(path) as part:
        promised = _download(source, part, path)
        digest = sha256_file(part)
        if digest != promised:
            told = f"{digest[:16]}..., its publisher says {promised[:16]}..."
            raise BenchError(f"{source.file} came with SHA-256 {told}. Nothing was kept; fetch it again.")
    return path


def _download(source: Source, path: Path, target: Path) -> str:
    """Write a published file to a path and return the SHA-256 that its publisher promises."""
    import torch
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, is_offline_mode

    url, promised = source.url, source.sha256
    else_ = f"where there is a network, take {source.words}, and put it here as {target}."
    with refusing(lambda why: f"{source.file} cannot be fetched ({why}): {else_}"):
        if not (url or source.repo):
            raise ValueError("nobody publishes it")
        if is_offline_mode():
            raise ValueError("HF_HUB_OFFLINE is set")
        if source.repo:
            url = hf_hub_url(source.repo, source.file)
            promised = get_hf_file_metadata(url, timeout=10).etag or ""
        torch.hub.download_url_to_file(url, str(path), progress=False)
    return promised


def _kind(name: str) -> JudgeKind:
    kind: JudgeKind = registry.load("judge", CLIP_ROW if name.startswith("open-clip/") else name)
    return kind


def judges_folder() -> Path:
    """Return where weight files of judges are looked for and put."""
    given = os.environ.get(JUDGES_VARIABLE)
    return Path(given) if given else Cache().folder / "judges"


def need_file(name: str, weights: Path | None, source: Source) -> Path:
    """Return the weight file given, else that in the folder of judges; BenchError where none or two are."""
    path = weights or _found(source.stem)
    if path is None or not path.is_file():
        where = f"{judges_folder()} ({JUDGES_VARIABLE} names another folder)"
        raise BenchError(
            f"'{name}' needs a weight file; got {weights}. Fetch it with `bench judges fetch {name}`, or "
            f"take {source.words}, and put it as {source.stem}.* into {where}."
        )
    return path


def _found(stem: str) -> Path | None:
    folder = judges_folder()
    paths = sorted(folder.glob(f"{glob.escape(stem)}.*"))
    if len(paths) > 1:
        held = ", ".join(path.name for path in paths)
        raise BenchError(f"{folder} holds {len(paths)} files for '{stem}': {held}. Leave one.")
    return paths[0] if paths else None


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
