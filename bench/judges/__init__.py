"""Judges: the networks that turn images and captions into features for metrics.

Each has the name that headers print, the digest of its weights and its resize rule; all three are
part of the protocol. `judge_card` tells them without loading a network. They are found by name in
`bench.registry`; "open-clip/ViT-B-32" stands in the row open-clip/MODEL.

Where no weight file is given, it is looked for in the folder that the environment variable BENCH_JUDGES
names, under the judge's name: inception-v3.pth, dinov2-vitb14.pth, open-clip-ViT-B-16.safetensors.
"""

from __future__ import annotations

from pathlib import Path

from bench import registry
from bench.judges.judge import Judge, JudgeCard, JudgeKind

__all__ = ["Judge", "JudgeCard", "JudgeKind", "judge_card", "load_judge"]


def judge_card(name: str, *, weights: str | Path | None = None) -> JudgeCard:
    """Return the card of a judge without loading its network.

    weights: the file of inception-v3, dinov2-vitb14 or open-clip/MODEL, else that in BENCH_JUDGES; another
    folder for emoji-clip. BenchError for an unknown name, missing or changed weights.
    """
    return _kind(name).card(name, Path(weights) if weights is not None else None)


def load_judge(name: str, *, weights: str | Path | None = None, device: str = "cpu") -> Judge:
    """Load a judge, its weights checked first; name, weights and errors as `judge_card`.

    device: a torch device name.
    """
    return _kind(name).load(name, Path(weights) if weights is not None else None, device)


def _kind(name: str) -> JudgeKind:
    kind: JudgeKind = registry.load("judge", "open-clip/MODEL" if name.startswith("open-clip/") else name)
    return kind
