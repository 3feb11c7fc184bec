"""Metrics, one file a kind: the mathematics beside what tables call it.

Those of a task's condition lie in `lines` and `regions`, and tasks name them. Below: what torch-fidelity and
clean-fid say of the same features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from bench.metrics.frechet import FD, FD_INFINITE
from bench.metrics.kernel import CMMD, KID
from bench.metrics.neighbours import NEARER_TRAINING, NEIGHBOURS
from bench.metrics.paired import CLIP, COSINE, MAE, RETRIEVAL
from bench.types import unknown

OF_SETS = (FD, KID, FD_INFINITE, NEIGHBOURS, CMMD)
OF_ITEMS = (COSINE, RETRIEVAL, MAE, NEARER_TRAINING, CLIP)
SPECS = (*(spec for metric in OF_SETS for spec in metric.specs), *(metric.spec for metric in OF_ITEMS))
_SUBSETS, _SUBSET = 100, 1000


def check_tools(names: Sequence[str]) -> None:
    """Raise BenchError with a "did you mean" for an unknown tool."""
    for name in names:
        if name not in TOOLS:
            raise unknown("tool", name, TOOLS)


def tool_values(name: str, first: np.ndarray, second: np.ndarray) -> dict[str, float] | str:
    """Return "fd" and "kid" of features [N,D] and [M,D] as a tool has them, or why it failed, in words."""
    try:
        fd, kid = TOOLS[name](first, second)
        return {"fd": float(fd), "kid": float(kid)}
    except Exception as error:
        return f"failed: {type(error).__name__}: {error}".encode(errors="backslashreplace").decode()


def _torch_fidelity(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    import torch
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric

    sets = [torch.from_numpy(x) for x in (first, second)]
    fd = fid_statistics_to_metric(*map(fid_features_to_statistics, sets), verbose=False)
    size = min(_SUBSET, len(first), len(second))
    kid = kid_features_to_metric(*sets, kid_subsets=_SUBSETS, kid_subset_size=size, verbose=False)
    return fd["frechet_inception_distance"], kid["kernel_inception_distance_mean"]


def _clean_fid(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Its KID draws from numpy's global generator, which is seeded for the call and put back."""
    from cleanfid import fid

    state = np.random.get_state()
    np.random.seed(0)
    try:
        kid = fid.kernel_distance(first, second, num_subsets=_SUBSETS, max_subset_size=_SUBSET)
    finally:
        np.random.set_state(state)
    return fid.fid_from_feats(first, second), kid


TOOLS: dict[str, Callable[[np.ndarray, np.ndarray], tuple[float, float]]] = {
    "torch-fidelity": _torch_fidelity,
    "clean-fid": _clean_fid,
}
