"""Train, sample, score, record, in a row: what `bench run` and every grid call."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import content, cost, registry, sampling
from bench import record as records
from bench.base.load import Base, load_base
from bench.base.snapshot import find_snapshot
from bench.base.weights import described, load_into, open_source, shown
from bench.config import Budget, Protocol, RunConfig, RunSpec, run_id
from bench.content import Text, read_json, sha256_file, write_json
from bench.data.latents import InMemory, Prepared, prepare
from bench.data.leaks import caption_of, check_sides, known_leaks, load_seen
from bench.data.picture import MOST_TILES, TILES_FILE, shrunk, stacked, write_tiles
from bench.data.splits import Items
from bench.judges import judge_card, load_judge
from bench.metrics.intervals import labels_of
from bench.randomness import derangement, generator, pick_items
from bench.record import OWN_STYLES
from bench.registry import FLOOR
from bench.scoring import Evaluator, Known, Scores, items_json
from bench.suites import changes, resolve
from bench.tasks import emptied
from bench.training import checkpoint
from bench.training.checkpoint import ADAPTER, BEGUN, NOTHING, TRAINED, Trainable, TrainResult
from bench.training.engine import check_execution, count_threads, join, report
from bench.training.loop import CHECKPOINT, train, training_loss
from bench.types import BenchError, Example, Hooks, Refused, Stopped, lacks_memory, refusal, some

if TYPE_CHECKING:
    import torch

LOCK = "work/lock"
_SAMPLED = "work/sample.json"
_ARTIFACTS = (records.ITEMS_FILE, "contact.png", TILES_FILE, sampling.SAMPLES_FILE, ADAPTER)
_OWN_STYLES = ("own-styles", "own-styles-base")  # the method's samples, and the base's
_DECODED = 64  # images held as floats at once
_RESAMPLED = {"guidance", "steps", "draws"}  # changes that move no weight
_TRAINING = ("suite", "task", "dataset", "splits", "base", "training", "task_version")


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a run is by its digests alone, known before anything is loaded; items: evaluated.

    training: a digest of all that enters its training; equal ones end with the same weights.
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
    cards = {role: judge_card(name) for role, name in _judges(spec).items()}
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
        judges={r: {"name": c.name, "digest": c.digest, "resize": c.resize} for r, c in cards.items()},
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


def _judges(spec: RunSpec) -> dict[str, str]:
    names = {"features": spec.suite.feature_judge, "clip": spec.suite.clip_judge}
    return {role: name for role, name in names.items() if name}


def _training_key(spec: RunSpec, options: Mapping[str, Any], protocol: Mapping[str, Any]) -> str:
    """Return Identity.training: no sampling, no scoring, nor the task where a method does not see it."""
    blind = not spec.method.conditioned and spec.method.name != FLOOR  # which trains nothing
    told = {name: protocol[name] for name in _TRAINING if not (blind and name.startswith("task"))}
    told |= {"data": dict(protocol["data"])} if "data" in protocol else {}
    told |= {"train_subset": spec.budget.train_subset} if spec.budget.train_subset else {}
    return content.digest_json(
        {
            **told,
            "images": spec.budget.images(spec.method.name),
            "train_items": spec.budget.train_items,
            "method": spec.method.name,
            "options": dict(options),
            "learning_rate": spec.learning_rate,
            "seed": spec.config.seed,
            "device": spec.device,
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
        self.stop = hooks.stop  # type: ignore[method-assign]


class Run:
    """One run in its folder; each stage reads what earlier ones left on disk."""

    def __init__(self, spec: RunSpec, hooks: Hooks | None = None) -> None:
        """Load data, splits, base and judges first, so that a wrong path fails at once."""
        self.spec, self.cache, self.processes = spec, content.Cache(), join(spec.device)
        self.main, hooks = self.processes.is_main_process, hooks or Hooks()
        self.hooks = hooks if self.main else _Quiet(hooks)
        count = self.processes.num_processes
        check_execution(spec.config, spec.suite.training, device=spec.device, count=count)
        with self.processes.main_process_first():
            self._load()
        cost.be_deterministic(spec.device)

    def _load(self) -> None:
        spec, suite = self.spec, self.spec.suite
        self.task, self.options = spec.task, spec.options
        self.identity = identify(spec)
        self.protocol, self.id = self.identity.protocol, self.identity.run_id
        self.source = open_source(spec.weights, spec.method)
        self.given = described(spec.weights, self.source)
        self.shown = shown(self.task, spec.weights)
        self.facts: dict[str, str] = {}
        self.dataset, self.splits = suite.dataset(), suite.splits()
        assert suite.base is not None, "resolve refuses suites without a base"
        self.base: Base = load_base(suite.base, device=spec.device, variant=suite.variant)
        sampling.check_steps(self.base, suite.sampler)
        self.judges = {r: load_judge(name, device=spec.device) for r, name in _judges(spec).items()}
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
        self._lock = content.Lock(self.folder / LOCK, about=self.folder, clean=self.folder)

    @cached_property
    def train_data(self) -> Prepared:
        """The train side, encoded."""
        return self._prepare(self.train_ids, mirror=self.spec.suite.training.mirror)

    @cached_property
    def eval_data(self) -> Prepared:
        """The evaluation items, encoded."""
        return self._prepare(self.eval_ids, mirror=False)

    def _prepare(self, ids: tuple[str, ...], *, mirror: bool) -> Prepared:
        suite = self.spec.suite
        self.hooks.stage(f"prepare {len(ids)} items", 1)
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
                hooks=self.hooks,
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

        wait: until a holder has ended, else that is a BenchError. It may be held within itself.
        """
        if not self.main:
            yield
            return
        self._lock.wait = content.patient(self.hooks) if wait else None
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
            elif self.main:
                manifest = getattr(self.dataset, "manifest", None)
                told = self.folder.parent / f"data-{self.dataset.digest[:8]}.json"
                if manifest is not None and not (told.exists() and read_json(told) == manifest):
                    write_json(told, manifest)  # what was read of the user's data, once
                    for reason, names in manifest["left out"].items():
                        self.hooks.say(f"{len(names)} left out ({reason}): {some(names)}; all in {told}")
                write_json(path, {**wanted, "started": _now(), "training": self.identity.training})
            else:
                raise BenchError(
                    f"process {self.processes.process_index} does not see {path}, which the main process "
                    "wrote. All nodes need the same --results folder, on shared storage."
                )

    @property
    def _trains(self) -> bool:
        """Whether there is anything to train: weights from outside may be evaluated as they are."""
        asked = self.spec.weights is None or self.spec.weights.train
        return asked and bool(Trainable(self.denoiser).parameters)

    def train(self) -> TrainResult:
        """Train (or go on training); the weights lie in work/adapter.safetensors.

        An equal training is taken over where runs differ in sampling alone, or in a task that is not seen.
        """
        with self.held():
            self.begin()
            result = NOTHING
            if self._trains:
                shares = _RESAMPLED & set(changes(self.spec.config)) or not self.spec.method.conditioned
                begun = (self.work / CHECKPOINT).exists()
                key = self.identity.training if shares and not begun else None  # others tell their own cost
                with self.processes.main_process_first():
                    taken = checkpoint.take_over(self.folder, key=key)
                if taken is not None:
                    return taken
                data, images = self.train_data, self.spec.budget.images(self.spec.method.name)
                self.hooks.stage("train", images // self.spec.suite.training.batch)
                cost.reset_peak_memory(self.spec.device)
                result = train(
                    self.denoiser, self.spec, base=self.base, data=data, folder=self.work, hooks=self.hooks
                )
            if self.main and result is not NOTHING:
                if not checkpoint.intact(self.folder):  # also anew where those there are damaged
                    checkpoint.save_weights(self.folder / ADAPTER, Trainable(self.denoiser))
                result = replace(result, sha256=sha256_file(self.folder / ADAPTER))
            if self.main:
                write_json(self.folder / TRAINED, vars(result))
            self.processes.wait_for_everyone()
        return result

    def load_trained(self) -> None:
        """Put the trained weights into the denoiser; BenchError if training has not finished."""
        if not self._trains:
            return
        if not (self.folder / ADAPTER).exists():
            raise BenchError(f"{self.folder} holds no trained weights; run `bench train` first.")
        promised = (checkpoint.trained(self.folder) or NOTHING).sha256
        checkpoint.load_weights(self.folder / ADAPTER, Trainable(self.denoiser), sha256=promised)

    def sample(self) -> float | None:
        """Sample every set of evaluation items into work/; return seconds an image."""
        with self.held():
            self.begin()
            self.load_trained()
            self.denoiser.eval()
            ledger, sets = self._ledger(), self._sets()
            counted: dict[str, Any] = {"data": self.eval_data, "spent": ledger.add}
            cost.reset_peak_memory(self.spec.device)
            blank = {name: sets.pop(name) for name in ("blank",) if name in sets}
            self._sample(self.denoiser, sets, **counted)
            self._sample(self.denoiser, blank, **counted, conditions=lambda rows: self.nothing)
            if self.spec.config.forgetting:
                once = replace(self.spec.suite, sampler=replace(self.spec.suite.sampler, draws=1))
                how: dict[str, Any] = {"data": self.own_styles, "conditions": lambda rows: self.nothing}
                how["spec"] = replace(self.spec, suite=once)
                for name, by in zip(_OWN_STYLES, (self.denoiser, self.base), strict=True):
                    self._sample(by, {name: np.arange(len(self.eval_ids))}, **how)  # from the same noise
            if self.main:
                write_json(self.folder / _SAMPLED, {"seconds_per_image": ledger.seconds_per_image})
            self.processes.wait_for_everyone()
        return ledger.seconds_per_image

    def _sample(
        self, by: Any, sets: Mapping[str, np.ndarray], *, spec: RunSpec | None = None, **how: Any
    ) -> None:
        """Let a denoiser sample sets into work/, see `sample_to_folders`; spec: else the run's."""
        if sets:
            self.hooks.stage(f"sample {' and '.join(sets)}", len(self.eval_ids))
            folders = {self.work / name: rows for name, rows in sets.items()}
            how |= {"base": self.base, "hooks": self.hooks}
            sampling.sample_to_folders(by, spec or self.spec, folders, **how)
            self.processes.wait_for_everyone()

    def _ledger(self) -> cost.Ledger:
        """Times and memory are the main process's, whose work is that of every other, images are all."""
        return cost.Ledger(self.work / "cost.json" if self.main else None, device=self.spec.device)

    def _sets(self) -> dict[str, np.ndarray]:
        """Sample sets by name: which evaluation item is drawn under the condition of each, [N]."""
        sets = {name: np.arange(len(self.eval_ids)) for name in ("samples", *self._wrong)}
        if "shuffled" in sets:  # item i is given the condition of order[i]
            sets["shuffled"] = np.argsort(derangement(self.spec.config.seed, len(self.eval_ids)))
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

    @cached_property
    def own_styles(self) -> InMemory:
        """As many captions of what the base has seen as there are evaluation items, without a condition."""
        import torch

        assert not isinstance(self.seen, str), "a base that does not say it is refused"
        count, known = len(self.eval_ids), self.seen.captions
        order = np.resize(generator(0, OWN_STYLES).permutation(len(known)), count)
        text = self.base.encode_text(["", *(caption_of(known[i]) for i in order)]).cpu()
        return InMemory(
            ids=tuple(f"{number:05}" for number in range(count)),
            latents=torch.zeros(1, count, *self.eval_data.latent_shape),
            text=text[1:],
            empty=text[:1],
            conditions=self.nothing.expand(1, count, -1, -1, -1),
            dataset=self.dataset,
        )

    def score(self) -> records.RunRecord:
        """Score all sets and the reference rows, write items, contact sheet and record.

        Processes take rows in turn; the main one writes, the others read the record.
        """
        with self.held():
            result = checkpoint.trained(self.folder)
            if result is None or not (self.folder / _SAMPLED).exists():
                raise BenchError(f"{self.folder}: train and sample first, or use `bench run`.")
            rows = self._rows()
            with self.processes.main_process_first():
                if not self.main:
                    return records.load_record(self.folder)
                values = items_json(self.eval_ids, rows, groups=self._groups, curve=result.curve)
                write_json(self.folder / records.ITEMS_FILE, values | self._learned())
                record = _record(self, result, rows)
                records.write_record(self.folder, record)
                self._report(record, step=result.steps)
                return record

    def _rows(self) -> dict[str, Scores]:
        """Score every row in one of the processes; return all of them in each."""
        from accelerate.utils import gather_object

        _ = self.eval_data  # prepared by all processes together
        self.hooks.stage("score", 1)
        items = Items(self.dataset, self.eval_ids)
        with self.processes.main_process_first():  # the others find what it has read in the cache
            evaluator = Evaluator(
                examples=list(items) if self.spec.suite.storage == "memory" else items,
                task=self.task,
                judges=self.judges,
                cache=self.cache,
                training=self._real_images,
                metrics=self.metrics,
                groups=self._groups,
            )

        def drawn(name: str) -> Scores:
            return evaluator.evaluate_draws(self._samples(name))

        def forgotten() -> Scores:
            samples, own = (self._load_images(name, self.own_styles.ids) for name in _OWN_STYLES)
            examples = [Example(id="", caption="", image=image) for image in own]  # by the base: the targets
            judges = {"features": self.judges["features"]}
            alone = Evaluator(
                examples=examples, task=None, judges=judges, cache=self.cache, groups=self._groups
            )
            return alone.evaluate(samples)

        rows: dict[str, Callable[[], Scores]] = {name: partial(drawn, name) for name in self._sets()}
        if self.spec.config.forgetting:
            rows[OWN_STYLES] = forgotten
        known, items_digest = evaluator.evaluate_known, self.split_info.eval.digest
        rows["real training images"] = partial(known, self._real_images, items=items_digest)
        rows["autoencoder"] = partial(known, self._reconstructions, items=items_digest)
        scored, stopped = dict[str, Scores](), None
        for name in list(rows)[self.processes.process_index :: self.processes.num_processes]:
            stopped = stopped or self.hooks.stop()
            if stopped is None:
                scored[name] = rows[name]()
        parts = gather_object([(scored, stopped)])
        for _, code in parts:
            if code is not None:
                raise Stopped(code)
        together = {name: scores for part, _ in parts for name, scores in part.items()}
        return {name: together[name] for name in rows}

    def _report(self, record: records.RunRecord, *, step: int) -> None:
        """Tell the trackers; what they raise is said, as the record is written."""
        said = {f"final/{name}": m.value for name, m in record.metrics.items() if m.value is not None}
        sheet, kinds = self.folder / "contact.png", self.spec.config.track
        try:
            report(kinds, self.folder.name, folder=self.work, step=step, said=said, sheet=sheet)
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

    def _samples(self, name: str) -> Iterator[np.ndarray]:
        """Read each draw of a set; of the method's own the first makes tiles, contact sheet and digests."""
        for draw in range(self.spec.suite.sampler.draws):
            images = self._load_images(sampling.folder_of_draw(self.work / name, draw).name, self.eval_ids)
            if name == "samples" and not draw:
                items = pick_items(self.eval_ids, MOST_TILES)
                chosen = [self.eval_ids.index(i) for i in items]
                conditions = [
                    sampling.show_condition(c.numpy()) for c in self.eval_data.conditions_at(chosen)
                ]
                sides = {"condition": np.stack(conditions), "sample": images[chosen]}
                sides["target"] = self.eval_data.images(chosen)
                rows = {side: shrunk(pictures) for side, pictures in sides.items()}
                write_tiles(self.folder / TILES_FILE, rows, items)
                sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in rows.values()])
                content.atomic_write(self.folder / "contact.png", sampling.png(sheet))
                digests = {i: sha256_file(self.work / "samples" / f"{i}.png") for i in self.eval_ids}
                write_json(self.folder / sampling.SAMPLES_FILE, digests)
            yield images

    def _load_images(self, name: str, ids: Sequence[str]) -> np.ndarray:
        height, width, _ = self.dataset[self.eval_ids[0]].shape
        return sampling.load_images(self.work / name, ids, size=(height, width))

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
            rows = [range(at, min(at + _DECODED, len(data))) for at in range(0, len(data), _DECODED)]
            decoded = (self.base.decode(data.latents_at(part)).permute(0, 2, 3, 1) for part in rows)
            return np.concatenate([sampling.to_bytes(pixels.cpu().numpy()) for pixels in decoded])

        return Known(of=[self.base.parts["vae"], self.split_info.eval.digest], read=read)

    def forget(self) -> None:
        """Delete what is in this run's folder, so that it starts afresh."""
        with self.held():
            paths = {*self.folder.iterdir(), *self.work.iterdir()} if self.main else set()
            for path in paths - {self.work, self.folder / LOCK}:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
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
    return datetime.now(UTC).isoformat(timespec="seconds")


