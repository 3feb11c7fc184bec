"""The pages of a report, off its tables and pictures: report.md, index.html and a README of results.

What they say and how stands in templates; here is what the templates are given.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.content import atomic_path
from bench.data.picture import MOST_TILES, data_uri, decode, shrunk
from bench.record import RunRecord, device_words
from bench.reporting import tables, words
from bench.reporting.compare import (
    AblationTable,
    Comparison,
    ablation_sentences,
    ablation_summary,
    findings,
    verdict,
)
from bench.reporting.figures import CURVES, LEARNING_CURVE, SAMPLES, Gallery, Pictures, looks
from bench.reporting.frame import COSTLY, OWN_METHOD, WRONG_CONDITIONS, Difference, Row, Table
from bench.reporting.render import data_block, filled, json_text
from bench.reporting.tables import COSTS, mean_cost
from bench.reporting.words import Column, brackets, number

PICTURE_BUDGET = 8_000_000
"""Bytes of base64 that pictures take: the whole page stays below 10 MB with numbers of a hundred runs."""
_LARGEST = 128  # pixels of the longer side of a sample: the page shows them no larger
# How samples are written: the first that fits the budget is taken, the last in any case.
_LADDER: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("WebP without loss", MOST_TILES, {"lossless": True, "method": 0}),
    ("WebP of quality 92", MOST_TILES, {"quality": 92}),
    ("WebP of quality 80", MOST_TILES, {"quality": 80}),
    ("WebP of quality 60", 8, {"quality": 60}),
)
_COSTS = ("parameters_trainable", "macs_guided", "train_seconds", "sample_seconds_per_image")
_ORDER = ("reference", "ceiling", "method", *WRONG_CONDITIONS, "other", "floor", "variant")
_MARKED = {*_ORDER} - {"method", "other"}


class Suite(NamedTuple):
    """A suite and its comparison over tasks; note: why there is none."""

    name: str
    comparison: Comparison | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A table of the pages and its pictures; name: of its files ("table-<name>.tex").

    rows: by their names in the table, as pages order and name them.
    """

    name: str
    table: Table
    pictures: Pictures
    rows: Mapping[str, Row] = field(default_factory=dict)
    differences: Sequence[Difference] = ()
    suite: Suite | None = None


def file_name(*parts: str) -> str:
    """Return texts as a file's name."""
    safe = (re.sub(r"[^A-Za-z0-9._-]+", "-", part).strip("-.") or "unnamed" for part in parts)
    return "-".join(safe)


def shown_rows(table: Table, comparison: Comparison | None) -> dict[str, Row]:
    """Return rows by their names in the table; methods and floors as the comparison, if any, orders them."""
    compared = comparison.own("method", "floor") if comparison is not None else []
    own = [row.rows[table.task] for row in compared if table.task in row.rows] or table.own("method", "floor")
    shown = {row.record.run_id: row for row in own}
    names = {row.record.run_id: row.name for row in table.own("method", "floor")}
    rows = {name: shown[run] for run, name in sorted(names.items(), key=lambda n: list(shown).index(n[0]))}
    rows |= {row.name: row for row in table.rows if row.kind not in {"method", "floor"}}
    return dict(sorted(rows.items(), key=lambda pair: _ORDER.index(pair[1].kind)))


