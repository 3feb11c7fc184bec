"""Metrics of photographs that ask a network twice: of the sample, and of the item's own picture.

The condition was drawn from that picture, so that what its detector finds in both should be equal. Runs take
them by name, `--metric hed_ssim`; weights lie in the folder of judges. The first digits of their digest are
part of the judge's name in records and tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from bench.base.weights import read_tensors
from bench.content import digest_arrays, digest_json, read_json, refusing, sha256_file
from bench.data.coco import Recipe
from bench.data.coco.draw import canny_lines, load_sketcher
from bench.judges import NETWORKS, channels_first, judge_card, judges_folder, load_judge, need_file
from bench.judges.vision import DEVIATION, MEAN
from bench.metrics import redetect
from bench.metrics.lines import line_f1, sketch_lines
from bench.metrics.paired import cosine_to_target
from bench.metrics.regions import mean_iou
from bench.types import BenchError, Example, Scored

_VGG_TAPS = (3, 8, 15, 22, 29)  # after relu1_2, 2_2, 3_3, 4_3 and 5_3


class Redetected:
    """A number an item, of its sample and its own picture; see `bench.types.Metric`. Here: Canny's edges.

    device: of its network; a run puts its own there. Made where its weights are, else BenchError.
    """

    device = "cpu"

    def __init__(self, name: str, judge: str = "none") -> None:
        """Take the name of a metric of `redetect`, and what tables call its network."""
        self.spec = replace(redetect.REDETECTED[name], judge=judge)

    def items(self, scored: Scored) -> np.ndarray:
        """Return [N] float64, NaN where an item has no number."""
        return np.array(list(map(self.compare, scored.images, scored.targets)))

    def compare(self, image: np.ndarray, target: np.ndarray) -> float:
        """Return the number of a sample with the item's picture, [H,W,3] uint8 each."""
        return line_f1(*(sketch_lines(canny_lines(picture)) for picture in (image, target))).f1


class Edges(Redetected):
    """Soft edges of a learned detector: F1 of those of at least half strength, or MS-SSIM."""

    _kept: dict[str, dict[str, float]] = {}  # both numbers, of one detection

    def __init__(self, name: str) -> None:
        """Take "hed_f1", "pidinet_ssim", ..."""
        self.detector, _, self.number = name.partition("_")
        self.path = need_file(self.detector, None, NETWORKS[self.detector])
        self.digest = sha256_file(self.path)
        super().__init__(name, f"{self.detector} {self.digest[:8]}")

    def compare(self, image: np.ndarray, target: np.ndarray) -> float:
        """Return the number of edges in both; BenchError for sizes that the detectors do not take."""
        key = self.digest + digest_arrays(image=image, target=target)
        if key not in self._kept:
            size = image.shape[0]
            if size % 64 or image.shape[1] != size:
                raise BenchError(f"{self.spec.name} needs squares of a multiple of 64 px, got {image.shape}")
            recipe = Recipe(sketch=self.detector, size=size)
            draw = load_sketcher(recipe, weights=self.path.parent, device=self.device)
            found, wanted = draw(image), draw(target)
            f1 = line_f1(sketch_lines(found), sketch_lines(wanted)).f1
            self._kept[key] = {"f1": f1, "ssim": redetect.ms_ssim(found, wanted)}
        return self._kept[key][self.number]


class _Transformer(Redetected):
    """A network of the transformers library, from a folder of the user's as `hf download` leaves it."""

    folder: str  # its name in the folder of judges
    example: str  # of such a network on the hub
    loaders: tuple[str, ...]  # classes of transformers, of which one knows it

    def __init__(self, name: str) -> None:
        import transformers

        self.place = judges_folder() / self.folder
        asked = "config.json, preprocessor_config.json and weights"
        needs = f"metric '{name}' needs a {self.folder} network of transformers in {self.place}, with {asked}"
        example = f"For example: hf download {self.example} --local-dir {self.place}"
        kinds = OSError, ValueError, KeyError
        with refusing(lambda why: f"{needs} ({why}). {example}", *kinds):
            if not self.place.is_dir():
                raise OSError("it is not there")
            config = transformers.AutoConfig.from_pretrained(self.place, local_files_only=True)
            known = [getattr(transformers, loader) for loader in self.loaders]
            fitting = [kind for kind in known if type(config) in kind._model_mapping]
            if not fitting:
                raise ValueError("it is a network for something else")
            self.kind = fitting[0]
            files = [p for p in sorted(self.place.glob("*")) if p.suffix in (".json", ".safetensors", ".bin")]
            read_json(self.place / "preprocessor_config.json", loose=True)
        digest = digest_json({path.name: sha256_file(path) for path in files})
        super().__init__(name, f"{config.model_type} {digest[:8]}")

    @cached_property
    def network(self) -> tuple[Any, Any]:
        """What prepares a picture, and the network."""
        from transformers import AutoImageProcessor

        how: dict[str, Any] = {"local_files_only": True}
        with refusing(lambda why: f"{self.place} cannot be loaded by transformers ({why})."):
            prepare = AutoImageProcessor.from_pretrained(self.place, **how)
            return prepare, self.kind.from_pretrained(self.place, **how).eval().to(self.device)

    def _asked(self, picture: np.ndarray) -> tuple[Any, Any]:
        import torch

        prepare, network = self.network
        with torch.inference_mode():
            given = prepare(images=[picture], return_tensors="pt").to(self.device)
            return prepare, network(**given)


