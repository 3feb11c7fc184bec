"""The recipe of emoji-clip, the judge of captions: a small CLIP model with a locked image tower.

The image tower is EfficientNet-Lite0 with ImageNet weights, frozen; its features of several
augmented views of every picture are taken once. A projection and a text transformer are then
trained on them with CLIP's symmetric loss (Radford et al. 2021, https://arxiv.org/abs/2103.00020;
locked image towers: Zhai et al. 2022, https://arxiv.org/abs/2111.07991).

Decisions. Captions are bare names, without the style suffix: the judge tells what is drawn, not in
which style, and the judge's loader strips the suffix likewise. A batch holds different captions
only, so that no second picture of a thing counts as a wrong answer. It sees the pretraining
collection, where most test names occur in other styles, and the train side of OpenMoji, never its
val or test pictures; the recipe was chosen by recall on val. Being built on the network of the
Fréchet distance, it is no independent witness of image quality; it reads captions.

    python -m bench.emoji.train_clip --collection FILE.npz --out FOLDER [--steps N] [--resume]
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.content import Cache, atomic_write, digest_arrays, digest_json
from bench.emoji.clip_model import ClipRecipe, build_model, export, model_config
from bench.emoji.clip_pairs import (
    Groups,
    Pairs,
    build_tokenizer,
    encode,
    load_collection,
    openmoji_pairs,
    view_of,
)
from bench.judges import judge_card, load_judge
from bench.judges.clip import preprocess_images
from bench.metrics.paired import retrieval_hits
from bench.randomness import generator
from bench.training.checkpoint import Trainable, load_checkpoint, save_checkpoint
from bench.types import BenchError

if TYPE_CHECKING:
    import torch

    Moments = tuple[torch.Tensor, torch.Tensor]

log = logging.getLogger("bench.emoji.train_clip")

_CHUNK = 1024
_AUGMENTATION = 1  # raise when `clip_pairs.augment` changes, to take the features again
_EVERY = 250


def trunk_features(model: Any, pairs: Pairs, recipe: ClipRecipe, *, cache: Cache, views: int) -> np.ndarray:
    """Return the frozen trunk's features of every view, [views,N,1280] float16.

    View 0 is the picture itself. Each chunk of 1,024 pictures is cached under its content, so a
    stopped run goes on where it was.
    """
    trunk = judge_card("efficientnet-lite0").digest
    result = np.empty((views, len(pairs.captions), 1280), dtype=np.float16)
    for view in range(views):
        for start in range(0, len(pairs.captions), _CHUNK):
            rows = range(start, min(start + _CHUNK, len(pairs.captions)))
            images = pairs.images[rows.start : rows.stop]
            key = {
                "what": "emoji-clip trunk features",
                "trunk": trunk,
                "images": digest_arrays(images=images),
                "captions": list(pairs.captions[rows.start : rows.stop]),
                "size": recipe.image_size,
                "view": [view, rows.start, recipe.seed, _AUGMENTATION] if view else 0,
            }
            began = time.perf_counter()
            make = partial(_chunk, model, pairs, recipe, view, rows)
            chunk = cache.load_or_make(key, make)
            result[view, rows.start : rows.stop] = chunk["features"]
            rate = len(rows) / (time.perf_counter() - began)
            log.info("features: view %d, %d pictures, %.0f/s", view, rows.stop, rate)
    return result


def _chunk(model: Any, pairs: Pairs, recipe: ClipRecipe, view: int, rows: range) -> dict[str, np.ndarray]:
    import torch
    from open_clip.transform import PreprocessCfg, image_transform_v2

    settings = model_config(recipe, 1)["preprocess_cfg"]
    transform = image_transform_v2(PreprocessCfg(size=recipe.image_size, **settings), is_train=False)
    model.visual.trunk.eval()
    parts = []
    for start in range(rows.start, rows.stop, 16):
        images = [
            view_of(pairs, i, view=view, seed=recipe.seed) for i in range(start, min(start + 16, rows.stop))
        ]
        batch = preprocess_images(np.stack(images), transform)
        with torch.inference_mode():
            features = model.visual.trunk(batch.contiguous(memory_format=torch.channels_last))
        parts.append(features.numpy().astype(np.float16))
    return {"features": np.concatenate(parts)}


def train(
    model: Any,
    tokenizer: Any,
    pairs: Pairs,
    features: np.ndarray,
    recipe: ClipRecipe,
    *,
    checkpoint: Path,
    validate: Callable[[Any], object] | None = None,
) -> None:
    """Train projection and text tower in place, going on from `checkpoint` if it exists.

    features [views,N,1280]; validate(model) -> anything loggable, called every 250 steps. At the
    end the features' mean and deviation are folded into the projection. BenchError where the loss
    is not finite.
    """
    import torch

    groups, moments, trained = Groups(pairs), _moments(features), Trainable(model)
    optimiser = torch.optim.AdamW(_decay_groups(trained, recipe), betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: _rate(s, recipe))
    parts: dict[str, Any] = {"model": trained, "optimiser": optimiser, "schedule": schedule}
    start, clock = load_checkpoint(checkpoint, **parts), time.perf_counter()
    for step in range(start, recipe.steps):
        model.train()
        loss = _loss(model, *_batch(tokenizer, groups, features, moments, recipe, step))
        if not torch.isfinite(loss):
            raise BenchError(f"the loss is {float(loss)} at step {step}; lower the learning rate")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        if (step + 1) % _EVERY == 0 or step + 1 == recipe.steps:
            save_checkpoint(checkpoint, step=step + 1, **parts)
            rate = (step + 1 - start) * recipe.batch / (time.perf_counter() - clock)
            found = validate(model) if validate is not None else ""
            log.info("step %d: loss %.3f, %.0f pairs/s %s", step + 1, loss.item(), rate, found)
    _fold(model.visual.head.mlp.fc1, *moments)


def _batch(
    tokenizer: Any,
    groups: Groups,
    features: np.ndarray,
    moments: Moments,
    recipe: ClipRecipe,
    step: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features [B,1280], standardised and disturbed, and token ids [B,L]."""
    import torch
    from torch.nn.functional import dropout

    torch.manual_seed(recipe.seed * 1_000_003 + step)
    rng = generator(recipe.seed, "clip batch", index=step)
    rows, texts = groups.draw(
        rng,
        batch=recipe.batch,
        openmoji_share=recipe.openmoji_share,
        drop_word=recipe.drop_word,
    )
    views = rng.integers(len(features), size=len(rows))
    x = (torch.from_numpy(features[views, rows]).float() - moments[0]) / moments[1]
    x = dropout(x + recipe.feature_noise * torch.randn_like(x), recipe.dropout)
    return x, encode(tokenizer, texts)


