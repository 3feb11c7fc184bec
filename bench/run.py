"""Train, sample, score, record, in a row: what `bench run` and every grid call."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from bench import record as records
from bench.artifacts import load_weights, mosaic, pick_items, save_weights, show_condition
from bench.base import Base, load_base
from bench.checkpoint import Stopped, Trainable
from bench.content import Cache, atomic_write, digest_json, read_json, write_json
from bench.cost import Ledger, be_deterministic
from bench.data.seen import load_seen
from bench.data.splits import Splits
from bench.judges import load_judge
from bench.prepare import Prepared, prepare
from bench.publish import build_record, check_sides, now
from bench.randomness import derangement, generator
from bench.sample import load_images, png, sample_to_folder, to_bytes
from bench.score import Evaluator, Scores, items_json
from bench.suites import Budget, Protocol, Suite
from bench.tasks import find_task
from bench.train import TrainResult, train
from bench.types import BenchError, Dataset, Method, Refused, Task, refusal, unknown
from bench.weights import Weights, described, open_source, shown

ADAPTER = "work/adapter.safetensors"
CONTACT_ITEMS = 24


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What to run. options: the method's own; learning_rate None: the suite's.

    shuffled: whether the items are sampled once more under other items' conditions. allow_leak: go
    on where evaluation items were seen in training or pretraining. weights: to begin with, from outside.
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
    weights: Weights | None = None


class Hooks:
    """How a run tells of its progress and learns that it should stop; does nothing by itself."""

    def stage(self, name: str, total: int) -> None:
        """A stage of `total` steps begins."""

    def tick(self, done: int, total: int, note: str = "") -> None:
        """`done` of `total` steps of the stage are finished."""

    def stop(self) -> int | None:
        """Return an exit code once somebody asked to stop."""
        return None


class Run:
    """One run in its folder; each stage reads what earlier ones left on disk."""

    def __init__(self, spec: RunSpec, hooks: Hooks | None = None) -> None:
        """Load data, splits, base and judges first, so that a wrong path fails at once."""
        self.spec, self.hooks, self.cache = spec, hooks or Hooks(), Cache()
        spec.suite.check_task(spec.task)
        self.task: Task = find_task(spec.task)
        reason = refusal(spec.method, self.task)
        if reason:
            raise Refused(f"{spec.method.name} cannot do {spec.task}: {reason}")
        self.options = check_options(spec.method, spec.options)
        self.source = open_source(spec.weights, spec.method)
        self.given = described(spec.weights, self.source)
        self.shown: Task = shown(self.task, spec.weights)
        self.facts: dict[str, str] = {}
        self.dataset: Dataset = spec.suite.dataset()
        self.splits: Splits = spec.suite.splits()
        assert spec.suite.base is not None, "find_suite refuses suites without a base"
        self.base: Base = load_base(spec.suite.base, device=spec.device)
        self.feature_judge = load_judge(spec.suite.feature_judge)
        self.clip_judge = load_judge(spec.suite.clip_judge) if spec.suite.clip_judge else None
        self.train_ids = self.splits.side("train")
        self.eval_ids = pick_items(self.splits.side(spec.suite.eval_side), spec.budget.eval_items)
        self.split_info, self.leaks = check_sides(
            self.dataset, self.splits, train=self.train_ids, evaluation=self.eval_ids,
            side=spec.suite.eval_side, seen=load_seen(spec.suite.base, base=self.base.digest),
            allow_leak=spec.allow_leak, cache=self.cache,
        )  # fmt: skip
        self.protocol = self._protocol()
        given = {**self.given, "sha256": self.source.sha256} if self.source else {}
        self.id = run_id(spec, {**self.options, **given}, self.protocol)
        self.folder = spec.results / self.id
        self.work = self.folder / "work"
        be_deterministic(spec.device)

    def _protocol(self) -> Protocol:
        suite = self.spec.suite
        judges = {"features": self.feature_judge, "clip": self.clip_judge}
        return Protocol(
            suite=suite.name, task=self.spec.task, dataset=self.dataset.digest,
            splits=self.splits.digest, base=self.base.digest, eval_side=suite.eval_side,
            budget=self.spec.budget, training=suite.training, sampler=suite.sampler,
            judges={role: {"name": judge.name, "digest": judge.digest, "resize": judge.resize}
                    for role, judge in judges.items() if judge is not None},
            task_version=self.task.version,
        )  # fmt: skip

    @property
    def learning_rate(self) -> float:
        """The learning rate in force."""
        return learning_rate(self.spec)

    @cached_property
    def train_data(self) -> Prepared:
        """The train side, encoded."""
        mirror = self.spec.suite.training.mirror
        return self._prepare(self.train_ids, mirror=mirror)

    @cached_property
    def eval_data(self) -> Prepared:
        """The evaluation items, encoded."""
        return self._prepare(self.eval_ids, mirror=False)

    def _prepare(self, ids: tuple[str, ...], *, mirror: bool) -> Prepared:
        self.hooks.stage(f"prepare {len(ids)} items", 1)
        return prepare(self.base, dataset=self.dataset, ids=ids, task=self.shown, mirror=mirror,
                       cache=self.cache)  # fmt: skip

    @cached_property
    def denoiser(self) -> Any:
        """The method's denoiser, freshly initialised from the seed, or with weights from outside."""
        import torch

        torch.manual_seed(self.spec.seed)
        method: Any = self.spec.method
        try:
            built = method.build(self.base, self.shown, **self.options)
            if self.source is not None:
                self.facts = method.load(built, self.source)
        except (ValueError, TypeError) as error:
            raise BenchError(f"method {method.name}: {error}") from error
        return built.to(self.spec.device)

    @property
    def trains(self) -> bool:
        """Whether the run trains, as far as it is asked to; a method may have nothing to train."""
        return self.spec.weights is None or self.spec.weights.train

    def begin(self) -> None:
        """Claim the run folder: a folder begun under another configuration is refused."""
        wanted = {
            "run_id": self.id, "protocol_hash": self.protocol.hash, "method": self.spec.method.name,
            "options": {**self.options, **self.given}, "seed": self.spec.seed,
            "learning_rate": self.learning_rate, "device": self.spec.device,
        }  # fmt: skip
        path = self.work / "run.json"
        if path.exists():
            check_same(read_json(path), wanted, self.folder)
        else:
            write_json(path, {**wanted, "started": now()})

    def train(self) -> TrainResult:
        """Train (or go on training); the weights lie in work/adapter.safetensors."""
        self.begin()
        if not self.trains:
            nothing = TrainResult(steps=0, images=0, seconds=0.0, dead=0, curve=[])
            write_json(self.work / "train.json", vars(nothing))
            return nothing
        trainable = Trainable(self.denoiser)
        spec, data = self.spec, self.train_data if trainable.parameters else self.eval_data
        images = spec.budget.images(spec.method.name)
        if trainable.parameters:
            self.hooks.stage("train", images // spec.suite.training.batch)
        with self._ledger():
            result = train(
                self.denoiser, base=self.base, data=data, training=spec.suite.training,
                images=images, learning_rate=self.learning_rate, seed=spec.seed,
                folder=self.work, tick=lambda s, n, v: self.hooks.tick(s, n, f"loss {v:.4f}"),
                stop=self.hooks.stop, checkpoint_every=spec.checkpoint_every,
            )  # fmt: skip
        if trainable.parameters and not (self.folder / ADAPTER).exists():
            save_weights(self.folder / ADAPTER, trainable)
        write_json(self.work / "train.json", vars(result))
        return result

    def load_trained(self) -> None:
        """Put the trained weights into the denoiser; BenchError if training has not finished."""
        trainable = Trainable(self.denoiser)
        if not trainable.parameters or not self.trains:
            return
        if not (self.folder / ADAPTER).exists():
            raise BenchError(f"{self.folder} holds no trained weights; run `bench train` first.")
        load_weights(self.folder / ADAPTER, trainable)

    def sample(self) -> float:
        """Sample every evaluation item, then under shuffled conditions; return seconds an image."""
        self.begin()
        self.load_trained()
        self.denoiser.eval()
        data = self.eval_data
        with self._ledger() as ledger:
            for name, source in self._sets().items():
                self.hooks.stage(f"sample {name}", len(self.eval_ids))
                sample_to_folder(
                    self.denoiser, self.work / name, base=self.base, data=data,
                    sampler=self.spec.suite.sampler, seed=self.spec.seed, batch=self.spec.batch,
                    condition_of=source, tick=self.hooks.tick, stop=self.hooks.stop,
                    spent=lambda seconds, images: ledger.add(
                        sample_seconds=seconds, sample_images=images
                    ),
                )  # fmt: skip
        seconds = ledger.values["sample_seconds"] / ledger.values["sample_images"]
        write_json(self.work / "sample.json", {"seconds_per_image": seconds})
        return seconds

    def _ledger(self) -> Ledger:
        return Ledger(self.work / "cost.json", device=self.spec.device)

    def _sets(self) -> dict[str, np.ndarray | None]:
        """The sample sets of this method: its own and, where it has a condition, the shuffled."""
        sets: dict[str, np.ndarray | None] = {"samples": None}
        if self.spec.method.conditioned and self.spec.shuffled:
            sets["shuffled"] = derangement(self.spec.seed, len(self.eval_ids))
        return sets

    def score(self) -> records.RunRecord:
        """Score all sets and the reference rows, write items, contact sheet and record."""
        started = self._require_finished()
        self.hooks.stage("score", 1)
        evaluator = Evaluator(
            examples=[self.dataset[i] for i in self.eval_ids], task=self.task,
            features=self.feature_judge, clip=self.clip_judge, cache=self.cache,
            training=self._real_images(),
        )  # fmt: skip
        rows: dict[str, Scores] = {}
        for name, images in self._image_sets().items():
            self._stop_if_asked()
            rows[name] = evaluator.evaluate(images())
        curve = read_json(self.work / "train.json")["curve"]
        write_json(self.folder / records.ITEMS_FILE, items_json(self.eval_ids, rows, curve=curve))
        self._contact(load_images(self.work / "samples", self.eval_ids))
        record = build_record(self, rows, started=started)
        records.write_record(self.folder, record)
        return record

    def _stop_if_asked(self) -> None:
        code = self.hooks.stop()
        if code is not None:
            raise Stopped(code)

    def _image_sets(self) -> dict[str, Callable[[], np.ndarray]]:
        """What is scored, by row name: own sets, then the reference rows."""
        own = {n: partial(load_images, self.work / n, self.eval_ids) for n in self._sets()}
        return {
            **own,
            "real training images": self._real_images,
            "autoencoder": self._reconstructions,
        }

    def _require_finished(self) -> str:
        for name in ("run.json", "train.json", "sample.json"):
            if not (self.work / name).exists():
                raise BenchError(
                    f"{self.work / name} is missing: train and sample first, or use `bench run`."
                )
        return str(read_json(self.work / "run.json")["started"])

    def _real_images(self) -> np.ndarray:
        """As many real training images as there are evaluation items, the same for every run."""
        order = generator(0, "reference").permutation(len(self.train_ids))
        picked = [self.train_ids[i] for i in order[: len(self.eval_ids)]]
        return np.stack([self.dataset[i].image for i in picked])

    def _reconstructions(self) -> np.ndarray:
        pixels = self.base.decode(self.eval_data.latents[0])
        return to_bytes(pixels.permute(0, 2, 3, 1).cpu().numpy())

    def _contact(self, samples: np.ndarray) -> None:
        from bench.report.figures import contact_sheet

        shown = pick_items(self.eval_ids, CONTACT_ITEMS)
        chosen = [self.eval_ids.index(i) for i in shown]
        conditions = [show_condition(self.eval_data.conditions[0, r].numpy()) for r in chosen]
        rows = {
            "condition": np.stack(conditions),
            "sample": samples[chosen],
            "target": self.eval_data.images[chosen],
        }
        title = f"{self.id} (LEAK: {self.leaks.items} items)" if self.leaks.items else self.id
        contact_sheet(rows, self.folder / "contact.png", title=title)
        atomic_write(self.work / "samples.png", png(mosaic(samples)))

    def finished(self) -> records.RunRecord | None:
        """Return the record if this run is already done and whole."""
        if not (self.folder / records.RECORD_FILE).exists():
            return None
        return records.load_record(self.folder)

    def forget(self) -> None:
        """Delete this run's folder, so that it starts afresh."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def all(self) -> records.RunRecord:
        """Run every stage that is not done yet."""
        found = self.finished()
        if found is not None:
            return found
        self.train()
        self._stop_if_asked()
        self.sample()
        self._stop_if_asked()
        return self.score()


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
    differ = [
        f"{k}: {found.get(k)!r} there, {v!r} now" for k, v in plain.items() if found.get(k) != v
    ]
    if differ:
        raise BenchError(
            f"{folder} was begun under another protocol ({'; '.join(differ)}). Delete the folder or "
            "choose another with --results."
        )
