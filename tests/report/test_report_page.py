"""The whole report: complete, linked, legal LaTeX, and the same bytes from the same records."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest

from bench.reporting import ReportOptions, Run, build_comparison, build_table, load_runs, make_report
from bench.reporting.figures import Pictures
from bench.reporting.page import Pages, Section, Suite, shown_rows
from bench.reporting.render import Grid, Text, escape_latex, to_csv, to_markdown
from bench.reporting.tables import tidy
from bench.types import BenchError
from tests.latex import complaints, needs_latex

Writer = Callable[..., Run]
pytestmark = pytest.mark.usefixtures("no_drawing")

STEM = "emoji-sketch"


def test_report_holds_everything_it_promises(full: Path, report: Path) -> None:
    made = {path.name for path in report.iterdir()}
    for name in ("table", "cost"):
        assert {f"{name}-{STEM}.tex", f"{name}-{STEM}.csv"} <= made
    assert f"differences-{STEM}.csv" in made
    assert {"report.md", f"table-{STEM}.md", f"overview-{STEM}.png"} <= made
    text = (report / "report.md").read_text()
    assert (report / f"table-{STEM}.md").read_text() in text
    assert "BPS beats text-only on line F1 by 0.419 [" in text
    assert "--method bps --task sketch --seed 2 --budget default --device cpu  # bps-sketch-s2" in text
    assert '"processor": "a_cpu"' in text
    assert '"guidance": 3.0' in text
    assert str(full.parent) not in text
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert len(targets) >= 12 and set(targets) <= made


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
    apart = {path.name for path in make_report(results, tmp_path / "apart").files}
    assert {f"table-{STEM}-0123456789ab.tex", f"table-{STEM}-ffffffffffff.tex"} <= apart
    assert "MIXED" not in (tmp_path / "apart" / "report.md").read_text()
    together = {path.name for path in make_report(results, tmp_path / "one", ReportOptions(mixed=True)).files}
    assert f"table-{STEM}.tex" in together
    text = (tmp_path / "one" / "report.md").read_text()
    assert "MIXED PROTOCOLS" in text and "BPS (protocol B)" in text


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
    names = {path.name for path in make_report(results, tmp_path / "out").files}
    assert f"overview-{STEM}.png" not in names
    text = (tmp_path / "out" / "report.md").read_text()
    assert "no difference is stated" in text


def test_odd_names_stay_inside_the_folder(add_run: Writer, results: Path, tmp_path: Path) -> None:
    add_run("bps", {"fd": 1.0}, suite="a..b", run_id="one")
    for path in make_report(results, tmp_path / "out").files:
        assert path.resolve().parent == (tmp_path / "out").resolve()
    with pytest.raises(BenchError, match=r"'suite': '\.\./up' is no name"):
        add_run("bps", {"fd": 1.0}, suite="../up", run_id="two")


HOSTILE = "<img src=x onerror=boom()> [a](javascript:boom()) `` ~~~ \\ |"


def test_names_become_no_markup_link_or_command(build: Any) -> None:
    broken = f"x\n```\nrm -rf /\n\n# {HOSTILE}"
    fields = {
        "suite": HOSTILE,
        "task": broken,
        "title": broken,
        "options": {"k": broken},
        "budget": broken,
        "attribution": broken,
        "metrics": {"fd": build.value("fd", 1.0)},
    }
    records = [build.record(name, run_id=f"{broken} {name}", **fields) for name in ("m", HOSTILE)]
    table = build_table([Run(record=record) for record in records])
    suite = Suite(name=HOSTILE, comparison=build_comparison([table]), note=broken)
    pictures = Pictures(figures={}, galleries=[], left_out=[broken])
    rows = shown_rows(table, suite.comparison)
    section = Section(name="x", table=table, pictures=pictures, rows=rows, suite=suite)
    pages = Pages(sections=[section], suites=[suite], ablations=[], out=Path("out"))
    for text in (pages.report(), pages.readme(Path("results"), Path("README.md"))):
        prose, *blocks = re.split(r"^```(?:sh|json)?$", text, flags=re.MULTILINE)
        assert len(blocks) % 2 == 0
        code, prose = "\n".join(blocks[::2]), prose + "".join(blocks[1::2])
        commands = [line for line in code.splitlines() if re.match("bench|rm|#", line)]
        assert len(commands) == 2 and all(line.startswith("bench run ") for line in commands)
        plain = re.sub(r"`[^`\n]*`", "", prose.replace(r"\`", ""))
        assert "<img" not in plain and not re.search(r"(?<!\\)\][(\[:] *javascript", plain)


def test_csv_holds_no_formula(build: Any) -> None:
    records = [build.record(name, metrics={"fd": build.value("fd", -1.0)}) for name in ("=1+1", "@sum", "-x")]
    text = to_csv(tidy(build_table([Run(record=record) for record in records])))
    cells = [cell for line in csv.reader(text.splitlines()) for cell in line]
    assert {"'=1+1", "'@sum", "'-x", "-1.0"} <= set(cells)
    assert not [cell for cell in cells if re.match("[=+@]|-[a-z]", cell)]


def test_tiles_that_are_none_are_not_drawn(add_run: Writer, results: Path, tmp_path: Path) -> None:
    run = add_run("bps", {"fd": 1.0}, tiles=True)
    assert run.folder is not None
    (run.folder / "tiles.npz").write_text("a private key")
    make_report(results, tmp_path / "out")
    assert not list((tmp_path / "out").glob("qualitative-*"))
    assert "its tiles cannot be read" in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.parametrize("name", ["record.json", "items.json", "tiles.npz"])
def test_files_of_a_run_are_no_links_to_places_outside(
    name: str, add_run: Writer, results: Path, tmp_path: Path
) -> None:
    run = add_run("bps", {"fd": 1.0}, tiles=True)
    assert run.folder is not None
    (run.folder / name).rename(tmp_path / name)
    (run.folder / name).symlink_to(tmp_path / name)
    with pytest.raises(BenchError, match=name):
        make_report(results, tmp_path / "out")
    (run.folder / name).unlink()
    (tmp_path / name).rename(run.folder / name)
    run.folder.rename(tmp_path / "moved")
    run.folder.symlink_to(tmp_path / "moved")
    assert make_report(results, tmp_path / "out").files


def test_files_of_an_earlier_report_go_and_those_of_the_user_stay(
    add_run: Writer, results: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    add_run("bps", {"fd": 1.0})
    other = add_run("bps", {"fd": 1.0}, task="layout", run_id="other")
    first = {path.name for path in make_report(results, out).files}
    (out / "notes.txt").write_text("mine")
    (out / "table-emoji-layout.csv").write_text("mine too")
    assert other.folder is not None
    shutil.rmtree(other.folder)
    second = {path.name for path in make_report(results, out).files}
    assert {"table-emoji-layout.tex", "cost-emoji-layout.tex"} <= first - second
    assert {p.name for p in out.iterdir()} == second | {"notes.txt", "table-emoji-layout.csv"}


def test_latex_escapes() -> None:
    assert escape_latex(r"a_b 5% \x {y} #1 & $z^2~") == (
        r"a\_b 5\% \textbackslash{}x \{y\} \#1 \& $\mathdollar$z\textasciicircum{}2\textasciitilde{}"
    )
    assert escape_latex("FD ↓ – é đ 猫") == (r"FD $\downarrow$ -- é \texttt{U+0111} \texttt{U+732B}")


def test_markdown_escapes() -> None:
    grid = Grid(header=("a|b",), body=((Text(main="x|y*z\n<p>", beside="[0, 1]"),),), caption="c")
    assert to_markdown(grid) == "| a\\|b |\n| :-- |\n| x\\|y\\*z &lt;p&gt; [0, 1] |\n\nc\n"


def test_latex_table_is_balanced(report: Path) -> None:
    text = (report / f"table-{STEM}.tex").read_text()
    assert text.count(r"\begin{") == text.count(r"\end{") > 2
    assert r"FD$\downarrow$" in text and r"{\scriptsize Lite0)}" in text
    assert r"\label{tab:emoji-sketch}" in text
    blocks = re.findall(r"\\toprule(.*?)\\bottomrule", text, re.DOTALL)
    assert [block.count(r"\midrule") for block in blocks] == [3, 3, 3]
    for tabular in blocks:
        columns = {len(re.findall(r"(?<!\\)&", x)) for x in tabular.splitlines() if x.endswith(r" \\")}
        assert len(columns) == 1


@needs_latex
def test_latex_compiles_with_odd_names(add_run: Writer, results: Path, tmp_path: Path) -> None:
    odd = {"text": "50% of_all \\{}#$&~^<>|'`\"éŁ±–猫", "b": "["}
    add_run("b_p.s", {"fd": -3.0, "seg_miou": 0.5}, shuffled={"seg_miou": 0.1}, options=odd)
    add_run("b_p.s", {"fd": 8.0, "seg_miou": 0.5}, run_id="plain")
    add_run("a.method_+", {"fd": 8.0, "clip": 0.5})
    add_run("text-only", {"fd": 8.0, "seg_miou": 0.2}, protocol_hash="f" * 64)
    make_report(results, tmp_path / "out", ReportOptions(mixed=True))
    assert complaints(tmp_path / "out", tmp_path / "pdf") == []


@needs_latex
def test_latex_of_a_whole_suite_keeps_to_the_page(suite_report: Path, tmp_path: Path) -> None:
    assert complaints(suite_report, tmp_path / "pdf") == []
