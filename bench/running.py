"""Train, sample, score, record, in a row: what `bench run` and every grid call."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import record as records
from bench import registry
from bench.base.load import Base, load_base
from bench.base.snapshot import find_snapshot
from bench.base.weights import described, load_into, open_source, shown
from bench.config import Budget, Protocol, RunConfig, RunSpec, run_id
from bench.content import (
    Cache,
    Lock,
    Text,
    atomic_write,
    digest_json,
    patient,
    read_json,
    sha256_file,
    write_json,
)
from bench.cost import (
    Ledger,
    be_deterministic,
    count_encode_macs,
    count_macs,
    count_parameters,
    operations,
    reset_peak_memory,
)
from bench.data.latents import InMemory, Prepared, prepare
from bench.data.leaks import caption_of, check_sides, known_leaks, load_seen
from bench.data.picture import MOST_TILES, TILES_FILE, shrunk, stacked, write_tiles
from bench.data.splits import Items, Splits
from bench.judges import judge_card, load_judge
from bench.metrics.intervals import labels_of
from bench.randomness import derangement, generator, pick_items
from bench.record import OWN_STYLES
from bench.registry import FLOOR
from bench.sampling import (
    SAMPLES_FILE,
    check_steps,
    folder_of_draw,
    load_images,
    mosaic,
    png,
    sample_to_folders,
    show_condition,
    to_bytes,
)
from bench.scoring import Evaluator, Known, Scores, items_json
from bench.suites import changes, resolve
from bench.tasks import emptied
from bench.training.checkpoint import (
    ADAPTER,
    BEGUN,
    NOTHING,
    TRAINED,
    Trainable,
    TrainResult,
    intact,
    load_weights,
    save_weights,
    take_over,
    taken_over,
    trained,
)
from bench.training.engine import Execution, check_execution, count_threads, join, report
from bench.training.loop import CHECKPOINT, train, training_loss
from bench.types import BenchError, Dataset, Example, Hooks, Refused, Task, lacks_memory, refusal, some

if TYPE_CHECKING:
    import torch

LOCK = "work/lock"
_SAMPLED = "work/sample.json"
_ARTIFACTS = (records.ITEMS_FILE, "contact.png", TILES_FILE, SAMPLES_FILE, ADAPTER)
_OWN_STYLES = ("own-styles", "own-styles-base")  # the method's samples, and the base's
_DECODED = 64  # images held as floats at once
_RESAMPLED = {"guidance", "steps", "draws"}  # changes that move no weight
_TRAINING = ("suite", "task", "dataset", "splits", "base", "training", "task_version")


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a run is, known before anything is loaded: by its digests alone.

    training: a digest of everything that enters its training; equal ones end with the same weights.
    items: evaluated.
    """

    run_id: str
    protocol: Protocol
    training: str
    items: int


