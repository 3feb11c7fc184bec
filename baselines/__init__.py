"""The methods BPS is compared with: one file and one row each."""

from __future__ import annotations

from importlib import import_module
from typing import Any

METHODS = {
    "text-only": "baselines.text_only:TextOnly",
    "controlnet": "baselines.controlnet:ControlNet",
    "controlnet-xs": "baselines.controlnet_xs:ControlNetXS",
    "t2i-adapter": "baselines.t2i_adapter:T2IAdapter",
    "sd-finetune": "baselines.finetuned_sd:FinetunedSD",
    "lora-concat": "baselines.lora_concat:LoraConcat",
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "t2i-adapter-cubic": ("t2i-adapter", {"timesteps": "cubic"}),
}
"""Short names of methods with some options set: name -> (method, options)."""


def load(path: str) -> Any:
    """Import "module:Class" and return the class, so that tables stay cheap to read."""
    module, name = path.split(":")
    return getattr(import_module(module), name)
