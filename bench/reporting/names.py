"""What columns, rows and numbers are called in a report: derived from records, never invented."""

from __future__ import annotations

import json
import math
import re
import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench import registry
from bench.ablations import ABLATIONS
from bench.config import RunConfig, option_text
from bench.record import MetricValue, RunRecord
from bench.strict import validated
from bench.types import unknown

MISSING = "–"
HASH_DIGITS = 12
_NAMES = {
    "fd": "FD",
    "kid": "KID",
    "cosine": "cosine to target",
    "retrieval": "R@1",
    "sketch_f1": "line F1",
    "chamfer": "chamfer distance",
    "miou": "mIoU",
    "box_recall": "box recall",
    "box_iou": "box IoU",
    "colour_error": "colour error ΔE76",
    "mae": "MAE",
    "clip": "CLIP score",
    "fd_infinite": "FD∞",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "cmmd": "CMMD",
    "nearer_training": "nearer to training",
}
_DISTRIBUTION = (*("fd_infinite", "precision", "recall", "density", "coverage", "cmmd", "nearer_training"),)
_PRIMARY: Mapping[str, tuple[str, ...]] = {
    "sketch": ("sketch_f1",),
    "segmentation": ("miou",),
    "layout": ("box_recall",),
    "drawing": ("sketch_f1", "colour_error"),
}
_FIRST = (
    *("fd", "kid", "cosine", "retrieval"),
    *("miou", "box_recall", "box_iou", "colour_error", "sketch_f1", "chamfer"),
)
_LAST = ("mae", "clip", *_DISTRIBUTION)
_DIGEST = re.compile(r"\b[0-9a-f]{64}\b")
_SCALE_IS_PART_OF_THE_NAME = ("clip", "chamfer")
_ARROWS = {"higher": " ↑", "lower": " ↓", "none": ""}
_FLAGS = ("suite", "task", "method", "budget", "seed")
RATE = "learning_rate"  # recorded among the options, but a flag of its own on the command line
_DEVICES = ("cpu", "cuda")
_LATER = {"steps": "sampling-steps"}  # what records called otherwise
_SUFFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True, kw_only=True)
class Column:
    """What a column measures; numbers that differ in any of these stand in different columns."""

    metric: str
    judge: str
    scale: str
    better: str

    @classmethod
    def of(cls, metric: str, value: MetricValue) -> Column:
        """Return the column that a number of a record belongs to."""
        return cls(metric=metric, judge=value.judge, scale=value.scale, better=value.better)


def plain_name(column: Column) -> str:
    """Return a metric's name without judge and arrow; "FID" only where Inception-v3 judged."""
    if column.metric == "fd" and column.judge.casefold() == "inception-v3":
        return "FID"
    return _NAMES.get(column.metric, column.metric.replace("_", " "))


def named(column: Column) -> str:
    """Return a metric's name with its judge and, where it is part of the name, its scale."""
    parts = [] if column.judge in {"", "none"} else [column.judge]
    spoken = column.metric in _SCALE_IS_PART_OF_THE_NAME or column.metric not in _NAMES
    if spoken and column.scale not in {"", "none"}:
        parts.append(column.scale)
    return label(plain_name(column), *parts)


def header(column: Column) -> str:
    """Return a column's header: name, judge and scale, and an arrow towards better.

    BenchError where the record says another direction than "higher", "lower" or "none".
    """
    if column.better not in _ARROWS:
        raise unknown(f"direction of the metric {column.metric}", column.better, _ARROWS)
    return named(column) + _ARROWS[column.better]


def order_columns(columns: Iterable[Column]) -> tuple[Column, ...]:
    """Return distinct columns in the order of a report; metrics unknown here in the middle."""

    def place(column: Column) -> tuple[int, int, str, str, str, str]:
        name = column.metric
        if name in _FIRST:
            where = (0, _FIRST.index(name))
        else:
            where = (2, _LAST.index(name)) if name in _LAST else (1, 0)
        return (*where, name, column.judge, column.scale, column.better)

    return tuple(sorted(set(columns), key=place))


def of_distribution(column: Column) -> bool:
    """Tell whether a column says more of the set's distribution than a first table need show."""
    return column.metric in _DISTRIBUTION


def task_place(task: str) -> tuple[int, str]:
    """Return a key that sorts tasks as reports show them; tasks unknown here last, by name."""
    known = list(_PRIMARY)
    return (known.index(task) if task in known else len(known), task)


def primary_metrics(task: str) -> tuple[str, ...]:
    """Return the metrics that say first how well a task's condition is obeyed; none if unknown."""
    return _PRIMARY.get(task, ())


def titled(method: str) -> str:
    """Return a method's title; one that is not installed here keeps its name."""
    known = registry.rows("method").get(method)
    return known.title or method if known is not None else method


def sentence(text: str) -> str:
    """Return text with a capital at its start."""
    return text[:1].upper() + text[1:]


def one_line(text: str) -> str:
    """Return text with a blank in place of what would break its line or is not shown."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def label(name: str, *details: str) -> str:
    """Return a name with its details in brackets: "BPS (prior=none, shuffled conditions)"."""
    return f"{name} ({', '.join(details)})" if details else name


def variant_details(record: RunRecord, others: Sequence[RunRecord], *, marks: Mapping[str, str]) -> list[str]:
    """Return what tells a row apart: options that differ from its method's other rows, protocol."""
    family = [other.options for other in others if other.method == record.method]
    missing = object()
    details = [
        f"{key}={_short(key, value)}"
        for key, value in sorted(record.options.items())
        if any(options.get(key, missing) != value for options in family)
    ]
    return [*details, *([f"protocol {marks[record.protocol_hash]}"] if marks else [])]


