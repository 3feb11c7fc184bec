"""The recipe of the embedded base at tiny size: collection, tokenizer, autoencoder, prior."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.base.load import Base
from bench.emoji.autoencoder import AutoencoderRecipe, psnr, reconstruct, train_autoencoder
from bench.emoji.collection import FAMILIES, Icon, load_icons, may_mirror, render, render_all
from bench.emoji.prior import Prior, PriorRecipe, draw_batch, learning_rate_factor, train_prior
from bench.emoji.tokenizer import encode, train_tokenizer
from bench.types import BenchError

CIRCLE = '<circle cx="8" cy="8" r="6" fill="#d22f27"/>'
CAPTIONS = ["red heart, noto style", "blue heart, flat style", "grinning face, noto style"] * 3


@pytest.fixture
def families(tmp_path: Path) -> Path:
    for family in FAMILIES:
        folder = tmp_path / family.package
        folder.mkdir()
        icons = {n: {"body": CIRCLE} for n in ("red-heart", "waving-hand", "waving-hand-dark-skin-tone")}
        icons |= {"flag-france": {"body": CIRCLE}, "gone": {"body": CIRCLE, "hidden": True}}
        if family.package == "fxemoji":
            icons = {"redheart": {"body": CIRCLE}}
        (folder / "package.json").write_text(json.dumps({"version": family.version}))
        (folder / "icons.json").write_text(json.dumps({"icons": icons, "width": 16, "height": 16}))
    return tmp_path


def test_icons_come_without_flags_tones_and_hidden_ones(families: Path) -> None:
    icons = load_icons(families)
    assert {i.caption for i in icons} == {"red heart", "waving hand"}
    assert len(icons) == 2 * (len(FAMILIES) - 1) + 1
    assert not any("openmoji" in f.package for f in FAMILIES)


def test_another_version_or_a_missing_family_is_said(families: Path) -> None:
    (families / "noto" / "package.json").write_text('{"version": "9.9.9"}')
    with pytest.raises(BenchError, match="has version 9.9.9"):
        load_icons(families)
    (families / "twemoji" / "icons.json").unlink()
    with pytest.raises(BenchError, match="Unpack the npm package"):
        load_icons(families)


@pytest.mark.parametrize(
    "icons",
    [
        [],
        {"icons": {}, "width": "wide"},
        {"icons": {}, "left": 10**15},
        {"icons": {"a": "<path/>"}},
        {"icons": {"a": {"body": 7}}},
        {"icons": {"../a": {"body": CIRCLE}}},
    ],
)
def test_icons_of_another_form_are_refused(families: Path, icons: object) -> None:
    (families / "noto" / "icons.json").write_text(json.dumps(icons))
    with pytest.raises(BenchError, match="noto"):
        load_icons(families)


def test_views_are_seeded_and_the_first_is_plain(families: Path) -> None:
    pytest.importorskip("resvg_py")
    icons = load_icons(families)[:2]
    one, two = (dict(render_all(icons, views=3, seed=1)) for _ in range(2))
    assert all(np.array_equal(one[i], two[i]) for i in one)
    assert np.array_equal(one[0][0], render(icons[0]))
    assert not np.array_equal(one[0][1], one[0][0])
    assert render(icons[0])[32, 32].tolist() == [0xD2, 0x2F, 0x27]
    blank = Icon(name="blank", caption="blank", style="x", svg=icons[0].svg.replace(CIRCLE, ""))
    assert dict(render_all([blank], views=2, seed=1)) == {}


def test_only_captions_without_sides_may_be_mirrored() -> None:
    assert may_mirror("grinning face") and may_mirror("red heart")
    for caption in ("left arrow", "letter q", "keycap 3", "seven oclock", "on arrow", "a button"):
        assert not may_mirror(caption), caption


def test_the_tokenizer_repeats_and_knows_every_character() -> None:
    one, two = (train_tokenizer(CAPTIONS, size=220, length=16) for _ in range(2))
    assert one.get_vocab() == two.get_vocab()
    assert max(one.get_vocab().values()) == one.eos_token_id
    ids = encode(one, ["Red HEART: & 7 (unseen) ~zq", ""])
    assert ids.shape == (2, 16) and (ids[:, 0] == one.bos_token_id).all()
    assert (ids[0, 1:10] != one.eos_token_id).all() and (ids[1, 1:] == one.eos_token_id).all()


def test_the_autoencoder_learns_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    flat = rng.integers(256, size=(6, 2, 1, 1, 3)).repeat(64, 2).repeat(64, 3).astype(np.uint8)
    recipe = AutoencoderRecipe(channels=8, steps=12, batch=4)

    def cut(step: int, loss: float) -> None:
        if step == 8:
            raise KeyboardInterrupt

    whole = train_autoencoder(flat, openmoji=flat[:, 0], recipe=recipe, folder=tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        train_autoencoder(flat, openmoji=flat[:, 0], recipe=recipe, folder=tmp_path / "b", tick=cut, every=4)
    again = train_autoencoder(flat, openmoji=flat[:, 0], recipe=recipe, folder=tmp_path / "b")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert reconstruct(whole, flat[:, 0]).shape == (6, 64, 64, 3)


def test_psnr_is_the_textbook_value() -> None:
    black, grey = np.zeros((2, 4, 4, 3), np.uint8), np.full((2, 4, 4, 3), 51, np.uint8)
    assert psnr(black, grey) == pytest.approx(20 * np.log10(255 / 51))


TINY = PriorRecipe(
    widths=(32, 32, 32, 32),
    text_width=32,
    text_layers=1,
    text_length=16,
    vocabulary=200,
    steps=6,
    batch=4,
    warmup=2,
)


def tiny_training(folder: Path, **options: object) -> Prior:
    tokenizer = train_tokenizer(CAPTIONS, size=220, length=16)
    prior = Prior(TINY, tokenizer)
    latents = torch.randn(9, 2, 4, 16, 16, generator=torch.Generator().manual_seed(0)).half()
    train_prior(
        prior,
        latents=latents,
        full=encode(tokenizer, CAPTIONS),
        bare=encode(tokenizer, CAPTIONS),
        empty=encode(tokenizer, [""])[0],
        held_out=np.array([7, 8]),
        folder=folder,
        **options,
    )  # type: ignore[arg-type]
    return prior


def test_the_prior_resumes_to_the_same_bits(tmp_path: Path) -> None:
    whole = tiny_training(tmp_path / "a", every=2)
    tiny_training(tmp_path / "b", every=2, stop_at=4)
    resumed = tiny_training(tmp_path / "b", every=2)
    for part in ("modules", "average"):
        state = getattr(resumed, part).state_dict()
        for name, tensor in getattr(whole, part).state_dict().items():
            assert torch.equal(tensor, state[name]), name
    lines = (tmp_path / "b" / "curve.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4, 6]
    assert lines == (tmp_path / "a" / "curve.jsonl").read_text().splitlines()


def test_a_prior_can_begin_from_an_exported_base(micro_base: Base) -> None:
    prior = Prior(TINY, micro_base.tokenizer)
    weights = dict(micro_base.unet.named_parameters())
    assert any(not torch.equal(p, weights[n]) for n, p in prior.modules["unet"].named_parameters())
    prior.take(micro_base)
    for modules in (prior.modules, prior.average.module):
        for name, parameter in modules["unet"].named_parameters():
            assert torch.equal(parameter, weights[name]) and parameter.requires_grad


def test_held_out_drawings_are_never_drawn() -> None:
    latents = torch.arange(10.0).view(10, 1, 1, 1, 1).expand(10, 3, 4, 16, 16)
    ids = torch.arange(10)[:, None].expand(10, 16)
    recipe = replace(TINY, batch=64)
    drawn = [
        draw_batch(recipe, step, np.arange(8), latents=latents, full=ids, bare=ids, empty=ids[0] * 0 - 1)
        for step in range(4)
    ]
    rows = {int(v) for batch in drawn for v in batch[0][:, 0, 0, 0]}
    assert rows == set(range(8))
    dropped = torch.cat([(batch[1][:, 0] == -1) for batch in drawn]).float().mean()
    assert 0.02 < float(dropped) < 0.22
    for _, _, timesteps, _ in drawn:
        for stratum, t in enumerate(sorted(timesteps.tolist())):
            assert stratum * 1000 / 64 - 1 < t < (stratum + 1) * 1000 / 64


def test_the_learning_rate_waits_and_then_decays() -> None:
    recipe = PriorRecipe(steps=1000, warmup=10, decay_share=0.25)
    assert learning_rate_factor(0, recipe) == 0.1
    assert learning_rate_factor(500, recipe) == learning_rate_factor(749, recipe) == 1.0
    assert learning_rate_factor(875, recipe) == pytest.approx(0.5)
    assert learning_rate_factor(1000, recipe) == 0.02