def _loss(model: Any, features: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    import torch
    from torch.nn.functional import cross_entropy, normalize

    images, texts = normalize(model.visual.head(features), dim=1), normalize(model.text(ids), dim=1)
    logits = model.logit_scale.exp() * images @ texts.T
    own = torch.arange(len(ids))
    return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2


def _moments(features: np.ndarray) -> Moments:
    import torch

    plain = features[0].astype(np.float64)
    mean, deviation = plain.mean(axis=0), plain.std(axis=0) + 1e-3
    return torch.from_numpy(mean).float(), torch.from_numpy(deviation).float()


def _decay_groups(trained: Trainable, recipe: ClipRecipe) -> list[dict[str, Any]]:
    matrices = [p for p in trained.parameters.values() if p.ndim > 1]
    others = [p for p in trained.parameters.values() if p.ndim <= 1]
    pairs = ((matrices, recipe.weight_decay), (others, 0.0))
    return [{"params": p, "weight_decay": d, "lr": recipe.learning_rate} for p, d in pairs]


def _rate(step: int, recipe: ClipRecipe) -> float:
    warm = min(1.0, (step + 1) / recipe.warmup)
    return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / recipe.steps)))


def _fold(layer: Any, mean: torch.Tensor, deviation: torch.Tensor) -> None:
    """Change a linear layer of (x - mean) / deviation into the same function of x."""
    import torch

    with torch.no_grad():
        layer.weight.div_(deviation)
        layer.bias.sub_(layer.weight @ mean)


def recall(images: np.ndarray, texts: np.ndarray) -> dict[str, float]:
    """Return recall at 1 and 5 both ways, for embeddings [N,D] of pictures and captions."""
    ways = {"caption to image": (texts, images), "image to caption": (images, texts)}
    return {
        f"{way} R@{k}": round(float(retrieval_hits(a, b, k=min(k, len(a))).mean()), 4)
        for way, (a, b) in ways.items()
        for k in (1, 5)
    }


