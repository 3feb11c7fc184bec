"""Figures of a report: drawn without a screen, of fixed bytes; a method has one colour in all of them.

They know names, methods and numbers, nothing of records: `bench.reporting.pictures` gives them those.
Each is written as PNG and, beside it under the same name, as PDF for papers.
"""

from __future__ import annotations

import atexit
import math
import shutil
import tempfile
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bench.content import atomic_path
from bench.reporting.words import MISSING, count
from bench.types import BenchError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = Sequence[tuple[int, float]]
Draw = Callable[..., Path]
_PUT_OFF: ContextVar[list[Callable[[], Path]] | None] = ContextVar("figures to draw later", default=None)
_WORTH = 8  # figures that are drawn faster by several processes than those start
INK, SOFT, GRID, FRAME = "#222222", "#666666", "#e3e3e3", 205
# Okabe and Ito 2008: told apart by readers with any common colour vision; the marker says it again.
_METHODS = {
    "bps": ("#0072B2", "o"),
    "controlnet": ("#D55E00", "s"),
    "t2i-adapter": ("#009E73", "^"),
    "sd-finetune": ("#CC79A7", "v"),
    "lora-concat": ("#E69F00", "p"),
    "controlnet-xs": ("#56B4E9", "X"),
    "text-only": (SOFT, "h"),
}
_STRANGERS = (("#000000", "P"), ("#999933", "<"), ("#332288", ">"), ("#661100", "*"))
_SHADES = ((0.0, 0), (0.4, 0), (0.3, 255))  # how far, and towards black or white
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))
# How a kind of row is drawn: colour and marker where they are not the method's, and whether it is filled.
_KINDS: Mapping[str, tuple[str | None, str | None, bool]] = {
    "reference": (INK, "D", False),
    "ceiling": (INK, "D", True),
    "shuffled": (None, None, False),
    "other": (None, "s", False),
    "better": ("#44AA99", "o", True),  # none of these three is a method's
    "worse": ("#882255", "o", True),
    "untold": ("#9a9a9a", "o", True),
}
_FAR = 0.25  # heights of a panel: a floor farther away would press the methods together
_FEW = 30  # points of a curve that are drawn as they are
_DPI = 120
_TILE = 128  # pixels that a tile of a gallery takes at least
_SETTINGS = {
    "font.size": 9.0,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 9.0,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.titley": 1.0,  # else looked for anew in each drawing
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.dpi": float(_DPI),
    "pdf.fonttype": 42,  # TrueType: publishers refuse the default, Type 3
}
# Dates and versions would move the bytes of a figure that did not change.
_METADATA: Mapping[str, dict[str, Any]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


class Mark(NamedTuple):
    """A number of a figure: of which row and method, its 95% interval, where it stands on the x axis.

    kind: of the row, or "better", "worse" and "untold" of a difference; text: of the number.
    """

    name: str
    method: str
    value: float
    low: float | None = None
    high: float | None = None
    x: float = math.nan
    kind: str = "method"
    text: str = ""


class Panel(NamedTuple):
    """Marks against x. x, y: what they are; log: whether x is; ticks: else chosen; dashed: an x of note."""

    x: str
    y: str
    marks: Sequence[Mark]
    log: bool = True
    ticks: Sequence[tuple[float, str]] = ()
    dashed: float | None = None


class Look(NamedTuple):
    """How a row is drawn."""

    colour: str
    marker: str
    dash: Any


def looks(methods: Mapping[str, str]) -> dict[str, Look]:
    """Return the look of each name, given with its method: the method's colour and marker in every figure.

    Further names of one method differ in shade and dash, twelve of them in the two.
    """
    drawn: dict[str, Look] = {}
    seen: Counter[str] = Counter()
    for name, method in methods.items():
        colour, marker = _METHODS.get(method, _STRANGERS[sum(method.encode()) % len(_STRANGERS)])
        shade, towards = _SHADES[seen[method] % len(_SHADES)]
        mixed = ((1 - shade) * int(colour[i : i + 2], 16) + shade * towards for i in (1, 3, 5))
        shaded = "#" + "".join(f"{round(part):02x}" for part in mixed)
        drawn[name] = Look(shaded, marker, _DASHES[seen[method] % len(_DASHES)])
        seen[method] += 1
    return drawn


@contextmanager
def together() -> Iterator[None]:
    """Put the block's figures off to its end, and draw them then by as many processes as there are cores."""
    from joblib import Parallel, cpu_count, delayed

    figures: list[Callable[[], Path]] = []
    token = _PUT_OFF.set(figures)
    try:
        yield
    finally:
        _PUT_OFF.reset(token)
    jobs = cpu_count() if len(figures) >= _WORTH else 1
    Parallel(n_jobs=jobs)(delayed(figure)() for figure in figures)


def _put_off(draw: Draw) -> Draw:
    """Let a figure wait where `together` asks for it; the path that it will have is known before."""

    @wraps(draw)
    def figure(shown: Any, path: Path, **more: Any) -> Path:
        later = _PUT_OFF.get()
        if later is None:
            return draw(shown, path, **more)
        later.append(partial(figure, shown, path, **more))
        return path

    return figure


@_put_off
def dot_figure(
    panels: Mapping[str, Sequence[Mark]],
    path: Path,
    *,
    title: str,
    names: Sequence[str],
    differences: bool = False,
) -> Path:
    """Draw a panel a header with a line a name: a dot, its interval and its number; return the path.

    A floor is dotted down its panel. differences: draw a line at 0 and stretch each panel about it.
    """
    size = (2.15, 0.3 * len(names) + 0.1)
    left, across = 0.2 + 0.072 * max(map(len, names)), min(4, len(panels))
    with _panels(path, len(panels), title=title, across=across, size=size, left=left) as axes:
        for number, (axis, (header, marks)) in enumerate(zip(axes, panels.items(), strict=True)):
            axis.set(title=header.replace(" (", "\n(", 1), ylim=(len(names) - 0.5, -0.75))
            axis.spines["left"].set_visible(False)
            axis.yaxis.set_visible(False)  # ticks of every line and panel would take longest to draw
            whole: dict[str, Any] = {"transform": axis.get_yaxis_transform()}
            axis.hlines(range(len(names)), 0, 1, color=GRID, linewidth=0.8, zorder=0, **whole)
            for place, name in enumerate(names if number % across == 0 else ()):
                axis.text(-0.02, place, name, ha="right", va="center", color=INK, **whole)
            for place in set(range(len(names))) - {names.index(mark.name) for mark in marks}:
                axis.text(0.02, place, MISSING, va="center", color=SOFT, **whole)
            for mark in marks:
                _dot(axis, mark, names.index(mark.name))
            if differences:
                axis.axvline(0.0, color=SOFT, linewidth=0.8, zorder=0)
            axis.grid(visible=False)
            axis.locator_params(axis="x", nbins=4)
            axis.margins(x=0.14)
    return Path(path)


def _dot(axis: Axes, mark: Mark, place: int) -> None:
    look = looks({mark.name: mark.method})[mark.name]
    own_colour, own_marker, filled = _KINDS.get(mark.kind, (None, None, True))
    colour, marker = own_colour or look.colour, own_marker or look.marker
    if mark.kind == "floor":
        axis.axvline(mark.value, color="#bbbbbb", linestyle=":", linewidth=1, zorder=0)
    if mark.low is not None and mark.high is not None:
        axis.plot([mark.low, mark.high], [place, place], color=colour, linewidth=2, alpha=0.55)
    face = colour if filled else "white"
    axis.plot([mark.value], [place], marker, color=colour, markersize=5.5, markerfacecolor=face, zorder=3)
    axis.text(mark.value, place - 0.19, mark.text, ha="center", va="bottom", fontsize=7, color=SOFT)


@_put_off
def plane_figure(
    panels: Sequence[Panel], path: Path, *, title: str, across: int = 2, joined: bool = False
) -> Path:
    """Draw panels of marks with intervals against x, named in one legend; return the path.

    joined: draw a line through the marks of one name, a faint one with its running mean where they are
    many. Floors are dotted across; one far away, which would press the others together, is told at the edge.
    """
    methods = {mark.name: mark.method for panel in panels for mark in panel.marks}
    styles = looks(methods)
    size = (3.1, 2.5) if across > 1 else (5.4, 2.9)
    with _panels(path, len(panels), title=title, across=across, size=size, left=0.75, legend=methods) as axes:
        for axis, panel in zip(axes, panels, strict=True):
            axis.set(xlabel=panel.x, title=panel.y.replace(" (", "\n(", 1))
            for name in dict.fromkeys(mark.name for mark in panel.marks if mark.kind != "floor"):
                marks = sorted((m for m in panel.marks if m.name == name), key=lambda mark: mark.x)
                _marks(axis, marks, styles[name], joined=joined)
            for mark in panel.marks:
                if mark.kind == "floor":
                    _floor(axis, mark)
            if panel.dashed is not None:
                axis.axvline(panel.dashed, color=SOFT, linestyle=_DASHES[1], linewidth=1, zorder=0)
            _x_axis(axis, panel)
        handles = {h.get_label(): h for axis in axes for h in axis.get_lines() if h.get_label() in methods}
        shown = [handles[name] for name in methods if name in handles]
        axes[0].figure.legend(handles=shown, loc="center right", labelcolor="linecolor")
    return Path(path)


def _marks(axis: Axes, marks: Sequence[Mark], look: Look, *, joined: bool) -> None:
    x, y = np.asarray([(mark.x, mark.value) for mark in marks]).T
    many = joined and len(marks) > _FEW
    if many:
        axis.plot(x, y, color=look.colour, alpha=0.22, linewidth=0.7)
    for mark in marks:
        if mark.low is not None and mark.high is not None:
            axis.plot([mark.x, mark.x], [mark.low, mark.high], color=look.colour, linewidth=1.6, alpha=0.55)
    axis.plot(
        x,
        running_mean(y, max(9, len(y) // 25) | 1) if many else y,
        color=look.colour,
        marker="none" if many else look.marker,
        linestyle=look.dash if joined else "none",
        label=marks[0].name,
        zorder=3,
    )


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Return the mean over `window` (odd) points about each, fewer at the ends, [N] float64."""
    weights = np.ones(window)
    return np.asarray(
        np.convolve(values, weights, "same") / np.convolve(np.ones(len(values)), weights, "same")
    )


def _floor(axis: Axes, mark: Mark) -> None:
    low, high = axis.get_ylim()
    if max(low - mark.value, mark.value - high) <= _FAR * (high - low):
        axis.axhline(mark.value, color=SOFT, linestyle=":", linewidth=1.2, zorder=0, label=mark.name)
        return
    axis.set_ylim(low, high)
    place, side, arrow = (0.02, "bottom", "↓") if mark.value < low else (0.98, "top", "↑")
    text = f"{mark.name} {mark.value:.3g} {arrow}"
    axis.text(0.98, place, text, ha="right", va=side, transform=axis.transAxes, fontsize=8, color=SOFT)


def _x_axis(axis: Axes, panel: Panel) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    xs = [mark.x for mark in panel.marks if math.isfinite(mark.x)]
    if panel.log:
        axis.set(xscale="log", xlim=(min(xs) / 1.5, max(xs) * 1.5))
        ratio = max(xs) / min(xs)
        steps = (1, 3) if ratio > 30 else (1, 2, 5) if ratio > 4 else (1, 1.5, 2, 3, 5, 7)
        axis.xaxis.set_major_locator(LogLocator(subs=steps))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(lambda x, _: count(x))
    if panel.ticks:
        axis.set_xticks(*zip(*panel.ticks, strict=True))


@_put_off
def curve_figure(
    curves: Mapping[str, Curve],
    path: Path,
    *,
    labels: tuple[str, str],
    title: str,
    methods: Mapping[str, str] | None = None,
    minus: Mapping[str, str] | None = None,
    ticks: Sequence[tuple[float, str]] = (),
) -> Path:
    """Draw curves of (step, number) by name; return the path.

    labels: of both axes. methods: the method of each name, whose colour it has. minus: names of curves with
    the name of the one that each is compared with; a second panel shows the differences at each step, which
    the noise of batches that both trained on does not blur. ticks: names of steps. BenchError for no curve.
    """
    if not curves:
        raise BenchError("a figure of curves needs one, got none")
    panels = {labels[1]: curves}
    gaps = differences(curves, minus or {})
    if gaps:
        references = ", ".join(dict.fromkeys((minus or {})[name] for name in gaps))
        panels[f"{labels[1]}, minus {references}"] = gaps
    drawn = [
        Panel(
            labels[0],
            words,
            [
                Mark(name, (methods or {}).get(name, name), value, x=step)
                for name, points in lines.items()
                for step, value in points
            ],
            log=False,
            ticks=ticks,
        )
        for words, lines in panels.items()
    ]
    return plane_figure(drawn, path, title=title, across=1, joined=True)


def differences(curves: Mapping[str, Curve], minus: Mapping[str, str]) -> dict[str, Curve]:
    """Return the named curves minus their references, where both have the same steps."""
    sides = {name: (dict(curves[name]), dict(curves[other])) for name, other in minus.items()}
    return {
        name: [(step, curve[step] - base[step]) for step in sorted(curve)]
        for name, (curve, base) in sides.items()
        if curve.keys() == base.keys()
    }


@_put_off
def gallery_figure(columns: Mapping[str, np.ndarray], path: Path, *, title: str) -> Path:
    """Draw pictures of the same items, [N,H,W,3] uint8 a column, a line an item; return the path."""
    framed = np.stack(list(columns.values()))
    for rim in (FRAME, 255):
        framed = np.pad(framed, [(0, 0), (0, 0), (1, 1), (1, 1), (0, 0)], constant_values=rim)
    items, height, width = framed.shape[1:4]
    scale = -(-_TILE // width) / _DPI  # inches a pixel
    heads = ["\n".join(textwrap.wrap(name, 17) or [""]) for name in columns]
    inside = (len(columns) * width * scale, items * height * scale)
    wide = max(inside[0], 0.082 * len(title)) + 0.2
    tall = inside[1] + 0.55 + 0.14 * max(head.count("\n") + 1 for head in heads)
    with _figure(path, (wide, tall)) as figure:
        figure.text(0.1 / wide, 1 - 0.1 / tall, title, va="top", fontsize=11, color=INK)
        axis = figure.add_axes((0.1 / wide, 0.1 / tall, inside[0] / wide, inside[1] / tall))
        page = framed.transpose(1, 2, 0, 3, 4).reshape(items * height, -1, 3)
        axis.imshow(page, interpolation="none", aspect="auto")
        axis.axis("off")
        for column, head in enumerate(heads):
            axis.text((column + 0.5) * width, -4, head, ha="center", va="bottom", fontsize=7.5, color=INK)
    return Path(path)


@contextmanager
def _panels(
    path: Path,
    panels: int,
    *,
    title: str,
    across: int,
    size: tuple[float, float],
    left: float,
    legend: Iterable[str] = (),
) -> Iterator[Sequence[Axes]]:
    """Give panels of a size in inches under a title, and write the figure when the block ends.

    left: inches of what stands left of them; legend: names to leave room for on the right; without them
    the panels share the lines of their rows. Places are counted out: a layout that measures every
    text takes longer than all the drawing.
    """
    down = -(-panels // across)
    names = [len(name) for name in legend]
    between = (0.6 if names else 0.15, 0.95 if across > 1 else 0.85)
    right = 0.7 + 0.075 * max(names) if names else 0.25
    wide = max(left + across * (size[0] + between[0]) - between[0] + right, 0.2 + 0.084 * len(title))
    above = (0.75 if across > 1 else 0.55) + 0.2 * title.count("\n")
    tall = above + down * (size[1] + between[1]) - between[1] + 0.65
    with _figure(path, (wide, tall)) as figure:
        figure.text(0.1 / wide, 1 - 0.08 / tall, title, va="top", fontsize=11, color=INK)
        axes = figure.subplots(
            down,
            across,
            squeeze=False,
            gridspec_kw={
                "left": left / wide,
                "right": (left + across * (size[0] + between[0]) - between[0]) / wide,
                "top": 1 - above / tall,
                "bottom": 0.65 / tall,
                "wspace": between[0] / size[0],
                "hspace": between[1] / size[1],
            },
        )
        for axis in axes.flat[panels:]:
            axis.remove()
        for axis in axes.flat[:panels]:
            axis.xaxis.set_label_coords(0.5, -0.33 / size[1])
        yield list(axes.flat[:panels])


@lru_cache(maxsize=1)
def _font() -> str:
    """Make a font of the few hundred letters that figures use and return its name.

    matplotlib cuts its font down anew for every PDF; from the whole font that takes longer than drawing.
    """
    from fontTools import subset
    from matplotlib import font_manager

    whole = font_manager.findfont("DejaVu Sans")
    options = subset.Options(drop_tables=[*subset.Options().drop_tables, "GSUB", "GPOS", "GDEF", "FFTM"])
    font, cutter = subset.load_font(whole, options), subset.Subsetter(options)
    cutter.populate(unicodes=[*range(0x20, 0x400), *range(0x2010, 0x2040), *range(0x2190, 0x2240)])
    cutter.subset(font)
    file = Path(tempfile.mkdtemp(), "font.ttf")
    font.save(file)
    atexit.register(shutil.rmtree, file.parent, ignore_errors=True)
    entry = font_manager.FontEntry(fname=str(file), name="figures", style="normal", weight=400)
    font_manager.fontManager.ttflist.append(entry)
    return entry.name


@contextmanager
def _figure(path: Path, inches: tuple[float, float]) -> Iterator[Figure]:
    """Give an empty figure that shares no state with others, and write it when the block ends."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.style import context

    with context(["default", _SETTINGS | {"font.family": [_font(), "DejaVu Sans"]}]):
        figure = Figure(figsize=inches)
        FigureCanvasAgg(figure)
        yield figure
        for kind, metadata in _METADATA.items():
            with atomic_path(Path(path).with_suffix(f".{kind}")) as temporary:
                figure.savefig(temporary, format=kind, metadata=metadata)
