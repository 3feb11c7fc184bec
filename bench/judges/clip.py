"""CLIP judges: emoji-clip, shipped with the benchmark, and any open_clip model from a file."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from pydantic import with_config
from typing_extensions import TypedDict

from bench.content import Count, Name, Text, digest_json, read_json, refusing
from bench.judges import Judge, JudgeCard, Published, Source, check_digest
from bench.judges.vision import folded
from bench.types import BenchError, unknown

if TYPE_CHECKING:
    import torch

EMOJI_CLIP = Path(__file__).parent.parent / "emoji" / "assets" / "emoji-clip"
EMOJI_CLIP_FILES = ("open_clip_config.json", "open_clip_model.safetensors", "tokenizer.json")
OWN = "own"  # the tag of weights that no publisher's tag names
_FILE = "open_clip_model.safetensors"  # as repositories of the hub call it
_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
_STYLE = re.compile(r",\s*[^,]+\sstyle\s*$")


@with_config(extra="allow")
class _Manifest(TypedDict):
    files: dict[Name, Text]
    image_size: Count


def bare_caption(caption: str) -> str:
    """Return a caption as emoji-clip reads it: "red heart, openmoji style" -> "red heart"."""
    return _STYLE.sub("", caption).strip()


class EmojiClip:
    """Image and caption embeddings for emoji; weights: another folder than the shipped one."""

    def card(self, name: str, weights: Path | None) -> JudgeCard:
        """Return the card after checking every file that the folder's manifest names."""
        folder = weights or EMOJI_CLIP
        remedy = "restore the folder, or make it: python -m bench.emoji.clip --help"
        wrong = f"judge '{name}' has no valid manifest in {folder}"
        with refusing(lambda why: f"{wrong} ({why}); {remedy}", BenchError):
            manifest: _Manifest = read_json(folder / "manifest.json", of=_Manifest, remedy="")
            files, size = manifest["files"], manifest["image_size"]
            if missing := sorted({*EMOJI_CLIP_FILES} - {*files}):
                raise BenchError(f"it does not name {', '.join(missing)}")
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


class OpenClip(Published):
    """Any open_clip model with weights of one of its tags, by the name open-clip/MODEL/TAG.

    What a tag's weights were trained with, activation and preprocessing, is open_clip's to know. TAG "own":
    a file of the user's, read as the model alone says.
    """

    title, resize = "open-clip", "open_clip's own evaluation transform for this model"

    def source(self, name: str) -> Source:
        """Return who publishes a tag's weights."""
        model, tag, known = _tagged(name)
        repo, _, file = str(known.get("hf_hub", "")).rpartition("/")
        return Source(
            stem=f"open-clip-{model}-{tag}",
            file=(file or _FILE) if repo else "a file of your own",
            repo=repo,
            also=", or its open_clip_pytorch_model.bin" if repo else "",
        )

    def card(self, name: str, weights: Path | None) -> JudgeCard:
        """Return the card."""
        card = super().card(name, weights)
        named = f"{name.removeprefix('open-clip/')} {card.digest[:8]}"
        return replace(card, name=named, reads_text=True)

    def load(self, name: str, weights: Path | None, device: str) -> Judge:
        """Load the towers and open_clip's tokenizer."""
        import open_clip

        card, path = self.card(name, weights), self.file(name, weights)
        model, _, known = _tagged(name)
        seen = {key: known[key] for key in _PREPROCESSING if key in known}
        return _judge(card, model, path, lambda: open_clip.get_tokenizer(model), device, preprocessing=seen)


def _tagged(name: str) -> tuple[str, str, dict[str, Any]]:
    """Return model, tag and what open_clip knows of the tag; BenchError where these are no judge."""
    import open_clip

    model, _, tag = name.removeprefix("open-clip/").partition("/")
    config = open_clip.get_model_config(model)
    if config is None:
        raise unknown("open_clip model", model, open_clip.list_models())
    tags = open_clip.list_pretrained_tags_by_model(model)
    if tag not in (*tags, OWN):
        write = f"open-clip/{model}/TAG, where TAG is {', '.join(tags)}{' or ' * bool(tags)}{OWN}"
        raise BenchError(f"judge '{name}' is no model with a pretrained tag: write {write}, a file of yours.")
    known = dict(open_clip.get_pretrained_cfg(model, tag))
    quick = bool(known.get("quick_gelu"))
    twin = f"{model}-quickgelu" if quick else model.removesuffix("-quickgelu")
    other = quick != bool(config.get("quick_gelu")) and tag in open_clip.list_pretrained_tags_by_model(twin)
    if tag != OWN and other and twin != model:
        how = f"were trained with{'' if quick else 'out'} QuickGELU, and {model} is built the other way"
        raise BenchError(f"judge '{name}': the weights {tag} {how}. Use open-clip/{twin}/{tag}.")
    return model, tag, known


def _judge(
    card: JudgeCard,
    name: str,
    pretrained: Path | None,
    tokenizer_of: Callable[[], Any],
    device: str,
    *,
    words: Callable[[str], str] = str,
    preprocessing: dict[str, Any] | None = None,
) -> Judge:
    """Load a model of open_clip; words: what is read of a caption; preprocessing: what no file says."""
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    how: dict[str, Any] = {"require_pretrained": True, "force_preprocess_cfg": preprocessing}
    wrong = f"open_clip cannot load '{name}' from {pretrained or name}"
    with refusing(lambda why: f"{wrong} ({why}). Give files of that model."):
        file = None if pretrained is None else str(pretrained)
        model = open_clip.create_model(name, pretrained=file, device=device, **how).eval()
        transform = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
        tokenizer = tokenizer_of()
    folded(model.visual)

    def images(batch: np.ndarray) -> torch.Tensor:
        return model.encode_image(preprocess_images(batch, transform).to(device))

    def texts(captions: list[str]) -> torch.Tensor:
        return model.encode_text(tokenizer([words(caption) for caption in captions]).to(device))

    side = int(np.ravel(model.visual.preprocess_cfg["size"])[0])
    digest = digest_json([card.digest, name, preprocessing]) if pretrained else ""
    return Judge(card, images=images, texts=texts, side=side, digest=digest)


def preprocess_images(batch: np.ndarray, transform: Any) -> torch.Tensor:
    """Apply an open_clip evaluation transform: [B,H,W,3] uint8 -> [B,3,S,S] float32."""
    import torch

    return torch.stack([transform(Image.fromarray(image)) for image in batch])
