"""Judges that need a weight file: the FID network and DINOv2."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.content import sha256_file
from bench.judges.judge import Judge, JudgeCard, need_file
from bench.types import BenchError, raise_of_machine

if TYPE_CHECKING:
    import torch

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SIDE = 299
_INCEPTION_SHA256_START = "6726825d"  # the digest in the name of torch-fidelity's release file
_INCEPTION_REMEDY = (
    f"Give {INCEPTION_FILE} (release v0.2.0 of toshas/torch-fidelity on GitHub), or run "
    "torch-fidelity's own FID once where there is internet: its copy in torch.hub's folder is found."
)

DINOV2_MODEL = "vit_base_patch14_dinov2"
DINOV2_SIDE = 224
DINOV2_OPTIONS: dict[str, Any] = {"img_size": DINOV2_SIDE, "num_classes": 0}
_DINOV2_REMEDY = (
    "Give dinov2_vitb14_pretrain.pth (facebookresearch/dinov2 on GitHub) or model.safetensors of "
    "timm/vit_base_patch14_dinov2.lvd142m (Hugging Face Hub)."
)
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def inception_card(name: str, weights: Path | None) -> JudgeCard:
    """Return the card of the FID network; without weights, of torch-fidelity's copy."""
    path = _inception_file(name, weights)
    digest = sha256_file(path)
    if not digest.startswith(_INCEPTION_SHA256_START):
        raise BenchError(
            f"{path} has SHA-256 {digest[:16]}..., the FID network's weights start with "
            f"{_INCEPTION_SHA256_START}: give torch-fidelity's {INCEPTION_FILE}"
        )
    return JudgeCard(
        name="Inception-v3",
        digest=digest,
        resize=f"bilinear to {INCEPTION_SIDE}x{INCEPTION_SIDE} as in TensorFlow 1 "
        "(torch-fidelity); (x - 128) / 128",
    )


def load_inception(name: str, card: JudgeCard, weights: Path | None, device: str) -> Judge:
    """Load the FID network as torch-fidelity builds it."""
    import torch

    path = _inception_file(name, weights)
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise BenchError("judge 'inception-v3' needs torch-fidelity: pip install torch-fidelity") from None
    try:
        torch.load(path, map_location="cpu", weights_only=True)  # refuses a file with code in it
    except Exception as error:
        raise_of_machine(error)
        raise BenchError(f"{path} holds no plain weights ({error})") from error
    network = FeatureExtractorInceptionV3(
        "inception-v3", ["2048"], feature_extractor_weights_path=str(path)
    ).to(device)

    def images(batch: np.ndarray) -> torch.Tensor:
        x = torch.from_numpy(np.ascontiguousarray(batch)).to(device).permute(0, 3, 1, 2)
        return network(x)[0]

    return Judge(card, images=images, side=INCEPTION_SIDE)


def _inception_file(name: str, weights: Path | None) -> Path:
    """Return the file given, else the one torch-fidelity fetched; BenchError without either."""
    if weights is None:
        import torch

        cached = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
        weights = cached if cached.is_file() else None
    return need_file(name, weights, _INCEPTION_REMEDY)


def dinov2_card(name: str, weights: Path | None) -> JudgeCard:
    """Return the card of DINOv2 ViT-B/14.

    No digest is demanded (two publishers serialise the same weights), but it is recorded. Source:
    Oquab et al. 2023, arXiv 2304.07193; proposed for this use by Stein et al. 2023, arXiv
    2306.04675.
    """
    side = DINOV2_SIDE
    return JudgeCard(
        name="DINOv2-ViT-B/14",
        digest=sha256_file(need_file(name, weights, _DINOV2_REMEDY)),
        resize=f"bicubic with antialias to {side}x{side}, clamped to [0, 255], no crop; ImageNet "
        "mean and deviation; class token after the last norm; positions resampled by timm",
    )


def load_dinov2(name: str, card: JudgeCard, weights: Path | None, device: str) -> Judge:
    """Load DINOv2 through timm, from a file in timm's or in the authors' format."""
    import torch
    from torch.nn.functional import interpolate

    path = need_file(name, weights, _DINOV2_REMEDY)
    network = _dinov2_network(path).eval().requires_grad_(False).to(device)
    mean = torch.tensor(_MEAN, device=device).view(1, 3, 1, 1) * 255
    deviation = torch.tensor(_DEVIATION, device=device).view(1, 3, 1, 1) * 255
    side = (DINOV2_SIDE, DINOV2_SIDE)

    def images(batch: np.ndarray) -> torch.Tensor:
        x = torch.from_numpy(np.ascontiguousarray(batch)).to(device).permute(0, 3, 1, 2).float()
        x = interpolate(x, side, mode="bicubic", antialias=True).clamp(0, 255)
        return network((x - mean) / deviation)

    return Judge(card, images=images, side=DINOV2_SIDE)


def _dinov2_network(path: Path) -> Any:
    import timm
    from timm.models import load_checkpoint
    from timm.models.vision_transformer import checkpoint_filter_fn

    network = timm.create_model(DINOV2_MODEL, pretrained=False, **DINOV2_OPTIONS)
    try:
        load_checkpoint(network, str(path), use_ema=False, filter_fn=checkpoint_filter_fn, weights_only=True)
    except Exception as error:  # timm, torch and safetensors raise many kinds for a wrong file
        raise_of_machine(error)
        said = " ".join(str(error).split())
        raise BenchError(f"timm cannot load {DINOV2_MODEL} from {path} ({said}). {_DINOV2_REMEDY}") from error
    return network
