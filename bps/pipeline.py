"""Text and a condition image to an image, as a diffusers pipeline."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor

from bench.types import unknown
from bps.adapter import BPSAdapter
from bps.steering import check_fit, steered

_Pipeline = StableDiffusionPipeline if TYPE_CHECKING else object
_PIL_MODES = ("1", "L", "RGB", "RGBA")


class _Steered(_Pipeline):  # type: ignore[misc,valid-type]
    """What turns a text-to-image pipeline into one that is steered by a condition image."""

    def __init__(self, *args: Any, adapter: BPSAdapter, **components: Any) -> None:
        super().__init__(*args, **components)
        check_fit(self.unet, adapter)
        if adapter.downscale_factor != self.vae_scale_factor:
            factors = f"downscale factor {adapter.downscale_factor}, the VAE {self.vae_scale_factor}"
            raise ValueError(f"the adapter has {factors}; allowed: the same.")
        self.register_modules(adapter=adapter)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        *,
        height: int | None = None,
        width: int | None = None,
        num_images_per_prompt: int = 1,
        **kwargs: Any,
    ) -> Any:
        """Sample images for prompts under a condition image.

        image: what condition_to_tensor takes; one condition for all prompts or one for each. The
        output has its size; height and width may be given as a check. The residuals are computed
        once a step, for both guidance halves and all samples of a condition. Everything else
        (num_inference_steps, guidance_scale, negative_prompt, generator, ...), and the output, as in
        the pipeline that this one is built on. Raises ValueError for what does not fit.
        """
        allowed = [name for name in inspect.signature(super().__call__).parameters if name != "kwargs"]
        for name in kwargs:
            if name not in allowed:
                raise unknown("option", name, allowed)
        condition = self._condition(image, height=height, width=width)
        embeds = kwargs.get("prompt_embeds")
        prompts = len(prompt) if isinstance(prompt, (list, tuple)) else 1 if embeds is None else len(embeds)
        if len(condition) not in (1, prompts):
            given = f"{len(condition)} condition images for {prompts} prompts"
            raise ValueError(f"got {given}; allowed: one for all, or one for each prompt.")
        repeats = num_images_per_prompt if len(condition) > 1 else 1
        with steered(self.unet, self.adapter, condition, repeats=repeats):
            return super().__call__(
                prompt,
                height=condition.shape[2],
                width=condition.shape[3],
                num_images_per_prompt=num_images_per_prompt,
                **kwargs,
            )

    def _condition(self, image: Any, *, height: int | None, width: int | None) -> Tensor:
        if image is None:
            raise ValueError("image is missing: a PIL image, an array, a tensor or a list of them.")
        condition = condition_to_tensor(image, channels=self.adapter.channels)
        self.adapter.check_condition(condition)
        size = tuple(condition.shape[2:])
        if (height or size[0], width or size[1]) != size:
            given = f"height {height}, width {width} with a condition of {size[0]} x {size[1]} pixels"
            raise ValueError(f"{given}; allowed: the condition's size. Resize the condition first.")
        return condition.to(self._execution_device)


class StableDiffusionBPSPipeline(_Steered, StableDiffusionPipeline):
    """StableDiffusionPipeline steered by a condition image through a BPSAdapter.

    Build it from another pipeline's parts: StableDiffusionBPSPipeline(**pipe.components,
    adapter=adapter). save_pretrained and from_pretrained (local folders) carry the adapter along.
    Raises ValueError where adapter, UNet and VAE do not fit. Source: arXiv 2406.03683.
    """

    def __init__(self, *args: Any, **components: Any) -> None:
        super().__init__(*args, **components)


class StableDiffusionXLBPSPipeline(_Steered, StableDiffusionXLPipeline):
    """The same of StableDiffusionXLPipeline."""

    def __init__(self, *args: Any, **components: Any) -> None:
        super().__init__(*args, **components)


def _name_parts(pipeline: Any, parent: Any) -> None:
    """Give a pipeline's __init__ the signature that diffusers reads: its parent's, and the adapter."""
    made, known = pipeline.__init__, inspect.signature(parent.__init__)
    adapter = inspect.Parameter("adapter", inspect.Parameter.KEYWORD_ONLY, annotation=BPSAdapter)
    parameters = [*known.parameters.values(), adapter]
    made.__signature__ = inspect.Signature(parameters)
    made.__annotations__ = {p.name: p.annotation for p in parameters if p.annotation is not p.empty}


_name_parts(StableDiffusionBPSPipeline, StableDiffusionPipeline)
_name_parts(StableDiffusionXLBPSPipeline, StableDiffusionXLPipeline)


def condition_to_tensor(image: Any, *, channels: int) -> Tensor:
    """Turn a condition image, or a list of them, into [B,C,H,W] float32 in [0, 1].

    image: PIL (modes 1, L, RGB, RGBA); array [H,W], [H,W,C] or [B,H,W,C]; tensor [H,W], [C,H,W] or
    [B,C,H,W]. 8-bit values are divided by 255, booleans become 0 and 1, floats must lie in [0, 1].
    Raises ValueError for other modes, channel counts, value ranges and for lists of mixed sizes.
    """
    items = list(image) if isinstance(image, (list, tuple)) else [image]
    batches = [_scaled(_layout(item)) for item in items]
    shapes = sorted({tuple(batch.shape[1:]) for batch in batches})
    if len(shapes) != 1:
        raise ValueError(f"condition images have shapes {shapes}; allowed: one [C,H,W] for all.")
    if shapes[0][0] != channels:
        raise ValueError(f"the condition has {shapes[0][0]} channels; allowed: {channels}.")
    return torch.cat(batches)


def _layout(image: Any) -> Tensor:
    """Bring one PIL image, array or tensor to [B,C,H,W] with its values as they are."""
    if hasattr(image, "getbands"):
        if image.mode not in _PIL_MODES:
            allowed = f"{', '.join(_PIL_MODES)}. Convert it first"
            raise ValueError(f"the condition is a PIL image of mode {image.mode}; allowed: {allowed}.")
        image = np.array(image)
    channels_first = isinstance(image, Tensor)
    pixels = image if channels_first else torch.as_tensor(image)
    if pixels.ndim not in (2, 3, 4):
        allowed = "[H,W], [C,H,W] or [B,C,H,W]" if channels_first else "[H,W], [H,W,C] or [B,H,W,C]"
        raise ValueError(f"the condition has shape {list(pixels.shape)}; allowed: {allowed}.")
    if pixels.ndim == 2:
        return pixels[None, None]
    batched = pixels[None] if pixels.ndim == 3 else pixels
    return batched if channels_first else batched.permute(0, 3, 1, 2)


def _scaled(pixels: Tensor) -> Tensor:
    if pixels.dtype in (torch.uint8, torch.bool):
        return pixels.float() / (255 if pixels.dtype == torch.uint8 else 1)
    if not pixels.is_floating_point():
        raise ValueError(f"the condition is {pixels.dtype}; allowed: uint8, bool, floating point.")
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"condition values reach from {low:g} to {high:g}; allowed: 0 to 1.")
    return pixels.float()
