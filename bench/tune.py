"""Fair learning rates: one grid for every method, judged on the validation side alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NotRequired

from pydantic import with_config
from typing_extensions import TypedDict

from bench import registry
from bench.config import RunConfig, RunSpec, option_text
from bench.content import Count, Flag, Number, Text, atomic_write, read_json, write_json
from bench.grid import Outcome, run_grid
from bench.record import made_on
from bench.registry import FLOOR
from bench.reporting.render import Grid, to_markdown
from bench.reporting.render import Text as Cell
from bench.running import identify
from bench.suites import resolve
from bench.types import BenchError, Hooks

CRITERION = "cosine"  # to the target, in the judge's features: paired, and not about style alone
STANDARD = "standard"
_MOST_RATES = 16
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


@with_config(extra="allow")
class _Tuned(TypedDict):
    chosen: Number | None
    at_the_edge: Flag
    devices: NotRequired[list[Text]]
    method: NotRequired[Text]
    options: NotRequired[Mapping[str, Any]]
    trials: Mapping[Text, _Trial]


@with_config(extra="allow")
class _Evidence(TypedDict):
    protocol_hash: Text
    budget: Mapping[Text, Any]
    seed: NotRequired[Count]
    seeds: NotRequired[list[Count]]
    methods: Mapping[Text, _Tuned]


def tune_rates(
    configs: Sequence[RunConfig],
    *,
    rates: Sequence[str],
    out: Path,
    hooks: Hooks,
    say: Callable[[str], None],
    extend: bool = False,
    **where: Any,
) -> tuple[list[Path], list[Outcome]]:
    """Try every rate with every trained method, task and seed; write the evidence and return its files.

    extend: go on beyond the grid, in its own steps, with every method whose best rate lies at its edge. Where
    one lies there in the end, and where the suite has another rate, it is said. rates: numbers above 0, as
    text; where: see `run_grid`. BenchError for others, where a run would see the test side, and where the
    evidence of `out` is of another protocol or other seeds.
    """
    numbers = _numbers(rates)
    side = registry.load("suite", configs[0].suite).choose_side
    configs = [replace(config, side=config.side or side) for config in configs]
    if any(config.side != side for config in configs):
        raise BenchError(f"learning rates are never chosen where they are reported. Use --side {side}.")
    tried = [replace(config, shuffled=False) for config in configs if config.method != FLOOR]
    _refuse_other_evidence(tried, out)
    keys = [(config.task, _called(config)) for config in tried]
    trials = [replace(config, learning_rate=rate) for config in tried for rate in numbers]
    outcomes: list[Outcome] = []
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    while trials or not outcomes:
        outcomes += run_grid(trials, hooks=hooks, say=say, **where)
        files: list[Path] = []
        for task in dict.fromkeys(config.task for config in configs):
            of_task = evidence([outcome for outcome in outcomes if outcome.config.task == task])
            files += write_evidence(out, of_task)
            there = json.loads(files[-2].read_text())["methods"]
            found |= {(task, method): there[method] for method in of_task["methods"]}
        further = {key: _beyond(entry) for key, entry in found.items() if extend}
        beyond = [(config, further.get(key)) for config, key in zip(tried, keys, strict=True)]
        trials = [replace(config, learning_rate=rate) for config, rate in beyond if rate]
    plain = {key: replace(config, learning_rate=None) for config, key in zip(tried, keys, strict=True)}
    for (task, method), entry in found.items():
        best, suites = entry["chosen"], resolve(plain[task, method]).learning_rate
        if entry["at_the_edge"]:
            say(f"{task}, {method}: {best:g} lies at the edge of the grid; try rates beyond it (--extend)")
        if best not in (None, suites):
            say(f"{task}, {method}: {best:g} is chosen, the suite has {suites:g}")
    return files, outcomes


def _refuse_other_evidence(tried: Sequence[RunConfig], out: Path) -> None:
    """Refuse, before the first trial, evidence beside which new one could not be written."""
    seeds = sorted({config.seed for config in tried})
    for config in {config.task: config for config in tried}.values():
        spec = resolve(replace(config, method=FLOOR, options={}))  # which no task refuses
        path = _path(out, spec.suite.name, spec.task.name, spec.budget.name)
        if path.exists():
            _earlier(path, protocol_hash=identify(spec).protocol.hash, seeds=seeds)


def _path(folder: Path, suite: str, task: str, budget: str) -> Path:
    return folder / f"{suite}-{task}{'' if budget == STANDARD else f'-{budget}'}.json"


def _earlier(path: Path, *, protocol_hash: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Return the methods of the evidence there, which must be of this protocol and these seeds."""
    there: _Evidence = read_json(path, of=_Evidence, loose=True)  # errors have line ends
    if (there["protocol_hash"], _seeds(there)) != (protocol_hash, list(seeds)):
        raise BenchError(f"{path} holds trials of another protocol or seeds. Move it, or change --out.")
    return dict(there["methods"])


