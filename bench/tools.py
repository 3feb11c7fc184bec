"""Other tools on the same two folders, judged by the same network: torch-fidelity and clean-fid.

Each decodes its own images and sees the network through the same call. torch-fidelity runs FID and KID in
one call; clean-fid's features are taken once for both of its numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.data.folder import SUFFIXES, manifest_of, pictures_of, readable
from bench.judges import Judge
from bench.types import BenchError, unknown

if TYPE_CHECKING:
    import torch

SUBSETS, SUBSET, SEED = 100, 1000, 0
_SERIAL = itertools.count()

Tool = Callable[[Path, Path, Judge, int], dict[str, float]]
"""(first, second, judge, batch) -> numbers by name: "fd" and "kid"."""


def find_tools(names: Sequence[str]) -> dict[str, Tool]:
    """Return tools by name; BenchError with a "did you mean" for an unknown one."""
    for name in names:
        if name not in TOOLS:
            raise unknown("tool", name, TOOLS)
    return {name: TOOLS[name] for name in names}


def tool_values(
    tools: Mapping[str, Tool], first: Path, second: Path, *, judge: Judge, batch: int
) -> dict[str, dict[str, float] | str]:
    """Return what each tool says of two folders, or why it failed: another's fault is not ours."""
    found: dict[str, dict[str, float] | str] = {}
    for name, tool in tools.items():
        try:
            found[name] = tool(first, second, judge, batch)
        except Exception as error:
            found[name] = readable(f"failed: {type(error).__name__}: {error}")
    return found


def torch_fidelity(first: Path, second: Path, judge: Judge, batch: int) -> dict[str, float]:
    """Return FD and KID as torch-fidelity computes them, with the judge as its feature extractor."""
    from torch_fidelity import calculate_metrics
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

    name = f"bench-judge-{next(_SERIAL)}"  # a name may be registered once only
    register_feature_extractor(name, _extractor(judge))
    try:
        found = calculate_metrics(
            input1=str(first.resolve()),
            input2=str(second.resolve()),
            fid=True,
            kid=True,
            feature_extractor=name,
            batch_size=batch,
            cuda=False,
            cache=False,
            save_cpu_ram=True,
            samples_find_ext=",".join(s.removeprefix(".") for s in SUFFIXES),
            verbose=False,
            kid_subsets=SUBSETS,
            kid_subset_size=min(SUBSET, *(len(manifest_of(x).files) for x in (first, second))),
        )
    finally:
        del FEATURE_EXTRACTORS_REGISTRY[name]
    return {
        "fd": float(found["frechet_inception_distance"]),
        "kid": float(found["kernel_inception_distance_mean"]),
    }


def _extractor(judge: Judge) -> Any:
    """Return a class in torch-fidelity's form that asks the judge: uint8 [B,3,H,W] -> [B,D]."""
    import torch
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    class Extractor(FeatureExtractorBase):
        """The judge under the name that was registered."""

        def __init__(self, name: str, features_list: list[str], **_: Any) -> None:
            super().__init__(name, features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("features",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "features"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (torch.from_numpy(_ask(judge, images)),)

    return Extractor


def clean_fid(first: Path, second: Path, judge: Judge, batch: int) -> dict[str, float]:
    """Return FD and KID as clean-fid computes them, with the judge as its custom extractor.

    Its KID draws from numpy's global generator, which is seeded for the call and put back.
    """
    import torch
    from cleanfid import fid

    def model(images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(_ask(judge, images.round().to(torch.uint8)))

    features = [
        fid.get_folder_features(
            str(folder.resolve()),
            model,
            num_workers=0,
            batch_size=batch,
            mode="clean",
            device=torch.device("cpu"),
            custom_fn_resize=lambda image: image,
            verbose=False,
        )
        for folder in (first, second)
    ]
    state = np.random.get_state()
    np.random.seed(SEED)
    try:
        kid = fid.kernel_distance(*features, num_subsets=SUBSETS, max_subset_size=SUBSET)
    finally:
        np.random.set_state(state)
    return {"fd": float(fid.fid_from_feats(*features)), "kid": float(kid)}


def _ask(judge: Judge, images: torch.Tensor) -> np.ndarray:
    """Return a judge's features of one batch, uint8 [B,3,H,W] -> [B,D] float32."""
    return judge.features(images.permute(0, 2, 3, 1).numpy(), batch_size=len(images))


def check_one_size(first: Path, second: Path) -> None:
    """Raise BenchError for folders of images of several sizes, which these tools do not take."""
    manifests = manifest_of(first), manifest_of(second)
    sizes = {p.pixels.shape[1::-1] for m in manifests for _, p in pictures_of(m, m.files)}
    if len(sizes) > 1:
        raise BenchError(
            f"{first} and {second} hold images of {len(sizes)} sizes; torch-fidelity and clean-fid "
            "take images of one size alone. Resize them, or leave --also away: `bench compare` takes any."
        )


TOOLS: Mapping[str, Tool] = {"torch-fidelity": torch_fidelity, "clean-fid": clean_fid}
