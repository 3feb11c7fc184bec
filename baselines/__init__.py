"""The methods BPS is compared with: one file and one row each."""

from __future__ import annotations

from importlib import import_module
from typing import Any

METHODS = {"text-only": "baselines.text_only:TextOnly"}


def load(path: str) -> Any:
    """Import "module:Class" and return the class, so that tables stay cheap to read."""
    module, name = path.split(":")
    return getattr(import_module(module), name)