def identify(spec: RunSpec) -> Identity:
    """Return what a run is, without loading its networks; errors as a Run's."""
    reason = refusal(spec.method, spec.task)
    if reason:
        raise Refused(f"{spec.method.name} cannot do {spec.task.name}: {reason}")
    suite = spec.suite
    assert suite.base is not None, "resolve refuses suites without a base"
    names = {"features": suite.feature_judge, "clip": suite.clip_judge}
    cards = {role: judge_card(name) for role, name in names.items() if name}
    source = open_source(spec.weights, spec.method)
    outside = {**described(spec.weights, source), "sha256": source.sha256} if source else {}
    dataset, splits = suite.dataset(), suite.splits()
    train_items(splits.side("train"), spec.budget)
    protocol = Protocol(
        suite=suite.name,
        task=spec.task.name,
        dataset=dataset.digest,
        splits=splits.digest,
        base=find_snapshot(suite.base, variant=suite.variant).digest,
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
    return Identity(
        run_id=run_id(spec, begun_with, protocol),
        protocol=protocol,
        training=_training_key(spec, begun_with, protocol.as_dict()),
        items=len(pick_items(splits.side(suite.eval_side), spec.budget.eval_items)),
    )


def _training_key(spec: RunSpec, options: Mapping[str, Any], protocol: Mapping[str, Any]) -> str:
    """Return Identity.training; sampler, judges and evaluation do not count, nor does the task where a method
    trains without its condition.
    """
    blind = not spec.method.conditioned and spec.method.name != FLOOR  # which trains nothing
    told = [name for name in _TRAINING if not (blind and name.startswith("task"))]
    later: dict[str, Any] = {"data": dict(protocol["data"])} if "data" in protocol else {}
    later |= {"train_subset": spec.budget.train_subset} if spec.budget.train_subset else {}
    return digest_json(
        {
            **{name: protocol[name] for name in told},
            "images": spec.budget.images(spec.method.name),
            "train_items": spec.budget.train_items,
            "method": spec.method.name,
            "options": dict(options),
            "learning_rate": spec.learning_rate,
            "seed": spec.config.seed,
            "device": spec.device,
            **later,
        }
    )


def train_items(side: Sequence[str], budget: Budget) -> tuple[str, ...]:
    """Return the items of the train side that a budget trains on; BenchError for more than there are."""
    if budget.train_items is None:
        return tuple(side)
    if not 0 < budget.train_items <= len(side):
        raise BenchError(
            f"--train-items {budget.train_items}: the train side has {len(side):,} items. Give 1 to "
            f"{len(side)}, or leave it away to train on all."
        )
    return pick_items(side, budget.train_items, seed=budget.train_subset)


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
        self.processes = join(spec.device)
        self.hooks = (hooks or Hooks()) if self.processes.is_main_process else _Quiet(hooks or Hooks())
        count = self.processes.num_processes
        check_execution(Execution.of(spec.config), spec.suite.training, device=spec.device, count=count)
        with self.processes.main_process_first():
            self._load()
        be_deterministic(spec.device)

    def _load(self) -> None:
        spec, suite = self.spec, self.spec.suite
        self.task: Task = spec.task
        self.options = spec.options
        self.identity = identify(spec)
        self.protocol, self.id = self.identity.protocol, self.identity.run_id
        self.source = open_source(spec.weights, spec.method)
        self.given = described(spec.weights, self.source)
        self.shown: Task = shown(self.task, spec.weights)
        self.facts: dict[str, str] = {}
        self.dataset: Dataset = suite.dataset()
        self.splits: Splits = suite.splits()
        assert suite.base is not None, "resolve refuses suites without a base"
        self.base: Base = load_base(suite.base, device=spec.device, variant=suite.variant)
        check_steps(self.base, suite.sampler)
        names = {"features": suite.feature_judge, "clip": suite.clip_judge}
        self.judges = {r: load_judge(name, device=spec.device) for r, name in names.items() if name}
        self.metrics = [registry.load("metric", name) for name in spec.config.metrics]
        for metric in self.metrics:
            if hasattr(metric, "device"):
                metric.device = spec.device
        self.train_ids = train_items(self.splits.side("train"), spec.budget)
        self.eval_ids = pick_items(self.splits.side(suite.eval_side), spec.budget.eval_items)
        self.seen = load_seen(self.base.folder, base=self.base.digest)
        if spec.config.forgetting and isinstance(self.seen, str):
            raise BenchError(f"--forgetting needs captions of the base's own styles, but {self.seen}.")
        self.split_info, self.leaks = check_sides(
            self.dataset,
            self.splits,
            train=self.train_ids,
            evaluation=self.eval_ids,
            side=suite.eval_side,
            seen=self.seen,
            allow_leak=spec.config.allow_leak or spec.config.leaky,
            cache=self.cache,
        )
        self.task.condition(self.dataset[self.eval_ids[0]])  # a task that data lack fails now
        if "blank" in self._wrong:
            _ = self.nothing  # a task that has none fails now
        self.folder = spec.config.results / self.id
        self.work = self.folder / "work"
        self._lock = Lock(self.folder / LOCK, about=self.folder, clean=self.folder)

    @cached_property
    def train_data(self) -> Prepared:
        """The train side, encoded."""
        return self._prepare(self.train_ids, mirror=self.spec.suite.training.mirror)

    @cached_property
    def eval_data(self) -> Prepared:
        """The evaluation items, encoded."""
        return self._prepare(self.eval_ids, mirror=False)

    def _prepare(self, ids: tuple[str, ...], *, mirror: bool) -> Prepared:
        suite, hooks = self.spec.suite, self.hooks
        hooks.stage(f"prepare {len(ids)} items", 1)
        with self.processes.main_process_first():
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

    @contextmanager
    def held(self, *, wait: bool = False) -> Iterator[None]:
        """Keep other processes out of the run's folder, and clean up after killed ones.

        The main process does for all of a launch. wait: until a holder has ended, else that is a
        BenchError. Stages hold the folder themselves; around several it is held throughout.
        """
        if not self.processes.is_main_process:
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
        path = self.folder / BEGUN
        with self.processes.main_process_first():
            if path.exists():
                check_same(read_json(path, of=dict[Text, Any]), wanted, self.folder)
            elif self.processes.is_main_process:
                self._tell_data()
                write_json(path, {**wanted, "started": _now(), "training": self.identity.training})
            else:
                raise BenchError(
                    f"process {self.processes.process_index} does not see {path}, which the main process "
                    "wrote. All nodes need the same --results folder, on shared storage."
                )

    def _tell_data(self) -> None:
        """Write what was read of the user's data beside the run folders and say what was left out, once."""
        manifest = getattr(self.dataset, "manifest", None)
        path = self.folder.parent / f"data-{self.dataset.digest[:8]}.json"
        if manifest is None or (path.exists() and read_json(path) == manifest):
            return
        write_json(path, manifest)
        left_out: Mapping[str, Sequence[str]] = manifest["left out"]
        for reason, names in left_out.items():
            self.hooks.say(f"{len(names)} left out ({reason}): {some(names)}; all in {path}")

    @property
    def _trains(self) -> bool:
        """Whether there is anything to train: weights from outside may be evaluated as they are."""
        asked = self.spec.weights is None or self.spec.weights.train
        return asked and bool(Trainable(self.denoiser).parameters)

    def train(self) -> TrainResult:
        """Train (or go on training); the weights lie in work/adapter.safetensors.

        With another guidance, or number of sampling steps or draws, an equal training is taken over, and
        that of another task where the method does not see the condition.
        """
        with self.held():
            self.begin()
            result = NOTHING
            if self._trains:
                with self.processes.main_process_first():
                    taken = self._taken_over()
                if taken is not None:
                    return taken
                data = self.train_data
                images = self.spec.budget.images(self.spec.method.name)
                self.hooks.stage("train", images // self.spec.suite.training.batch)
                reset_peak_memory(self.spec.device)
                result = train(
                    self.denoiser, self.spec, base=self.base, data=data, folder=self.work, hooks=self.hooks
                )
                if self.processes.is_main_process:
                    result = replace(result, sha256=self._keep_weights())
            if self.processes.is_main_process:
                write_json(self.folder / TRAINED, vars(result))
            self.processes.wait_for_everyone()
        return result

    def _taken_over(self) -> TrainResult | None:
        taken = taken_over(self.folder)
        begun = (self.work / CHECKPOINT).exists()  # then it trains itself
        shares = _RESAMPLED & set(changes(self.spec.config)) or not self.spec.method.conditioned
        if taken is not None or begun or not shares:
            return taken  # other runs train, as what they say they cost is their own cost
        return take_over(self.folder, key=self.identity.training)

    def _keep_weights(self) -> str:
        """Write the weights, also anew where those there are damaged; return their digest."""
        if not intact(self.folder):
            save_weights(self.folder / ADAPTER, Trainable(self.denoiser))
        return sha256_file(self.folder / ADAPTER)

    @cached_property
    def own_styles(self) -> InMemory:
        """As many captions of what the base has seen as there are evaluation items, without a condition."""
        import torch

        assert not isinstance(self.seen, str), "a base that does not say it is refused"
        count, known = len(self.eval_ids), self.seen.captions
        order = np.resize(generator(0, OWN_STYLES).permutation(len(known)), count)
        captions = [caption_of(known[i]) for i in order]
        text = self.base.encode_text(["", *captions]).cpu()
        shape = self.eval_data.latent_shape
        return InMemory(
            ids=tuple(f"{number:05}" for number in range(count)),
            latents=torch.zeros(1, count, *shape),
            text=text[1:],
            empty=text[:1],
            conditions=self.nothing.expand(1, count, -1, -1, -1),
            dataset=self.dataset,
        )

    def _sample_own_styles(self) -> None:
        """Sample captions of the base's own styles, by the method and by the base, from the same noise."""
        suite = self.spec.suite
        once = replace(self.spec, suite=replace(suite, sampler=replace(suite.sampler, draws=1)))
        for name, denoiser in zip(_OWN_STYLES, (self.denoiser, self.base), strict=True):
            self.hooks.stage(f"sample {name}", len(self.eval_ids))
            sample_to_folders(
                denoiser,
                once,
                {self.work / name: np.arange(len(self.eval_ids))},
                base=self.base,
                data=self.own_styles,
                conditions=lambda rows: self.nothing,
                hooks=self.hooks,
            )
            self.processes.wait_for_everyone()

    def _forgotten(self) -> Scores:
        """Score the method's samples of the base's own styles, the base's own being the targets."""
        ids, (height, width) = self.own_styles.ids, self.dataset[self.eval_ids[0]].image.shape[:2]
        samples, own = (load_images(self.work / name, ids, size=(height, width)) for name in _OWN_STYLES)
        evaluator = Evaluator(
            examples=[Example(id=i, caption="", image=image) for i, image in zip(ids, own, strict=True)],
            task=None,
            judges={"features": self.judges["features"]},
            cache=self.cache,
            groups=self._groups,
        )
        return evaluator.evaluate(samples)

    def load_trained(self) -> None:
        """Put the trained weights into the denoiser; BenchError if training has not finished."""
        if not self._trains:
            return
        if not (self.folder / ADAPTER).exists():
            raise BenchError(f"{self.folder} holds no trained weights; run `bench train` first.")
        result = trained(self.folder)
        promised = result.sha256 if result else None
        load_weights(self.folder / ADAPTER, Trainable(self.denoiser), sha256=promised)

    def sample(self) -> float | None:
        """Sample every evaluation item, then under wrong conditions.

        Returns seconds an image, None where no start that made any has left them.
        """
        with self.held():
            self.begin()
            self.load_trained()
            self.denoiser.eval()
            data, ledger = self.eval_data, self.ledger()
            reset_peak_memory(self.spec.device)
            sets = {self.work / name: rows for name, rows in self._sets().items()}
            blank = {folder: sets.pop(folder) for folder in list(sets) if folder.name == "blank"}
            for together, conditions in ((sets, None), (blank, lambda rows: self.nothing)):
                if not together:
                    continue
                self.hooks.stage(f"sample {' and '.join(f.name for f in together)}", len(self.eval_ids))
                sample_to_folders(
                    self.denoiser,
                    self.spec,
                    together,
                    base=self.base,
                    data=data,
                    conditions=conditions,
                    hooks=self.hooks,
                    spent=lambda seconds, images: ledger.add(seconds=seconds, images=images),
                )
                self.processes.wait_for_everyone()
            if self.spec.config.forgetting:
                self._sample_own_styles()
            if self.processes.is_main_process:
                write_json(self.folder / _SAMPLED, {"seconds_per_image": ledger.seconds_per_image})
            self.processes.wait_for_everyone()
        return ledger.seconds_per_image

    def ledger(self) -> Ledger:
        """Times and memory are the main process's, whose work is that of every other, images are all."""
        path = self.work / "cost.json" if self.processes.is_main_process else None
        return Ledger(path, device=self.spec.device)

    def _sets(self) -> dict[str, np.ndarray]:
        """The sample sets of this method: its own and, where it has a condition, under wrong ones.

        Each says which evaluation item is drawn under the condition of each, [N]; "blank" under none.
        """
        sets = {"samples": np.arange(len(self.eval_ids))}
        for name in self._wrong:
            sets[name] = sets["samples"]
            if name == "shuffled":  # item i is given the condition of order[i]
                sets[name] = np.argsort(derangement(self.spec.config.seed, len(self.eval_ids)))
        return sets

    @property
    def _wrong(self) -> tuple[str, ...]:
        return self.spec.config.wrong_conditions if self.spec.method.conditioned else ()

    @cached_property
    def nothing(self) -> torch.Tensor:
        """The condition of an item of which nothing is known, [1,C,H,W]; BenchError where a task has none."""
        import torch

        try:
            condition = self.shown.condition(emptied(self.dataset[self.eval_ids[0]]))
        except (ValueError, KeyError, IndexError) as error:
            raise BenchError(
                f"task {self.task.name} has no condition of an item of which nothing is known ({error}). "
                "Leave the row away with --no-blank."
            ) from error
        return torch.from_numpy(condition)[None]

    def score(self) -> records.RunRecord:
        """Score all sets and the reference rows, write items, contact sheet and record.

        The main process does; the others wait and read the record.
        """
        with self.held(), self.processes.main_process_first():
            return self._score() if self.processes.is_main_process else records.load_record(self.folder)

    def _score(self) -> records.RunRecord:
        result = trained(self.folder)
        if result is None or not (self.folder / _SAMPLED).exists():
            raise BenchError(f"{self.folder}: train and sample first, or use `bench run`.")
        self.hooks.stage("score", 1)
        items = Items(self.dataset, self.eval_ids)
        evaluator = Evaluator(
            examples=list(items) if self.spec.suite.storage == "memory" else items,
            task=self.task,
            judges=self.judges,
            cache=self.cache,
            training=self._real_images,
            metrics=self.metrics,
            groups=self._groups,
        )
        draws = range(self.spec.suite.sampler.draws)
        rows: dict[str, Scores] = {}
        for name in self._sets():
            self.hooks.check_stop()
            rows[name] = evaluator.evaluate_draws(self._samples(name, draw) for draw in draws)
        if self.spec.config.forgetting:
            rows[OWN_STYLES] = self._forgotten()
        for name, known in {
            "real training images": self._real_images,
            "autoencoder": self._reconstructions,
        }.items():
            self.hooks.check_stop()
            rows[name] = evaluator.evaluate_known(known, items=self.split_info.eval.digest)
        values = items_json(self.eval_ids, rows, groups=self._groups, curve=result.curve)
        write_json(self.folder / records.ITEMS_FILE, values | self._learned())
        record = _record(self, result, rows)
        records.write_record(self.folder, record)
        self._report(record, step=result.steps)
        return record

    def _report(self, record: records.RunRecord, *, step: int) -> None:
        """Tell the trackers; what they raise is said, as the record is written."""
        said = {f"final/{name}": m.value for name, m in record.metrics.items() if m.value is not None}
        sheet, how = self.folder / "contact.png", Execution.of(self.spec.config)
        try:
            report(how, self.folder.name, folder=self.work, step=step, said=said, sheet=sheet)
        except Exception as error:  # of many kinds
            self.hooks.say(f"a tracker did not take the run's end ({error}); the record is whole")

    @property
    def _groups(self) -> np.ndarray | None:
        """The number of each evaluation item's group; None where no two share one."""
        found = [self.splits.groups.get(item, item) for item in self.eval_ids]
        return labels_of(found) if len(set(found)) < len(found) else None

    def _learned(self) -> dict[str, Any]:
        """Layer weights that were trained along: "layer_weights", [slot, at the start, trained]."""
        weights = getattr(self.denoiser, "layer_weights", None)
        if weights is None or not (self.folder / ADAPTER).exists():
            return {}
        self.load_trained()
        learned = [[slot, *pair] for slot, pair in weights().items()]
        return {"layer_weights": learned} if any(a != b for _, a, b in learned) else {}

    def _samples(self, name: str, draw: int = 0) -> np.ndarray:
        height, width = self.dataset[self.eval_ids[0]].image.shape[:2]
        images = load_images(folder_of_draw(self.work / name, draw), self.eval_ids, size=(height, width))
        if name == "samples" and not draw:
            self._contact(images)
        return images

    @property
    def _real_images(self) -> Known:
        """As many real training images as there are evaluation items, the same for every run."""
        whole = self.splits.side("train")
        order = generator(0, "reference").permutation(len(whole))
        chosen = Items(self.dataset, [whole[i] for i in order[: len(self.eval_ids)]])
        digests = [self.splits.items[item] for item in chosen.ids]
        return Known(of=digests, read=lambda: stacked(len(chosen), lambda row: chosen[row].image))

    @property
    def _reconstructions(self) -> Known:
        """The evaluation items' images as the autoencoder gives them back."""
        data = self.eval_data

        def read() -> np.ndarray:
            parts = []
            for start in range(0, len(data), _DECODED):
                rows = range(start, min(start + _DECODED, len(data)))
                pixels = self.base.decode(data.latents_at(rows))
                parts.append(to_bytes(pixels.permute(0, 2, 3, 1).cpu().numpy()))
            return np.concatenate(parts)

        return Known(of=[self.base.parts["vae"], self.split_info.eval.digest], read=read)

    def _contact(self, samples: np.ndarray) -> None:
        items = pick_items(self.eval_ids, MOST_TILES)
        chosen = [self.eval_ids.index(i) for i in items]
        conditions = [show_condition(c.numpy()) for c in self.eval_data.conditions_at(chosen)]
        rows = {
            "condition": shrunk(np.stack(conditions)),
            "sample": shrunk(samples[chosen]),
            "target": shrunk(self.eval_data.images(chosen)),
        }
        write_tiles(self.folder / TILES_FILE, rows, items)
        sheet = mosaic(np.concatenate(list(rows.values())), columns=len(items))  # a line a side
        atomic_write(self.folder / "contact.png", png(sheet))
        digests = {i: sha256_file(self.work / "samples" / f"{i}.png") for i in self.eval_ids}
        write_json(self.folder / SAMPLES_FILE, digests)

    def forget(self) -> None:
        """Delete what is in this run's folder, so that it starts afresh."""
        with self.held():
            if self.processes.is_main_process:
                for path in (*self.folder.iterdir(), *self.work.iterdir()):
                    if path.is_dir() and not path.is_symlink():
                        if path != self.work:
                            shutil.rmtree(path, ignore_errors=True)
                    elif path != self.folder / LOCK:
                        path.unlink(missing_ok=True)
            self.processes.wait_for_everyone()

    def all(self, *, wait: bool = False) -> records.RunRecord:
        """Run every stage that is not done yet; wait: see `held`."""
        record = finished(self.folder)
        if record is not None:
            return record
        with self.held(wait=wait):
            with self.processes.main_process_first():
                record = finished(self.folder)  # another process has, while this one waited
            if record is not None:
                return record
            self.train()
            self.hooks.check_stop()
            self.sample()
            self.hooks.check_stop()
            return self.score()


def finished(folder: Path) -> records.RunRecord | None:
    """Return the record of a run that is done and whole, None where there is none yet."""
    return records.load_record(folder) if (folder / records.RECORD_FILE).exists() else None


def run_with_floor(
    config: RunConfig, *, hooks: Hooks, again: bool = False, floor: bool = True
) -> tuple[Run, records.RunRecord, records.RunRecord | None]:
    """Do one run, and its floor where wanted; return run, record and the floor's record."""
    chosen, lowest = Run(resolve(config), hooks), None
    if again:
        chosen.forget()
    if floor and config.method != FLOOR:
        _ = chosen.denoiser  # a wrong option fails now, not after the floor
        del chosen  # the floor goes first and alone, so that its peak memory is its own
        lowest = Run(resolve(replace(config.without_weights(), method=FLOOR)), hooks).all(wait=True)
        chosen = Run(resolve(config), hooks)
    return chosen, chosen.all(), lowest


def check_same(begun: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    """Raise BenchError if a run folder was begun under another configuration, saying what differs."""
    plain = json.loads(json.dumps(wanted))
    differ = [f"{k}: {begun.get(k)!r} there, {v!r} now" for k, v in plain.items() if begun.get(k) != v]
    if differ:
        raise BenchError(
            f"{folder} was begun under another protocol ({'; '.join(differ)}). Delete the folder or "
            "choose another with --results."
        )


def _now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _record(run: Run, result: TrainResult, rows: Mapping[str, Scores]) -> records.RunRecord:
    """Return the record of a run that was trained and whose rows are scored."""

    spec, outside = run.spec, _outside(run, images=result.images)
    several = spec.suite.sampler.draws > 1
    plain = all(set(s) == {"step", "processes"} and s["processes"] == 1 for s in result.starts)
    metrics = {name: scores.metrics for name, scores in rows.items()}
    return records.RunRecord(
        run_id=run.id,
        suite=spec.suite.name,
        task=spec.task.name,
        method=spec.method.name,
        options={**spec.options, **run.given, "learning_rate": spec.learning_rate},
        budget=spec.budget.name,
        seed=spec.config.seed,
        protocol_hash=run.protocol.hash,
        protocol=run.protocol.as_dict(),
        splits=run.split_info,
        metrics=metrics["samples"],
        leaks=known_leaks(run.leaks, outside),
        weights=outside,
        rows=metrics,
        draws={name: s.draws for name, s in rows.items() if name in run._sets()} if several else {},
        cost=_cost(run, result, score_seconds=rows["samples"].seconds),
        changes=changes(spec.config),
        config=spec.config.told().as_dict(),
        trained_in=result.trained_in,
        environment={
            **records.environment(device=spec.device, threads=count_threads()),
            **({} if plain else {"execution": result.starts}),
            "base": run.base.provenance(),
        },
        artifacts={n: sha256_file(run.folder / n) for n in _ARTIFACTS if (run.folder / n).exists()},
        attribution=str(getattr(run.dataset, "attribution", "")),
        started=str(read_json(run.folder / BEGUN, of=dict[Text, Any]).get("started", "")),
        finished=_now(),
    )


def _outside(run: Run, *, images: int) -> records.Outside | None:
    """Return what the record says of weights from outside, None without any."""
    if run.source is None or run.spec.weights is None:
        return None
    return records.Outside(
        name=run.source.name,
        sha256=run.source.sha256,
        files=run.source.files,
        train_images=images,
        condition=run.spec.weights.form,
        facts=run.facts,
    )


def _cost(run: Run, result: TrainResult, *, score_seconds: float) -> records.Cost:
    sampled, images = run.ledger(), result.images
    total, trainable = count_parameters(run.denoiser)
    measured = {"denoiser": run.denoiser, "base": run.base, "data": run.eval_data}
    seconds = result.seconds or None
    peaks = [sampled.peak_memory_bytes, *([result.peak_memory_bytes] if images else [])]
    known = [peak for peak in peaks if peak is not None]
    return records.Cost(
        parameters=total,
        parameters_trainable=trainable,
        parameters_dead=result.dead,
        macs=count_macs(**measured),
        macs_guided=count_macs(**measured, branches=2),
        macs_encode=count_encode_macs(**measured),
        macs_train=_count_training(run) if images else None,
        train_seconds=seconds,
        train_images=images,
        train_images_per_second=images / seconds if seconds else None,
        sample_seconds_per_image=sampled.seconds_per_image,
        score_seconds=score_seconds,
        peak_memory_bytes=max(known) if len(known) == len(peaks) else None,
    )


def _count_training(run: Run) -> int | None:
    """Return the multiply-adds of both passes of training on one image; None where memory lacks for it."""
    loss = partial(
        training_loss,
        run.denoiser,
        base=run.base,
        data=run.eval_data,
        training=run.spec.suite.training,
        seed=0,
        step=0,
        places=range(1),
    )
    try:
        return operations(lambda: loss().backward()) // 2
    except RuntimeError as error:
        if not lacks_memory(error):
            raise
        return None
    finally:
        run.denoiser.zero_grad(set_to_none=True)
