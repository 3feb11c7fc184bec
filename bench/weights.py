"""Weights from outside that a run is given: found, named by digest, read without unpickling code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.content import digest_json, read_json, sha256_file
from bench.tensors import not_finite, read_tensors
from bench.types import BenchError, Example, Method, MetricSpec, Task, raise_of_machine, unknown

if TYPE_CHECKING:
    import torch

FORMS = ("same", "repeat")
_TENSORS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth")  # best first
_VARIANTS = (".fp16.", ".bf16.", ".non_ema.", ".ema.")
_COLOURS = 3
_SHOWN = 6
_HINTS = {
    "condition channels": "Where the task has one channel and the weights take three, "
    "--condition-channels repeat gives it three times.",
    "cross_attention_dim": "Stable Diffusion 1.x has 768, 2.x has 1024: give the base that they were "
    "made for with --base.",
    "widths": "Give the base that they were made for with --base.",
}


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What a run is given to start from.

    path: a folder that diffusers loads, or a file. train: whether the run trains on from them. channels:
    how the task's condition becomes theirs: "same", or "repeat" (one channel given three times).
    invert: whether it is turned over, 1 - x, before.
    """

    path: Path
    train: bool = False
    channels: str = "same"
    invert: bool = False

    def __post_init__(self) -> None:
        """Refuse a form that is not in FORMS."""
        if self.channels not in FORMS:
            raise unknown("form of condition channels", self.channels, FORMS)

    @property
    def form(self) -> str:
        """The condition's form in words, "" where it is the task's own."""
        words = [self.channels] if self.channels != "same" else []
        return ", ".join([*words, *(["invert"] if self.invert else [])])


