"""Ablations of the HTML page: tables as texts and figures as inline pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.picture import decode
from bench.reporting.ablation_page import CURVES, SAMPLES, AblationSection
from bench.reporting.ablations import ablation_sentences
from bench.reporting.render import Grid
from bench.reporting.tables import ablation_command, main_grid

_WIDE, _QUALITY = 1400, 85


def ablation_data(sections: Sequence[AblationSection]) -> list[dict[str, Any]]:
    """Return what the page shows of each ablation, its figures as data URIs; texts, never markup."""
    return [_ablation(section) for section in sections]


def picture_bytes(ablations: Sequence[dict[str, Any]]) -> int:
    """Return how many bytes the figures take in the page."""
    return sum(len(figure["source"]) for made in ablations for figure in made["figures"])


def _ablation(section: AblationSection) -> dict[str, Any]:
    table, grid = section.table, main_grid(section.table)
    return {
        "suite": table.suite,
        "task": table.task,
        "title": f"Ablation: {table.title}",
        "question": table.ablation.question,
        "caption": grid.caption,
        "notes": list(table.notes),
        "heads": _heads(grid),
        "rows": [[[cell.main, cell.beside] for cell in line] for line in grid.body],
        "rules": list(grid.rules),
        "said": ablation_sentences(table),
        "figures": [
            {"about": what, "source": _source(section.folder / name, pictures=what == SAMPLES)}
            for name, what in section.figures.items()
            if what != CURVES
        ],
        "left_out": list(section.left_out),
        "files": [*section.texts, *section.figures, *section.pdfs],
        "command": ablation_command(table),
    }


def _heads(grid: Grid) -> list[str]:
    """Return one line of headers: the metric over its value, then what its difference is to."""
    lead = sum(not group for group in grid.groups)
    pairs = zip(grid.groups[lead:], grid.header[lead:], strict=True)
    return [*grid.header[:lead], *(g if i % 2 == 0 else h for i, (g, h) in enumerate(pairs))]


def _source(path: Path, *, pictures: bool) -> str:
    """Return a drawn figure as a data URI, packed anew without loss.

    pictures: it shows samples, which are packed smaller: no wider than the page and with loss.
    """
    from PIL import Image

    file = io.BytesIO()
    drawn = Image.fromarray(decode(path.read_bytes()).pixels)
    if pictures:
        drawn.thumbnail((_WIDE, _WIDE * 2))
        drawn.save(file, format="WEBP", quality=_QUALITY)
    else:
        drawn.save(file, format="WEBP", lossless=True)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
