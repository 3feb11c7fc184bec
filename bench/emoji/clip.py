"""Makes emoji-clip, the judge of captions: a small CLIP model with a locked image tower.

    python -m bench.emoji.clip --families FOLDER --work FOLDER --out FOLDER

The image tower is EfficientNet-Lite0 with ImageNet weights, frozen; its features of several augmented views
of every picture are taken once. A projection and a text transformer are then trained on them with CLIP's
symmetric loss (Radford et al. 2021, https://arxiv.org/abs/2103.00020; locked image towers: Zhai et al. 2022,
https://arxiv.org/abs/2111.07991).

Captions are bare names: the judge tells what is drawn, not in which style. A batch holds different captions
only, so that no second picture of a thing counts as a wrong answer. It sees the pretraining collection and
the train side of OpenMoji, never its val or test pictures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from open_clip.model import CustomTextCLIP
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors.torch import save
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy, dropout, normalize
from torchvision.transforms import v2
from transformers import get_cosine_schedule_with_warmup

from bench.base.random import train_tokenizer
from bench.cli.terminal import say
from bench.content import Cache, atomic_write, digest_arrays, read_json, sha256_file, write_json
from bench.data.openmoji import OpenMoji64, openmoji64_splits
from bench.emoji import run, tables, train
from bench.emoji.pretrain import collection, may_mirror
from bench.judges import judge_card, load_judge
from bench.judges.clip import EMOJI_CLIP, EMOJI_CLIP_FILES, bare_caption, preprocess_images
from bench.judges.vision import efficientnet_state
from bench.metrics.paired import retrieval_hits
from bench.training.checkpoint import Trainable

VIEWS = 4


class Pairs(NamedTuple):
    """Pictures [N,64,64,3] uint8, their bare names, and whether they are OpenMoji's, [N] bool."""

    images: np.ndarray
    captions: list[str]
    openmoji: np.ndarray


def openmoji_pairs(side: str) -> Pairs:
    """Return one side of OpenMoji64 under its bare names; side: "train" or "val"."""
    data = OpenMoji64()
    rows = data.rows(openmoji64_splits().side(side))
    captions = [bare_caption(data.captions[row]).lower() for row in rows]
    return Pairs(data.images[rows], captions, np.ones(len(rows), bool))


def augment(image: torch.Tensor, *, mirror: bool) -> torch.Tensor:
    """Return a changed picture, [3,64,64] uint8 -> the same form, by torch's generator."""
    smooth, blur = v2.InterpolationMode.BILINEAR, torch.nn.ModuleList([v2.GaussianBlur(5, (0.3, 1.0))])
    changes = [
        v2.RandomHorizontalFlip(0.5 * mirror),
        v2.RandomAffine(8, (1 / 16, 1 / 16), (0.85, 1.1), interpolation=smooth, fill=255),
        v2.ColorJitter(brightness=0.07, saturation=0.1, hue=0.02),
        v2.RandomGrayscale(0.05),
        v2.RandomApply(blur, 0.2),
    ]
    changed: torch.Tensor = v2.Compose(changes)(image)
    return changed


def build_model(config: Mapping[str, Any]) -> Any:
    """Return the open_clip model of a configuration: ImageNet trunk, frozen; the rest untrained."""
    torch.manual_seed(0)
    model: Any = CustomTextCLIP(**{n: v for n, v in config["model_cfg"].items() if n != "custom_text"})
    trunk = model.visual.trunk
    trunk.load_state_dict(efficientnet_state(list(trunk.state_dict())))
    trunk.requires_grad_(False).eval().to(memory_format=torch.channels_last)
    return model


def build_tokenizer(captions: Sequence[str], config: Mapping[str, Any]) -> Any:
    """Return a tokenizers.Tokenizer, padded with id 0; the end's id is highest, where open_clip pools."""
    size, length = (config["model_cfg"]["text_cfg"][name] for name in ("vocab_size", "context_length"))
    tokenizer = train_tokenizer(sorted(set(captions)), size=size, length=length).backend_tokenizer
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=0, pad_token=tokenizer.id_to_token(0))
    return tokenizer


