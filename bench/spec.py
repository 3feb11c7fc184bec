"""What a run is to do, the name that follows from it, and the checks before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.artifacts import pick_items
from bench.content import digest_json
from bench.engine import Execution
from bench.suites import Budget, Protocol, Suite
from bench.types import BenchError, Method, unknown
from bench.weights import Weights


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What to run. options: the method's own; learning_rate None: the suite's.

    shuffled: whether the items are sampled once more under other items' conditions. allow_leak: go
    on where evaluation items were seen in training or pretraining. execution: how training is
    carried out. weights: to begin with, from outside.
    """

    suite: Suite
    task: str
    method: Method
    budget: Budget
    seed: int
    results: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: float | None = None
    device: str = "cpu"
    batch: int = 32
    checkpoint_every: int = 100
    shuffled: bool = True
    allow_leak: bool = False
    execution: Execution = field(default_factory=Execution)
    weights: Weights | None = None


def learning_rate(spec: RunSpec) -> float:
    """Return the run's learning rate: its own, else the method's in the suite, else the suite's."""
    if spec.learning_rate is not None:
        return spec.learning_rate
    return spec.suite.learning_rates.get(spec.method.name, spec.suite.learning_rate)


def run_id(spec: RunSpec, options: Mapping[str, Any], protocol: Protocol) -> str:
    """Name a run by what it is: suite, task, method, budget, seed and a hash of the rest."""
    rest = {
        "protocol": protocol.hash,
        "options": dict(options),
        "learning_rate": learning_rate(spec),
    }
    parts = (spec.suite.name, spec.task, spec.method.name, spec.budget.name, f"s{spec.seed}")
    return "-".join((*parts, digest_json(rest)[:8]))


def train_items(side: Sequence[str], budget: Budget) -> tuple[str, ...]:
    """Return the items of the train side that a budget trains on; BenchError for more than there are."""
    if budget.train_items is None:
        return tuple(side)
    if not 0 < budget.train_items <= len(side):
        raise BenchError(
            f"--train-items {budget.train_items}: the train side has {len(side):,} items. Give 1 to "
            f"{len(side)}, or leave it away to train on all."
        )
    return pick_items(side, budget.train_items)


def check_options(method: Method, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the method's options with defaults filled in; BenchError for one it does not have."""
    for name in options:
        if name not in method.options:
            raise unknown(f"option of {method.name}", name, method.options)
    return {**method.options, **options}


def check_same(found: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    """Raise BenchError if a run folder was begun under another configuration, saying what differs."""
    plain = json.loads(json.dumps(wanted))
    if not isinstance(found, dict):
        raise BenchError(f"run.json in {folder} is damaged. Delete the folder to start again.")
    differ = [f"{k}: {found.get(k)!r} there, {v!r} now" for k, v in plain.items() if found.get(k) != v]
    if differ:
        raise BenchError(
            f"{folder} was begun under another protocol ({'; '.join(differ)}). Delete the folder or "
            "choose another with --results."
        )
