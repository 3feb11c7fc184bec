"""The report's text: one Markdown page over tables, figures, costs, commands and machines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.record import RunRecord
from bench.reporting.ablation_page import AblationSection, ablation_markdown
from bench.reporting.compare import Comparison, findings
from bench.reporting.differences import Difference, verdict
from bench.reporting.frame import Row, Table
from bench.reporting.pictures import Pictures, file_name
from bench.reporting.render import code_span, escape_markdown, to_markdown
from bench.reporting.tables import cost_grid, difference_grid, distribution_grid, main_grid
from bench.reporting.words import command_line, header, label, leak_mark, one_line

HOW_TO_READ = """\
Brackets are 95% intervals over evaluation items at the training seeds at hand; where a method has
one seed, they say nothing of another. Several seeds: the mean, its interval, and the standard
deviation over seeds beneath. Intervals are a bootstrap over items where per-item scores exist, the
jackknife for a metric of a whole set: items left out in turn, to first order for the Fréchet distance.
That distance and its interval are those expected at this number of items, not at infinitely many:
compare its rows only at equal numbers. Else the interval is the mean of the seeds' bounds. Differences
are paired: the same items left out on both sides. "–" is missing, never 0.
A seed sets training and initial noise. Seeds agree where every run of one side lies beyond every run of
the other; of 3 against 3 chance alone does that once in 10, so it is asked beside the interval, never
instead of it. That they do not agree does not say that the sign changes.
Real training images are no answers to the evaluation items: their paired metrics, where given, are
what chance gives.
"""
_PAGE = "The same to sort, filter and look at, in a browser: [index.html](index.html)."
_SAME_ITEMS = "the same items by every method"
_GALLERY = """\
The first items of the contact sheets, chosen by a fixed rule that looks at no sample. Every method
starts from the same initial noise.
"""


@dataclass(frozen=True, kw_only=True)
class Section:
    """One table of the page and what lies beside it; name: of its files ("table-<name>.tex")."""

    name: str
    table: Table
    differences: tuple[Difference, ...]
    pictures: Pictures


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A suite and its comparison over tasks; note: why there is none, where there is none."""

    name: str
    comparison: Comparison | None
    note: str


def report_page(
    sections: Sequence[Section],
    suites: Sequence[Suite],
    ablations: Sequence[AblationSection] = (),
) -> str:
    """Return the whole page as Markdown; a pure function of its sections, suites and ablations."""
    runs = page_records(sections, ablations)
    tables = f"Tables: {len(sections)}."
    tables += f" Ablations: {len(ablations)}." if ablations else ""
    parts = [f"# BPS-Bench report\n\nRuns: {len(runs)}. {tables} {_PAGE}\n"]
    for suite in suites:
        own = [section for section in sections if section.table.suite == suite.name]
        parts += [_suite(suite), _galleries(own)]
    parts += [ablation_markdown(section) for section in ablations]
    parts.append(f"## How to read the tables\n\n{HOW_TO_READ}")
    parts += [_section(section) for section in sections]
    credits = sorted({r.attribution for r in runs.values() if r.attribution})
    parts += [f"## Attribution\n\n{escape_markdown(credit)}\n" for credit in credits]
    parts.append(_environments(list(runs.values())))
    return "\n".join(part for part in parts if part)


def page_records(sections: Sequence[Section], ablations: Sequence[AblationSection]) -> dict[str, RunRecord]:
    """Return every record of a page by its run's name, those of main tables first."""
    tables = [*(s.table.runs for s in sections), *(s.table.runs for s in ablations)]
    return {run.record.run_id: run.record for runs in tables for run in runs}


def _suite(suite: Suite) -> str:
    """Return the comparison: its tables and what they say in words."""
    name = suite.name if suite.comparison is None else suite.comparison.title
    title = f"## Comparison: {escape_markdown(name)}\n"
    if suite.comparison is None:
        return f"{title}\n{escape_markdown(suite.note)}\n"
    name, comparison = file_name(suite.name), suite.comparison
    notes = [
        f"> **{escape_markdown(f'{task}: {note}')}**\n"
        for task, table in comparison.tables.items()
        for note in table.notes
    ]
    parts = [title, *notes, to_markdown(main_grid(comparison))]
    parts.append(f"### What it says\n\n{_findings(comparison)}")
    parts.append(f"### What it costs\n\n{to_markdown(cost_grid(comparison))}")
    files = [f"{kind}-{name}.{end}" for kind in ("comparison", "cost") for end in ("md", "tex", "csv")]
    parts.append(f"Files: {_links(files)}.\n")
    return "\n".join(parts)


def _findings(comparison: Comparison) -> str:
    words = ""
    for task, lines in findings(comparison).items():
        said = "".join(f"- {escape_markdown(line)}\n" for line in lines)
        words += f"**{escape_markdown(task)}**\n\n{said}\n" if lines else ""
    return words or "No two methods have paired scores, so no difference is stated.\n"


