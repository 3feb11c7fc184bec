"""CLIP judges: emoji-clip, shipped with the benchmark, and any open_clip model from a file."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import with_config
from typing_extensions import TypedDict

from bench.content import Count, Name, Text, digest_json, read_json, sha256_file
from bench.judges import Judge, JudgeCard, check_digest, need_file
from bench.types import BenchError, raise_of_machine, unknown

if TYPE_CHECKING:
    import torch

EMOJI_CLIP = Path(__file__).parent.parent / "emoji" / "assets" / "emoji-clip"
EMOJI_CLIP_FILES = ("open_clip_config.json", "open_clip_model.safetensors", "tokenizer.json")
_OPEN_REMEDY = (
    "Take the weights of that model from its publisher (for example open_clip_model.safetensors of "
    "a laion/CLIP-... repository on the Hugging Face Hub) and give the file."
)
_STYLE = re.compile(r",\s*[^,]+\sstyle\s*$")


@with_config(extra="allow")
class _Manifest(TypedDict):
    files: dict[Name, Text]
    image_size: Count


def bare_caption(caption: str) -> str:
    """Return a caption without its style suffix: "red heart, openmoji style" -> "red heart".

    emoji-clip is trained on bare names and reads captions so: it judges content, not style.
    """
    return _STYLE.sub("", caption).strip()


class EmojiClip:
    """Image and caption embeddings for emoji; weights: another folder than the shipped one."""

    def card(self, name: str, weights: Path | None) -> JudgeCard:
        """Return the card after checking every file that the folder's manifest names."""
        folder = weights or EMOJI_CLIP
        remedy = "restore the folder, or make it: python -m bench.emoji.clip --help"
        try:
            manifest: _Manifest = read_json(folder / "manifest.json", of=_Manifest, remedy="")
        except BenchError as error:
            raise BenchError(
                f"judge '{name}' has no valid manifest in {folder} ({error}); {remedy}"
            ) from error
        files, size = manifest["files"], manifest["image_size"]
        missing = sorted(set(EMOJI_CLIP_FILES) - set(files))
        if missing:
            raise BenchError(f"the manifest in {folder} does not name {', '.join(missing)}; {remedy}")
        for file, digest in sorted(files.items()):
            check_digest(folder / file, digest, remedy)
        return JudgeCard(
            name="emoji-clip",
            digest=digest_json(files),
            resize=f"bicubic with antialias (Pillow) to {size}x{size}; captions without style suffix",
            reads_text=True,
        )

    def load(self, name: str, weights: Path | None, device: str) -> Judge:
        """Load the towers and the tokenizer."""
        import torch
        from tokenizers import Tokenizer

        card, folder = self.card(name, weights), weights or EMOJI_CLIP

        def tokenizer_of() -> Callable[[list[str]], torch.Tensor]:
            read = Tokenizer.from_file(str(folder / "tokenizer.json"))
            return lambda captions: torch.tensor([text.ids for text in read.encode_batch(captions)])

        return _judge(card, f"local-dir:{folder}", None, tokenizer_of, device, words=bare_caption)


class OpenClip:
    """Any open_clip model from a file, by the name open-clip/MODEL."""

    def card(self, name: str, weights: Path | None) -> JudgeCard:
        """Return the card; the file's digest is recorded, none is demanded."""
        return JudgeCard(
            name=name.removeprefix("open-clip/"),
            digest=sha256_file(need_file(name, weights, _OPEN_REMEDY)),
            resize="open_clip's own evaluation transform for this model",
            reads_text=True,
        )

    def load(self, name: str, weights: Path | None, device: str) -> Judge:
        """Load the towers and open_clip's tokenizer."""
        import open_clip

        card, path = self.card(name, weights), need_file(name, weights, _OPEN_REMEDY)
        if card.name not in open_clip.list_models():
            raise unknown("open_clip model", card.name, open_clip.list_models())
        return _judge(card, card.name, path, lambda: open_clip.get_tokenizer(card.name), device)


def _judge(
    card: JudgeCard,
    name: str,
    pretrained: Path | None,
    tokenizer_of: Callable[[], Any],
    device: str,
    *,
    words: Callable[[str], str] = str,
) -> Judge:
    """Load a model of open_clip by its name there; words: what its tokenizer reads of a caption."""
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    weights = None if pretrained is None else str(pretrained)
    try:
        model = open_clip.create_model(
            name, pretrained=weights, require_pretrained=True, device=device
        ).eval()
        transform = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
        tokenizer = tokenizer_of()
    except Exception as error:  # the libraries raise many kinds for a damaged file
        raise_of_machine(error)
        raise BenchError(
            f"open_clip cannot load '{name}' from {pretrained or name} ({error}). Give files of that model."
        ) from error

    model.eval()

    def images(batch: np.ndarray) -> torch.Tensor:
        return model.encode_image(preprocess_images(batch, transform).to(device))

    def texts(captions: list[str]) -> torch.Tensor:
        return model.encode_text(tokenizer([words(caption) for caption in captions]).to(device))

    size = model.visual.preprocess_cfg["size"]
    return Judge(card, images=images, texts=texts, side=size if isinstance(size, int) else int(size[0]))


def preprocess_images(batch: np.ndarray, transform: Any) -> torch.Tensor:
    """Apply an open_clip evaluation transform: [B,H,W,3] uint8 -> [B,3,S,S] float32."""
    import torch
    from PIL import Image

    return torch.stack([transform(Image.fromarray(image)) for image in batch])
