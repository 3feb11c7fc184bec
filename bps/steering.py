"""Adds residuals inside a UNet2DConditionModel through forward hooks.

Posterior noise = prior noise + steering (arXiv 2406.03683): the residual of a slot is added to the
output of every resnet and every attention of that slot's entry, after the module's own skip
connection. Hooks exist only while a call runs; with zero residuals the output is that of the plain
UNet to the last bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bps.adapter import BPSAdapter, Residuals
from bps.sites import check_unet, injection_sites


class Injection:
    """Adds residuals inside a UNet while its context is open.

    residuals may be exchanged between calls of the UNet; None adds nothing. modules as in
    BPSAdapter. A UNet batch of K*B rows (index k*B + b) takes residuals of B rows.
    """

    def __init__(
        self, unet: UNet2DConditionModel, residuals: Residuals | None = None, *, modules: str = "both"
    ) -> None:
        self.residuals = residuals
        self._sites = injection_sites(unet, modules=modules)
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Injection:
        """Register the hooks; RuntimeError where they are already registered."""
        if self._handles:
            raise RuntimeError("this injection is already attached; leave its context first.")
        for slot, modules in self._sites.items():
            for module in modules:
                self._handles.append(module.register_forward_hook(partial(self._add, slot)))
        return self

    def __exit__(self, *problem: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _add(self, slot: int, module: nn.Module, args: Any, output: Any) -> Any:
        residual = self.residuals.by_slot.get(slot) if self.residuals is not None else None
        return output if residual is None else _add_to_output(output, residual, slot)


class SteeredUNet(nn.Module):
    """A UNet steered by an adapter: the prior and the likelihood together.

    freeze: whether the UNet's parameters are frozen (requires_grad False; the paper's setting);
    with False they stay as they are. Gradients reach the adapter through the UNet either way.
    Raises ValueError where adapter and UNet do not fit.
    """

    def __init__(self, unet: UNet2DConditionModel, adapter: BPSAdapter, *, freeze: bool = True) -> None:
        super().__init__()
        check_fit(unet, adapter)
        self.unet = unet.requires_grad_(False) if freeze else unet
        self.adapter = adapter

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        condition: Tensor | None = None,
        *,
        residuals: Residuals | None = None,
    ) -> Tensor:
        """Predict the noise (or what the UNet was trained to predict) under a condition.

        sample [K*B,4,h,w] (row k*B + b), encoder_hidden_states [K*B,L,D], timestep a number, 0-d,
        [1] or [B]; condition [B,C,H,W] in [0, 1], or the residuals made from one. -> [K*B,4,h,w].
        Raises ValueError unless exactly one of condition and residuals is given.
        """
        if (condition is None) == (residuals is None):
            raise ValueError("give exactly one of condition and residuals.")
        if condition is not None:
            residuals = self.residuals(condition, timestep)
        assert residuals is not None
        return self.steer(sample, timestep, encoder_hidden_states, residuals)

    def residuals(self, condition: Tensor, timestep: Tensor | float) -> Residuals:
        """Compute residuals of conditions [B,C,H,W] in [0, 1] at a timestep: number, 0-d, [1] or [B]."""
        return self.adapter(condition, time_embedding(self.unet, timestep, batch=len(condition)))

    def steer(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        residuals: Residuals,
        **added: Any,
    ) -> Tensor:
        """Run the UNet with residuals of B conditions added to K*B rows (row k*B + b).

        timestep: a number, 0-d, [1], [B] or [K*B]. Shapes otherwise as in forward. added: what else the
        UNet is called with, as SDXL's added_cond_kwargs; the residuals do not depend on it.
        """
        rows, batch = len(sample), residuals.batch
        if rows % batch or len(encoder_hidden_states) != rows:
            text, allowed = len(encoder_hidden_states), f"as many text as sample rows, a multiple of {batch}"
            raise ValueError(f"sample has {rows} rows, encoder_hidden_states {text}; allowed: {allowed}.")
        steps = _spread(timestep, rows=rows, batch=batch, device=sample.device)
        with Injection(self.unet, residuals, modules=self.adapter.steering.modules):
            return self.unet(sample, steps, encoder_hidden_states, return_dict=False, **added)[0]


@contextmanager
def steered(
    unet: UNet2DConditionModel, adapter: BPSAdapter, condition: Tensor, *, repeats: int = 1
) -> Iterator[None]:
    """Steer every call of a UNet by a condition while the context is open.

    condition [B,C,H,W] in [0, 1]. The residuals are computed once a call from the UNet's own time
    embedding and serve all rows; rows are ordered (branch, condition, repeat), K*B*repeats of them,
    and all rows of one condition share one timestep.
    """
    check_fit(unet, adapter)
    injection = Injection(unet, modules=adapter.steering.modules)
    rows = len(condition) * repeats

    def compute(module: nn.Module, args: Any, emb: Tensor) -> None:
        if len(emb) % rows:
            allowed = f"a multiple of {rows} ({len(condition)} conditions x {repeats} samples)"
            raise ValueError(f"the UNet was called with {len(emb)} rows; allowed: {allowed}.")
        residuals = adapter(condition, emb[:rows:repeats].detach())
        repeated = {slot: r.repeat_interleave(repeats, dim=0) for slot, r in residuals.by_slot.items()}
        injection.residuals = Residuals(by_slot=repeated)

    with unet.time_embedding.register_forward_hook(compute), injection:
        yield


@torch.no_grad()
def time_embedding(unet: UNet2DConditionModel, timestep: Tensor | float, *, batch: int) -> Tensor:
    """Return a UNet's time embedding [batch,D], without gradients, of a number, 0-d, [1] or [batch]."""
    weight = unet.time_embedding.linear_1.weight
    steps = _spread(timestep, rows=batch, batch=batch, device=weight.device)
    return unet.time_embedding(unet.time_proj(steps).to(weight.dtype))


