"""Train, sample, score, record, in a row: what `bench run` and every grid call."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from bench import record as records
from bench import registry
from bench.artifacts import load_weights, mosaic, pick_items, save_weights, show_condition
from bench.base.load import Base, load_base
from bench.base.snapshot import find_snapshot
from bench.config import Budget, Protocol, RunConfig, RunSpec, run_id
from bench.content import Cache, atomic_write, read_json, sha256_file, write_json
from bench.cost import Ledger, be_deterministic, reset_peak_memory
from bench.data.latents import Prepared, prepare
from bench.data.seen import load_seen
from bench.data.splits import Splits
from bench.judges import JudgeCard, judge_card, load_judge
from bench.locks import Lock, patient
from bench.processes import Processes, join
from bench.publish import build_record, check_sides, now
from bench.randomness import derangement, generator
from bench.registry import FLOOR
from bench.sampling import check_steps, load_images, png, sample_to_folder, to_bytes
from bench.scoring import Evaluator, Scores, items_json
from bench.suites import changes, resolve
from bench.tiles import MOST_TILES, TILES_FILE, write_tiles
from bench.trained import (
    ADAPTER,
    ADAPTER_DIGEST,
    LOCK,
    Begun,
    Sampled,
    Trained,
    adapter_digest,
    intact,
    take_over,
    training_key,
)
from bench.training.checkpoint import Trainable
from bench.training.engine import Execution, check_execution
from bench.training.loop import TrainResult, train
from bench.types import BenchError, Dataset, Hooks, Refused, Stopped, Task, refusal
from bench.weights import described, load_into, open_source, shown

_DECODED = 64  # images held as floats at once


class _Quiet(Hooks):
    """The hooks of a process that is not the main one: silent, but told to stop as all are."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks

    def stop(self) -> int | None:
        """Return an exit code once somebody asked to stop."""
        return self._hooks.stop()


