"""Compiles the tables of a report as papers would, at the text widths that they have."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

# CI refuses to run without it.
needs_latex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")


# Where papers are set: class option, text width and height. ICML's columns are of 3.25 inches.
LAYOUTS = {
    "article, one column": ("onecolumn", ""),
    "article, two columns": ("twocolumn", ""),
    "ICML": ("twocolumn", "letterpaper,textwidth=6.75in,textheight=9in,columnsep=0.25in"),
    "NeurIPS": ("onecolumn", "letterpaper,textwidth=5.5in,textheight=9in"),
}


def complaints(report: Path, folder: Path) -> list[str]:
    """Compile all tables of a report in every layout; return each that runs off its column or page."""
    return [line for layout in LAYOUTS for line in _complaints(report, folder, layout)]


def _complaints(report: Path, folder: Path, layout: str) -> list[str]:
    columns, page = LAYOUTS[layout]
    geometry = rf"\usepackage[{page}]{{geometry}}" if page else ""
    own = folder / layout.replace(" ", "-").replace(",", "")
    own.mkdir(parents=True)
    parts = sorted(report.rglob("*.tex"))
    assert parts
    inputs = "\n".join(rf"\typeout{{FILE {part.name}}}\input{{{part.resolve()}}}\clearpage" for part in parts)
    (own / "all.tex").write_text(
        f"\\documentclass[{columns}]{{article}}\n{geometry}\n\\usepackage{{booktabs,graphicx}}\n"
        f"\\begin{{document}}\n{inputs}\n\\end{{document}}\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"],
        cwd=own,
        capture_output=True,
        timeout=240,
    )
    log = done.stdout.decode(errors="replace")
    assert done.returncode == 0, log[-2000:]
    found, name = [], ""
    for line in log.splitlines():
        name = line.removeprefix("FILE ") if line.startswith("FILE ") else name
        if re.match(r"Overfull \\[hv]box|LaTeX Warning: Float too large", line):
            found.append(f"{layout}: {name}: {line}")
    return found
