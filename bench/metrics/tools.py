"""Other tools on the same files, judged by the same network: torch-fidelity and clean-fid.

Each decodes the images itself and sees the network through the same call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.types import unknown

if TYPE_CHECKING:
    import torch

_SUBSETS, _SUBSET = 100, 1000
_NAME = "bench-judge"

Files = tuple[Sequence[Path], Sequence[Path]]
Tool = Callable[[Files, Any, int], dict[str, float]]
"""(files of both sets, judge, batch) -> numbers by name: "fd" and "kid"."""


def check_tools(names: Sequence[str]) -> None:
    """Raise BenchError with a "did you mean" for an unknown tool."""
    for name in names:
        if name not in TOOLS:
            raise unknown("tool", name, TOOLS)


def tool_values(
    names: Sequence[str], files: Files, *, judge: Any, batch: int
) -> dict[str, dict[str, float] | str]:
    """Return what each tool says of two sets, or why it failed: another's fault is not ours.

    Both take images of one size alone.
    """
    values: dict[str, dict[str, float] | str] = {}
    for name in names:
        try:
            values[name] = TOOLS[name](files, judge, batch)
        except Exception as error:
            values[name] = f"failed: {type(error).__name__}: {error}".encode(
                errors="backslashreplace"
            ).decode()
    return values


def torch_fidelity(files: Files, judge: Any, batch: int) -> dict[str, float]:
    """Return FD and KID as torch-fidelity computes them, with the judge as its feature extractor."""
    from torch_fidelity import calculate_metrics
    from torch_fidelity.datasets import ImagesPathDataset
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    class Extractor(FeatureExtractorBase):
        """The judge in torch-fidelity's form: uint8 [B,3,H,W] -> [B,D]."""

        def __init__(self, name: str, features_list: list[str], **_: Any) -> None:
            super().__init__(name, features_list)

        get_provided_features_list = staticmethod(lambda: ("features",))
        get_default_feature_layer_for_metric = staticmethod(lambda metric: "features")
        can_be_compiled = staticmethod(lambda: False)

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
            return (_ask(judge, images),)

    FEATURE_EXTRACTORS_REGISTRY[_NAME] = Extractor
    try:
        values = calculate_metrics(
            input1=ImagesPathDataset(files[0]),
            input2=ImagesPathDataset(files[1]),
            fid=True,
            kid=True,
            feature_extractor=_NAME,
            batch_size=batch,
            cuda=False,
            cache=False,
            save_cpu_ram=True,
            verbose=False,
            kid_subsets=_SUBSETS,
            kid_subset_size=min(_SUBSET, *map(len, files)),
        )
    finally:
        del FEATURE_EXTRACTORS_REGISTRY[_NAME]
    return {
        "fd": float(values["frechet_inception_distance"]),
        "kid": float(values["kernel_inception_distance_mean"]),
    }


def clean_fid(files: Files, judge: Any, batch: int) -> dict[str, float]:
    """Return FD and KID as clean-fid computes them, with the judge as its custom extractor.

    Its KID draws from numpy's global generator, which is seeded for the call and put back.
    """
    import torch
    from cleanfid import fid

    features = [
        fid.get_files_features(
            list(map(str, paths)),
            lambda images: _ask(judge, images.round().to(torch.uint8)),
            num_workers=0,
            batch_size=batch,
            device=torch.device("cpu"),
            custom_fn_resize=lambda image: image,
            verbose=False,
        )
        for paths in files
    ]
    state = np.random.get_state()
    np.random.seed(0)
    try:
        kid = fid.kernel_distance(*features, num_subsets=_SUBSETS, max_subset_size=_SUBSET)
    finally:
        np.random.set_state(state)
    return {"fd": float(fid.fid_from_feats(*features)), "kid": float(kid)}


def _ask(judge: Any, images: torch.Tensor) -> torch.Tensor:
    """Return a judge's features of one batch, uint8 [B,3,H,W] -> [B,D]."""
    import torch

    return torch.from_numpy(judge.features(images.permute(0, 2, 3, 1).numpy(), batch_size=len(images)))


TOOLS: dict[str, Tool] = {"torch-fidelity": torch_fidelity, "clean-fid": clean_fid}