def _short(key: str, value: Any) -> str:
    """Return an option's value for a row's name; a list as its ablation calls it, else without zeros."""
    if isinstance(value, (list, tuple)):
        for variant in (v for ablation in ABLATIONS.values() for v in ablation.variants):
            if dict(variant.options) == {key: list(value)}:
                return variant.name
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, float) for v in value):
        return "/".join(f"{v:.3g}" for v in value)
    return option_text(value)


def protocol_marks(records: Sequence[RunRecord]) -> dict[str, str]:
    """Return a mark for each protocol hash, "A", "B", ...; none for a single protocol."""
    hashes = sorted({record.protocol_hash for record in records})
    if len(hashes) < 2:
        return {}
    return {h: chr(ord("A") + i) if i < 26 else str(i + 1) for i, h in enumerate(hashes)}


def protocol_differences(records: Sequence[RunRecord]) -> dict[str, list[str]]:
    """Return by protocol hash what that protocol says where the protocols differ ("seed=1")."""
    protocols = {r.protocol_hash: dict(flat(r.protocol)) for r in records}
    keys = sorted({key for flat in protocols.values() for key in flat})
    differing = [k for k in keys if len({flat.get(k, MISSING) for flat in protocols.values()}) > 1]
    return {
        digest: [f"{key}={flat.get(key, MISSING)}" for key in differing]
        for digest, flat in sorted(protocols.items())
    }


def protocol_words(records: Sequence[RunRecord]) -> str:
    """Return what each of several protocols says where they differ: "0123: steps=20; 4567: ..."."""
    return "; ".join(
        f"{digest[:HASH_DIGITS]}: {', '.join(says) or 'says the same'}"
        for digest, says in protocol_differences(records).items()
    )


def command_line(record: RunRecord) -> str:
    """Return the command that does a run again, quoted for a POSIX shell.

    Made from what was asked where the record says it.
    """
    if record.config:
        config: RunConfig = validated(dict(record.config), RunConfig, record.run_id, remedy="")
        return config.command()
    given: dict[str, Any] = {key: getattr(record, key) for key in _FLAGS}
    options = dict(record.options)
    if RATE in options:
        given["learning-rate"] = options.pop(RATE)
    if "train_items" in record.changes:
        given["budget"] = record.budget.removesuffix(f"-{record.changes['train_items']}")
    given |= {_LATER.get(key, key.replace("_", "-")): v for key, v in sorted(record.changes.items())}
    if record.environment.get("device") in _DEVICES:
        given["device"] = record.environment["device"]
    words = [word for flag, value in given.items() for word in (f"--{flag}", str(value))]
    if record.weights is not None:
        words += ["--weights", record.weights.name]
        words += [] if not options.pop("no_train", False) else ["--no-train"]
        words += ["--invert-condition"] if options.pop("invert_condition", False) else []
        form = options.pop("condition_channels", None)
        words += ["--condition-channels", form] if form else []
        del options["weights"]
    for key, value in sorted(options.items()):
        words += ["--option", f"{key}={option_text(value)}"]
    if record.rows and "shuffled" not in record.rows and record.method != "text-only":
        words.append("--no-shuffled")  # a later seed of a grid
    return command(["bench", "run", *words])


def command(words: Iterable[str]) -> str:
    """Return words quoted for a shell, in one line whatever they hold."""
    return " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    if word.isprintable():
        return shlex.quote(word)
    letters = (c if c.isprintable() and c not in "\\'" else f"\\U{ord(c):08x}" for c in word)
    return f"$'{''.join(letters)}'"


def decimals(values: Iterable[float | None], *, widths: Iterable[float] = (), most: int = 6) -> int:
    """Return how many decimals to print: two significant digits of the middle interval width.

    Without intervals: three significant digits of the largest value.
    """
    known = [width for width in widths if width > 0]
    if known:
        return _within(1 - math.floor(math.log10(statistics.median_low(known))), most)
    sizes = [abs(value) for value in values if value]
    return _within(2 - math.floor(math.log10(max(sizes))), most) if sizes else 2


def number(value: float | None, digits: int) -> str:
    """Return a number with fixed decimals, "–" where it is missing; never "-0.00"."""
    if value is None:
        return MISSING
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text


def brackets(low: float | None, high: float | None, digits: int) -> str:
    """Return an interval as "[0.50, 0.54]", nothing where there is none."""
    if low is None or high is None:
        return ""
    return f"[{number(low, digits)}, {number(high, digits)}]"


def count(value: float | None) -> str:
    """Return a large count with three significant digits and k, M, G or T; "–" where missing."""
    if value is None:
        return MISSING
    for size, suffix in _SUFFIXES:
        if abs(value) >= 0.9995 * size:
            return f"{_three_digits(value / size)} {suffix}"
    return _three_digits(value)


def amount(value: float | None, unit: str = "") -> str:
    """Return a measured amount with three significant digits and its unit; "–" where missing."""
    if value is None:
        return MISSING
    return f"{_three_digits(value)} {unit}".rstrip()


def _three_digits(value: float) -> str:
    if value == 0 or float(value).is_integer() and abs(value) < 1000:
        return f"{value:.0f}"
    digits = _within(2 - math.floor(math.log10(abs(value))), 6)
    return f"{value:.{digits}f}"


def _within(digits: int, most: int) -> int:
    return min(max(digits, 0), most)


def flat(value: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    """Yield the leaves of nested mappings as ("sampler.steps", "20"), digests cut to 12 digits."""
    if isinstance(value, Mapping):
        for key in value:
            yield from flat(value[key], f"{prefix}.{key}" if prefix else str(key))
    else:
        text = json.dumps(value, sort_keys=True, ensure_ascii=False)
        yield prefix, _DIGEST.sub(lambda found: found[0][:HASH_DIGITS], text)
