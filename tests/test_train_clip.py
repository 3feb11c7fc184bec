"""The recipe of emoji-clip: pictures, batches, folding, and resumption to the same bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.emoji import train_clip
from bench.emoji.clip_model import ClipRecipe, build_model
from bench.emoji.clip_pairs import (
    Groups,
    Pairs,
    augment,
    build_tokenizer,
    drop_words,
    load_collection,
    openmoji_pairs,
)
from bench.types import BenchError

NAMES = ("red heart", "blue heart", "old key", "left arrow", "cat", "open book")


def pairs(count: int = 24) -> Pairs:
    rng = np.random.default_rng(0)
    return Pairs(
        images=rng.integers(0, 256, size=(count, 64, 64, 3), dtype=np.uint8),
        captions=tuple(NAMES[i % len(NAMES)] for i in range(count)),
        styles=tuple("openmoji" if i < 4 else "noto" for i in range(count)),
    )


def test_batches_hold_different_captions_and_depend_on_the_seed_alone() -> None:
    groups = Groups(pairs())
    draws = [
        groups.draw(np.random.default_rng(s), batch=5, openmoji_share=1.0, drop_word=0.0) for s in (1, 1, 2)
    ]
    np.testing.assert_array_equal(draws[0][0], draws[1][0])
    assert draws[0][1] == draws[1][1] != draws[2][1]
    for rows, texts in draws:
        assert len(set(texts)) == 5
        assert [pairs().captions[row] for row in rows] == texts
        assert all(row < 4 for row, text in zip(rows, texts, strict=True) if text in NAMES[:4])


def test_dropping_words_leaves_at_least_one() -> None:
    rng = np.random.default_rng(0)
    dropped = [drop_words("open old book", rng=rng, rate=0.5) for _ in range(200)]
    assert all(dropped)
    assert 0.3 < np.mean([d != "open old book" for d in dropped]) < 0.6
    assert drop_words("cat", rng=rng, rate=1.0) == "cat"


def test_augmented_pictures_stay_alike_and_on_white() -> None:
    image = openmoji_pairs("val").images[0]
    rng = np.random.default_rng(0)
    views = [augment(image, rng=rng, mirror=False) for _ in range(8)]
    for view in views:
        assert view.shape == image.shape and view.dtype == np.uint8
        assert (view != image).any()
        assert view[0, 0].min() > 215
    assert np.mean([np.abs(v.astype(int) - image).mean() for v in views]) < 60


def test_pairs_and_collections_are_checked(tmp_path: Path) -> None:
    good = pairs()
    with pytest.raises(BenchError, match="pairs need"):
        Pairs(images=good.images[:3], captions=good.captions, styles=good.styles)
    with pytest.raises(BenchError, match="styles"):
        Pairs(images=good.images, captions=good.captions, styles=good.styles[:2])
    path = tmp_path / "collection.npz"
    np.savez(path, images=good.images, captions=np.array(good.captions))
    with pytest.raises(BenchError, match="lacks the arrays styles"):
        load_collection(path)
    np.savez(path, images=good.images, captions=np.array(good.captions), styles=np.array(good.styles))
    assert load_collection(path).digest == good.digest
    for captions in (np.array("a"), np.array([b"a"]), np.array([1])):
        np.savez(path, images=good.images[:1], captions=captions, styles=captions)
        with pytest.raises(BenchError, match="lists of texts"):
            load_collection(path)


def test_openmoji_names_carry_no_style() -> None:
    train, val = openmoji_pairs("train"), openmoji_pairs("val")
    assert not any("style" in caption for caption in train.captions + val.captions)
    assert len(train.captions) > 1000 and len(val.captions) > 100


def test_folding_keeps_the_function() -> None:
    import torch

    torch.manual_seed(0)
    layer = torch.nn.Linear(7, 3)
    x, mean, deviation = torch.randn(5, 7), torch.randn(7), torch.rand(7) + 0.1
    expected = layer((x - mean) / deviation).detach()
    train_clip._fold(layer, mean, deviation)
    torch.testing.assert_close(layer(x).detach(), expected)


def test_a_stopped_training_resumes_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(train_clip, "_EVERY", 2)
    recipe = ClipRecipe(
        embedding=16, text_width=32, text_layers=1, vocabulary=200, steps=6, batch=6, warmup=2
    )
    data = pairs()
    tokenizer = build_tokenizer(data.captions, size=200, length=recipe.text_length)
    features = np.random.default_rng(1).random((2, 24, 1280)).astype(np.float16)

    def train(name: str, stop_after: int) -> dict[str, torch.Tensor]:
        calls = []

        def validate(model: object) -> None:
            calls.append(model)
            if len(calls) == stop_after:
                raise KeyboardInterrupt

        model = build_model(recipe, tokenizer.get_vocab_size())
        before = {k: v.clone() for k, v in model.visual.trunk.state_dict().items()}
        train_clip.train(
            model,
            tokenizer,
            data,
            features,
            recipe,
            checkpoint=tmp_path / name,
            validate=validate,
        )
        assert all(torch.equal(before[k], v) for k, v in model.visual.trunk.state_dict().items())
        return dict(model.state_dict())

    whole = train("whole", 0)
    with pytest.raises(KeyboardInterrupt):
        train("stopped", 2)
    resumed = train("stopped", 0)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    fresh = build_model(recipe, tokenizer.get_vocab_size()).state_dict()
    assert not torch.equal(whole["text.token_embedding.weight"], fresh["text.token_embedding.weight"])