class Run:
    """One run in its folder; each stage reads what earlier ones left on disk."""

    def __init__(self, spec: RunSpec, hooks: Hooks | None = None) -> None:
        """Load data, splits, base and judges first, so that a wrong path fails at once."""
        self.spec, self.cache = spec, Cache()
        self.processes: Processes = join(spec.device)
        self.hooks = (hooks or Hooks()) if self.processes.main else _Quiet(hooks or Hooks())
        training = spec.suite.training
        check_execution(
            Execution.of(spec.config),
            precision=training.precision,
            batch=training.batch,
            device=spec.device,
            processes=self.processes,
        )
        with self.processes.main_first():
            self._load()
        be_deterministic(spec.device)

    def _load(self) -> None:
        spec = self.spec
        self.task: Task = spec.task
        check_refusal(spec)
        self.options = spec.options
        self.source = open_source(spec.weights, spec.method)
        self.given = described(spec.weights, self.source)
        self.shown: Task = shown(self.task, spec.weights)
        self.facts: dict[str, str] = {}
        self.dataset: Dataset = spec.suite.dataset()
        self.splits: Splits = spec.suite.splits()
        assert spec.suite.base is not None, "resolve refuses suites without a base"
        self.base: Base = load_base(spec.suite.base, device=spec.device, variant=spec.suite.variant)
        check_steps(self.base, spec.suite.sampler)
        self.feature_judge = load_judge(spec.suite.feature_judge)
        self.clip_judge = load_judge(spec.suite.clip_judge) if spec.suite.clip_judge else None
        self.train_ids = train_items(self.splits.side("train"), spec.budget)
        self.eval_ids = pick_items(self.splits.side(spec.suite.eval_side), spec.budget.eval_items)
        self.split_info, self.leaks = check_sides(
            self.dataset,
            self.splits,
            train=self.train_ids,
            evaluation=self.eval_ids,
            side=spec.suite.eval_side,
            seen=load_seen(self.base.folder, base=self.base.digest),
            allow_leak=spec.config.allow_leak,
            cache=self.cache,
        )
        judges = {"features": self.feature_judge, "clip": self.clip_judge}
        cards = {role: judge.card for role, judge in judges.items() if judge is not None}
        outside = {**self.given, "sha256": self.source.sha256} if self.source else {}
        self.identity = _identity(spec, self.dataset, self.splits, self.base.digest, cards, outside)
        self.protocol, self.id = self.identity.protocol, self.identity.run_id
        self.folder = spec.config.results / self.id
        self.work = self.folder / "work"
        self._lock = Lock(self.folder / LOCK, about=self.folder, clean=self.folder)

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
        suite, hooks = self.spec.suite, self.hooks
        hooks.stage(f"prepare {len(ids)} items", 1)
        with self.processes.main_first():
            return prepare(
                self.base,
                dataset=self.dataset,
                ids=ids,
                task=self.shown,
                mirror=mirror,
                cache=self.cache,
                posterior=suite.training.latents == "sample",
                storage=suite.storage,
                hooks=hooks,
            )

    @cached_property
    def denoiser(self) -> Any:
        """The method's denoiser, freshly initialised from the seed, or with weights from outside."""
        import torch

        torch.manual_seed(self.spec.config.seed)
        method: Any = self.spec.method
        try:
            built = method.build(self.base, self.shown, **self.options)
            if self.source is not None:
                self.facts = load_into(built, method=method, source=self.source)
        except (ValueError, TypeError) as error:
            raise BenchError(f"method {method.name}: {error}") from error
        return built.to(self.spec.device)

    @property
    def trains(self) -> bool:
        """Whether the run trains, as far as it is asked to; a method may have nothing to train."""
        return self.spec.weights is None or self.spec.weights.train

    @contextmanager
    def held(self, *, wait: bool = False) -> Iterator[None]:
        """Keep other processes out of the run's folder, and clean up after killed ones.

        The main process does for all of a launch. wait: until a holder has ended, else that is a
        BenchError. Stages hold the folder themselves; around several it is held throughout.
        """
        if not self.processes.main:
            yield
            return
        self._lock.wait = patient(self.hooks.say, self.hooks.stop) if wait else None
        with self._lock:
            yield

    def begin(self) -> None:
        """Claim the run folder: a folder begun under another configuration is refused."""
        wanted = {
            "run_id": self.id,
            "protocol_hash": self.protocol.hash,
            "method": self.spec.method.name,
            "options": {**self.options, **self.given},
            "seed": self.spec.config.seed,
            "learning_rate": self.spec.learning_rate,
            "device": self.spec.device,
        }
        path = self.work / "run.json"
        with self.processes.main_first():
            if path.exists():
                check_same(read_json(path, of=Begun), wanted, self.folder)
            elif self.processes.main:
                write_json(path, {**wanted, "started": now(), "training": self.identity.training})
            else:
                raise BenchError(
                    f"process {self.processes.index} does not see {path}, which the main process "
                    "wrote. All nodes need the same --results folder, on shared storage."
                )

    def train(self) -> TrainResult:
        """Train (or go on training); the weights lie in work/adapter.safetensors.

        With another guidance or number of sampling steps, an equal training is taken over.
        """
        with self.held():
            self.begin()
            return self._train()

    def _train(self) -> TrainResult:
        if not self.trains:
            nothing = TrainResult(steps=0, images=0, seconds=0.0, dead=0, curve=[])
            write_json(self.work / "train.json", vars(nothing))
            return nothing
        trainable = Trainable(self.denoiser)
        asked = changes(self.spec.config)
        taken = (
            take_over(self.folder, key=self.identity.training, changed=asked)
            if trainable.parameters
            else None
        )
        if taken is not None:
            return taken
        spec, data = self.spec, self.train_data if trainable.parameters else self.eval_data
        images = spec.budget.images(spec.method.name)
        if trainable.parameters:
            self.hooks.stage("train", images // spec.suite.training.batch)
        reset_peak_memory(spec.device)
        result = train(
            self.denoiser,
            base=self.base,
            data=data,
            training=spec.suite.training,
            images=images,
            learning_rate=self.spec.learning_rate,
            seed=spec.config.seed,
            folder=self.work,
            tick=lambda s, n, v: self.hooks.tick(s, n, f"loss {v:.4f}"),
            stop=self.hooks.stop,
            checkpoint_every=spec.config.checkpoint_every,
            say=self.hooks.say,
            execution=Execution.of(spec.config),
            processes=self.processes,
        )
        if self.processes.main:
            weights = self._keep_weights(trainable) if trainable.parameters else {}
            write_json(self.work / "train.json", vars(result) | weights)
        self.processes.wait()
        return result

    def _keep_weights(self, trainable: Trainable) -> dict[str, str]:
        """Write the weights, also anew where those there are damaged; return their digest by its key."""
        if not intact(self.folder):
            save_weights(self.folder / ADAPTER, trainable)
        return {ADAPTER_DIGEST: sha256_file(self.folder / ADAPTER)}

    def load_trained(self) -> None:
        """Put the trained weights into the denoiser; BenchError if training has not finished."""
        trainable = Trainable(self.denoiser)
        if not trainable.parameters or not self.trains:
            return
        if not (self.folder / ADAPTER).exists():
            raise BenchError(f"{self.folder} holds no trained weights; run `bench train` first.")
        load_weights(self.folder / ADAPTER, trainable, sha256=adapter_digest(self.folder))

    def sample(self) -> float | None:
        """Sample every evaluation item, then under shuffled conditions.

        Returns seconds an image, None where no start that made any has left them.
        """
        with self.held():
            self.begin()
            return self._sample()

    def _sample(self) -> float | None:
        self.load_trained()
        self.denoiser.eval()
        data, ledger = self.eval_data, self.ledger()
        reset_peak_memory(self.spec.device)
        for name, source in self._sets().items():
            self.hooks.stage(f"sample {name}", len(self.eval_ids))
            sample_to_folder(
                self.denoiser,
                self.work / name,
                base=self.base,
                data=data,
                sampler=self.spec.suite.sampler,
                seed=self.spec.config.seed,
                batch=self.spec.config.sample_batch,
                condition_of=source,
                tick=self.hooks.tick,
                stop=self.hooks.stop,
                precision=self.spec.suite.training.precision,
                processes=self.processes,
                spent=lambda seconds, images: ledger.add(seconds=seconds, images=images),
            )
            self.processes.wait()
        if self.processes.main:
            write_json(self.work / "sample.json", {"seconds_per_image": ledger.seconds_per_image})
        self.processes.wait()
        seconds = read_json(self.work / "sample.json", of=Sampled)["seconds_per_image"]
        return None if seconds is None else float(seconds)

    def ledger(self) -> Ledger:
        """Costs are those of the main process, which every other does likewise."""
        path = self.work / "cost.json" if self.processes.main else None
        return Ledger(path, device=self.spec.device)

    def _sets(self) -> dict[str, np.ndarray | None]:
        """The sample sets of this method: its own and, where it has a condition, the shuffled."""
        sets: dict[str, np.ndarray | None] = {"samples": None}
        if self.spec.method.conditioned and self.spec.config.shuffled:
            sets["shuffled"] = derangement(self.spec.config.seed, len(self.eval_ids))
        return sets

    def score(self) -> records.RunRecord:
        """Score all sets and the reference rows, write items, contact sheet and record.

        The main process does; the others wait and read the record.
        """
        with self.held(), self.processes.main_first():
            return self._score() if self.processes.main else records.load_record(self.folder)

    def _score(self) -> records.RunRecord:
        started = self._require_finished()
        self.hooks.stage("score", 1)
        evaluator = Evaluator(
            examples=[self.dataset[i] for i in self.eval_ids],
            task=self.task,
            features=self.feature_judge,
            clip=self.clip_judge,
            cache=self.cache,
            training=self._real_images(),
            metrics=[registry.load("metric", name) for name in self.spec.config.metrics],
        )
        rows: dict[str, Scores] = {}
        for name, images in self._image_sets().items():
            self._stop_if_asked()
            rows[name] = evaluator.evaluate(images())
        curve = read_json(self.work / "train.json", of=Trained)["curve"]
        items = items_json(self.eval_ids, rows, curve=curve)
        write_json(self.folder / records.ITEMS_FILE, items | self._learned())
        self._contact(self._samples("samples"))
        record = build_record(self, rows, started=started)
        records.write_record(self.folder, record)
        return record

    def _learned(self) -> dict[str, Any]:
        """Layer weights that were trained along: "layer_weights", [slot, at the start, trained]."""
        weights = getattr(self.denoiser, "layer_weights", None)
        if weights is None or not (self.folder / ADAPTER).exists():
            return {}
        self.load_trained()
        found = [[slot, *pair] for slot, pair in weights().items()]
        return {"layer_weights": found} if any(a != b for _, a, b in found) else {}

    def _stop_if_asked(self) -> None:
        code = self.hooks.stop()
        if code is not None:
            raise Stopped(code)

    def _image_sets(self) -> dict[str, Callable[[], np.ndarray]]:
        """What is scored, by row name: own sets, then the reference rows."""
        own = {name: partial(self._samples, name) for name in self._sets()}
        return {
            **own,
            "real training images": self._real_images,
            "autoencoder": self._reconstructions,
        }

    def _samples(self, name: str) -> np.ndarray:
        height, width = self.dataset[self.eval_ids[0]].image.shape[:2]
        return load_images(self.work / name, self.eval_ids, size=(height, width))

    def _require_finished(self) -> str:
        for name in ("run.json", "train.json", "sample.json"):
            if not (self.work / name).exists():
                raise BenchError(
                    f"{self.work / name} is missing: train and sample first, or use `bench run`."
                )
        return str(read_json(self.work / "run.json", of=Begun)["started"])

    def _real_images(self) -> np.ndarray:
        """As many real training images as there are evaluation items, the same for every run."""
        whole = self.splits.side("train")
        order = generator(0, "reference").permutation(len(whole))
        picked = [whole[i] for i in order[: len(self.eval_ids)]]
        return np.stack([self.dataset[i].image for i in picked])

    def _reconstructions(self) -> np.ndarray:
        data, parts = self.eval_data, []
        for start in range(0, len(data), _DECODED):
            rows = range(start, min(start + _DECODED, len(data)))
            pixels = self.base.decode(data.latents_at(rows))
            parts.append(to_bytes(pixels.permute(0, 2, 3, 1).cpu().numpy()))
        return np.concatenate(parts)

    def _contact(self, samples: np.ndarray) -> None:
        from bench.reporting.sheet import contact_sheet, sheet_title

        shown = pick_items(self.eval_ids, MOST_TILES)
        chosen = [self.eval_ids.index(i) for i in shown]
        conditions = [show_condition(c.numpy()) for c in self.eval_data.conditions_at(chosen)]
        rows = {
            "condition": np.stack(conditions),
            "sample": samples[chosen],
            "target": self.eval_data.images(chosen),
        }
        write_tiles(self.folder / TILES_FILE, rows, shown)
        contact_sheet(rows, self.folder / "contact.png", title=sheet_title(self.id, self.leaks.items))
        atomic_write(self.work / "samples.png", png(mosaic(samples)))

    def forget(self) -> None:
        """Delete this run's folder, so that it starts afresh."""
        with self.held():
            if self.processes.main:
                for path in (*self.folder.iterdir(), *self.work.iterdir()):
                    if path not in (self.work, self.folder / LOCK):
                        _remove(path)
            self.processes.wait()

    def all(self, *, wait: bool = False) -> records.RunRecord:
        """Run every stage that is not done yet; wait: see `held`."""
        found = finished(self.folder)
        if found is not None:
            return found
        with self.held(wait=wait):
            with self.processes.main_first():
                found = finished(self.folder)  # another process has, while this one waited
            return found or self._stages()

    def _stages(self) -> records.RunRecord:
        self.train()
        self._stop_if_asked()
        self.sample()
        self._stop_if_asked()
        return self.score()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a run is, known before anything is loaded: by its digests alone.

    training: what tells its training from others, see `bench.trained`. items: evaluated.
    """

    run_id: str
    protocol: Protocol
    training: str
    items: int


def identify(spec: RunSpec) -> Identity:
    """Return what a run is, without loading its networks; errors as a Run's."""
    check_refusal(spec)
    suite = spec.suite
    assert suite.base is not None, "resolve refuses suites without a base"
    names = {"features": suite.feature_judge, "clip": suite.clip_judge}
    cards = {role: judge_card(name) for role, name in names.items() if name}
    source = open_source(spec.weights, spec.method)
    outside = {**described(spec.weights, source), "sha256": source.sha256} if source else {}
    dataset, splits = suite.dataset(), suite.splits()
    train_items(splits.side("train"), spec.budget)
    base = find_snapshot(suite.base, variant=suite.variant).digest
    return _identity(spec, dataset, splits, base, cards, outside)


def _identity(
    spec: RunSpec,
    dataset: Dataset,
    splits: Splits,
    base: str,
    cards: Mapping[str, JudgeCard],
    outside: Mapping[str, Any],
) -> Identity:
    suite = spec.suite
    protocol = Protocol(
        suite=suite.name,
        task=spec.task.name,
        dataset=dataset.digest,
        splits=splits.digest,
        base=base,
        eval_side=suite.eval_side,
        budget=spec.budget,
        training=suite.training,
        sampler=suite.sampler,
        judges={
            role: {"name": card.name, "digest": card.digest, "resize": card.resize}
            for role, card in cards.items()
        },
        task_version=spec.task.version,
        data=getattr(dataset, "protocol", {}),
    )
    begun_with = {**spec.options, **outside}
    training = training_key(
        protocol.as_dict(),
        method=spec.method.name,
        options=begun_with,
        seed=spec.config.seed,
        learning_rate=spec.learning_rate,
        device=spec.device,
    )
    return Identity(
        run_id=run_id(spec, begun_with, protocol),
        protocol=protocol,
        training=training,
        items=len(pick_items(splits.side(suite.eval_side), spec.budget.eval_items)),
    )


def check_refusal(spec: RunSpec) -> None:
    """Raise Refused where a method says that it cannot do a task."""
    reason = refusal(spec.method, spec.task)
    if reason:
        raise Refused(f"{spec.method.name} cannot do {spec.task.name}: {reason}")


def finished(folder: Path) -> records.RunRecord | None:
    """Return the record of a run that is done and whole, None where there is none yet."""
    if not (folder / records.RECORD_FILE).exists():
        return None
    return records.load_record(folder)


def run_with_floor(
    config: RunConfig, *, hooks: Hooks, again: bool = False, floor: bool = True
) -> tuple[Run, records.RunRecord, records.RunRecord | None]:
    """Do one run, and its floor where wanted; return run, record and the floor's record."""
    chosen, lowest = Run(resolve(config), hooks), None
    if again:
        chosen.forget()
    if floor and config.method != FLOOR:
        chosen.denoiser  # noqa: B018  a wrong option fails now, not after the floor
        del chosen  # the floor goes first and alone, so that its peak memory is its own
        lowest = Run(resolve(replace(config.without_weights(), method=FLOOR)), hooks).all(wait=True)
        chosen = Run(resolve(config), hooks)
    return chosen, chosen.all(), lowest


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