def _galleries(sections: Sequence[Section]) -> str:
    """Show the qualitative figure of each task and say which rows are not in it."""
    parts = []
    for section in sections:
        shown, file = section.pictures.shown, section.pictures.qualitative
        records = [run.record for run in section.table.runs]
        if shown is None or file is None:
            continue
        name = escape_markdown(label(section.table.task, leak_mark(records)))
        text = f"**{name}**, seed {shown.seed}\n\n![{_SAME_ITEMS}]({file})\n"
        left_out = "".join(f"- {escape_markdown(line)}\n" for line in shown.left_out)
        parts.append(f"{text}\n{left_out}" if left_out else text)
    return f"### What it looks like\n\n{_GALLERY}\n" + "\n".join(parts) if parts else ""


def _section(section: Section) -> str:
    table, pictures = section.table, section.pictures
    title = f"## {escape_markdown(table.title)}"
    several = len(table.hashes) > 1
    title += ", mixed protocols" if several else f", protocol {table.hashes[0][:12]}"
    parts = [f"{title}\n", *(f"> **{escape_markdown(note)}**\n" for note in table.notes)]
    more = distribution_grid(table)
    parts.append(to_markdown(main_grid(table)))
    parts += [_folded("Distribution", to_markdown(more))] if more is not None else []
    parts.append(f"{_scales(table)}\n\nFiles: {_files(section)}.\n")
    if pictures.overview:
        parts.append(f"![values with intervals]({pictures.overview})\n")
    parts.append(f"### Differences\n\n{_differences(section)}")
    parts.append(f"### Cost\n\n{to_markdown(cost_grid(table))}")
    if pictures.cost:
        parts.append(f"![quality against cost]({pictures.cost})\n")
    if pictures.curves:
        words = "Training curves, first seed of each method"
        parts.append(f"### Training\n\n{words}.\n\n![{words}]({pictures.curves})\n")
    parts.append(f"### Contact sheets\n\n{_sheets(section)}")
    parts.append(f"### Commands\n\n{_folded(f'{len(table.runs)} commands', _commands(table))}")
    parts.append(f"### Protocol\n\n{_protocols(table)}")
    return "\n".join(parts)


def _folded(summary: str, text: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{text}\n</details>\n"


def _scales(table: Table) -> str:
    words = [f"{header(c)}: {c.scale}" for c in table.columns if c.scale not in {"", "none"}]
    return escape_markdown(f"Scales: {'; '.join(words)}." if words else "No scales are recorded.")


def _files(section: Section) -> str:
    name = section.name
    files = [f"table-{name}.{suffix}" for suffix in ("tex", "csv", "md")]
    files += [f"distribution-{name}.md"] if distribution_grid(section.table) is not None else []
    files += [f"differences-{name}.csv", f"cost-{name}.tex", f"cost-{name}.csv"]
    return _links([*files, *section.pictures.pdfs])


def _links(files: Sequence[str]) -> str:
    return ", ".join(f"[{file}]({file})" for file in files)


def _differences(section: Section) -> str:
    if not section.differences:
        return "No two rows have paired scores of one metric, so no difference is stated.\n"
    words = "".join(f"- {escape_markdown(line)}\n" for line in map(verdict, section.differences))
    grid = to_markdown(difference_grid(section.table, section.differences))
    return (
        f"{_folded(f'{len(section.differences)} differences in words', words)}\n{_folded('As a table', grid)}"
    )


def _sheets(section: Section) -> str:
    """Show the first contact sheet of each row, folded: condition, sample and target of 24 items."""
    lines = []
    for row in section.table.rows:
        if row.kind in {"method", "floor"}:
            lines.append(_row_sheets(row, section.pictures.sheets))
    return "\n".join(lines)


def _row_sheets(row: Row, sheets: Mapping[str, str]) -> str:
    """Fold the one sheet that was drawn, or say that there are no pictures to draw it of."""
    shown = [run.record for run in row.runs if run.record.run_id in sheets]
    name = escape_markdown(row.label)
    text = f"**{name}**: no tiles are kept, as by runs of older versions.\n"
    if shown:
        picture = f"![contact sheet of {escape_markdown(shown[0].run_id)}]({sheets[shown[0].run_id]})\n"
        text = _folded(f"{name}, seed {shown[0].seed}", picture)
    return text


def _commands(table: Table) -> str:
    lines = [f"{command_line(run.record)}  # {one_line(run.record.run_id)}" for run in table.runs]
    return "```sh\n" + "\n".join(lines) + "\n```\n"


def _protocols(table: Table) -> str:
    protocols = {run.record.protocol_hash: run.record.protocol for run in table.runs}
    parts = []
    for digest in table.hashes:
        mark = f"Protocol {table.marks[digest]}" if table.marks else "Protocol"
        body = json.dumps(dict(protocols[digest]), sort_keys=True, indent=1, ensure_ascii=False)
        parts.append(f"<details><summary>{mark} {digest}</summary>\n\n```json\n{body}\n```\n\n</details>\n")
    return "\n".join(parts)


def _environments(records: Sequence[RunRecord]) -> str:
    found: dict[str, list[str]] = {}
    for record in records:
        text = json.dumps(dict(record.environment), sort_keys=True, indent=1, ensure_ascii=False)
        found.setdefault(text, []).append(record.run_id)
    parts = ["## Environments\n"]
    for text, names in sorted(found.items(), key=lambda pair: sorted(pair[1])):
        runs = ", ".join(map(code_span, sorted(names)))
        parts.append(f"Measured here: {runs}\n\n```json\n{text}\n```\n")
    return "\n".join(parts)