class ShownTask:
    """A task whose condition has the form that weights from outside were made for.

    Fidelity stays that of the task. Raises BenchError where one channel is to be repeated and the task
    has another number of them.
    """

    def __init__(self, task: Task, weights: Weights) -> None:
        self.name = f"{task.name} ({weights.form})"
        self.version = task.version
        self.metrics: tuple[MetricSpec, ...] = task.metrics
        self.channels = task.channels
        self._task, self._invert = task, weights.invert
        if weights.channels == "repeat":
            if task.channels != 1:
                raise BenchError(
                    f"--condition-channels repeat: task {task.name} has {task.channels} channels; "
                    "allowed: a task with one. Leave the option away."
                )
            self.channels = _COLOURS

    def condition(self, example: Example) -> np.ndarray:
        """Return the task's condition in this form, [C,H,W] float32 in [0, 1]."""
        own = self._task.condition(example)
        turned = 1 - own if self._invert else own
        return np.repeat(turned, self.channels // len(turned), axis=0)

    def fidelity(self, image: np.ndarray, example: Example) -> dict[str, float]:
        """Score how an image obeys the item's condition, as the task does."""
        return self._task.fidelity(image, example)


def shown(task: Task, weights: Weights | None) -> Task:
    """Return the task as weights from outside see it: as it is where they take its own form."""
    return task if weights is None or not weights.form else ShownTask(task, weights)


class Source:
    """A folder or file with weights, and the SHA-256 of every file that may be read of it.

    parts: of a whole pipeline (model_index.json), the sub-folders that matter. files: name inside the
    folder -> SHA-256; sha256: of the file, or of all those. BenchError where there is nothing to read.
    """

    def __init__(self, path: Path, *, parts: Sequence[str] = ()) -> None:
        if not path.exists():
            raise BenchError(f"--weights {path}: there is no such folder or file.")
        self.path, self.name = path, _name(path)
        self._parts = tuple(parts)
        found = [path] if path.is_file() else _listed(path, self._parts)
        if not any(file.suffix in _TENSORS for file in found):
            raise BenchError(
                f"--weights {path} holds no weights ({', '.join(f'*{s}' for s in _TENSORS)}). Give a "
                "folder that diffusers loads (config.json and its weights; a variant in half precision "
                "alone, *.fp16.*, is not read), or a checkpoint file."
            )
        root = path.parent if path.is_file() else path
        self.files = {file.relative_to(root).as_posix(): sha256_file(file) for file in found}
        self.sha256 = self.files[path.name] if path.is_file() else digest_json(self.files)

    @property
    def label(self) -> str:
        """Name and the first 8 digits of the digest: "control_v11p_sd15_scribble@0c1d2e3f"."""
        return f"{self.name}@{self.sha256[:8]}"

    @property
    def is_file(self) -> bool:
        """Whether it is a single file."""
        return self.path.is_file()

    def folder(self, part: str = "") -> Path:
        """Return the folder of a part; the root stands for the first part of what is no pipeline."""
        whole = (self.path / "model_index.json").exists()
        own = part or (self._parts[0] if whole and self._parts else "")
        return self.path / own

    def model(self, kind: Any, *, part: str = "") -> Any:
        """Return a diffusers model of a class from the folder (of a part), float32, every weight read.

        BenchError for a file, another class, and weights that are missing, too many or of other shapes.
        """
        import torch

        if self.is_file:
            raise BenchError(
                f"--weights {self.path} is a file; allowed: a folder with config.json, as "
                f"{kind.__name__}.save_pretrained writes it."
            )
        folder = self.folder(part)
        self._check_class(folder, kind.__name__)
        _quiet()
        try:
            model, report = kind.from_pretrained(
                folder,
                local_files_only=True,
                dtype=torch.float32,
                use_safetensors=any(folder.glob("*.safetensors")),
                output_loading_info=True,
            )
        except Exception as error:  # the libraries raise many kinds for a damaged folder
            raise_of_machine(error)
            raise BenchError(f"{folder} cannot be loaded as {kind.__name__} ({error}).") from error
        wrong = [f"{what.replace('_', ' ')}: {_some(names)}" for what, names in report.items() if names]
        if wrong:
            raise BenchError(f"{folder} does not fit its own config.json: {'; '.join(wrong)}.")
        return _settled(model)

    def tensors(self, name: str = "") -> dict[str, torch.Tensor]:
        """Return the tensors of a file (of the folder) by name, as they are stored, on the CPU."""
        path = self.path if self.is_file else self.folder() / name
        return read_tensors(path)

    def digest(self, tensors: Mapping[str, torch.Tensor]) -> str:
        """Return one SHA-256 over named tensors: names, types, shapes and bytes, in the names' order."""
        import torch

        total = hashlib.sha256()
        for name in sorted(tensors):
            tensor = tensors[name].detach().cpu().contiguous()
            total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return total.hexdigest()

    def fit(self, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        """Raise BenchError unless what the weights were made for is what base, task and options say."""
        pairs = {key: (_plain(found.get(key)), _plain(wanted.get(key))) for key in {**wanted, **found}}
        wrong = {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
        if wrong:
            said = [f"{key} {have}, needed {need}" for key, (have, need) in wrong.items()]
            hints = [hint for key, hint in _HINTS.items() if key in wrong]
            raise BenchError(" ".join([f"{self.name} does not fit: {_some(said, '; ')}.", *hints]))

    def _check_class(self, folder: Path, name: str) -> None:
        if not (folder / "config.json").exists():
            raise BenchError(f"{folder} has no config.json; needed: the folder of a {name}.")
        config = read_json(folder / "config.json", loose=True)
        found = config.get("_class_name") if isinstance(config, dict) else None
        if found != name:
            raise BenchError(f"{folder} holds a {found}; needed: a {name}. Give weights of this method.")


def open_source(weights: Weights | None, method: Method) -> Source | None:
    """Open what a run is given for a method; BenchError for a method that takes no weights."""
    if weights is None:
        return None
    exchange = getattr(method, "exchange", None)
    if exchange is None:
        raise BenchError(f"method {method.name} takes no weights from outside. Leave --weights away.")
    return Source(weights.path, parts=exchange.parts)


def load_into(denoiser: Any, *, method: Any, source: Source) -> dict[str, str]:
    """Put weights from outside into a method's denoiser; return what a record should say of them.

    BenchError where they do not fit, and where one of them is not finite.
    """
    try:
        facts: dict[str, str] = method.load(denoiser, source)
    except (AttributeError, LookupError, RuntimeError) as error:  # tensors of other shapes or names
        raise BenchError(f"--weights {source.path} does not fit method {method.name} ({error}).") from error
    wrong = not_finite(denoiser.state_dict())
    if wrong:
        raise BenchError(
            f"--weights {source.path} holds weights that are not finite: {_some(wrong)}. Nothing that is "
            "drawn with them could be scored. Fetch or train them again."
        )
    return facts


def described(weights: Weights | None, source: Source | None) -> dict[str, Any]:
    """Return what a record's options say of weights from outside; nothing without any."""
    if weights is None or source is None:
        return {}
    form = {"condition_channels": weights.channels} if weights.channels != "same" else {}
    turned = {"invert_condition": True} if weights.invert else {}
    trained = {} if weights.train else {"no_train": True}
    return {"weights": source.label, **trained, **form, **turned}


def _name(path: Path) -> str:
    """Return the name of a folder or file; of a hub's cache, the repository's and the revision."""
    place = path.resolve() if path.name in ("", ".", "..") else path
    if place.parent.name == "snapshots":
        return f"{place.parent.parent.name.removeprefix('models--')}@{place.name[:8]}"
    return place.name


def _listed(folder: Path, parts: Sequence[str]) -> list[Path]:
    """Return the configurations and weights of a folder that may be read, sorted.

    Of weights in several formats only the best, of several precisions only the plain one.
    """
    whole = (folder / "model_index.json").exists()
    roots = [folder / part for part in parts] if whole and parts else [folder]
    files = sorted(p for root in roots for p in root.rglob("*") if p.is_file())
    kept = [p for p in files if p.name == "config.json" or p.name.endswith(".index.json")]
    weights = [p for p in files if p.suffix in _TENSORS and not _is_variant(p)]
    formats = {p.with_suffix(""): min(_rank(o) for o in weights if _twin(o, p)) for p in weights}
    kept += [p for p in weights if _rank(p) == formats[p.with_suffix("")]]
    return sorted(kept)


def _is_variant(path: Path) -> bool:
    return any(mark in path.name for mark in _VARIANTS)


def _twin(one: Path, other: Path) -> bool:
    return one.with_suffix("") == other.with_suffix("")


def _rank(path: Path) -> int:
    return _TENSORS.index(path.suffix)


def _settled(model: Any) -> Any:
    """Copy weights mapped from a file to addresses of torch's own choice: kernels may depend on them."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return model


def _quiet() -> None:
    import diffusers

    diffusers.utils.logging.set_verbosity_error()


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _some(names: Iterable[Any], mark: str = ", ") -> str:
    listed = [str(name) for name in names]
    more = f"{mark}and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return mark.join(listed[:_SHOWN]) + more
