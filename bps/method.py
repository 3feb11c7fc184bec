"""Bayesian Power Steering as a method of the benchmark."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import UNet2DConditionModel

from bench.types import BenchError, Exchange
from bps.adapter import BPSAdapter, Residuals
from bps.release import split_release_checkpoint
from bps.schedule import slot_weight
from bps.sites import MIDDLE_SLOT
from bps.steering import SteeredUNet

if TYPE_CHECKING:
    from bench.base.load import Base
    from bench.base.weights import Source
    from bench.types import Task

EXCHANGE = Exchange(
    parts=("adapter", "unet"),
    classes={
        "adapter": ("bps.adapter", "BPSAdapter"),
        "unet": ("diffusers", "UNet2DConditionModel"),
    },
    pipeline="StableDiffusionBPSPipeline",
    usage="""\
from bps import BPSAdapter, StableDiffusionBPSPipeline
adapter = BPSAdapter.from_pretrained("{folder}")
pipe = StableDiffusionBPSPipeline.from_pretrained(
    "{base}", adapter=adapter, safety_checker=None, feature_extractor=None, dtype=torch.float32)
image = pipe("{prompt}", image=condition, {sampling}).images[0]  # condition: PIL and arrays too
""",
    whole="""\
from bps import StableDiffusionBPSPipeline
pipe = StableDiffusionBPSPipeline.from_pretrained("{folder}")
image = pipe("{prompt}", image=condition, {sampling}).images[0]  # condition: PIL and arrays too
""",
)


class BPSDenoiser(torch.nn.Module):
    """The base's UNet steered by a BPS adapter.

    The residuals depend on condition and timestep alone, so one evaluation serves all K branches.
    """

    def __init__(self, base: Base, adapter: BPSAdapter, *, prior: str = "frozen") -> None:
        super().__init__()
        unet = base.prior_unet(prior, seed=torch.initial_seed())
        self.prior, self.starts_as_base = prior, prior != "none"
        self.steered = SteeredUNet(unet, adapter, freeze=prior == "frozen")
        self._to_eps = base.to_eps

    def layer_weights(self) -> dict[int, tuple[float, float]]:
        """Return slot -> (weight at the start, weight now) of the steered encoder and middle."""
        adapter = self.steered.adapter
        schedule = adapter.config["schedule"]
        slots = [slot for slot in adapter.slots if slot <= MIDDLE_SLOT]
        own = torch.tensor([slot_weight(schedule, slot=slot) for slot in slots])
        start = own.to(adapter.weights.dtype).tolist()  # in its precision: fixed ones are equal
        now = adapter.weights.detach().tolist()
        return dict(zip(slots, zip(start, now, strict=True), strict=True))

    def encode(self, condition: torch.Tensor) -> torch.Tensor:
        """Pass the condition [B,C,H,W] through: every residual also depends on the timestep."""
        return condition

    def at_timesteps(self, features: torch.Tensor, timesteps: torch.Tensor) -> Residuals:
        """Return the residuals of conditions [B,C,H,W] at timesteps [B], for any number of latents."""
        return self.steered.residuals(features, timesteps)

    def forward(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        text: torch.Tensor,
        features: torch.Tensor | Residuals,
    ) -> torch.Tensor:
        """latents [B,4,h,w], timesteps [B], text [K,B,L,D], features [B,C,H,W] -> eps [K,B,4,h,w].

        features may be what `at_timesteps` made of them.
        """
        branches = len(text)
        if not isinstance(features, Residuals):
            features = self.at_timesteps(features, timesteps)
        output = self.steered.steer(
            latents.repeat(branches, 1, 1, 1),
            timesteps.repeat(branches),
            text.flatten(0, 1),
            features,
        )
        return self._to_eps(output.unflatten(0, (branches, -1)), latents, timesteps)


class BPS:
    """Bayesian Power Steering: posterior eps = frozen prior eps + learned steering."""

    name = "bps"
    title = "BPS"
    conditioned = True
    source = "Huang, Li, Huang, ICML 2024, https://arxiv.org/abs/2406.03683"
    options = {
        "schedule": "head_heavy",
        "prior": "frozen",
        "sites": ("encoder", "middle", "decoder"),
        "modules": "both",
    }
    allowed = {
        "schedule": "head_heavy, uniform, foot_heavy, learned, or a list of 13 numbers",
        "prior": "frozen, free, none",
        "sites": "a list of encoder, middle, decoder",
        "modules": "both, resnets, attentions",
    }
    exchange = EXCHANGE

    def build(
        self,
        base: Base,
        task: Task,
        *,
        schedule: str | Sequence[float] = "head_heavy",
        prior: str = "frozen",
        sites: Sequence[str] | str = ("encoder", "middle", "decoder"),
        modules: str = "both",
    ) -> BPSDenoiser:
        """Return the steered base; only the adapter trains while the prior is frozen.

        schedule, sites, modules: see BPSAdapter. prior: see Base.prior_unet.
        """
        adapter = BPSAdapter.from_unet(
            base.unet,
            task.channels,
            downscale_factor=base.downscale,
            schedule=schedule,
            sites=sites,
            modules=modules,
        )
        return BPSDenoiser(base, adapter.to(base.device), prior=prior)

    def load(self, denoiser: BPSDenoiser, source: Source) -> dict[str, str]:
        """Put an adapter's weights into the denoiser: a BPSAdapter's folder or a release checkpoint.

        With a prior that is trained along, the folder holds its UNet too; a checkpoint always does, and
        the record says which UNet that is. BenchError where they do not fit.
        """
        if source.is_file:
            return _load_release(denoiser, source)
        adapter = source.model(BPSAdapter)
        source.fit(_made_for(adapter), _made_for(denoiser.steered.adapter))
        denoiser.steered.adapter.load_state_dict(adapter.state_dict())
        if denoiser.prior != "frozen":
            given = source.model(UNet2DConditionModel, part="unet")
            denoiser.steered.unet.load_state_dict(given.state_dict())
            return {"unet": "came with the weights (trained along)"}
        return {}

    def save(self, denoiser: BPSDenoiser, folder: Path) -> None:
        """Write the adapter as BPSAdapter.from_pretrained loads it, and in unet/ a prior trained along."""
        denoiser.steered.adapter.save_pretrained(folder)
        if denoiser.prior != "frozen":
            denoiser.steered.unet.save_pretrained(folder / "unet")


def _made_for(adapter: BPSAdapter) -> dict[str, Any]:
    """Return what an adapter is made for: UNet, condition and options."""
    config = adapter.config
    options = {f"{n} (option {n})": config[n] for n in ("schedule", "modules")}
    return {
        **options,
        "places (option sites)": adapter.slots,
        "widths": config["block_out_channels"],
        "time embedding": adapter.time_channels,
        "condition channels": config["condition_channels"],
        "downscale": config["downscale_factor"],
    }


def _load_release(denoiser: BPSDenoiser, source: Source) -> dict[str, str]:
    """Put a release checkpoint's adapter and UNet into the denoiser; return which UNet it is."""
    unet, adapter = denoiser.steered.unet, denoiser.steered.adapter
    try:
        given, state = split_release_checkpoint(source.tensors(), unet_config=unet.config)
    except ValueError as error:
        raise BenchError(f"{source.name}: {error}") from error
    own = adapter.state_dict()
    source.fit(_channels(state, adapter), _channels(own, adapter))
    source.fit(_shapes(state), _shapes(own))
    if adapter.config["schedule"] != "learned":
        name = "layer weights (option schedule)"
        source.fit({name: state["weights"].tolist()}, {name: own["weights"].tolist()})
    source.fit(_shapes(given), _shapes(unet.state_dict()))
    adapter.load_state_dict(state)
    gaps = [_gap(tensor, given[name]) for name, tensor in unet.state_dict().items()]
    facts = {"unet_sha256": source.digest(given)}
    if not any(gaps):
        return {"unet": "of the checkpoint, equal to the base's", **facts}
    if denoiser.prior == "frozen":
        denoiser.steered.unet = copy.deepcopy(unet)
    denoiser.steered.unet.load_state_dict(given)
    said = (
        f"came with the weights: {sum(map(bool, gaps))} of {len(gaps)} tensors differ from the base's, "
        f"by up to {max(gaps):.2g}"
    )
    return {"unet": said, **facts}


def _channels(state: Mapping[str, torch.Tensor], adapter: BPSAdapter) -> dict[str, int]:
    inputs = state["encoder.0.weight"].shape[1]
    return {"condition channels": inputs // adapter.downscale_factor**2}


def _gap(own: torch.Tensor, given: torch.Tensor) -> float:
    """Return the largest difference of a tensor from the base's, at the lesser precision of the two."""
    kind = given.dtype if own.dtype == torch.float32 else own.dtype
    return float((own.cpu().to(kind).float() - given.to(kind).float()).abs().max())


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in tensors.items()}
