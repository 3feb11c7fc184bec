"""The picture files of one table: which there are and what they are called."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.content import atomic_path
from bench.picture import decode
from bench.reporting.cost_figure import cost_figure, cost_panels
from bench.reporting.curves import curve_figure
from bench.reporting.figures import overview, pdf_path
from bench.reporting.frame import Row, Table
from bench.reporting.qualitative import Gallery, draw_both, gallery
from bench.reporting.sheet import contact_sheet, sheet_title
from bench.reporting.words import made_equal
from bench.types import BenchError


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Files beside the page, relative to it; None where there is nothing to draw.

    sheets: run id -> contact sheet of the first seed of each row that has one; shown: what the
    qualitative figure holds. The drawn figures, which all but sheets are, lie there as PDF too.
    """

    overview: str | None
    cost: str | None
    curves: str | None
    qualitative: str | None
    shown: Gallery | None
    sheets: Mapping[str, str]

    @property
    def files(self) -> list[str]:
        """Every file, in no particular order."""
        return [*self.figures, *self.pdfs, *self.sheets.values()]

    @property
    def figures(self) -> list[str]:
        """The drawn figures as PNG, in the order of the page."""
        drawn = (self.overview, self.cost, self.curves, self.qualitative)
        return [name for name in drawn if name]

    @property
    def pdfs(self) -> list[str]:
        """The drawn figures as PDF, in the order of the page."""
        return [str(pdf_path(Path(name))) for name in self.figures]


def draw_pictures(table: Table, rows: Sequence[Row], out: Path, *, name: str) -> Pictures:
    """Draw the pictures of a table into `out`.

    rows: methods and floors in the order and under the names to show; name: of the table's files.
    Tables of mixed protocols get no picture that would put rows of two protocols side by side.
    """
    title = table.title
    one = not table.marks
    shown = gallery(rows) if one else None
    return Pictures(
        overview=_overview(table, out, name),
        cost=_cost(table, rows, out, name) if one else None,
        curves=_curves(rows, out, name, title),
        qualitative=_qualitative(shown, out, name, title),
        shown=shown,
        sheets=_draw_sheets(rows, out),
    )


def file_name(text: str) -> str:
    """Return text as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "unnamed"


def small_copy(drawn: Path, path: Path) -> Path:
    """Write a drawn figure again in 256 colours, a third of its size; return its path."""
    from PIL import Image

    picture = Image.fromarray(decode(drawn.read_bytes()).pixels)
    with atomic_path(path) as temporary:
        picture.quantize(256).save(temporary, format="PNG", optimize=True)
    return path


def _overview(table: Table, out: Path, name: str) -> str | None:
    few = replace(table, rows=tuple(row for row in table.rows if row.kind != "variant"))
    if not any(cell.value is not None for row in few.rows for cell in row.cells.values()):
        return None
    return overview(few, out / f"overview-{name}.png", pdf=True).name


def _cost(table: Table, rows: Sequence[Row], out: Path, name: str) -> str | None:
    panels = cost_panels(rows, table.columns, task=table.task)
    if not panels:
        return None
    records = [run.record for row in rows for run in row.runs]
    title = f"{table.title}: quality against cost, at {made_equal(records)}"
    return cost_figure(rows, panels, out / f"cost-{name}.png", title=title, pdf=True).name


def _curves(rows: Sequence[Row], out: Path, name: str, title: str) -> str | None:
    """Draw the training curve of each method's first seed."""
    first = {row.name: row.runs[0] for row in rows}
    drawn = {  # a loss over other timesteps is another loss
        name: run
        for name, run in first.items()
        if run.curve and run.record.options.get("timesteps", "uniform") == "uniform"
    }
    if not drawn:
        return None
    return curve_figure(
        {name: run.curve for name, run in drawn.items()},
        out / f"curves-{name}.png",
        x="training step",
        y=f"loss on {title}",
        methods={name: run.record.method for name, run in drawn.items()},
        pdf=True,
    ).name


def _qualitative(shown: Gallery | None, out: Path, name: str, title: str) -> str | None:
    if shown is None:
        return None
    return draw_both(shown, out / f"qualitative-{name}.png", title=title).name


def _draw_sheets(rows: Sequence[Row], out: Path) -> dict[str, str]:
    """Draw each row's first tiles as a contact sheet beside the report; all of them would swell it."""
    sheets = {}
    for row in rows:
        for run in row.runs:
            try:
                tiles = run.tiles() if run.has_tiles else None
            except BenchError:
                continue  # the gallery says so
            if tiles is not None:
                name = f"contact-{file_name(run.record.run_id)}.png"
                contact_sheet(tiles, out / name, title=sheet_title(run.record.run_id, run.record.leaked))
                sheets[run.record.run_id] = name
                break
    return sheets
