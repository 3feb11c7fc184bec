"""The recipe of emoji-clip: pictures, batches, folding, and training at tiny size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from bench.content import Cache
from bench.emoji import clip
from bench.metrics.paired import retrieval_hits
from tests.bases import small_clip

NAMES = ["red heart", "blue heart", "old key", "left arrow", "cat", "open book"]


def pairs(count: int = 24) -> clip.Pairs:
    images = np.random.default_rng(0).integers(0, 256, size=(count, 64, 64, 3), dtype=np.uint8)
    return clip.Pairs(images, (NAMES * 4)[:count], np.arange(count) < 4)


def test_batches_hold_different_captions_and_depend_on_the_seed_alone() -> None:
    numbers, openmoji = np.tile(np.arange(6), 4), np.arange(24) < 4
    seeds = (1, 1, 2)
    draws = [clip.draw_rows(numbers, openmoji, rng=np.random.default_rng(s), batch=5) for s in seeds]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert draws[0].tolist() != draws[2].tolist()
    assert all(len(set(numbers[rows])) == len(rows) == 5 for rows in draws)
    many = np.concatenate(
        [clip.draw_rows(numbers, openmoji, rng=np.random.default_rng(s)) for s in range(200)]
    )
    share = np.mean(many[numbers[many] < 4] < 4)  # of four pictures of each one is OpenMoji's
    assert 0.3 + 0.7 / 4 - 0.06 < share < 0.3 + 0.7 / 4 + 0.06


def test_dropping_words_leaves_at_least_one() -> None:
    rng = np.random.default_rng(0)
    dropped = [clip.drop_words("open old book", rng=rng, rate=0.5) for _ in range(200)]
    assert all(dropped)
    assert 0.3 < np.mean([d != "open old book" for d in dropped]) < 0.6
    assert clip.drop_words("cat", rng=rng, rate=1.0) == "cat"


def test_augmented_pictures_stay_alike_and_on_white() -> None:
    image = torch.from_numpy(clip.openmoji_pairs("val").images[0]).permute(2, 0, 1)
    torch.manual_seed(0)
    views = [clip.augment(image, mirror=False) for _ in range(8)]
    assert all(view.shape == image.shape and view.dtype == torch.uint8 for view in views)
    assert all(bool((view != image).any()) and int(view[:, 0, 0].min()) > 215 for view in views)
    assert np.mean([(view.int() - image).abs().float().mean() for view in views]) < 60


def test_openmoji_names_carry_no_style() -> None:
    train, val = clip.openmoji_pairs("train"), clip.openmoji_pairs("val")
    assert not any("style" in caption for caption in train.captions + val.captions)
    assert len(train.captions) > 1000 and len(val.captions) > 100


def test_folding_keeps_the_function() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(7, 3)
    x, mean, deviation = torch.randn(5, 7), torch.randn(7), torch.rand(7) + 0.1
    expected = layer((x - mean) / deviation).detach()
    clip.fold(layer, mean, deviation)
    torch.testing.assert_close(layer(x).detach(), expected)


def test_the_towers_learn_on_the_frozen_trunks_features(tmp_path: Path) -> None:
    """Pictures are told by their features: after some steps captions find their own."""
    config, data = small_clip(), pairs(6)
    model, tokenizer = clip.build_model(config), clip.build_tokenizer(data.captions, config)
    trunk = {name: tensor.clone() for name, tensor in model.visual.trunk.state_dict().items()}
    cache = Cache(tmp_path)
    features = np.stack([clip.trunk_features(model, data, config, view=v, cache=cache) for v in (0, 1)])
    assert features.shape == (2, 6, 1280) and (features[0] != features[1]).any()
    clip.train_towers(model, tokenizer, data, features, checkpoint=tmp_path / "clip.ckpt", steps=40)
    model.eval()
    with torch.inference_mode():
        images = model.visual.head(torch.from_numpy(features[0]).float())
        texts = model.encode_text(clip.ids_of(tokenizer, data.captions))
    assert retrieval_hits(texts.numpy(), images.numpy()).mean() > 0.8
    assert all(torch.equal(trunk[name], tensor) for name, tensor in model.visual.trunk.state_dict().items())