def _beyond(entry: Mapping[str, Any]) -> float | None:
    """Return the next rate beyond the edge where the best one lies, None where it lies inside."""
    rates = sorted(map(float, entry["trials"]))
    if not entry["at_the_edge"] or len(rates) >= _MOST_RATES:
        return None
    if entry["chosen"] == rates[0]:
        rates.reverse()
    step = rates[-2] / rates[-3] if len(rates) > 2 else rates[-1] / rates[-2]  # 3 and 3.3 in turn
    return float(f"{rates[-1] * step:.3g}")


def _numbers(texts: Sequence[str]) -> list[float]:
    try:
        rates = [float(text) for text in texts]
    except ValueError:
        rates = []
    if not rates or not all(0 < rate < 1e6 for rate in rates):
        raise BenchError(f"--rates '{','.join(texts)}' is no list of rates. Write for example 1e-4,1e-3.")
    return list(dict.fromkeys(rates))


def evidence(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the tuning's evidence on one task as JSON values, with the chosen rate of each method.

    Chosen is the rate with the best mean criterion over all seeds; one that failed (diverged) at a seed is
    kept with its error and never chosen. BenchError if the runs differ in protocol.
    """
    records = [outcome.record for outcome in outcomes if outcome.record is not None]
    if not records:
        raise BenchError("no learning rate could be tried: every run failed, see above.")
    first, hashes = records[0], {record.protocol_hash for record in records}
    if len(hashes) > 1:
        raise BenchError(f"the trials have {len(hashes)} protocols; they cannot be compared.")
    methods: dict[str, dict[float, list[Outcome]]] = {}
    for outcome in outcomes:
        tried = methods.setdefault(_called(outcome.config), {})
        tried.setdefault(outcome.config.learning_rate or 0.0, []).append(outcome)
    return {
        "suite": first.suite,
        "task": first.task,
        "side": first.protocol["eval_side"],
        "budget": dict(first.protocol["budget"]),
        "protocol_hash": first.protocol_hash,
        "items": first.splits.eval.n,
        "seeds": sorted({outcome.config.seed for outcome in outcomes}),
        "draws": first.protocol["sampler"].get("draws", 1),
        "criterion": CRITERION,
        "judge": first.metrics[CRITERION].judge,
        "methods": {method: _method(tried) for method, tried in methods.items()},
    }


def _called(config: RunConfig) -> str:
    return " ".join([config.method, *(f"{k}={option_text(v)}" for k, v in sorted(config.options.items()))])


def _method(tried: Mapping[float, Sequence[Outcome]]) -> dict[str, Any]:
    records = [o.record for outcomes in tried.values() for o in outcomes if o.record]
    what: dict[str, Any] = {}
    for record in records[:1]:
        options = {k: v for k, v in record.options.items() if k != "learning_rate"}
        what = {"method": record.method, "options": options}
    what["devices"] = sorted({made_on(record.environment) for record in records})
    trials = {f"{rate:g}": _trial(tried[rate]) for rate in sorted(tried)}
    better = {name: metric.better for record in records[:1] for name, metric in record.metrics.items()}
    return {**what, **_chosen(trials, better)}


def _chosen(trials: Mapping[str, Mapping[str, Any]], better: Mapping[str, str] = {}) -> dict[str, Any]:
    """Return the trials and which rate is best by the criterion, and by metrics of which `better` tells."""

    def best(metric: str, sign: int) -> float | None:
        values = {rate: trial[metric]["value"] for rate, trial in trials.items() if metric in trial}
        known = {rate: sign * value for rate, value in values.items() if value is not None}
        return float(max(known, key=known.__getitem__)) if known else None

    chosen, rates = best(CRITERION, 1), sorted(map(float, trials))
    names = sorted({name for trial in trials.values() for name in trial if name in better} - {CRITERION})
    others = {n: best(n, 1 if better[n] == "higher" else -1) for n in names if better[n] != "none"}
    at_the_edge = len(rates) > 1 and chosen in (rates[0], rates[-1])
    told = {"best_by": others} if others else {}
    return {"chosen": chosen, "at_the_edge": at_the_edge, **told, "trials": dict(trials)}


def _trial(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the means over seeds of values and of the ends of their intervals over items."""
    records = [outcome.record for outcome in outcomes if outcome.record is not None]
    for outcome in (outcome for outcome in outcomes if outcome.record is None):
        return {"error": outcome.error or outcome.refused}
    values: dict[str, dict[str, Any]] = {}
    for name, metric in sorted(records[0].metrics.items()):
        if name in EVIDENCE or metric.judge == "none":
            each = [record.metrics[name] for record in records]
            values[name] = {end: _mean([getattr(m, end) for m in each]) for end in ("value", "low", "high")}
            values[name]["by_seed"] = [m.value for m in each]
    seconds = _mean([record.cost.train_seconds for record in records])
    return {"run_ids": [record.run_id for record in records], "train_seconds": seconds, **values}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def tuned_rate(folder: Path, spec: RunSpec) -> float | None:
    """Return the rate chosen for a method, options and task at the budget nearest by ratio; None for none."""
    asked, found = json.loads(json.dumps(dict(spec.options))), {}
    for path in sorted(folder.glob(f"{spec.suite.name}-{spec.task.name}*.json")):
        there: _Evidence = read_json(path, of=_Evidence, loose=True)
        for entry in there["methods"].values():
            if (entry.get("method"), entry.get("options")) == (spec.method.name, asked):
                found[int(there["budget"]["train_images"])] = entry["chosen"]
    images = spec.budget.images(spec.method.name)
    return found[min(found, key=lambda tried: abs(math.log(tried / images)))] if found else None


def write_evidence(folder: Path, new: Mapping[str, Any]) -> list[Path]:
    """Write the evidence as JSON and as a Markdown table; methods and rates tried earlier are kept.

    A file a task, and of another budget than "standard" one a budget. BenchError if the file there is of
    another protocol or other seeds.
    """
    path = _path(folder, new["suite"], new["task"], str(new["budget"].get("name", STANDARD)))
    methods: dict[str, Any] = {}
    if path.exists():
        methods = _earlier(path, protocol_hash=new["protocol_hash"], seeds=_seeds(new))
    for method, entry in new["methods"].items():
        trials = {**methods.get(method, {}).get("trials", {}), **entry["trials"]}
        if trials.keys() != entry["trials"].keys():
            entry = {k: v for k, v in entry.items() if k != "best_by"} | _chosen(trials)
        methods[method] = entry
    rates = sorted({float(rate) for entry in methods.values() for rate in entry["trials"]})
    merged = {**new, "rates": rates, "methods": dict(sorted(methods.items()))}
    write_json(path, merged)
    table = path.with_suffix(".md")
    atomic_write(table, _markdown(merged).encode())
    return [path, table]


def _seeds(found: Mapping[str, Any]) -> list[int]:
    """Return the seeds of an evidence, which once was of a single one."""
    return list(found["seeds"]) if "seeds" in found else [found["seed"]]


def _markdown(found: Mapping[str, Any]) -> str:
    rates, methods = [f"{rate:g}" for rate in found["rates"]], found["methods"]
    rows = [[Cell(main=method), *(_cell(entry, rate) for rate in rates)] for method, entry in methods.items()]
    devices = sorted({device for entry in methods.values() for device in entry.get("devices", ())})
    edges = [method for method, entry in methods.items() if entry["at_the_edge"]]
    notes = [f"Trained on {'; '.join(devices)}."] if devices else []  # which older evidence does not say
    for method, best in ((m, entry["best_by"]) for m, entry in methods.items() if entry.get("best_by")):
        each = ", ".join(f"{name} {rate:g}" for name, rate in best.items() if rate is not None)
        notes.append(f"{method} by other criteria: {each}.")
    notes += [f"Chosen at the edge of the grid: {', '.join(edges)}."] if edges else []
    about = (
        f"Learning rates on {found['suite']} / {found['task']}, {found['side']} side "
        f"({found['items']} items), {found['budget']['train_images']} training images, seeds "
        f"{', '.join(map(str, _seeds(found)))}, {found.get('draws', 1)} draws: mean {found['criterion']} to "
        f"the target ({found['judge']}) with its 95% interval over items. Chosen in bold; protocol "
        f"{found['protocol_hash'][:12]}."
    )
    table = Grid(("method", *rates), tuple(map(tuple, rows)), about)
    return "\n".join([to_markdown(table), *(f"{n}\n" for n in notes)])


def _cell(entry: Mapping[str, Any], rate: str) -> Cell:
    trial = entry["trials"].get(rate)
    if trial is None or CRITERION not in trial:
        return Cell(main="–" if trial is None else "failed")
    value, low, high = (trial[CRITERION][end] for end in ("value", "low", "high"))
    return Cell(main=f"{value:.3f} [{low:.3f}, {high:.3f}]", bold=entry["chosen"] == float(rate))
