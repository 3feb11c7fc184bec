"""The page of published results: tables, ablations, figures, the paper's claims, costs and commands."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.reporting.ablation_page import SAMPLES, AblationSection, ablation_markdown
from bench.reporting.ablations import ablation_summary
from bench.reporting.compare import Comparison, findings
from bench.reporting.frame import OWN_METHOD, Row
from bench.reporting.page import HOW_TO_READ, Section, Suite, page_records
from bench.reporting.render import escape_markdown, to_markdown
from bench.reporting.tables import cost_grid, main_grid, mean_cost
from bench.reporting.words import command_line, count, one_line, titled

FIGURES_FOLDER = "figures"
_AT_SD15 = "692,370,880 parameters as released at the width of SD 1.5, 1.9 times ControlNet's 361,279,120"
_PAPER = "[arXiv 2406.03683](https://arxiv.org/abs/2406.03683)"


def readme_page(
    sections: Sequence[Section],
    suites: Sequence[Suite],
    ablations: Sequence[AblationSection],
    *,
    results: Path,
    out: Path,
    readme: Path,
) -> str:
    """Return the page as Markdown; it shows `readme_figures` from a folder beside it.

    results: the folder of the runs; out: of the report's files, which the page names and does not link
    to, as they need not be published with it. Nothing but the records moves a byte.
    """
    at = Path(os.path.relpath(out.resolve(), readme.parent.resolve())).as_posix() + "/"
    here = f"{readme.resolve().parent.name}/"
    remake = f"bench report --results {here}{results.resolve().name} --readme {here}{readme.name}"
    parts = [
        "# Published results\n",
        f"Made by `{remake}` from the records beside it, byte for byte the same each time; do not edit. "
        f"It also writes, into `{at}`, every table as LaTeX and CSV, every figure as PNG and PDF, and "
        "`index.html`: the same to sort, filter and look at, offline.\n",
        *(
            f"![{escape_markdown(what)}]({FIGURES_FOLDER}/{file})\n"
            for file, what in readme_figures(sections, ablations).items()
        ),
        *(_task(section, _said(section, suites)) for section in sections),
        "## Ablations\n" if ablations else "",
        *(ablation_markdown(section, level="###", pictures=False) for section in ablations),
        _claims(sections, suites, ablations),
        *(_costs(suite.comparison) for suite in suites if suite.comparison is not None),
        _commands(sections, ablations, remake, beside=f"{here}{results.resolve().name}"),
        f"## How to read the tables\n\n{HOW_TO_READ}",
        *_credits(sections, ablations),
    ]
    return "\n".join(part for part in parts if part)


def readme_figures(sections: Sequence[Section], ablations: Sequence[AblationSection]) -> dict[str, str]:
    """Return the few figures that the page shows, file -> what it shows: samples, cost, an ablation."""
    found: list[dict[str, str]] = [{}, {}, {}]
    for section in sections:
        title, drawn = section.table.title, section.pictures
        if drawn.qualitative:
            words = f"{title}: the same items by every method, from the same initial noise"
            found[0] = found[0] or {drawn.qualitative: words}
        if drawn.cost:
            found[1] = found[1] or {drawn.cost: f"{title}: quality against cost"}
    for varied in ablations:
        for file, what in varied.figures.items():
            if what == SAMPLES:
                found[2] = found[2] or {file: f"{varied.table.title}: {what}"}
    return {file: words for figure in found for file, words in figure.items()}


def _said(section: Section, suites: Sequence[Suite]) -> list[str]:
    found = next((s.comparison for s in suites if s.name == section.table.suite), None)
    return findings(found).get(section.table.task, []) if found is not None else []


def _task(section: Section, said: Sequence[str]) -> str:
    table = section.table
    notes = "".join(f"> **{escape_markdown(note)}**\n\n" for note in table.notes)
    lines = "".join(f"- {escape_markdown(line)}\n" for line in said)
    return f"## {escape_markdown(table.title)}\n\n{notes}{to_markdown(main_grid(table))}\n{lines}"


def _claims(
    sections: Sequence[Section], suites: Sequence[Suite], ablations: Sequence[AblationSection]
) -> str:
    """Set what the paper and its release say beside what was measured here."""
    here = {
        f"Sketch on COCO17: FID 10.49 (abstract of {_PAPER}); split, number of samples and tool are not "
        "told, and the release trains on val2017 as well": [
            "No number here compares: other data, base and judge. " + _own_standing(sections, suites)
        ],
        "Steering strong at the head and light at the foot, 16-8-4-2": _about(ablations, "schedule"),
        "Frozen pretrained UNet as prior: posterior = prior × learned likelihood": _about(ablations, "prior"),
        "Strong with little data": _about(ablations, "data"),
        "Residuals behind every resnet and attention of encoder, middle and decoder": _about(
            ablations, "sites"
        ),
        f"Lightweight (README of the release): {_AT_SD15}": _sizes(sections),
        "AdamW at 1e-5, batch 16, 15 epochs (release: 16) on 2 to 4 A100 of 80 GB; DDIM of 50 steps, "
        "guidance 9": _settings(sections),
    }
    lines = [
        f"| {claim} | {'<br>'.join(map(escape_markdown, said)) or 'not measured yet'} |"
        for claim, said in here.items()
    ]
    head = ["| paper or release | here |", "| :-- | :-- |"]
    return "## What the paper said\n\n" + "\n".join([*head, *lines]) + "\n"


def _about(ablations: Sequence[AblationSection], name: str) -> list[str]:
    """Return what an ablation says of FD and fidelity in short, by task."""
    return [
        f"{section.table.task}: {line}"
        for section in ablations
        if section.table.ablation.name == name
        for line in ablation_summary(section.table)
    ]


def _methods(sections: Sequence[Section]) -> Iterator[tuple[Section, dict[str, Row]]]:
    for section in sections:
        rows = [row for row in section.table.rows if row.kind == "method"]
        yield section, {row.runs[0].record.method: row for row in reversed(rows)}


def _own_standing(sections: Sequence[Section], suites: Sequence[Suite]) -> str:
    """Say how the paper's method stands to the others by FD in each task."""
    said = [
        f"{section.table.title}: {line}"
        for section in sections
        for line in _said(section, suites)
        if line.startswith(f"{titled(OWN_METHOD)} on FD")
    ]
    return " ".join(said)