def check_fit(unet: UNet2DConditionModel, adapter: BPSAdapter) -> None:
    """Raise ValueError where an adapter was built for another UNet."""
    check_unet(unet)
    ours, theirs = adapter.config["block_out_channels"], unet.config["block_out_channels"]
    width = unet.time_embedding.linear_2.out_features
    if list(ours) != list(theirs) or adapter.time_channels != width:
        built = f"widths {list(ours)} and time embedding {adapter.time_channels}"
        has = f"{list(theirs)} and {width}. Build one with BPSAdapter.from_unet"
        raise ValueError(f"the adapter was built for {built}; the UNet has {has}.")
    places = injection_sites(unet, modules=adapter.steering.modules)
    empty = [slot for slot in adapter.slots if not places[slot]]
    if empty:
        lacking = f"slots {empty}, where this UNet has no '{adapter.steering.modules}' modules"
        raise ValueError(f"the adapter emits residuals for {lacking}. Build one with BPSAdapter.from_unet.")


def _spread(timestep: Tensor | float, *, rows: int, batch: int, device: torch.device) -> Tensor:
    """Bring a timestep to [rows]; a [batch] one is repeated branch by branch."""
    steps = torch.as_tensor(timestep, device=device)
    if steps.numel() == 1:
        return steps.reshape(1).expand(rows)
    if steps.ndim == 1 and len(steps) in (batch, rows):
        return steps.repeat(rows // len(steps))
    allowed = f"[{batch}]" if rows == batch else f"[{batch}] or [{rows}]"
    raise ValueError(f"timestep is {list(steps.shape)}; allowed: a number, [1] or {allowed}.")


def _add_to_output(output: Any, residual: Tensor, slot: int) -> Any:
    """Add [B,C,h,w] to a module's output of K*B rows: a tensor, a tuple led by one, one with `sample`."""
    if isinstance(output, tuple):
        return (_add_to_output(output[0], residual, slot), *output[1:])
    if not isinstance(output, Tensor):
        return dataclasses.replace(output, sample=_add_to_output(output.sample, residual, slot))
    batch = len(residual)
    if len(output) % batch or output.shape[1:] != residual.shape[1:]:
        sizes = f"{list(residual.shape)}, the UNet's features there {list(output.shape)}"
        allowed = "the same sizes (pixels = latent cells x downscale factor) and a multiple of its rows"
        raise ValueError(f"the residual of slot {slot} is {sizes}; allowed: {allowed}.")
    residual = residual.to(output.dtype)
    if len(output) == batch:
        return output + residual
    return (output.unflatten(0, (-1, batch)) + residual).flatten(0, 1)
