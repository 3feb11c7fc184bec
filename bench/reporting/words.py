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
from bench.ablations import ABLATIONS, Variant, settings_of
from bench.config import OUTSIDE, RunConfig, Style, option_text
from bench.content import validated
from bench.metrics import SPECS
from bench.metrics.intervals import FEW_ITEMS, LEAST_ITEMS
from bench.metrics.lines import CHAMFER, LINE_F1
from bench.metrics.redetect import REDETECTED
from bench.metrics.regions import BOX_IOU, BOX_RECALL, COLOUR_ERROR, MIOU
from bench.record import COMPARED, SUBMITTED, MetricValue, RunRecord, made_on
from bench.reporting.render import MISSING, filled, one_line
from bench.types import MetricSpec, unknown

HASH_DIGITS = 12
RATE = "learning_rate"  # recorded among the options, but a flag of its own on the command line
FRECHET = ("fd", "fd_infinite")
_OF_TASKS = (LINE_F1, CHAMFER, MIOU, BOX_RECALL, BOX_IOU, COLOUR_ERROR)
_SPECS = {spec.name: spec for spec in (*SPECS, *REDETECTED.values(), *_OF_TASKS)}
_PRIMARY: Mapping[str, tuple[str, ...]] = {
    "sketch": ("sketch_f1",),
    "segmentation": ("miou",),
    "layout": ("box_recall",),
    "drawing": ("sketch_f1", "colour_error"),
    **dict.fromkeys(("image", "image-grey", "image-rgba"), ("canny_f1",)),
}
# How much better a number is under an item's own condition than under another item's: higher is better.
_GAINS = {
    f"{spec.name}_gain": replace(spec, title=f"condition gain, {spec.title}", better="higher", place=place)
    for place, names in ((62, ["kid"]), (61, [metrics[0] for metrics in _PRIMARY.values()]))
    for spec in map(_SPECS.__getitem__, names)  # behind KID, before FD
}
# How far samples for captions of the base's own styles, without a condition, lie from the base's own.
_FORGOTTEN = {
    f"{name}_forgotten": replace(_SPECS[name], title=title, place=63)
    for name, title in (("kid", "forgetting, KID"), ("cosine", "forgetting, cosine to the base's"))
}
_SPECS |= _GAINS | _FORGOTTEN
_ARROWS = {"higher": " ↑", "lower": " ↓", "none": ""}
_SUFFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_DIGEST = re.compile(r"\b[0-9a-f]{64}\b")
_COMPARED = ("suite", "task", "method", "budget", "seed")


@dataclass(frozen=True, kw_only=True)
class Column:
    """What a column measures, in full; task: of which task, where a table holds several."""

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
        return _SPECS.get(self.metric, outside)

    @property
    def is_gain(self) -> bool:
        """Whether it is what the right condition gains over a wrong one."""
        return self.metric in _GAINS

    @property
    def is_fid(self) -> bool:
        """Whether it is a Fréchet distance of Inception-v3's features."""
        return self.metric == "fd" and self.judge.casefold().partition("/")[0] == "inception-v3"

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
        return "FID" if self.is_fid else self.spec.title or self.metric.replace("_", " ")

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
    return tuple(sorted({*columns}, key=lambda c: (c.spec.place, *vars(c).values())))


def task_place(task: str) -> tuple[int, str]:
    """Return a key that sorts tasks as reports show them; tasks unknown here last, by name."""
    known = list(_PRIMARY)
    return (known.index(task) if task in known else len(known), task)


def primary_metrics(task: str) -> tuple[str, ...]:
    """Return the metrics that say first how well a task's condition is obeyed; none if unknown."""
    return _PRIMARY.get(task, ())


def headline_metrics(task: str) -> tuple[str, ...]:
    """Return what tells first how good a row is: fidelity, KID, condition gains, FD behind them."""
    return (*primary_metrics(task), "kid", *gained_metrics(task), "fd")


def gained_metrics(task: str) -> tuple[str, ...]:
    """Return the condition gains of a task: in its first fidelity metric and in KID."""
    return tuple(f"{metric}_gain" for metric in (*primary_metrics(task)[:1], "kid"))


def titled(of: RunRecord | str) -> str:
    """Return the title of a method, or of a record's; one of which nobody here knows it keeps its name."""
    name, own = (of, "") if isinstance(of, str) else (of.method, one_line(of.title))
    known = registry.rows("method").get(name)
    return (known and known.title) or own or name


