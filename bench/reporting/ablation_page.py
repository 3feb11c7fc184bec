"""Ablations in a report: their files, their figures and their part of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.reporting.ablation_figures import AXES, axis_figure, bars_figure, weights_figure
from bench.reporting.ablations import AblationTable, ablation_sentences
from bench.reporting.curves import curve_figure
from bench.reporting.figures import pdf_path
from bench.reporting.pictures import file_name
from bench.reporting.qualitative import Gallery, draw_both, gallery
from bench.reporting.render import code_span, escape_markdown, to_csv, to_latex, to_markdown
from bench.reporting.tables import ablation_command, main_grid, tidy
from bench.tiles import SIDES

CURVES = "training curves, first seed"
SAMPLES = "samples of the same items from the same initial noise"


@dataclass(frozen=True, kw_only=True)
class AblationSection:
    """An ablation and its files in a folder; name: of them ("ablation-prior-emoji-sketch").

    figures: PNG -> what it shows; each lies there as PDF too. left_out: why variants are not among
    the samples, in sentences.
    """

    name: str
    folder: Path
    table: AblationTable
    figures: Mapping[str, str]
    left_out: tuple[str, ...] = ()

    @property
    def pdfs(self) -> list[str]:
        """The figures as PDF."""
        return [str(pdf_path(Path(name))) for name in self.figures]

    @property
    def texts(self) -> list[str]:
        """The table's files."""
        return [f"{self.name}.{end}" for end in ("md", "tex", "csv")]


def ablation_sections(tables: Sequence[AblationTable], out: Path) -> list[AblationSection]:
    """Draw the figures of each ablation into `out` and name its files.

    A protocol is part of the name where one ablation, suite and task has several.
    """
    places = [_place(table) for table in tables]
    sections = []
    for table, place in zip(tables, places, strict=True):
        parts = [*place, *([table.key[:12]] if places.count(place) > 1 else [])]
        name = "-".join(["ablation", *map(file_name, parts)])
        figures, shown = _draw(table, out, name), _compared(table)
        if shown is not None:
            path = out / f"{name}-samples.png"
            figures[draw_both(shown, path, title=table.title).name] = SAMPLES
        left_out = shown.left_out if shown is not None else ()
        sections.append(
            AblationSection(name=name, folder=out, table=table, figures=figures, left_out=left_out)
        )
    return sections


def ablation_files(section: AblationSection) -> dict[str, str]:
    """Return the texts of an ablation's files by name."""
    grid = main_grid(section.table)
    return {
        f"{section.name}.md": to_markdown(grid),
        f"{section.name}.tex": to_latex(grid, key=section.name),
        f"{section.name}.csv": to_csv(tidy(section.table)),
    }


def ablation_markdown(section: AblationSection, *, level: str = "##", pictures: bool = True) -> str:
    """Return an ablation's part of a page: question, table, sentences, figures, files, command.

    level: of the heading; pictures: whether the figures and files lie beside the page.
    """
    table = section.table
    said = "".join(f"- {escape_markdown(line)}\n" for line in ablation_sentences(table))
    drawn = "".join(f"![{what}]({file})\n\n" for file, what in section.figures.items())
    drawn += "".join(f"- {escape_markdown(line)}\n" for line in section.left_out)
    drawn += "\n" if section.left_out else ""
    links = ", ".join(f"[{file}]({file})" for file in (*section.texts, *section.pdfs))
    notes = "".join(f"> **{escape_markdown(note)}**\n\n" for note in table.notes)
    return (
        f"{level} Ablation: {escape_markdown(table.title)}\n\n{notes}"
        f"{escape_markdown(table.ablation.question)}\n\n{said}\n{drawn if pictures else ''}"
        f"{to_markdown(main_grid(table))}\n"
        f"Remade by {code_span(ablation_command(table))}.{f' Files: {links}.' if pictures else ''}\n"
    )


def _place(table: AblationTable) -> tuple[str, str, str]:
    return table.ablation.name, table.suite, table.task


def _draw(table: AblationTable, out: Path, name: str) -> dict[str, str]:
    """Draw what can be drawn; return PNG -> what it shows."""
    drawn: list[tuple[Path | None, str]] = []
    if table.ablation.axis:
        about = f"quality by {AXES[table.ablation.axis]}"
        drawn.append((axis_figure(table, out / f"{name}.png", pdf=True), about))
    else:
        bars, weights, curves = (out / f"{name}{part}.png" for part in ("", "-weights", "-curves"))
        drawn = [
            (bars_figure(table, bars, pdf=True), "differences to the paper's setting"),
            (weights_figure(table, weights, pdf=True), "learned layer weights"),
            (_curves(table, curves), CURVES),
        ]
    return {path.name: what for path, what in drawn if path is not None}


def _compared(table: AblationTable) -> Gallery | None:
    """Return the same items under each variant; along training items, under each of the reference's.

    None where no reference, or nothing beside it, keeps tiles.
    """
    along = table.ablation.axis == "train_items"
    lines = [x for x in table.rows if not along or x.variant and x.variant.name == table.ablation.reference]
    shown = gallery(lines)
    if shown is None:
        return None
    references = {line.name for line in lines if table.is_reference(line)}
    variants = set(shown.columns) - set(SIDES)
    return shown if len(variants) > 1 and variants & references else None


def _curves(table: AblationTable, path: Path) -> Path | None:
    """Draw the training curve of each variant's first seed, and its difference to the reference's."""
    drawn = [line for line in table.rows if line.runs[0].curve]
    if not drawn:
        return None
    curves = {line.name: line.runs[0].curve for line in drawn}
    minus = {
        line.name: other.name
        for line in drawn
        for other in drawn
        if line.variant is not None
        and other.variant is table.ablation.reference_of(line.variant)
        and other is not line
        and other.record.seed == line.record.seed  # else their batches differ
    }
    y = f"loss on {table.suite} / {table.task}"
    methods = {line.name: line.record.method for line in drawn}
    return curve_figure(curves, path, x="training step", y=y, minus=minus, methods=methods, pdf=True)
