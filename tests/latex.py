"""Compiles the tables of a report as a paper would, in one column and in two."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

# CI refuses to run without it.
needs_latex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")


def complaints(report: Path, folder: Path) -> list[str]:
    """Compile all tables of a report in both layouts; return what runs off the page by over a point."""
    return [line for columns in ("onecolumn", "twocolumn") for line in _complaints(report, folder, columns)]


def _complaints(report: Path, folder: Path, columns: str) -> list[str]:
    own = folder / columns
    own.mkdir(parents=True)
    parts = sorted(report.rglob("*.tex"))
    assert parts
    inputs = "\n".join(rf"\typeout{{}}\input{{{part.resolve()}}}\clearpage" for part in parts)
    (own / "all.tex").write_text(
        f"\\documentclass[{columns}]{{article}}\n\\usepackage[a4paper,margin=2.5cm]{{geometry}}\n"
        f"\\usepackage{{booktabs,graphicx}}\n\\begin{{document}}\n{inputs}\n\\end{{document}}\n",
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
    boxes = re.findall(r"Overfull \\[hv]box \(([0-9.]+)pt too (?:wide|high)\)[^\n]*", log)
    found = [f"{columns}: a box {points} pt over" for points in boxes if float(points) > 1.0]
    return [*found, *re.findall(r"LaTeX Warning: Float too large[^\n]*", log)]