def variant_title(variant: Variant) -> str:
    """Return a variant's name with its method's title: "ControlNet, guidance 2"."""
    title = titled(variant.name)
    return title if title != variant.name else title.replace(variant.method, titled(variant.method), 1)


def label(name: str, *details: str) -> str:
    """Return a name with details in brackets, those it has going first: "BPS (prior=none, floor)"."""
    said = ", ".join(detail for detail in details if detail)
    if not said:
        return name
    return f"{name[:-1]}, {said})" if name.endswith(")") else f"{name} ({said})"


def _own_options(record: RunRecord) -> dict[str, Any]:
    """Return a method's own options on a record's task; none where they are unknown or not all recorded."""
    own = settings_of(record.method, record.task)
    return own if own.keys() <= record.options.keys() else {}


def changed_options(record: RunRecord) -> dict[str, Any]:
    """Return the options of a record that are not its method's own on its task; all where none are known."""
    own = _own_options(record)
    return {key: value for key, value in record.options.items() if key not in own or own[key] != value}


def variant_details(record: RunRecord, others: Sequence[RunRecord]) -> list[str]:
    """Return what tells a row apart: options that are not its method's own on its task.

    Of options that no paper sets, those that differ from its method's other rows; in front of them its name,
    where another method has the same title.
    """
    own, title = _own_options(record), titled(record)
    alike = any(other.method != record.method and titled(other) == title for other in others)
    family = [changed_options(other) for other in others if other.method == record.method]
    return [record.method] * alike + [
        option_detail(key, value)
        for key, value in sorted(changed_options(record).items())
        if key in own or any(options.get(key, family) != value for options in family)
    ]


def option_detail(key: str, value: Any) -> str:
    """Return an option for a row's name: "schedule=uniform"; a list as its ablation calls it."""
    text = option_text(value)
    if isinstance(value, (list, tuple)):
        if value and all(isinstance(v, float) for v in value):
            text = "/".join(f"{v:.3g}" for v in value)
        variants = [v for ablation in ABLATIONS.values() for v in ablation.variants]
        text = next((v.name for v in variants if dict(v.options) == {key: list(value)}), text)
    return f"{key}={text}"


def protocol_words(records: Sequence[RunRecord]) -> dict[str, str]:
    """Return by short protocol hash, in order, what that protocol says where protocols differ ("seed=1")."""
    protocols = {r.protocol_hash: dict(flat(r.protocol)) for r in records}
    keys = sorted({key for protocol in protocols.values() for key in protocol})
    differing = [k for k in keys if len({p.get(k, MISSING) for p in protocols.values()}) > 1]
    said = {h: ", ".join(f"{k}={p.get(k, MISSING)}" for k in differing) for h, p in protocols.items()}
    return {digest[:HASH_DIGITS]: text or "says the same" for digest, text in sorted(said.items())}


def command_line(record: RunRecord) -> str:
    """Return the command that does a run again, as asked if known, in one line quoted for a POSIX shell."""
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
        given |= {k: options.pop(k) for k in OUTSIDE[2:] if k in options}
    later_seed = record.rows and "shuffled" not in record.rows and record.method != registry.FLOOR
    given |= {"learning_rate": options.pop(RATE, None), "options": options, "shuffled": not later_seed}
    training, side = record.protocol.get("training", {}), record.protocol.get("eval_side")
    given |= {name: training[name] for name in ("precision", "ema") if name in training}
    if record.suite in registry.rows("suite") and side != registry.load("suite", record.suite).eval_side:
        given["side"] = side
    device = record.environment.get("device")
    return one_line(RunConfig(**given, device=device if device in ("cpu", "cuda") else "auto").command())


def decimals(numbers: Iterable[Any]) -> int:
    """Return the decimals of two digits of the middle width of intervals, of three of the largest without.

    numbers: with a value, low and high, each None where it is missing, as those of records and tables.
    """
    known = [n for n in numbers if n is not None]
    widths = [n.high - n.low for n in known if n.low is not None and n.high is not None and n.high > n.low]
    sizes = [abs(n.value) for n in known if n.value]
    return _digits(statistics.median_low(widths), 2) if widths else _digits(max(sizes, default=1.0), 3)


def _digits(size: float, significant: int) -> int:
    return min(max(significant - 1 - math.floor(math.log10(size)), 0), 6)


def number(value: float | None, digits: int) -> str:
    """Return a number with fixed decimals, "–" where it is missing; never "-0.00"."""
    if value is None:
        return MISSING
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text


