"""The whole report: complete, linked, legal LaTeX, and the same bytes from the same records."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest

from bench.report import Run, build_table, load_runs, make_report
from bench.report.grid import Grid, Text, escape_latex, to_markdown
from bench.report.sheet import contact_sheet
from bench.types import BenchError

Writer = Callable[..., Run]

STEM = "emoji-sketch"


def test_report_is_remade_byte_for_byte(full: Path, report: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(full, moved)
    again = make_report(moved, tmp_path / "again")
    assert sorted(p.name for p in report.iterdir()) == [p.name for p in again]
    for path in again:
        assert path.read_bytes() == (report / path.name).read_bytes(), path.name


def test_report_holds_everything_it_promises(full: Path, report: Path) -> None:
    made = {path.name for path in report.iterdir()}
    for kind in ("table", "cost", "differences"):
        assert {f"{kind}-{STEM}.tex", f"{kind}-{STEM}.csv"} <= made
    assert {"report.md", f"table-{STEM}.md", f"overview-{STEM}.png"} <= made
    text = (report / "report.md").read_text()
    assert (report / f"table-{STEM}.md").read_text() in text
    assert "bps beats text-only on line F1 by 0.419 [" in text
    assert "--method bps --budget default --seed 2 --device cpu  # bps-sketch-s2" in text
    assert '"processor": "a_cpu"' in text
    assert '"guidance": 3.0' in text
    assert str(full.parent) not in text
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert len(targets) >= 12 and set(targets) <= made
    copied = (report / "contact-bps-sketch-s0.png").read_bytes()
    assert copied == (full / "bps-sketch-s0" / "contact.png").read_bytes()
    assert not (report / "contact-bps-sketch-s1.png").exists()
    assert "Sheets of other seeds (2) lie in the folders of their runs" in text


def test_csv_is_the_table_in_full_precision(full: Path, report: Path) -> None:
    frame = pandas.read_csv(report / f"table-{STEM}.csv")
    table = build_table(load_runs(full))
    for row in table.rows:
        for column, cell in row.cells.items():
            chosen = (frame["row"] == row.label) & (frame["metric"] == column.metric)
            assert frame[chosen]["value"].item() == cell.value


def test_several_protocols_are_several_tables_or_one_marked(
    add_run: Writer, results: Path, tmp_path: Path
) -> None:
    add_run("bps", {"fd": 38.0})
    add_run("bps", {"fd": 38.0}, protocol_hash="f" * 64, run_id="bps_other")
    apart = {path.name for path in make_report(results, tmp_path / "apart")}
    assert {f"table-{STEM}-0123456789ab.tex", f"table-{STEM}-ffffffffffff.tex"} <= apart
    assert "MIXED" not in (tmp_path / "apart" / "report.md").read_text()
    together = {path.name for path in make_report(results, tmp_path / "one", mixed=True)}
    assert f"table-{STEM}.tex" in together
    text = (tmp_path / "one" / "report.md").read_text()
    assert "MIXED PROTOCOLS" in text and "bps (protocol B)" in text


def test_no_records_says_where_it_looked_and_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(BenchError) as caught:
        make_report(tmp_path / "nowhere", tmp_path / "out")
    assert str(tmp_path / "nowhere") in str(caught.value)
    assert "bench run --method bps --task sketch" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_where_a_table_cannot_be_made(
    add_run: Writer, results: Path, tmp_path: Path
) -> None:
    add_run("a", {"fd": 1.0}, task="layout")
    add_run("bps", {"fd": 1.0})
    add_run("bps", {"fd": 2.0}, run_id="twice")
    with pytest.raises(BenchError, match="same run twice"):
        make_report(results, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_record_without_numbers_still_makes_a_report(
    add_run: Writer, results: Path, tmp_path: Path
) -> None:
    add_run("bps", {"fd": None}, items=False, rows={})
    names = {path.name for path in make_report(results, tmp_path / "out")}
    assert f"overview-{STEM}.png" not in names
    text = (tmp_path / "out" / "report.md").read_text()
    assert "No contact sheet: `bps-sketch-s0`" in text
    assert "no difference is stated" in text


def test_odd_names_stay_inside_the_folder(add_run: Writer, results: Path, tmp_path: Path) -> None:
    add_run("bps", {"fd": 1.0}, suite="a..b", run_id="one")
    for path in make_report(results, tmp_path / "out"):
        assert path.resolve().parent == (tmp_path / "out").resolve()
    with pytest.raises(BenchError, match=r"'suite': '\.\./up' is no name"):
        add_run("bps", {"fd": 1.0}, suite="../up", run_id="two")


def test_latex_escapes() -> None:
    assert escape_latex(r"a_b 5% \x {y} #1 & $z^2~") == (
        r"a\_b 5\% \textbackslash{}x \{y\} \#1 \& $\mathdollar$z\textasciicircum{}2\textasciitilde{}"
    )
    assert escape_latex("FD ↓ – é đ 猫") == (r"FD $\downarrow$ -- é \texttt{U+0111} \texttt{U+732B}")


def test_markdown_escapes() -> None:
    grid = Grid(header=("a|b",), body=((Text(main="x|y*z\n<p>", beside="[0, 1]"),),), caption="c")
    assert to_markdown(grid) == "| a\\|b |\n| :-- |\n| x\\|y\\*z &lt;p&gt; [0, 1] |\n\nc\n"


def test_latex_table_is_balanced(report: Path) -> None:
    assert r"}$-$0.084\\[-2pt]{\scriptsize [$-$" in (report / f"differences-{STEM}.tex").read_text()
    text = (report / f"table-{STEM}.tex").read_text()
    assert text.count(r"\begin{") == text.count(r"\end{") > 2
    assert r"\shortstack[r]{FD $\downarrow$\\{\scriptsize (EfficientNet-Lite0)}}" in text
    assert r"\label{tab:emoji-sketch}" in text
    assert text.count(r"\midrule") == 3
    columns = {len(re.findall(r"(?<!\\)&", x)) for x in text.splitlines() if x.endswith(r" \\")}
    assert columns == {8}


needs_latex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")


@pytest.mark.filterwarnings("ignore:Glyph")
@needs_latex
def test_latex_compiles_with_odd_names(add_run: Writer, results: Path, tmp_path: Path) -> None:
    odd = {"text": "50% of_all \\{}#$&~^<>|'`\"éŁ±–猫", "b": "["}
    add_run("b_p.s", {"fd": -3.0, "seg_miou": 0.5}, shuffled={"seg_miou": 0.1}, options=odd)
    add_run("b_p.s", {"fd": 8.0, "seg_miou": 0.5}, run_id="plain")
    add_run("a.method_+", {"fd": 8.0, "clip": 0.5})
    add_run("text-only", {"fd": 8.0, "seg_miou": 0.2}, protocol_hash="f" * 64)
    make_report(results, tmp_path / "out", mixed=True)
    assert "Overfull" not in compile_latex(tmp_path / "out", tmp_path / "pdf")


@needs_latex
def test_latex_of_a_whole_suite_compiles(suite_report: Path, tmp_path: Path) -> None:
    log = compile_latex(suite_report, tmp_path / "pdf")
    assert "Overfull" not in log and "Float too large" not in log


def compile_latex(report: Path, folder: Path) -> str:
    """Compile all tables of a report three times (long tables settle then); return the last log."""
    folder.mkdir()
    parts = sorted(report.glob("*.tex"))
    for part in parts:
        shutil.copy(part, folder)
    inputs = "\n".join(rf"\input{{{part.name}}}\clearpage" for part in parts)
    (folder / "all.tex").write_text(
        "\\documentclass{article}\n\\usepackage{booktabs,graphicx,longtable}\n"
        f"\\begin{{document}}\n{inputs}\n\\end{{document}}\n",
        encoding="utf-8",
    )
    log = ""
    for _ in range(3):
        done = subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"],
            cwd=folder,
            capture_output=True,
            timeout=240,
        )
        log = done.stdout.decode(errors="replace")
        assert done.returncode == 0, log[-2000:]
    return log


def test_contact_sheets_of_one_run_are_its_own(
    build: Any, add_run: Writer, results: Path, tmp_path: Path
) -> None:
    run = add_run("bps", {"fd": 1.0})
    assert run.folder is not None
    contact_sheet(build.sheet_rows(9), run.folder / "contact.png", title="mine")
    make_report(results, tmp_path / "out")
    copied = (tmp_path / "out" / "contact-bps-sketch-s0.png").read_bytes()
    assert copied == (run.folder / "contact.png").read_bytes()