def _record(run: Run, result: TrainResult, rows: Mapping[str, Scores]) -> records.RunRecord:
    spec = run.spec
    weights: records.Outside | None = None
    if run.source is not None and spec.weights is not None:
        weights = records.Outside(
            name=run.source.name,
            sha256=run.source.sha256,
            files=run.source.files,
            train_images=result.images,
            condition=spec.weights.form,
            facts=run.facts,
        )
    several = spec.suite.sampler.draws > 1
    plain = all(set(s) == {"step", "processes"} and s["processes"] == 1 for s in result.starts)
    metrics = {name: scores.metrics for name, scores in rows.items()}
    return records.RunRecord(
        run_id=run.id,
        suite=spec.suite.name,
        task=spec.task.name,
        method=spec.method.name,
        title="" if registry.row("method", spec.config.method).title else spec.method.title,
        options={**spec.options, **run.given, "learning_rate": spec.learning_rate},
        budget=spec.budget.name,
        seed=spec.config.seed,
        protocol_hash=run.protocol.hash,
        protocol=run.protocol.as_dict(),
        splits=run.split_info,
        metrics=metrics["samples"],
        leaks=known_leaks(run.leaks, weights),
        weights=weights,
        rows=metrics,
        draws={name: rows[name].draws for name in run._sets()} if several else {},
        cost=_cost(run, result, score_seconds=rows["samples"].seconds),
        changes=changes(spec.config),
        config=_asked(run).told().as_dict(),
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


def _asked(run: Run) -> RunConfig:
    """Return what asks for a run again, whatever launcher and environment said of it."""
    asked, suite = run.spec.config, run.spec.suite
    batch = suite.training.batch if asked.as_released else asked.train_batch
    found = None if suite.at is None else getattr(run.dataset, "folder", None)
    return replace(asked, data=asked.data or found, train_batch=batch)


def _cost(run: Run, result: TrainResult, *, score_seconds: float) -> records.Cost:
    sampled, images, seconds = run._ledger(), result.images, result.seconds or None
    total, trainable = cost.count_parameters(run.denoiser)
    measured = {"denoiser": run.denoiser, "base": run.base, "data": run.eval_data}
    (macs, encode), (guided, _) = (cost.count_macs(**measured, branches=k) for k in (1, 2))
    peaks = [sampled.peak_memory_bytes, *([result.peak_memory_bytes] if images else [])]
    known = [peak for peak in peaks if peak is not None]
    given: dict[str, Any] = {"training": run.spec.suite.training, "seed": 0, "step": 0, "places": range(1)}
    loss = partial(training_loss, run.denoiser, base=run.base, data=run.eval_data, **given)
    macs_train = None
    try:
        macs_train = cost.operations(lambda: loss().backward()) // 2 if images else None
    except RuntimeError as error:
        if not lacks_memory(error):
            raise
    finally:
        run.denoiser.zero_grad(set_to_none=True)
    return records.Cost(
        parameters=total,
        parameters_trainable=trainable,
        parameters_dead=result.dead,
        macs=macs,
        macs_guided=guided,
        macs_encode=encode,
        macs_train=macs_train,
        train_seconds=seconds,
        train_images=images,
        train_images_per_second=images / seconds if seconds else None,
        sample_seconds_per_image=sampled.seconds_per_image,
        score_seconds=score_seconds,
        peak_memory_bytes=max(known) if len(known) == len(peaks) else None,
    )
