"""Bayesian Power Steering as a method of the benchmark."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from bench.base.load import Base
from bench.base.weights import Source, one_part
from bench.types import BenchError, Task
from bps.adapter import BPSAdapter, Residuals
from bps.release import split_release_checkpoint
from bps.schedule import RELEASED, layer_weights, released, slot_weight
from bps.sites import MIDDLE_SLOT, SITES
from bps.steering import SteeredUNet

_DRAWN = 'image = pipe("{prompt}", image=condition, {sampling}).images[0]  # condition: PIL and arrays too\n'
EXCHANGE = dataclasses.replace(
    one_part("adapter", "BPSAdapter", "StableDiffusionBPSPipeline", home="bps", drawn=_DRAWN),
    parts=("adapter", "unet"),
    classes={"adapter": ("bps.adapter", "BPSAdapter"), "unet": ("diffusers", "UNet2DConditionModel")},
)


class BPSDenoiser(torch.nn.Module):
    """The base's UNet steered by a BPS adapter, one evaluation of which serves all K branches."""

    def __init__(
        self, base: Base, adapter: BPSAdapter, *, prior: str = "frozen", factors: Mapping[str, float] = {}
    ) -> None:
        super().__init__()
        unet = base.prior_unet(prior, seed=torch.initial_seed())
        self.prior, self.starts_as_base = prior, not prior.startswith("none")
        self._factors = factors
        self.steered = SteeredUNet(unet, adapter, freeze=prior == "frozen")
        self._to_eps, self._rows = base.to_eps, base.unet_inputs

    def layer_weights(self) -> dict[int, tuple[float, float]]:
        """Return slot -> (weight at the start, weight now) of the steered encoder and middle."""
        adapter = self.steered.adapter
        schedule = adapter.config["schedule"]
        slots = [slot for slot in adapter.slots if slot <= MIDDLE_SLOT]
        own = torch.tensor([slot_weight(schedule, slot=slot) for slot in slots])
        start = own.to(adapter.weights.dtype).tolist()  # in its precision: fixed ones are equal
        now = (float(weight.detach()) for weight in adapter.layer_weights().values())
        return dict(zip(slots, zip(start, now, strict=True), strict=True))

    def rate_factors(self) -> dict[str, float]:
        """Return by what the learning rate of some parameters is multiplied, by their names here."""
        return {f"steered.adapter.{name}": factor for name, factor in self._factors.items()}

    def encode(self, condition: Tensor) -> Tensor | Residuals:
        """Pass the condition [B,C,H,W] through where residuals depend on the timestep; else make them."""
        return condition if self.steered.adapter.steering.time_aware else self.steered.residuals(condition, 0)

    def at_timesteps(self, features: Tensor | Residuals, timesteps: Tensor) -> Residuals:
        """Return the residuals of conditions [B,C,H,W] at timesteps [B], for any number of latents."""
        return features if isinstance(features, Residuals) else self.steered.residuals(features, timesteps)

    def forward(
        self, latents: Tensor, timesteps: Tensor, text: Tensor, features: Tensor | Residuals
    ) -> Tensor:
        """latents [B,4,h,w], timesteps [B], text [K,B,L,D], conditions or residuals -> eps [K,B,4,h,w]."""
        residuals = self.at_timesteps(features, timesteps)
        output = self.steered.steer(**self._rows(latents, timesteps, text), residuals=residuals)
        return self._to_eps(output.unflatten(0, (len(text), -1)), latents, timesteps)


