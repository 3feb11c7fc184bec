"""Writes the parts of a base as a Stable Diffusion folder that diffusers loads, with a manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.content import sha256_file, write_json, written_by_libraries

LICENCE = "CC BY-SA 4.0"
_BESIDE = {"manifest.json", "pretraining.json", "pretraining.npz"}  # about the base, not of it


def export_base(
    folder: Path,
    *,
    unet: Any,
    vae: Any,
    text_encoder: Any,
    tokenizer: Any,
    scheduler: Any,
    facts: Mapping[str, Any],
) -> None:
    """Save the parts in half precision as safetensors, with model_index.json and manifest.json.

    facts: what the manifest says beside the files' digests (what each part has seen, figures).
    """
    import torch

    with written_by_libraries(folder):
        for name, part in (("unet", unet), ("vae", vae), ("text_encoder", text_encoder)):
            dtype = next(part.parameters()).dtype
            part.to(torch.float16).save_pretrained(folder / name, safe_serialization=True)
            part.to(dtype)
        tokenizer.save_pretrained(folder / "tokenizer")
        scheduler.save_pretrained(folder / "scheduler")
    _drop_versions(folder)
    write_json(folder / "model_index.json", _index(vae))
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in _BESIDE)
    digests = {str(p.relative_to(folder)): sha256_file(p) for p in files}
    write_json(folder / "manifest.json", {"licence": LICENCE, **facts, "files": digests})


def _index(vae: Any) -> dict[str, Any]:
    return {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", type(vae).__name__],
    }


def _drop_versions(folder: Path) -> None:
    """Remove paths of the machine and entries that the libraries write but never read."""
    for path in sorted(folder.glob("*/*config.json")):
        value = json.loads(path.read_text())
        if isinstance(value, dict) and "_name_or_path" in value:
            del value["_name_or_path"]
            write_json(path, value)