def _sizes(sections: Sequence[Section]) -> list[str]:
    for section, rows in _methods(sections):
        sizes = {m: mean_cost(row, "parameters_trainable") for m, row in rows.items()}
        own, other = sizes.get(OWN_METHOD), sizes.get("controlnet")
        if own and other:
            words = f"{count(own)} trainable parameters, {own / other:.1f} times ControlNet's"
            return [f"{words} {count(other)} ({section.table.title})"]
    return []


def _settings(sections: Sequence[Section]) -> list[str]:
    """Say how the suite trains and samples, from the first protocol that tells."""
    for section in sections:
        protocol = section.table.runs[0].record.protocol
        if {"training", "budget", "sampler"} <= set(protocol):
            training, sampler = protocol["training"], protocol["sampler"]
            return [
                f"AdamW at a rate chosen for each method on val, batch {training['batch']}, "
                f"{protocol['budget']['train_images']:,} images; {sampler['name']} of "
                f"{sampler['steps']} steps, guidance {sampler['guidance']:g}"
            ]
    return []


def _costs(comparison: Comparison) -> str:
    return f"## What it cost\n\n{to_markdown(cost_grid(comparison))}"


def _commands(
    sections: Sequence[Section], ablations: Sequence[AblationSection], remake: str, *, beside: str
) -> str:
    """List the commands that make every run and this page again; beside: the folder of the runs."""
    records = page_records(sections, ablations)
    lines = [f"{command_line(record)}  # {one_line(name)}" for name, record in records.items()]
    body = "\n".join(lines)
    return (
        f"## Commands\n\n`{remake}` remakes tables, figures and this page from the records. Runs and "
        f"ablations are made in `results/runs`; with `--results {beside}`, beside the records here.\n\n"
        f"<details><summary>The {len(lines)} runs</summary>\n\n```sh\n{body}\n```\n\n</details>\n"
    )


def _credits(sections: Sequence[Section], ablations: Sequence[AblationSection]) -> list[str]:
    records = page_records(sections, ablations).values()
    found = sorted({r.attribution for r in records if r.attribution})
    return [f"## Attribution\n\n{escape_markdown(credit)}\n" for credit in found]