class BPS:
    """Bayesian Power Steering: posterior eps = frozen prior eps + learned steering."""

    name = "bps"
    title = "BPS"
    conditioned = True
    source = "Huang, Li, Huang, ICML 2024, https://arxiv.org/abs/2406.03683"
    options = {
        "schedule": RELEASED,
        "prior": "frozen",
        "sites": SITES,
        "modules": "both",
        "time_aware": True,
        "attention": False,
        "emit_rate": "equal",
        "weights_rate": 30.0,
    }
    allowed = {
        "schedule": "released (uniform for layout, head_heavy for other tasks, as the authors' "
        "configurations), head_heavy, head_heavy_xl, uniform, foot_heavy, learned, learned_log, or a list of "
        "13 numbers",
        "prior": "frozen, unlocked (its decoder trains along), free, none, none-frozen",
        "sites": "a list of encoder, middle, decoder, output",
        "modules": "both, resnets, attentions",
        "time_aware": "true, false",
        "attention": "true, false: self-attention in the encoder, as in the release's BPS_XL",
        "emit_rate": "equal, inverse (over the schedule), a schedule or 13 numbers: what the learning rate "
        "of the convolutions that emit residuals is multiplied with",
        "weights_rate": "what the learning rate of learned_log weights is multiplied with, 0 or more",
    }
    exchange = EXCHANGE

    def settled(self, options: Mapping[str, Any], task: Task) -> dict[str, Any]:
        """Return all options as a record of a task has them: the schedule that runs by its own name.

        What came after the first published records stands there where it does something.
        """
        given = dict(options)
        if given["schedule"] == RELEASED:
            given["schedule"] = released(task.name)
        idle = {"time_aware": given["time_aware"] is True, "emit_rate": given["emit_rate"] == "equal"}
        idle["attention"] = given["attention"] is False
        idle["weights_rate"] = given["schedule"] != "learned_log"
        return {name: value for name, value in given.items() if not idle.get(name)}

    def build(
        self,
        base: Base,
        task: Task,
        *,
        schedule: str | Sequence[float] = RELEASED,
        prior: str = "frozen",
        emit_rate: str | Sequence[float] = "equal",
        weights_rate: float = 30.0,
        **steering: Any,
    ) -> BPSDenoiser:
        """Return the steered base; only the adapter trains while the prior is frozen.

        schedule: "released" or see bps.adapter.Steering, whose other fields steering holds. prior: see
        Base.prior_unet. emit_rate, weights_rate: factors of the learning rate, see `allowed`.
        """
        schedule = released(task.name) if schedule == RELEASED else schedule
        how = {"downscale_factor": base.downscale, "schedule": schedule, **steering}
        adapter = BPSAdapter.from_unet(base.unet, task.channels, **how)
        factors = _rate_factors(adapter, emit_rate=emit_rate, weights_rate=weights_rate)
        adapter = adapter.to(device=base.device, memory_format=torch.channels_last)  # as the UNet it steers
        return BPSDenoiser(base, adapter, prior=prior, factors=factors)

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


def _rate_factors(
    adapter: BPSAdapter, *, emit_rate: str | Sequence[float], weights_rate: float
) -> dict[str, float]:
    """Return the factor of the learning rate of an adapter's parameters, where it is not 1, by name.

    A residual is weight x (convolution of zeros): under Adam a factor w of that convolution's rate is what
    a weight w of the schedule is.
    """
    schedule = adapter.config["schedule"]
    factors: dict[str, float] = {} if adapter.log_gains is None else {"log_gains": weights_rate}
    if emit_rate == "inverse":
        emitting = tuple(1 / weight if weight else 1.0 for weight in layer_weights(schedule))
    else:
        emitting = layer_weights("uniform" if emit_rate == "equal" else emit_rate)
    for slot in (slot for slot in adapter.slots if slot <= MIDDLE_SLOT):
        factor = slot_weight(emitting, slot=slot)
        factors |= {f"emit.{slot}.{kind}": factor for kind in ("weight", "bias")}
    if any(factor < 0 for factor in factors.values()):
        raise ValueError(f"emit_rate {emit_rate}, weights_rate {weights_rate}; allowed: numbers from 0.")
    return {name: factor for name, factor in factors.items() if factor != 1}


def _made_for(adapter: BPSAdapter) -> dict[str, Any]:
    """Return what an adapter is made for: UNet, condition and options."""
    config = adapter.config
    options = {f"{n} (option {n})": config[n] for n in ("schedule", "modules", "time_aware", "attention")}
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
    inputs = state["encoder.0.weight"].shape[1] // adapter.downscale_factor**2
    source.fit({"condition channels": inputs}, {"condition channels": adapter.channels})
    source.fit_shapes(state, own)
    if adapter.config["schedule"] != "learned":
        name = "layer weights (option schedule)"
        source.fit({name: state["weights"].tolist()}, {name: own["weights"].tolist()})
    source.fit_shapes(given, unet.state_dict())
    adapter.load_state_dict(state)
    gaps = [_gap(tensor, given[name]) for name, tensor in unet.state_dict().items()]
    facts = {"unet_sha256": source.digest(given)}
    if not any(gaps):
        return {"unet": "of the checkpoint, equal to the base's", **facts}
    if denoiser.prior == "frozen":
        denoiser.steered.unet = copy.deepcopy(unet)
    denoiser.steered.unet.load_state_dict(given)
    count = f"{sum(map(bool, gaps))} of {len(gaps)} tensors differ from the base's"
    return {"unet": f"came with the weights: {count}, by up to {max(gaps):.2g}", **facts}


def _gap(own: Tensor, given: Tensor) -> float:
    """Return the largest difference of a tensor from the base's, at the lesser precision of the two."""
    kind = given.dtype if own.dtype == torch.float32 else own.dtype
    return float((own.cpu().to(kind).float() - given.to(kind).float()).abs().max())
