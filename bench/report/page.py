"""The report's text: one Markdown page over tables, figures, costs, commands and machines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.record import RunRecord
from bench.report.differences import Difference, verdicts
from bench.report.grid import escape_markdown, to_markdown
from bench.report.names import command_line, header
from bench.report.rows import Row, Table
from bench.report.tables import cost_grid, difference_grid, main_grid

_HOW_TO_READ = """\
Brackets are 95% intervals over evaluation items at the training seeds at hand; where a method has
one seed, they say nothing of another. Several seeds: the mean, its interval (a bootstrap over items
where per-item scores exist, else the mean of the seeds' bounds), and the standard deviation over
seeds beneath. "–" is missing, never 0. A Fréchet or kernel distance belongs to a whole set: compare
its rows only at equal numbers of items. Real training images are no answers to the evaluation
items: their paired metrics, where given, are what chance gives.
"""


@dataclass(frozen=True, kw_only=True)
class Section:
    """One table of the page and what lies beside it.

    name: of its files ("table-<name>.tex"); overview: file of its figure, None where it has no
    numbers; sheets: run id -> file of its contact sheet. Files are relative to the page.
    """

    name: str
    table: Table
    differences: tuple[Difference, ...]
    overview: str | None
    sheets: Mapping[str, str]


def report_page(sections: Sequence[Section]) -> str:
    """Return the whole page as Markdown; a pure function of its sections."""
    runs = sum(len(section.table.runs) for section in sections)
    parts = [f"# BPS-Bench report\n\nRuns: {runs}. Tables: {len(sections)}.\n\n{_HOW_TO_READ}"]
    parts += [_section(section) for section in sections]
    records = {run.record.run_id: run.record for s in sections for run in s.table.runs}
    credits = sorted({r.attribution for r in records.values() if r.attribution})
    parts += [f"## Attribution\n\n{escape_markdown(credit)}\n" for credit in credits]
    parts.append(_environments(list(records.values())))
    return "\n".join(parts)


def _section(section: Section) -> str:
    table = section.table
    title = f"## {table.suite} / {table.task}"
    several = len(table.hashes) > 1
    title += ", mixed protocols" if several else f", protocol {table.hashes[0][:12]}"
    parts = [f"{title}\n", *(f"> **{escape_markdown(note)}**\n" for note in table.notes)]
    parts.append(to_markdown(main_grid(table)))
    parts.append(f"{_scales(table)}\n\nFiles: {_files(section.name)}.\n")
    if section.overview:
        parts.append(f"![values with intervals]({section.overview})\n")
    parts.append(f"### Differences\n\n{_differences(section)}")
    parts.append(f"### Cost\n\n{to_markdown(cost_grid(table))}")
    parts.append(f"### Contact sheets\n\n{_sheets(section)}")
    parts.append(f"### Commands\n\n{_commands(table)}")
    parts.append(f"### Protocol\n\n{_protocols(table)}")
    return "\n".join(parts)


def _scales(table: Table) -> str:
    words = [f"{header(c)}: {c.scale}" for c in table.columns if c.scale not in {"", "none"}]
    return escape_markdown(f"Scales: {'; '.join(words)}." if words else "No scales are recorded.")


def _files(name: str) -> str:
    files = [f"table-{name}.{suffix}" for suffix in ("tex", "csv", "md")]
    files += [f"{kind}-{name}.{end}" for kind in ("differences", "cost") for end in ("tex", "csv")]
    return ", ".join(f"[{file}]({file})" for file in files)


def _differences(section: Section) -> str:
    if not section.differences:
        return "No two rows have per-item scores of one metric, so no difference is stated.\n"
    words = "".join(f"- {escape_markdown(line)}\n" for line in verdicts(section.differences))
    grid = to_markdown(difference_grid(section.table, section.differences))
    return f"{words}\n<details><summary>As a table</summary>\n\n{grid}\n</details>\n"


def _sheets(section: Section) -> str:
    lines = []
    for row in section.table.rows:
        if row.kind in {"method", "floor"}:
            lines.append(_row_sheets(row, section.sheets))
    return "\n".join(lines)


def _row_sheets(row: Row, sheets: Mapping[str, str]) -> str:
    """Show the first seed's sheet and link the others; say which runs have none."""
    found = [run.record for run in row.runs if run.record.run_id in sheets]
    absent = [run.record.run_id for run in row.runs if run.record.run_id not in sheets]
    text = f"**{escape_markdown(row.label)}**"
    if found:
        first = found[0]
        text += f", seed {first.seed}\n\n![contact sheet of {first.run_id}]({sheets[first.run_id]})"
        links = [f"[seed {record.seed}]({sheets[record.run_id]})" for record in found[1:]]
        text += f"\n\nOther seeds: {', '.join(links)}." if links else ""
    if absent:
        text += f"\n\nNo contact sheet: {', '.join(f'`{name}`' for name in absent)}."
    return f"{text}\n"


def _commands(table: Table) -> str:
    lines = [f"{command_line(run.record)}  # {run.record.run_id}" for run in table.runs]
    return "```sh\n" + "\n".join(lines) + "\n```\n"


def _protocols(table: Table) -> str:
    protocols = {run.record.protocol_hash: run.record.protocol for run in table.runs}
    parts = []
    for digest in table.hashes:
        mark = f"Protocol {table.marks[digest]}" if table.marks else "Protocol"
        body = json.dumps(dict(protocols[digest]), sort_keys=True, indent=1, ensure_ascii=False)
        parts.append(
            f"<details><summary>{mark} {digest}</summary>\n\n```json\n{body}\n```\n\n</details>\n"
        )
    return "\n".join(parts)


def _environments(records: Sequence[RunRecord]) -> str:
    found: dict[str, list[str]] = {}
    for record in records:
        text = json.dumps(dict(record.environment), sort_keys=True, indent=1, ensure_ascii=False)
        found.setdefault(text, []).append(record.run_id)
    parts = ["## Environments\n"]
    for text, names in sorted(found.items(), key=lambda pair: sorted(pair[1])):
        runs = ", ".join(f"`{name}`" for name in sorted(names))
        parts.append(f"Measured here: {runs}\n\n```json\n{text}\n```\n")
    return "\n".join(parts)
