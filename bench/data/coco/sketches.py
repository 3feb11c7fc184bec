"""Where sketches of photographs come from: two learned edge detectors, or Canny's without weights.

pidinet   PiDiNet (Su et al. 2021, arXiv 2108.07009) through controlnet-aux; what the release of BPS
          and T2I-Adapter use, the former soft, the latter binary
hed       HED (Xie and Tu 2015, arXiv 1504.06375), the re-trained network of controlnet-aux
canny     Canny 1986 in scikit-image, on luminance; binary, and no learned edges: another condition
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from bench.content import sha256_file
from bench.types import BenchError, raise_of_machine

FILES = {"pidinet": "table5_pidinet.pth", "hed": "ControlNetHED.pth"}
_HALF = 128  # binary: edges of at least this much of 255
_STEP = 64  # controlnet-aux rounds sides to multiples of it
_CANNY: dict[str, float] = {"sigma": 1.0, "low_threshold": 0.1, "high_threshold": 0.2}
_LUMINANCE = np.array([0.299, 0.587, 0.114]) / 255

Sketcher = Callable[[np.ndarray], np.ndarray]
"""Draws the lines of an image: [S,S,3] uint8 -> [S,S] uint8, 255 = line."""


def describe_sketch(name: str, *, weights: Path | None, soft: bool, size: int) -> str:
    """Return what the protocol says of a source of sketches, after checking that all is there.

    BenchError for a missing package or weight file, and a size that does not fit.
    """
    if name == "canny":
        _package("skimage")
        numbers = ", ".join(f"{k} {v:g}" for k, v in _CANNY.items())
        return f"canny (scikit-image; {numbers}; luminance), binary"
    if size % _STEP:
        raise BenchError(f"--sketch {name} needs a --size that is a multiple of {_STEP}, got {size}.")
    digest = sha256_file(_file(name, weights))
    _package("controlnet_aux")
    edges = "soft" if soft else f"binary at {_HALF} of 255"
    return f"{name} (controlnet-aux; weights SHA-256 {digest}), {edges}"


@lru_cache(maxsize=2)
def load_sketcher(name: str, *, weights: Path | None, soft: bool, size: int, device: str = "cpu") -> Sketcher:
    """Load a source of sketches for images of size x size; errors as `describe_sketch`."""
    if name == "canny":
        return canny_lines
    detector = _pidinet(weights) if name == "pidinet" else _hed(weights)
    detector.to(device)

    def draw(image: np.ndarray) -> np.ndarray:
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the same bits however many processes draw at once
        try:
            edges = detector(image, detect_resolution=size, image_resolution=size, output_type="np")[..., 0]
        finally:
            torch.set_num_threads(threads)
        return np.asarray(edges if soft else np.where(edges >= _HALF, 255, 0), np.uint8)

    return draw


def canny_lines(image: np.ndarray) -> np.ndarray:
    """Return Canny's edges of an image, [H,W,3] uint8 -> [H,W] uint8, 255 = line."""
    canny = _package("skimage.feature").canny
    return np.where(canny(image @ _LUMINANCE, **_CANNY), 255, 0).astype(np.uint8)


def _pidinet(weights: Path | None) -> Any:
    import torch

    path = _file("pidinet", weights)
    parts, detector = _package("controlnet_aux.pidi.model"), _package("controlnet_aux.pidi")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        network = parts.pidinet()
        network.load_state_dict({k.removeprefix("module."): v for k, v in state.items()})
    except Exception as error:  # torch raises many kinds for a wrong file
        raise_of_machine(error)
        raise BenchError(f"{path} does not hold PiDiNet's weights ({error}).") from error
    return detector.PidiNetDetector(network.eval())


def _hed(weights: Path | None) -> Any:
    path = _file("hed", weights)
    detector = _package("controlnet_aux.hed").HEDdetector
    try:
        return detector.from_pretrained(str(path.parent), filename=path.name)
    except Exception as error:
        raise_of_machine(error)
        raise BenchError(f"{path} does not hold HED's weights ({error}).") from error


def _file(name: str, weights: Path | None) -> Path:
    file = FILES[name]
    if weights is None or not (weights / file).is_file():
        raise BenchError(
            f"--sketch {name} needs {file}, got {weights / file if weights else 'no --weights'}. Give "
            f"the folder that holds it with --weights ({file} lies in lllyasviel/Annotators on the "
            "Hugging Face Hub), or draw without weights: --sketch canny, another protocol."
        )
    return weights / file


def _package(name: str) -> Any:
    """Import an optional package; BenchError that says how to install it."""
    import importlib
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # controlnet-aux tells of detectors nobody asked for
            return importlib.import_module(name)
    except ImportError as error:
        raise BenchError(
            f"drawing sketches needs {name.split('.')[0]} ({error}): pip install 'bps-bench[coco]'"
        ) from error
