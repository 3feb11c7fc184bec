"""Training curves: each run's loss by step and, where batches are shared, minus a reference's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.reporting.figures import GRID, INK, Look, figure_file, label_ends, looks, plain_looks
from bench.types import BenchError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = Sequence[tuple[int, float]]
_FEW = 30  # points that are drawn as they are


def curve_figure(
    curves: Mapping[str, Curve],
    path: Path,
    *,
    x: str,
    y: str,
    minus: Mapping[str, str] | None = None,
    methods: Mapping[str, str] | None = None,
    pdf: bool = False,
) -> Path:
    """Draw curves of (step, number) by name, each labelled at its end, as PNG; return its path.

    x, y: what the axes show. minus: names of curves with the name of the one that each is compared
    with; a second panel shows the differences at each step, which the noise of batches that both
    trained on does not blur. methods: the method of each name, whose colour it has. pdf: see
    `figure_file`. A curve of over 30 points is drawn faint with its running mean. BenchError for no
    curve, an empty one or a number that is not finite.
    """
    _check_curves(curves)
    styles = looks(methods) if methods is not None else plain_looks(curves)
    gaps = differences(curves, minus or {})
    with figure_file(path, size=(7.2, 6.6 if gaps else 3.8), pdf=pdf) as figure:
        panels = figure.subplots(2 if gaps else 1, squeeze=False, sharex=True)[:, 0]
        widest = _draw(panels[0], curves, styles)
        note = f" (line: mean over up to {widest} points)" if widest > 1 else ""
        panels[0].set_ylabel(y)
        panels[0].set_title(f"{y} by {x}{note}", loc="left", fontsize=10, color=INK)
        if gaps:
            _draw(panels[1], gaps, styles)
            steps = [step for points in gaps.values() for step, _ in points]
            panels[1].plot([min(steps), max(steps)], [0.0, 0.0], color=INK, linewidth=0.9)
            references = ", ".join(dict.fromkeys((minus or {})[name] for name in gaps))
            title = f"minus {references} at the same step"
            panels[1].set_title(title, loc="left", fontsize=10, color=INK)
            panels[1].set_ylabel("difference")
        panels[-1].set_xlabel(x)
    return Path(path)


def differences(curves: Mapping[str, Curve], minus: Mapping[str, str]) -> dict[str, Curve]:
    """Return the named curves minus their references, where both have the same steps."""
    found: dict[str, Curve] = {}
    for name, reference in minus.items():
        steps, values = _sorted(curves[name])
        others, base = _sorted(curves[reference])
        if np.array_equal(steps, others):
            found[name] = list(zip(steps.astype(int).tolist(), values - base, strict=True))
    return found


def _draw(axis: Axes, curves: Mapping[str, Curve], styles: Mapping[str, Look]) -> int:
    """Draw curves into a panel and return the widest running mean, in points."""
    ends, widest = [], 1
    for name, points in curves.items():
        look = styles[name]
        steps, values = _sorted(points)
        window = _window(len(points))
        smooth = _running_mean(values, window)
        if window > 1:
            axis.plot(steps, values, color=look.colour, alpha=0.22, linewidth=0.7)
        line = axis.plot(steps, smooth, color=look.colour, linestyle=look.dash, linewidth=1.8)[0]
        line.set(marker="o" if len(points) <= _FEW else "none", markersize=4)
        ends.append((look.sign + name, look.colour, float(steps[-1]), float(smooth[-1])))
        widest = max(widest, window)
    axis.grid(axis="y", color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    label_ends(axis, ends)
    return widest


def _check_curves(curves: Mapping[str, Curve]) -> None:
    if not curves or not all(curves.values()):
        lengths = {name: len(points) for name, points in curves.items()}
        raise BenchError(f"a figure of curves needs a point in each, got {lengths or 'no curve'}")
    for name, points in curves.items():
        for step, value in points:
            if not math.isfinite(value):
                raise BenchError(f"the curve '{name}' is {value} at step {step}; it must be finite")


def _sorted(points: Curve) -> tuple[np.ndarray, np.ndarray]:
    ordered = np.asarray(sorted(points), dtype=np.float64)
    return ordered[:, 0], ordered[:, 1]


def _window(n: int) -> int:
    return max(9, n // 25) | 1 if n > _FEW else 1


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Return the mean over `window` (odd) points about each, fewer at the ends, [N] float64."""
    half = window // 2
    total = np.concatenate([[0.0], np.cumsum(values)])
    first = np.maximum(np.arange(len(values)) - half, 0)
    last = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return np.asarray((total[last] - total[first]) / (last - first))
