"""Fair learning rates: one grid for every method, judged on the validation side alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NotRequired

from pydantic import with_config
from typing_extensions import TypedDict

from bench.config import RunConfig
from bench.content import Count, Flag, Number, Text, atomic_write, read_json, write_json
from bench.grid import Outcome, run_grid
from bench.record import made_on
from bench.registry import FLOOR
from bench.types import BenchError, Hooks

CRITERION = "cosine"  # to the target, in the judge's features: paired, and not about style alone
EVIDENCE = ("cosine", "fd", "kid", "retrieval", "mae", "clip")


class _Value(TypedDict):
    value: Number
    low: Number
    high: Number


@with_config(extra="allow", allow_inf_nan=False)
class _Trial(TypedDict):
    """A trial in the evidence's file: the criterion, or the error of a run that failed."""

    cosine: NotRequired[_Value]
    error: NotRequired[Text]


class _Tuned(TypedDict):
    chosen: Number | None
    at_the_edge: Flag
    devices: NotRequired[list[Text]]
    trials: Mapping[Text, _Trial]


@with_config(extra="allow")
class _Evidence(TypedDict):
    protocol_hash: Text
    seed: Count
    methods: Mapping[Text, _Tuned]


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

    rates: numbers above 0, as text. BenchError for others, and where a run would see the test side.
    """
    numbers = _numbers(rates)
    if any(config.side != "val" for config in configs):
        raise BenchError("learning rates are never chosen on the test side. Use --side val.")
    trials = [
        replace(config, learning_rate=rate, shuffled=False)
        for config in configs
        if config.method != FLOOR
        for rate in numbers
    ]
    outcomes = run_grid(trials, hooks=hooks, say=say, jobs=jobs)
    return write_evidence(out, evidence(outcomes)), outcomes


def _numbers(texts: Sequence[str]) -> list[float]:
    try:
        rates = [float(text) for text in texts]
    except ValueError:
        rates = []
    if not rates or not all(0 < rate < 1e6 for rate in rates):
        raise BenchError(f"--rates '{','.join(texts)}' is no list of rates. Write for example 1e-4,1e-3.")
    return list(dict.fromkeys(rates))


def evidence(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the tuning's evidence as JSON values, with the chosen rate of each method.

    Chosen is the rate with the best mean criterion; a run that failed (diverged) is kept with its
    error and never chosen. BenchError if the runs differ in protocol.
    """
    records = [outcome.record for outcome in outcomes if outcome.record is not None]
    if not records:
        raise BenchError("no learning rate could be tried: every run failed, see above.")
    hashes = {record.protocol_hash for record in records}
    if len(hashes) > 1:
        raise BenchError(f"the trials have {len(hashes)} protocols; they cannot be compared.")
    first = records[0]
    methods: dict[str, dict[float, Outcome]] = {}
    for outcome in outcomes:
        methods.setdefault(outcome.config.method, {})[outcome.config.learning_rate or 0.0] = outcome
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
        "rates": sorted({rate for tried in methods.values() for rate in tried}),
        "methods": {method: _method(tried) for method, tried in methods.items()},
    }


def _method(tried: Mapping[float, Outcome]) -> dict[str, Any]:
    """Return the evidence of one method; tried: learning rate -> outcome."""
    trials = {rate: _trial(tried[rate]) for rate in sorted(tried)}
    values = {rate: trial[CRITERION]["value"] for rate, trial in trials.items() if CRITERION in trial}
    chosen = max(values, key=lambda rate: values[rate], default=None)
    return {
        "chosen": chosen,
        "at_the_edge": len(tried) > 1 and chosen in {min(tried), max(tried)},
        "devices": sorted({made_on(o.record.environment) for o in tried.values() if o.record}),
        "trials": {f"{rate:g}": trial for rate, trial in trials.items()},
    }


def _trial(outcome: Outcome) -> dict[str, Any]:
    record = outcome.record
    if record is None:
        return {"error": outcome.error}
    values = {
        name: {"value": metric.value, "low": metric.low, "high": metric.high}
        for name, metric in sorted(record.metrics.items())
        if name in EVIDENCE or metric.judge == "none"
    }
    return {"run_id": record.run_id, "train_seconds": record.cost.train_seconds, **values}


def write_evidence(folder: Path, new: Mapping[str, Any]) -> list[Path]:
    """Write the evidence as JSON and as a Markdown table; methods tuned earlier are kept.

    BenchError if the file there is of another protocol or seed.
    """
    path = folder / f"{new['suite']}-{new['task']}.json"
    earlier: Mapping[str, Any] = {}
    if path.exists():
        there: _Evidence = read_json(path, of=_Evidence, loose=True)  # errors have line ends
        if (there["protocol_hash"], there["seed"]) != (new["protocol_hash"], new["seed"]):
            raise BenchError(
                f"{path} holds trials of another protocol or seed. Move it away, or give another --out."
            )
        earlier = there["methods"]
    merged = {**new, "methods": dict(sorted({**earlier, **new["methods"]}.items()))}
    write_json(path, merged)
    table = path.with_suffix(".md")
    atomic_write(table, _markdown(merged).encode())
    return [path, table]


def _markdown(found: Mapping[str, Any]) -> str:
    budget, rates = found["budget"], [f"{rate:g}" for rate in found["rates"]]
    lines = [
        f"Learning rates on {found['suite']} / {found['task']}, {found['side']} side "
        f"({found['items']} items), {budget['train_images']} training images, seed {found['seed']}: "
        f"mean {found['criterion']} to the target ({found['judge']}) with its 95% interval. Chosen in "
        "bold; protocol " + found["protocol_hash"][:12] + ".",
        "",
        f"| method | {' | '.join(rates)} |",
        "|:--" + "|--:" * len(rates) + "|",
    ]
    for method, entry in found["methods"].items():
        lines.append(f"| {method} | {' | '.join(_cell(entry, rate) for rate in rates)} |")
    devices = {device for entry in found["methods"].values() for device in entry.get("devices", ())}
    if devices:  # evidence of before they were kept says nothing
        lines += ["", f"Trained on {'; '.join(sorted(devices))}."]
    edges = [method for method, entry in found["methods"].items() if entry["at_the_edge"]]
    if edges:
        lines += ["", f"Chosen at the edge of the grid: {', '.join(edges)}."]
    return "\n".join(lines) + "\n"


def _cell(entry: Mapping[str, Any], rate: str) -> str:
    trial = entry["trials"].get(rate)
    if trial is None:
        return "–"
    if CRITERION not in trial:
        return "failed"
    metric = trial[CRITERION]
    text = f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"
    return f"**{text}**" if entry["chosen"] == float(rate) else text