class DepthRMSE(_Transformer):
    """Depth by a network."""

    folder, example, loaders = "depth", "Intel/dpt-large", ("AutoModelForDepthEstimation",)

    def compare(self, image: np.ndarray, target: np.ndarray) -> float:
        """Return the RMSE of both depth maps, each scaled to 0 to 255."""
        depths = (self._asked(picture)[1].predicted_depth[0] for picture in (image, target))
        return redetect.depth_rmse(*(depth.float().cpu().numpy() for depth in depths))


class MiouSeen(_Transformer):
    """Classes by a network in both pictures, of whatever data."""

    folder, example = "segmenter", "facebook/mask2former-swin-large-coco-panoptic"
    loaders = ("AutoModelForUniversalSegmentation", "AutoModelForSemanticSegmentation")

    def compare(self, image: np.ndarray, target: np.ndarray) -> float:
        """Return the mean IoU over the classes seen in the item's picture."""
        return mean_iou(self.classes(image), self.classes(target), void=np.zeros(target.shape[:2], bool))

    def classes(self, picture: np.ndarray) -> np.ndarray:
        """Return each pixel's label, [H,W,3] uint8 -> [H,W] int64."""
        prepare, output = self._asked(picture)
        (labels,) = prepare.post_process_semantic_segmentation(output, target_sizes=[picture.shape[:2]])
        return np.asarray(labels.cpu().numpy().astype(np.int64))


class MiouAnnotated(MiouSeen):
    """Classes by a network in the sample against the item's class map: the segmentation's condition."""

    def items(self, scored: Scored) -> np.ndarray:
        """Return mean IoUs over an item's classes that the network knows by name, NaN without any."""
        return np.array(list(map(self._annotated, scored.images, scored.examples)))

    def _annotated(self, image: np.ndarray, example: Example) -> float:
        if "classes" not in example.layers:
            return math.nan
        places = {name.casefold(): place for place, name in enumerate(example.class_names) if place}
        labels = self.network[1].config.id2label
        table = np.array([places.get(str(labels[k]).casefold(), 0) for k in sorted(labels)])
        wanted = example.layers["classes"].astype(np.int64)
        void = ~np.isin(wanted, table[table > 0])
        return math.nan if void.all() else mean_iou(table[self.classes(image)], wanted, void=void)


class Dino(Redetected):
    """The cosine of DINOv2's features to those of the item's picture."""

    def __init__(self, name: str) -> None:
        """Take "dino"."""
        card = judge_card("dinov2-vitb14")
        super().__init__(name, f"{card.name} {card.digest[:8]}")

    def items(self, scored: Scored) -> np.ndarray:
        """Return cosines, [N] float64."""
        judge = load_judge("dinov2-vitb14", device=self.device)
        return cosine_to_target(*(judge.features(np.asarray(x)) for x in (scored.images, scored.targets)))


class Lpips(Redetected):
    """LPIPS of VGG-16, version 0.1 (Zhang et al. 2018, arXiv 1801.03924)."""

    def __init__(self, name: str) -> None:
        """Take "lpips"."""
        self.paths = [need_file(part, None, NETWORKS[part]) for part in ("vgg16", "lpips")]
        super().__init__(name, f"VGG-16 {digest_json([sha256_file(path) for path in self.paths])[:8]}")

    def compare(self, image: np.ndarray, target: np.ndarray) -> float:
        """Return the distance, 0 for equal pictures."""
        return self._distance(np.stack([image, target]))

    @cached_property
    def _distance(self) -> Callable[[np.ndarray], float]:
        import torch
        from torchvision.models import vgg16

        wrong = f"{self.paths[0]} or {self.paths[1]} is no file of LPIPS"
        with refusing(lambda why: f"{wrong} ({why}).", RuntimeError, KeyError):
            base, heads = (read_tensors(path) for path in self.paths)
            network = vgg16()
            network.load_state_dict(base)
            weights = [heads[f"lin{k}.model.1.weight"].to(self.device) for k in range(len(_VGG_TAPS))]
        layers = network.features[: _VGG_TAPS[-1] + 1].eval().to(self.device)
        mean, deviation = (torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (MEAN, DEVIATION))

        def distance(pair: np.ndarray) -> float:
            x, total = (channels_first(pair, self.device) / 255 - mean) / deviation, 0.0
            with torch.inference_mode():
                for place, layer in enumerate(layers):
                    x = layer(x)
                    if place in _VGG_TAPS:
                        unit = x / (x.norm(dim=1, keepdim=True) + 1e-10)
                        weight = weights[_VGG_TAPS.index(place)]
                        total += float((weight[0] * (unit[0] - unit[1]) ** 2).sum(0).mean())
            return total

        return distance