def run(
    collection: Path, out: Path, recipe: ClipRecipe, *, work: Path, resume: bool = False
) -> dict[str, float]:
    """Do everything: features, training, export; return the shipped judge's recall on val.

    work: the folder of features, tokenizer and checkpoint; the last two are named by recipe and
    pictures, so another run never goes on from them. BenchError if a checkpoint of this very run
    exists and `resume` is false.
    """
    gathered, own, val = load_collection(collection), openmoji_pairs("train"), openmoji_pairs("val")
    pairs = gathered + own
    name = digest_json({"recipe": asdict(recipe), "pairs": pairs.digest})[:12]
    checkpoint = work / f"{name}.ckpt"
    if checkpoint.exists() and not resume:
        raise BenchError(f"{checkpoint} exists; add --resume to go on from it, or delete it")
    tokenizer = _tokenizer(pairs, recipe, work / f"{name}.tokenizer.json")
    model = build_model(recipe, tokenizer.get_vocab_size())
    features = trunk_features(model, pairs, recipe, cache=Cache(work), views=recipe.views)
    held = trunk_features(model, val, recipe, cache=Cache(work), views=1)
    train(
        model,
        tokenizer,
        pairs,
        features,
        recipe,
        checkpoint=checkpoint,
        validate=lambda m: _validate(m, tokenizer, held[0], val.captions, _moments(features)),
    )
    notes: dict[str, Any] = {
        "trained_on": {"collection": gathered.digest, "openmoji train": own.digest},
        "pictures": dict(sorted(Counter(pairs.styles).items())),
        "different_captions": len(set(pairs.captions)),
        "val_names_in_collection": len(set(val.captions) & set(gathered.captions)),
        "val_pictures": len(val.captions),
    }
    export(model, tokenizer, recipe, out, **notes)
    judge = load_judge("emoji-clip", weights=out)
    found = recall(judge.features(val.images), judge.text(val.captions))
    export(model, tokenizer, recipe, out, **notes, val_recall=found)
    return found


def _tokenizer(pairs: Pairs, recipe: ClipRecipe, path: Path) -> Any:
    """Learn the tokenizer once and keep it: learning it anew may number tied tokens otherwise."""
    from tokenizers import Tokenizer

    if not path.exists():
        learned = build_tokenizer(pairs.captions, size=recipe.vocabulary, length=recipe.text_length)
        atomic_write(path, learned.to_str().encode())
    return Tokenizer.from_file(str(path))


def _validate(
    model: Any,
    tokenizer: Any,
    features: np.ndarray,
    captions: Sequence[str],
    moments: Moments,
) -> dict[str, float]:
    import torch

    model.eval()
    with torch.inference_mode():
        images = model.visual.head((torch.from_numpy(features).float() - moments[0]) / moments[1])
        texts = model.encode_text(encode(tokenizer, captions))
    return recall(images.numpy(), texts.numpy())


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run."""
    import torch

    parser = argparse.ArgumentParser(prog="bench.emoji.train_clip", description=__doc__)
    parser.add_argument("--collection", type=Path, required=True, help="npz of the collection")
    parser.add_argument("--out", type=Path, required=True, help="the judge's folder to write")
    parser.add_argument("--work", type=Path, help="features and checkpoint (default: OUT.work)")
    parser.add_argument("--steps", type=int, default=ClipRecipe.steps)
    parser.add_argument("--views", type=int, default=ClipRecipe.views)
    parser.add_argument("--image-size", type=int, default=ClipRecipe.image_size)
    parser.add_argument("--seed", type=int, default=ClipRecipe.seed)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    log.setLevel(logging.INFO)
    torch.set_num_threads(given.threads)
    work = given.work or given.out.with_name(given.out.name + ".work")
    recipe = replace(
        ClipRecipe(),
        steps=given.steps,
        views=given.views,
        image_size=given.image_size,
        seed=given.seed,
    )
    try:
        found = run(given.collection, given.out, recipe, work=work, resume=given.resume)
    except BenchError as error:
        parser.exit(2, f"error: {error}\n")
    log.info("recall on OpenMoji val: %s", found)


if __name__ == "__main__":
    main()