@dataclass(frozen=True, kw_only=True)
class Pages:
    """What the pages show: tables, suites, ablations, and the folder `out` of the report's files."""

    sections: Sequence[Section]
    suites: Sequence[Suite]
    ablations: Sequence[Section]
    out: Path

    @cached_property
    def records(self) -> dict[str, RunRecord]:
        """Every record by its run's name, those of main tables first."""
        tables = [section.table for section in (*self.sections, *self.ablations)]
        return {run.record.run_id: run.record for table in tables for run in table.runs}

    def report(self) -> str:
        """Return the whole report as Markdown; nothing but the records moves a byte."""
        environments: dict[str, list[str]] = {}
        for name, record in sorted(self.records.items()):
            environments.setdefault(json_text(record.environment), []).append(name)
        return self._page("report.md", environments=sorted(environments.items(), key=lambda e: e[1]))

    def readme(self, results: Path, readme: Path) -> str:
        """Return the page of published results as Markdown; it shows `figures` from a folder beside it.

        results: the folder of the runs. Files of the report it names and does not link to, as they need
        not be published with it.
        """
        here = f"{readme.resolve().parent.name}/"
        folder = f"{here}{results.resolve().name}"
        remake = f"bench report --results {folder} --readme {here}{readme.name}"
        at = Path(os.path.relpath(self.out.resolve(), readme.parent.resolve())).as_posix() + "/"
        told: dict[str, Any] = {"remake": remake, "at": at, "folder": folder}
        return self._page("results.md", figures=self.figures, own=OWN_METHOD, **told)

    @property
    def figures(self) -> dict[str, str]:
        """The few figures of the README, file -> what it shows: samples, learning curve, cost, ablation."""
        wanted = {
            "samples": "the same items by every method, from the same initial noise",
            LEARNING_CURVE: "fidelity, KID and condition gains by training images and by multiply-adds",
            "cost": "quality against cost",
            SAMPLES: SAMPLES,
        }
        drawn = {
            kind: (section.pictures.figures[kind], f"{section.table.title}: {words}")
            for section in reversed((*self.sections, *self.ablations))
            for kind, words in wanted.items()
            if kind in section.pictures.figures
        }
        return dict(drawn[kind] for kind in wanted if kind in drawn)

    def html(self) -> str:
        """Return the offline page; a pure function of the records and of the ablations' figures."""
        data = self.data()
        script, style = _filled("page.js"), _filled("page.css")
        sources = f"img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'"
        policy = f"default-src 'none'; {sources}; base-uri 'none'; form-action 'none'"
        parts = {"script": script, "style": style, "policy": policy, "data": data_block(data)}
        return _filled("page.html", title=data["title"], **parts)

    def data(self, budget: int = PICTURE_BUDGET) -> dict[str, Any]:
        """Return everything the page shows: plain lists and dictionaries, numbers with their text, no markup.

        budget: bytes that all pictures may take as base64; beyond it samples lose quality, then items.
        """
        varied = [_ablation(section, self.out) for section in self.ablations]
        budget -= sum(len(figure["source"]) for made in varied for figure in made["figures"])
        shown = [gallery for section in self.sections for gallery in section.pictures.galleries]
        galleries, about = encode_galleries(shown, budget)
        places = {run: (g, k + 1) for g, made in enumerate(shown) for k, run in enumerate(made.runs.values())}
        runs = {run.record.run_id: run.record for s in self.sections for run in s.table.runs}
        index = {name: place for place, name in enumerate(runs)}
        names = sorted({s.name for s in self.suites} | {a.table.suite for a in self.ablations})
        published = [tables.published_grid(suite.name) for suite in self.suites]
        return {
            "title": f"BPS-Bench report: {', '.join(names)}",
            "how": " ".join(_filled("how_to_read.md").split()),
            "notes": [suite.note for suite in self.suites if suite.note],
            "attribution": self._credits(),
            "costNames": [name for name, _ in COSTS.values()],
            "comparisons": [_comparison(s.comparison) for s in self.suites if s.comparison is not None],
            "tables": [_table(section, index, places) for section in self.sections],
            "ablations": varied,
            "published": [asdict(grid) for grid in published if grid is not None],
            "runs": [_run(record) for record in runs.values()],
            "protocols": {record.protocol_hash: record.protocol for record in runs.values()},
            "pictures": about,
            "galleries": galleries,
        }

    def _page(self, template: str, **more: Any) -> str:
        shown = {"records": self.records, "credits": self._credits()}
        return _filled(template, **vars(self) | shown | more)

    def _credits(self) -> list[str]:
        return sorted({record.attribution for record in self.records.values()} - {""})


def _said(section: Section) -> Sequence[str]:
    comparison = section.suite.comparison if section.suite is not None else None
    return findings(comparison)[section.table.task] if comparison is not None else []


