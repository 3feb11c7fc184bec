"""What columns, rows and numbers are called, and what is said aloud of records; nothing is invented."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench import registry
from bench.ablations import ABLATIONS, Variant
from bench.config import RunConfig, Style, option_text
from bench.content import validated
from bench.metrics import SPECS
from bench.metrics.intervals import FEW_ITEMS, LEAST_ITEMS
from bench.metrics.lines import CHAMFER, LINE_F1
from bench.metrics.redetect import REDETECTED
from bench.metrics.regions import BOX_IOU, BOX_RECALL, COLOUR_ERROR, MIOU
from bench.record import COMPARED, SUBMITTED, LeakCheck, MetricValue, Outside, RunRecord, made_on
from bench.types import MetricSpec, unknown

MISSING = "–"
HASH_DIGITS = 12
RATE = "learning_rate"  # recorded among the options, but a flag of its own on the command line
FRECHET = ("fd", "fd_infinite")
_SPECS = {
    spec.name: spec
    for spec in (*SPECS, *REDETECTED.values(), LINE_F1, CHAMFER, MIOU, BOX_RECALL, BOX_IOU, COLOUR_ERROR)
}
_PRIMARY: Mapping[str, tuple[str, ...]] = {
    "sketch": ("sketch_f1",),
    "segmentation": ("miou",),
    "layout": ("box_recall",),
    "drawing": ("sketch_f1", "colour_error"),
    **dict.fromkeys(("image", "image-grey", "image-rgba"), ("canny_f1",)),
}
# How much better a number is under an item's own condition than under another item's: higher is better.
_GAINS = {
    f"{spec.name}_gain": replace(
        spec,
        name=f"{spec.name}_gain",
        title=f"condition gain, {spec.title}",
        better="higher",
        place=62 if spec.name == "kid" else 61,  # behind KID, before FD
    )
    for spec in _SPECS.values()
    if spec.name in {"kid", *(metrics[0] for metrics in _PRIMARY.values())}
}
# How far samples for captions of the base's own styles, without a condition, lie from the base's own.
_FORGOTTEN = {
    f"{name}_forgotten": replace(_SPECS[name], name=f"{name}_forgotten", title=title, place=63)
    for name, title in (("kid", "forgetting, KID"), ("cosine", "forgetting, cosine to the base's"))
}
_ARROWS = {"higher": " ↑", "lower": " ↓", "none": ""}
_SUFFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_DIGEST = re.compile(r"\b[0-9a-f]{64}\b")
_COMPARED = ("suite", "task", "method", "budget", "seed")


@dataclass(frozen=True, kw_only=True)
class Column:
    """What a column measures; numbers that differ in any of these stand in different columns.

    task: of which task, where a table holds several.
    """

    metric: str
    judge: str
    scale: str
    better: str
    task: str = ""

    @classmethod
    def of(cls, metric: str, value: MetricValue) -> Column:
        """Return the column that a number of a record belongs to."""
        return cls(metric=metric, judge=value.judge, scale=value.scale, better=value.better)

    @property
    def spec(self) -> MetricSpec:
        """What is known of the metric; one from outside is told by its record, with its scale."""
        outside = MetricSpec(name=self.metric, scale=self.scale, better=self.better, scale_shown=True)
        return {**_SPECS, **_GAINS, **_FORGOTTEN}.get(self.metric, outside)

    @property
    def gain(self) -> Column:
        """What the right condition gains over a wrong one in this column."""
        return replace(self, metric=f"{self.metric}_gain", better="higher")

    @property
    def is_gain(self) -> bool:
        """Whether it is such a gain."""
        return self.metric in _GAINS

    @property
    def is_fid(self) -> bool:
        """Whether it is a Fréchet distance of Inception-v3's features."""
        return self.metric == "fd" and self.judge.casefold().partition("/")[0] == "inception-v3"

    @property
    def forgotten(self) -> Column:
        """The same of samples of the base's own styles, against the base's."""
        return replace(self, metric=f"{self.metric}_forgotten")

    @property
    def is_forgetting(self) -> bool:
        """Whether it tells of the base's own styles."""
        return self.metric in _FORGOTTEN

    @property
    def is_beside(self) -> bool:
        """Whether it tells of other samples besides, often of fewer seeds, of which nothing is claimed."""
        return self.is_gain or self.is_forgetting

    @property
    def plain_name(self) -> str:
        """The metric's name without judge and arrow; "FID" only where Inception-v3 judged."""
        if self.is_fid:
            return "FID"
        return self.spec.title or self.metric.replace("_", " ")

    @property
    def named(self) -> str:
        """The metric's name with its judge and, where it is part of the name, its scale."""
        parts = (self.judge, self.scale if self.spec.scale_shown else "")
        return label(self.plain_name, *(part for part in parts if part != "none"))

    @property
    def judged(self) -> str:
        """What the name has beyond the plain one."""
        return self.named.removeprefix(self.plain_name)

    @property
    def header(self) -> str:
        """The name with an arrow towards better; BenchError for a direction that is none."""
        if self.better not in _ARROWS:
            raise unknown(f"direction of the metric {self.metric}", self.better, _ARROWS)
        return self.named + _ARROWS[self.better]

    def too_few(self, items: int) -> bool:
        """Tell whether a Fréchet distance has too few items to be shown."""
        return self.metric in FRECHET and items < LEAST_ITEMS


