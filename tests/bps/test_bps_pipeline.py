"""The diffusers pipeline: round trip, sharing, conditions of every kind, refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from bps import BPSAdapter, StableDiffusionBPSPipeline, SteeredUNet
from bps.pipeline import condition_to_tensor

DDIM = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def tiny_tokenizer():
    words = [chr(c) + end for c in range(97, 123) for end in ("", "</w>")]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=8)


def tiny_text_encoder(vocabulary):
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=3,
            max_position_embeddings=8,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
    ).eval()


@pytest.fixture(scope="module")
def base(tools):
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        norm_num_groups=4,
    )
    return StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=tiny_text_encoder(len(tokenizer)),
        tokenizer=tokenizer,
        unet=tools.build_unet((False, True, True, False), norm_num_groups=16),
        scheduler=DDIMScheduler(**DDIM),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="module")
def pipe(base, tools):
    torch.manual_seed(1)
    adapter = BPSAdapter.from_unet(base.unet, 1, downscale_factor=4)
    tools.randomise(adapter)
    found = StableDiffusionBPSPipeline(**base.components, adapter=adapter, requires_safety_checker=False)
    found.set_progress_bar_config(disable=True)
    base.set_progress_bar_config(disable=True)
    return found


def disc(size=32):
    y, x = np.mgrid[:size, :size] - size / 2
    return (np.hypot(x, y) < size / 4).astype(np.float32)


def run(pipe, image, prompt="a cat", **options):
    count = options.get("num_images_per_prompt", 1) * (1 if isinstance(prompt, str) else len(prompt))
    defaults = {
        "num_inference_steps": 2,
        "output_type": "latent",
        "generator": [torch.Generator().manual_seed(i) for i in range(count)],
    }
    return pipe(prompt, image, **(defaults | options)).images


def test_saved_and_loaded_pipelines_are_equal(pipe, tools, tmp_path):
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["adapter"] == ["bps.adapter", "BPSAdapter"]
    assert index["_class_name"] == "StableDiffusionBPSPipeline"
    loaded = StableDiffusionBPSPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert isinstance(loaded.adapter, BPSAdapter)
    for name in ("unet", "adapter", "text_encoder", "vae"):
        tools.settle(getattr(loaded, name))
    assert torch.equal(run(loaded, disc()), run(pipe, disc()))


def test_an_untrained_adapter_gives_the_base_pipelines_image(base, pipe):
    adapter = BPSAdapter.from_unet(base.unet, 1, downscale_factor=4)
    plain = StableDiffusionBPSPipeline.from_pipe(base, adapter=adapter)
    plain.set_progress_bar_config(disable=True)
    generator = [torch.Generator().manual_seed(0)]
    expected = base(
        "a cat",
        height=32,
        width=32,
        num_inference_steps=2,
        output_type="latent",
        generator=generator,
    ).images
    assert torch.equal(run(plain, disc()), expected)
    assert not torch.allclose(run(pipe, disc()), expected, atol=1e-2)


def test_the_condition_and_the_prompt_change_the_image(pipe):
    first = run(pipe, disc())
    assert torch.equal(first, run(pipe, disc()))
    assert not torch.allclose(first, run(pipe, 1 - disc()), atol=1e-3)
    assert not torch.allclose(first, run(pipe, disc(), prompt="dog"), atol=1e-4)
    assert not torch.allclose(first, run(pipe, disc(), negative_prompt="dog"), atol=1e-4)


def test_it_is_ddim_with_guidance_on_the_steered_unet(pipe):
    """The same latents come from a loop written out here."""
    net = SteeredUNet(pipe.unet, pipe.adapter)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    condition = torch.from_numpy(disc())[None, None]
    scheduler = DDIMScheduler(**DDIM)
    scheduler.set_timesteps(3)
    with torch.no_grad():
        text, empty = pipe.encode_prompt("a cat", "cpu", 1, True)
        z = latents
        for t in scheduler.timesteps:
            eps = net(torch.cat([z, z]), t, torch.cat([empty, text]), condition)
            z = scheduler.step(eps[:1] + 9.0 * (eps[1:] - eps[:1]), t, z).prev_sample
    found = run(pipe, disc(), latents=latents, num_inference_steps=3, guidance_scale=9.0)
    torch.testing.assert_close(found, z, rtol=1e-3, atol=1e-4)


def test_the_adapter_runs_once_a_step_for_all_rows(pipe, tools):
    batches = []
    handle = pipe.adapter.register_forward_hook(lambda m, args, out: batches.append(out.batch))
    hooks = tools.count_hooks(pipe.unet)
    images = run(pipe, disc(), num_images_per_prompt=3, num_inference_steps=2)
    run(pipe, [disc(), 1 - disc()], ["a", "b"], num_images_per_prompt=2, num_inference_steps=1)
    handle.remove()
    assert images.shape == (3, 4, 8, 8)
    assert batches == [1, 1, 2]
    assert tools.count_hooks(pipe.unet) == hooks


def test_a_batch_of_conditions_keeps_its_order(pipe):
    latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    conditions = [disc(), 1 - disc()]
    options = {"num_images_per_prompt": 2, "latents": latents}
    together = run(pipe, conditions, ["cat", "dog"], **options)
    for index, prompt in enumerate(("cat", "dog")):
        part = latents[2 * index : 2 * index + 2]
        alone = run(pipe, conditions[index], prompt, num_images_per_prompt=2, latents=part)
        torch.testing.assert_close(together[2 * index : 2 * index + 2], alone, rtol=1e-3, atol=1e-3)


def test_images_come_out_as_pil_and_as_arrays(pipe):
    image = run(pipe, disc(), output_type="pil")[0]
    assert isinstance(image, Image.Image) and image.size == (32, 32)
    array = run(pipe, disc(), output_type="np", guidance_scale=1.0)
    assert array.shape == (1, 32, 32, 3) and np.isfinite(array).all()


@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(**DDIM, prediction_type="v_prediction"),
        PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1),
    ],
    ids=["v_prediction", "pndm"],
)
def test_other_schedulers_work(pipe, scheduler):
    before = run(pipe, disc())
    old, pipe.scheduler = pipe.scheduler, scheduler
    try:
        found = run(pipe, disc())
    finally:
        pipe.scheduler = old
    assert torch.isfinite(found).all() and not torch.allclose(found, before)


def test_every_kind_of_condition_is_the_same_tensor():
    mask = disc().astype(bool)
    bytes_ = (mask * 255).astype(np.uint8)
    expected = torch.from_numpy(mask).float()[None, None]
    forms = [
        bytes_,
        bytes_[..., None],
        bytes_[None, ..., None],
        mask,
        mask.astype(np.float64),
        torch.from_numpy(bytes_),
        expected[0],
        expected.half(),
        Image.fromarray(bytes_),
        Image.fromarray(bytes_).convert("1"),
        [Image.fromarray(bytes_)],
    ]
    for form in forms:
        found = condition_to_tensor(form, channels=1)
        assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_colour_and_lists_keep_channels_and_order():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), dtype=np.uint8)
    expected = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    assert torch.equal(condition_to_tensor(pixels, channels=3), expected)
    images = [Image.fromarray(one) for one in pixels]
    assert torch.equal(condition_to_tensor(images, channels=3), expected)
    assert torch.equal(condition_to_tensor(list(expected), channels=3), expected)
    rgba = images[0].convert("RGBA")
    assert condition_to_tensor(rgba, channels=4).shape == (1, 4, 16, 24)


@pytest.mark.parametrize(
    "image, message",
    [
        (Image.new("RGB", (8, 8)), "has 3 channels; allowed: 1"),
        (Image.new("P", (8, 8)), "mode P; allowed: 1, L, RGB, RGBA"),
        (np.full((8, 8), 255.0), "reach from 255 to 255; allowed: 0 to 1"),
        (np.full((8, 8), np.nan), "allowed: 0 to 1"),
        (np.zeros((8, 8), np.int64), "int64; allowed: uint8, bool, floating point"),
        (torch.zeros(8), r"shape \[8\]; allowed: \[H,W\], \[C,H,W\]"),
        (np.zeros(8), r"shape \[8\]; allowed: \[H,W\], \[H,W,C\]"),
        ([np.zeros((8, 8)), np.zeros((8, 16))], "allowed: one"),
        ([], "allowed: one"),
    ],
)
def test_wrong_conditions_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        condition_to_tensor(image, channels=1)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"image": None}, "image is missing"),
        ({"image": disc(40)}, "40 x 40 pixels; allowed: .* divisible by 32"),
        ({"image": disc(), "height": 64}, "height 64, width None .* 32 x 32 pixels"),
        ({"image": [disc(), disc()]}, "2 condition images for 1 prompts"),
        ({"image": disc(), "guidence_rescale": 0.5}, "Did you mean 'guidance_rescale'"),
    ],
)
def test_wrong_calls_are_refused(pipe, tools, options, message):
    hooks = tools.count_hooks(pipe.unet)
    with pytest.raises(ValueError, match=message):
        pipe("a cat", **options)
    assert tools.count_hooks(pipe.unet) == hooks


def test_parts_that_do_not_fit_are_refused(base, tools):
    with pytest.raises(ValueError, match="downscale factor 8, the VAE 4"):
        StableDiffusionBPSPipeline(
            **base.components, adapter=BPSAdapter.from_unet(base.unet, 1, downscale_factor=8)
        )
    other = tools.build_unet(block_out_channels=(64, 64, 64, 64))
    with pytest.raises(ValueError, match="built for widths"):
        StableDiffusionBPSPipeline(**base.components, adapter=BPSAdapter.from_unet(other, 1))
