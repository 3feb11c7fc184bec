"""Fair learning rates: one grid for every method, judged on the validation side alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NotRequired

from pydantic import with_config
from typing_extensions import TypedDict

from bench.config import RunConfig
from bench.content import atomic_write, read_json, write_json
from bench.grid import Outcome, run_grid
from bench.record import RunRecord, made_on
from bench.registry import FLOOR
from bench.strict import Count, Flag, Number, Text
from bench.types import BenchError, Hooks

CRITERION = "cosine"  # to the target, in the judge's features: paired, and not about style alone
EVIDENCE = ("cosine", "fd", "kid", "retrieval", "mae", "clip")


class _Value(TypedDict):
    value: Number
    low: Number
    high: Number


@with_config(extra="allow", allow_inf_nan=False)
class _Tried(TypedDict):
    """A trial in the evidence's file: the criterion, or the error of a run that failed."""

    cosine: NotRequired[_Value]
    error: NotRequired[Text]


class _Tuned(TypedDict):
    chosen: Number | None
    at_the_edge: Flag
    devices: NotRequired[list[Text]]
    trials: Mapping[Text, _Tried]


@with_config(extra="allow")
class _Evidence(TypedDict):
    protocol_hash: Text
    seed: Count
    methods: Mapping[Text, _Tuned]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One method at one learning rate; outcome: of its run."""

    method: str
    rate: float
    outcome: Outcome


def tune_rates(
    configs: Sequence[RunConfig],
    *,
    rates: Sequence[str],
    out: Path,
    hooks: Hooks,
    say: Callable[[str], None],
    jobs: int = 1,
) -> tuple[list[Path], list[Outcome]]:
    """Try every rate with every trained method; write the evidence and return its files.

    rates: numbers above 0, as text. BenchError for others.
    """
    numbers = _rates(rates)
    tried = [
        replace(config, learning_rate=rate, shuffled=False)
        for config in configs
        if config.method != FLOOR
        for rate in numbers
    ]
    outcomes = run_grid(tried, hooks=hooks, say=say, jobs=jobs)
    trials = [
        Trial(method=config.method, rate=config.learning_rate or 0.0, outcome=outcome)
        for config, outcome in zip(tried, outcomes, strict=True)
    ]
    return write_evidence(out, evidence(trials)), outcomes


def _rates(texts: Sequence[str]) -> list[float]:
    try:
        rates = [float(text) for text in texts]
    except ValueError:
        rates = []
    if not rates or not all(0 < rate < 1e6 for rate in rates):
        raise BenchError(f"--rates '{','.join(texts)}' is no list of rates. Write for example 1e-4,1e-3.")
    return list(dict.fromkeys(rates))


def evidence(trials: Sequence[Trial]) -> dict[str, Any]:
    """Return the tuning's evidence as JSON values, with the chosen rate of each method.

    Chosen is the rate with the best mean criterion; a run that failed (diverged) is kept with its
    error and never chosen. BenchError if the runs differ in protocol, or one saw the test side.
    """
    records = [t.outcome.record for t in trials if t.outcome.record is not None]
    if not records:
        raise BenchError("no learning rate could be tried: every run failed, see above.")
    _check(records)
    first = records[0]
    return {
        "suite": first.suite,
        "task": first.task,
        "side": first.protocol["eval_side"],
        "budget": dict(first.protocol["budget"]),
        "protocol_hash": first.protocol_hash,
        "items": first.splits.eval.n,
        "seed": first.seed,
        "criterion": CRITERION,
        "judge": first.metrics[CRITERION].judge,
        "rates": sorted({t.rate for t in trials}),
        "methods": {
            m: _method([t for t in trials if t.method == m]) for m in dict.fromkeys(t.method for t in trials)
        },
    }


def _check(records: Sequence[RunRecord]) -> None:
    hashes = {record.protocol_hash for record in records}
    if len(hashes) > 1:
        raise BenchError(f"the trials have {len(hashes)} protocols; they cannot be compared.")
    if records[0].protocol["eval_side"] == "test":
        raise BenchError("learning rates are never chosen on the test side. Use --side val.")


def _method(trials: Sequence[Trial]) -> dict[str, Any]:
    tried = {f"{t.rate:g}": _trial(t) for t in sorted(trials, key=lambda t: t.rate)}
    values = {rate: entry[CRITERION]["value"] for rate, entry in tried.items() if CRITERION in entry}
    chosen = max(values, key=lambda rate: values[rate], default=None)
    rates = sorted(t.rate for t in trials)
    return {
        "chosen": None if chosen is None else float(chosen),
        "at_the_edge": chosen is not None and len(rates) > 1 and float(chosen) in {rates[0], rates[-1]},
        "devices": sorted({made_on(t.outcome.record.environment) for t in trials if t.outcome.record}),
        "trials": tried,
    }


def _trial(trial: Trial) -> dict[str, Any]:
    record = trial.outcome.record
    if record is None:
        return {"error": trial.outcome.error}
    own = [n for n in record.metrics if n in EVIDENCE or record.metrics[n].judge == "none"]
    values = {name: dataclasses.asdict(record.metrics[name]) for name in own}
    return {
        "run_id": record.run_id,
        "train_seconds": record.cost.train_seconds,
        **{n: {k: v[k] for k in ("value", "low", "high")} for n, v in sorted(values.items())},
    }


def write_evidence(folder: Path, found: Mapping[str, Any]) -> list[Path]:
    """Write the evidence as JSON and as a Markdown table; methods tuned earlier are kept.

    BenchError if the file there is of another protocol.
    """
    name = f"{found['suite']}-{found['task']}"
    path = folder / f"{name}.json"
    merged = {**found, "methods": {**_earlier(path, found), **found["methods"]}}
    merged["methods"] = dict(sorted(merged["methods"].items()))
    write_json(path, merged)
    table = folder / f"{name}.md"
    atomic_write(table, _markdown(merged).encode())
    return [path, table]


def _earlier(path: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    if not path.exists():
        return {}
    there: _Evidence = read_json(path, of=_Evidence, loose=True)  # errors have line ends
    if (there["protocol_hash"], there["seed"]) != (found["protocol_hash"], found["seed"]):
        raise BenchError(
            f"{path} holds trials of another protocol or seed. Move it away, or give another --out."
        )
    return dict(there["methods"])


def _markdown(found: Mapping[str, Any]) -> str:
    budget = found["budget"]
    lines = [
        f"Learning rates on {found['suite']} / {found['task']}, {found['side']} side "
        f"({found['items']} items), {budget['train_images']} training images, seed {found['seed']}: "
        f"mean {found['criterion']} to the target ({found['judge']}) with its 95% interval. Chosen in "
        "bold; protocol " + found["protocol_hash"][:12] + ".",
        "",
        "| method | " + " | ".join(f"{rate:g}" for rate in found["rates"]) + " |",
        "|:--" + "|--:" * len(found["rates"]) + "|",
    ]
    for method, entry in found["methods"].items():
        cells = [_cell(entry, f"{rate:g}", found["criterion"]) for rate in found["rates"]]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    devices = {d for entry in found["methods"].values() for d in entry.get("devices", ())}
    if devices:  # evidence of before they were kept says nothing
        lines += ["", f"Trained on {'; '.join(sorted(devices))}."]
    edges = [m for m, entry in found["methods"].items() if entry["at_the_edge"]]
    if edges:
        lines += ["", f"Chosen at the edge of the grid: {', '.join(edges)}."]
    return "\n".join(lines) + "\n"


def _cell(entry: Mapping[str, Any], rate: str, criterion: str) -> str:
    trial = entry["trials"].get(rate)
    if trial is None:
        return "–"
    if criterion not in trial:
        return "failed"
    v = trial[criterion]
    text = f"{v['value']:.3f} [{v['low']:.3f}, {v['high']:.3f}]"
    return f"**{text}**" if entry["chosen"] == float(rate) else text