def order_columns(columns: Iterable[Column]) -> tuple[Column, ...]:
    """Return distinct columns in the order of a report; those from outside in the middle."""
    return tuple(
        sorted(set(columns), key=lambda c: (c.spec.place, c.metric, c.judge, c.scale, c.better, c.task))
    )


def task_place(task: str) -> tuple[int, str]:
    """Return a key that sorts tasks as reports show them; tasks unknown here last, by name."""
    known = list(_PRIMARY)
    return (known.index(task) if task in known else len(known), task)


def primary_metrics(task: str) -> tuple[str, ...]:
    """Return the metrics that say first how well a task's condition is obeyed; none if unknown."""
    return _PRIMARY.get(task, ())


def headline_metrics(task: str) -> tuple[str, ...]:
    """Return what tells first how good a row is: fidelity, KID, condition gains, FD behind them."""
    fidelity = primary_metrics(task)
    return (*fidelity, "kid", *gained_metrics(task), "fd")


def gained_metrics(task: str) -> tuple[str, ...]:
    """Return the condition gains of a task: in its first fidelity metric and in KID."""
    return tuple(f"{metric}_gain" for metric in (*primary_metrics(task)[:1], "kid"))


def titled(method: str) -> str:
    """Return a method's title; one that is not installed here keeps its name."""
    known = registry.rows("method").get(method)
    return known.title or method if known is not None else method


def variant_title(variant: Variant) -> str:
    """Return a variant's name with its method's title: "ControlNet, guidance 2"."""
    title = titled(variant.name)
    return title if title != variant.name else title.replace(variant.method, titled(variant.method), 1)


