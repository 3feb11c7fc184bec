"""Figures of a report: which pictures a table and an ablation have, drawn without a screen, of fixed bytes.

A method has one colour in all of them. Each is written as PNG and, beside it under the same name, as PDF
for papers.
"""

from __future__ import annotations

import atexit
import math
import shutil
import tempfile
import textwrap
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bench.content import atomic_path
from bench.data.picture import shrunk
from bench.packed import Run
from bench.registry import FLOOR
from bench.reporting import words
from bench.reporting.compare import AblationTable
from bench.reporting.frame import OWN_METHOD, WRONG_CONDITIONS, Row, Table
from bench.reporting.render import MISSING
from bench.reporting.tables import column_digits, difference_cell, mean_cost
from bench.reporting.words import Column, titled
from bench.types import BenchError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, GRID, FRAME = "#222222", "#666666", "#e3e3e3", 205
# Okabe and Ito 2008: told apart by readers with any common colour vision; the marker says it again.
_METHODS = {
    "bps": ("#0072B2", "o"),
    "controlnet": ("#D55E00", "s"),
    "t2i-adapter": ("#009E73", "^"),
    "sd-finetune": ("#CC79A7", "v"),
    "style-only": ("#999933", "<"),
    "lora-concat": ("#E69F00", "p"),
    "controlnet-xs": ("#56B4E9", "X"),
    "text-only": (SOFT, "h"),
}
_STRANGERS = (("#000000", "P"), ("#332288", ">"), ("#661100", "*"))
_SHADES = ((0.0, 0), (0.4, 0), (0.3, 255))  # how far, and towards black or white
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))
# How a kind of row is drawn: colour and marker where they are not the method's, and whether it is filled.
_KINDS: Mapping[str, tuple[str | None, str | None, bool]] = {
    "reference": (INK, "D", False),
    "ceiling": (INK, "D", True),
    "shuffled": (None, None, False),
    "blank": (None, "P", False),
    "other": (None, "s", False),
    "better": ("#44AA99", "o", True),  # none of these three is a method's
    "worse": ("#882255", "o", True),
    "untold": ("#9a9a9a", "o", True),
}
_COSTS = {"train_seconds": "training seconds", "parameters_trainable": "trainable parameters"}
_AXES = {"train_items": "training items", "train_images": "training images"}
_AXES |= {"guidance": "guidance", "steps": "sampling steps"}
_SHOWN, _MOST = 8, 10  # items and rows of a gallery
_LEVELS = {slot: f"level {1 + slot // 3}{'ab'[(slot - 1) % 3]}" for slot in (1, 2, 4, 5, 7, 8, 10, 11)}
SAMPLES = "samples of the same items from the same initial noise"
CURVES = "training curves, first seed"
LEARNING_CURVE = f"quality by {_AXES['train_images']}"
_OF_TABLE = ("overview", "cost", "curves", "qualitative")
_FAR = 0.25  # heights of a panel: a floor farther away would press the methods together
_FEW = 30  # points of a curve that are drawn as they are
_DPI = 120
_TILE = 128  # pixels that a tile of a gallery takes at least
_LETTER = 0.0083  # inches that a letter of one point takes, about
_STYLE = resources.files(__package__) / "templates" / "figures.mplstyle"
# Dates and versions would move the bytes of a figure that did not change.
_FORMATS: Mapping[str, dict[str, Any]] = {
    "png": {"metadata": {"Software": None}, "pil_kwargs": {"compress_level": 3}},  # 6 saves 8%, takes twice
    "pdf": {"metadata": {"CreationDate": None, "Creator": None, "Producer": None}},
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


class Sheet(NamedTuple):
    """Where a figure is written, and how wide it is in inches, as in a paper; None: as it needs, titled."""

    path: Path
    width: float | None = None

    @property
    def points(self) -> float:
        """Size of letters: on a screen, or in a paper."""
        return 9.0 if self.width is None else 8.0

    @property
    def most(self) -> int:
        """Return how many rows a gallery has: more columns would be too small to see."""
        return _MOST if self.width is None or self.width > 5 else 4

    def beside(self, kind: str) -> Sheet:
        """Return another one of a name that says its kind besides."""
        return self._replace(path=self.path.with_name(f"{self.path.stem}-{kind}.png"))


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


def dot_figure(
    panels: Mapping[str, Sequence[Mark]], sheet: Sheet, *, title: str, names: list[str], zero: bool = False
) -> Path:
    """Draw a panel a header with a line a name: a dot, its interval and its number; return the path.

    A floor is dotted down its panel. zero: draw a line at 0 and stretch each panel about it.
    """
    size = (2.15, 0.3 * len(names) + 0.1) if sheet.width is None else (1.0, 0.21 * len(names) + 0.1)
    left = 0.2 + sheet.points * _LETTER * max(map(len, names))
    lines = {name: place for place, name in enumerate(names)}
    with _panels(sheet, len(panels), title=title, across=4, size=size, left=left) as axes:
        across = len({axis.get_position().x0 for axis in axes})
        over: dict[str, Any] = {"loc": "right"} if sheet.width is not None and across == 1 else {}
        for number, (axis, (header, marks)) in enumerate(zip(axes, panels.items(), strict=True)):
            axis.set_title(header.replace(" (", "\n(", 1), **over)
            axis.set(ylim=(len(names) - 0.5, -0.75))
            axis.spines["left"].set_visible(False)
            axis.yaxis.set_visible(False)  # ticks of every line and panel would take longest to draw
            whole: dict[str, Any] = {"transform": axis.get_yaxis_transform()}
            axis.hlines([*lines.values()], 0, 1, color=GRID, linewidth=0.8, zorder=0, **whole)
            for name, place in lines.items() if number % across == 0 else ():
                axis.text(-0.02, place, name, ha="right", va="center", color=INK, **whole)
            known = {mark.name for mark in marks}
            for name in (name for name in lines if name not in known):
                axis.text(0.02, lines[name], MISSING, va="center", color=SOFT, **whole)
            _dots(axis, marks, [lines[mark.name] for mark in marks])
            if zero:
                axis.axvline(0.0, color=SOFT, linewidth=0.8, zorder=0)
            axis.grid(visible=False)
            axis.locator_params(axis="x", nbins=4)
            axis.margins(x=0.14)
    return sheet.path


def _dots(axis: Axes, marks: Sequence[Mark], places: Sequence[int]) -> None:
    """Draw all dots of a panel as one collection, and their intervals as another, which is quicker."""
    from matplotlib.markers import MarkerStyle

    colours, faces, paths = [], [], []
    for mark, place in zip(marks, places, strict=True):
        look = looks({mark.name: mark.method})[mark.name]
        colour, marker, filled = _KINDS.get(mark.kind, (None, None, True))
        shape = MarkerStyle(marker or look.marker)
        colours.append(colour or look.colour)
        faces.append(colours[-1] if filled else "white")
        paths.append(shape.get_path().transformed(shape.get_transform()))
        if mark.kind == "floor":
            axis.axvline(mark.value, color="#bbbbbb", linestyle=":", linewidth=1, zorder=0)
        axis.text(mark.value, place - 0.19, mark.text, ha="center", va="bottom", fontsize=7, color=SOFT)
    values, low, high = np.asarray([[mark.value, mark.low, mark.high] for mark in marks], dtype=float).T
    axis.hlines(places, low, high, colors=colours, linewidth=2, alpha=0.55)
    dots = axis.scatter(values, places, s=5.5**2, c=faces, edgecolors=colours, linewidths=1, zorder=3)
    dots.set_paths(paths)


def plane_figure(
    panels: Sequence[Panel], sheet: Sheet, *, title: str, across: int = 2, joined: bool = False
) -> Path:
    """Draw panels of marks with intervals against x, named in one legend; return the path.

    joined: draw a line through the marks of one name, a faint one with its running mean where they are many.
    Floors are dotted across; one far away, which would press the others together, is told at the edge.
    """
    methods = {mark.name: mark.method for panel in panels for mark in panel.marks}
    styles, width = looks(methods), sheet.width
    size = ((3.1, 2.5) if across > 1 else (5.4, 2.9)) if width is None else (1.6, 1.7)
    place: dict[str, Any] = {"size": size, "left": 0.75, "legend": methods}
    with _panels(sheet, len(panels), title=title, across=across, **place) as axes:
        for axis, panel in zip(axes, panels, strict=True):
            axis.set(xlabel=panel.x, title=panel.y.replace(" (", "\n(", 1))
            for name in dict.fromkeys(mark.name for mark in panel.marks if mark.kind != "floor"):
                marks = sorted((m for m in panel.marks if m.name == name), key=lambda mark: mark.x)
                _series(axis, marks, styles[name], joined=joined)
            for mark in (mark for mark in panel.marks if mark.kind == "floor"):
                _floor(axis, mark)
            if panel.dashed is not None:
                axis.axvline(panel.dashed, color=SOFT, linestyle=_DASHES[1], linewidth=1, zorder=0)
            _x_axis(axis, panel)
        handles = {h.get_label(): h for axis in axes for h in axis.get_lines()}
        shown = [handles[name] for name in methods if name in handles]
        beside: dict[str, Any] = {"loc": "center right"}
        if width is not None:
            beside = {"loc": "lower center", "ncols": _names_across(methods, width), "borderaxespad": 0.2}
        axes[0].figure.legend(handles=shown, labelcolor="linecolor", **beside)
    return sheet.path


def _series(axis: Axes, marks: Sequence[Mark], look: Look, *, joined: bool) -> None:
    numbers = [(mark.x, mark.value, mark.low, mark.high) for mark in marks]
    x, y, low, high = np.asarray(numbers, dtype=float).T
    many = joined and len(marks) > _FEW
    if many:
        axis.plot(x, y, color=look.colour, alpha=0.22, linewidth=0.7)
    elif joined and len(marks) > 1:
        axis.fill_between(x, low, high, color=look.colour, alpha=0.15, linewidth=0)
    elif np.isfinite(low).any():
        axis.vlines(x, low, high, color=look.colour, linewidth=1.6, alpha=0.55)
    mean = running_mean(y, max(9, len(y) // 25) | 1) if many else y
    how: dict[str, Any] = {"marker": "none" if many else look.marker, "label": marks[0].name, "zorder": 3}
    axis.plot(x, mean, color=look.colour, linestyle=look.dash if joined else "none", **how)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Return the mean over `window` (odd) points about each, fewer at the ends, [N] float64."""
    weights, ones = np.ones(window), np.ones(len(values))
    return np.asarray(np.convolve(values, weights, "same") / np.convolve(ones, weights, "same"))


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
        axis.xaxis.set_major_formatter(lambda x, _: words.count(x))
    if panel.ticks:
        axis.set_xticks(*zip(*panel.ticks, strict=True))


def curve_figure(
    curves: Mapping[str, Sequence[Mark]],
    sheet: Sheet,
    *,
    labels: tuple[str, str],
    title: str,
    minus: Mapping[str, str] = {},
    ticks: Sequence[tuple[float, str]] = (),
) -> Path:
    """Draw curves, each of its numbers by step, by name; return the path.

    labels: of both axes. minus: names of curves with the name of the one that each is compared with; a second
    panel shows the differences at each step, which the noise of batches that both trained on does not blur.
    ticks: names of steps.
    """
    panels, gaps = {labels[1]: curves}, differences(curves, minus)
    if gaps:
        panels[f"{labels[1]}, minus {', '.join(dict.fromkeys(minus[name] for name in gaps))}"] = gaps
    drawn = [Panel(labels[0], y, [*chain(*lines.values())], False, ticks) for y, lines in panels.items()]
    return plane_figure(drawn, sheet, title=title, across=1, joined=True)


def differences(curves: Mapping[str, Sequence[Mark]], minus: Mapping[str, str]) -> dict[str, Sequence[Mark]]:
    """Return the named curves minus their references, where both have the same steps."""
    values = {name: {mark.x: mark.value for mark in marks} for name, marks in curves.items()}
    return {
        name: [mark._replace(value=mark.value - values[other][mark.x]) for mark in curves[name]]
        for name, other in minus.items()
        if values[name].keys() == values[other].keys()
    }


def gallery_figure(columns: Mapping[str, np.ndarray], sheet: Sheet, *, title: str) -> Path:
    """Draw pictures of the same items, [N,H,W,3] uint8 a column, a line an item; return the path.

    Pictures are made smaller where they are larger than 256 pixels; names and title grow with them.
    """
    width = sheet.width
    framed = np.stack([shrunk(images) for images in columns.values()])
    for rim in (FRAME, 255):
        framed = np.pad(framed, [(0, 0), (0, 0), (1, 1), (1, 1), (0, 0)], constant_values=rim)
    items, height, across = framed.shape[1:4]
    scale = -(-_TILE // across) / _DPI  # inches a pixel
    grown = max(1.0, scale * (across - 4) * _DPI / _TILE)
    if width is not None:
        title, scale, grown = "", (width - 0.04) / (len(columns) * across), 0.9
    letters = 17 if width is None else max(6, round(scale * across / (_LETTER * 6.2)))
    heads = ["\n".join(_wrapped(name, letters)) for name in columns]
    inside = (len(columns) * across * scale, items * height * scale)
    wide = width or max(inside[0], 0.082 * grown * len(title)) + 0.2
    edge = (wide - inside[0]) / 2 if width else 0.1
    above = grown * ((0.35 if title else 0.0) + 0.14 * max(head.count("\n") + 1 for head in heads)) + 0.1
    tall = inside[1] + edge + above
    with _figure(sheet, (wide, tall)) as figure:
        figure.text(edge / wide, 1 - 0.1 / tall, title, va="top", fontsize=11 * grown, color=INK)
        axis = figure.add_axes((edge / wide, edge / tall, inside[0] / wide, inside[1] / tall))
        page = framed.transpose(1, 2, 0, 3, 4).reshape(items * height, -1, 3)
        axis.imshow(page, interpolation="none", aspect="auto")
        axis.axis("off")
        for column, head in enumerate(heads):
            place = ((column + 0.5) * across, -4)
            axis.text(*place, head, ha="center", va="bottom", fontsize=7.5 * grown, color=INK)
    return sheet.path


def _wrapped(name: str, letters: int) -> list[str]:
    """Return a name in lines; an option longer than one is parted behind its "="."""
    parts = (part if len(part) <= letters else part.replace("=", "= ") for part in name.split())
    return textwrap.wrap(" ".join(parts), letters) or [""]


def _names_across(names: Iterable[str], width: float) -> int:
    return max(1, int(width / (0.45 + 8.0 * _LETTER * max(map(len, names)))))


@contextmanager
def _panels(
    sheet: Sheet,
    panels: int,
    *,
    title: str,
    across: int,
    size: tuple[float, float],
    left: float,
    legend: Collection[str] = (),
) -> Iterator[Sequence[Axes]]:
    """Give panels of a size (the least, on a sheet of a width), left: inches beside; write it at the end."""
    # Places are counted out: a layout that measures every text takes longer than all the drawing.
    between = (0.6 if legend else 0.15, 0.95 if across > 1 else 0.85)
    across, right = min(across, panels), 0.7 + 0.075 * max(map(len, legend)) if legend else 0.25
    below, above = 0.65, (0.75 if between[1] > 0.9 else 0.55) + 0.2 * title.count("\n")
    wide = max(left + across * (size[0] + between[0]) - between[0] + right, 0.2 + 0.084 * len(title))
    if sheet.width is not None:
        wide, right, above, title = sheet.width, 0.12, 0.4, ""
        across = max(1, min(across, int((wide - left - right + between[0]) / (size[0] + between[0]))))
        size = ((wide - left - right + between[0]) / across - between[0], size[1])
        between = (between[0], 0.75)
        below = 0.5 + (0.17 * -(-len(legend) // _names_across(legend, wide)) if legend else 0.0)
    down = -(-panels // across)
    tall = above + down * (size[1] + between[1]) - between[1] + below
    with _figure(sheet, (wide, tall)) as figure:
        figure.text(0.1 / wide, 1 - 0.08 / tall, title, va="top", fontsize=11, color=INK)
        axes = figure.subplots(
            down,
            across,
            squeeze=False,
            gridspec_kw={
                **{"left": left / wide, "top": 1 - above / tall, "bottom": below / tall},
                "right": (left + across * (size[0] + between[0]) - between[0]) / wide,
                **{"wspace": between[0] / size[0], "hspace": between[1] / size[1]},
            },
        )
        for axis in axes.flat[panels:]:
            axis.remove()
        for axis in axes.flat[:panels]:
            axis.xaxis.set_label_coords(0.5, -0.33 / size[1])
        yield list(axes.flat[:panels])


@cache
def _font() -> str:
    """Return the name of a font of few letters: to cut them out of a whole one takes longer than drawing."""
    from fontTools import subset
    from matplotlib import font_manager

    whole = font_manager.findfont("DejaVu Sans")
    options = subset.Options(drop_tables=[*subset.Options().drop_tables, "GSUB", "GPOS", "GDEF", "FFTM"])
    font, cutter = subset.load_font(whole, options), subset.Subsetter(options)
    cutter.populate(unicodes=[*range(0x20, 0x530), *range(0x2010, 0x2040), *range(0x2190, 0x2240)])
    cutter.subset(font)
    file = Path(tempfile.mkdtemp(), "font.ttf")
    font.save(file)
    atexit.register(shutil.rmtree, file.parent, ignore_errors=True)
    entry = font_manager.FontEntry(fname=str(file), name="figures", style="normal", weight=400)
    font_manager.fontManager.ttflist.append(entry)
    return entry.name


@contextmanager
def _figure(sheet: Sheet, inches: tuple[float, float]) -> Iterator[Figure]:
    """Give an empty figure that shares no state with others, and write it when the block ends."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.style import context

    sizes = {"font.size": sheet.points, "axes.titlesize": sheet.points, "font.family": _font()}
    with context(["default", str(_STYLE), sizes]):
        figure = Figure(figsize=inches)
        FigureCanvasAgg(figure)
        yield figure
        for kind, settings in _FORMATS.items():
            with atomic_path(sheet.path.with_suffix(f".{kind}")) as temporary:
                figure.savefig(temporary, format=kind, **settings)


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Pictures of the same items from the same initial noise, by column, [N,H,W,3] uint8 each.

    columns: "condition", rows, "target"; runs: the id of each row's run, all of one seed.
    """

    seed: int
    columns: Mapping[str, np.ndarray]
    runs: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """What is drawn -> its PNG, beside which lies a PDF, and the galleries of samples, one a protocol.

    left_out: why rows are in no gallery, or not drawn of it, in sentences.
    """

    figures: Mapping[str, str]
    galleries: Sequence[Gallery]
    left_out: Sequence[str]

    @property
    def pdfs(self) -> list[str]:
        """The figures as PDF, in their order."""
        return [str(Path(name).with_suffix(".pdf")) for name in self.figures.values()]


def draw_table(
    table: Table, rows: Sequence[Row], out: Path, *, name: str, width: float | None = None
) -> Pictures:
    """Draw the pictures of a table into `out`.

    rows: methods and floors in the order and under the names to show; name: of the table's files; width: see
    Sheet. Tables of mixed protocols get no picture that would put rows of two protocols side by side.
    """
    galleries, left_out = [], []
    for digest in dict.fromkeys(row.record.protocol_hash for row in rows):
        shown, reasons = gallery([row for row in rows if row.record.protocol_hash == digest])
        galleries += [shown] if shown is not None else []
        left_out += reasons
    sheets = [Sheet(out / f"{kind}-{name}.png", width) for kind in _OF_TABLE]
    uniform = [row for row in rows if row.record.options.get("timesteps", "uniform") == "uniform"]
    curves = {row.name: row.runs[0] for row in uniform}  # a loss over other timesteps is another loss
    drawn = {
        "overview": _overview(table, sheets[0]),
        "cost": None if table.marks else _cost(table, rows, sheets[1]),
        "curves": _curves(curves, sheets[2], table),
    }
    if galleries and not table.marks:
        drawn["samples"] = _samples(galleries[0], sheets[3], table.title)
    return _pictures(drawn, galleries, left_out, sheets[3].most)


def draw_ablation(table: AblationTable, out: Path, *, name: str, width: float | None = None) -> Pictures:
    """Draw the figures of an ablation into `out`; their keys say what they show. width: see Sheet.

    Samples are of each variant; along training items, of the reference's at each number of them.
    """
    sheet, ablation = Sheet(out / f"{name}.png", width), table.ablation
    if ablation.axis:
        drawn = {f"quality by {_AXES[ablation.axis]}": _along(table, sheet)}
    else:
        runs = {row.name: row.runs[0] for row in table.rows}
        drawn = {
            "differences to the paper's setting": _differences(table, sheet),
            "learned layer weights": _weights(table, sheet.beside("weights")),
            CURVES: _curves(runs, sheet.beside("curves"), table, minus=_references(table)),
        }
    rows = [row for row in table.rows if row.variant is not None]
    if ablation.axis in ("train_items", "train_images"):
        rows = [row for row in rows if row.variant and row.variant.name == ablation.reference]
    shown, left_out = gallery(rows)
    references = {row.name for row in rows if table.is_reference(row)}
    if shown is None or len(shown.runs) < 2 or not shown.runs.keys() & references:
        return _pictures(drawn, [], [], sheet.most)
    drawn[SAMPLES] = _samples(shown, sheet.beside("samples"), table.title)
    return _pictures(drawn, [shown], left_out, sheet.most)


def _pictures(
    drawn: Mapping[str, Path | None], shown: Sequence[Gallery], left_out: Sequence[str], most: int
) -> Pictures:
    crowd = [name for one in shown for name in list(one.runs)[most:]]
    figures = {kind: path.name for kind, path in drawn.items() if path is not None}
    said = [*(f"{name} is not shown for want of room." for name in crowd), *left_out]
    return Pictures(figures=figures, galleries=shown, left_out=said)


def gallery(rows: Sequence[Row]) -> tuple[Gallery | None, list[str]]:
    """Return the tiles of each row, all of one seed, None without any; and why rows are left out.

    rows: of the same items and noise, in the order to show. The seed is the first that most rows have.
    """
    tiled = {row.name: {r.record.seed: r for r in row.runs if r.has_tiles} for row in rows}
    left_out = [f"{name} keeps no tiles." for name, runs in tiled.items() if not runs]
    counts = Counter(seed for runs in tiled.values() for seed in runs)
    seed = min(counts, key=lambda s: (-counts[s], s), default=0)
    left_out += [f"{n} keeps no tiles of seed {seed}." for n, r in tiled.items() if r and seed not in r]
    samples: dict[str, np.ndarray] = {}
    ends: dict[str, np.ndarray] = {}
    for name, run in ((name, runs[seed]) for name, runs in tiled.items() if seed in runs):
        try:
            tiles = run.tiles()
        except BenchError:
            left_out.append(f"{name}: its tiles cannot be read.")
            continue
        ends = ends or tiles
        if all(np.array_equal(tiles[side], ends[side]) for side in ("condition", "target")):
            samples[name] = tiles["sample"]
        else:
            left_out.append(f"{name}: its tiles show other items.")
    if not samples:
        return None, left_out
    columns = {"condition": ends["condition"], **samples, "target": ends["target"]}
    runs = {name: tiled[name][seed].record.run_id for name in samples}
    return Gallery(seed=seed, columns=columns, runs=runs), left_out


def _samples(shown: Gallery, sheet: Sheet, title: str) -> Path:
    names = ["condition", *list(shown.runs)[: sheet.most], "target"]
    title += f", seed {shown.seed}: the same items from the same initial noise"
    return gallery_figure({name: shown.columns[name][:_SHOWN] for name in names}, sheet, title=title)


def _marks(rows: Sequence[Row], column: Column, **more: Mapping[str, Any]) -> list[Mark]:
    """Return the numbers that rows have in a column; more: by field of a mark, what it is by row."""
    marks = []
    for row, cell in ((row, row.cells[column]) for row in rows if column in row.cells):
        if cell.value is not None:
            own = {"name": row.name, "kind": row.kind} | {field: of[row.name] for field, of in more.items()}
            marks.append(
                Mark(method=row.record.method, value=cell.value, low=cell.low, high=cell.high, **own)
            )
    return marks


def _overview(table: Table, sheet: Sheet) -> Path | None:
    """Draw all numbers; in a paper those that tell first how good a method is, without wrong conditions."""
    paper, headline = sheet.width is not None, words.headline_metrics(table.task)
    left_out = {"variant", *((*WRONG_CONDITIONS, "other") if paper else ())}
    rows = [row for row in table.rows if row.kind not in left_out]
    labels = {row.name: row.label for row in rows}
    panels = {}
    for column in (c for c in table.columns if not c.spec.detail and (not paper or c.metric in headline)):
        digits = column_digits(table, column)
        if marks := _marks(rows, column, name=labels):
            panels[column.header] = [m._replace(text=words.number(m.value, digits)) for m in marks]
    title = f"{table.title}: values with 95% intervals"
    return dot_figure(panels, sheet, title=title, names=list(labels.values())) if panels else None


def _cost(table: Table, rows: Sequence[Row], sheet: Sheet) -> Path | None:
    panels, metrics = [], (*words.primary_metrics(table.task), "fd")
    for column in (c for m in metrics for c in table.columns if c.metric == m):
        for key, what in _COSTS.items():
            costs = {row.name: mean_cost(row, key) or math.nan for row in rows}
            marks = [m for m in _marks(rows, column, x=costs) if m.kind == "floor" or m.x > 0]
            if any(mark.kind == "method" for mark in marks):
                panels.append(Panel(what, column.header, marks))
    title = f"{table.title}: quality against cost, at {words.made_equal(table.records)}"
    return plane_figure(panels, sheet, title=title) if panels else None


def _curves(
    runs: Mapping[str, Run], sheet: Sheet, table: Table, *, minus: Mapping[str, str] = {}
) -> Path | None:
    curves = {
        name: [Mark(name, run.record.method, loss, x=step) for step, loss in run.curve]
        for name, run in runs.items()
        if run.curve
    }
    title = f"{table.title}: loss by training step, first seed; thick: mean over neighbours"
    labels = ("training step", "loss")
    return curve_figure(curves, sheet, labels=labels, title=title, minus=minus) if curves else None


def _references(table: AblationTable) -> dict[str, str]:
    """Return rows with the reference that each is compared with, where both trained on the same batches."""
    drawn = [(row, row.variant) for row in table.rows if row.runs[0].curve and row.variant is not None]
    pairs = [(row, other) for row, v in drawn for other, r in drawn if r is table.ablation.reference_of(v)]
    alike = [(a, b) for a, b in pairs if a is not b and a.record.seed == b.record.seed]  # so are batches
    return {row.name: other.name for row, other in alike}


def _differences(table: AblationTable, sheet: Sheet) -> Path | None:
    panels: dict[str, list[Mark]] = {}
    compared = [row for row in table.rows if row.differences]
    for row, d in ((r, r.differences[c]) for r in compared for c in table.columns if c in r.differences):
        kind = "untold" if not d.clear else "better" if d.better else "worse"
        i, text = d.interval, difference_cell(d).main
        mark = Mark(row.name, row.record.method, i.value, i.low, i.high, kind=kind, text=text)
        panels.setdefault(d.column.header, []).append(mark)
    title = f"{table.title}: minus {titled(table.ablation.reference)}, 95% intervals, paired"
    title += "\nteal better, wine worse, grey not told apart"
    names = [row.name for row in compared]
    return dot_figure(panels, sheet, title=title, names=names, zero=True) if panels else None


def _along(table: AblationTable, sheet: Sheet) -> Path | None:
    """Draw quality along the axis, where two places on it are known, and along multiply-adds if counted."""
    ablation, rows, methods = table.ablation, table.rows, table.own("method")
    places = {row.name: row.setting(ablation.axis) for row in rows}
    titles = {r.name: words.variant_title(r.variant) for r in rows if r.variant is not None}
    names = {r.name: titled(r.record) if ablation.resamples else titles[r.name] for r in rows}
    own = sorted({places[row.name] for row in methods})
    dashed = [places[row.name] for row in rows if table.is_reference(row) and ablation.resamples]
    axes = {_AXES[ablation.axis]: (places, [(place, f"{place:,g}") for place in own])}
    columns = [c for c in table.columns if any(c in row.cells for row in methods)]
    if ablation.axis == "train_images":
        headline = {*words.headline_metrics(table.task)} - {"fd"}
        columns = [c for c in columns if c.metric in headline] or columns
        macs = {row.name: float(row.train_macs or math.nan) for row in rows}
        if not any(math.isnan(macs[row.name]) for row in methods):
            axes["multiply-adds of training"] = macs, []
    panels = [
        Panel(what, c.header, marks, ablation.axis != "guidance", ticks, dashed[0] if dashed else None)
        for what, (x, ticks) in axes.items()
        for c in columns
        if (marks := _marks(rows, c, x=x, name=names))
    ]
    title = f"{table.title}: 95% intervals" + ("; dashed: the suite's own" if dashed else "")
    if not panels or len(own) < 2:
        return None
    across = len(columns) if len(axes) > 1 else 2 if len(panels) == 4 else 3
    return plane_figure(panels, sheet, title=title, across=across, joined=True)


def _weights(table: AblationTable, sheet: Sheet) -> Path | None:
    weights = {
        f"learned, seed {r.record.seed}": r.items.layer_weights for r in table.runs if moved(r) and r.items
    }
    if not weights:
        return None
    paper, first = "the paper's, where they started", next(iter(weights.values()))
    curves = {paper: [Mark(paper, FLOOR, start, x=i) for i, (_, start, _) in enumerate(first)]}
    for name, layers in weights.items():
        curves[name] = [Mark(name, OWN_METHOD, now, x=i) for i, (_, _, now) in enumerate(layers)]
    place, most = f"{table.suite} / {table.task}", max(map(moved, table.runs))
    title = f"Learned schedule on {place}: moved by {most:.2g} at most"
    ticks = [(i, _LEVELS.get(slot, "middle")) for i, (slot, _, _) in enumerate(first)]
    how: dict[str, Any] = {"labels": ("layer", "layer weight"), "minus": dict.fromkeys(weights, paper)}
    return curve_figure(curves, sheet, title=title, ticks=ticks, **how)


def moved(run: Run) -> float:
    """Return how far a run's layer weights went from their start, 0 where none did but by rounding."""
    weights = run.items.layer_weights if run.items is not None else ()
    gaps = (abs(now - start) for _, start, now in weights if not math.isclose(start, now, rel_tol=1e-6))
    return max(gaps, default=0.0)