def brackets(low: float | None, high: float | None, digits: int) -> str:
    """Return an interval as "[0.50, 0.54]", nothing where there is none."""
    return "" if low is None or high is None else f"[{number(low, digits)}, {number(high, digits)}]"


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
    return f"{value:.{0 if whole else _digits(abs(value), 3)}f} {unit}".rstrip()


def notes(of: str, records: Sequence[RunRecord] = (), items: Iterable[int] = ()) -> list[str]:
    """Return what must be said aloud of records, a note each.

    of: "sides", leaks and unknown pretraining; "outside", weights and pictures; "devices", where a GPU is
    among them or torch differs; "few", of Fréchet distances of so many items each.
    """
    checks = [record.leaks.pretraining for record in records if record.leaks is not None]
    return filled(
        "notes.txt",
        of=of,
        records=records,
        titled=titled,
        leaked=sorted({record.leaked for record in records} - {0}),
        unknown=sorted({check.about for check in checks if check.status == "unknown"}),
        machines=Counter(made_on(record.environment) for record in records),
        on_gpu=any(str(record.environment.get("device")).startswith("cuda") for record in records),
        fewest=min(items, default=FEW_ITEMS),
        least=LEAST_ITEMS,
        few=FEW_ITEMS,
    ).splitlines()


def run_notes(records: Sequence[RunRecord], items: Iterable[int]) -> list[str]:
    """Return what must be said of the runs of any table; items: of each of its Fréchet distances."""
    outside = sorted({note for record in records for note in notes("outside", [record])})
    sides = {(r.protocol_hash, r.splits.eval, r.splits.train) for r in records}
    differ = "SPLITS DIFFER: records of one protocol were made on different items."
    differing = [differ] if len(sides) > len({digest for digest, _, _ in sides}) else []
    others = notes("devices", records) + notes("few", items=items)
    return [*notes("sides", records), *outside, *differing, *others]


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


def outside_mark(records: Collection[RunRecord]) -> str:
    """Return what a row with a record or weights from outside is marked with, else nothing."""
    if any(SUBMITTED in record.options for record in records):
        return "SUBMITTED, NOT TRAINED HERE"
    images = [record.weights.train_images for record in records if record.weights is not None]
    return "" if not images else "WEIGHTS FROM OUTSIDE" if all(images) else "NOT TRAINED HERE"


def record_changes(here: RunRecord, there: RunRecord) -> list[str]:
    """Return the differences of two records, a sentence each; the first says whether protocols agree.

    Each names what the first says, then what the second says; "–" stands for nothing said.
    """
    digest, other = (record.protocol_hash[:HASH_DIGITS] for record in (here, there))
    lines = [f"OTHER PROTOCOL ({digest} here, {other} there): their numbers do not compare"]
    if here.protocol_hash == there.protocol_hash:
        lines = [f"same protocol ({digest}): their numbers may share a table"]
    mine, theirs = _compared(here), _compared(there)
    for at in (at for at in sorted(mine.keys() | theirs.keys()) if mine.get(at) != theirs.get(at)):
        lines.append(f"{at[1]}{at[2]} is {mine.get(at, MISSING)} here, {theirs.get(at, MISSING)} there")
    return lines if len(lines) > 1 else [*lines, "method, options, seed and environment are the same too"]


def _compared(record: RunRecord) -> dict[tuple[int, str, str], str]:
    """Return what tells two records apart: by place, what it is about and its name, the value."""
    parts: tuple[tuple[str, Any], ...] = (
        ("  protocol: ", record.protocol),
        ("", {name: getattr(record, name) for name in _COMPARED}),
        ("option ", record.options),
        ("weights from outside: ", {} if record.weights is None else asdict(record.weights)),
        ("leaked items", record.leaked),
        ("environment: ", record.environment),
    )
    return {(n, about, key): text for n, (about, value) in enumerate(parts) for key, text in flat(value)}


def flat(value: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    """Yield the leaves of nested mappings as ("sampler.steps", "20"), digests cut to 12 digits."""
    if isinstance(value, Mapping):
        for key in value:
            yield from flat(value[key], f"{prefix}.{key}" if prefix else str(key))
    else:
        text = json.dumps(value, sort_keys=True, ensure_ascii=False)
        yield prefix, _DIGEST.sub(lambda digest: digest[0][:HASH_DIGITS], text)