def one_line(text: str) -> str:
    """Return text with a blank in place of what would break its line or is not shown."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else " " for letter in text)


def label(name: str, *details: str) -> str:
    """Return a name with details in brackets, those it has going first: "BPS (prior=none, floor)"."""
    said = ", ".join(detail for detail in details if detail)
    if not said:
        return name
    return f"{name[:-1]}, {said})" if name.endswith(")") else f"{name} ({said})"


def variant_details(
    record: RunRecord, others: Sequence[RunRecord], *, marks: Mapping[str, str] | None = None
) -> list[str]:
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
        if value and all(isinstance(v, float) for v in value):
            return "/".join(f"{v:.3g}" for v in value)
    return option_text(value)


def protocol_marks(records: Sequence[RunRecord]) -> dict[str, str]:
    """Return a mark for each protocol hash, "A", "B", ...; none for a single protocol."""
    hashes = sorted({record.protocol_hash for record in records})
    return {h: chr(ord("A") + i) if i < 26 else str(i + 1) for i, h in enumerate(hashes) if len(hashes) > 1}


def protocol_words(records: Sequence[RunRecord]) -> dict[str, str]:
    """Return by short protocol hash, in order, what that protocol says where protocols differ ("seed=1")."""
    protocols = {r.protocol_hash: dict(flat(r.protocol)) for r in records}
    keys = sorted({key for protocol in protocols.values() for key in protocol})
    differing = [k for k in keys if len({p.get(k, MISSING) for p in protocols.values()}) > 1]
    return {
        digest[:HASH_DIGITS]: ", ".join(f"{key}={protocol.get(key, MISSING)}" for key in differing)
        or "says the same"
        for digest, protocol in sorted(protocols.items())
    }


def command_line(record: RunRecord) -> str:
    """Return the command that does a run again, in one line, quoted for a POSIX shell.

    Made from what was asked where the record says it.
    """
    if record.config:
        config: RunConfig = validated(dict(record.config), RunConfig, record.run_id, remedy="")
        return one_line(config.command())
    if record.suite == COMPARED:
        return one_line(str(record.environment.get("command", "")))
    options, changes = dict(record.options), dict(record.changes)
    options.pop(SUBMITTED, None)
    given: dict[str, Any] = {name: getattr(record, name) for name in _COMPARED}
    given["budget"] = record.budget.removesuffix(f"-{changes.get('train_items')}")
    given |= {"sampling_steps" if name == "steps" else name: value for name, value in changes.items()}
    if record.weights is not None:
        del options["weights"]
        given |= {"weights": Path(record.weights.name), "train": not options.pop("no_train", False)}
        given |= {k: options.pop(k) for k in ("invert_condition", "condition_channels") if k in options}
    later_seed = record.rows and "shuffled" not in record.rows and record.method != registry.FLOOR
    given |= {"learning_rate": options.pop(RATE, None), "options": options, "shuffled": not later_seed}
    training, side = record.protocol.get("training", {}), record.protocol.get("eval_side")
    given |= {name: training[name] for name in ("precision", "ema") if name in training}
    suites = registry.rows("suite")
    if record.suite in suites and side != registry.load("suite", record.suite).eval_side:
        given["side"] = side
    device = record.environment.get("device")
    return one_line(RunConfig(**given, device=device if device in ("cpu", "cuda") else "auto").command())


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


def interval_text(
    value: float, low: float | None, high: float | None, digits: int, style: Style = "brackets"
) -> str:
    """Return an interval in a style; "±" tells its longer side, which covers the other."""
    if style == "brackets" or low is None or high is None:
        return brackets(low, high, digits)
    return f"± {number(max(value - low, high - value), digits)}" if style == "±" else ""


def count(value: float | None) -> str:
    """Return a large count with three significant digits and k, M, G or T; "–" where missing."""
    for size, suffix in _SUFFIXES:
        if value is not None and abs(value) >= 0.9995 * size:
            return f"{amount(value / size)} {suffix}"
    return amount(value)


def amount(value: float | None, unit: str = "") -> str:
    """Return a measured amount with three significant digits and its unit; "–" where missing."""
    if value is None:
        return MISSING
    whole = value == 0 or (float(value).is_integer() and abs(value) < 1000)
    digits = 0 if whole else _within(2 - math.floor(math.log10(abs(value))), 6)
    return f"{value:.{digits}f} {unit}".rstrip()


def _within(digits: int, most: int) -> int:
    return min(max(digits, 0), most)


def few_notes(items: Iterable[int]) -> list[str]:
    """Return what must be said beside Fréchet distances of so many items each; nothing for many."""
    fewest = min(items, default=FEW_ITEMS)
    if fewest >= FEW_ITEMS:
        return []
    if fewest < LEAST_ITEMS:
        return [
            f"TOO FEW ITEMS: no Fréchet distance is shown of {fewest} items, fewer than "
            f"{LEAST_ITEMS}. The records keep the numbers; evaluate more items to compare them."
        ]
    return [
        f"FEW ITEMS: Fréchet distances of {fewest} items, fewer than {FEW_ITEMS:,}, lie above those "
        "of more items. Value and interval are those expected at this number: compare rows of this "
        "table, never another N. KID beside it has no such bias."
    ]


def device_notes(records: Sequence[RunRecord]) -> list[str]:
    """Say on which devices runs were made where a GPU is among them or torch differs; aloud if mixed."""
    machines = Counter(made_on(record.environment) for record in records)
    if len(machines) > 1:
        each = "; ".join(f"{number} on {words}" for words, number in sorted(machines.items()))
        return [f"DEVICES OR TORCH DIFFER: sums round otherwise on others. Runs: {each}."]
    if any(str(record.environment.get("device")).startswith("cuda") for record in records):
        return [f"Made on {next(iter(machines))}."]
    return []


def made_equal(records: Sequence[RunRecord]) -> str:
    """Say what the budget made equal between methods: training time or images; aloud where neither."""
    if any(r.protocol.get("budget", {}).get("images_of") for r in records):
        return "equal training time"
    images = {r.cost.train_images for r in records} - {0}
    return "equal training images" if len(images) < 2 else "training images that are NOT EQUAL"


def leak_mark(records: Iterable[RunRecord]) -> str:
    """Return "LEAK: 3 items" for the record with most of them, nothing where there is no leak."""
    most = max((record.leaked for record in records), default=0)
    return f"LEAK: {most} item{'' if most == 1 else 's'}" if most else ""


def leak_by_task(records: Mapping[str, Sequence[RunRecord]]) -> str:
    """Return "LEAK: sketch 3 items, layout 1 item", nothing where no task has a leak."""
    marks = {task: leak_mark(members).removeprefix("LEAK: ") for task, members in records.items()}
    leaks = ", ".join(f"{task} {mark}" for task, mark in marks.items() if mark)
    return f"LEAK: {leaks}" if leaks else ""


def outside_mark(records: Collection[RunRecord]) -> str:
    """Return what a row with a record or weights from outside is marked with, else nothing."""
    given = [record.weights for record in records if record.weights is not None]
    if any(SUBMITTED in record.options for record in records):
        return "SUBMITTED, NOT TRAINED HERE"
    if not given:
        return ""
    return "WEIGHTS FROM OUTSIDE" if all(w.train_images for w in given) else "NOT TRAINED HERE"


def split_notes(records: Sequence[RunRecord]) -> list[str]:
    """Return what must be said of the sides: leaks, unknown pretraining, unequal items."""
    notes = []
    items = " and ".join(map(str, sorted({record.leaked for record in records} - {0})))
    if items:
        more = " or pretraining" if any(record.leaks for record in records) else ""
        notes.append(f"LEAK: {items} evaluation items have a (near) twin in training{more}.")
    checks = [record.leaks.pretraining for record in records if record.leaks is not None]
    for about in sorted({check.about for check in checks if check.status == "unknown"}):
        notes.append(f"PRETRAINING UNKNOWN: {about}, so nobody knows which evaluation items it has seen.")
    notes += sorted({_outside_words(r, r.weights) for r in records if r.weights is not None})
    sides = {(r.protocol_hash, r.splits.eval, r.splits.train) for r in records}
    if len(sides) > len({digest for digest, _, _ in sides}):
        notes.append("SPLITS DIFFER: records of one protocol were made on different items.")
    return notes


def _outside_words(record: RunRecord, given: Outside) -> str:
    n = given.train_images
    trained = f"trained on from there, {n} images" if n else "0 training images here"
    if record.suite == COMPARED:
        return (
            f"PICTURES FROM OUTSIDE: {record.method} are those of {given.name}, made elsewhere. What made "
            "them was trained on is unknown."
        )
    form = f"; condition: {given.condition}" if given.condition else ""
    facts = "".join(f"; {name}: {fact}" for name, fact in given.facts.items())
    return (
        f"WEIGHTS FROM OUTSIDE: {titled(record.method)} has those of {given.name} (SHA-256 "
        f"{given.sha256[:12]}), {trained}. Their training data are unknown, so nobody knows which "
        f"evaluation items they have seen{form}{facts}."
    )


def leak_lines(record: RunRecord) -> list[str]:
    """Return what `bench show` says of a record's leak checks, a line each; none for old records."""
    if record.leaks is None:
        return [f"{leak_mark([record])} in training"] if record.leaked else []
    lines = [] if record.weights is None else [_outside_words(record, record.weights)]
    for name in ("training", "pretraining"):
        check = getattr(record.leaks, name)
        lines.append(f"{name}: {_check_words(check)}")
        lines += [f"  {finding}" for finding in check.findings]
    return lines


