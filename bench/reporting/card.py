"""A model card of exported weights, filled from the record of their run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.config import option_text
from bench.metrics.intervals import FEW_ITEMS
from bench.record import MetricValue, RunRecord
from bench.reporting.frame import AUTOENCODER, REAL, SAMPLES, SHUFFLED, metric_rows
from bench.reporting.render import Grid, Text, to_markdown
from bench.reporting.words import (
    Column,
    brackets,
    command_line,
    count,
    decimals,
    few_notes,
    header,
    leak_lines,
    number,
    order_columns,
    too_few,
)

LICENCE_FILE = "LICENSE.md"
_ROWS = (SAMPLES, SHUFFLED, REAL, AUTOENCODER)
_FRONT = """\
---
license: other
license_name: see-license-file
license_link: {licence}
library_name: diffusers
{base}tags: [bps-bench, {method}, {task}]
---
"""


@dataclass(frozen=True, kw_only=True)
class About:
    """What a card says that no record holds.

    title, source: of the method. base: its name; whole: whether it lies in the folder too. licence:
    sentences. usage: lines of Python. condition: the condition in words.
    """

    title: str
    source: str
    base: str
    whole: bool
    licence: Sequence[str]
    usage: str
    condition: str


def model_card(record: RunRecord, about: About) -> str:
    """Return README.md of a folder with the weights of a run, ending in a newline."""
    hub, _, _ = about.base.partition("@")
    base = f"base_model: {hub}\n" if "/" in hub else ""  # a folder's name is no model of the hub
    front = _FRONT.format(licence=LICENCE_FILE, base=base, method=record.method, task=record.task)
    sections = {
        f"{about.title}: {record.task} → image": _what(record, about),
        "Use": f"```python\n{about.usage}```",
        "Scores": _scores(record),
        "How it was made": _made(record),
        "Licence": "\n".join(f"- {line}" for line in about.licence),
    }
    first, *rest = sections.items()
    body = [f"# {first[0]}\n\n{first[1]}", *(f"## {title}\n{text}" for title, text in rest)]
    return front + "\n\n".join(body) + "\n"


def _what(record: RunRecord, about: About) -> str:
    beside = "It lies in this folder." if about.whole else "It is not in this folder."
    return (
        f"{about.title} ({about.source}) for {about.base}, trained on {record.cost.train_images} "
        f"images of the suite {record.suite} with one protocol for every method. "
        f"{count(record.cost.parameters_trainable)} parameters were trained. The condition is "
        f"{about.condition}. The base has digest `{record.protocol.get('base', '')}`. {beside}"
    )


def _scores(record: RunRecord) -> str:
    found = metric_rows(record)
    rows = {name: found[name] for name in (*(n for n in _ROWS if n in found), *found)}
    columns = order_columns(Column.of(k, m) for row in rows.values() for k, m in row.items())
    body = [[Text(main=header(c)), *_cells(c, rows)] for c in columns]
    table = Grid(
        header=("", *rows),
        body=tuple(map(tuple, body)),
        caption=(
            f"{record.splits.eval.n} items of the side {record.splits.eval.name}, 95% intervals over "
            "items. samples: of these weights; shuffled: under other items' conditions, so that it "
            "shows what a metric can see."
        ),
    )
    fewest = min((m.n for k, m in record.metrics.items() if k in ("fd", "fd_infinite")), default=0)
    return "\n".join([to_markdown(table), *few_notes([fewest or FEW_ITEMS])]).rstrip()


def _cells(column: Column, rows: Mapping[str, Mapping[str, MetricValue]]) -> list[Text]:
    found = [row.get(column.metric) for row in rows.values()]
    kept = [m if m and Column.of(column.metric, m) == column else None for m in found]
    kept = [None if m and too_few(column, m.n) else m for m in kept]
    widths = [m.high - m.low for m in kept if m and m.low is not None and m.high is not None]
    digits = decimals([m.value for m in kept if m], widths=widths)
    return [
        Text(
            main=number(m.value if m else None, digits),
            beside=brackets(m.low, m.high, digits) if m else "",
        )
        for m in kept
    ]


def _made(record: RunRecord) -> str:
    protocol, options = record.protocol, record.options
    sampler = protocol.get("sampler", {})
    facts = {
        "command": f"`{command_line(record)}`",
        "protocol": f"`{record.protocol_hash}`",
        "data": f"`{protocol.get('dataset', '')}`, splits `{protocol.get('splits', '')}`",
        "options": ", ".join(f"{k} {option_text(v)}" for k, v in sorted(options.items())),
        "budget, seed": f"{record.budget}, {record.seed}",
        "sampled with": ", ".join(f"{k} {sampler[k]}" for k in sorted(sampler, reverse=True)),
        "judges": "; ".join(
            f"{judge['name']} `{judge['digest'][:12]}`, {judge['resize']}"
            for judge in protocol.get("judges", {}).values()
        ),
        "commit": str(record.environment.get("commit", "unknown")),
        "run": f"`{record.run_id}`, {record.finished}; its record is `record.json`",
    }
    lines = [f"- {name}: {said}" for name, said in facts.items()]
    return "\n".join([*lines, "- leaks:", *(f"  - {line.strip()}" for line in leak_lines(record))])