def trunk_features(
    model: Any, pairs: Pairs, config: Mapping[str, Any], *, view: int, cache: Cache
) -> np.ndarray:
    """Return the frozen trunk's features of a view (0: plain), [N,1280] float16, from the cache."""
    size = config["model_cfg"]["vision_cfg"]["image_size"]
    transform = image_transform_v2(PreprocessCfg(size=size, **config["preprocess_cfg"]), is_train=False)

    def picture(row: int) -> np.ndarray:
        image = torch.from_numpy(np.array(pairs.images[row])).permute(2, 0, 1)
        torch.manual_seed(VIEWS * row + view)
        changed = augment(image, mirror=may_mirror(pairs.captions[row])) if view else image
        return changed.permute(1, 2, 0).numpy()

    def make() -> dict[str, np.ndarray]:
        blocks = []
        for rows in np.array_split(range(len(pairs.captions)), range(16, len(pairs.captions), 16)):
            batch = preprocess_images(np.stack([picture(int(row)) for row in rows]), transform)
            with torch.inference_mode():
                blocks.append(model.visual.trunk(batch.contiguous(memory_format=torch.channels_last)).half())
        return {"features": torch.cat(blocks).numpy()}

    trunk, images = judge_card("efficientnet-lite0").digest, digest_arrays(images=pairs.images)
    key = {"what": "emoji-clip", "trunk": trunk, "images": images, "size": size, "view": view}
    return cache.load_or_make(key, make)["features"]


def draw_rows(
    captions: np.ndarray, openmoji: np.ndarray, *, rng: np.random.Generator, batch: int = 256
) -> np.ndarray:
    """Return rows of a batch of different captions [N], numbers; 3 in 10 known to OpenMoji show its own."""
    places = rng.random(len(captions))
    first = rng.random(int(captions.max()) + 1) < 0.3
    order = np.argsort(places - (openmoji & first[captions]))
    _, shown = np.unique(captions[order], return_index=True)
    return rng.permutation(order[shown])[:batch]


def drop_words(caption: str, *, rng: np.random.Generator, rate: float = 0.15) -> str:
    """Return half of the captions less each word at `rate` (never all), the others whole."""
    if rng.random() < 0.5:
        return caption
    return " ".join(w for w in caption.split() if rng.random() >= rate) or caption