def _check_words(check: LeakCheck) -> str:
    if check.status == "unknown":
        return f"UNKNOWN whether evaluation items were seen: {check.about}"
    nearest = ", ".join(
        f"{measure} {check.nearest[measure]:.3f} (limit {limit:.3f})"
        for measure, limit in sorted(check.limits.items())
        if measure in check.nearest
    )
    leak = f"LEAK: {check.items} evaluation items seen" if check.items else "no leak"
    return f"{leak} among {check.about}" + (f"; nearest that pass: {nearest}" if nearest else "")


def record_changes(here: RunRecord, there: RunRecord) -> list[str]:
    """Return the differences of two records, a sentence each; the first says whether protocols agree.

    Each names what the first says, then what the second says; "–" stands for nothing said.
    """
    digests = [record.protocol_hash[:HASH_DIGITS] for record in (here, there)]
    lines = [f"OTHER PROTOCOL ({digests[0]} here, {digests[1]} there): their numbers do not compare"]
    if here.protocol_hash == there.protocol_hash:
        lines = [f"same protocol ({digests[0]}): their numbers may share a table"]
    theirs_of = _compared(there)
    for about, value in _compared(here).items():
        mine, theirs = dict(flat(value)), dict(flat(theirs_of[about]))
        lines += [
            f"{about}{key} is {mine.get(key, MISSING)} here, {theirs.get(key, MISSING)} there"
            for key in sorted(mine.keys() | theirs.keys())
            if mine.get(key) != theirs.get(key)
        ]
    return lines if len(lines) > 1 else [*lines, "method, options, seed and environment are the same too"]


def _compared(record: RunRecord) -> dict[str, Any]:
    return {
        "  protocol: ": record.protocol,
        "": {name: getattr(record, name) for name in _COMPARED},
        "option ": record.options,
        "weights from outside: ": {} if record.weights is None else asdict(record.weights),
        "leaked items": record.leaked,
        "environment: ": record.environment,
    }


def flat(value: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    """Yield the leaves of nested mappings as ("sampler.steps", "20"), digests cut to 12 digits."""
    if isinstance(value, Mapping):
        for key in value:
            yield from flat(value[key], f"{prefix}.{key}" if prefix else str(key))
    else:
        text = json.dumps(value, sort_keys=True, ensure_ascii=False)
        yield prefix, _DIGEST.sub(lambda digest: digest[0][:HASH_DIGITS], text)