def small_copy(drawn: Path, path: Path) -> Path:
    """Write a drawn figure again in 256 colours, a third of its size; return its path."""
    from PIL import Image

    small = Image.fromarray(decode(drawn.read_bytes()).pixels).quantize(256, Image.Quantize.FASTOCTREE)
    with atomic_path(path) as temporary:
        small.save(temporary, format="PNG")
    return path


def encode_galleries(
    galleries: Sequence[Gallery], budget: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return galleries with each column as one strip of WebP in base64, and what is said of them."""
    for form, most, settings in _LADDER:
        encoded: list[dict[str, Any]] = [
            {
                "seed": shown.seed,
                "items": min(most, len(shown.columns["target"])),
                "strips": [  # side by side, smaller where they are large
                    data_uri(np.concatenate([*shrunk(images[:most], most=_LARGEST)], axis=1), **settings)
                    for images in shown.columns.values()
                ],
            }
            for shown in galleries
        ]
        size = sum(len(strip) for made in encoded for strip in made["strips"])
        about = {"format": form, "largest": _LARGEST, "bytes": size}
        if size <= budget:
            break
    return encoded, about


def _ablation(section: Section, out: Path) -> dict[str, Any]:
    """Return what the page shows of an ablation, its figures inline: samples with loss, as they are large."""
    table, pictures = section.table, section.pictures
    assert isinstance(table, AblationTable)
    figures = []
    for what, drawn in ((what, out / file) for what, file in pictures.figures.items() if what != CURVES):
        source = f"data:image/png;base64,{base64.b64encode(drawn.read_bytes()).decode()}"
        if what == SAMPLES:
            source = data_uri(decode(drawn.read_bytes()).pixels, quality=85, method=2)
        figures.append({"about": what, "source": source})
    return {
        "id": section.name,
        "suite": table.suite,
        "task": table.task,
        "title": f"Ablation: {table.title}",
        "question": table.ablation.question,
        "notes": table.notes,
        "grid": asdict(tables.main_grid(table)),
        "said": ablation_sentences(table),
        "figures": figures,
        "left_out": pictures.left_out,
        "files": _files(section.name, "md tex csv", pictures),
        "command": tables.ablation_command(table),
    }


def _table(
    section: Section, index: Mapping[str, int], places: Mapping[str, tuple[int, int]]
) -> dict[str, Any]:
    table, said, rows = section.table, _sentences(section), []
    comparison = section.suite.comparison if section.suite is not None else None
    standings = {} if comparison is None else comparison.standings
    leads = [(c, s.best.name) for c, s in standings.items() if s.clear and c.task == table.task]
    styles = looks({row.name: row.record.method for row in section.rows.values() if row.kind == "method"})
    for name, row in section.rows.items():
        ids = [run.record.run_id for run in row.runs]
        pictures = [places[i] for i in ids if row.kind in {"method", "floor"} and i in places]
        shown = _row(table, row, {replace(column, task="") for column, best in leads if best == row.name})
        shown["cells"] += [_cost(row, key) for key in _COSTS]
        rows.append(
            shown
            | {
                "colour": styles[row.name].colour if row.name in styles else "",
                "seeds": str(len(row.seeds) or ""),
                "trained": row.seeds,
                "runs": [index[run] for run in ids] if row.seeds else [],
                "protocol": row.record.protocol_hash,
                "costs": [tables.cost_text(row, key) for key in COSTS] if row.kind in COSTLY else [],
                "said": said.get(name, {}),
                "pictures": pictures[0] if pictures else None,
            }
        )
    costs = {"better": "lower", "group": "cost", "judge": "", "scale": ""}
    costs_of = [costs | {"key": f"cost|{key}", "title": COSTS[key][0]} for key in _COSTS]
    return _heading(table, section.name) | {
        "notes": table.notes,
        "times": tables.time_words(table),
        "files": _files(f"table-{section.name}", "csv tex md", section.pictures),
        "columns": [*map(_column, table.columns), *costs_of],
        "rows": rows,
        "said": _said(section),
        "without": section.pictures.left_out,
    }


def _files(name: str, ends: str, pictures: Pictures) -> list[str]:
    return [*(f"{name}.{end}" for end in ends.split()), *pictures.figures.values(), *pictures.pdfs]


def _comparison(table: Comparison) -> dict[str, Any]:
    name = file_name(table.suite)
    bold = {row.name: {c for c in table.columns if table.compared(row, c)["best"]} for row in table.rows}
    rows = [_row(table, row, bold[row.name]) | {"seeds": tables.seeds_text(row)} for row in table.rows]
    files = [f"{kind}-{name}.{end}" for kind in ("comparison", "cost") for end in ("csv", "tex", "md")]
    told = {"times": "", "files": files, "said": [], "notes": [], "rows": rows}
    return _heading(table, f"comparison-{name}") | told | {"columns": [*map(_column, table.columns)]}


def _heading(table: Table, name: str) -> dict[str, Any]:
    return {"id": name, "suite": table.suite, "task": table.task, "caption": tables.caption(table)}


def _row(table: Table, row: Row, bold: Collection[Column]) -> dict[str, Any]:
    """Return a row's name, kind and numbers with their texts, None where one is missing."""
    cells: list[dict[str, Any] | None] = []
    for column in table.columns:
        cell, digits, told = row.cells.get(column), tables.column_digits(table, column), None
        if cell is not None and cell.value is not None:
            deviation = "" if cell.deviation is None else number(cell.deviation, digits)
            told = {"value": cell.value, "text": number(cell.value, digits), "deviation": deviation}
            ends = None if cell.low is None else (cell.low, cell.high)
            told |= {"interval": brackets(cell.low, cell.high, digits), "range": ends}
            told |= {"items": cell.items, "bold": column in bold}
        cells.append(told)
    name = row.name.replace(f" ({row.kind})", "").replace(f" ({row.kind}, ", " (")
    return {"name": name, "kind": row.kind if row.kind in _MARKED else "", "cells": cells}


def _column(column: Column) -> dict[str, Any]:
    return {
        "key": f"{column.metric}|{column.judge}|{column.scale}",
        "task": column.task,
        "judge": column.judged,
        "title": column.header,
        "better": column.better,
        "scale": column.scale if column.scale != "none" else "",
        "group": "distribution" if column.spec.detail else "quality",
    }


def _cost(row: Row, key: str) -> dict[str, Any] | None:
    value = mean_cost(row, key) if row.kind in COSTLY else None
    return None if value is None else {"value": value, "text": tables.cost_text(row, key)}


def _sentences(section: Section) -> dict[str, dict[str, list[str]]]:
    """Return what may be said by row and column: against floors, controls and our own method alone."""
    rows = section.rows
    told = {name for name, row in rows.items() if row.kind in {"floor", *WRONG_CONDITIONS}}
    own = [n for n, row in rows.items() if row.kind == "method" and row.record.method == OWN_METHOD]
    told |= {*own[:1]}
    said: dict[str, dict[str, list[str]]] = {}
    for d in section.differences:
        sides, key = (d.first, d.second), _column(d.column)["key"]
        for side in sides if told & {*sides} else ():
            text = verdict(replace(d, first=rows[d.first].name, second=rows[d.second].name))
            said.setdefault(side, {}).setdefault(key, []).append(text)
    return said


def _run(record: RunRecord) -> dict[str, Any]:
    machine = record.environment
    parts = (machine.get("processor"), device_words(machine), machine.get("platform"))
    on, commit = ", ".join(str(part) for part in parts if part), str(machine.get("commit", ""))
    return {"seed": record.seed, "command": words.command_line(record), "machine": on, "commit": commit}


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _filled(template: str, **values: Any) -> str:
    calls = (ablation_sentences, ablation_summary, findings, verdict, file_name)
    named = {call.__name__: call for call in calls}
    return filled(template, tables=tables, words=words, said=_said, **named, **values)