def train_towers(
    model: Any, tokenizer: Any, pairs: Pairs, features: np.ndarray, *, checkpoint: Path, steps: int = 2500
) -> None:
    """Train projection and text tower in place, going on from `checkpoint` if it exists.

    features [views,N,1280]. At the end their mean and deviation are folded into the projection.
    """
    trained = Trainable(model)
    names, numbers = np.unique(pairs.captions, return_inverse=True)
    plain = torch.from_numpy(features[0]).double()
    mean, deviation = plain.mean(dim=0).float(), (plain.std(dim=0) + 1e-3).float()
    weights = trained.parameters.values()
    decays = [
        {"params": [p for p in weights if p.ndim > 1], "weight_decay": 0.2},
        {"params": [p for p in weights if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(decays, lr=1e-3, betas=(0.9, 0.98))
    schedule = get_cosine_schedule_with_warmup(optimiser, steps // 50, steps)
    model.train().visual.trunk.eval()

    def loss_of(step: int) -> torch.Tensor:
        torch.manual_seed(step)
        rng = np.random.default_rng([0, step])
        rows = draw_rows(numbers, pairs.openmoji, rng=rng)
        captions = [drop_words(str(names[number]), rng=rng) for number in numbers[rows]]
        views = rng.integers(len(features), size=len(rows))
        x = (torch.from_numpy(features[views, rows]).float() - mean) / deviation
        x = dropout(x + 0.1 * torch.randn_like(x), 0.3)
        images = normalize(model.visual.head(x), dim=1)
        texts = normalize(model.text(ids_of(tokenizer, captions)), dim=1)
        logits, wanted = model.logit_scale.exp().clamp(max=100) * images @ texts.T, torch.arange(len(rows))
        return (cross_entropy(logits, wanted) + cross_entropy(logits.T, wanted)) / 2

    parts = {"model": trained}
    train(checkpoint, loss_of, steps=steps, optimiser=optimiser, schedule=schedule, parts=parts)
    fold(model.visual.head.mlp.fc1, mean, deviation)


def fold(layer: Any, mean: torch.Tensor, deviation: torch.Tensor) -> None:
    """Change a linear layer of (x - mean) / deviation into the same function of x."""
    layer.weight.data.div_(deviation)
    layer.bias.data.sub_(layer.weight.data @ mean)


def ids_of(tokenizer: Any, captions: Sequence[str]) -> torch.Tensor:
    """Return token ids, [N,L] int64."""
    return torch.tensor([encoded.ids for encoded in tokenizer.encode_batch(list(captions))])


def export(model: Any, tokenizer: Any, config: Mapping[str, Any], folder: Path) -> None:
    """Write the judge's folder: open_clip configuration, float16 weights, tokenizer, manifest."""
    state = model.half().state_dict()
    write_json(folder / "open_clip_config.json", config)
    atomic_write(folder / "open_clip_model.safetensors", save({n: t.contiguous() for n, t in state.items()}))
    write_json(folder / "tokenizer.json", json.loads(tokenizer.to_str()))
    manifest = {
        **tables("manifests")["emoji-clip"],
        "image_size": config["model_cfg"]["vision_cfg"]["image_size"],
        "files": {name: sha256_file(folder / name) for name in EMOJI_CLIP_FILES},
        "image_tower": judge_card("efficientnet-lite0").digest,
    }
    write_json(folder / "manifest.json", manifest)


def main(
    families: Annotated[Path, typer.Option(help="The unpacked icon families.")],
    work: Annotated[Path, typer.Option(help="Drawings, features, and a checkpoint to go on from.")],
    out: Annotated[Path, typer.Option(help="Folder for the finished judge.")],
) -> None:
    """Make the judge of captions of suite emoji anew (an hour); no user of the benchmark needs this."""
    drawn, captions, _ = collection(families, work)
    openmoji, val, cache = openmoji_pairs("train"), openmoji_pairs("val"), Cache(work)
    pairs = Pairs(
        np.concatenate([drawn[:, 0], openmoji.images]),
        [caption.lower() for caption in captions] + openmoji.captions,
        np.arange(len(drawn) + len(openmoji.images)) >= len(drawn),
    )
    config = read_json(EMOJI_CLIP / "open_clip_config.json")
    path = work / "clip-tokenizer.json"
    if not path.exists():  # learned anew it might number tied tokens otherwise
        atomic_write(path, build_tokenizer(pairs.captions, config).to_str().encode())
    tokenizer, model = Tokenizer.from_file(str(path)), build_model(config)
    views = [trunk_features(model, pairs, config, view=view, cache=cache) for view in range(VIEWS)]
    train_towers(model, tokenizer, pairs, np.stack(views), checkpoint=work / "clip.ckpt")
    export(model, tokenizer, config, out)
    judge = load_judge("emoji-clip", weights=out)
    images, texts = judge.features(val.images), judge.text(val.captions)
    ways = {"caption to image": (texts, images), "image to caption": (images, texts)}
    hits = {f"{way} R@{k}": retrieval_hits(*pair, k=k) for way, pair in ways.items() for k in (1, 5)}
    scores = {name: round(found.mean(), 4) for name, found in hits.items()}
    say(f"wrote {out}; recall on OpenMoji's val side: {scores}")


if __name__ == "__main__":
    run(main)
